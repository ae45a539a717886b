/* Dataset Management, and blocks marked by Write Uncorrectable. */
#include "nvme_ctrl.h"

struct dsm_range {
    uint32_t attributes, blocks;
    uint64_t lba;
};
_Static_assert(sizeof(struct dsm_range) == 16, "DSM range");

bool ns_inside(const struct ns *ns, uint64_t lba, uint64_t blocks)
{
    return lba <= ns->nblocks && blocks <= ns->nblocks - lba;
}

static bool bad_get(const struct ns *ns, uint64_t lba)
{
    return ns->bad[lba / 64] >> lba % 64 & 1;
}

bool bad_overlaps(const struct ns *ns, uint64_t lba, uint64_t blocks)
{
    for (uint64_t i = lba; i < lba + blocks; i++)
        if (bad_get(ns, i))
            return true;
    return false;
}

/* Whatever writes a block makes it readable again. */
void bad_clear(struct ns *ns, uint64_t lba, uint64_t blocks)
{
    for (uint64_t i = lba; i < lba + blocks && ns->n_bad; i++) {
        while (i % 64 == 0 && lba + blocks - i >= 64 && !ns->bad[i / 64])
            i += 64; /* ranges can be long, and bad blocks are few */
        if (i == lba + blocks)
            return;
        ns->n_bad -= bad_get(ns, i);
        ns->bad[i / 64] &= ~(1ull << i % 64);
    }
}

uint16_t io_write_uncorrectable(struct ns *ns, uint64_t lba, uint32_t blocks)
{
    for (uint64_t i = lba; i < lba + blocks; i++) {
        ns->n_bad += !bad_get(ns, i);
        ns->bad[i / 64] |= 1ull << i % 64;
    }
    return SC_SUCCESS;
}

/* NVM Command Set 1.0, 3.2.3. Deallocate is done; the other attributes are hints. All ranges are
 * checked before the first is touched. */
uint16_t io_dsm(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct dsm_range ranges[256];
    unsigned n = (sqe->cdw10 & 0xff) + 1;
    if (ns->formatting)
        return SC_FORMAT_IN_PROGRESS;
    uint16_t status = copy_from_host(ctrl, sqe, ranges, n * sizeof(ranges[0]));
    if (status)
        return status;
    for (unsigned i = 0; i < n; i++)
        if (!ns_inside(ns, ranges[i].lba, ranges[i].blocks))
            return SC_LBA_RANGE;
    if (!(sqe->cdw11 & 4)) /* AD */
        return SC_SUCCESS;
    for (unsigned i = 0; i < n && !status; i++) {
        status = media_zero(&ns->media, ranges[i].lba << ns->lbads, (uint64_t)ranges[i].blocks << ns->lbads, true);
        if (!ctrl->features[FEAT_WRITE_CACHE])
            undo_commit(&ns->media, ranges[i].lba << ns->lbads, (uint64_t)ranges[i].blocks << ns->lbads);
        if (!status)
            status = meta_zero(ns, ranges[i].lba, ranges[i].blocks);
        if (ns->n_bad)
            bad_clear(ns, ranges[i].lba, ranges[i].blocks);
    }
    return status;
}
