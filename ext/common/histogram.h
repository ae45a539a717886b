/*
 * Latencies in fio's buckets: 29 groups of 64, so that an error is below 1 % from 1 ns to 9 s and
 * beyond.
 *
 * Values below 128 have a bucket each. Above that, a value's top bit chooses the group and its next
 * six bits the bucket. Sums are kept exactly (the squares in 128 bits), because a mean derived from
 * buckets would not be.
 */
#ifndef NVME_ASYNC_COMMON_HISTOGRAM_H
#define NVME_ASYNC_COMMON_HISTOGRAM_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum {
    HISTOGRAM_BITS = 6,
    HISTOGRAM_BUCKETS = 1 << HISTOGRAM_BITS,
    HISTOGRAM_GROUPS = 29,
    HISTOGRAM_SIZE = HISTOGRAM_GROUPS * HISTOGRAM_BUCKETS
};

struct histogram {
    uint64_t count, sum, min, max;
    unsigned __int128 squares;
    uint64_t bucket[HISTOGRAM_SIZE];
};

static inline void histogram_clear(struct histogram *h)
{
    memset(h, 0, sizeof *h);
    h->min = UINT64_MAX;
}

static inline unsigned histogram_index(uint64_t value)
{
    unsigned top = 63 - __builtin_clzll(value | 1);
    unsigned shift, index;

    if (top <= HISTOGRAM_BITS)
        return (unsigned)value;
    shift = top - HISTOGRAM_BITS;
    index = ((shift + 1) << HISTOGRAM_BITS) + ((value >> shift) & (HISTOGRAM_BUCKETS - 1));
    return index < HISTOGRAM_SIZE ? index : HISTOGRAM_SIZE - 1;
}

/* The value that represents a bucket: itself, or the middle of its range. */
static inline uint64_t histogram_value(unsigned index)
{
    unsigned shift;

    if (index < 2 * HISTOGRAM_BUCKETS)
        return index;
    shift = (index >> HISTOGRAM_BITS) - 1;
    return ((uint64_t)HISTOGRAM_BUCKETS << shift) + ((uint64_t)(index % HISTOGRAM_BUCKETS) << shift) +
           ((uint64_t)1 << shift >> 1);
}

static inline void histogram_add_many(struct histogram *h, uint64_t value, uint64_t times)
{
    h->count += times;
    h->sum += value * times;
    h->squares += (unsigned __int128)value * value * times;
    if (value < h->min)
        h->min = value;
    if (value > h->max)
        h->max = value;
    h->bucket[histogram_index(value)] += times;
}

static inline void histogram_merge(struct histogram *into, const struct histogram *from)
{
    into->count += from->count;
    into->sum += from->sum;
    into->squares += from->squares;
    if (from->min < into->min)
        into->min = from->min;
    if (from->max > into->max)
        into->max = from->max;
    for (unsigned i = 0; i < HISTOGRAM_SIZE; i++)
        into->bucket[i] += from->bucket[i];
}

/* The sample standard deviation; N * squares - sum * sum without losing the small difference of two
 * large numbers. */
static inline double histogram_deviation(const struct histogram *h)
{
    long double mean, variance;

    if (h->count < 2)
        return 0.0;
    mean = (long double)h->sum / h->count;
    variance = ((long double)h->squares - mean * (long double)h->sum) / (h->count - 1);
    return variance > 0 ? (double)sqrtl(variance) : 0.0;
}

#endif
