/*
 * A queue pair in five primitives, from which everything else is composed:
 *
 *   nvq_take       a free command id                        nvq_put gives it back
 *   nvq_post       a command into its tracker and the ring
 *   nvq_ring_sq    the submission doorbell, for all that was posted
 *   nvq_reap       completions into their trackers
 *   nvq_ring_cq    the completion doorbell, for all that was reaped
 *
 * Threads: a queue pair belongs to one thread at a time; nothing here locks. `struct nvq` is this process's view, `struct nvq_header` and the
 * trackers are shared with the future (see layout.h), with the controller only the rings and doorbells.
 *
 * A process may be killed between any two stores, and its successor reads the pool. So each step publishes with one release store, last:
 *   post:   tracker fields, tracker.sum → tracker.state = ARMED → ring entry → header.submitted
 *   ring:   header.sq_ringing → doorbell → header.sq_rung
 *   reap:   tracker.status, tracker.sum → tracker.state = DONE → header.reaped
 *   ring:   header.cq_ringing → doorbell → header.cq_rung
 *   put:    tracker.state = FREE, cid = flags = 0, in one store
 * An ARMED tracker whose position is not below header.submitted was never sent. A CQE at header.reaped whose tracker is DONE was recorded
 * already.
 */
#ifndef NVME_ASYNC_HOTPATH_QUEUE_H
#define NVME_ASYNC_HOTPATH_QUEUE_H

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "device/kick.h"

#include "common/histogram.h"
#include "common/mmio.h"
#include "common/probes.h"
#include "layout.h"
#include "prp.h"
#include "sum.h"
#include "transport.h"

#define NVQ_MAX_ENTRIES 4096u

/*
 * Stray completions: entries of the completion ring that answer no command of this queue pair that is out. They are taken off the ring,
 * counted, and release nothing: a page belongs to its command until an entry says without doubt that this command is over.
 */
struct nvq_strays {
    uint32_t n;        /* since they were reported */
    uint32_t n_sqid;   /* of those, with the id of an outstanding command and of another submission queue */
    uint16_t cid, sqid; /* of the last one */
};

struct nvq {
    /* Looked at for each command. */
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
    uint16_t cq_phase; /* that a new CQE has: nvq_set_phase() */
    uint16_t slot_bits;
    uint32_t n_armed;   /* commands with the controller, orphans included */
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
    uint32_t notable;       /* so many completions in one reap, and more, are news for nvq_note() */

    /* Doorbells. NULL: the device maps none, nvq_ring_* return true and the caller writes the register. */
    volatile uint32_t *sq_doorbell;
    volatile uint32_t *cq_doorbell;
    int kick_fd; /* an eventfd that wakes a sleeping peer, -1 = none */
    bool silent; /* nothing is rung: the controller is being reset and doesn't know of this queue. Set by nvq_silent() */
    uint32_t life; /* of a lent queue pair: it is over once its lender has stored another number in lent_word */
    const volatile uint32_t *stop_word, *lent_word;
    const volatile uint32_t *plain_word; /* stop_word where ringing is one store to mapped memory: nvq_choose_ringing() */
    /* Doorbell Buffer Config (Base 2.0, 5.8): NULL = not in use. */
    volatile uint32_t *sq_shadow;
    volatile uint32_t *cq_shadow;
    volatile uint32_t *sq_eventidx;
    volatile uint32_t *cq_eventidx;

    const struct nvq_transport *transport; /* NULL: the rings are shared with the device */
    void *link;                            /* the transport's own */

    struct histogram *latency; /* from nvq_post to nvq_reap, in nanoseconds; NULL = not recorded */
    struct nvq_strays strays;
};

static const volatile uint32_t nvq_own = 1;    /* the stop word of queue pairs that are not lent */
static const volatile uint32_t nvq_silence = 0; /* of those that are silent: no life has this number */

static inline bool nvq_stopped(const struct nvq *q) /* doorbells are to be left alone */
{
    return __builtin_expect(*q->stop_word != q->life, 0);
}

/* To be called whenever one of the doorbell fields has changed; until then nvq_ring_* look at each of them. */
static inline void nvq_choose_ringing(struct nvq *q)
{
    const bool plain = q->sq_doorbell && q->cq_doorbell && !q->sq_shadow && q->kick_fd < 0;
    q->plain_word = plain ? q->stop_word : &nvq_silence;
}

static inline void nvq_silent(struct nvq *q, bool silent)
{
    q->silent = silent;
    q->stop_word = silent ? &nvq_silence : q->lent_word;
    nvq_choose_ringing(q);
}

static inline uint64_t nvq_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The layout that `entries` and lists of `list_bytes` lead to; returns bytes in all. */
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

/* The layout for commands of `list_entries` pages; returns bytes in all. */
static inline uint64_t nvq_layout(struct nvq_header *h, uint32_t entries, uint32_t n_trackers, uint32_t list_entries)
{
    return nvq_layout_of(h, entries, n_trackers, prp_list_bytes(list_entries ? list_entries : 1));
}

/*
 * The next id of the same slot, where `cid` is one that no command has: FFFFh (Base 2.0, figure 87) and 0, which is a free tracker's (sum.h).
 */
static inline uint16_t nvq_proper_cid(const struct nvq *q, uint16_t cid)
{
    return __builtin_expect((uint16_t)(cid - 1) >= 0xfffe, 0) ? (uint16_t)(cid + q->cid_step) : cid;
}

/* Points `q` at the memory of a laid out queue pair. Returns 0, or -1 out of memory. */
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
 * In a forked child: the queue pair goes on in `memory`, which is zeroed and of nvq_layout() bytes, silent, empty, for good. The rings are a
 * private mapping there, and such a mapping shows what the parent and its controller do next, until it is written: completions of commands
 * that this process has never sent.
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

static inline void nvq_set_phase(struct nvq *q, uint16_t phase)
{
    q->cq_phase = phase;
    q->cq_expected = (uint64_t)phase << 48 | (uint64_t)q->qid << 16;
}

/* Latencies are recorded in *latency from now on, which is the queue's to free; NULL: they aren't. */
static inline void nvq_set_latency(struct nvq *q, struct histogram *latency)
{
    free(q->latency);
    q->latency = latency;
    q->notable = 0;
}

/* Slots for commands of the driver's users. */
static inline uint32_t nvq_usable(const struct nvq *q)
{
    return q->n_trackers - q->header->n_reserved;
}

/* `state`, `cid` and `flags` in one store: neither a lost result nor one that comes a second time passes for what it isn't (sum.h). */
static inline void nvq_free(struct nvq_tracker *t)
{
    __atomic_store_n((nvq_word *)&t->state, 0, __ATOMIC_RELEASE);
}

/* All slots free, both rings empty: a queue that was just created, or whose controller was just reset. */
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

/* A free slot, or -1. */
static inline int nvq_take(struct nvq *q)
{
    return q->n_free ? q->free_slots[--q->n_free] : -1;
}

static inline void nvq_put(struct nvq *q, unsigned slot)
{
    nvq_free(&q->trackers[slot]);
    q->free_slots[q->n_free++] = (uint16_t)slot;
}

static inline uint64_t *nvq_list(struct nvq *q, unsigned slot)
{
    return (uint64_t *)(q->lists + (size_t)slot * q->list_bytes);
}

static inline uint64_t nvq_list_iova(const struct nvq *q, unsigned slot)
{
    return q->lists_iova + (uint64_t)slot * q->list_bytes;
}

/*
 * What changes with each command that is posted, in registers from nvq_posting_begin() to nvq_posting_end(). Nothing else may touch the
 * queue between them; a process that is killed there loses only what it alone knows.
 */
struct nvq_posting {
    uint64_t position; /* header.submitted */
    uint32_t tail;
    uint32_t count;
};

static inline struct nvq_posting nvq_posting_begin(struct nvq *q, uint32_t count)
{
    q->n_armed += count;
    return (struct nvq_posting){
        .position = atomic_load_explicit(&q->header->submitted, memory_order_relaxed), .tail = q->sq_tail, .count = count};
}

static inline void nvq_posting_end(struct nvq *q, const struct nvq_posting *p)
{
    q->sq_tail = p->tail;
    q->n_unrung += p->count;
}

/*
 * Puts the command that was written to trackers[slot].sqe into the ring. The SQ has room whenever a slot was free: there are fewer trackers
 * than entries, and a tracker is only free once its command was fetched and completed. The controller sees nothing until nvq_ring_sq.
 *
 * sum: as nvq_sum_sent() adds it up, before it is folded. may_record: latencies may be recorded.
 */
static inline void nvq_post_next(struct nvq *q, struct nvq_posting *p, unsigned slot, uint64_t sum, const bool may_record)
{
    struct nvq_tracker *t = &q->trackers[slot];
    const uint32_t tail = p->tail;
    const uint16_t cid = q->next_cid[slot];
    q->next_cid[slot] = nvq_proper_cid(q, (uint16_t)(cid + q->cid_step));
    if (__builtin_expect(++p->tail == q->entries, 0))
        p->tail = 0;
    t->position = p->position;
    atomic_signal_fence(memory_order_release); /* a free tracker with an id has this position: see nvq_verify_tracker() */
    t->cid = t->sqe.cid = cid;
    t->epoch = q->header->epoch;
    t->sent_ns = may_record && q->latency ? nvq_now_ns() : 0;
    atomic_signal_fence(memory_order_release); /* a sum that fits has its position beside it: see nvq_verify_tracker() */
    t->sum = nvq_sum_fold(sum) ^ cid;
    atomic_store_explicit(&t->state, NVQ_ARMED, memory_order_release);
    memcpy(&q->sq[tail], &t->sqe, sizeof t->sqe);
    atomic_store_explicit(&q->header->submitted, ++p->position, memory_order_release);
    NVP_PROBE2(post, q->qid, (const void *)t); /* a tracker begins with the 64 bytes of its command */
}

static inline void nvq_post(struct nvq *q, unsigned slot)
{
    const struct nvq_tracker *t = &q->trackers[slot];
    struct nvq_posting p = nvq_posting_begin(q, 1);
    nvq_post_next(q, &p, slot, nvq_sum_rest(&t->sqe, t->flags, t->data_nbytes) + nvq_sum_lba(((const nvq_word *)&t->sqe)[5]) +
                                   nvq_sum_tag(t->tag), true);
    nvq_posting_end(q, &p);
}

/* virtio's test, as Base 2.0 5.8 has it: does going from `old` to `new` step over event_idx? */
static inline bool nvq_needs_event(uint16_t event_idx, uint16_t new_value, uint16_t old)
{
    return (uint16_t)(new_value - event_idx - 1) < (uint16_t)(new_value - old);
}

/* What nvq_ring_* leave to a caller that had to write the register itself. */
static inline void nvq_rang_sq(struct nvq *q)
{
    struct nvq_header *h = q->header;
    atomic_store_explicit(&h->sq_rung, atomic_load_explicit(&h->sq_ringing, memory_order_relaxed), memory_order_release);
}

static inline void nvq_rang_cq(struct nvq *q)
{
    struct nvq_header *h = q->header;
    atomic_store_explicit(&h->cq_rung, atomic_load_explicit(&h->cq_ringing, memory_order_relaxed), memory_order_release);
}

/* The same for a register that was written meanwhile, by another thread: the last position at or before `ringing` that `value` stands for. */
static inline void nvq_rang_to(const struct nvq_header *h, const _Atomic uint64_t *ringing, _Atomic uint64_t *rung, uint32_t value)
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

/* Returns true when the caller has to write the register itself, because the device maps no doorbells. */
static inline bool nvq_doorbell(struct nvq *q, volatile uint32_t *doorbell, volatile uint32_t *shadow, volatile uint32_t *eventidx,
                                uint32_t value, uint64_t *counter)
{
    if (shadow) {
        const uint32_t old = *shadow;
        /* The ring entries before the shadow doorbell, the shadow doorbell before the look at EventIdx (5.8: else both sides may sleep). */
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
        kick_eventfd(q->kick_fd);
    return false;
}

/* nvq_ring_sq() and nvq_ring_cq() where a doorbell is more than a store, or is left alone. */
static __attribute__((noinline, unused)) bool nvq_ring_sq_any(struct nvq *q, uint64_t submitted)
{
    struct nvq_header *h = q->header;
    if (nvq_stopped(q))
        return false;
    atomic_store_explicit(&h->sq_ringing, submitted, memory_order_release);
    const bool by_register = nvq_doorbell(q, q->sq_doorbell, q->sq_shadow, q->sq_eventidx, q->sq_tail, &h->n_sq_doorbells);
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
    const bool by_register = nvq_doorbell(q, q->cq_doorbell, q->cq_shadow, q->cq_eventidx, q->cq_head, &h->n_cq_doorbells);
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

/* Between the completion doorbell and one more poll before sleeping: the controller stores an entry and then reads the doorbell, we store
 * the doorbell and then read the entry, and one of us sees the other. */
static inline void nvq_before_last_poll(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}

/*
 * Copies the completion at `position` (completions counted since the queue was created) into *copy. False: the controller has not posted it,
 * which the phase tag of that round says. The queue itself does not change.
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

/* Is there a completion that was not polled yet? */
static inline bool nvq_pending(const struct nvq *q)
{
    if ((*(volatile uint16_t *)&q->cq[q->cq_head].status & 1) == q->cq_phase)
        return true;
    return __builtin_expect(q->transport != NULL, 0) && q->transport->poll((struct nvq *)q);
}

/* The state of a tracker that no other thread changes: a plain load, which the compiler may fold into what it is for. */
static inline uint32_t nvq_state(const struct nvq_tracker *t)
{
    return *(const uint32_t __attribute__((may_alias)) *)&t->state;
}

/* The last n of done_slots were reaped in one go: more than ever, or latencies are recorded. The clock is read once: that is not free. */
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

/* The next entry of the completion ring is expected. */
static inline uint32_t nvq_after(struct nvq *q, uint32_t head)
{
    if (++head != q->entries)
        return head;
    nvq_set_phase(q, q->cq_phase ^ 1);
    return 0;
}

/* nvq_reap_ring() up to the first stray, which stays in the ring (*stray); *limit is what is left of it. */
static inline unsigned nvq_reap_run(struct nvq *q, unsigned *limit, bool *stray)
{
    struct nvq_header *h = q->header;
    const uint64_t before = atomic_load_explicit(&h->reaped, memory_order_relaxed), end = before + *limit;
    uint16_t *const done = q->done_slots + q->n_done;
    uint64_t reaped = before;
    uint32_t head = q->cq_head;
    while (reaped != end) {
        volatile struct nvq_cqe *cqe = &q->cq[head];
        /* sqhd, sqid, cid and status: the phase, and what it vouches for, in one load. 0 where it is as expected. */
        const uint64_t entry = *(volatile nvq_word *)&cqe->sqhd ^ q->cq_expected;
        if (entry & 1ull << 48)
            break;
        mmio_after_load();
        const uint16_t cid = (uint16_t)(entry >> 32);
        const unsigned slot = cid & q->cid_mask;
        struct nvq_tracker *t = &q->trackers[slot];
        if (__builtin_expect(slot >= q->n_trackers || t->cid != cid || nvq_state(t) != NVQ_ARMED || (uint32_t)entry >> 16, 0)) {
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

/* Takes an entry that answers nothing off the ring. */
static inline void nvq_take_stray(struct nvq *q)
{
    struct nvq_header *h = q->header;
    volatile struct nvq_cqe *cqe = &q->cq[q->cq_head];
    const uint16_t cid = cqe->cid;
    const unsigned slot = cid & q->cid_mask;
    q->strays.n++;
    q->strays.n_sqid += slot < q->n_trackers && q->trackers[slot].cid == cid && nvq_state(&q->trackers[slot]) == NVQ_ARMED;
    q->strays.cid = cid;
    q->strays.sqid = cqe->sqid;
    q->n_unacked++;
    q->cq_head = nvq_after(q, q->cq_head);
    atomic_store_explicit(&h->reaped, atomic_load_explicit(&h->reaped, memory_order_relaxed) + 1, memory_order_release);
}

/* The rest of nvq_reap_ring(), from a stray on. */
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
 * Takes up to `limit` entries off the ring: records completions in their trackers and appends their slots to done_slots; returns how many.
 * Strays are noted in q->strays. Needs no interpreter.
 */
static inline unsigned nvq_reap_ring(struct nvq *q, unsigned limit)
{
    bool stray = false;
    const unsigned n = nvq_reap_run(q, &limit, &stray);
    return __builtin_expect(stray, 0) ? n + nvq_reap_strays(q, limit) : n;
}

static __attribute__((noinline, unused)) unsigned nvq_reap_polled(struct nvq *q, unsigned limit)
{
    return q->transport->poll(q) ? nvq_reap_ring(q, limit) : 0;
}

static inline unsigned nvq_reap(struct nvq *q, unsigned limit)
{
    const unsigned n = nvq_reap_ring(q, limit);
    return !n && q->transport ? nvq_reap_polled(q, limit) : n;
}

static inline void nvq_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
