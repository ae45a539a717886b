/*
 * Queues: rings in the client's memory, doorbells, fetching in batches; and the turn of the
 * reactor. Posting is in nvme_complete.c.
 *
 * Memory order (Base 2.0, 3.3.1.2 and 4.2.3): a tail doorbell is read with acquire before the
 * entries that it announces.
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

void cq_init(struct emu_ctrl *ctrl, uint16_t qid, uint64_t iova, uint32_t size, uint16_t vector, bool ien)
{
    struct cq *cq = &ctrl->cqs[qid];
    memset(cq, 0, sizeof(*cq));
    cq->qid = qid;
    cq->iova = iova;
    cq->size = size;
    cq->phase = 1;
    cq->vector = vector;
    cq->ien = ien;
    cq->created = true;
    cq->waiting_end = &cq->waiting;
    cq->head_db = dbbuf_doorbell(ctrl, 2 * qid + 1);
}

void sq_init(struct emu_ctrl *ctrl, uint16_t qid, uint64_t iova, uint32_t size, struct cq *cq)
{
    struct sq *sq = &ctrl->sqs[qid];
    memset(sq, 0, sizeof(*sq));
    sq->qid = qid;
    sq->iova = iova;
    sq->size = size;
    sq->cq = cq;
    sq->created = true;
    sq->incarnation = ++ctrl->sq_incarnations;
    sq->tail_db = dbbuf_doorbell(ctrl, 2 * qid);
    cq->n_sqs++;
    if (qid)
        ctrl->active[ctrl->n_active++] = sq;
}

/* Completions of that SQ for which there was no room: after its deletion none may be posted (Base
 * 2.0, 5.7). */
static void forget_waiting(struct emu_ctrl *ctrl, struct cq *cq, uint16_t sqid)
{
    struct waiting **at = &cq->waiting;
    while (*at) {
        struct waiting *node = *at;
        if (node->cqe.sqid != sqid) {
            at = &node->next;
            continue;
        }
        *at = node->next;
        free(node);
        ctrl->n_waiting--;
    }
    cq->waiting_end = at;
}

void sq_remove(struct emu_ctrl *ctrl, struct sq *sq)
{
    forget_waiting(ctrl, sq->cq, sq->qid);
    for (unsigned i = 0; i < ctrl->n_active; i++) {
        if (ctrl->active[i] == sq) {
            ctrl->active[i] = ctrl->active[--ctrl->n_active];
            break;
        }
    }
    sq->cq->n_sqs--;
    sq->created = false;
    ctrl->doorbells[2 * sq->qid] = 0;
}

void cq_remove(struct emu_ctrl *ctrl, struct cq *cq)
{
    while (cq->waiting) {
        struct waiting *first = cq->waiting;
        cq->waiting = first->next;
        free(first);
        ctrl->n_waiting--;
    }
    cq->created = false;
    ctrl->doorbells[2 * cq->qid + 1] = 0;
}

void queues_reset(struct emu_ctrl *ctrl)
{
    for (unsigned i = 0; i < N_QUEUES; i++) {
        if (ctrl->cqs[i].created)
            cq_remove(ctrl, &ctrl->cqs[i]);
        ctrl->sqs[i].created = false;
    }
    ctrl->n_active = 0;
    irq_reset(ctrl);
    for (unsigned i = 0; i < N_DOORBELLS; i++)
        ctrl->doorbells[i] = 0;
}

/* A ring lies inside one mapping; if it doesn't, the controller can't continue. */
bool cq_translate(struct emu_ctrl *ctrl, struct cq *cq)
{
    cq->ring = dma(ctrl, cq->iova, (uint64_t)cq->size * sizeof(struct nvme_cqe), true);
    if (!cq->ring)
        ctrl_fatal(ctrl, "a completion queue is not mapped");
    return cq->ring;
}

bool sq_translate(struct emu_ctrl *ctrl, struct sq *sq)
{
    sq->ring = dma(ctrl, sq->iova, (uint64_t)sq->size * sizeof(struct nvme_sqe), false);
    if (!sq->ring)
        ctrl_fatal(ctrl, "a submission queue is not mapped");
    return sq->ring;
}

/* Base 2.0, 5.2.1 (Error events): the queue is stopped; commands already fetched may still
 * complete. */
void invalid_doorbell(struct emu_ctrl *ctrl, uint8_t info)
{
    ctrl->counters.invalid_doorbells++;
    struct nvme_sqe none = {.cid = 0xffff};
    log_error(ctrl, 0xffff, &none, 0);
    event_post(ctrl, EVENT_ERROR, info, LOG_ERROR);
}

static void execute(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, const struct effect *effect)
{
    uint32_t result = 0;
    uint16_t status;
    if (UNLIKELY(ctrl->config.extras.power_states))
        power_used(ctrl, sq->qid);
    if (sq->qid) {
        ctrl->counters.io[sqe->opcode]++;
        if (UNLIKELY(ctrl->extras.hmb.enabled))
            hmb_use(ctrl);
        status = io_execute(ctrl, sq, sqe, &result);
    } else {
        ctrl->counters.admin[sqe->opcode]++;
        status = admin_execute(ctrl, sq, sqe, &result);
    }
    if (UNLIKELY(ctrl->config.timing.channels) && sq->qid && !status && !effect && timing_hold(ctrl, sq, sqe, result))
        return;
    if (status != SC_ASYNC)
        complete(ctrl, sq, sqe, result, status, effect);
}

/* A command with a fault, now or after its delay: executed, or completed with a forced status. */
void execute_as(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint16_t forced,
                const struct effect *effect)
{
    ctrl->effect = effect;
    if (forced)
        complete(ctrl, sq, sqe, 0, forced, effect);
    else
        execute(ctrl, sq, sqe, effect);
    ctrl->effect = NULL;
}

void execute_with_faults(struct emu_ctrl *ctrl, struct sq *sq, struct nvme_sqe *sqe)
{
    struct effect effect = {0};
    uint16_t forced = 0;
    if (faults_intercept(ctrl, sq, sqe, &effect, &forced))
        return;
    execute_as(ctrl, sq, sqe, forced, effect.actions ? &effect : NULL);
}

static bool sq_tail_changed(struct emu_ctrl *ctrl, struct sq *sq, uint32_t tail)
{
    ctrl->counters.doorbells++;
    if (UNLIKELY(atomic_load_explicit(&ctrl->faults_armed, memory_order_relaxed) & FAULTS_TRACE))
        faults_trace(ctrl, (uint16_t)(2 * sq->qid), sq->tail, tail);
    /* Entries not fetched yet, and new ones: a full queue has one slot free. */
    uint32_t waiting = sq->tail >= sq->head ? sq->tail - sq->head : sq->size - (sq->head - sq->tail);
    uint32_t added = tail >= sq->tail ? tail - sq->tail : sq->size - (sq->tail - tail);
    if (UNLIKELY(tail >= sq->size || waiting + added >= sq->size)) {
        sq->stalled = true;
        invalid_doorbell(ctrl, ERROR_INVALID_DOORBELL_VALUE);
        return false;
    }
    sq->tail = tail;
    if (ctrl->dbbuf && sq->qid)
        dbbuf_keep_behind(ctrl, sq);
    return true;
}

/* Fetches and executes up to BATCH commands. */
static unsigned sq_run(struct emu_ctrl *ctrl, struct sq *sq)
{
    uint32_t tail = __atomic_load_n(sq->tail_db, __ATOMIC_ACQUIRE);
    if (tail != sq->tail && !sq->stalled && !sq_tail_changed(ctrl, sq, tail))
        return 0;
    if (sq->head == sq->tail || UNLIKELY(sq->stalled || sq->n_held >= SQ_HELD_MAX))
        return 0;
    uint32_t n = (sq->tail > sq->head ? sq->tail : sq->size) - sq->head;
    uint32_t room = cq_room(ctrl, sq->cq);
    if (n > BATCH)
        n = BATCH;
    if (n > room)
        n = room; /* every command fetched has a slot for its completion */
    if (!n)
        return 0;
    if (UNLIKELY((!sq->ring && !sq_translate(ctrl, sq)) || (!sq->cq->ring && !cq_translate(ctrl, sq->cq))))
        return 0;

    struct nvme_sqe batch[BATCH];
    memcpy(batch, &sq->ring[sq->head], n * sizeof(batch[0]));
    sq->head += n;
    if (sq->head == sq->size)
        sq->head = 0;
    bool faulty = atomic_load_explicit(&ctrl->faults_armed, memory_order_relaxed) & FAULTS_RULES;
    /* A command may stop the controller or, on the admin queue, delete queues: check each time. */
    for (uint32_t i = 0; i < n && ctrl->running; i++) {
        if (UNLIKELY(sq->fused_waits || batch[i].flags & 3))
            fused_next(ctrl, sq, &batch[i], faulty);
        else if (UNLIKELY(faulty))
            execute_with_faults(ctrl, sq, &batch[i]);
        else
            execute(ctrl, sq, &batch[i], NULL);
        if (UNLIKELY(ctrl->moved >= RAISE_EVERY))
            irq_raise_pending(ctrl);
    }
    if (UNLIKELY(sq->fused_waits) && sq->head == sq->tail && ctrl->running)
        fused_end(ctrl, sq);
    return n;
}

static unsigned timers(struct emu_ctrl *ctrl)
{
    uint64_t now = now_ns();
    unsigned work = regs_tick(ctrl, now) + ops_tick(ctrl, now);
    if (!ctrl->running)
        return work;
    if (UNLIKELY(now >= ctrl->keep_alive_at)) {
        ctrl_fatal(ctrl, "the keep alive timer expired");
        return work + 1;
    }
    return work + irq_tick(ctrl, now) + held_run(ctrl, now) + power_tick(ctrl, now);
}

unsigned emu_ctrl_poll(struct emu_ctrl *ctrl)
{
    unsigned work = 0;
    if (UNLIKELY(atomic_load_explicit(&ctrl->wake.pending, memory_order_acquire)))
        work += wake_drain(ctrl);
    if (UNLIKELY(!ctrl->running || ctrl->removed))
        return work + (emu_ctrl_deadline(ctrl) == UINT64_MAX || ctrl->removed ? 0 : timers(ctrl));
    if (UNLIKELY(ctrl->n_held | ctrl->n_held_irqs))
        work += timers(ctrl);
    if (UNLIKELY(ctrl->dbbuf && !ctrl->shadow))
        dbbuf_translate(ctrl);
    work += sq_run(ctrl, &ctrl->sqs[0]);
    for (unsigned i = 0; i < ctrl->n_active && ctrl->running; i++)
        work += sq_run(ctrl, ctrl->active[i]);
    if (UNLIKELY(ctrl->n_waiting && ctrl->running))
        work += cq_post_waiting(ctrl);
    if (UNLIKELY(ctrl->config.adaptive_irqs))
        irq_compare(ctrl);
    if (ctrl->irq[0] | ctrl->irq[1])
        irq_raise_pending(ctrl);
    /* The clock and the doorbells of queues that don't exist are checked occasionally, and by
     * arm(). */
    if (UNLIKELY(!(++ctrl->turn & 1023))) {
        if (emu_ctrl_deadline(ctrl) != UINT64_MAX)
            work += timers(ctrl);
        work += doorbells_scan(ctrl);
    }
    return work;
}

uint64_t emu_ctrl_deadline(const struct emu_ctrl *ctrl)
{
    uint64_t deadline = regs_deadline(ctrl), operation = ops_deadline(ctrl);
    if (operation < deadline)
        deadline = operation;
    if (!ctrl->running)
        return deadline;
    if (ctrl->keep_alive_at < deadline)
        deadline = ctrl->keep_alive_at;
    if (ctrl->n_held && ctrl->held.next->deadline < deadline)
        deadline = ctrl->held.next->deadline;
    if (ctrl->n_held_irqs && irq_deadline(ctrl) < deadline)
        deadline = irq_deadline(ctrl);
    if (power_deadline(ctrl) < deadline)
        deadline = power_deadline(ctrl);
    return deadline;
}

static bool doorbell_exists(const struct emu_ctrl *ctrl, uint32_t index)
{
    uint32_t qid = index / 2;
    return qid < N_QUEUES && (index & 1 ? ctrl->cqs[qid].created : ctrl->sqs[qid].created);
}

/*
 * Checks that no command triggers: doorbells without a queue that were written through the shared
 * page, and the head doorbells of completion queues that have nothing to post.
 */
unsigned doorbells_scan(struct emu_ctrl *ctrl)
{
    unsigned work = 0;
    for (unsigned qid = 0; qid < N_QUEUES && ctrl->running; qid++) {
        struct cq *cq = &ctrl->cqs[qid];
        if (!cq->created || cq->stalled || *cq->head_db == cq->head)
            continue;
        cq_room(ctrl, cq);
        work += cq->stalled;
    }
    for (uint32_t i = 0; i < N_DOORBELLS && ctrl->running; i++) {
        if (UNLIKELY(ctrl->doorbells[i]) && !doorbell_exists(ctrl, i)) {
            ctrl->doorbells[i] = 0;
            invalid_doorbell(ctrl, ERROR_INVALID_DOORBELL);
            work++;
        }
    }
    return work;
}

/* A doorbell that came as a register write. With a shadow buffer the value lies there, and this
 * only wakes the controller. */
void doorbell_written(struct emu_ctrl *ctrl, uint32_t offset, uint32_t value)
{
    uint32_t index = offset / 4;
    if (!ctrl->running || index >= N_DOORBELLS)
        return;
    ctrl->counters.doorbell_writes++;
    if (doorbell_exists(ctrl, index))
        __atomic_store_n(&ctrl->doorbells[index], value, __ATOMIC_RELEASE);
    else
        invalid_doorbell(ctrl, ERROR_INVALID_DOORBELL);
}

static bool sq_has_work(struct emu_ctrl *ctrl, struct sq *sq)
{
    if (sq->stalled || sq->n_held >= SQ_HELD_MAX)
        return false;
    return (*sq->tail_db != sq->tail || sq->head != sq->tail) && cq_room(ctrl, sq->cq);
}

/* Whether poll() would find something, the clock excepted. */
bool queues_have_work(struct emu_ctrl *ctrl)
{
    if (ctrl->config.adaptive_irqs && irq_compare(ctrl))
        return true;
    if (ctrl->irq[0] | ctrl->irq[1])
        return true;
    if (sq_has_work(ctrl, &ctrl->sqs[0]))
        return true;
    for (unsigned i = 0; i < ctrl->n_active; i++)
        if (sq_has_work(ctrl, ctrl->active[i]))
            return true;
    for (unsigned i = 0; i < N_QUEUES && ctrl->n_waiting; i++)
        if (ctrl->cqs[i].created && ctrl->cqs[i].waiting && cq_room(ctrl, &ctrl->cqs[i]))
            return true;
    return false;
}
