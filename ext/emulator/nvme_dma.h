/* The client's memory on the hot path: recently translated addresses, and one or two PRPs. Included
 * by nvme_ctrl.h. */
#ifndef NVME_ASYNC_EMULATOR_NVME_DMA_H
#define NVME_ASYNC_EMULATOR_NVME_DMA_H

static inline const struct emu_window *window_find(struct emu_ctrl *ctrl, uint64_t iova, uint64_t nbytes, bool write)
{
    for (unsigned i = 0; i < N_WINDOWS; i++) {
        const struct emu_window *w = &ctrl->windows[i];
        uint64_t at = iova - w->iova;
        if (at < w->nbytes && nbytes <= w->nbytes - at && (write ? w->writable : w->readable))
            return w;
    }
    return NULL;
}

/* The client's [iova, iova + nbytes) as one pointer, or NULL. */
static inline void *dma(struct emu_ctrl *ctrl, uint64_t iova, uint64_t nbytes, bool write)
{
    const struct emu_window *w = window_find(ctrl, iova, nbytes, write);
    return LIKELY(w) ? (uint8_t *)w->ptr + (iova - w->iova) : dma_at(ctrl, iova, nbytes, write);
}

#define PSDT 0xc0 /* of nvme_sqe.flags: an SGL, not PRPs */

/* The data of a command as ctrl->iov[0..*n): PRP Entry layout of Base 2.0, 4.1.1. One page and two
 * pages are done here. */
static inline uint16_t prp_map(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool to_host,
                               unsigned *n)
{
    if (UNLIKELY(sqe->flags & PSDT))
        return sgl_map(ctrl, sqe, nbytes, to_host, n);
    uint64_t in_page = ctrl->page_size - (sqe->prp1 & page_mask(ctrl));
    if (UNLIKELY(sqe->prp1 & 3))
        return SC_PRP_OFFSET;
    if (nbytes > in_page + ctrl->page_size)
        return prp_map_list(ctrl, sqe, nbytes, to_host, n);
    uint64_t first = nbytes < in_page ? nbytes : in_page;
    void *ptr = dma(ctrl, sqe->prp1, first, to_host);
    if (UNLIKELY(!ptr))
        return SC_DATA_TRANSFER;
    ctrl->iov[0] = (struct iovec){ptr, first};
    *n = 1;
    if (nbytes > first) {
        if (UNLIKELY(sqe->prp2 & page_mask(ctrl)))
            return SC_PRP_OFFSET;
        ptr = dma(ctrl, sqe->prp2, nbytes - first, to_host);
        if (UNLIKELY(!ptr))
            return SC_DATA_TRANSFER;
        ctrl->iov[1] = (struct iovec){ptr, nbytes - first};
        *n = 2;
    }
    return SC_SUCCESS;
}

#endif
