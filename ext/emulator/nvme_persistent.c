/*
 * The Persistent Event log page (Base 2.1, 5.1.12.1.14): what happened to the controller, the last
 * 64 events. A host establishes a reporting context, which is a copy, reads it, and releases it.
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

#define HEADER 512u
#define EVENT_HEADER 24u

void persistent_add(struct emu_ctrl *ctrl, uint8_t type, const void *data, size_t nbytes)
{
    struct persistent_events *log = &ctrl->extras.persistent;
    if (!ctrl->config.extras.persistent_events)
        return;
    struct persistent_event *event = &log->events[log->n++ % PEL_EVENTS];
    event->type = type;
    event->revision = type == PEL_SET_FEATURE ? 2 : 1;
    event->timestamp = timestamp(ctrl);
    event->nbytes = (uint16_t)(nbytes < sizeof(event->data) ? nbytes : sizeof(event->data));
    memcpy(event->data, data, event->nbytes);
}

static void header(const struct emu_ctrl *ctrl, uint8_t *p, uint32_t n, size_t nbytes)
{
    const struct emu_config *config = &ctrl->config;
    static const uint8_t types[] = {PEL_SMART,
                                    PEL_FIRMWARE_COMMIT,
                                    PEL_TIMESTAMP,
                                    PEL_RESET,
                                    PEL_NAMESPACE,
                                    PEL_FORMAT_START,
                                    PEL_FORMAT_COMPLETION,
                                    PEL_SANITIZE_START,
                                    PEL_SANITIZE_COMPLETION,
                                    PEL_SET_FEATURE,
                                    PEL_TELEMETRY};
    p[0] = LOG_PERSISTENT;
    put32(p, 4, n);
    put64(p, 8, nbytes);
    p[16] = 3;                    /* revision of the page */
    put16(p, 18, HEADER - 20);    /* what follows of the header */
    put64(p, 20, timestamp(ctrl));
    put64(p, 28, (now_ns() - ctrl->power_on_at) / 3600000000000ull);
    put64(p, 44, 1); /* power cycles */
    put16(p, 52, config->vendor_id);
    put16(p, 54, config->subsystem_vendor_id);
    put_text(p, 56, 20, config->serial);
    put_text(p, 76, 40, config->model);
    put16(p, 372, ctrl->extras.persistent.generation);
    put32(p, 374, 1u << 18); /* RCI: a context exists, for this port */
    for (unsigned i = 0; i < sizeof(types); i++)
        p[480 + types[i] / 8] |= (uint8_t)(1u << types[i] % 8);
}

/* A copy of all events as they stand, the newest first. */
static bool establish(struct emu_ctrl *ctrl)
{
    struct persistent_events *log = &ctrl->extras.persistent;
    uint8_t smart[512] = {0};
    smart_page(ctrl, smart);
    persistent_add(ctrl, PEL_SMART, smart, sizeof(smart));
    uint32_t n = log->n < PEL_EVENTS ? (uint32_t)log->n : PEL_EVENTS;
    uint8_t *page = calloc(1, HEADER + n * (EVENT_HEADER + sizeof(log->events[0].data)));
    if (!page)
        return false;
    size_t at = HEADER;
    for (uint32_t i = 0; i < n; i++) {
        const struct persistent_event *event = &log->events[(log->n - 1 - i) % PEL_EVENTS];
        uint8_t *to = page + at;
        to[0] = event->type;
        to[1] = event->revision;
        to[2] = EVENT_HEADER - 3;
        put64(to, 6, event->timestamp);
        put16(to, 22, event->nbytes);
        memcpy(to + EVENT_HEADER, event->data, event->nbytes);
        at += EVENT_HEADER + event->nbytes;
    }
    log->generation++;
    header(ctrl, page, n, at);
    free(log->context);
    log->context = page;
    log->context_nbytes = at;
    return true;
}

uint8_t *persistent_page(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status)
{
    struct persistent_events *log = &ctrl->extras.persistent;
    uint32_t action = sqe->cdw10 >> 8 & 3;
    if (action == 2) { /* release */
        free(log->context);
        log->context = NULL;
        *nbytes = HEADER;
        return calloc(1, HEADER);
    }
    if (action == 1) {
        if (log->context || !establish(ctrl)) {
            *status = log->context ? SC_COMMAND_SEQUENCE : SC_INTERNAL;
            return NULL;
        }
    } else if (action || !log->context) {
        *status = action ? SC_INVALID_FIELD : SC_COMMAND_SEQUENCE;
        return NULL;
    }
    *nbytes = log->context_nbytes;
    uint8_t *copy = malloc(log->context_nbytes);
    if (copy)
        memcpy(copy, log->context, log->context_nbytes);
    return copy;
}
