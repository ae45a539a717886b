/*
 * Reads through bounce pages that transfer less than requested. NVMe reports no residual count, so
 * each page carries two marks before the controller fills it: at the end of its first 512 bytes (no
 * logical block is smaller) and at its own end. A transfer that ends early leaves a mark unchanged.
 * The mark is random for each process, so data on the media can't imitate it.
 */
#ifndef NVME_ASYNC_HOTPATH_SHORT_H
#define NVME_ASYNC_HOTPATH_SHORT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define NVS_PAGE 4096u
#define NVS_BLOCK 512u /* the smallest logical block */

/* Data Transfer Error (Base 2.0, figure 102): what a read that ended early completes with. */
#define NVS_STATUS 0x04

static uint64_t nvs_mark;

/* Sets the mark of this file's copy. Once, before the first nvs_prepare(). */
static inline void nvs_set_mark(uint64_t mark)
{
    nvs_mark = mark;
}

/* Before the controller gets the pages. nbytes is a multiple of 512. */
static inline void nvs_prepare(uint8_t *data, uint64_t nbytes)
{
    for (uint64_t at = 0; at < nbytes; at += NVS_PAGE) {
        const uint64_t end = nbytes - at < NVS_PAGE ? nbytes : at + NVS_PAGE;
        memcpy(data + at + NVS_BLOCK - 8, &nvs_mark, 8);
        memcpy(data + end - 8, &nvs_mark, 8);
    }
}

/* Whether the mark at `at` is unchanged. */
static inline bool nvs_stands(const uint8_t *at)
{
    return !memcmp(at, &nvs_mark, 8);
}

/*
 * After a successful completion: 0, or NVS_STATUS for a transfer that ended early. A controller
 * that moved no data at all (one without media, for benchmarks) succeeds, and the read returns
 * zeroes, never the pages' former content.
 */
static inline uint16_t nvs_finish(uint8_t *data, uint64_t nbytes)
{
    bool filled = false, missing = false;
    for (uint64_t at = 0; at < nbytes; at += NVS_PAGE) {
        const uint64_t end = nbytes - at < NVS_PAGE ? nbytes : at + NVS_PAGE;
        const bool first = nvs_stands(data + at + NVS_BLOCK - 8), last = nvs_stands(data + end - 8);
        filled |= !first || !last;
        missing |= first || last;
    }
    if (__builtin_expect(!missing, 1))
        return 0;
    if (filled)
        return NVS_STATUS;
    memset(data, 0, nbytes);
    return 0;
}

#endif
