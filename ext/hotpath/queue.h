/*
 * A queue pair in five primitives, from which everything else is built:
 *
 *   nvq_take       a free command id                        nvq_put gives it back
 *   nvq_post       a command into its tracker and the ring
 *   nvq_ring_sq    the submission doorbell, for all posted commands
 *   nvq_reap       completions into their trackers
 *   nvq_ring_cq    the completion doorbell, for all reaped completions
 *
 * Threads: a queue pair belongs to one thread at a time; nothing here locks. `struct nvq` is this
 * process's view, `struct nvq_header` and the trackers are shared with a successor (see layout.h),
 * only the rings and doorbells with the controller.
 *
 * A process may be killed between any two stores, and its successor reads the pool. So each step
 * publishes with one release store, last:
 *   post:   tracker fields, tracker.sum → tracker.state = ARMED → ring entry → header.submitted
 *   ring:   header.sq_ringing → doorbell → header.sq_rung
 *   reap:   tracker.status, tracker.sum → tracker.state = DONE → header.reaped
 *   ring:   header.cq_ringing → doorbell → header.cq_rung
 *   put:    tracker.state = FREE, cid = flags = 0, in one store
 * An ARMED tracker whose position is not below header.submitted was never sent. A CQE at
 * header.reaped whose tracker is DONE was recorded already.
 */
#ifndef NVME_ASYNC_HOTPATH_QUEUE_H
#define NVME_ASYNC_HOTPATH_QUEUE_H

#include "doorbell.h"
#include "pair.h"
#include "reap.h"

/* Takes a free slot and returns it, or -1. It is posted, or returned by nvq_put(). */
static inline int nvq_take(struct nvq *q)
{
    return q->n_free ? q->free_slots[--q->n_free] : -1;
}

/* Returns a slot whose command has ended and was delivered, or was never posted. */
static inline void nvq_put(struct nvq *q, unsigned slot)
{
    nvq_free(&q->trackers[slot]);
    q->free_slots[q->n_free++] = (uint16_t)slot;
}

/* The memory of a slot's PRP list, of list_bytes. Written only while the slot is taken and not
 * posted. */
static inline uint64_t *nvq_list(struct nvq *q, unsigned slot)
{
    return (uint64_t *)(q->lists + (size_t)slot * q->list_bytes);
}

/* Its address for the device. */
static inline uint64_t nvq_list_iova(const struct nvq *q, unsigned slot)
{
    return q->lists_iova + (uint64_t)slot * q->list_bytes;
}

/*
 * The state that changes with each posted command, in registers from nvq_posting_begin() to
 * nvq_posting_end(). Nothing else may touch the queue in between; a process that is killed there
 * loses only its private state.
 */
struct nvq_posting {
    uint64_t position; /* header.submitted */
    uint32_t tail;
    uint32_t count;
};

/* Begins to post `count` commands: see struct nvq_posting. */
static inline struct nvq_posting nvq_posting_begin(struct nvq *q, uint32_t count)
{
    q->n_armed += count;
    return (struct nvq_posting){.position = atomic_load_explicit(&q->header->submitted, memory_order_relaxed),
                                .tail = q->sq_tail,
                                .count = count};
}

/* Ends it, after exactly `count` calls of nvq_post_next(). The doorbell is due. */
static inline void nvq_posting_end(struct nvq *q, const struct nvq_posting *p)
{
    q->sq_tail = p->tail;
    q->n_unrung += p->count;
}

/*
 * Puts the command in trackers[slot].sqe into the ring. The SQ has room whenever a slot was free:
 * there are fewer trackers than entries, and a tracker is only free once its command was fetched
 * and completed. The controller sees nothing until nvq_ring_sq.
 *
 * sum: as nvq_sum_sent() adds it up, before it is folded. may_record: latencies may be recorded.
 */
static inline void nvq_post_next(struct nvq *q, struct nvq_posting *p, unsigned slot, uint64_t sum,
                                 const bool may_record)
{
    struct nvq_tracker *t = &q->trackers[slot];
    const uint32_t tail = p->tail;
    const uint16_t cid = q->next_cid[slot];
    q->next_cid[slot] = nvq_proper_cid(q, (uint16_t)(cid + q->cid_step));
    if (__builtin_expect(++p->tail == q->entries, 0))
        p->tail = 0;
    t->position = p->position;
    atomic_signal_fence(
        memory_order_release); /* a free tracker with an id has this position: see nvq_verify_tracker() */
    t->cid = t->sqe.cid = cid;
    t->epoch = q->header->epoch;
    t->sent_ns = may_record && q->latency ? nvq_now_ns() : 0;
    atomic_signal_fence(
        memory_order_release); /* a sum that fits has its position beside it: see nvq_verify_tracker() */
    t->sum = nvq_sum_fold(sum) ^ cid;
    atomic_store_explicit(&t->state, NVQ_ARMED, memory_order_release);
    memcpy(&q->sq[tail], &t->sqe, sizeof t->sqe);
    atomic_store_explicit(&q->header->submitted, ++p->position, memory_order_release);
    NVP_PROBE2(post, q->qid, (const void *)t); /* a tracker begins with the 64 bytes of its command */
}

/* Posts the command in trackers[slot].sqe alone. The slot is taken and its tracker filled; no
 * doorbell is rung. */
static inline void nvq_post(struct nvq *q, unsigned slot)
{
    const struct nvq_tracker *t = &q->trackers[slot];
    struct nvq_posting p = nvq_posting_begin(q, 1);
    nvq_post_next(q, &p, slot,
                  nvq_sum_rest(&t->sqe, t->flags, t->data_nbytes) + nvq_sum_lba(((const nvq_word *)&t->sqe)[5]) +
                      nvq_sum_tag(t->tag),
                  true);
    nvq_posting_end(q, &p);
}

/* A hint to the processor for a spin loop. Any thread. */
static inline void nvq_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
