/*
 * Completions: found by their phase, recorded in their trackers, strays set aside. queue.h has the
 * order of the stores.
 *
 * Callers: the thread that owns the queue pair (queue.h), with or without the GIL.
 */
#ifndef NVME_ASYNC_HOTPATH_REAP_H
#define NVME_ASYNC_HOTPATH_REAP_H

#include "common/mmio.h"
#include "pair.h"

/*
 * Copies the completion at `position` (completions counted since the queue was created) into *copy.
 * Returns false if the controller has not posted it, as the phase tag shows. The queue itself does
 * not change.
 */
static inline bool nvq_completion_at(const struct nvq *q, uint64_t position, struct nvq_cqe *copy)
{
    volatile struct nvq_cqe *cqe = &q->cq[position % q->entries];
    const uint16_t status = cqe->status;
    if ((status & 1) == ((position / q->entries) & 1))
        return false;
    mmio_after_load();
    *copy = *cqe;
    copy->status = status;
    return true;
}

/* True if there is a completion in the ring that was not reaped yet. */
static inline bool nvq_is_here(const struct nvq *q)
{
    return (*(volatile uint16_t *)&q->cq[q->cq_head].status & 1) == q->cq_phase;
}

/* True if there is a completion that was not reaped yet. Polls the transport if there is one. */
static inline bool nvq_pending(const struct nvq *q)
{
    return nvq_is_here(q) || (__builtin_expect(q->transport != NULL, 0) && q->transport->poll((struct nvq *)q));
}

/* True if waiters share the polls of a transport (transport.h). */
static inline bool nvq_shares_polls(const struct nvq *q)
{
    return __builtin_expect(q->transport != NULL, 0) && q->transport->shared_polls;
}

/* nvq_pending() by one of several waiters. due: it is this one's turn, if they share polls. */
static inline bool nvq_pending_for(const struct nvq *q, bool due)
{
    return nvq_is_here(q) || (__builtin_expect(q->transport != NULL, 0) && (due || !q->transport->shared_polls) &&
                              q->transport->poll((struct nvq *)q));
}

/* Has the controller completed every command that it was rung for? Its last completion is in the
 * ring, or none is outstanding. Not for a transport, which fills the ring when it is polled. */
static inline bool nvq_is_idle(const struct nvq *q)
{
    const uint32_t out = q->n_armed - q->n_unrung;
    const uint32_t at = q->cq_head + out - 1; /* of the last one's entry */
    if (!out)
        return true;
    return at < q->entries ? (q->cq[at].status & 1) == q->cq_phase
                           : (q->cq[at - q->entries].status & 1) == (q->cq_phase ^ 1);
}

/* The state of a tracker that no other thread changes: a plain load, which the compiler may combine
 * with its use. */
static inline uint32_t nvq_state(const struct nvq_tracker *t)
{
    return *(const uint32_t __attribute__((may_alias)) *)&t->state;
}

/* Notes that the last n of done_slots were reaped at once: more than ever, or latencies are
 * recorded. Called by nvq_reap_run() only. The clock is read only once, because that is not
 * free. */
static __attribute__((noinline, cold)) void nvq_note(struct nvq *q, unsigned n)
{
    if (n > q->header->max_batch)
        q->header->max_batch = n;
    q->notable = q->latency ? 0 : (uint32_t)q->header->max_batch + 1;
    if (!q->latency)
        return;
    const uint64_t now = nvq_now_ns();
    for (unsigned i = 1; i <= n; i++) {
        const uint64_t sent_ns = q->trackers[q->done_slots[q->n_done - i]].sent_ns;
        if (sent_ns)
            histogram_add_many(q->latency, now - sent_ns, 1);
    }
}

/* The index after `head` in the completion ring; inverts the expected phase when the ring wraps. */
static inline uint32_t nvq_after(struct nvq *q, uint32_t head)
{
    if (++head != q->entries)
        return head;
    nvq_set_phase(q, q->cq_phase ^ 1);
    return 0;
}

/*
 * nvq_reap_ring() up to the first stray, which stays in the ring (*stray is set). Returns the
 * number of completions; *limit becomes what is left of it. done_slots has room: it has an entry
 * for each tracker.
 */
static inline unsigned nvq_reap_run(struct nvq *q, unsigned *limit, bool *stray)
{
    struct nvq_header *h = q->header;
    const uint64_t before = atomic_load_explicit(&h->reaped, memory_order_relaxed), end = before + *limit;
    uint16_t *const done = q->done_slots + q->n_done;
    uint64_t reaped = before;
    uint32_t head = q->cq_head;
    while (reaped != end) {
        volatile struct nvq_cqe *cqe = &q->cq[head];
        /* sqhd, sqid, cid and status: the phase, and the fields that it validates, in one load. 0
         * if as expected. */
        const uint64_t entry = *(volatile nvq_word *)&cqe->sqhd ^ q->cq_expected;
        if (entry & 1ull << 48)
            break;
        mmio_after_load();
        const uint16_t cid = (uint16_t)(entry >> 32);
        const unsigned slot = cid & q->cid_mask;
        struct nvq_tracker *t = &q->trackers[slot];
        if (__builtin_expect(
                slot >= q->n_trackers || t->cid != cid || nvq_state(t) != NVQ_ARMED || (uint32_t)entry >> 16, 0)) {
            *stray = true;
            break;
        }
        const uint64_t result = *(volatile nvq_word *)&cqe->dw0; /* and dw1 */
        const uint32_t field = (uint32_t)(entry >> 49);
        t->status = (uint16_t)field;
        *(nvq_word *)&t->dw0 = result;
        if (field | result)
            t->sum ^= nvq_sum_done(field, result); /* of nothing it is 0 */
        NVP_PROBE2(complete, q->qid, (const void *)t);
        atomic_store_explicit(&t->state, NVQ_DONE, memory_order_release);
        done[reaped - before] = (uint16_t)slot;
        head = nvq_after(q, head);
        atomic_store_explicit(&h->reaped, ++reaped, memory_order_release);
    }
    const unsigned n = (unsigned)(reaped - before);
    *limit -= n;
    if (n) {
        q->cq_head = head;
        q->n_done += n;
        q->n_armed -= n;
        q->n_unacked += n;
        NVP_PROBE2(reap, q->qid, n);
        h->n_reaps++;
        if (n >= q->notable)
            nvq_note(q, n);
    }
    return n;
}

/* Takes the stray entry at cq_head off the ring and records it in q->strays. Releases nothing. */
static inline void nvq_take_stray(struct nvq *q)
{
    struct nvq_header *h = q->header;
    volatile struct nvq_cqe *cqe = &q->cq[q->cq_head];
    const uint16_t cid = cqe->cid;
    const unsigned slot = cid & q->cid_mask;
    q->strays.n++;
    q->strays.n_sqid +=
        slot < q->n_trackers && q->trackers[slot].cid == cid && nvq_state(&q->trackers[slot]) == NVQ_ARMED;
    q->strays.cid = cid;
    q->strays.sqid = cqe->sqid;
    q->n_unacked++;
    q->cq_head = nvq_after(q, q->cq_head);
    atomic_store_explicit(&h->reaped, atomic_load_explicit(&h->reaped, memory_order_relaxed) + 1, memory_order_release);
}

/* The rest of nvq_reap_ring() from a stray at cq_head on. Returns the number of completions. */
static __attribute__((noinline, cold)) unsigned nvq_reap_strays(struct nvq *q, unsigned limit)
{
    unsigned n = 0;
    bool stray;
    do {
        nvq_take_stray(q);
        limit--;
        stray = false;
        n += nvq_reap_run(q, &limit, &stray);
    } while (stray);
    return n;
}

/*
 * Takes up to `limit` entries off the ring: records completions in their trackers and appends their
 * slots to done_slots. Returns how many; strays are counted in q->strays instead. The caller
 * delivers done_slots and rings nvq_ring_cq().
 */
static inline unsigned nvq_reap_ring(struct nvq *q, unsigned limit)
{
    bool stray = false;
    const unsigned n = nvq_reap_run(q, &limit, &stray);
    return __builtin_expect(stray, 0) ? n + nvq_reap_strays(q, limit) : n;
}

/* nvq_reap() for a queue with a transport, which has been found empty. Returns as
 * nvq_reap_ring(). */
static __attribute__((noinline, unused)) unsigned nvq_reap_polled(struct nvq *q, unsigned limit)
{
    return q->transport->poll(q) ? nvq_reap_ring(q, limit) : 0;
}

/* nvq_reap_ring(), after polling the transport if there is one and the ring is empty. Returns the
 * number of completions. */
static inline unsigned nvq_reap(struct nvq *q, unsigned limit)
{
    const unsigned n = nvq_reap_ring(q, limit);
    return !n && q->transport ? nvq_reap_polled(q, limit) : n;
}

#endif
