/*
 * A queue pair as this process sees it: struct nvq; how it is laid out in memory, opened, reset and
 * closed.
 *
 * Callers: the thread that owns the queue pair (queue.h), with or without the GIL. Nothing here
 * locks or blocks. Functions that another state or thread may call say so.
 */
#ifndef NVME_ASYNC_HOTPATH_PAIR_H
#define NVME_ASYNC_HOTPATH_PAIR_H

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/histogram.h"
#include "common/probes.h"
#include "layout.h"
#include "prp.h"
#include "sum.h"
#include "transport.h"

#define NVQ_MAX_ENTRIES 4096u

/*
 * Stray completions: entries of the completion ring that belong to no command in flight of this
 * queue pair. They are taken off the ring, counted, and release nothing: a page belongs to its
 * command until an entry proves that this command has ended.
 */
struct nvq_strays {
    uint32_t n;        /* since they were reported */
    uint32_t n_sqid;   /* of those, with the id of an outstanding command and of another submission queue */
    uint16_t cid, sqid; /* of the last one */
};

struct kick_ring; /* device/kick_ring.h */

struct nvq {
    /* Used for each command. */
    struct nvq_sqe *sq;
    volatile struct nvq_cqe *cq;
    struct nvq_tracker *trackers;
    struct nvq_header *header;
    uint16_t *free_slots; /* stack */
    uint16_t *done_slots; /* reaped and not yet delivered, oldest first */
    uint32_t n_free;
    uint32_t n_done;
    uint32_t entries;
    uint32_t sq_tail;  /* index of the next free SQ entry */
    uint32_t cq_head;  /* index of the next CQE */
    uint16_t cq_phase; /* of a new CQE: nvq_set_phase() */
    uint16_t slot_bits;
    uint32_t n_armed;   /* commands in flight, including orphans */
    uint32_t n_unrung;  /* of those, not yet rung */
    uint32_t n_unacked; /* CQEs taken, CQ doorbell not yet rung */
    uint16_t qid;
    uint16_t cid_step; /* from one command of a slot to its next */
    uint32_t cid_mask; /* the part of an id that is its slot */
    uint8_t *lists;
    uint64_t lists_iova;
    uint32_t list_bytes;
    uint32_t n_trackers;
    uint16_t *next_cid; /* of each slot */
    uint64_t cq_expected;   /* phase and sqid of a new CQE, at their places in its last 8 bytes */
    uint32_t notable;       /* that many completions in one reap, or more, are reported to nvq_note() */

    /* Doorbells. NULL: the device maps none, nvq_ring_* return true and the caller writes the
     * register. */
    volatile uint32_t *sq_doorbell;
    volatile uint32_t *cq_doorbell;
    int kick_fd; /* an eventfd that wakes a sleeping peer, -1 = none */
    /* Signals it (device/kick.h). A pointer, because the state of kick.h belongs to one extension
     * module, and others ring doorbells too. */
    void (*kick)(int fd, const struct kick_ring *ring);
    const struct kick_ring *kick_ring; /* where the eventfd is registered, or NULL */
    /* No doorbell is rung: the controller is being reset and doesn't know this queue. Set by
     * nvq_silent(). */
    bool silent;
    uint32_t life; /* of a lent queue pair: it has ended once its lender has stored another number in lent_word */
    const volatile uint32_t *stop_word, *lent_word;
    const volatile uint32_t *plain_word; /* stop_word if ringing is one store to mapped memory: nvq_choose_ringing() */
    /* Doorbell Buffer Config (Base 2.0, 5.8): NULL = not in use. */
    volatile uint32_t *sq_shadow;
    volatile uint32_t *cq_shadow;
    volatile uint32_t *sq_eventidx;
    volatile uint32_t *cq_eventidx;

    const struct nvq_transport *transport; /* NULL: the rings are shared with the device */
    void *link; /* the transport's own */

    struct histogram *latency; /* from nvq_post to nvq_reap, in nanoseconds; NULL = not recorded */
    struct nvq_strays strays;
};

static const volatile uint32_t nvq_own = 1; /* the stop word of queue pairs that are not lent */
static const volatile uint32_t nvq_silence = 0; /* of silent ones: no epoch has this number */

/* True if doorbells must not be rung: the queue is silent, or its lender has ended the lease. Any
 * thread may ask; the answer may be outdated at once. */
static inline bool nvq_stopped(const struct nvq *q)
{
    return __builtin_expect(*q->stop_word != q->life, 0);
}

/* Selects the short path of nvq_ring_sq() and nvq_ring_cq(). Must be called after each change of a
 * doorbell field; until then they check each of them. */
static inline void nvq_choose_ringing(struct nvq *q)
{
    const bool plain = q->sq_doorbell && q->cq_doorbell && !q->sq_shadow && q->kick_fd < 0;
    q->plain_word = plain ? q->stop_word : &nvq_silence;
}

/* silent: no doorbell is rung from now on, because the controller doesn't know this queue; else
 * rings again unless the lease has ended. Returns nothing; posted commands stay in the ring. */
static inline void nvq_silent(struct nvq *q, bool silent)
{
    q->silent = silent;
    q->stop_word = silent ? &nvq_silence : q->lent_word;
    nvq_choose_ringing(q);
}

/* CLOCK_MONOTONIC in nanoseconds. Any thread. */
static inline uint64_t nvq_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Fills in the layout of `entries` entries, n_trackers trackers and lists of list_bytes; returns
 * the total bytes. Other fields of the header stay. Any thread. */
static inline uint64_t nvq_layout_of(struct nvq_header *h, uint32_t entries, uint32_t n_trackers, uint32_t list_bytes)
{
    const uint64_t mask = NVQ_PAGE - 1;
    uint64_t at = NVQ_PAGE;
    h->entries = entries;
    h->n_trackers = n_trackers;
    h->slot_bits = 1;
    while ((1u << h->slot_bits) < n_trackers)
        h->slot_bits++;
    h->list_bytes = list_bytes;
    h->sq_offset = at;
    at = (at + 64ull * entries + mask) & ~mask;
    h->cq_offset = at;
    at = (at + 16ull * entries + mask) & ~mask;
    h->trackers_offset = at;
    at = (at + sizeof(struct nvq_tracker) * (uint64_t)n_trackers + mask) & ~mask;
    h->lists_offset = at;
    at = (at + (uint64_t)h->list_bytes * n_trackers + mask) & ~mask;
    return at;
}

/* nvq_layout_of() for commands of up to list_entries pages. Returns the total bytes. Any thread. */
static inline uint64_t nvq_layout(struct nvq_header *h, uint32_t entries, uint32_t n_trackers, uint32_t list_entries)
{
    return nvq_layout_of(h, entries, n_trackers, prp_list_bytes(list_entries ? list_entries : 1));
}

/* The id `cid`, or the next one of the same slot if no command may have it: FFFFh (Base 2.0, figure
 * 87), and 0, which is a free tracker's (sum.h). */
static inline uint16_t nvq_proper_cid(const struct nvq *q, uint16_t cid)
{
    return __builtin_expect((uint16_t)(cid - 1) >= 0xfffe, 0) ? (uint16_t)(cid + q->cid_step) : cid;
}

/*
 * Initializes `q` for the queue pair laid out at `memory`, whose header is filled in and trusted
 * (nvq_check_header() if it is a predecessor's). Rings and trackers are not touched: nvq_reset() or
 * nvq_adopt() follows. Returns 0, or -1 out of memory with nothing allocated. nvq_close() frees.
 */
static inline int nvq_open(struct nvq *q, uint8_t *memory, uint64_t iova)
{
    struct nvq_header *h = (struct nvq_header *)memory;
    memset(q, 0, sizeof *q);
    q->header = h;
    q->sq = (struct nvq_sqe *)(memory + h->sq_offset);
    q->cq = (volatile struct nvq_cqe *)(memory + h->cq_offset);
    q->trackers = (struct nvq_tracker *)(memory + h->trackers_offset);
    q->lists = memory + h->lists_offset;
    q->lists_iova = iova + h->lists_offset;
    q->list_bytes = h->list_bytes;
    q->entries = h->entries;
    q->n_trackers = h->n_trackers;
    q->slot_bits = (uint16_t)h->slot_bits;
    q->cid_step = (uint16_t)(1u << h->slot_bits);
    q->cid_mask = q->cid_step - 1u;
    q->qid = h->qid;
    q->kick_fd = -1;
    q->stop_word = q->lent_word = &nvq_own;
    q->plain_word = &nvq_silence;
    q->life = nvq_own;
    q->free_slots = calloc(h->n_trackers, sizeof *q->free_slots);
    q->done_slots = calloc(h->n_trackers, sizeof *q->done_slots);
    q->next_cid = calloc(h->n_trackers, sizeof *q->next_cid);
    if (!q->free_slots || !q->done_slots || !q->next_cid) {
        free(q->free_slots);
        free(q->done_slots);
        free(q->next_cid);
        return -1;
    }
    for (uint32_t i = 0; i < h->n_trackers; i++)
        q->next_cid[i] = nvq_proper_cid(q, (uint16_t)i);
    return 0;
}

/*
 * The rings are at `sq` and `cq` from now on, with their content: in the queue pair's own memory,
 * or in memory of the controller, which takes only aligned accesses. The controller must not know
 * the queue: it posts no completion meanwhile, and fetches no command.
 */
static inline void nvq_move_rings(struct nvq *q, struct nvq_sqe *sq, volatile struct nvq_cqe *cq)
{
    const volatile uint64_t *from = (const volatile uint64_t *)q->sq;
    volatile uint64_t *to = (volatile uint64_t *)sq;
    for (size_t i = 0; from != to && i < 8ull * q->entries; i++)
        to[i] = from[i];
    from = (const volatile uint64_t *)q->cq;
    to = (volatile uint64_t *)cq;
    for (size_t i = 0; from != to && i < 2ull * q->entries; i++)
        to[i] = from[i];
    q->sq = sq;
    q->cq = cq;
}

/*
 * In a forked child, from its only thread: the queue pair continues in `memory`, which is zeroed
 * and of nvq_layout() bytes, silent and empty, permanently. The rings are a private mapping there,
 * which shows later changes by the parent and its controller until it is written: completions of
 * commands that this process has never sent. Cannot fail.
 */
static inline void nvq_disown(struct nvq *q, uint8_t *memory)
{
    struct nvq_header *h = (struct nvq_header *)memory;
    (void)nvq_layout_of(h, q->entries, q->n_trackers, q->list_bytes);
    h->qid = q->qid;
    q->header = h;
    q->sq = (struct nvq_sqe *)(memory + h->sq_offset);
    q->cq = (volatile struct nvq_cqe *)(memory + h->cq_offset);
    q->trackers = (struct nvq_tracker *)(memory + h->trackers_offset);
    q->lists = memory + h->lists_offset;
    q->sq_tail = q->cq_head = 0;
    q->cq_phase = 1;
    q->n_armed = q->n_unrung = q->n_unacked = q->n_done = 0;
    q->sq_doorbell = q->cq_doorbell = q->sq_shadow = q->cq_shadow = q->sq_eventidx = q->cq_eventidx = NULL;
    q->kick_fd = -1;
    nvq_silent(q, true);
    if (q->transport)
        q->transport->disown(q);
}

/* Frees what nvq_open() and nvq_set_latency() allocated, and releases the transport. No command may
 * be in flight whose memory is to be reused. `q` may be opened again. */
static inline void nvq_close(struct nvq *q)
{
    if (q->transport)
        q->transport->unbind(q);
    free(q->free_slots);
    free(q->done_slots);
    free(q->next_cid);
    free(q->latency);
    memset(q, 0, sizeof *q);
    q->kick_fd = -1;
}

/* Sets the phase tag that marks a new completion: at a reset, after an adoption, and each time that
 * the ring wraps (Base 2.0, 3.3.3.2). */
static inline void nvq_set_phase(struct nvq *q, uint16_t phase)
{
    q->cq_phase = phase;
    q->cq_expected = (uint64_t)phase << 48 | (uint64_t)q->qid << 16;
}

/* Latencies are recorded in *latency from now on; NULL: no longer. The queue pair owns and frees
 * it. */
static inline void nvq_set_latency(struct nvq *q, struct histogram *latency)
{
    free(q->latency);
    q->latency = latency;
    q->notable = 0;
}

/* The number of slots for commands of the driver's users: all but the reserved ones. */
static inline uint32_t nvq_usable(const struct nvq *q)
{
    return q->n_trackers - q->header->n_reserved;
}

/*
 * Frees a tracker: `state`, `cid` and `flags` in one store, so that a lost result and a repeated
 * one are both detected (sum.h). The command has ended and its result was delivered, or it was
 * never sent.
 */
static inline void nvq_free(struct nvq_tracker *t)
{
    __atomic_store_n((nvq_word *)&t->state, 0, __ATOMIC_RELEASE);
}

/* Frees all slots and empties both rings. The controller must not know the queue: it was just
 * created, or the controller was just reset. Results that were not delivered are lost. */
static inline void nvq_reset(struct nvq *q)
{
    struct nvq_header *h = q->header;
    NVP_PROBE2(reset, q->qid, q->n_armed);
    if (q->transport)
        q->transport->reset(q);
    memset(q->sq, 0, 64ull * q->entries);
    memset((void *)q->cq, 0, 16ull * q->entries); /* phase bits 0: the first pass posts 1 (Base 2.0, 3.3.3.2) */
    memset(q->lists, 0xef, (size_t)q->list_bytes * q->n_trackers);
    q->n_free = nvq_usable(q);
    for (uint32_t i = 0; i < q->n_free; i++)
        q->free_slots[i] = (uint16_t)(q->n_free - 1 - i);
    for (uint32_t i = 0; i < q->n_trackers; i++)
        nvq_free(&q->trackers[i]);
    q->n_done = q->n_armed = q->n_unrung = q->n_unacked = 0;
    q->sq_tail = q->cq_head = 0;
    nvq_set_phase(q, 1);
    memset(&q->strays, 0, sizeof q->strays);
    atomic_store_explicit(&h->sq_ringing, 0, memory_order_relaxed);
    atomic_store_explicit(&h->sq_rung, 0, memory_order_relaxed);
    atomic_store_explicit(&h->cq_ringing, 0, memory_order_relaxed);
    atomic_store_explicit(&h->cq_rung, 0, memory_order_relaxed);
    atomic_store_explicit(&h->reaped, 0, memory_order_relaxed);
    atomic_store_explicit(&h->submitted, 0, memory_order_release);
    if (q->sq_shadow)
        *q->sq_shadow = *q->cq_shadow = *q->sq_eventidx = *q->cq_eventidx = 0;
}

#endif
