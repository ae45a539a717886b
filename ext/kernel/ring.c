#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int setup(uint32_t entries, struct uring_params *params)
{
    const long fd = syscall(SYS_URING_SETUP, entries, params);
    return fd < 0 ? -errno : (int)fd;
}

static void *map(struct ring *ring, size_t nbytes, uint64_t offset)
{
    return mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, (off_t)offset);
}

static int map_all(struct ring *ring, const struct uring_params *params)
{
    ring->sq_bytes = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    ring->cq_bytes = params->cq_off.cqes + ((size_t)params->cq_entries << ring->cqe_shift);
    ring->sqes_bytes = (size_t)params->sq_entries << ring->sqe_shift;
    if (params->features & URING_FEAT_SINGLE_MMAP && ring->cq_bytes > ring->sq_bytes)
        ring->sq_bytes = ring->cq_bytes;
    ring->sq_ring = map(ring, ring->sq_bytes, URING_OFF_SQ_RING);
    if (ring->sq_ring == MAP_FAILED) {
        ring->sq_ring = NULL;
        return -errno;
    }
    ring->cq_ring = ring->sq_ring;
    if (!(params->features & URING_FEAT_SINGLE_MMAP)) {
        ring->cq_ring = map(ring, ring->cq_bytes, URING_OFF_CQ_RING);
        if (ring->cq_ring == MAP_FAILED) {
            ring->cq_ring = NULL;
            return -errno;
        }
    }
    ring->sqes = map(ring, ring->sqes_bytes, URING_OFF_SQES);
    if (ring->sqes == MAP_FAILED) {
        ring->sqes = NULL;
        return -errno;
    }
    uint8_t *sq = ring->sq_ring, *cq = ring->cq_ring;
    ring->sq_head = (uint32_t *)(sq + params->sq_off.head);
    ring->sq_tail = (uint32_t *)(sq + params->sq_off.tail);
    ring->sq_flags = (uint32_t *)(sq + params->sq_off.flags);
    ring->sq_mask = *(uint32_t *)(sq + params->sq_off.ring_mask);
    ring->cq_head = (uint32_t *)(cq + params->cq_off.head);
    ring->cq_tail = (uint32_t *)(cq + params->cq_off.tail);
    ring->cq_mask = *(uint32_t *)(cq + params->cq_off.ring_mask);
    ring->cqes = cq + params->cq_off.cqes;
    uint32_t *array = (uint32_t *)(sq + params->sq_off.array);
    for (uint32_t i = 0; i < params->sq_entries; i++)
        array[i] = i; /* entry i of the ring is entry i of the memory, always */
    return 0;
}

int ring_open(struct ring *ring, uint32_t entries, uint32_t cq_entries, uint32_t flags)
{
    const uint32_t wishes = URING_SETUP_COOP_TASKRUN | URING_SETUP_TASKRUN_FLAG;
    struct uring_params params = {.flags = flags | wishes | URING_SETUP_CLAMP | URING_SETUP_CQSIZE,
                                  .cq_entries = cq_entries};
    memset(ring, 0, sizeof(*ring));
    ring->fd = setup(entries, &params);
    if (ring->fd == -EINVAL) {
        params =
            (struct uring_params){.flags = flags | URING_SETUP_CLAMP | URING_SETUP_CQSIZE, .cq_entries = cq_entries};
        ring->fd = setup(entries, &params);
    }
    if (ring->fd < 0) {
        const int rc = ring->fd;
        ring->fd = -1;
        return rc;
    }
    ring->flags = params.flags;
    ring->features = params.features;
    ring->entries = params.sq_entries;
    ring->cq_entries = params.cq_entries;
    ring->sqe_shift = flags & URING_SETUP_SQE128 ? 7 : 6;
    ring->cqe_shift = flags & URING_SETUP_CQE32 ? 5 : 4;
    /* Before 5.5 a full completion ring loses completions. */
    const int rc = params.features & URING_FEAT_NODROP ? map_all(ring, &params) : -ENOSYS;
    if (rc)
        ring_close(ring);
    return rc;
}

void ring_close(struct ring *ring)
{
    if (ring->sqes)
        munmap(ring->sqes, ring->sqes_bytes);
    if (ring->cq_ring && ring->cq_ring != ring->sq_ring)
        munmap(ring->cq_ring, ring->cq_bytes);
    if (ring->sq_ring)
        munmap(ring->sq_ring, ring->sq_bytes);
    if (ring->fd >= 0)
        close(ring->fd);
    memset(ring, 0, sizeof(*ring));
    ring->fd = -1;
}

int ring_register(struct ring *ring, unsigned opcode, const void *argument, unsigned n)
{
    const long rc = syscall(SYS_URING_REGISTER, ring->fd, opcode, argument, n);
    return rc < 0 ? -errno : (int)rc;
}

struct uring_sqe *ring_entry(struct ring *ring)
{
    const uint32_t tail = *ring->sq_tail;
    if (tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) == ring->entries) {
        ring_submit(ring);
        if (tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) == ring->entries)
            return NULL;
    }
    struct uring_sqe *sqe =
        (struct uring_sqe *)((uint8_t *)ring->sqes + ((size_t)(tail & ring->sq_mask) << ring->sqe_shift));
    memset(sqe, 0, (size_t)1 << ring->sqe_shift);
    /* The kernel reads the entry during ring_submit(), so it may be filled in after this. */
    __atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
    ring->unsubmitted++;
    return sqe;
}

static int enter(struct ring *ring, uint32_t n, uint32_t flags)
{
    ring->enters++;
    const long taken = syscall(SYS_URING_ENTER, ring->fd, n, 0, flags, NULL, 0);
    return taken < 0 ? -errno : (int)taken;
}

int ring_submit(struct ring *ring)
{
    while (ring->unsubmitted) {
        const int taken = enter(ring, ring->unsubmitted, 0);
        if (taken == -EINTR)
            continue;
        if (taken <= 0)
            return taken < 0 ? taken : -EAGAIN;
        ring->unsubmitted -= (uint32_t)taken;
        ring->in_kernel += (uint32_t)taken;
        ring->submitted += (uint32_t)taken;
    }
    return 0;
}

void ring_progress(struct ring *ring)
{
    if (ring->unsubmitted)
        ring_submit(ring);
    if (!ring->in_kernel)
        return;
    const uint32_t flags = __atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED);
    if (ring->flags & URING_SETUP_IOPOLL || flags & (URING_SQ_TASKRUN | URING_SQ_CQ_OVERFLOW))
        enter(ring, 0, URING_ENTER_GETEVENTS);
}
