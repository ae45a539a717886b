/*
 * Many commands of one kind, awaited as one: element i moves `nbytes` at lbas[i] to or from data + i * nbytes. Composed of the primitives of
 * queue.h; runs without the interpreter.
 */
#ifndef NVME_ASYNC_HOTPATH_BATCH_H
#define NVME_ASYNC_HOTPATH_BATCH_H

#include "queue.h"
#include "short.h"
#include "waiting.h"

struct nvb_piece {
    uint8_t *data;
    uint64_t iova;
    uint64_t offset; /* in the pool */
};

struct nvb_batch {
    struct nvq_sqe command; /* what all have in common */
    const uint64_t *lbas;
    uint16_t *status; /* of each element, 0 = success */
    uint8_t *data;    /* NULL: commands without data */
    uint64_t iova;    /* of data, where the device reaches it; else `pieces` are used */
    uint64_t offset;  /* of data in the pool, or NVQ_NO_OFFSET */
    uint64_t sum;     /* what the trackers' sums have in common: nvb_sum() */
    struct nvb_piece *pieces; /* free bounce pieces, a stack of up to `depth` */
    uint32_t n_pieces;
    uint32_t nbytes; /* of one element */
    uint32_t n;      /* elements */
    uint32_t next;   /* not yet sent */
    uint32_t done;
    uint32_t failed;
    uint32_t out; /* sent and not done */
    uint32_t depth;
    uint16_t flags; /* of the trackers */
    bool bounced;
    bool stopped; /* nothing more is sent: the awaiter is gone */
};

/* Whose a slot is, beside the tracker. Process-local; batch NULL: not a batch's. */
struct nvb_slot {
    struct nvb_batch *batch;
    uint32_t element;
    uint32_t attempts; /* how often it was sent again after a reset */
    struct nvb_piece piece;
};

/* "Command Aborted By Host", the status of elements that were sent again too often (Base 2.0, figure 105). */
#define NVB_GIVEN_UP 0x371

/* To be called once, after all the above was set. */
static inline void nvb_sum(struct nvb_batch *b)
{
    b->sum = nvq_sum_rest(&b->command, b->flags, b->nbytes);
}

/* Sends an element; its slot, or -1 when no id is free. */
static inline int nvb_post(struct nvq *q, struct nvb_slot *slots, struct nvb_batch *b, uint32_t element, const struct nvb_piece *piece)
{
    const int taken = nvq_take(q);
    if (taken < 0)
        return -1;
    const unsigned slot = (unsigned)taken;
    struct nvq_tracker *t = &q->trackers[slot];
    const uint64_t lba = b->lbas[element];
    const uint64_t at = (uint64_t)element * b->nbytes;
    t->sqe = b->command;
    t->sqe.cdw10 = (uint32_t)lba;
    t->sqe.cdw11 = (uint32_t)(lba >> 32);
    t->flags = b->flags;
    t->tag = element;
    t->data_nbytes = b->nbytes;
    t->data_offset = NVQ_NO_OFFSET;
    slots[slot].batch = b;
    slots[slot].element = element;
    slots[slot].attempts = 0;
    if (b->data) {
        uint64_t iova;
        if (b->bounced) {
            slots[slot].piece = *piece;
            if (b->flags & NVQ_FROM_HOST)
                memcpy(piece->data, b->data + at, b->nbytes);
            else
                nvs_prepare(piece->data, b->nbytes);
            iova = piece->iova;
            t->data_offset = piece->offset;
        } else {
            iova = b->iova + at;
            if (b->offset != NVQ_NO_OFFSET)
                t->data_offset = b->offset + at;
        }
        if (prp_pages(iova, b->nbytes) == 1) {
            t->sqe.prp1 = iova;
            t->sqe.prp2 = 0;
        } else {
            /* Cannot fail: the batch was checked against the queue's longest list. */
            (void)prp_build(&t->sqe.prp1, iova, b->nbytes, nvq_list(q, slot), nvq_list_iova(q, slot), q->list_bytes);
        }
    }
    nvq_post_summed(q, slot, b->sum + nvq_sum_lba(lba) + nvq_sum_tag(element));
    b->out++;
    return taken;
}

/* After a reset: an element that was out is sent again from the same pages, unless nobody waits for it or it was `limit` times before. */
static inline bool nvb_again(struct nvq *q, struct nvb_slot *slots, const struct nvb_slot *old, uint32_t limit)
{
    struct nvb_batch *b = old->batch;
    if (!b->stopped && old->attempts < limit) {
        const int slot = nvb_post(q, slots, b, old->element, &old->piece);
        if (slot >= 0) { /* always: it had one before */
            slots[slot].attempts = old->attempts + 1;
            return true;
        }
    }
    if (b->bounced)
        b->pieces[b->n_pieces++] = old->piece;
    if (!b->stopped) {
        b->status[old->element] = NVB_GIVEN_UP;
        b->failed++;
        b->done++;
    }
    return false;
}

/* Sends what depth and free ids allow, leaving `keep` ids to others. Returns how many. */
static inline uint32_t nvb_fill(struct nvq *q, struct nvb_slot *slots, struct nvb_batch *b, uint32_t keep)
{
    uint32_t count = 0;
    while (b->next < b->n && b->out < b->depth && q->n_free > keep && !b->stopped) {
        const struct nvb_piece *piece = b->bounced ? &b->pieces[--b->n_pieces] : NULL;
        (void)nvb_post(q, slots, b, b->next, piece);
        b->next++;
        count++;
    }
    return count;
}

/* One element's completion, recorded in its tracker by nvq_reap. */
static inline void nvb_finish(struct nvq *q, struct nvb_slot *slots, unsigned slot)
{
    struct nvb_batch *b = slots[slot].batch;
    const struct nvq_tracker *t = &q->trackers[slot];
    const uint32_t element = slots[slot].element;
    uint16_t status = t->status;
    if (!status && b->bounced && (b->flags & NVQ_TO_HOST))
        status = nvs_finish(slots[slot].piece.data, b->nbytes);
    b->status[element] = status;
    if (status)
        b->failed++;
    if (b->bounced) {
        if (!status && (b->flags & NVQ_TO_HOST) && !b->stopped)
            memcpy(b->data + (uint64_t)element * b->nbytes, slots[slot].piece.data, b->nbytes);
        b->pieces[b->n_pieces++] = slots[slot].piece;
    }
    slots[slot].batch = NULL;
    b->done++;
    b->out--;
    nvq_put(q, slot);
}

/* Finishes what belongs to `b` among the reaped; the rest keeps its order in done_slots. */
static inline void nvb_settle(struct nvq *q, struct nvb_slot *slots, const struct nvb_batch *b)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < q->n_done; i++) {
        const unsigned slot = q->done_slots[i];
        if (slots[slot].batch == b)
            nvb_finish(q, slots, slot);
        else
            q->done_slots[kept++] = (uint16_t)slot;
    }
    q->n_done = kept;
}

enum nvb_why {
    NVB_DONE,     /* every element is */
    NVB_SLICE,    /* enough for one go */
    NVB_QUIET,    /* nothing came for spin_ns: better to sleep */
    NVB_REGISTER, /* a doorbell has to be written as a register: sq in *ring & 1, cq in *ring & 2 */
    NVB_STRAYS,   /* completions of nothing: they are to be reported */
};

/* Submits, rings and reaps until done, `slice_ns` have passed, or nothing has come for as long as `budget` says. */
static inline enum nvb_why nvb_pump(struct nvq *q, struct nvb_slot *slots, struct nvb_batch *b, uint32_t keep, uint64_t slice_ns,
                                    struct nvw_budget *budget, unsigned *ring)
{
    const uint64_t begin = nvq_now_ns();
    const uint64_t bound = nvw_budget_ns(budget);
    uint64_t quiet_since = 0, looked = 0;
    /* Ring for a part of the depth at a time, so that the controller works on one part while we prepare the next. */
    const uint32_t portion = b->depth > 16 ? b->depth / 4 : b->depth > 3 ? 4 : 1;
    *ring = 0;
    for (unsigned turn = 1;; turn++) {
        if (nvb_fill(q, slots, b, keep) || q->n_unrung)
            if (q->n_unrung >= portion || b->next == b->n || b->out == q->n_unrung || turn % 4 == 0)
                *ring |= nvq_ring_sq(q) ? 1 : 0;
        const unsigned reaped = nvq_reap(q, 64);
        if (reaped) {
            if (quiet_since)
                nvw_budget_learn(budget, looked - quiet_since);
            quiet_since = 0;
            nvb_settle(q, slots, b);
            if (q->n_unacked >= q->entries / 4 || q->n_unacked >= 64)
                *ring |= nvq_ring_cq(q) ? 2 : 0;
        }
        if (q->strays.n)
            return NVB_STRAYS;
        if (b->done == b->n)
            return NVB_DONE;
        if (*ring)
            return NVB_REGISTER;
        if (reaped && turn % 16)
            continue;
        if (!reaped) {
            nvq_relax();
            if (turn % 16)
                continue;
        }
        const uint64_t now = nvq_now_ns();
        if (now - begin >= slice_ns)
            return NVB_SLICE;
        looked = now;
        if (reaped)
            continue;
        if (!quiet_since)
            quiet_since = now;
        if (now - quiet_since >= bound) {
            if (bound)
                nvw_budget_learn(budget, 4 * bound);
            return NVB_QUIET;
        }
    }
}

#endif
