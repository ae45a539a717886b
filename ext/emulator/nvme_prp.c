/*
 * The client's memory: translation with a small cache of mappings, and Physical Region Pages (Base
 * 2.0, 4.1.1) in full: offset first page, lists, chained lists. A list lies in shared memory: each
 * entry is read once, and that value is used.
 */
#include "nvme_ctrl.h"

/* dma() found no window: ask the transport. */
void *dma_at(struct emu_ctrl *ctrl, uint64_t iova, uint64_t nbytes, bool write)
{
    struct emu_window window;
    bool own = region_window(ctrl, iova, &window);
    if (own || ctrl->host.dma_window) {
        if (!own && !ctrl->host.dma_window(ctrl->host.opaque, iova, &window))
            return NULL;
        ctrl->windows[ctrl->next_window] = window;
        ctrl->next_window = (ctrl->next_window + 1) % N_WINDOWS;
        uint64_t at = iova - window.iova;
        if (at >= window.nbytes || nbytes > window.nbytes - at || !(write ? window.writable : window.readable))
            return NULL;
        return (uint8_t *)window.ptr + at;
    }
    return ctrl->host.dma(ctrl->host.opaque, iova, nbytes, write);
}

/* Adds a segment, to the last one where they touch: fewer and longer copies. */
static inline unsigned add_segment(struct emu_ctrl *ctrl, unsigned n, void *ptr, uint64_t nbytes)
{
    struct iovec *last = n ? &ctrl->iov[n - 1] : NULL;
    if (last && (uint8_t *)last->iov_base + last->iov_len == ptr) {
        last->iov_len += nbytes;
        return n;
    }
    ctrl->iov[n] = (struct iovec){ptr, nbytes};
    return n + 1;
}

uint16_t prp_map_list(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool to_host, unsigned *n)
{
    const uint64_t page = ctrl->page_size;
    uint64_t first = page - (sqe->prp1 & (page - 1));
    void *ptr = dma(ctrl, sqe->prp1, first, to_host);
    if (!ptr)
        return SC_DATA_TRANSFER;
    unsigned segments = add_segment(ctrl, 0, ptr, first);
    nbytes -= first;

    if (sqe->prp2 & 7)
        return SC_PRP_OFFSET;
    uint64_t list_at = sqe->prp2;
    for (;;) {
        uint64_t room = (page - (list_at & (page - 1))) / 8; /* entries to the end of this list page */
        uint64_t wanted = (nbytes + page - 1) / page;
        bool chained = wanted > room; /* then the page's last entry points to the next list */
        uint64_t entries = chained ? room : wanted;
        const volatile uint64_t *list = dma(ctrl, list_at, entries * 8, false);
        if (!list)
            return SC_DATA_TRANSFER;
        for (uint64_t i = 0; i < entries - chained; i++) {
            uint64_t entry = list[i];
            uint64_t length = nbytes < page ? nbytes : page;
            if (UNLIKELY(entry & (page - 1)))
                return SC_PRP_OFFSET;
            ptr = dma(ctrl, entry, length, to_host);
            if (UNLIKELY(!ptr))
                return SC_DATA_TRANSFER;
            segments = add_segment(ctrl, segments, ptr, length);
            nbytes -= length;
        }
        if (!chained)
            break;
        list_at = list[entries - 1];
        /* Only the first list may start inside a page; this also bounds the chain, each further
         * page holding data entries. */
        if (list_at & (page - 1))
            return SC_PRP_OFFSET;
    }
    *n = segments;
    return SC_SUCCESS;
}

/* Overwrites the beginning of the data sent with a fault's payload: ctrl->iov[0..n). */
void forge(struct emu_ctrl *ctrl, unsigned n, const uint8_t *payload, size_t nbytes)
{
    for (unsigned i = 0; i < n && nbytes; i++) {
        size_t part = ctrl->iov[i].iov_len < nbytes ? ctrl->iov[i].iov_len : nbytes;
        memcpy(ctrl->iov[i].iov_base, payload, part);
        payload += part;
        nbytes -= part;
    }
}

/* Admin data to the client: `valid` bytes of data, then zeroes up to nbytes. */
uint16_t copy_to_host_padded(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, const void *data, uint64_t valid,
                             uint64_t nbytes)
{
    unsigned n;
    uint16_t status = prp_map(ctrl, sqe, nbytes, true, &n);
    if (status)
        return status;
    const uint8_t *from = data;
    for (unsigned i = 0; i < n; i++) {
        struct iovec *v = &ctrl->iov[i];
        size_t part = v->iov_len < valid ? v->iov_len : valid;
        memcpy(v->iov_base, from, part);
        memset((uint8_t *)v->iov_base + part, 0, v->iov_len - part);
        from += part;
        valid -= part;
    }
    if (ctrl->effect && ctrl->effect->payload)
        forge(ctrl, n, ctrl->effect->payload, ctrl->effect->payload_len);
    return SC_SUCCESS;
}

uint16_t copy_to_host(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, const void *data, uint64_t nbytes)
{
    return copy_to_host_padded(ctrl, sqe, data, nbytes, nbytes);
}

uint16_t copy_from_host(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, void *data, size_t nbytes)
{
    unsigned n;
    uint16_t status = prp_map(ctrl, sqe, nbytes, false, &n);
    if (status)
        return status;
    uint8_t *to = data;
    for (unsigned i = 0; i < n; i++) {
        memcpy(to, ctrl->iov[i].iov_base, ctrl->iov[i].iov_len);
        to += ctrl->iov[i].iov_len;
    }
    if (ctrl->effect && ctrl->effect->payload)
        memcpy(data, ctrl->effect->payload, ctrl->effect->payload_len < nbytes ? ctrl->effect->payload_len : nbytes);
    return SC_SUCCESS;
}
