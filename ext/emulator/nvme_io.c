/*
 * The NVM command set (NVM Command Set 1.0, 3.2): read, write, compare, write zeroes, verify,
 * flush; the rest is in nvme_ranges.c and nvme_resv.c. Commands execute to the end before the next
 * one starts, except where a disk has to be waited for.
 */
#include "nvme_ctrl.h"

#define CDW12_FUA (1u << 30)
#define CDW12_PRINFO (0xfu << 26)
#define CDW12_DEAC (1u << 25)
#define CDW12_DTYPE (0xfu << 20)

struct extent {
    uint64_t lba, offset, nbytes;
    uint32_t blocks;
};

/* What every command with SLBA and NLB has to pass. */
static inline uint16_t extent_check(struct emu_ctrl *ctrl, const struct ns *ns, const struct nvme_sqe *sqe,
                                    uint64_t limit, struct extent *e)
{
    e->lba = sqe->cdw10 | (uint64_t)sqe->cdw11 << 32;
    e->blocks = (sqe->cdw12 & 0xffff) + 1;
    e->nbytes = (uint64_t)e->blocks << ns->lbads;
    e->offset = e->lba << ns->lbads;
    if (UNLIKELY(ns->formatting))
        return SC_FORMAT_IN_PROGRESS;
    if (UNLIKELY(e->nbytes > limit)) {
        ctrl->error_location = 48;
        return SC_INVALID_FIELD;
    }
    if (UNLIKELY(e->lba >= ns->nblocks || e->blocks > ns->nblocks - e->lba))
        return SC_LBA_RANGE;
    /* Without protection information its checks can't be requested. */
    if (UNLIKELY(sqe->cdw12 & CDW12_PRINFO && !ns->dps))
        return SC_PROTECTION_INFO;
    /* Formats beyond the first 16-bit one are for hosts that know them (NVM Command Set 1.1,
     * 5.3.1.4). */
    if (UNLIKELY(ns->pif && !ctrl->host_behaviour[HOST_BEHAVIOUR_LBAFEE]))
        return SC_INVALID_NAMESPACE;
    return SC_SUCCESS;
}

/* After a change of a file: synchronizes it before the completion, if the command or the cache's
 * setting requires it. */
static inline uint16_t durable(struct emu_ctrl *ctrl, struct ns *ns, struct sq *sq, const struct nvme_sqe *sqe,
                               uint64_t offset, uint64_t nbytes)
{
    if (LIKELY(ns->media.kind != EMU_MEDIUM_FILE && !ns->media.undo))
        return SC_SUCCESS;
    if (!(sqe->cdw12 & CDW12_FUA) && ctrl->features[FEAT_WRITE_CACHE])
        return SC_SUCCESS;
    if (ns->media.undo) {
        undo_commit(&ns->media, offset, nbytes);
        return SC_SUCCESS;
    }
    return sync_start(ctrl, ns, sq, sqe, false);
}

static uint16_t media_failed(struct emu_ctrl *ctrl, uint16_t status)
{
    if (status == SC_READ_ERROR || status == SC_WRITE_FAULT)
        ctrl->media_errors++;
    return status;
}

/*
 * A fault's payload is what the data begin with: for the host where it reads them, on the medium
 * where it writes them. The host's own memory is not touched by a write.
 */
static uint16_t forge_read(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes)
{
    unsigned n;
    uint16_t status = prp_map(ctrl, sqe, nbytes, true, &n);
    if (!status)
        forge(ctrl, n, ctrl->effect->payload, ctrl->effect->payload_len);
    return status;
}

static uint16_t forge_write(struct emu_ctrl *ctrl, struct ns *ns, const struct extent *e)
{
    size_t nbytes = ctrl->effect->payload_len < e->nbytes ? ctrl->effect->payload_len : (size_t)e->nbytes;
    struct iovec iov = {(void *)ctrl->effect->payload, nbytes};
    return nbytes ? media_write(&ns->media, e->offset, &iov, 1) : SC_SUCCESS;
}

static inline bool forges(const struct emu_ctrl *ctrl)
{
    return UNLIKELY(ctrl->effect != NULL) && ctrl->effect->payload;
}

static uint16_t io_read(struct emu_ctrl *ctrl, struct sq *sq, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct extent e;
    unsigned n;
    uint16_t status = extent_check(ctrl, ns, sqe, ctrl->mdts_nbytes, &e);
    if (UNLIKELY(status))
        return status;
    status = ns->ms ? SC_SUCCESS : prp_map(ctrl, sqe, e.nbytes, true, &n);
    if (UNLIKELY(status))
        return status;
    if (UNLIKELY(ns->zones) && (status = zones_read(ns, e.lba, e.blocks)))
        return status;
    if (UNLIKELY(ns->n_bad && bad_overlaps(ns, e.lba, e.blocks)))
        return media_failed(ctrl, SC_READ_ERROR);
    status = UNLIKELY(ns->ms) ? meta_execute(ctrl, ns, sqe, e.lba, e.blocks)
                              : media_read(&ns->media, e.offset, ctrl->iov, n);
    if (forges(ctrl) && !status)
        status = forge_read(ctrl, sqe, e.nbytes);
    if (UNLIKELY(status))
        return media_failed(ctrl, status);
    ctrl->counters.commands_read++;
    ctrl->counters.bytes_read += e.nbytes;
    if (ns->media.kind != EMU_MEDIUM_NULL)
        ctrl->moved += e.nbytes;
    ctrl->blocks_read += e.nbytes >> 9;
    /* FUA on a read: what was read must be on the medium, not in the cache alone. */
    return UNLIKELY(sqe->cdw12 & CDW12_FUA) ? durable(ctrl, ns, sq, sqe, e.offset, e.nbytes) : SC_SUCCESS;
}

static uint16_t io_write(struct emu_ctrl *ctrl, struct sq *sq, struct ns *ns, const struct nvme_sqe *sqe,
                         uint32_t *result)
{
    struct extent e;
    unsigned n;
    uint16_t status = extent_check(ctrl, ns, sqe, ctrl->mdts_nbytes, &e);
    if (UNLIKELY(status))
        return status;
    if (UNLIKELY(sqe->cdw12 & CDW12_DTYPE) && (status = directive_check(ctrl, ns, sqe)))
        return status;
    if (LIKELY(!ns->ms)) {
        status = prp_map(ctrl, sqe, e.nbytes, false, &n);
        if (UNLIKELY(status))
            return status;
    }
    if (UNLIKELY(ns->zones)) {
        status = zones_write(ctrl, ns, &e.lba, e.blocks, sqe->opcode == IO_ZONE_APPEND);
        if (status)
            return status;
        e.offset = e.lba << ns->lbads;
        if (sqe->opcode == IO_ZONE_APPEND) {
            *result = (uint32_t)e.lba;
            ctrl->result_high = (uint32_t)(e.lba >> 32);
        }
    }
    status = UNLIKELY(ns->ms) ? meta_execute(ctrl, ns, sqe, e.lba, e.blocks)
                              : media_write(&ns->media, e.offset, ctrl->iov, n);
    if (forges(ctrl) && !status)
        status = forge_write(ctrl, ns, &e);
    if (UNLIKELY(status))
        return media_failed(ctrl, status);
    if (UNLIKELY(ns->n_bad))
        bad_clear(ns, e.lba, e.blocks);
    ctrl->counters.commands_written++;
    ctrl->counters.bytes_written += e.nbytes;
    if (ns->media.kind != EMU_MEDIUM_NULL)
        ctrl->moved += e.nbytes;
    ctrl->blocks_written += e.nbytes >> 9;
    if (UNLIKELY(ns->n_handles))
        fdp_write(ctrl, ns, sqe, e.nbytes);
    if (UNLIKELY(ns->streams.enabled) && CDW12_DTYPE_OF(sqe->cdw12) == DIRECTIVE_STREAMS)
        streams_write(ctrl, ns, sqe);
    return durable(ctrl, ns, sq, sqe, e.offset, e.nbytes);
}

static uint16_t io_compare(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct extent e;
    unsigned n;
    uint16_t status = extent_check(ctrl, ns, sqe, ctrl->mdts_nbytes, &e);
    if (!status && !ns->ms)
        status = prp_map(ctrl, sqe, e.nbytes, false, &n);
    if (status)
        return status;
    if (ns->n_bad && bad_overlaps(ns, e.lba, e.blocks))
        return media_failed(ctrl, SC_READ_ERROR);
    ctrl->counters
        .commands_read++; /* the SMART log's host reads: Compare is one, Verify is not, and both read data units */
    ctrl->blocks_read += e.nbytes >> 9;
    if (ns->ms)
        return media_failed(ctrl, meta_execute(ctrl, ns, sqe, e.lba, e.blocks));
    return media_failed(ctrl, media_compare(ctrl, &ns->media, e.offset, ctrl->iov, n));
}

static uint16_t io_write_zeroes(struct emu_ctrl *ctrl, struct sq *sq, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct extent e;
    uint16_t status = extent_check(ctrl, ns, sqe, UINT64_MAX, &e);
    if (!status && ns->zones)
        status = zones_write(ctrl, ns, &e.lba, e.blocks, false);
    if (!status)
        status = media_zero(&ns->media, e.offset, e.nbytes, sqe->cdw12 & CDW12_DEAC);
    if (!status)
        status = meta_zero(ns, e.lba, e.blocks);
    if (!status && ns->dps)
        status = meta_protect_zeroes(ctrl, ns, sqe, e.lba, e.blocks);
    if (status)
        return media_failed(ctrl, status);
    if (ns->n_bad)
        bad_clear(ns, e.lba, e.blocks);
    return durable(ctrl, ns, sq, sqe, e.offset, e.nbytes);
}

static uint16_t io_verify(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct extent e;
    uint16_t status = extent_check(ctrl, ns, sqe, 4096ull << VSL, &e);
    if (status)
        return status;
    if (ns->n_bad && bad_overlaps(ns, e.lba, e.blocks))
        return media_failed(ctrl, SC_READ_ERROR);
    ctrl->blocks_read += e.nbytes >> 9;
    if (ns->ms)
        return media_failed(ctrl, meta_execute(ctrl, ns, sqe, e.lba, e.blocks));
    return media_failed(ctrl, media_verify(ctrl, &ns->media, e.offset, e.nbytes));
}

static uint16_t write_uncorrectable(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct extent e;
    uint16_t status = extent_check(ctrl, ns, sqe, UINT64_MAX, &e);
    if (!status && ns->zones)
        status = zones_write(ctrl, ns, &e.lba, e.blocks, false);
    return status ? status : io_write_uncorrectable(ns, e.lba, e.blocks);
}

/* What the zoned command set adds. */
static uint16_t io_zoned(struct emu_ctrl *ctrl, struct sq *sq, struct ns *ns, const struct nvme_sqe *sqe,
                         uint32_t *result)
{
    uint64_t nbytes = ((uint64_t)(sqe->cdw12 & 0xffff) + 1) << ns->lbads;
    switch (sqe->opcode) {
    case IO_ZONE_SEND:
        return zones_send(ctrl, ns, sqe);
    case IO_ZONE_RECEIVE:
        return zones_receive(ctrl, ns, sqe);
    case IO_ZONE_APPEND:
        if (ctrl->config.extras.zasl && nbytes > 4096ull << ctrl->config.extras.zasl) {
            ctrl->error_location = 48;
            return SC_INVALID_FIELD;
        }
        return io_write(ctrl, sq, ns, sqe, result);
    default:
        return SC_INVALID_OPCODE;
    }
}

uint16_t io_execute(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint32_t *result)
{
    struct ns *ns;
    uint16_t status;
    if (UNLIKELY(sqe->flags & 0xc3) && (status = sgl_objection(ctrl, sqe)))
        return status;
    if (UNLIKELY(ctrl->extras.sanitize.state > 1)) {
        uint16_t forbidden = extras_forbid(ctrl, sqe, false);
        if (forbidden)
            return forbidden;
    }
    if (sqe->opcode == IO_FLUSH && sqe->nsid == NSID_ALL)
        return sync_start(ctrl, NULL, sq, sqe, false);
    status = ns_find(ctrl, sqe->nsid, &ns);
    if (UNLIKELY(status))
        return status;
    if (UNLIKELY(ns->anagrpid) && (status = ana_status(ctrl, ns)))
        return status;
    if (UNLIKELY(ns->resv.n_registrants) && resv_conflict(ctrl, ns, sqe->opcode))
        return SC_RESERVATION_CONFLICT;
    if (UNLIKELY(ns->kv))
        return CC_CSS(ctrl->cc) == CC_CSS_ALL ? io_key_value(ctrl, sq, ns, sqe, result) : SC_INVALID_OPCODE;
    switch (sqe->opcode) {
    case IO_READ:
        return io_read(ctrl, sq, ns, sqe);
    case IO_WRITE:
        return io_write(ctrl, sq, ns, sqe, result);
    case IO_FLUSH:
        return sync_start(ctrl, ns, sq, sqe, false);
    case IO_WRITE_UNCORRECTABLE:
        return write_uncorrectable(ctrl, ns, sqe);
    case IO_COMPARE:
        return io_compare(ctrl, ns, sqe);
    case IO_WRITE_ZEROES:
        return io_write_zeroes(ctrl, sq, ns, sqe);
    case IO_DSM:
        return io_dsm(ctrl, ns, sqe);
    case IO_VERIFY:
        return io_verify(ctrl, ns, sqe);
    case IO_COPY:
        status = io_copy(ctrl, ns, sqe, result);
        return status ? status : durable(ctrl, ns, sq, sqe, 0, ns->nbytes);
    case IO_RESV_REGISTER:
    case IO_RESV_REPORT:
    case IO_RESV_ACQUIRE:
    case IO_RESV_RELEASE:
        return io_reservation(ctrl, ns, sqe);
    case IO_MANAGEMENT_RECEIVE:
        return ctrl->config.extras.fdp_handles ? io_management_receive(ctrl, ns, sqe) : SC_INVALID_OPCODE;
    case IO_MANAGEMENT_SEND:
        return ctrl->config.extras.fdp_handles ? io_management_send(ctrl, ns, sqe) : SC_INVALID_OPCODE;
    default:
        return ns->zones && CC_CSS(ctrl->cc) == CC_CSS_ALL ? io_zoned(ctrl, sq, ns, sqe, result) : SC_INVALID_OPCODE;
    }
}
