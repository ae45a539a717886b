/*
 * Faults: rules which the reactor applies to commands as it fetches them, and what else faults.h
 * offers. Rules, traces and overrides are guarded by a mutex that the reactor takes only while
 * there are rules or a trace; everything that changes the controller itself goes to the reactor as
 * mail.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "nvme_ctrl.h"

#define MAX_RULES 64
#define TRACE_ENTRIES 4096

struct rule {
    int id; /* 0 = free */
    struct emu_fault fault;
    uint8_t *payload;
    uint64_t hits;
    uint8_t last[64];
};

struct faults {
    pthread_mutex_t lock;
    pthread_cond_t hit;
    struct rule rules[MAX_RULES]; /* in the order of their ids */
    unsigned n_rules;
    bool off; /* rules are kept and don't act */
    int last_id;
    uint8_t payload[EMU_PAYLOAD_MAX]; /* of the rule that acts on the present command: the rule may go meanwhile */
    _Atomic uint64_t ready_delay, disable_delay;
    _Atomic int32_t mqes;
    struct emu_doorbell *trace;
    uint64_t traced;
};

int faults_init(struct emu_ctrl *ctrl)
{
    struct faults *faults = calloc(1, sizeof(*faults));
    if (!faults)
        return -ENOMEM;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&faults->lock, NULL);
    pthread_cond_init(&faults->hit, &attr);
    pthread_condattr_destroy(&attr);
    faults->mqes = -1;
    ctrl->faults = faults;
    return 0;
}

void faults_destroy(struct emu_ctrl *ctrl)
{
    struct faults *faults = ctrl->faults;
    if (!faults)
        return;
    emu_fault_clear(ctrl);
    pthread_mutex_destroy(&faults->lock);
    pthread_cond_destroy(&faults->hit);
    free(faults->trace);
    free(faults);
}

static void arm(struct emu_ctrl *ctrl, unsigned flag, bool on)
{
    if (on)
        atomic_fetch_or(&ctrl->faults_armed, flag);
    else
        atomic_fetch_and(&ctrl->faults_armed, ~flag);
}

static struct rule *find(struct faults *faults, int id)
{
    for (unsigned i = 0; i < faults->n_rules; i++)
        if (faults->rules[i].id == id)
            return &faults->rules[i];
    return NULL;
}

int emu_fault_add(struct emu_ctrl *ctrl, const struct emu_fault *fault)
{
    struct faults *faults = ctrl->faults;
    bool payload = fault->actions & EMU_FAULT_PAYLOAD;
    if ((payload && (!fault->payload || fault->payload_len > EMU_PAYLOAD_MAX)) ||
        fault->actions >= EMU_FAULT_REMOVE << 1 || (unsigned)fault->queue > EMU_FAULT_IO_QUEUES ||
        fault->status & 0x8000)
        return -EINVAL;
    uint8_t *copy = NULL;
    if (payload) {
        copy = malloc(fault->payload_len ? fault->payload_len : 1);
        if (!copy)
            return -ENOMEM;
        memcpy(copy, fault->payload, fault->payload_len);
    }
    pthread_mutex_lock(&faults->lock);
    int id = -ENOSPC;
    if (faults->n_rules < MAX_RULES) {
        struct rule *rule = &faults->rules[faults->n_rules++];
        *rule = (struct rule){.id = ++faults->last_id, .fault = *fault, .payload = copy};
        rule->fault.payload = copy;
        id = rule->id;
        arm(ctrl, FAULTS_RULES, !faults->off);
    }
    pthread_mutex_unlock(&faults->lock);
    if (id < 0)
        free(copy);
    return id;
}

int emu_fault_remove(struct emu_ctrl *ctrl, int id)
{
    struct faults *faults = ctrl->faults;
    pthread_mutex_lock(&faults->lock);
    struct rule *rule = find(faults, id);
    if (rule) {
        free(rule->payload);
        faults->n_rules--;
        memmove(rule, rule + 1, (size_t)(&faults->rules[faults->n_rules] - rule) * sizeof(*rule));
        arm(ctrl, FAULTS_RULES, faults->n_rules && !faults->off);
        pthread_cond_broadcast(&faults->hit);
    }
    pthread_mutex_unlock(&faults->lock);
    return rule ? 0 : -ENOENT;
}

void emu_fault_clear(struct emu_ctrl *ctrl)
{
    struct faults *faults = ctrl->faults;
    pthread_mutex_lock(&faults->lock);
    for (unsigned i = 0; i < faults->n_rules; i++)
        free(faults->rules[i].payload);
    faults->n_rules = 0;
    arm(ctrl, FAULTS_RULES, false);
    pthread_cond_broadcast(&faults->hit);
    pthread_mutex_unlock(&faults->lock);
}

void emu_fault_switch(struct emu_ctrl *ctrl, bool on)
{
    struct faults *faults = ctrl->faults;
    pthread_mutex_lock(&faults->lock);
    faults->off = !on;
    arm(ctrl, FAULTS_RULES, faults->n_rules && on);
    pthread_mutex_unlock(&faults->lock);
}

int64_t emu_fault_hits(struct emu_ctrl *ctrl, int id, uint8_t *sqe)
{
    struct faults *faults = ctrl->faults;
    pthread_mutex_lock(&faults->lock);
    struct rule *rule = find(faults, id);
    int64_t hits = rule ? (int64_t)rule->hits : -ENOENT;
    if (rule && sqe)
        memcpy(sqe, rule->last, sizeof(rule->last));
    pthread_mutex_unlock(&faults->lock);
    return hits;
}

int emu_fault_wait(struct emu_ctrl *ctrl, int id, uint64_t hits, uint64_t timeout_ns)
{
    struct faults *faults = ctrl->faults;
    uint64_t now = now_ns(), deadline = timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
    struct timespec until = {(time_t)(deadline / 1000000000u), (long)(deadline % 1000000000u)};
    int rc = 0;
    pthread_mutex_lock(&faults->lock);
    for (;;) {
        struct rule *rule = find(faults, id);
        if (!rule)
            rc = -ENOENT;
        else if (rule->hits < hits && !rc)
            rc = -pthread_cond_timedwait(&faults->hit, &faults->lock, &until);
        else if (rule->hits >= hits)
            rc = 0;
        if (!rule || rc || rule->hits >= hits)
            break;
    }
    pthread_mutex_unlock(&faults->lock);
    return rc;
}

static bool matches(const struct emu_fault *fault, const struct sq *sq, const uint8_t *sqe)
{
    if (fault->queue == EMU_FAULT_ADMIN_QUEUE ? sq->qid : fault->queue == EMU_FAULT_IO_QUEUES ? !sq->qid : false)
        return false;
    if (fault->qid >= 0 && fault->qid != sq->qid)
        return false;
    for (unsigned i = 0; i < 64; i++)
        if ((sqe[i] ^ fault->value[i]) & fault->mask[i])
            return false;
    return true;
}

/* The rule that acts on this command, if any. Every matching rule counts. With the lock held. */
static struct rule *choose(struct faults *faults, const struct sq *sq, const uint8_t *sqe)
{
    struct rule *chosen = NULL;
    for (unsigned i = 0; i < faults->n_rules && !faults->off; i++) {
        struct rule *rule = &faults->rules[i];
        if (!matches(&rule->fault, sq, sqe))
            continue;
        rule->hits++;
        memcpy(rule->last, sqe, sizeof(rule->last));
        bool spent = rule->fault.count && rule->hits - rule->fault.skip > rule->fault.count;
        if (!chosen && rule->hits > rule->fault.skip && !spent && rule->fault.actions)
            chosen = rule;
    }
    pthread_cond_broadcast(&faults->hit);
    return chosen;
}

static void fill_effect(struct faults *faults, const struct rule *rule, struct effect *effect)
{
    const struct emu_fault *fault = &rule->fault;
    effect->actions = fault->actions & (EMU_FAULT_DELAY_POST | EMU_FAULT_DROP | EMU_FAULT_CQE | EMU_FAULT_WRONG_PHASE |
                                        EMU_FAULT_DUPLICATE | EMU_FAULT_REORDER | EMU_FAULT_PAYLOAD |
                                        EMU_FAULT_LOSE_INTERRUPT | EMU_FAULT_SPURIOUS_INTERRUPT);
    memcpy(&effect->cqe, fault->cqe, sizeof(effect->cqe));
    memcpy(&effect->cqe_mask, fault->cqe_mask, sizeof(effect->cqe_mask));
    /* The status word as a caller gives it has no phase bit; ours has, at the bottom. */
    effect->cqe.status = (uint16_t)(effect->cqe.status << 1);
    effect->cqe_mask.status = (uint16_t)(effect->cqe_mask.status << 1);
    effect->delay_ns = fault->delay_ns;
    effect->distance = fault->distance;
    if (fault->actions & EMU_FAULT_PAYLOAD) {
        memcpy(faults->payload, rule->payload, fault->payload_len);
        effect->payload = faults->payload;
        effect->payload_len = fault->payload_len;
    }
}

bool faults_intercept(struct emu_ctrl *ctrl, struct sq *sq, struct nvme_sqe *sqe, struct effect *effect,
                      uint16_t *forced)
{
    struct faults *faults = ctrl->faults;
    pthread_mutex_lock(&faults->lock);
    struct rule *rule = choose(faults, sq, (const uint8_t *)sqe);
    uint32_t actions = rule ? rule->fault.actions : 0;
    uint64_t delay_ns = rule ? rule->fault.delay_ns : 0;
    if (rule) {
        uint8_t *bytes = (uint8_t *)sqe;
        for (unsigned i = 0; i < 64 && actions & EMU_FAULT_SQE; i++)
            bytes[i] =
                (uint8_t)((bytes[i] & ~rule->fault.sqe_mask[i]) | (rule->fault.sqe[i] & rule->fault.sqe_mask[i]));
        fill_effect(faults, rule, effect);
        if (actions & EMU_FAULT_FAIL)
            *forced = ctrl->host_behaviour[HOST_BEHAVIOUR_ACRE] ? rule->fault.status
                                                                : rule->fault.status & (uint16_t)~STATUS_CRD;
    }
    pthread_mutex_unlock(&faults->lock);

    if (actions & EMU_FAULT_FATAL) {
        ctrl_fatal(ctrl, "requested by a fault rule");
        return true;
    }
    if (actions & EMU_FAULT_REMOVE) {
        ctrl->removed = true;
        ctrl->running = false;
        return true;
    }
    if (actions & EMU_FAULT_DISCARD)
        return true;
    return actions & EMU_FAULT_DELAY && held_add(ctrl, sq, sqe, NULL, effect, *forced, delay_ns, UINT64_MAX);
}

int emu_fault_enable_delay(struct emu_ctrl *ctrl, uint64_t ready_ns, uint64_t disabled_ns)
{
    ctrl->faults->ready_delay = ready_ns;
    ctrl->faults->disable_delay = disabled_ns;
    return 0;
}

uint64_t faults_ready_delay(const struct emu_ctrl *ctrl)
{
    return ctrl->faults->ready_delay;
}

uint64_t faults_disable_delay(const struct emu_ctrl *ctrl)
{
    return ctrl->faults->disable_delay;
}

int emu_fault_mqes(struct emu_ctrl *ctrl, int32_t mqes)
{
    if (mqes < -1 || mqes > 65535)
        return -EINVAL;
    ctrl->faults->mqes = mqes;
    return 0;
}

uint32_t faults_mqes(const struct emu_ctrl *ctrl)
{
    int32_t mqes = ctrl->faults->mqes;
    return mqes < 0 ? ctrl->config.mqes : (uint32_t)mqes;
}

void faults_trace(struct emu_ctrl *ctrl, uint16_t doorbell, uint32_t old, uint32_t new)
{
    struct faults *faults = ctrl->faults;
    pthread_mutex_lock(&faults->lock);
    if (faults->trace) {
        faults->trace[faults->traced % TRACE_ENTRIES] = (struct emu_doorbell){
            .sequence = faults->traced,
            .time_ns = now_ns(),
            .qid = doorbell / 2,
            .is_cq = doorbell & 1,
            .old = old,
            .new = new,
        };
        faults->traced++;
    }
    pthread_mutex_unlock(&faults->lock);
}

void emu_trace_doorbells(struct emu_ctrl *ctrl, bool on)
{
    struct faults *faults = ctrl->faults;
    pthread_mutex_lock(&faults->lock);
    if (on && !faults->trace)
        faults->trace = calloc(TRACE_ENTRIES, sizeof(*faults->trace));
    arm(ctrl, FAULTS_TRACE, on && faults->trace);
    pthread_mutex_unlock(&faults->lock);
}

uint32_t emu_trace_read(struct emu_ctrl *ctrl, uint64_t from, struct emu_doorbell *out, uint32_t max)
{
    struct faults *faults = ctrl->faults;
    uint32_t n = 0;
    pthread_mutex_lock(&faults->lock);
    uint64_t oldest = faults->traced > TRACE_ENTRIES ? faults->traced - TRACE_ENTRIES : 0;
    for (uint64_t i = from > oldest ? from : oldest; i < faults->traced && n < max; i++)
        out[n++] = faults->trace[i % TRACE_ENTRIES];
    pthread_mutex_unlock(&faults->lock);
    return n;
}
