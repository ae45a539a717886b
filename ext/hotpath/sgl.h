/*
 * Scatter Gather Lists (NVMe Base 2.0, 4.1.2) of I/O commands over PCIe, for data that PRPs can't
 * describe: at any byte, in any number of places. One place is a data block in the command itself;
 * several are one Last Segment, which lies where the tracker's PRP list would: so it belongs to the
 * command until its completion, in this process and in a successor's.
 *
 * The list area ends with a checksum of the descriptors. They name memory that follows from nothing
 * else, so a successor couldn't find a damaged one otherwise.
 *
 * Callers: any thread. The functions keep no state.
 */
#ifndef NVME_ASYNC_HOTPATH_SGL_H
#define NVME_ASYNC_HOTPATH_SGL_H

#include <stdbool.h>

#include "layout.h"

#define NVQ_PSDT 0xc0u /* of nvq_sqe.flags */
#define NVQ_PSDT_SGL 0x40u /* 01b: data by SGL, metadata contiguous */
#define NVQ_PSDT_BOTH 0x80u /* 10b: metadata by SGL too, whose first descriptor is at MPTR */
#define NVQ_SGL_DATA_BLOCK 0x00u
#define NVQ_SGL_LAST_SEGMENT 0x30u

struct nvq_sgl {
    uint64_t address;
    uint32_t length;
    uint8_t reserved[3];
    uint8_t id; /* type 7:4, subtype 3:0 */
};
_Static_assert(sizeof(struct nvq_sgl) == 16, "SGL descriptor");

/* The most descriptors of a list area. At least 3: the shortest has 64 bytes. */
static inline uint32_t nvq_sgl_room(uint32_t list_bytes)
{
    return list_bytes / 16 - 1;
}

/* Descriptor i of a list area. */
static inline struct nvq_sgl *nvq_sgl_at(uint64_t *list, uint32_t i)
{
    return (struct nvq_sgl *)(void *)list + i;
}

/* The checksum of the first n descriptors. */
static inline uint64_t nvq_sgl_sum(const uint64_t *list, uint32_t n)
{
    uint64_t sum = 0x9e3779b97f4a7c15ull + n;
    for (uint32_t i = 0; i < 2 * n; i++)
        sum = (sum ^ list[i]) * 0x2127599bf4325c37ull;
    return sum;
}

/* The list is filled in: n descriptors, n at most nvq_sgl_room(). Seals it and points the command
 * to it. */
static inline void nvq_sgl_segment(struct nvq_sqe *sqe, uint64_t *list, uint64_t list_iova, uint32_t list_bytes,
                                   uint32_t n)
{
    list[list_bytes / 8 - 1] = nvq_sgl_sum(list, n);
    sqe->flags = (uint8_t)((sqe->flags & ~NVQ_PSDT) | NVQ_PSDT_SGL);
    sqe->prp1 = list_iova;
    sqe->prp2 = (uint64_t)NVQ_SGL_LAST_SEGMENT << 56 | 16ull * n;
}

/* The command's data are nbytes at iova. */
static inline void nvq_sgl_block(struct nvq_sqe *sqe, uint64_t iova, uint32_t nbytes)
{
    sqe->flags = (uint8_t)((sqe->flags & ~NVQ_PSDT) | NVQ_PSDT_SGL);
    sqe->prp1 = iova;
    sqe->prp2 = (uint64_t)NVQ_SGL_DATA_BLOCK << 56 | nbytes;
}

/* The number of descriptors in the list area of a command with an SGL; 0: it has one, in itself. */
static inline uint32_t nvq_sgl_count(const struct nvq_sqe *sqe)
{
    return sqe->prp2 >> 56 == NVQ_SGL_LAST_SEGMENT ? (uint32_t)sqe->prp2 / 16 : 0;
}

/* The number of descriptors in use in a list area, those of metadata included; more than the area
 * has room for if they are damaged. */
static inline uint32_t nvq_sgl_used(const struct nvq_sqe *sqe, const uint64_t *list, uint32_t list_bytes)
{
    const uint32_t n = nvq_sgl_count(sqe), room = nvq_sgl_room(list_bytes);
    if ((sqe->flags & NVQ_PSDT) != NVQ_PSDT_BOTH || n >= room)
        return n;
    const uint64_t root = list[2 * n + 1];
    return n + 1 + (root >> 56 == NVQ_SGL_LAST_SEGMENT ? (uint32_t)root / 16 : 0);
}

/*
 * The metadata of a command whose data were described by the functions above: n places, filled in
 * behind the data's descriptors and one free one, to which MPTR points (PSDT 10b; Base 2.0, figure
 * 87). A single place, nbytes at iova, is described there. There is room for all of them.
 */
static inline void nvq_sgl_metadata(struct nvq_sqe *sqe, uint64_t *list, uint64_t list_iova, uint32_t list_bytes,
                                    uint32_t n, uint64_t iova, uint32_t nbytes)
{
    const uint32_t root = nvq_sgl_count(sqe);
    list[2 * root] = n == 1 ? iova : list_iova + 16ull * (root + 1);
    list[2 * root + 1] =
        n == 1 ? (uint64_t)NVQ_SGL_DATA_BLOCK << 56 | nbytes : (uint64_t)NVQ_SGL_LAST_SEGMENT << 56 | 16ull * n;
    sqe->flags = (uint8_t)((sqe->flags & ~NVQ_PSDT) | NVQ_PSDT_BOTH);
    sqe->mptr = list_iova + 16ull * root;
    list[list_bytes / 8 - 1] = nvq_sgl_sum(list, nvq_sgl_used(sqe, list, list_bytes));
}

/* Adds the lengths of n data blocks to *total; false if one has another type. */
static inline bool nvq_sgl_add(const uint64_t *list, uint32_t n, uint64_t *total)
{
    for (uint32_t i = 0; i < n; i++) {
        if (list[2 * i + 1] >> 32)
            return false;
        *total += (uint32_t)list[2 * i + 1];
    }
    return true;
}

/* Is the SGL of a command, whose data_nbytes lie at data_iova (UINT64_MAX: unknown), one that this
 * build makes, and whole? */
static inline bool nvq_sgl_fits(const struct nvq_sqe *sqe, uint64_t data_iova, uint32_t data_nbytes,
                                const uint64_t *list, uint64_t list_iova, uint32_t list_bytes)
{
    const bool both = (sqe->flags & NVQ_PSDT) == NVQ_PSDT_BOTH;
    if ((sqe->flags & NVQ_PSDT) != NVQ_PSDT_SGL && !both)
        return false;
    const uint32_t n = nvq_sgl_count(sqe), used = nvq_sgl_used(sqe, list, list_bytes);
    if (used > nvq_sgl_room(list_bytes) || (used && list[list_bytes / 8 - 1] != nvq_sgl_sum(list, used)))
        return false;
    uint64_t total = 0;
    if (both) {
        const bool several = used > n + 1;
        if (sqe->mptr != list_iova + 16ull * n || (several && list[2 * n] != sqe->mptr + 16) ||
            !nvq_sgl_add(list + 2 * (several ? n + 1 : n), several ? used - n - 1 : 1, &total))
            return false;
    }
    if (!n)
        return sqe->prp2 == ((uint64_t)NVQ_SGL_DATA_BLOCK << 56 | data_nbytes) &&
               (data_iova == UINT64_MAX || sqe->prp1 == data_iova);
    total = 0;
    return data_iova == UINT64_MAX && sqe->prp1 == list_iova &&
           sqe->prp2 == ((uint64_t)NVQ_SGL_LAST_SEGMENT << 56 | 16ull * n) && nvq_sgl_add(list, n, &total) &&
           total == data_nbytes;
}

#endif
