/*
 * A power loss: what the media hold afterwards. A block that was in a volatile write cache, or in a
 * write in progress, is old or new, never a mixture: AWUPF is 0 (Base 2.1, Identify Controller).
 * Which of the two depends only on seed, namespace and LBA, so one seed gives one outcome, whatever
 * the order of the blocks.
 */
#include "nvme_ctrl.h"

/* One step of splitmix64. */
static uint64_t mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15ull;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ value >> 27) * 0x94d049bb133111ebull;
    return value ^ value >> 31;
}

/* Does this block hold what was last written to it? attempt: 0 for the cache, else different for
 * each write in progress. */
bool outage_keeps(const struct outage *outage, uint32_t nsid, uint64_t lba, unsigned attempt)
{
    return outage->tear && mix(mix(mix(outage->seed) ^ nsid ^ (uint64_t)attempt << 32) ^ lba) & 1;
}

struct strike {
    const struct outage *outage;
    unsigned attempt;
};

/* The next nbytes of the host's data, out of ctrl->iov, which is used up. */
static void take(struct iovec **iov, uint8_t *to, size_t nbytes)
{
    while (nbytes) {
        size_t part = (*iov)->iov_len < nbytes ? (*iov)->iov_len : nbytes;
        memcpy(to, (*iov)->iov_base, part);
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + part;
        (*iov)->iov_len -= part;
        if (!(*iov)->iov_len)
            (*iov)++;
        to += part;
        nbytes -= part;
    }
}

/* A write in progress: some of its blocks are on the medium. Zones and metadata are written whole
 * or not at all. */
static void tear_write(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, void *arg)
{
    struct strike *strike = arg;
    struct ns *ns;
    unsigned n;
    if (sqe->opcode != IO_WRITE || ns_find(ctrl, sqe->nsid, &ns) || ns->zones || ns->kv || ns->ms)
        return;
    uint64_t lba = sqe->cdw10 | (uint64_t)sqe->cdw11 << 32;
    uint32_t blocks = (sqe->cdw12 & 0xffff) + 1;
    size_t block = (size_t)1 << ns->lbads;
    if (lba >= ns->nblocks || blocks > ns->nblocks - lba || (uint64_t)blocks << ns->lbads > ctrl->mdts_nbytes ||
        block > BOUNCE_SIZE || prp_map(ctrl, sqe, (uint64_t)blocks << ns->lbads, false, &n))
        return;
    strike->attempt++;
    struct iovec *from = ctrl->iov;
    for (uint32_t i = 0; i < blocks; i++) {
        struct iovec iov = {ctrl->bounce, block};
        take(&from, ctrl->bounce, block);
        if (outage_keeps(strike->outage, sqe->nsid, lba + i, strike->attempt))
            media_write(&ns->media, (lba + i) << ns->lbads, &iov, 1);
    }
}

void outage_strike(struct emu_ctrl *ctrl, const struct outage *outage)
{
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++) {
        struct ns *ns = ns_allocated(ctrl, nsid);
        if (ns)
            undo_restore(&ns->media, outage, nsid, ns->lbads);
    }
    struct strike strike = {.outage = outage};
    if (outage->tear)
        held_each_waiting(ctrl, tear_write, &strike);
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++) {
        struct ns *ns = ns_allocated(ctrl, nsid);
        if (ns)
            undo_flush(&ns->media); /* what is there now is on the medium */
    }
}
