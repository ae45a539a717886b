/*
 * What to do next: direction, offset and size of one I/O after another. Deterministic: the same
 * settings and seed give the same sequence, which is what lets a later run verify what an earlier
 * one wrote.
 */
#ifndef NVME_ASYNC_BENCH_GENERATOR_H
#define NVME_ASYNC_BENCH_GENERATOR_H

#include "random.h"

enum direction { DIRECTION_READ, DIRECTION_WRITE, DIRECTION_TRIM, DIRECTION_SYNC, DIRECTIONS = 3 };
enum io_order { ORDER_SEQUENTIAL, ORDER_PERMUTED, ORDER_UNIFORM, ORDER_ZIPF, ORDER_PARETO, ORDER_NORMAL, ORDER_ZONED };
enum { SPLITS = 16, ZONES = 64 };

/* Block sizes of one direction: an even spread over multiples of `step`, or a table of sizes with
 * their shares. */
struct sizes {
    uint32_t min, max, step, splits;
    uint32_t nbytes[SPLITS];
    uint64_t below[SPLITS];    /* cumulative share, of 2^32 */
};

/* random_distribution=zoned: a share of the I/Os goes to a part of the region. */
struct zones {
    uint32_t count;
    uint64_t below[ZONES];     /* cumulative share, of 2^32 */
    uint64_t first[ZONES], units[ZONES];
};

/* zonemode=strided: `size` bytes of I/O in each `range`, then on by `stride`. */
struct strides {
    uint64_t size, range, stride, done, start, end;
};

struct io {
    uint64_t offset;
    uint32_t nbytes;
    uint32_t direction;
};

struct generator {
    struct rng directions_rng, offsets_rng, sizes_rng;
    struct sizes sizes[DIRECTIONS];
    enum io_order order;
    bool mixed;
    uint32_t direction;        /* when not mixed */
    int steer;                 /* mixed: the direction that the next one must have, where rates decide; -1: drawn */
    uint64_t read_below;       /* share of reads, of 2^32 */
    uint64_t start, length, align, units, step; /* units: of starting points; step: what a cut I/O is a multiple of */
    int64_t skip; /* sequential: a hole after each I/O; negative: back by so much, from the end on */
    struct zones zones;
    struct strides strides;
    uint64_t
        random_below[DIRECTIONS]; /* random: the share of I/Os that are, of 2^32; the others follow the one before */
    uint32_t run; /* random: this many I/Os in sequence, then a new place */
    uint32_t run_left[DIRECTIONS];
    uint64_t position[DIRECTIONS];
    uint64_t visited;
    uint64_t passes;
    double parameter; /* of the distribution */
    struct permutation permutation;
    struct zipf zipf;
};

/* An empty region (units == 0) is refused by the caller. */
static inline void generator_start(struct generator *g, uint64_t seed)
{
    struct rng rng = {seed};

    g->directions_rng.state = rng_next(&rng);
    g->sizes_rng.state = rng_next(&rng);
    g->offsets_rng.state = rng_next(&rng);
    g->visited = g->passes = 0;
    for (int i = 0; i < DIRECTIONS; i++)
        g->run_left[i] = 0, g->position[i] = g->skip < 0 ? g->length + (uint64_t)g->skip : 0;
    permutation_init(&g->permutation, g->units, &g->offsets_rng);
    if (g->order == ORDER_ZIPF)
        zipf_init(&g->zipf, g->units, g->parameter);
}

static inline uint32_t sizes_next(const struct sizes *s, struct rng *rng)
{
    uint64_t draw;

    if (s->splits) {
        draw = rng_next(rng) >> 32;
        for (uint32_t i = 0; i < s->splits; i++)
            if (draw < s->below[i])
                return s->nbytes[i];
        return s->nbytes[s->splits - 1];
    }
    if (s->min == s->max)
        return s->min;
    return s->min + (uint32_t)rng_below(rng, (s->max - s->min) / s->step + 1) * s->step;
}

/* A random starting point, as a number of alignment units. */
static inline uint64_t generator_unit(struct generator *g)
{
    switch (g->order) {
    case ORDER_PERMUTED:
        if (g->visited == g->units) { /* every block once; now again, in another order */
            g->visited = 0;
            g->passes++;
            permutation_init(&g->permutation, g->units, &g->offsets_rng);
        }
        return permutation_at(&g->permutation, g->visited++);
    case ORDER_ZIPF: /* scattered, or all hot blocks would be neighbours */
        return permutation_at(&g->permutation, zipf_next(&g->zipf, &g->offsets_rng));
    case ORDER_PARETO:
        return permutation_at(&g->permutation,
                              (uint64_t)((double)(g->units - 1) * pow(rng_double(&g->offsets_rng), g->parameter)));
    case ORDER_NORMAL:
        return normal_next(&g->offsets_rng, g->units, g->parameter);
    case ORDER_ZONED: {
        uint64_t draw = rng_next(&g->offsets_rng) >> 32;
        uint32_t zone = 0;

        while (zone < g->zones.count - 1 && draw >= g->zones.below[zone])
            zone++;
        return g->zones.first[zone] + rng_below(&g->offsets_rng, g->zones.units[zone]);
    }
    default:
        return rng_below(&g->offsets_rng, g->units);
    }
}

/* The zone that has had its bytes is left; behind the last one the first comes again. */
static inline void generator_stride(struct generator *g)
{
    struct strides *s = &g->strides;

    if (s->done >= s->size) {
        s->done = 0;
        g->start += s->stride;
        if (g->start + s->range > s->end)
            g->start = s->start;
        for (int i = 0; i < DIRECTIONS; i++)
            g->position[i] = g->run_left[i] = 0;
    }
}

static inline void generator_next(struct generator *g, struct io *io)
{
    uint32_t direction = g->direction;
    uint64_t at;

    if (g->strides.size)
        generator_stride(g);
    if (g->mixed)
        direction = (rng_next(&g->directions_rng) >> 32) < g->read_below ? DIRECTION_READ : DIRECTION_WRITE;
    if (g->mixed && g->steer >= 0)
        direction = (uint32_t)g->steer;
    io->direction = direction;
    io->nbytes = sizes_next(&g->sizes[direction], &g->sizes_rng);

    if (g->order == ORDER_SEQUENTIAL || g->run_left[direction] ||
        (g->random_below[direction] >> 32 == 0 && (rng_next(&g->directions_rng) >> 32) >= g->random_below[direction])) {
        at = g->position[direction];
        if (at > g->length || at + g->sizes[direction].min > g->length) /* wrapped around; below 0 is far above */
            at = g->skip < 0 ? g->length + (uint64_t)g->skip : 0;
        if (g->run_left[direction])
            g->run_left[direction]--;
    } else {
        at = generator_unit(g) * g->align;
        g->run_left[direction] = g->run - 1;
    }
    if (at + io->nbytes > g->length) /* the last one of a region that is no multiple of the size */
        io->nbytes = (uint32_t)((g->length - at) / g->step * g->step);
    g->position[direction] = at + io->nbytes + (uint64_t)g->skip;
    g->strides.done += io->nbytes;
    io->offset = g->start + at;
}

#endif
