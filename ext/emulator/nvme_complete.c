/*
 * Completions: posted if the CQ has room, else kept until it has; errors are logged, faults
 * applied.
 *
 * Memory order (Base 2.0, 4.2.3): the word of a completion that holds the phase is stored with
 * release after all else, data included; interrupts follow the stores.
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

static inline uint32_t free_slots(const struct cq *cq)
{
    return cq->head > cq->tail ? cq->head - cq->tail - 1 : cq->size - (cq->tail - cq->head) - 1;
}

static void cq_head_changed(struct emu_ctrl *ctrl, struct cq *cq, uint32_t head)
{
    ctrl->counters.doorbells++;
    if (UNLIKELY(atomic_load_explicit(&ctrl->faults_armed, memory_order_relaxed) & FAULTS_TRACE))
        faults_trace(ctrl, (uint16_t)(2 * cq->qid + 1), cq->head, head);
    uint32_t posted = cq->tail >= cq->head ? cq->tail - cq->head : cq->size - (cq->head - cq->tail);
    uint32_t consumed = head >= cq->head ? head - cq->head : cq->size - (cq->head - head);
    if (UNLIKELY(head >= cq->size || consumed > posted)) {
        cq->stalled = true;
        invalid_doorbell(ctrl, ERROR_INVALID_DOORBELL_VALUE);
        return;
    }
    cq->head = head;
}

/* Entries that may be posted now. */
uint32_t cq_room(struct emu_ctrl *ctrl, struct cq *cq)
{
    if (UNLIKELY(cq->stalled))
        return 0;
    uint32_t head = *cq->head_db;
    if (head != cq->head)
        cq_head_changed(ctrl, cq, head);
    return UNLIKELY(cq->stalled) ? 0 : free_slots(cq);
}

static inline void cq_write(struct emu_ctrl *ctrl, struct cq *cq, const struct nvme_cqe *cqe)
{
    /* The status bit 0 is the phase; what is set there beforehand (a fault) inverts it. */
    union {
        struct nvme_cqe cqe;
        uint64_t words[2];
    } entry = {*cqe};
    entry.cqe.status ^= cq->phase;
    uint64_t *slot = (uint64_t *)&cq->ring[cq->tail];
    __atomic_store_n(&slot[0], entry.words[0], __ATOMIC_RELAXED);
    __atomic_store_n(&slot[1], entry.words[1], __ATOMIC_RELEASE);
    if (++cq->tail == cq->size) {
        cq->tail = 0;
        cq->phase ^= 1;
    }
    cq->posted++;
    if (!cq->ien)
        return;
    if (UNLIKELY(ctrl->irq_moderated))
        irq_posted(ctrl, cq, cqe->status >> 1);
    else
        irq_raise(ctrl, cq->vector);
}

/* Posts the completion, or keeps it until the CQ has room. */
void cq_post(struct emu_ctrl *ctrl, struct cq *cq, const struct nvme_cqe *cqe)
{
    if (UNLIKELY(!cq->ring) && !cq_translate(ctrl, cq))
        return;
    if (LIKELY(!cq->waiting && !cq->stalled && free_slots(cq))) {
        cq_write(ctrl, cq, cqe);
        return;
    }
    if (!cq->waiting && cq_room(ctrl, cq)) {
        cq_write(ctrl, cq, cqe);
        return;
    }
    struct waiting *node = malloc(sizeof(*node));
    if (!node) {
        ctrl_fatal(ctrl, "no memory to keep a completion for a full completion queue");
        return;
    }
    *node = (struct waiting){.cqe = *cqe};
    *cq->waiting_end = node;
    cq->waiting_end = &node->next;
    ctrl->n_waiting++;
}

/* Posts waiting completions as far as their CQs have room; returns how many. */
unsigned cq_post_waiting(struct emu_ctrl *ctrl)
{
    unsigned work = 0;
    for (unsigned i = 0; i < N_QUEUES && ctrl->n_waiting; i++) {
        struct cq *cq = &ctrl->cqs[i];
        while (cq->created && cq->waiting && cq_room(ctrl, cq)) {
            if (!cq->ring && !cq_translate(ctrl, cq))
                return work;
            struct waiting *first = cq->waiting;
            cq->waiting = first->next;
            if (!cq->waiting)
                cq->waiting_end = &cq->waiting;
            ctrl->n_waiting--;
            cq_write(ctrl, cq, &first->cqe);
            free(first);
            work++;
        }
    }
    return work;
}

/* Posts a completion as modified by a fault. */
void post_as(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_cqe *cqe, const struct effect *effect)
{
    uint16_t vector = sq->cq->vector;
    if (effect->actions & EMU_FAULT_LOSE_INTERRUPT)
        ctrl->irq_lost[vector >> 6] |= 1ull << (vector & 63);
    if (effect->actions & EMU_FAULT_SPURIOUS_INTERRUPT)
        irq_raise(ctrl, vector);
    if (effect->actions & EMU_FAULT_DROP)
        return;
    cq_post(ctrl, sq->cq, cqe);
    if (effect->actions & EMU_FAULT_DUPLICATE)
        cq_post(ctrl, sq->cq, cqe);
}

static void complete_slow(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, struct nvme_cqe *cqe,
                          const struct effect *effect)
{
    uint16_t status = cqe->status >> 1;
    if (status && SC_CODE(status) != SC_ABORTED_SQ_DELETION) {
        log_error(ctrl, sq->qid, sqe, status);
        cqe->status |= SC_MORE << 1;
        ctrl->counters.errors++;
    }
    if (!effect) {
        cq_post(ctrl, sq->cq, cqe);
        return;
    }
    if (effect->actions & EMU_FAULT_CQE) {
        uint8_t *bytes = (uint8_t *)cqe;
        const uint8_t *value = (const uint8_t *)&effect->cqe, *mask = (const uint8_t *)&effect->cqe_mask;
        for (size_t i = 0; i < sizeof(*cqe); i++)
            bytes[i] = (uint8_t)((bytes[i] & ~mask[i]) | (value[i] & mask[i]));
        cqe->status &= (uint16_t)~1u;
    }
    if (effect->actions & EMU_FAULT_WRONG_PHASE)
        cqe->status |= 1;
    if (effect->actions & (EMU_FAULT_DELAY_POST | EMU_FAULT_REORDER)) {
        bool reorder = effect->actions & EMU_FAULT_REORDER;
        if (held_add(ctrl, sq, sqe, cqe, effect, 0, effect->delay_ns,
                     reorder ? sq->cq->posted + effect->distance : UINT64_MAX))
            return;
    }
    post_as(ctrl, sq, cqe, effect);
}

void complete(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint32_t result, uint16_t status,
              const struct effect *effect)
{
    struct nvme_cqe cqe = {
        .result = result,
        .dw1 = ctrl->result_high,
        .sqhd = (uint16_t)sq->head,
        .sqid = sq->qid,
        .cid = sqe->cid,
        .status = (uint16_t)(status << 1),
    };
    ctrl->result_high = 0;
    if (LIKELY(!status && !effect))
        cq_post(ctrl, sq->cq, &cqe);
    else
        complete_slow(ctrl, sq, sqe, &cqe, effect);
}
