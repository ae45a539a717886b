/*
 * Checksums of trackers. A successor follows a tracker's pointers into memory that others may own,
 * so one flipped bit in it is enough to read wrong data or to overwrite a foreign buffer.
 *
 * Most of a tracker follows from something else, and verify.h compares it: the 64 bytes with the
 * ring entry where that still stands, PRPs and list with offset and length, bounce pages with the
 * slot table. `nvq_tracker.sum` covers what doesn't: the command once its ring entry was
 * overwritten, the caller's tag, flags, length, and a recorded result.
 *
 *   ARMED   sum = nvq_sum_sent()                      stored before `state`
 *   DONE    sum = nvq_sum_sent() ^ nvq_sum_done()     stored before `state`: an ARMED tracker may
 *                                                     have this one already
 *   FREE    `cid` and `flags` are 0, cleared by the store that clears `state`; a command never has
 *           the id 0. Only a tracker that was being filled when its process was killed differs:
 *           there is at most one, and its sum doesn't fit.
 *
 * A tracker that says NVQ_ORPHAN without its sum, or the other way round: nvq_orphan() was cut in
 * two; see there.
 */
#ifndef NVME_ASYNC_HOTPATH_SUM_H
#define NVME_ASYNC_HOTPATH_SUM_H

#include "layout.h"

typedef uint64_t __attribute__((may_alias)) nvq_word;

/*
 * Linear in the words of a tracker, so that what a batch's commands have in common is added up once
 * (nvb_prepare). Fields that are compared with something else are excluded: position, PRPs, offset;
 * so is NVQ_ADOPTED, which the adopter sets. The factors are odd; of the differences of two bits
 * only pairs of the words' topmost ones add up to nothing. The command id comes last and unfolded:
 * a tracker's sum is never that of the next command in the same tracker, however alike they are.
 */
#define NVQ_SUM_FOLD 0x9e3779b97f4a7c15ull

/* The part of dwords 10 and 11 in a sum. */
static inline uint64_t nvq_sum_lba(uint64_t cdw10_cdw11)
{
    return cdw10_cdw11 * 0x45d9f3b1;
}

/* The part of the caller's tag in a sum. */
static inline uint64_t nvq_sum_tag(uint64_t tag)
{
    return tag * 0x2c1b3c6d;
}

/* The part of everything else: the other dwords of the command, flags and length. */
static inline uint64_t nvq_sum_rest(const struct nvq_sqe *sqe, uint16_t flags, uint32_t data_nbytes)
{
    const nvq_word *word = (const nvq_word *)sqe;
    return (word[0] & ~0xffff0000ull) * 0x7feb352d + word[1] * 0x31848bab + word[2] * 0x297a2d39 +
           word[6] * 0x1b873593 + word[7] * 0x5bd1e995 +
           ((uint64_t)(flags & ~NVQ_ADOPTED) << 32 | data_nbytes) * 0x4cf5ad43;
}

/* The 16 bits of a tracker's sum, before the command id. */
static inline uint16_t nvq_sum_fold(uint64_t sum)
{
    return (uint16_t)(sum * NVQ_SUM_FOLD >> 48);
}

/* Of what was sent. */
static inline uint16_t nvq_sum_sent(const struct nvq_tracker *t, uint16_t flags)
{
    return nvq_sum_fold(nvq_sum_rest(&t->sqe, flags, t->data_nbytes) + nvq_sum_lba(((const nvq_word *)&t->sqe)[5]) +
                        nvq_sum_tag(t->tag)) ^
           t->sqe.cid;
}

/* Of a recorded result. */
static inline uint16_t nvq_sum_done(uint32_t status, uint64_t dw0_dw1)
{
    return nvq_sum_fold(dw0_dw1 + 8ull * status);
}

/* Dwords 0 and 1 of a recorded completion, as one word. */
static inline uint64_t nvq_result(const struct nvq_tracker *t)
{
    return *(const nvq_word *)&t->dw0;
}

/* This command has no waiter any more. The sum first: if a successor finds it without the flag, the
 * process was killed in between. */
static inline void nvq_orphan(struct nvq_tracker *t)
{
    t->sum ^= nvq_sum_sent(t, t->flags) ^ nvq_sum_sent(t, t->flags | NVQ_ORPHAN);
    atomic_signal_fence(memory_order_seq_cst);
    t->flags |= NVQ_ORPHAN;
}

#endif
