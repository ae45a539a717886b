/*
 * How long to look for a completion in vain before sleeping. Learnt: twice what it took of late until one came, and no more than limit_ns.
 * Where that was never enough nobody looks at all, but for a probe now and then.
 */
#ifndef NVME_ASYNC_HOTPATH_PATIENCE_H
#define NVME_ASYNC_HOTPATH_PATIENCE_H

#include <stdint.h>

struct nvq_patience {
    uint64_t limit_ns;
    uint64_t gap_ns; /* of recent waits; whoever looked in vain says what one counts as whose end it didn't see */
    uint32_t asked;
};

/* Nanoseconds; 0: don't. */
static inline uint64_t nvq_patience_bound(struct nvq_patience *p)
{
    if (p->gap_ns > p->limit_ns)
        return ++p->asked & 63 ? 0 : p->limit_ns;
    const uint64_t enough = 2 * p->gap_ns + 2000;
    return enough < p->limit_ns ? enough : p->limit_ns;
}

static inline void nvq_patience_learn(struct nvq_patience *p, uint64_t ns)
{
    p->gap_ns = (p->gap_ns * 7 + ns) >> 3;
}

#endif
