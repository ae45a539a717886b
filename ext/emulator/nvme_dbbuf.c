/*
 * Doorbell Buffer Config (Base 2.0, 5.8 and B.5): the host keeps doorbell values in memory and
 * rings only when a value passes the EventIdx which the controller published. Used for every I/O
 * queue; the admin queue keeps its doorbells, as drivers expect.
 *
 * While it polls, the controller keeps EventIdx behind the tail, so that nothing is rung; arm()
 * publishes the tail itself.
 */
#include "nvme_ctrl.h"

static void attach(struct emu_ctrl *ctrl)
{
    for (unsigned qid = 1; qid < N_QUEUES; qid++) {
        if (ctrl->sqs[qid].created)
            ctrl->sqs[qid].tail_db = &ctrl->shadow[2 * qid];
        if (ctrl->cqs[qid].created)
            ctrl->cqs[qid].head_db = &ctrl->shadow[2 * qid + 1];
    }
}

/* The mappings may be gone: until they return, each doorbell keeps its last value. */
void dbbuf_park(struct emu_ctrl *ctrl)
{
    ctrl->shadow = ctrl->eventidx = NULL;
    if (!ctrl->dbbuf)
        return;
    for (unsigned qid = 1; qid < N_QUEUES; qid++) {
        struct sq *sq = &ctrl->sqs[qid];
        struct cq *cq = &ctrl->cqs[qid];
        sq->parked = sq->tail;
        sq->tail_db = &sq->parked;
        cq->parked = cq->head;
        cq->head_db = &cq->parked;
    }
}

void dbbuf_off(struct emu_ctrl *ctrl)
{
    ctrl->dbbuf = false;
    ctrl->shadow = ctrl->eventidx = NULL;
}

bool dbbuf_translate(struct emu_ctrl *ctrl)
{
    ctrl->shadow = dma(ctrl, ctrl->shadow_iova, ctrl->page_size, true);
    ctrl->eventidx = dma(ctrl, ctrl->eventidx_iova, ctrl->page_size, true);
    if (!ctrl->shadow || !ctrl->eventidx) {
        ctrl->shadow = ctrl->eventidx = NULL;
        return false;
    }
    attach(ctrl);
    return true;
}

volatile uint32_t *dbbuf_doorbell(struct emu_ctrl *ctrl, unsigned index)
{
    ctrl->doorbells[index] = 0;
    if (!ctrl->dbbuf || index < 2)
        return &ctrl->doorbells[index];
    struct sq *sq = &ctrl->sqs[index / 2];
    struct cq *cq = &ctrl->cqs[index / 2];
    uint32_t *parked = index & 1 ? &cq->parked : &sq->parked;
    *parked = 0;
    if (!ctrl->shadow && !dbbuf_translate(ctrl))
        return parked;
    ctrl->shadow[index] = 0;
    ctrl->eventidx[index] = 0;
    return &ctrl->shadow[index];
}

/* EventIdx half a ring behind is soon enough: the host rings when its tail comes round to it. */
void dbbuf_keep_behind(struct emu_ctrl *ctrl, struct sq *sq)
{
    uint32_t distance = sq->tail >= sq->event ? sq->tail - sq->event : sq->size - (sq->event - sq->tail);
    if (distance <= sq->size / 2 || !ctrl->eventidx)
        return;
    sq->event = sq->tail ? sq->tail - 1 : sq->size - 1;
    ctrl->eventidx[2 * sq->qid] = sq->event;
}

uint16_t admin_dbbuf(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    if (!ctrl->config.dbbuf)
        return SC_INVALID_OPCODE;
    if ((sqe->prp1 & page_mask(ctrl)) || (sqe->prp2 & page_mask(ctrl)))
        return SC_INVALID_FIELD;
    volatile uint32_t *shadow = dma(ctrl, sqe->prp1, ctrl->page_size, true);
    volatile uint32_t *eventidx = dma(ctrl, sqe->prp2, ctrl->page_size, true);
    if (!shadow || !eventidx)
        return SC_DATA_TRANSFER;
    /* Queues may exist already: the host continues from their present values. */
    for (unsigned qid = 1; qid < N_QUEUES; qid++) {
        struct sq *sq = &ctrl->sqs[qid];
        struct cq *cq = &ctrl->cqs[qid];
        shadow[2 * qid] = sq->created ? *sq->tail_db : 0;
        shadow[2 * qid + 1] = cq->created ? *cq->head_db : 0;
        eventidx[2 * qid] = sq->event = sq->created ? *sq->tail_db : 0;
        eventidx[2 * qid + 1] = shadow[2 * qid + 1];
    }
    ctrl->dbbuf = true;
    ctrl->shadow_iova = sqe->prp1;
    ctrl->eventidx_iova = sqe->prp2;
    ctrl->shadow = shadow;
    ctrl->eventidx = eventidx;
    attach(ctrl);
    return SC_SUCCESS;
}

bool emu_ctrl_arm(struct emu_ctrl *ctrl)
{
    if (atomic_load_explicit(&ctrl->wake.pending, memory_order_acquire))
        return false;
    if (!ctrl->running || ctrl->removed)
        return true;
    if (doorbells_scan(ctrl))
        return false;
    if (ctrl->dbbuf && (ctrl->shadow || dbbuf_translate(ctrl))) {
        for (unsigned i = 0; i < ctrl->n_active; i++) {
            struct sq *sq = ctrl->active[i];
            sq->event = sq->tail;
            ctrl->eventidx[2 * sq->qid] = sq->tail;
            /* A head doorbell may make room in a full CQ. */
            ctrl->eventidx[2 * sq->cq->qid + 1] = sq->cq->head;
        }
    }
    /* The host stores a doorbell and then reads EventIdx; we stored EventIdx and now read
     * doorbells: one of us sees the other. */
    atomic_thread_fence(memory_order_seq_cst);
    return !queues_have_work(ctrl);
}

bool emu_ctrl_armed_fully(const struct emu_ctrl *ctrl)
{
    return !ctrl->running || !ctrl->n_active || (ctrl->dbbuf && ctrl->shadow);
}
