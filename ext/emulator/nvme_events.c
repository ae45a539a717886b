/* Asynchronous events (Base 2.0, 5.2): outstanding requests, events waiting for one, and masking by
 * event type. */
#include "nvme_ctrl.h"

/* Feature 0Bh, Asynchronous Event Configuration: which events the host wants. Error events can't be
 * turned off. */
static bool wanted(const struct emu_ctrl *ctrl, uint8_t type, uint8_t info)
{
    uint32_t config = ctrl->features[FEAT_ASYNC_EVENT];
    if (type == EVENT_SMART)
        return config & (info == SMART_TEMPERATURE ? 1u << 1 : 1u << 0);
    if (type == EVENT_NOTICE)
        return info == NOTICE_ZONES ? config & 1u << 27
                                    : config & 1u << (8 + info); /* bit 8 is the first of the notices, in their order */
    return true;
}

void event_post(struct emu_ctrl *ctrl, uint8_t type, uint8_t info, uint8_t log)
{
    if (!ctrl->running || !wanted(ctrl, type, info))
        return;
    for (unsigned i = 0; i < ctrl->n_events; i++)
        if (ctrl->events[i].type == type && ctrl->events[i].info == info)
            return;
    if (ctrl->n_events < sizeof(ctrl->events) / sizeof(ctrl->events[0]))
        ctrl->events[ctrl->n_events++] = (struct event){type, info, log};
    events_send(ctrl);
}

/* Pairs events with requests. A type that has been reported stays masked until its log page is
 * read. */
void events_send(struct emu_ctrl *ctrl)
{
    for (unsigned i = 0; i < ctrl->n_events && ctrl->n_aer && ctrl->running;) {
        struct event event = ctrl->events[i];
        if (ctrl->events_masked & 1u << event.type) {
            i++;
            continue;
        }
        ctrl->n_events--;
        memmove(&ctrl->events[i], &ctrl->events[i + 1], (ctrl->n_events - i) * sizeof(event));
        ctrl->events_masked |= 1u << event.type;

        struct nvme_sqe sqe = ctrl->aer[0];
        struct effect effect = ctrl->aer_effect[0];
        ctrl->n_aer--;
        memmove(&ctrl->aer[0], &ctrl->aer[1], ctrl->n_aer * sizeof(sqe));
        memmove(&ctrl->aer_effect[0], &ctrl->aer_effect[1], ctrl->n_aer * sizeof(effect));
        uint32_t result = (uint32_t)event.log << 16 | (uint32_t)event.info << 8 | event.type;
        complete(ctrl, &ctrl->sqs[0], &sqe, result, SC_SUCCESS, effect.actions ? &effect : NULL);
    }
}

/* The types of events that a log page explains. */
static uint32_t types_of(uint8_t log)
{
    switch (log) {
    case LOG_ERROR:
        return 1u << EVENT_ERROR;
    case LOG_SMART:
        return 1u << EVENT_SMART;
    case LOG_CHANGED_NS:
    case LOG_FIRMWARE:
    case LOG_TELEMETRY_CONTROLLER:
    case LOG_ANA:
    case LOG_LBA_STATUS:
    case LOG_CHANGED_ZONES:
        return 1u << EVENT_NOTICE;
    case LOG_RESERVATION:
    case LOG_SANITIZE:
        return 1u << EVENT_IO;
    default:
        return 0;
    }
}

/* The host read that log page without RAE: the type is unmasked, and what the page has reported
 * needs no event. */
void event_cleared(struct emu_ctrl *ctrl, uint8_t log)
{
    ctrl->events_masked &= ~types_of(log);
    unsigned kept = 0;
    for (unsigned i = 0; i < ctrl->n_events; i++)
        if (ctrl->events[i].log != log)
            ctrl->events[kept++] = ctrl->events[i];
    ctrl->n_events = kept;
    events_send(ctrl);
}

uint16_t admin_async_event(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    if (ctrl->n_aer > AERL)
        return SC_AER_LIMIT;
    ctrl->aer[ctrl->n_aer] = *sqe;
    ctrl->aer_effect[ctrl->n_aer] = ctrl->effect ? *ctrl->effect : (struct effect){0};
    ctrl->n_aer++;
    events_send(ctrl);
    return SC_ASYNC;
}

bool aer_abort(struct emu_ctrl *ctrl, uint16_t cid)
{
    for (unsigned i = 0; i < ctrl->n_aer; i++) {
        if (ctrl->aer[i].cid != cid)
            continue;
        struct nvme_sqe sqe = ctrl->aer[i];
        ctrl->n_aer--;
        memmove(&ctrl->aer[i], &ctrl->aer[i + 1], (ctrl->n_aer - i) * sizeof(sqe));
        memmove(&ctrl->aer_effect[i], &ctrl->aer_effect[i + 1], (ctrl->n_aer - i) * sizeof(struct effect));
        complete(ctrl, &ctrl->sqs[0], &sqe, 0, SC_ABORT_REQUESTED, NULL);
        return true;
    }
    return false;
}

/* Feature 04h, the composite temperature only: there is no other sensor. */
void smart_check(struct emu_ctrl *ctrl)
{
    uint16_t over = (uint16_t)ctrl->features[FEAT_TEMPERATURE];
    uint16_t under = (uint16_t)(ctrl->features[FEAT_TEMPERATURE] >> 16);
    bool hot = ctrl->temperature >= over || (under && ctrl->temperature <= under);
    bool was = ctrl->critical_warning & 2;
    ctrl->critical_warning = (uint8_t)((ctrl->critical_warning & ~2u) | (hot ? 2u : 0));
    if (hot && !was)
        event_post(ctrl, EVENT_SMART, SMART_TEMPERATURE, LOG_SMART);
}
