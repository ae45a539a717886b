/* End-to-end protection information (NVM Command Set 1.1, 5.3): generation and checks. */
#ifndef NVME_ASYNC_PI_PI_H
#define NVME_ASYNC_PI_PI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned __int128 pi_space; /* storage and reference tag: the storage tag is the upper part */

struct pi_format {
    uint32_t block_size;
    uint16_t metadata; /* bytes of metadata of a block */
    uint8_t pif;       /* 0: 16b, 1: 32b, 2: 64b guard */
    uint8_t sts;       /* bits of the storage tag */
    uint8_t type;      /* 1, 2 or 3 */
    bool first;        /* it begins the metadata; otherwise it ends it */
};

struct pi_tags {
    uint16_t app, app_mask;
    pi_space space; /* of the first block; the reference tag counts up, with type 3 it doesn't */
};

/* What is checked, as in PRCHK; and the storage tag (STC). */
enum { PI_CHECK_REF = 1, PI_CHECK_APP = 2, PI_CHECK_GUARD = 4, PI_CHECK_STORAGE = 8 };

/* Where blocks and their metadata are: with extended blocks the strides are the same and meta is
 * data + block_size. */
struct pi_blocks {
    uint8_t *data, *meta;
    size_t data_stride, meta_stride, n;
};

/* The result of a check: block is the number of blocks if all are valid. */
struct pi_failure {
    size_t block;
    unsigned what;           /* one PI_CHECK_*; 0: nothing */
    pi_space found, expected; /* the guard, application tag, reference tag or storage tag */
};

unsigned pi_nbytes(uint8_t pif);       /* 8, 16, 16 */
unsigned pi_space_bits(uint8_t pif);   /* 32, 80, 48 */
/* Tags of the block that is n after the first. */
pi_space pi_space_after(const struct pi_format *format, pi_space space, uint64_t n);
void pi_generate(const struct pi_format *format, const struct pi_blocks *blocks, const struct pi_tags *tags);
struct pi_failure pi_check(const struct pi_format *format, const struct pi_blocks *blocks, const struct pi_tags *tags,
                           unsigned checks);

#endif
