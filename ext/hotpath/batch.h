/*
 * Many commands of one kind, awaited as one: element i transfers `nbytes` at lbas[i] to or from
 * data + i * nbytes. Composed of the primitives of queue.h; runs without the GIL.
 *
 * Callers: the thread that owns the queue pair (queue.h). A batch, its arrays and its bounce pieces
 * belong to that thread too, from nvb_prepare() until `out` is 0. `slots` has an entry for each
 * tracker.
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
    struct nvq_sqe command; /* common to all */
    const uint64_t *lbas;
    uint16_t *status; /* of each element, 0 = success */
    uint8_t *data;    /* NULL: commands without data */
    uint64_t iova;    /* of data, if the device can access it; otherwise `pieces` are used */
    uint64_t offset;  /* of data in the pool, or NVQ_NO_OFFSET */
    uint64_t offset_step; /* from one element to the next; 0 for NVQ_NO_OFFSET */
    uint64_t sum;     /* what the trackers' sums have in common: nvb_prepare() */
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
    bool one_page; /* each element is one page, or a part of one, of the memory at iova: nvb_prepare() */
    bool stopped; /* nothing more is sent: the awaiter was cancelled */
};

/* Whose a slot is, beside the tracker. Process-local; batch NULL: not a batch's. */
struct nvb_slot {
    struct nvb_batch *batch;
    uint32_t element;
    uint32_t attempts; /* how often it was resent after a reset */
    struct nvb_piece piece;
};

/* "Command Aborted By Host", the status of elements that were sent again too often (Base 2.0,
 * figure 105). */
#define NVB_GIVEN_UP 0x371

/* Derives the fields that nvb_send() uses from the others. Called once, after those were set and
 * before nvb_fill(). */
static inline void nvb_prepare(struct nvb_batch *b)
{
    b->sum = nvq_sum_rest(&b->command, b->flags, b->nbytes);
    b->offset_step = b->offset == NVQ_NO_OFFSET ? 0 : b->nbytes;
    b->one_page = b->data && !b->bounced && b->nbytes <= NVQ_PAGE && !((b->iova | NVQ_PAGE) & (b->nbytes - 1));
}

/* The part of one element that its command, its tracker and its slot don't share. */
struct nvb_element {
    uint64_t iova, offset, sum;
    uint32_t index;
};

/* The values of element `index`, with its data where the batch's are. */
static inline struct nvb_element nvb_element(const struct nvb_batch *b, uint32_t index)
{
    return (struct nvb_element){
        .iova = b->iova + (uint64_t)index * b->nbytes,
        .offset = b->offset + index * b->offset_step,
        .sum = b->sum + nvq_sum_tag(index),
        .index = index,
    };
}

/* Advances *e to the next element: sums are linear in their words (sum.h). */
static inline void nvb_next(const struct nvb_batch *b, struct nvb_element *e)
{
    e->iova += b->nbytes;
    e->offset += b->offset_step;
    e->sum += nvq_sum_tag(1);
    e->index++;
}

/* Posts an element whose data are at e->iova in a free slot. The caller has taken the slot, and
 * counts b->out; no doorbell is rung. one_page: as b->one_page. */
static inline __attribute__((always_inline)) void nvb_send(struct nvq *q, struct nvq_posting *p, struct nvb_slot *slots,
                                                           struct nvb_batch *b, const struct nvb_element *e,
                                                           unsigned slot, const bool one_page)
{
    struct nvq_tracker *t = &q->trackers[slot];
    struct nvb_slot *own = &slots[slot];
    const uint64_t lba = b->lbas[e->index];
    own->batch = b;
    own->element = e->index;
    own->attempts = 0;
    t->sqe = b->command;
    ((nvq_word *)&t->sqe)[5] = lba; /* cdw10 and cdw11 */
    t->flags = b->flags;
    t->tag = e->index;
    t->data_nbytes = b->nbytes;
    t->data_offset = e->offset;
    if (one_page)
        t->sqe.prp1 = e->iova; /* prp2 is the batch's, 0 */
    else if (b->data) /* Cannot fail: the batch was checked against the queue's longest list. */
        (void)prp_build(&t->sqe.prp1, e->iova, b->nbytes, nvq_list(q, slot), nvq_list_iova(q, slot), q->list_bytes);
    nvq_post_next(q, p, slot, e->sum + nvq_sum_lba(lba), !one_page);
}

/* Copies an element's data into a bounce piece, or prepares the piece for a read. *own keeps the
 * piece until nvb_take(); *e gets its addresses. */
static inline void nvb_bounce(const struct nvb_batch *b, struct nvb_slot *own, struct nvb_element *e,
                              const struct nvb_piece *piece)
{
    own->piece = *piece;
    if (b->flags & NVQ_FROM_HOST)
        memcpy(piece->data, b->data + (uint64_t)e->index * b->nbytes, b->nbytes);
    else
        nvs_prepare(piece->data, b->nbytes);
    e->iova = piece->iova;
    e->offset = piece->offset;
}

/* Posts an element of any kind, with a bounce piece if the batch uses them, and counts b->out.
 * Returns its slot, or -1 if no id is free; then the piece stays the caller's. No doorbell is
 * rung. */
static inline int nvb_post(struct nvq *q, struct nvb_slot *slots, struct nvb_batch *b, uint32_t element,
                           const struct nvb_piece *piece)
{
    const int slot = nvq_take(q);
    if (slot < 0)
        return -1;
    struct nvb_element e = nvb_element(b, element);
    if (b->bounced)
        nvb_bounce(b, &slots[slot], &e, piece);
    struct nvq_posting p = nvq_posting_begin(q, 1);
    nvb_send(q, &p, slots, b, &e, (unsigned)slot, false);
    nvq_posting_end(q, &p);
    b->out++;
    return slot;
}

/*
 * After a reset: posts an element that was in flight again, from the same pages, unless its batch
 * has no waiter or it was resent `limit` times before; then it ends with NVB_GIVEN_UP. Returns
 * whether it was posted. old: a copy of its slot, as it was before the reset. rung: the controller
 * may have seen it since the restart before; else this one is not counted.
 */
static inline bool nvb_again(struct nvq *q, struct nvb_slot *slots, const struct nvb_slot *old, bool rung,
                             uint32_t limit)
{
    struct nvb_batch *b = old->batch;
    if (!b->stopped && (!rung || old->attempts < limit)) {
        const int slot = nvb_post(q, slots, b, old->element, &old->piece);
        if (slot >= 0) { /* always: it had one before */
            slots[slot].attempts = old->attempts + rung;
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

/* Posts `count` elements of any kind, for which there are free slots. Called by nvb_fill() only. */
static __attribute__((noinline, unused)) void nvb_fill_any(struct nvq *q, struct nvb_slot *slots, struct nvb_batch *b,
                                                           uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        (void)nvb_post(q, slots, b, b->next++, b->bounced ? &b->pieces[--b->n_pieces] : NULL);
}

/* Posts as many elements as depth and free ids allow, `most` at a time, leaving `keep` ids to
 * others. Returns how many. No doorbell is rung. */
static inline uint32_t nvb_fill_part(struct nvq *q, struct nvb_slot *slots, struct nvb_batch *b, uint32_t keep,
                                     uint32_t most)
{
    uint32_t count = b->n - b->next;
    if (b->stopped || b->out >= b->depth || q->n_free <= keep)
        return 0;
    if (count > b->depth - b->out)
        count = b->depth - b->out;
    if (count > q->n_free - keep)
        count = q->n_free - keep;
    if (count > most)
        count = most;
    if (!count)
        return 0;
    if (b->one_page && !q->latency) {
        struct nvb_element e = nvb_element(b, b->next);
        struct nvq_posting p = nvq_posting_begin(q, count);
        const uint16_t *free_slot = q->free_slots + q->n_free;
        b->next += count;
        b->out += count;
        q->n_free -= count;
        do {
            nvb_send(q, &p, slots, b, &e, *--free_slot, true);
            nvb_next(b, &e);
        } while (e.index != b->next);
        nvq_posting_end(q, &p);
    } else {
        nvb_fill_any(q, slots, b, count);
    }
    return count;
}

/* nvb_fill_part() without a limit. Returns how many. */
static inline uint32_t nvb_fill(struct nvq *q, struct nvb_slot *slots, struct nvb_batch *b, uint32_t keep)
{
    return nvb_fill_part(q, slots, b, keep, UINT32_MAX);
}

/* Delivers one element's completion, which nvq_reap() has recorded: status, data, bounce piece;
 * frees the tracker. The caller counts done, out and free slots. bounced: as b->bounced. */
static inline __attribute__((always_inline)) void nvb_take(struct nvq *q, struct nvb_slot *own, unsigned slot,
                                                           struct nvb_batch *b, const bool bounced)
{
    struct nvq_tracker *t = &q->trackers[slot];
    const uint32_t element = own->element;
    uint16_t status = t->status;
    if (bounced) {
        if (b->flags & NVQ_TO_HOST && !status) {
            status = nvs_finish(own->piece.data, b->nbytes);
            if (!status && !b->stopped)
                memcpy(b->data + (uint64_t)element * b->nbytes, own->piece.data, b->nbytes);
        }
        b->pieces[b->n_pieces++] = own->piece;
    }
    b->status[element] = status;
    if (status)
        b->failed++;
    own->batch = NULL;
    nvq_free(t);
}

/* nvb_take(), and the counts: for a slot of done_slots, which the caller removes there. */
static inline void nvb_finish(struct nvq *q, struct nvb_slot *slots, unsigned slot)
{
    struct nvb_batch *b = slots[slot].batch;
    nvb_take(q, &slots[slot], slot, b, b->bounced);
    b->done++;
    b->out--;
    q->free_slots[q->n_free++] = (uint16_t)slot;
}

/* nvb_settle() from the reaped one at `from` on, of any batch. */
static __attribute__((noinline, unused)) void nvb_settle_any(struct nvq *q, struct nvb_slot *slots,
                                                             const struct nvb_batch *b, uint32_t from)
{
    uint32_t kept = 0;
    for (uint32_t i = from; i < q->n_done; i++) {
        const unsigned slot = q->done_slots[i];
        if (slots[slot].batch == b)
            nvb_finish(q, slots, slot);
        else
            q->done_slots[kept++] = (uint16_t)slot;
    }
    q->n_done = kept;
}

/* Finishes the elements of `b` among the reaped; the rest keeps its order in done_slots. */
static inline void nvb_settle(struct nvq *q, struct nvb_slot *slots, struct nvb_batch *b)
{
    const uint16_t *const done = q->done_slots;
    uint16_t *const free_slots = q->free_slots + q->n_free;
    const uint32_t n_done = q->n_done;
    uint32_t n = 0;
    if (!b->bounced && n_done) {
        do {
            const unsigned slot = done[n];
            if (__builtin_expect(slots[slot].batch != b, 0))
                break;
            nvb_take(q, &slots[slot], slot, b, false);
            free_slots[n] = (uint16_t)slot;
        } while (++n != n_done);
        q->n_free += n;
        b->done += n;
        b->out -= n;
    }
    if (__builtin_expect(n == n_done, 1))
        q->n_done = 0;
    else
        nvb_settle_any(q, slots, b, n);
}

#define NVB_PARTS 4u /* turns in which a batch fills an idle controller's queue */

enum nvb_why {
    NVB_DONE,     /* every element is */
    NVB_SLICE,    /* enough for one go */
    NVB_QUIET,    /* nothing arrived for spin_ns: better to sleep */
    NVB_REGISTER, /* a doorbell must be written as a register: sq in *ring & 1, cq in *ring & 2 */
    NVB_STRAYS,   /* stray completions: they must be reported */
};

/*
 * Posts, rings and reaps until the batch is done, `slice_ns` have passed, or nothing has arrived
 * within `budget`. Returns the reason; with NVB_REGISTER, *ring has the registers to be written.
 * Other commands' completions stay in done_slots, for the caller to deliver.
 */
static inline enum nvb_why nvb_pump(struct nvq *q, struct nvb_slot *slots, struct nvb_batch *b, uint32_t keep,
                                    uint64_t slice_ns, struct nvw_budget *budget, unsigned *ring)
{
    const uint64_t begin = nvq_now_ns();
    const uint64_t bound = nvw_budget_ns(budget);
    uint64_t quiet_since = 0, polled_ns = 0;
    /* Ring for a part of the depth at a time, so that the controller works on one part while the
     * next is prepared. */
    const uint32_t portion = b->depth > 16 ? b->depth / 4 : b->depth > 3 ? 4 : 1;
    /* A controller that has nothing to do begins with the first of them, if it is waited for:
     * one that works off all that was rung before it completes any would keep the host waiting
     * for the whole depth. */
    const unsigned in_parts = bound && b->depth > 3 && q->n_armed == q->n_unrung ? NVB_PARTS : 0;
    *ring = 0;
    for (unsigned turn = 1;; turn++) {
        if (nvb_fill_part(q, slots, b, keep, turn <= in_parts ? portion : UINT32_MAX) || q->n_unrung)
            if (q->n_unrung >= portion || b->next == b->n || b->out == q->n_unrung || turn % 4 == 0)
                *ring |= nvq_ring_sq(q) ? 1 : 0;
        const unsigned reaped = nvq_reap(q, 64);
        if (reaped) {
            if (quiet_since)
                nvw_budget_learn(budget, polled_ns - quiet_since);
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
        polled_ns = now;
        if (reaped)
            continue;
        if (!quiet_since)
            quiet_since = now;
        if (now - quiet_since >= bound) {
            if (bound)
                nvw_budget_in_vain(budget, bound);
            return NVB_QUIET;
        }
    }
}

#endif
