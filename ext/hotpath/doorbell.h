/*
 * Doorbells: rung as registers, through Doorbell Buffer Config, or left to the caller. queue.h has
 * the order of the stores.
 *
 * Callers: the thread that owns the queue pair (queue.h), with or without the GIL. The queue pair
 * is open and not frozen (adopt.h).
 */
#ifndef NVME_ASYNC_HOTPATH_DOORBELL_H
#define NVME_ASYNC_HOTPATH_DOORBELL_H

#include "common/mmio.h"
#include "pair.h"

/* Whether going from `old` to `new_value` passes event_idx, as in Base 2.0, 5.8 (virtio has the
 * same test). Any thread. */
static inline bool nvq_needs_event(uint16_t event_idx, uint16_t new_value, uint16_t old)
{
    return (uint16_t)(new_value - event_idx - 1) < (uint16_t)(new_value - old);
}

/* Completes nvq_ring_sq() for a caller that has written the register itself, before any other
 * command is posted. */
static inline void nvq_rang_sq(struct nvq *q)
{
    struct nvq_header *h = q->header;
    atomic_store_explicit(&h->sq_rung, atomic_load_explicit(&h->sq_ringing, memory_order_relaxed),
                          memory_order_release);
}

/* The same for nvq_ring_cq(). */
static inline void nvq_rang_cq(struct nvq *q)
{
    struct nvq_header *h = q->header;
    atomic_store_explicit(&h->cq_rung, atomic_load_explicit(&h->cq_ringing, memory_order_relaxed),
                          memory_order_release);
}

/*
 * The same for a register that was written meanwhile, maybe by another thread: sets *rung to the
 * last position at or before *ringing that `value` stands for. Any thread, before anything else is
 * done to the queue pair.
 */
static inline void nvq_rang_to(const struct nvq_header *h, const _Atomic uint64_t *ringing, _Atomic uint64_t *rung,
                               uint32_t value)
{
    const uint64_t latest = atomic_load_explicit(ringing, memory_order_acquire);
    const uint64_t behind = (latest + h->entries - value % h->entries) % h->entries;
    if (behind <= latest && latest - behind > atomic_load_explicit(rung, memory_order_relaxed))
        atomic_store_explicit(rung, latest - behind, memory_order_release);
}

/* nvq_rang_to() for the submission doorbell. Any thread, likewise. */
static inline void nvq_rang_sq_to(struct nvq *q, uint32_t value)
{
    nvq_rang_to(q->header, &q->header->sq_ringing, &q->header->sq_rung, value);
}

/* nvq_rang_to() for the completion doorbell. Any thread, likewise. */
static inline void nvq_rang_cq_to(struct nvq *q, uint32_t value)
{
    nvq_rang_to(q->header, &q->header->cq_ringing, &q->header->cq_rung, value);
}

/*
 * Stores a doorbell value and wakes the device where needed. Returns true if the caller must write
 * the register itself, because the device maps no doorbells; then nvq_rang_*() follows. Counts in
 * *counter. The caller has stored `ringing`.
 */
static inline bool nvq_doorbell(struct nvq *q, volatile uint32_t *doorbell, volatile uint32_t *shadow,
                                volatile uint32_t *eventidx, uint32_t value, uint64_t *counter)
{
    if (shadow) {
        const uint32_t old = *shadow;
        /* The ring entries before the shadow doorbell, the shadow doorbell before the read of
         * EventIdx (5.8: otherwise both sides may sleep). */
        mmio_store32(shadow, value);
        atomic_thread_fence(memory_order_seq_cst);
        if (!nvq_needs_event((uint16_t)*eventidx, (uint16_t)value, (uint16_t)old)) {
            q->header->n_shadow_only++;
            return false;
        }
    }
    ++*counter;
    if (!doorbell) {
        if (!q->transport)
            return true;
        if (counter == &q->header->n_sq_doorbells)
            q->transport->submit(q);
        return false;
    }
    mmio_store32(doorbell, value);
    if (q->kick_fd >= 0)
        q->kick(q->kick_fd, q->kick_ring);
    return false;
}

/* nvq_ring_sq() if a doorbell is more than a store, or must not be rung. submitted:
 * header.submitted. */
static __attribute__((noinline, unused)) bool nvq_ring_sq_any(struct nvq *q, uint64_t submitted)
{
    struct nvq_header *h = q->header;
    if (nvq_stopped(q))
        return false;
    atomic_store_explicit(&h->sq_ringing, submitted, memory_order_release);
    const bool by_register =
        nvq_doorbell(q, q->sq_doorbell, q->sq_shadow, q->sq_eventidx, q->sq_tail, &h->n_sq_doorbells);
    NVP_PROBE2(ring_sq, q->qid, q->n_unrung);
    q->n_unrung = 0;
    if (!by_register)
        atomic_store_explicit(&h->sq_rung, submitted, memory_order_release);
    return by_register;
}

/* nvq_ring_cq() if a doorbell is more than a store, or must not be rung. reaped: header.reaped. */
static __attribute__((noinline, unused)) bool nvq_ring_cq_any(struct nvq *q, uint64_t reaped)
{
    struct nvq_header *h = q->header;
    if (nvq_stopped(q))
        return false;
    NVP_PROBE2(ring_cq, q->qid, q->n_unacked);
    atomic_store_explicit(&h->cq_ringing, reaped, memory_order_release);
    const bool by_register =
        nvq_doorbell(q, q->cq_doorbell, q->cq_shadow, q->cq_eventidx, q->cq_head, &h->n_cq_doorbells);
    q->n_unacked = 0;
    if (!by_register)
        atomic_store_explicit(&h->cq_rung, reaped, memory_order_release);
    return by_register;
}

/*
 * Rings the submission doorbell for all posted commands; does nothing if there are none or the
 * queue is stopped. Returns true if the caller must write the register with sq_tail, and call
 * nvq_rang_sq() after that.
 */
static inline bool nvq_ring_sq(struct nvq *q)
{
    struct nvq_header *h = q->header;
    const uint64_t submitted = atomic_load_explicit(&h->submitted, memory_order_relaxed);
    if (!q->n_unrung)
        return false;
    if (__builtin_expect(*q->plain_word != q->life, 0))
        return nvq_ring_sq_any(q, submitted);
    atomic_store_explicit(&h->sq_ringing, submitted, memory_order_release);
    h->n_sq_doorbells++;
    mmio_store32(q->sq_doorbell, q->sq_tail);
    NVP_PROBE2(ring_sq, q->qid, q->n_unrung);
    q->n_unrung = 0;
    atomic_store_explicit(&h->sq_rung, submitted, memory_order_release);
    return false;
}

/*
 * Rings the completion doorbell for all reaped completions; does nothing if there are none or the
 * queue is stopped. Returns true if the caller must write the register with cq_head, and call
 * nvq_rang_cq() after that.
 */
static inline bool nvq_ring_cq(struct nvq *q)
{
    struct nvq_header *h = q->header;
    const uint64_t reaped = atomic_load_explicit(&h->reaped, memory_order_relaxed);
    if (!q->n_unacked)
        return false;
    if (__builtin_expect(*q->plain_word != q->life, 0))
        return nvq_ring_cq_any(q, reaped);
    NVP_PROBE2(ring_cq, q->qid, q->n_unacked);
    atomic_store_explicit(&h->cq_ringing, reaped, memory_order_release);
    h->n_cq_doorbells++;
    mmio_store32(q->cq_doorbell, q->cq_head);
    q->n_unacked = 0;
    atomic_store_explicit(&h->cq_rung, reaped, memory_order_release);
    return false;
}

/*
 * To be called between the completion doorbell and one more poll before sleeping: the controller
 * stores an entry and then reads the doorbell, the host stores the doorbell and then reads the
 * entry, so at least one of them sees the other.
 */
static inline void nvq_before_last_poll(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}

#endif
