/*
 * The client's memory as the device sees it: a sorted table of IOVA ranges, each a mapping of a
 * descriptor that came with DMA_MAP, or inaccessible when none came.
 *
 * A client may truncate the file behind a mapping at any time; touching the lost pages raises
 * SIGBUS. The guard below turns that into an event: the mapping is replaced by zeroes, `broken` is
 * set, and the server drops the client. Sealing the file instead would only work for memfds that
 * allow it, not for hugetlbfs or plain files.
 *
 * Owner: the server of one controller; used on its reactor's thread only.
 */
#ifndef NVME_ASYNC_EMULATOR_VFU_DMA_H
#define NVME_ASYNC_EMULATOR_VFU_DMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vfu_range {
    uint64_t iova, nbytes;
    char *base;       /* where iova lies in this process; NULL = inaccessible */
    void *map;        /* what mmap() gave, page aligned, of map_nbytes */
    size_t map_nbytes;
    bool readable, writable;
};

struct vfu_dma {
    struct vfu_range *ranges; /* sorted by iova, disjoint */
    unsigned n_ranges, capacity;
    unsigned last; /* where the latest lookup ended */
    bool broken;   /* a mapped file lost its pages: the client must be dropped */
};

void vfu_dma_init(struct vfu_dma *dma);
/* 0 or an errno: EEXIST overlap, EINVAL size or a file too short, ENOSPC table full. The descriptor
 * stays the caller's. */
int vfu_dma_map(struct vfu_dma *dma, uint64_t iova, uint64_t nbytes, uint64_t offset, uint32_t flags, int fd);
/* 0, or ENOENT when [iova, iova+nbytes) isn't exactly one mapping. */
int vfu_dma_unmap(struct vfu_dma *dma, uint64_t iova, uint64_t nbytes);
void vfu_dma_unmap_all(struct vfu_dma *dma);
/* The range that holds iova; NULL if there is none, or it is inaccessible. */
const struct vfu_range *vfu_dma_range(struct vfu_dma *dma, uint64_t iova);
/* See emu_host.dma. */
void *vfu_dma_find(struct vfu_dma *dma, uint64_t iova, size_t nbytes, bool write);

/* The SIGBUS handler is one for the process and counted: install before the first mapping, remove
 * after the last. The previous SIGBUS handler still handles all other faults. */
void vfu_guard_install(void);
void vfu_guard_remove(void);
/* The table whose memory this thread is about to access; NULL = none. */
void vfu_guard_enter(struct vfu_dma *dma);

#endif
