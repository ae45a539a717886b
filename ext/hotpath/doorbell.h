/*
 * Doorbells: rung as registers, through Doorbell Buffer Config, or left to the caller. queue.h has
 * the order of the stores.
 */
#ifndef NVME_ASYNC_HOTPATH_DOORBELL_H
#define NVME_ASYNC_HOTPATH_DOORBELL_H

#include "common/mmio.h"
#include "pair.h"

/* virtio's test, as in Base 2.0, 5.8: does going from `old` to `new` step over event_idx? */
static inline bool nvq_needs_event(uint16_t event_idx, uint16_t new_value, uint16_t old)
{
    return (uint16_t)(new_value - event_idx - 1) < (uint16_t)(new_value - old);
}

/* Completes nvq_ring_* for a caller that wrote the register itself. */
static inline void nvq_rang_sq(struct nvq *q)
{
    struct nvq_header *h = q->header;
    atomic_store_explicit(&h->sq_rung, atomic_load_explicit(&h->sq_ringing, memory_order_relaxed),
                          memory_order_release);
}

static inline void nvq_rang_cq(struct nvq *q)
{
    struct nvq_header *h = q->header;
    atomic_store_explicit(&h->cq_rung, atomic_load_explicit(&h->cq_ringing, memory_order_relaxed),
                          memory_order_release);
}

/* The same for a register that was written meanwhile, by another thread: the last position at or
 * before `ringing` that `value` stands for. */
static inline void nvq_rang_to(const struct nvq_header *h, const _Atomic uint64_t *ringing, _Atomic uint64_t *rung,
                               uint32_t value)
{
    const uint64_t latest = atomic_load_explicit(ringing, memory_order_acquire);
    const uint64_t behind = (latest + h->entries - value % h->entries) % h->entries;
    if (behind <= latest && latest - behind > atomic_load_explicit(rung, memory_order_relaxed))
        atomic_store_explicit(rung, latest - behind, memory_order_release);
}

static inline void nvq_rang_sq_to(struct nvq *q, uint32_t value)
{
    nvq_rang_to(q->header, &q->header->sq_ringing, &q->header->sq_rung, value);
}

static inline void nvq_rang_cq_to(struct nvq *q, uint32_t value)
{
    nvq_rang_to(q->header, &q->header->cq_ringing, &q->header->cq_rung, value);
}

/* Returns true if the caller must write the register itself, because the device maps no
 * doorbells. */
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
        q->kick(q->kick_fd);
    return false;
}

/* nvq_ring_sq() and nvq_ring_cq() if a doorbell is more than a store, or must not be rung. */
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

/* Between the completion doorbell and one more poll before sleeping: the controller stores an entry
 * and then reads the doorbell, we store the doorbell and then read the entry, and one of us sees
 * the other. */
static inline void nvq_before_last_poll(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}

#endif
