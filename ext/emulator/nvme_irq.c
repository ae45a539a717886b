/*
 * Interrupts of completion queues. One turn raises each vector once, however many completions it posted, for an interrupt costs more
 * than a small command; but where a turn moves much data, its first commands don't wait for its last: a host that sleeps until then
 * would leave the controller without work while it wakes.
 */
#include "nvme_ctrl.h"

void irq_raise(struct emu_ctrl *ctrl, unsigned vector)
{
    ctrl->irq[vector >> 6] |= 1ull << (vector & 63);
}

/* Raises what is due. */
void irq_tell(struct emu_ctrl *ctrl)
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
