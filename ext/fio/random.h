/*
 * Random numbers for offsets: a generator, distributions, and a permutation that visits every block
 * once with no map.
 */
#ifndef NVME_ASYNC_BENCH_RANDOM_H
#define NVME_ASYNC_BENCH_RANDOM_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

struct rng {
    uint64_t state;
};

/* splitmix64: one multiplication more than an LCG, and passes the usual batteries of tests. */
static inline uint64_t rng_next(struct rng *rng)
{
    uint64_t z = rng->state += 0x9E3779B97F4A7C15u;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Uniform in [0, n): the high half of a product, no division. The bias is below n / 2^64. */
static inline uint64_t rng_below(struct rng *rng, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)rng_next(rng) * n) >> 64);
}

/* Uniform in (0, 1]. */
static inline double rng_double(struct rng *rng)
{
    return ((rng_next(rng) >> 11) + 1) * 0x1p-53;
}

/*
 * A bijection of [0, n): odd multiplications and xor-shifts are bijections of k-bit numbers; a
 * result beyond n is put through again until it falls inside (cycle walking), which keeps the whole
 * a bijection. 2^k < 2n: two rounds on average.
 */
struct permutation {
    uint64_t n, mask, add, multiply[3];
    unsigned shift;
};

static inline void permutation_init(struct permutation *p, uint64_t n, struct rng *rng)
{
    unsigned bits = n > 1 ? 64 - __builtin_clzll(n - 1) : 0;

    p->n = n;
    p->mask = bits ? UINT64_MAX >> (64 - bits) : 0;
    p->shift = bits > 1 ? (bits + 1) / 2 : 1;
    p->add = rng_next(rng);
    for (int i = 0; i < 3; i++)
        p->multiply[i] = rng_next(rng) | 1;
}

static inline uint64_t permutation_at(const struct permutation *p, uint64_t i)
{
    do {
        i = (i + p->add) & p->mask;
        i = (i * p->multiply[0]) & p->mask;
        i ^= i >> p->shift;
        i = (i * p->multiply[1]) & p->mask;
        i ^= i >> p->shift;
        i = (i * p->multiply[2]) & p->mask;
        i ^= i >> p->shift;
    } while (i >= p->n);
    return i;
}

/*
 * Zipf's law by rejection-inversion (Hörmann and Derflinger 1996): exact, any exponent above 0, and
 * no table, where summing up the zeta function would take minutes for a large drive.
 */
struct zipf {
    double exponent, n, h_first, h_last, threshold;
};

static inline double zipf_h(const struct zipf *z, double x)
{
    return z->exponent == 1.0 ? log(x) : (pow(x, 1.0 - z->exponent) - 1.0) / (1.0 - z->exponent);
}

static inline double zipf_h_inverse(const struct zipf *z, double y)
{
    if (z->exponent == 1.0)
        return exp(y);
    return pow(1.0 + y * (1.0 - z->exponent), 1.0 / (1.0 - z->exponent));
}

static inline void zipf_init(struct zipf *z, uint64_t n, double exponent)
{
    z->exponent = exponent;
    z->n = (double)n;
    z->h_first = zipf_h(z, 1.5) - 1.0;
    z->h_last = zipf_h(z, z->n + 0.5);
    z->threshold = 2.0 - zipf_h_inverse(z, zipf_h(z, 2.5) - pow(2.0, -exponent));
}

/* A rank in [0, n), the lowest being the most frequent. */
static inline uint64_t zipf_next(const struct zipf *z, struct rng *rng)
{
    for (;;) {
        double u = z->h_last + rng_double(rng) * (z->h_first - z->h_last);
        double x = zipf_h_inverse(z, u);
        double k = floor(x + 0.5);

        if (k < 1.0)
            k = 1.0;
        else if (k > z->n)
            k = z->n;
        if (k - x <= z->threshold || u >= zipf_h(z, k + 0.5) - pow(k, -z->exponent))
            return (uint64_t)k - 1;
    }
}

/* Around the middle of [0, n), by Marsaglia's polar method; what falls outside is drawn again. */
static inline uint64_t normal_next(struct rng *rng, uint64_t n, double deviation)
{
    for (;;) {
        double u = 2.0 * rng_double(rng) - 1.0, v = 2.0 * rng_double(rng) - 1.0, s = u * u + v * v, x;

        if (s >= 1.0 || s == 0.0)
            continue;
        x = (double)n / 2.0 + u * sqrt(-2.0 * log(s) / s) * deviation;
        if (x >= 0.0 && x < (double)n)
            return (uint64_t)x;
    }
}

#endif
