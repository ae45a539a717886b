/*
 * A queue pair's structures in the DMA pool, where a successor process finds them: rings, their
 * positions, and a tracker for each command. Plain C structs, little endian, versioned; the order
 * of the stores is in queue.h. tests/unit/test_layout.py holds golden bytes.
 *
 * One queue pair is one pool allocation:
 *
 *   +0                    struct nvq_header                (one page)
 *   +sq_offset            submission ring, 64 B an entry   (page aligned)
 *   +cq_offset            completion ring, 16 B an entry   (page aligned)
 *   +trackers_offset      struct nvq_tracker[n_trackers]   (page aligned)
 *   +lists_offset         PRP lists, list_bytes a tracker  (page aligned)
 */
#ifndef NVME_ASYNC_HOTPATH_LAYOUT_H
#define NVME_ASYNC_HOTPATH_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define NVQ_MAGIC 0x31515651u /* "QVQ1" */
#define NVQ_LAYOUT_VERSION 1u
#define NVQ_PAGE 4096u
#define NVQ_SUMS 0x534d5553u /* "SUMS" */
#define NVQ_NO_OFFSET UINT64_MAX
/* Poison of list entries that a command doesn't use: not page aligned and outside of any IOVA, so a
 * controller that follows one fails. */
#define NVQ_POISON 0xdeadbeefdeadbeefull

/* Completion queue entry, NVMe Base 2.0 figure 90 */
struct nvq_cqe {
    uint32_t dw0;
    uint32_t dw1;
    uint16_t sqhd;
    uint16_t sqid;
    uint16_t cid;
    uint16_t status; /* bit 0 phase, bits 15:1 status field */
};
_Static_assert(sizeof(struct nvq_cqe) == 16, "CQE");

/* Submission queue entry, NVMe Base 2.0 figure 87 */
struct nvq_sqe {
    uint8_t opcode;
    uint8_t flags; /* fuse, psdt */
    uint16_t cid;
    uint32_t nsid;
    uint32_t cdw2;
    uint32_t cdw3;
    uint64_t mptr;
    uint64_t prp1;
    uint64_t prp2;
    uint32_t cdw10;
    uint32_t cdw11;
    uint32_t cdw12;
    uint32_t cdw13;
    uint32_t cdw14;
    uint32_t cdw15;
};
_Static_assert(sizeof(struct nvq_sqe) == 64, "SQE");
_Static_assert(offsetof(struct nvq_sqe, prp1) == 24 && offsetof(struct nvq_sqe, cdw10) == 40, "SQE");

enum nvq_state {
    NVQ_FREE = 0,
    NVQ_ARMED = 1, /* the controller may work on it as soon as its position is below header.submitted */
    NVQ_DONE = 2,  /* its completion is recorded here but not yet delivered */
};

enum nvq_flag {
    NVQ_TO_HOST = 1u << 0,   /* the controller writes data */
    NVQ_FROM_HOST = 1u << 1, /* the controller reads data */
    NVQ_BOUNCE = 1u << 2,    /* data_offset names pool pages that belong to this command until it completes */
    NVQ_ORPHAN = 1u << 3,    /* it has no waiter any more */
    NVQ_ADOPTED = 1u << 4,   /* sent by a predecessor */
    NVQ_INTERNAL = 1u
        << 5,  /* of the driver itself (AER, recovery), without a time limit: no successor's caller asks for it */
    NVQ_DRIVER = 1u << 6,    /* of the driver itself: no successor's caller asks for it */
};

/* Two cache lines: the command, and what its completion needs. */
struct nvq_tracker {
    struct nvq_sqe sqe;     /* as it was sent, for retries and for successors */
    _Atomic uint32_t state; /* enum nvq_state; stored last (release) */
    uint16_t cid;
    uint16_t flags;       /* enum nvq_flag */
    uint64_t position;    /* value of header.submitted before this command */
    uint64_t tag;         /* the caller's */
    uint64_t data_offset; /* pool offset of the first data byte; NVQ_NO_OFFSET: none, or not in the pool */
    uint32_t data_nbytes;
    uint16_t status; /* the CQE's 15-bit status field, once DONE */
    uint16_t sum;    /* see sum.h; means something where header.sums says so */
    uint32_t dw0;
    uint32_t dw1;
    uint64_t epoch; /* nvq_header.epoch at submission */
    uint64_t sent_ns; /* CLOCK_MONOTONIC at submission while latencies are recorded, else 0 */
};
_Static_assert(sizeof(struct nvq_tracker) == 128, "a tracker is two cache lines");
_Static_assert(offsetof(struct nvq_tracker, state) == 64, "tracker");
_Static_assert(offsetof(struct nvq_tracker, data_offset) == 88, "tracker");
_Static_assert(offsetof(struct nvq_tracker, cid) == 68 && offsetof(struct nvq_tracker, flags) == 70, "tracker");
_Static_assert(offsetof(struct nvq_tracker, position) == 72 && offsetof(struct nvq_tracker, tag) == 80, "tracker");
_Static_assert(offsetof(struct nvq_tracker, data_nbytes) == 96 && offsetof(struct nvq_tracker, status) == 100,
               "tracker");
_Static_assert(offsetof(struct nvq_tracker, sum) == 102 && offsetof(struct nvq_tracker, dw0) == 104, "tracker");
_Static_assert(offsetof(struct nvq_tracker, dw1) == 108 && offsetof(struct nvq_tracker, epoch) == 112, "tracker");
_Static_assert(offsetof(struct nvq_tracker, sent_ns) == 120, "tracker");

struct nvq_header {
    uint32_t magic;
    uint32_t version;
    uint16_t qid;
    uint16_t vector;
    uint32_t entries;    /* of each ring */
    uint32_t n_trackers; /* commands at once: entries - 1 at most, reserved ones included */
    uint32_t slot_bits;  /* cid = sequence << slot_bits | slot */
    uint64_t sq_offset, cq_offset, trackers_offset, lists_offset; /* from this header */
    uint32_t list_bytes;
    uint32_t interrupts; /* CQ created with IEN */
    uint32_t n_reserved; /* of the trackers, the last ones: reserved for a successor (adopt.h) */
    uint32_t sums;       /* NVQ_SUMS: trackers have valid sums; 0: made by a release without sums */
    uint8_t reserved0[56];

    /* Positions count entries since the queue was created; ring index = position % entries. A
     * killed process leaves each of them either before or after a step, never between. */
    _Alignas(64) _Atomic uint64_t submitted; /* entries that are valid in the SQ ring */
    _Atomic uint64_t sq_ringing;             /* stored before the doorbell … */
    _Atomic uint64_t sq_rung;                /* … and after it: if they differ, a predecessor died in between */
    _Atomic uint64_t reaped;                 /* CQEs recorded in their trackers */
    _Atomic uint64_t cq_ringing;
    _Atomic uint64_t cq_rung;
    uint64_t epoch; /* coarse clock, counted by the driver's watchdog */
    uint64_t reserved1;

    /* Counters, always on, written only by the owner of the queue. */
    _Alignas(64) uint64_t n_reaps; /* that found something */
    uint64_t n_sq_doorbells;       /* MMIO writes */
    uint64_t n_cq_doorbells;
    uint64_t n_shadow_only; /* doorbells that needed no MMIO write, thanks to Doorbell Buffer Config */
    uint64_t n_errors;
    uint64_t n_orphans;
    uint64_t n_interrupts;
    uint64_t n_spins;
    uint64_t n_eager; /* awaits that never suspended */
    uint64_t n_full;  /* awaits that had to wait for a free command id */
    uint64_t n_bounced;
    uint64_t max_batch;
    uint64_t n_missed; /* sleeps that an early poll ended, and no interrupt */
};
_Static_assert(offsetof(struct nvq_header, qid) == 8 && offsetof(struct nvq_header, vector) == 10, "header");
_Static_assert(offsetof(struct nvq_header, entries) == 12 && offsetof(struct nvq_header, n_trackers) == 16, "header");
_Static_assert(offsetof(struct nvq_header, slot_bits) == 20 && offsetof(struct nvq_header, sq_offset) == 24, "header");
_Static_assert(offsetof(struct nvq_header, cq_offset) == 32 && offsetof(struct nvq_header, trackers_offset) == 40,
               "header");
_Static_assert(offsetof(struct nvq_header, lists_offset) == 48 && offsetof(struct nvq_header, list_bytes) == 56,
               "header");
_Static_assert(offsetof(struct nvq_header, interrupts) == 60 && offsetof(struct nvq_header, n_reserved) == 64,
               "header");
_Static_assert(offsetof(struct nvq_header, sums) == 68, "header");
_Static_assert(offsetof(struct nvq_header, submitted) == 128 && offsetof(struct nvq_header, sq_ringing) == 136,
               "header");
_Static_assert(offsetof(struct nvq_header, sq_rung) == 144 && offsetof(struct nvq_header, reaped) == 152, "header");
_Static_assert(offsetof(struct nvq_header, cq_ringing) == 160 && offsetof(struct nvq_header, cq_rung) == 168, "header");
_Static_assert(offsetof(struct nvq_header, epoch) == 176, "header");
_Static_assert(offsetof(struct nvq_header, n_reaps) == 192, "header");
_Static_assert(offsetof(struct nvq_header, n_missed) == 288, "header");
_Static_assert(sizeof(struct nvq_header) <= NVQ_PAGE, "the header is one page");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "positions are shared across processes");

#endif
