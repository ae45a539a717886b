/*
 * Is what a predecessor left in a queue pair's memory whole? Each field of a tracker is compared
 * with what it must equal: a damaged one would lead the successor to pages that aren't the
 * command's. Changes nothing.
 */
#ifndef NVME_ASYNC_HOTPATH_VERIFY_H
#define NVME_ASYNC_HOTPATH_VERIFY_H

#include <stdio.h>

#include "queue.h"
#include "sgl.h"

#define NVQ_ERROR_BYTES 160

#define NVQ_FLAGS_KNOWN \
    (NVQ_TO_HOST | NVQ_FROM_HOST | NVQ_BOUNCE | NVQ_ORPHAN | NVQ_ADOPTED | NVQ_INTERNAL | NVQ_DRIVER)

/* What the trackers of a queue pair are measured by. */
struct nvq_measure {
    uint64_t pool_iova, pool_nbytes;
    uint64_t max_transfer;
    bool
        sums; /* trackers have sums, and the last who wrote them knew of sums (a downgrade leaves header.sums as it is) */
    uint64_t *scratch; /* room for one PRP list: list_bytes */
};

/* Whether the tracker's command transfers data. */
static inline bool nvq_has_data(const struct nvq_tracker *t)
{
    return t->flags & (NVQ_TO_HOST | NVQ_FROM_HOST);
}

/* nvq_prps_fit() for a command with an SGL. */
static inline bool nvq_tracker_sgl_fits(const struct nvq *q, uint32_t slot, const struct nvq_measure *m)
{
    const struct nvq_tracker *t = &q->trackers[slot];
    const uint64_t *list = (const uint64_t *)(q->lists + (size_t)slot * q->list_bytes);
    const uint64_t iova = t->data_offset == NVQ_NO_OFFSET ? UINT64_MAX : m->pool_iova + t->data_offset;
    return !(t->flags & NVQ_BOUNCE) &&
           nvq_sgl_fits(&t->sqe, iova, t->data_nbytes, list, nvq_list_iova(q, slot), q->list_bytes);
}

/* PRPs and list are what this build would make of the command's place. */
static inline bool nvq_prps_fit(const struct nvq *q, uint32_t slot, const struct nvq_measure *m)
{
    const struct nvq_tracker *t = &q->trackers[slot];
    const uint64_t *list = (const uint64_t *)(q->lists + (size_t)slot * q->list_bytes);
    const uint64_t iova = t->data_offset == NVQ_NO_OFFSET ? t->sqe.prp1 : m->pool_iova + t->data_offset;
    const bool has_list = prp_pages(iova, t->data_nbytes) > 2;
    uint64_t prp[2];
    if (has_list)
        memcpy(m->scratch, list, q->list_bytes); /* entries beyond the end mean nothing and may hold anything */
    if (prp_build(prp, iova, t->data_nbytes, m->scratch, nvq_list_iova(q, slot), q->list_bytes))
        return false;
    return prp[0] == t->sqe.prp1 && prp[1] == t->sqe.prp2 && (!has_list || !memcmp(m->scratch, list, q->list_bytes));
}

/* The sum of a live tracker; where it was about to become another, either. */
static inline bool nvq_sum_fits(const struct nvq_tracker *t, uint32_t state)
{
    const uint16_t done = nvq_sum_done(t->status, nvq_result(t));
    const uint16_t sent = state == NVQ_DONE ? t->sum ^ done : t->sum;
    for (int orphan = 0; orphan < 2; orphan++) { /* nvq_orphan() */
        const uint16_t sum = nvq_sum_sent(t, t->flags | (orphan ? NVQ_ORPHAN : 0));
        if (sum == sent || (state == NVQ_ARMED && sum == (t->sum ^ done)))
            return true;
    }
    return false;
}

/* One tracker, against the rings as they are after `submitted` commands. 0, or -1 and the
 * reason. */
static inline int nvq_verify_tracker(const struct nvq *q, uint32_t slot, uint64_t submitted,
                                     const struct nvq_measure *m, char error[NVQ_ERROR_BYTES])
{
    const struct nvq_tracker *t = &q->trackers[slot];
    const uint32_t state = atomic_load_explicit(&t->state, memory_order_acquire);
    const char *what = NULL;
    if (state == NVQ_FREE) {
        /* Cleared but for the copy of the command; or half filled, without an id; or with one, for
         * the position that is next. */
        if (!m->sums || !t->cid || t->cid != t->sqe.cid || t->position >= submitted || !nvq_sum_fits(t, NVQ_DONE))
            return 0;
        what = "has a result but no state";
    } else if (state > NVQ_DONE || (t->cid & (q->cid_step - 1u)) != slot || t->cid != t->sqe.cid ||
               (m->sums && !t->cid)) {
        snprintf(error, NVQ_ERROR_BYTES, "tracker %u has state %u and the command ids %#x and %#x", slot, state, t->cid,
                 t->sqe.cid);
        return -1;
    } else if (t->flags & ~NVQ_FLAGS_KNOWN ||
               (t->flags & NVQ_BOUNCE && (!nvq_has_data(t) || t->data_offset == NVQ_NO_OFFSET)) ||
               (t->flags & NVQ_TO_HOST && t->flags & NVQ_FROM_HOST)) {
        what = "has flags that no command has";
    } else if (t->position > submitted || (t->position == submitted && state == NVQ_DONE)) {
        what = "is at a position that the ring has not reached";
    } else if (m->sums && !nvq_sum_fits(t, state)) {
        what = "differs from its checksum";
    } else if (!nvq_has_data(t)) {
        if (t->data_offset != NVQ_NO_OFFSET)
            what = "names data, but its command transfers none";
    } else if (t->data_nbytes == 0 || t->data_nbytes > m->max_transfer) {
        what = "transfers more or less than a command may";
    } else if (t->data_offset != NVQ_NO_OFFSET &&
               (t->data_offset > m->pool_nbytes || t->data_nbytes > m->pool_nbytes - t->data_offset)) {
        what = "names data beyond the end of the pool";
    } else if (t->sqe.flags & NVQ_PSDT ? !nvq_tracker_sgl_fits(q, slot, m) : !nvq_prps_fit(q, slot, m)) {
        what = "has PRPs, or an SGL, that do not point to its data";
    }
    if (!what && state != NVQ_FREE && t->position < submitted) {
        /* The ring entry stands until the ring has come round; only the latest at its index can be
         * compared. */
        const uint64_t last = submitted - 1;
        const bool stands = last - t->position < q->entries;
        const struct nvq_sqe *entry = &q->sq[t->position % q->entries];
        if (stands ? memcmp(entry, &t->sqe, sizeof t->sqe) != 0 : entry->cid == t->cid)
            what = "differs from its entry in the submission ring";
    }
    if (!what)
        return 0;
    snprintf(error, NVQ_ERROR_BYTES, "tracker %u, command %#x: it %s", slot, t->cid, what);
    return -1;
}

#endif
