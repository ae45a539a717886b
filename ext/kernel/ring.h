/* One io_uring: entries in, one system call for all of them, completions out. Threads: one at a
 * time. */
#ifndef NVME_ASYNC_KERNEL_RING_H
#define NVME_ASYNC_KERNEL_RING_H

#include "uring_abi.h"

#include <stdbool.h>

struct ring {
    int fd; /* -1: there is none */
    uint32_t flags, features;
    uint32_t entries, cq_entries;
    uint32_t sqe_shift, cqe_shift; /* bytes of an entry, as a power of two */
    uint32_t unsubmitted;          /* entries that the kernel has not consumed yet */
    uint32_t in_kernel;            /* entries taken whose completions have not been seen */
    void *sq_ring, *cq_ring, *sqes;
    size_t sq_bytes, cq_bytes, sqes_bytes;
    uint32_t *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail;
    uint32_t sq_mask, cq_mask;
    uint8_t *cqes;
    uint64_t enters, submitted, completed; /* counters */
};

/* 0 or a negative errno. `flags` beyond what an older kernel supports of task work are dropped. */
int ring_open(struct ring *ring, uint32_t entries, uint32_t cq_entries, uint32_t flags);
/* No entry may be in the kernel. */
void ring_close(struct ring *ring);
int ring_register(struct ring *ring, unsigned opcode, const void *argument, unsigned n);
/* A zeroed entry, which the next ring_submit() sends; NULL: the ring is full and the kernel accepts
 * nothing. */
struct uring_sqe *ring_entry(struct ring *ring);
/* Submits the entries. 0, or a negative errno if the kernel accepted none: they stay, and are
 * submitted with the next call. */
int ring_submit(struct ring *ring);
/* Lets the kernel post completions, where that needs a system call (task work, IOPOLL). */
void ring_progress(struct ring *ring);

/* The oldest completion, or NULL; ring_seen() once it was dealt with. */
static inline const struct uring_cqe *ring_peek(const struct ring *ring)
{
    const uint32_t head = *ring->cq_head;
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
        return NULL;
    return (const struct uring_cqe *)(ring->cqes + ((size_t)(head & ring->cq_mask) << ring->cqe_shift));
}

static inline void ring_seen(struct ring *ring)
{
    __atomic_store_n(ring->cq_head, *ring->cq_head + 1, __ATOMIC_RELEASE);
    ring->in_kernel--;
    ring->completed++;
}

#endif
