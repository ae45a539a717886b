/* Commands that name many ranges (Dataset Management, Copy), and blocks marked by Write
 * Uncorrectable. */
#include "nvme_ctrl.h"

struct dsm_range {
    uint32_t attributes, blocks;
    uint64_t lba;
};
_Static_assert(sizeof(struct dsm_range) == 16, "DSM range");

struct copy_range { /* Source Range Entries, descriptor format 0 */
    uint8_t reserved[8];
    uint64_t lba;
    uint16_t nlb; /* 0-based */
    uint8_t reserved2[14];
};
_Static_assert(sizeof(struct copy_range) == 32, "source range entry");

static bool inside(const struct ns *ns, uint64_t lba, uint64_t blocks)
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
        if (!inside(ns, ranges[i].lba, ranges[i].blocks))
            return SC_LBA_RANGE;
    if (!(sqe->cdw11 & 4)) /* AD */
        return SC_SUCCESS;
    for (unsigned i = 0; i < n && !status; i++) {
        status = media_zero(&ns->media, ranges[i].lba << ns->lbads, (uint64_t)ranges[i].blocks << ns->lbads, true);
        if (!status)
            status = meta_zero(ns, ranges[i].lba, ranges[i].blocks);
        if (ns->n_bad)
            bad_clear(ns, ranges[i].lba, ranges[i].blocks);
    }
    return status;
}

static uint16_t copy_check(const struct ns *ns, const struct copy_range *ranges, unsigned n, uint64_t to,
                           uint32_t *result)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < n; i++) {
        uint32_t blocks = ranges[i].nlb + 1u;
        total += blocks;
        if (blocks > COPY_MSSRL || total > COPY_MCL)
            return SC_COMMAND_SIZE;
        *result = i;
        if (!inside(ns, ranges[i].lba, blocks))
            return SC_LBA_RANGE;
    }
    *result = 0;
    return inside(ns, to, total) ? SC_SUCCESS : SC_LBA_RANGE;
}

static uint32_t total_of(const struct copy_range *ranges, unsigned n)
{
    uint32_t total = 0;
    for (unsigned i = 0; i < n; i++)
        total += ranges[i].nlb + 1u;
    return total;
}

/* NVM Command Set 1.0, 3.2.2. On failure the result is the number of the first source range that
 * wasn't copied. */
uint16_t io_copy(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint32_t *result)
{
    struct copy_range ranges[COPY_MSRC + 1];
    unsigned n = (sqe->cdw12 & 0xff) + 1;
    uint64_t to = sqe->cdw10 | (uint64_t)sqe->cdw11 << 32;
    if (n > COPY_MSRC + 1)
        return SC_COMMAND_SIZE;
    if (ns->formatting)
        return SC_FORMAT_IN_PROGRESS;
    if ((sqe->cdw12 >> 8 & 15) || (sqe->cdw12 >> 20 & 15)) { /* descriptor format 0, no directives */
        ctrl->error_location = 49;
        return SC_INVALID_FIELD;
    }
    /* Protection information is copied unchanged. */
    if ((sqe->cdw12 >> 12 & 15) || (sqe->cdw12 >> 26 & 15))
        return SC_PROTECTION_INFO;
    uint16_t status = copy_from_host(ctrl, sqe, ranges, n * sizeof(ranges[0]));
    if (!status)
        status = copy_check(ns, ranges, n, to, result);
    if (!status && ns->zones)
        status = zones_write(ctrl, ns, &to, total_of(ranges, n), false);
    for (unsigned i = 0; i < n && !status; i++) {
        uint32_t blocks = ranges[i].nlb + 1u;
        *result = i;
        if (ns->n_bad && bad_overlaps(ns, ranges[i].lba, blocks))
            return SC_READ_ERROR;
        status =
            media_move(ctrl, &ns->media, ranges[i].lba << ns->lbads, to << ns->lbads, (uint64_t)blocks << ns->lbads);
        if (ns->ms && !status)
            status = media_move(ctrl, &ns->meta, ranges[i].lba * ns->ms, to * ns->ms, (uint64_t)blocks * ns->ms);
        if (ns->n_bad && !status)
            bad_clear(ns, to, blocks);
        to += blocks;
    }
    if (!status)
        *result = 0;
    return status;
}
