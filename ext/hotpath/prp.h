/*
 * Physical Region Pages (NVMe Base 2.0, 4.1.1). Memory that a device can access is contiguous in
 * IOVA here, so a list is computed from one address.
 *
 * Callers: any thread. The functions keep no state; prp_build() writes only to what its caller
 * passes.
 */
#ifndef NVME_ASYNC_HOTPATH_PRP_H
#define NVME_ASYNC_HOTPATH_PRP_H

#include "layout.h"

/* The number of pages that `nbytes` at `iova` touch. */
static inline uint64_t prp_pages(uint64_t iova, uint64_t nbytes)
{
    return ((iova & (NVQ_PAGE - 1)) + nbytes + NVQ_PAGE - 1) / NVQ_PAGE;
}

/*
 * The bytes of list memory for up to `entries` entries, chain pointers included, for lists that
 * start on a page or, if shorter than one, on a multiple of their size (so that they don't cross a
 * page end).
 */
static inline uint32_t prp_list_bytes(uint32_t entries)
{
    const uint32_t per_page = NVQ_PAGE / 8;
    if (entries <= per_page) {
        uint32_t bytes = 64;
        while (bytes < entries * 8)
            bytes *= 2;
        return bytes;
    }
    /* Every page except the last uses its last entry for the pointer to the next one. */
    uint32_t pages = (entries - 1 + per_page - 2) / (per_page - 1);
    return pages * NVQ_PAGE;
}

/* Nonzero if prp_list_bytes() can have returned that. */
static inline int prp_list_bytes_valid(uint32_t bytes)
{
    return bytes >= 64 && (bytes % NVQ_PAGE == 0 || (bytes < NVQ_PAGE && (bytes & (bytes - 1)) == 0));
}

/*
 * Fills prp[0] and prp[1] of a command that transfers nbytes at iova. A list goes to `list` (its
 * own address list_iova, qword aligned, room for list_bytes); if it reaches a page end with further
 * entries, the last entry of that page points to the next page (4.1.1: "the last entry … is a
 * pointer to the next PRP List"), which here is the memory that follows. The entry after the last
 * is poisoned.
 *
 * Returns 0, or -1 when the list has no room.
 */
static inline int prp_build(uint64_t *prp, uint64_t iova, uint64_t nbytes, uint64_t *list, uint64_t list_iova,
                            uint32_t list_bytes)
{
    if (nbytes == 0) {
        prp[0] = prp[1] = 0;
        return 0;
    }
    prp[0] = iova;
    const uint64_t pages = prp_pages(iova, nbytes);
    if (pages == 1) {
        prp[1] = 0; /* reserved then */
        return 0;
    }
    uint64_t page = (iova & ~(uint64_t)(NVQ_PAGE - 1)) + NVQ_PAGE;
    if (pages == 2) {
        prp[1] = page;
        return 0;
    }
    prp[1] = list_iova;
    uint64_t left = pages - 1;
    const uint32_t room = list_bytes / 8;
    const uint32_t first = (uint32_t)((list_iova & (NVQ_PAGE - 1)) / 8); /* index of list[0] within its page */
    uint32_t at = 0;
    if (first + left <= NVQ_PAGE / 8) { /* all on one page: no pointer, and a loop that compilers unroll */
        const uint32_t n = (uint32_t)left;
        if (n > room)
            return -1;
        for (uint32_t i = 0; i < n; i++, page += NVQ_PAGE)
            list[i] = page;
        if (n < room)
            list[n] = NVQ_POISON;
        return 0;
    }
    for (;;) {
        if (at == room)
            return -1;
        if (((first + at + 1) & (NVQ_PAGE / 8 - 1)) == 0 && left > 1) {
            list[at] = list_iova + 8ull * (at + 1);
            at++;
            continue;
        }
        list[at++] = page;
        page += NVQ_PAGE;
        if (--left == 0)
            break;
    }
    if (at < room)
        list[at] = NVQ_POISON;
    return 0;
}

#endif
