/*
 * Commands that a fault holds back. One that has not been executed holds back its data transfer
 * too: only the copy of its 64 bytes exists, and the memory that it may access is recorded for
 * emu_outstanding().
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

#define MAX_RANGES 1024u

void held_init(struct emu_ctrl *ctrl)
{
    ctrl->held.next = ctrl->held.prev = &ctrl->held;
}

static void unlink_held(struct emu_ctrl *ctrl, struct held *held)
{
    held->next->prev = held->prev;
    held->prev->next = held->next;
    held->sq->n_held--;
    ctrl->n_held--;
    ctrl->n_reordered -= held->post_after != UINT64_MAX;
}

/* Sorted by deadline; a constant delay makes this an append. */
static void link_held(struct emu_ctrl *ctrl, struct held *held)
{
    struct held *before = ctrl->held.prev;
    while (before != &ctrl->held && before->deadline > held->deadline)
        before = before->prev;
    held->prev = before;
    held->next = before->next;
    before->next->prev = held;
    before->next = held;
    held->sq->n_held++;
    ctrl->n_held++;
    ctrl->n_reordered += held->post_after != UINT64_MAX;
}

static uint64_t transfer_nbytes(struct emu_ctrl *ctrl, const struct sq *sq, const struct nvme_sqe *sqe, bool *write)
{
    *write = true;
    if (!sq->qid) {
        if (sqe->opcode == ADMIN_IDENTIFY)
            return 4096;
        if (sqe->opcode == ADMIN_GET_LOG_PAGE)
            return (((uint64_t)(sqe->cdw11 & 0xffff) << 16 | sqe->cdw10 >> 16) + 1) * 4;
        return 0;
    }
    struct ns *ns;
    if (ns_find(ctrl, sqe->nsid, &ns))
        return 0;
    *write = sqe->opcode == IO_READ;
    if (sqe->opcode == IO_READ || sqe->opcode == IO_WRITE || sqe->opcode == IO_COMPARE)
        return ((uint64_t)(sqe->cdw12 & 0xffff) + 1) * ((1u << ns->lbads) + (ns->extended ? ns->ms : 0));
    if (sqe->opcode == IO_DSM)
        return ((sqe->cdw10 & 0xff) + 1) * 16u;
    return 0;
}

/* The memory of a command by its PRPs, or SGL, as they stand now. Returns the number of ranges;
 * fills at most max. */
static unsigned find_ranges(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool write,
                            struct emu_dma_range *ranges, unsigned max)
{
    const uint64_t page = ctrl->page_size;
    unsigned n = 0;
    if (!nbytes)
        return 0;
    if (sqe->flags & PSDT)
        return sgl_ranges(ctrl, sqe, nbytes, write, ranges, max);
    uint64_t part = page - (sqe->prp1 & (page - 1));
    part = part < nbytes ? part : nbytes;
    ranges[n++] = (struct emu_dma_range){sqe->prp1, part, write};
    nbytes -= part;
    if (nbytes && nbytes <= page) {
        ranges[n++] = (struct emu_dma_range){sqe->prp2, nbytes, write};
        return n;
    }
    uint64_t at = sqe->prp2;
    while (nbytes && n < max) {
        const volatile uint64_t *entry = dma(ctrl, at, 8, false);
        if (!entry)
            break;
        bool last_in_page = (at & (page - 1)) == page - 8;
        if (last_in_page && nbytes > page) {
            ranges[n++] = (struct emu_dma_range){at & ~(page - 1), page, false};
            at = *entry & ~(page - 1);
            continue;
        }
        part = nbytes < page ? nbytes : page;
        ranges[n++] = (struct emu_dma_range){*entry, part, write};
        nbytes -= part;
        at += 8;
    }
    if (at != sqe->prp2 && n < max)
        ranges[n++] = (struct emu_dma_range){at & ~(page - 1), page, false};
    return n;
}

/* Holds a command: to be executed (cqe NULL), or to be posted. False when there is no memory: then
 * it isn't held at all. */
bool held_add(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, const struct nvme_cqe *cqe,
              const struct effect *effect, uint16_t forced, uint64_t delay_ns, uint64_t post_after)
{
    struct emu_dma_range ranges[MAX_RANGES];
    unsigned n = 0;
    if (!cqe) {
        bool write;
        uint64_t nbytes = transfer_nbytes(ctrl, sq, sqe, &write);
        n = find_ranges(ctrl, sqe, nbytes, write, ranges, MAX_RANGES);
    }
    size_t payload_len = cqe || !effect->payload ? 0 : effect->payload_len;
    struct held *held = calloc(1, sizeof(*held) + n * sizeof(ranges[0]) + payload_len);
    if (!held)
        return false;
    held->sqe = *sqe;
    held->sq = sq;
    uint64_t now = now_ns();
    held->deadline = delay_ns >= UINT64_MAX - now ? UINT64_MAX : now + delay_ns;
    held->post_after = post_after;
    held->forced = forced;
    if (cqe) {
        held->cqe = *cqe;
        held->executed = true;
    }
    held->effect = *effect;
    /* A held command is not held again, and the rule's payload may be gone by then. */
    uint32_t over = cqe ? EMU_FAULT_DELAY | EMU_FAULT_DELAY_POST | EMU_FAULT_REORDER : EMU_FAULT_DELAY;
    held->effect.actions &= ~over;
    held->effect.payload = payload_len ? memcpy(&held->ranges[n], effect->payload, payload_len) : NULL;
    held->n_ranges = n;
    memcpy(held->ranges, ranges, n * sizeof(ranges[0]));
    link_held(ctrl, held);
    return true;
}

static void finish(struct emu_ctrl *ctrl, struct held *held)
{
    unlink_held(ctrl, held);
    if (held->executed) {
        held->cqe.sqhd = held->effect.actions & EMU_FAULT_CQE ? held->cqe.sqhd : (uint16_t)held->sq->head;
        post_as(ctrl, held->sq, &held->cqe, &held->effect);
    } else {
        execute_as(ctrl, held->sq, &held->sqe, held->forced, held->effect.actions ? &held->effect : NULL);
    }
    free(held);
}

/* Runs all due commands. Bounded: at most as many as there are now. */
unsigned held_run(struct emu_ctrl *ctrl, uint64_t now)
{
    unsigned work = 0, budget = ctrl->n_held;
    struct held *held = ctrl->held.next;
    while (held != &ctrl->held && work < budget && ctrl->running) {
        bool due = held->deadline <= now || held->sq->cq->posted >= held->post_after;
        if (!due && !ctrl->n_reordered)
            break; /* sorted: none of the following is */
        if (!due) {
            held = held->next;
            continue;
        }
        finish(ctrl, held);
        work++;
        held = ctrl->held.next; /* from the start: what was executed may have been an Abort of any other */
    }
    return work;
}

/* Those that have not been executed, and are not only to be failed. */
void held_each_waiting(struct emu_ctrl *ctrl, void (*each)(struct emu_ctrl *, const struct nvme_sqe *, void *),
                       void *arg)
{
    for (struct held *held = ctrl->held.next; held != &ctrl->held; held = held->next)
        if (held->sq->qid && !held->executed && !held->forced)
            each(ctrl, &held->sqe, arg);
}

/* All are due at the next held_run(). */
void held_release(struct emu_ctrl *ctrl)
{
    for (struct held *held = ctrl->held.next; held != &ctrl->held; held = held->next)
        held->deadline = 0; /* all of them: the order stays */
}

bool held_abort(struct emu_ctrl *ctrl, uint16_t sqid, uint16_t cid)
{
    for (struct held *held = ctrl->held.next; held != &ctrl->held; held = held->next) {
        if (held->sq->qid != sqid || held->sqe.cid != cid)
            continue;
        unlink_held(ctrl, held);
        complete(ctrl, held->sq, &held->sqe, 0, SC_ABORT_REQUESTED, NULL);
        free(held);
        return true;
    }
    return false;
}

void held_abort_sq(struct emu_ctrl *ctrl, struct sq *sq)
{
    for (struct held *held = ctrl->held.next, *next; held != &ctrl->held && sq->n_held; held = next) {
        next = held->next;
        if (held->sq != sq)
            continue;
        unlink_held(ctrl, held);
        complete(ctrl, sq, &held->sqe, 0, SC_ABORTED_SQ_DELETION, NULL);
        free(held);
    }
}

void held_drop_all(struct emu_ctrl *ctrl)
{
    while (ctrl->held.next != &ctrl->held) {
        struct held *held = ctrl->held.next;
        unlink_held(ctrl, held);
        free(held);
    }
}
