/*
 * How a successor finds a queue pair in the pool and continues with it. The predecessor may have
 * been killed between any two stores of queue.h; its memory shows:
 *
 *   tracker ARMED, position <  submitted   the controller has it, or gets it with the doorbell
 *   tracker ARMED, position >= submitted   never reached the ring: never sent
 *   tracker DONE                           its result is recorded but was not delivered
 *   CQE at `reaped` and its tracker DONE   recorded, only `reaped` wasn't raised yet
 *   submitted > sq_ringing                 entries that were certainly not rung
 *   sq_ringing != sq_rung                  the doorbell may or may not have been written
 *   cq_ringing != cq_rung                  the same for the other doorbell
 *
 * A doorbell must not be written twice with the same value (Base 2.0, figure 146: Invalid Doorbell
 * Write Value), so an uncertain one is settled by one additional harmless command, whose value is
 * new in both cases. A slot is reserved for that: header.n_reserved.
 *
 * nvq_inspect() changes nothing; nvq_adopt() may only follow a successful nvq_inspect().
 *
 * Callers: the successor's thread that is to own the queue pair, while no other process uses it
 * (the predecessor has confirmed or is dead); nvq_freeze() the thread of the owner, or with the GIL
 * another one (adopt.pxi says when); nvq_thaw() the thread of the owner, in the
 * predecessor. With or without the GIL.
 */
#ifndef NVME_ASYNC_HOTPATH_ADOPT_H
#define NVME_ASYNC_HOTPATH_ADOPT_H

#include "queue.h"
#include "verify.h"

#define NVQ_OLDEST (1u << 20) /* ticks of header.epoch that a command's age may have */

struct nvq_found {
    uint32_t in_flight; /* with the controller, rung or not */
    uint32_t done;      /* undelivered results */
    uint32_t unsent;
    bool skip_cqe;  /* the CQE at `reaped` was recorded */
    bool unrung;    /* entries that were certainly not rung */
    bool uncertain; /* the last SQ doorbell may have been written or not, and nothing was posted since */
};

/* Whether nvq_open() may trust this header. Returns 0, or -1 and the reason. nbytes: of the
 * allocation that holds it. Changes nothing. */
static inline int nvq_check_header(const struct nvq_header *h, uint64_t nbytes, uint16_t qid,
                                   char error[NVQ_ERROR_BYTES])
{
    if (nbytes < NVQ_PAGE || h->magic != NVQ_MAGIC) {
        snprintf(error, NVQ_ERROR_BYTES, "its memory holds no queue pair");
        return -1;
    }
    if (h->version != NVQ_LAYOUT_VERSION) {
        snprintf(error, NVQ_ERROR_BYTES, "its layout has version %u, this build knows %u", h->version,
                 NVQ_LAYOUT_VERSION);
        return -1;
    }
    if (h->qid != qid) {
        snprintf(error, NVQ_ERROR_BYTES, "its memory holds queue %u", h->qid);
        return -1;
    }
    if (h->entries < 2 || h->entries > NVQ_MAX_ENTRIES || h->n_trackers < 1 || h->n_trackers >= h->entries ||
        h->n_reserved >= h->n_trackers || h->interrupts > 1 || (h->sums && h->sums != NVQ_SUMS)) {
        snprintf(error, NVQ_ERROR_BYTES,
                 "%u entries, %u trackers, %u of them reserved (interrupts %#x, sums %#x) are invalid", h->entries,
                 h->n_trackers, h->n_reserved, h->interrupts, h->sums);
        return -1;
    }
    struct nvq_header expected;
    memset(&expected, 0, sizeof expected);
    const uint64_t needed = nvq_layout_of(&expected, h->entries, h->n_trackers, h->list_bytes);
    if (expected.slot_bits != h->slot_bits || expected.sq_offset != h->sq_offset ||
        expected.cq_offset != h->cq_offset || expected.trackers_offset != h->trackers_offset ||
        expected.lists_offset != h->lists_offset || !prp_list_bytes_valid(h->list_bytes) || needed > nbytes) {
        snprintf(error, NVQ_ERROR_BYTES, "its parts don't lie where %u entries lead to", h->entries);
        return -1;
    }
    return 0;
}

/* The position up to which the controller has certainly fetched entries from the submission ring,
 * by its latest completion. A doorbell that another thread writes is recorded later than that. */
static inline uint64_t nvq_taken_up_to(const struct nvq *q, uint64_t reaped, uint64_t sq_ringing)
{
    const uint32_t entries = q->header->entries;
    if (!reaped)
        return 0;
    const uint64_t behind = (sq_ringing + entries - q->cq[(reaped - 1) % entries].sqhd % entries) % entries;
    return behind <= sq_ringing ? sq_ringing - behind : 0;
}

/* The number of commands in flight from `position` on; -1 if not all of them are. */
static inline int64_t nvq_due_from(const struct nvq *q, uint64_t submitted, uint64_t position)
{
    uint64_t due = 0;
    for (uint32_t i = 0; i < q->header->n_trackers; i++) {
        const struct nvq_tracker *t = &q->trackers[i];
        due += atomic_load_explicit(&t->state, memory_order_acquire) == NVQ_ARMED && t->position >= position &&
               t->position < submitted;
    }
    return due == submitted - position ? (int64_t)due : -1;
}

/* Reads and verifies what the predecessor left, for a queue pair that nvq_open() has opened.
 * Changes nothing. Returns 0 and *found, or -1 and the reason. */
static inline int nvq_inspect(const struct nvq *q, const struct nvq_measure *m, struct nvq_found *found,
                              char error[NVQ_ERROR_BYTES])
{
    const struct nvq_header *h = q->header;
    const uint64_t submitted = atomic_load_explicit(&h->submitted, memory_order_acquire);
    const uint64_t sq_ringing = atomic_load_explicit(&h->sq_ringing, memory_order_relaxed);
    const uint64_t sq_rung = atomic_load_explicit(&h->sq_rung, memory_order_relaxed);
    const uint64_t reaped = atomic_load_explicit(&h->reaped, memory_order_relaxed);
    const uint64_t cq_ringing = atomic_load_explicit(&h->cq_ringing, memory_order_relaxed);
    const uint64_t cq_rung = atomic_load_explicit(&h->cq_rung, memory_order_relaxed);
    memset(found, 0, sizeof *found);
    /* The controller may have seen the value that was about to be rung, and gone on by as much as
     * the ring holds from there. */
    if (sq_rung > sq_ringing || sq_ringing > submitted || submitted - sq_ringing >= h->entries ||
        cq_rung > cq_ringing || cq_ringing > reaped || reaped > submitted || submitted - reaped >= h->entries ||
        reaped - cq_ringing >= h->entries) {
        snprintf(error, NVQ_ERROR_BYTES,
                 "its positions are inconsistent: submitted %llu ringing %llu rung %llu, reaped %llu %llu %llu",
                 (unsigned long long)submitted, (unsigned long long)sq_ringing, (unsigned long long)sq_rung,
                 (unsigned long long)reaped, (unsigned long long)cq_ringing, (unsigned long long)cq_rung);
        return -1;
    }
    const volatile struct nvq_cqe *next = &q->cq[reaped % h->entries];
    const bool there = (next->status & 1) == !((reaped / h->entries) & 1);
    uint64_t due = 0; /* of the commands in flight, those whose doorbell may be due */
    for (uint32_t i = 0; i < h->n_trackers; i++) {
        const struct nvq_tracker *t = &q->trackers[i];
        const uint32_t state = atomic_load_explicit(&t->state, memory_order_acquire);
        if (nvq_verify_tracker(q, i, submitted, m, error))
            return -1;
        if (state == NVQ_DONE) {
            found->done++;
            found->skip_cqe = found->skip_cqe || (there && next->cid == t->cid);
        } else if (state == NVQ_ARMED && t->position < submitted) {
            found->in_flight++;
            due += t->position >= sq_rung;
        } else if (state == NVQ_ARMED) {
            found->unsent++;
        }
    }
    if (found->in_flight != submitted - reaped - found->skip_cqe) {
        snprintf(error, NVQ_ERROR_BYTES, "%u commands are in flight, but the rings have %llu", found->in_flight,
                 (unsigned long long)(submitted - reaped - found->skip_cqe));
        return -1;
    }
    /* Entries that no tracker knows would be executed a second time; not those that the controller
     * has taken. */
    if (due != submitted - sq_rung && nvq_due_from(q, submitted, nvq_taken_up_to(q, reaped, sq_ringing)) < 0) {
        snprintf(error, NVQ_ERROR_BYTES, "%llu commands wait for their doorbell, but the ring has %llu",
                 (unsigned long long)due, (unsigned long long)(submitted - sq_rung));
        return -1;
    }
    found->unrung = submitted > sq_ringing;
    found->uncertain = submitted == sq_ringing && sq_ringing != sq_rung;
    return 0;
}

/* Marks the tracker of a command that is with the controller as adopted. Called by nvq_adopt()
 * only. The age of a command can't be verified: an impossible one begins anew. */
static inline void nvq_take_on(struct nvq_tracker *t, uint64_t epoch, bool sums)
{
    if (sums && nvq_sum_sent(t, t->flags | NVQ_ORPHAN) == t->sum)
        t->flags |= NVQ_ORPHAN; /* the predecessor was killed in the middle of nvq_orphan() */
    t->sum = nvq_sum_sent(t, t->flags); /* and not that of a result which was not recorded to the end */
    if (t->epoch > epoch || epoch - t->epoch > NVQ_OLDEST)
        t->epoch = epoch;
    t->flags |= NVQ_ADOPTED;
}

/*
 * Takes positions, free slots and command ids over, after nvq_inspect() has returned 0 with this
 * `found`. What was never sent is freed; what is with the controller is marked as adopted. Cannot
 * fail. No doorbell is rung: nvq_ring_sq_surely() or the caller settles an uncertain one.
 */
static inline void nvq_adopt(struct nvq *q, const struct nvq_measure *m, const struct nvq_found *found)
{
    struct nvq_header *h = q->header;
    const uint64_t submitted = atomic_load_explicit(&h->submitted, memory_order_relaxed);
    const uint64_t cq_ringing = atomic_load_explicit(&h->cq_ringing, memory_order_relaxed);
    uint64_t reaped = atomic_load_explicit(&h->reaped, memory_order_relaxed);
    if (found->skip_cqe)
        atomic_store_explicit(&h->reaped, ++reaped, memory_order_release);
    q->sq_tail = (uint32_t)(submitted % h->entries);
    q->cq_head = (uint32_t)(reaped % h->entries);
    nvq_set_phase(q, !((reaped / h->entries) & 1));
    q->n_armed = found->in_flight;
    NVP_PROBE3(take_over, q->qid, found->in_flight, found->done);
    q->n_unrung = (uint32_t)(submitted - atomic_load_explicit(&h->sq_ringing, memory_order_relaxed));
    /* From `ringing` and not from `rung`: a doorbell that may have been written is written again
     * only with a new value, after the next completion. That one comes: see nvq_resume_doorbells()
     * for a ring without room for it. */
    q->n_unacked = (uint32_t)(reaped - cq_ringing);
    q->n_free = q->n_done = 0;
    memset(&q->strays, 0, sizeof q->strays);
    for (uint32_t i = h->n_trackers; i-- > 0;) {
        struct nvq_tracker *t = &q->trackers[i];
        const uint32_t state = atomic_load_explicit(&t->state, memory_order_relaxed);
        /* Its copy of the command keeps the id of a tracker that is free. */
        q->next_cid[i] = nvq_proper_cid(q, (uint16_t)((t->sqe.cid & ~(q->cid_step - 1u)) + q->cid_step + i));
        if (state == NVQ_ARMED && t->position < submitted)
            nvq_take_on(t, h->epoch, m->sums);
        else if (state == NVQ_DONE)
            t->sum = m->sums ? t->sum : nvq_sum_sent(t, t->flags) ^ nvq_sum_done(t->status, nvq_result(t));
        else
            nvq_free(t); /* never sent, or half filled */
        if (atomic_load_explicit(&t->state, memory_order_relaxed) == NVQ_FREE && i < nvq_usable(q))
            q->free_slots[q->n_free++] = (uint16_t)i;
    }
    h->sums = NVQ_SUMS;
}

/* A free slot for the command that settles an uncertain doorbell, or -1: even the reserved one is
 * in use. nvq_retire() returns it. */
static inline int nvq_take_reserved(struct nvq *q)
{
    for (uint32_t i = nvq_usable(q); i < q->n_trackers; i++)
        if (atomic_load_explicit(&q->trackers[i].state, memory_order_relaxed) == NVQ_FREE)
            return (int)i;
    return nvq_take(q);
}

/* Frees a slot that may be a reserved one, once its command has ended. */
static inline void nvq_retire(struct nvq *q, unsigned slot)
{
    if (slot < nvq_usable(q))
        nvq_put(q, slot);
    else
        nvq_free(&q->trackers[slot]);
}

/* As nvq_ring_sq(), but the register is written regardless of EventIdx: it is unknown whether the
 * predecessor read it. Returns true if the caller must write the register itself. */
static inline bool nvq_ring_sq_surely(struct nvq *q)
{
    struct nvq_header *h = q->header;
    const uint64_t submitted = atomic_load_explicit(&h->submitted, memory_order_relaxed);
    atomic_store_explicit(&h->sq_ringing, submitted, memory_order_release);
    if (q->sq_shadow) {
        mmio_store32(q->sq_shadow, q->sq_tail);
        atomic_thread_fence(memory_order_seq_cst);
    }
    const bool by_register = nvq_doorbell(q, q->sq_doorbell, NULL, NULL, q->sq_tail, &h->n_sq_doorbells);
    q->n_unrung = 0;
    if (!by_register)
        atomic_store_explicit(&h->sq_rung, submitted, memory_order_release);
    return by_register;
}

/*
 * Whether the completion doorbell can't wait for the next completion after nvq_adopt(): the ring
 * has no room for one, or the controller reads the shadow and may sleep until it is rung. Then it
 * is rung with a value that the predecessor may have rung already; a strict controller at worst
 * reports an error.
 */
static inline bool nvq_cq_must_ring(const struct nvq *q)
{
    const struct nvq_header *h = q->header;
    const uint64_t reaped = atomic_load_explicit(&h->reaped, memory_order_relaxed);
    const uint64_t rung = atomic_load_explicit(&h->cq_rung, memory_order_relaxed);
    return reaped != rung && (q->cq_shadow || reaped - rung >= h->entries - 1);
}

/* As nvq_ring_cq(), but the register is written regardless of EventIdx. Returns true if the caller
 * must write the register itself. */
static inline bool nvq_ring_cq_surely(struct nvq *q)
{
    struct nvq_header *h = q->header;
    const uint64_t reaped = atomic_load_explicit(&h->reaped, memory_order_relaxed);
    atomic_store_explicit(&h->cq_ringing, reaped, memory_order_release);
    if (q->cq_shadow) {
        mmio_store32(q->cq_shadow, q->cq_head);
        atomic_thread_fence(memory_order_seq_cst);
    }
    const bool by_register = nvq_doorbell(q, q->cq_doorbell, NULL, NULL, q->cq_head, &h->n_cq_doorbells);
    q->n_unacked = 0;
    if (!by_register)
        atomic_store_explicit(&h->cq_rung, reaped, memory_order_release);
    return by_register;
}

/*
 * A queue pair that is being handed over, while this process waits for the successor's
 * confirmation. Whatever this process still does with it (late flushes, cancellations, a poll of
 * the completion ring) must not write to the pool: `q` uses a private copy of the header and of the
 * trackers in use, and a completion ring that stays empty. An idle queue pair has none in use, and
 * its free trackers are never written while new commands are held: they need no copy, so that idle
 * queue pairs cost next to nothing.
 */
struct nvq_frozen {
    uint8_t *copy; /* NULL: not frozen */
    struct nvq_header *header;
    struct nvq_tracker *trackers;
    volatile struct nvq_cqe *cq;
};

/*
 * Replaces the shared structures by private copies, see above. Everything posted was rung and
 * everything reaped acknowledged. Returns 0, or -1 out of memory with nothing changed. nvq_thaw()
 * or nvq_close() follows; the latter after free(frozen->copy).
 */
static inline int nvq_freeze(struct nvq *q, struct nvq_frozen *frozen)
{
    NVP_PROBE2(hand_over, q->qid, q->n_armed);
    const size_t header = (sizeof(struct nvq_header) + 63) & ~(size_t)63;
    const bool busy = q->n_armed || q->n_done;
    const size_t trackers = busy ? sizeof(struct nvq_tracker) * (size_t)q->n_trackers : 0;
    uint8_t *copy = aligned_alloc(64, header + 64 + trackers);
    if (!copy)
        return -1;
    memcpy(copy, q->header, sizeof(struct nvq_header));
    /* The entry at cq_head, which stays unchanged: its phase bit is the old one. */
    volatile struct nvq_cqe *next = (volatile struct nvq_cqe *)(copy + header);
    next->status = !q->cq_phase;
    *frozen = (struct nvq_frozen){copy, q->header, q->trackers, q->cq};
    q->header = (struct nvq_header *)copy;
    q->cq = (volatile struct nvq_cqe *)((uintptr_t)next - sizeof(struct nvq_cqe) * q->cq_head);
    if (busy) {
        struct nvq_tracker *mine = (struct nvq_tracker *)(copy + header + 64);
        for (uint32_t i = 0; i < q->n_trackers; i++) {
            const uint32_t state = atomic_load_explicit(&q->trackers[i].state, memory_order_relaxed);
            if (state != NVQ_FREE)
                memcpy(&mine[i], &q->trackers[i], sizeof *mine);
            else
                atomic_init(&mine[i].state, NVQ_FREE);
        }
        q->trackers = mine;
    }
    return 0;
}

/* Reverts nvq_freeze(), if no successor took the queue pair: back to the pool, which has not
 * changed meanwhile except for completions of the controller. Does nothing if *frozen is empty. */
static inline void nvq_thaw(struct nvq *q, struct nvq_frozen *frozen)
{
    if (!frozen->copy)
        return;
    q->header = frozen->header;
    q->trackers = frozen->trackers;
    q->cq = frozen->cq;
    free(frozen->copy);
    memset(frozen, 0, sizeof *frozen);
}

#endif
