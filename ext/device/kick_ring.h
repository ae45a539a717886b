/*
 * Signalling an eventfd by a ring of io_uring: each no-op that is submitted completes, and the
 * kernel signals the eventfd that is registered with the ring. That never blocks, regardless of the
 * eventfd's counter and of its owner.
 *
 * Unlike asynchronous I/O (kick.h), a ring doesn't delay the end of a killed process: the kernel
 * waits for an RCU grace period in exit_aio(), tens of milliseconds in which no successor knows of
 * the death, but releases a ring in the background.
 *
 * The entries stay as the kernel makes them, all zero, which is a no-op. So threads share a ring
 * without a lock: each adds 1 to the tail, and has the kernel take one entry.
 */
#ifndef NVME_ASYNC_DEVICE_KICK_RING_H
#define NVME_ASYNC_DEVICE_KICK_RING_H

#include "kernel/uring_abi.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KICK_RING_ENTRIES 128u /* more than there are threads at a time between tail and completion */

struct kick_ring {
    int fd;      /* of the ring; meaningless if map is NULL */
    int eventfd; /* the one that is registered */
    void *map;   /* NULL: there is no ring */
    size_t nbytes;
    uint32_t *sq_tail, *cq_head, *cq_tail;
};

static inline void kick_ring_close(struct kick_ring *ring)
{
    if (ring->map) {
        munmap(ring->map, ring->nbytes);
        close(ring->fd);
        ring->map = NULL;
    }
}

/* False: this system has no io_uring, forbids it, or has no descriptor left. */
static inline bool kick_ring_open(struct kick_ring *ring, int eventfd)
{
    struct uring_params params = {0};
    const long fd = syscall(SYS_URING_SETUP, KICK_RING_ENTRIES, &params);
    uint8_t *map = MAP_FAILED;

    if (fd < 0)
        return false;
    ring->nbytes = params.cq_off.cqes + params.cq_entries * sizeof(struct uring_cqe);
    if (params.sq_off.array + params.sq_entries * sizeof(uint32_t) > ring->nbytes)
        ring->nbytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    if (params.features & URING_FEAT_SINGLE_MMAP &&
        syscall(SYS_URING_REGISTER, (int)fd, URING_REGISTER_EVENTFD, &eventfd, 1) == 0)
        map = (uint8_t *)mmap(NULL, ring->nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, URING_OFF_SQ_RING);
    if (map == MAP_FAILED) {
        close((int)fd);
        return false;
    }
    ring->fd = (int)fd;
    ring->eventfd = eventfd;
    ring->map = map;
    ring->sq_tail = (uint32_t *)(void *)(map + params.sq_off.tail);
    ring->cq_head = (uint32_t *)(void *)(map + params.cq_off.head);
    ring->cq_tail = (uint32_t *)(void *)(map + params.cq_off.tail);
    return true;
}

/* Adds 1 to the eventfd. From any thread. False if the kernel takes no entry: not signalled. */
static inline bool kick_ring_signal(const struct kick_ring *ring)
{
    uint32_t head, tail;
    long taken;

    __atomic_fetch_add(ring->sq_tail, 1, __ATOMIC_RELEASE);
    do
        taken = syscall(SYS_URING_ENTER, ring->fd, 1, 0, 0, NULL, 0);
    while (taken < 0 && errno == EINTR);
    /* The completions carry nothing. The head only goes forward, also if threads race. */
    tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
    head = __atomic_load_n(ring->cq_head, __ATOMIC_RELAXED);
    while ((int32_t)(tail - head) > 0 &&
           !__atomic_compare_exchange_n(ring->cq_head, &head, tail, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    return taken == 1;
}

#endif
