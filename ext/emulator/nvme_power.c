/*
 * Power states (Base 2.1, 8.1.18): feature 02h, autonomous transitions (0Ch), and non-operational
 * power state permissive mode (11h). Nothing gets slower or warmer: the present state and the
 * transitions are counted, which is what a host's settings can be judged by.
 */
#include "nvme_ctrl.h"

#define MAX_STATES 5
#define NON_OPERATIONAL 2u /* in byte 3 of a descriptor */
#define MXPS 1u            /* MP in units of 0.1 mW */

static const struct {
    uint16_t power; /* MP: 10 mW, or 0.1 mW with MXPS */
    uint8_t flags;
    uint32_t entry, exit; /* microseconds */
    uint8_t relative;     /* RRT, RRL, RWT, RWL */
    uint16_t idle;        /* IDLP, in 0.1 mW */
} STATES[MAX_STATES] = {
    {2500, 0, 0, 0, 0, 0},
    {1500, 0, 0, 0, 1, 0},
    {800, 0, 0, 0, 2, 0},
    {500, NON_OPERATIONAL | MXPS, 1000, 2000, 3, 500},
    {50, NON_OPERATIONAL | MXPS, 10000, 45000, 4, 50},
};

static bool operational(unsigned state)
{
    return !(STATES[state].flags & NON_OPERATIONAL);
}

static void enter(struct emu_ctrl *ctrl, unsigned state)
{
    struct power *power = &ctrl->extras.power;
    power->state = (uint8_t)state;
    if (operational(state))
        power->operational = (uint8_t)state;
    power->since = now_ns();
    ctrl->counters.power_state = state;
}

void power_reset(struct emu_ctrl *ctrl)
{
    memset(&ctrl->extras.power, 0, sizeof(ctrl->extras.power));
    enter(ctrl, ctrl->features[FEAT_POWER] & 31); /* saved, or 0 */
}

static uint64_t transition(const struct emu_ctrl *ctrl)
{
    const struct power *power = &ctrl->extras.power;
    return power->autonomous ? power->table[power->state] : 0;
}

/* When the next autonomous transition is due, if nothing is sent until then. */
uint64_t power_deadline(const struct emu_ctrl *ctrl)
{
    uint64_t entry = transition(ctrl), idle_ms = entry >> 8 & 0xffffff;
    if (!idle_ms || ctrl->n_held)
        return UINT64_MAX;
    return ctrl->extras.power.since + idle_ms * 1000000;
}

unsigned power_tick(struct emu_ctrl *ctrl, uint64_t now)
{
    if (now < power_deadline(ctrl))
        return 0;
    enter(ctrl, transition(ctrl) >> 3 & 31);
    ctrl->counters.power_transitions++;
    return 1;
}

/* A command arrived. I/O is processed in operational states alone (8.1.18.1). */
void power_used(struct emu_ctrl *ctrl, bool io)
{
    struct power *power = &ctrl->extras.power;
    power->since = now_ns();
    if (!io || operational(power->state))
        return;
    enter(ctrl, power->operational);
    ctrl->counters.power_wakeups++;
}

uint16_t power_set_state(struct emu_ctrl *ctrl, uint32_t value)
{
    unsigned state = value & 31;
    if (state && state >= ctrl->config.extras.power_states)
        return SC_INVALID_FIELD;
    ctrl->features[FEAT_POWER] = value & 0xff;
    enter(ctrl, state);
    return SC_SUCCESS;
}

/* PS is the present state, the workload hint what was set. */
uint32_t power_get_state(const struct emu_ctrl *ctrl)
{
    return ctrl->extras.power.state | (ctrl->features[FEAT_POWER] & 0xe0);
}

uint16_t power_set_autonomous(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    struct power *power = &ctrl->extras.power;
    uint64_t table[32];
    uint16_t status = copy_from_host(ctrl, sqe, table, sizeof(table));
    if (status)
        return status;
    for (unsigned i = 0; i < 32; i++) {
        unsigned target = table[i] >> 3 & 31;
        if (table[i] >> 8 & 0xffffff && (i >= ctrl->config.extras.power_states ||
                                         target >= ctrl->config.extras.power_states || operational(target)))
            return SC_INVALID_FIELD;
    }
    memcpy(power->table, table, sizeof(table));
    power->autonomous = sqe->cdw11 & 1;
    power->since = now_ns();
    return SC_SUCCESS;
}

uint16_t power_get_autonomous(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, bool current, uint32_t *result)
{
    static const uint64_t none[32];
    *result = current && ctrl->extras.power.autonomous;
    return copy_to_host(ctrl, sqe, current ? ctrl->extras.power.table : none, sizeof(none));
}

void power_identify(const struct emu_extras *extras, uint8_t *p, uint32_t *ctratt)
{
    if (extras->power_states > 1) {
        p[263] = (uint8_t)(extras->power_states - 1); /* NPSS */
        p[265] = 1;                                   /* APSTA */
        *ctratt |= 1u << 1;                           /* non-operational power state permissive mode */
    }
    for (unsigned state = 0; state == 0 || state < extras->power_states; state++) {
        uint8_t *descriptor = p + 2048 + 32u * state;
        put16(descriptor, 0, STATES[state].power);
        descriptor[3] = STATES[state].flags;
        put32(descriptor, 4, STATES[state].entry);
        put32(descriptor, 8, STATES[state].exit);
        memset(descriptor + 12, STATES[state].relative, 4);
        put16(descriptor, 16, STATES[state].idle);
        descriptor[18] = STATES[state].idle ? 1u << 6 : 0; /* IPS: 0.1 mW */
    }
}

const char *power_objection(const struct emu_extras *extras)
{
    return extras->power_states > MAX_STATES ? "at most 5 power states are supported" : NULL;
}
