/* A command that waits in the ring and must not be executed any more. */
#ifndef NVME_ASYNC_HOTPATH_DEFUSE_H
#define NVME_ASYNC_HOTPATH_DEFUSE_H

#include "queue.h"

/* Turns a submission queue entry into a Flush of the same command id and namespace. */
static inline void nvd_as_flush(struct nvq_sqe *sqe)
{
    sqe->opcode = 0x00; /* Flush; command id, nsid and (unused) PRPs stay */
    sqe->flags = 0;     /* no half of a fused operation */
    sqe->cdw2 = sqe->cdw3 = 0;
    sqe->cdw10 = sqe->cdw11 = sqe->cdw12 = sqe->cdw13 = sqe->cdw14 = sqe->cdw15 = 0;
}

/*
 * Turns an armed command whose doorbell was not rung since the queue was restarted into a Flush: no
 * entry of the ring may have been fetched. The tracker is changed like the ring, with a matching
 * sum.
 */
static inline void nvd_defuse(struct nvq *q, unsigned slot)
{
    struct nvq_tracker *t = &q->trackers[slot];
    struct nvq_sqe *sqe = &q->sq[t->position % q->entries];
    if (sqe->cid != t->cid)
        return;
    nvd_as_flush(sqe);
    nvd_as_flush(&t->sqe);
    t->sum = nvq_sum_sent(t, t->flags);
}

#endif
