/* Get LBA Status (NVM Command Set 1.1, 4.2.1) and the LBA Status Information log page: what Write
 * Uncorrectable has marked. */
#include <stdlib.h>

#include "nvme_ctrl.h"

#define DESCRIPTORS 255u
#define SCAN 0x10
#define TRACKED 0x11

static bool bad(const struct ns *ns, uint64_t lba)
{
    return ns->bad[lba / 64] >> lba % 64 & 1;
}

uint16_t admin_lba_status(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint8_t page[8 + 16 * DESCRIPTORS] = {0};
    struct ns *ns;
    uint64_t lba = sqe->cdw10 | (uint64_t)sqe->cdw11 << 32, wanted = ((uint64_t)sqe->cdw12 + 1) * 4;
    uint64_t length = sqe->cdw13 & 0xffff;
    uint32_t action = sqe->cdw13 >> 24;
    uint16_t status = ns_find(ctrl, sqe->nsid, &ns);
    ctrl->error_location = 52;
    if (status)
        return status;
    if (action != SCAN && action != TRACKED)
        return SC_INVALID_FIELD;
    if (lba >= ns->nblocks || (length && length > ns->nblocks - lba))
        return SC_LBA_RANGE;
    if (wanted > ctrl->mdts_nbytes)
        return SC_INVALID_FIELD;
    uint64_t end = length ? lba + length : ns->nblocks, room = wanted < 8 ? 0 : (wanted - 8) / 16;
    uint32_t n = 0;
    bool full = false;
    room = room < DESCRIPTORS ? room : DESCRIPTORS;
    for (uint64_t at = lba; ns->n_bad && at < end;) {
        if (at % 64 == 0 && !ns->bad[at / 64]) {
            at += 64;
            continue;
        }
        if (!bad(ns, at)) {
            at++;
            continue;
        }
        uint64_t first = at;
        while (at < end && bad(ns, at))
            at++;
        if (n == room) {
            full = true;
            break;
        }
        put64(page, 8 + 16 * n, first);
        put32(page, 16 + 16 * n, (uint32_t)(at - first - 1));
        n++;
    }
    put32(page, 0, n);
    page[4] = full ? 1 : 2; /* CMPC: the buffer was full, or all blocks were checked */
    uint64_t valid = 8 + 16 * (uint64_t)n;
    return copy_to_host_padded(ctrl, sqe, page, valid < wanted ? valid : wanted, wanted);
}

uint8_t *lba_status_page(const struct emu_ctrl *ctrl, size_t *nbytes)
{
    uint8_t *page = calloc(1, 16 + 16 * EMU_MAX_NAMESPACES);
    if (!page)
        return NULL;
    unsigned at = 16;
    uint32_t n = 0, estimate = 0;
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES; i++) {
        const struct ns *ns = ctrl->namespaces[i];
        if (!ns || !ns->n_bad)
            continue;
        put32(page, at, ns->nsid);
        put32(page, at + 4, 0xffffffff); /* the whole namespace */
        page[at + 8] = TRACKED;
        at += 16;
        n++;
        estimate += (uint32_t)ns->n_bad;
    }
    put32(page, 0, at);
    put32(page, 4, n);
    put32(page, 8, estimate);
    put16(page, 14, ctrl->extras.lba_status_generation);
    *nbytes = at;
    return page;
}
