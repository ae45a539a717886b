/*
 * Interrupts of completion queues. One turn raises each vector once, however many completions it
 * posted, for an interrupt costs more than a small command; but where a turn moves much data, its
 * first commands don't wait for its last: otherwise a host that sleeps until then would leave the
 * controller idle while it wakes.
 */
#include "nvme_ctrl.h"

#define COMPARE_EVERY_NS 10000
#define COALESCING_DISABLED (1u << 16) /* CD of feature 09h */

void irq_raise(struct emu_ctrl *ctrl, unsigned vector)
{
    ctrl->irq[vector >> 6] |= 1ull << (vector & 63);
}

/*
 * Interrupts that are not sent for each completion at once. The admin queue's always do (Base 2.0,
 * 5.27.1.6: coalescing is for I/O queues).
 *
 * Coalescing (features 08h and 09h): a vector's interrupt waits until so many entries were posted,
 * or the aggregation time has elapsed since the first of them; if either is 0, it doesn't wait. A
 * failed command is signalled at once.
 *
 * Adaptive, as SPDK's vfio-user target has it: the CQ head doorbell is compared between turns.
 * While it moves, the host is polling, and no interrupt is sent. If it has not moved and there are
 * entries, one is sent, and the CQ tail at which it was sent is remembered: as long as the tail is
 * the same there is no other. So a ring that has advanced by exactly its size meanwhile counts as
 * "already sent".
 */
static uint32_t threshold(const struct emu_ctrl *ctrl)
{
    return (ctrl->features[FEAT_COALESCING] & 0xff) + 1;
}

static uint64_t aggregation_ns(const struct emu_ctrl *ctrl)
{
    return (ctrl->features[FEAT_COALESCING] >> 8 & 0xff) * 100000ull;
}

void irq_configure(struct emu_ctrl *ctrl)
{
    ctrl->irq_moderated = ctrl->config.adaptive_irqs || (threshold(ctrl) > 1 && aggregation_ns(ctrl));
}

static void forget_held(struct emu_ctrl *ctrl, unsigned vector)
{
    ctrl->n_held_irqs -= ctrl->held_irqs[vector].entries != 0;
    ctrl->held_irqs[vector].entries = 0;
}

void irq_posted(struct emu_ctrl *ctrl, struct cq *cq, bool failed)
{
    struct held_irq *held = &ctrl->held_irqs[cq->vector];
    if (cq->qid && ctrl->config.adaptive_irqs)
        return; /* irq_compare() */
    if (!cq->qid || failed || ctrl->vector_config[cq->vector] & COALESCING_DISABLED) {
        irq_raise(ctrl, cq->vector);
        return;
    }
    if (!held->entries) {
        held->deadline = now_ns() + aggregation_ns(ctrl);
        ctrl->n_held_irqs++;
    }
    if (++held->entries >= threshold(ctrl))
        irq_raise(ctrl, cq->vector);
}

bool irq_compare(struct emu_ctrl *ctrl)
{
    bool again = false;
    const uint64_t now = now_ns();
    const bool due = now >= ctrl->irq_compare_at;
    if (due)
        ctrl->irq_compare_at = now + COMPARE_EVERY_NS;
    for (unsigned i = 0; i < ctrl->n_active; i++) {
        struct cq *cq = ctrl->active[i]->cq;
        if (!cq->ien || cq->tail == cq->irq_tail)
            continue;
        cq_room(ctrl, cq); /* reads the head doorbell */
        if (!due) {
            again |= cq->head != cq->tail;
            continue;
        }
        if (cq->head != cq->tail && cq->head == cq->irq_head) {
            irq_raise(ctrl, cq->vector);
            cq->irq_tail = cq->tail;
        } else if (cq->head != cq->tail) {
            again = true;
        }
        cq->irq_head = cq->head;
    }
    return again;
}

unsigned irq_tick(struct emu_ctrl *ctrl, uint64_t now)
{
    unsigned work = 0;
    for (unsigned vector = 0; vector < EMU_MAX_VECTORS && ctrl->n_held_irqs; vector++) {
        if (ctrl->held_irqs[vector].entries && ctrl->held_irqs[vector].deadline <= now) {
            forget_held(ctrl, vector);
            irq_raise(ctrl, vector);
            work++;
        }
    }
    return work;
}

uint64_t irq_deadline(const struct emu_ctrl *ctrl)
{
    uint64_t deadline = UINT64_MAX;
    for (unsigned vector = 0; vector < EMU_MAX_VECTORS; vector++)
        if (ctrl->held_irqs[vector].entries && ctrl->held_irqs[vector].deadline < deadline)
            deadline = ctrl->held_irqs[vector].deadline;
    return deadline;
}

void irq_reset(struct emu_ctrl *ctrl)
{
    ctrl->irq[0] = ctrl->irq[1] = 0;
    ctrl->n_held_irqs = 0;
    memset(ctrl->held_irqs, 0, sizeof(ctrl->held_irqs));
}

/* Raises what is due. */
void irq_raise_pending(struct emu_ctrl *ctrl)
{
    ctrl->moved = 0;
    for (unsigned word = 0; word < 2; word++) {
        if (UNLIKELY(ctrl->irq_lost[word])) {
            ctrl->irq[word] &= ~ctrl->irq_lost[word];
            ctrl->irq_lost[word] = 0;
            ctrl->counters.interrupts_lost++;
        }
        while (ctrl->irq[word]) {
            unsigned bit = (unsigned)__builtin_ctzll(ctrl->irq[word]);
            ctrl->irq[word] &= ctrl->irq[word] - 1;
            ctrl->counters.interrupts++;
            if (UNLIKELY(ctrl->n_held_irqs))
                forget_held(ctrl, word * 64 + bit);
            ctrl->host.interrupt(ctrl->host.opaque, word * 64 + bit);
        }
    }
}

bool emu_ctrl_pin(struct emu_ctrl *ctrl)
{
    bool asserted = false;
    for (unsigned qid = 0; qid < N_QUEUES && ctrl->running; qid++) {
        struct cq *cq = &ctrl->cqs[qid];
        if (!cq->created || !cq->ien || (ctrl->intms & 1)) /* a pin is vector 0 */
            continue;
        cq_room(ctrl, cq);
        if (qid && ctrl->dbbuf && ctrl->eventidx)
            ctrl->eventidx[2 * qid + 1] = cq->head;
        asserted |= cq->head != cq->tail;
    }
    return asserted;
}
