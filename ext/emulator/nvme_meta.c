/*
 * Blocks with metadata (NVM Command Set 1.1, 5.2): at the end of each block in the data buffer, or in a buffer of its own. What is
 * stored is data and metadata apart, so that a command goes through both in pieces of the bounce buffer.
 */
#include "nvme_ctrl.h"

/* A walk through the host's buffers: ctrl->iov, or the one piece that MPTR names. */
struct cursor {
    struct iovec *iov;
    size_t at;
};

static void cursor_move(struct cursor *cursor, uint8_t *ours, size_t nbytes, bool to_host)
{
    while (nbytes) {
        size_t part = cursor->iov->iov_len - cursor->at;
        part = part < nbytes ? part : nbytes;
        uint8_t *theirs = (uint8_t *)cursor->iov->iov_base + cursor->at;
        if (to_host)
            memcpy(theirs, ours, part);
        else
            memcpy(ours, theirs, part);
        ours += part;
        nbytes -= part;
        cursor->at += part;
        if (cursor->at == cursor->iov->iov_len) {
            cursor->iov++;
            cursor->at = 0;
        }
    }
}

/* One command on its way. */
struct walk {
    struct ns *ns;
    struct cursor data, meta;
    struct iovec separate;
    bool carries;  /* metadata goes between host and controller */
    bool to_host;
};

/* Piece of the host's buffers into (or out of) the bounce buffers. */
static void walk_move(struct emu_ctrl *ctrl, struct walk *walk, unsigned blocks)
{
    const struct ns *ns = walk->ns;
    size_t size = 1u << ns->lbads;
    if (!walk->carries || !ns->extended) {
        cursor_move(&walk->data, ctrl->bounce, blocks * size, walk->to_host);
        if (walk->carries)
            cursor_move(&walk->meta, ctrl->bounce_meta, (size_t)blocks * ns->ms, walk->to_host);
        return;
    }
    for (unsigned i = 0; i < blocks; i++) {
        cursor_move(&walk->data, ctrl->bounce + i * size, size, walk->to_host);
        cursor_move(&walk->data, ctrl->bounce_meta + (size_t)i * ns->ms, ns->ms, walk->to_host);
    }
}

static uint16_t walk_begin(struct emu_ctrl *ctrl, struct walk *walk, const struct nvme_sqe *sqe, uint32_t blocks)
{
    struct ns *ns = walk->ns;
    uint64_t nbytes = (uint64_t)blocks * ((1u << ns->lbads) + (walk->carries && ns->extended ? ns->ms : 0));
    unsigned n;
    if (nbytes > ctrl->mdts_nbytes) {
        ctrl->error_location = 48;
        return SC_INVALID_FIELD;
    }
    uint16_t status = prp_map(ctrl, sqe, nbytes, walk->to_host, &n);
    if (status)
        return status;
    walk->data = (struct cursor){ctrl->iov, 0};
    if (!walk->carries || ns->extended)
        return SC_SUCCESS;
    if (sqe->mptr & 3) {
        ctrl->error_location = 16;
        return SC_INVALID_FIELD;
    }
    walk->separate.iov_len = (size_t)blocks * ns->ms;
    walk->separate.iov_base = dma(ctrl, sqe->mptr, walk->separate.iov_len, walk->to_host);
    walk->meta = (struct cursor){&walk->separate, 0};
    return walk->separate.iov_base ? SC_SUCCESS : SC_DATA_TRANSFER;
}

static uint16_t load(struct ns *ns, uint8_t *data, uint8_t *meta, uint64_t lba, unsigned blocks)
{
    struct iovec whole = {data, (size_t)blocks << ns->lbads}, rest = {meta, (size_t)blocks * ns->ms};
    uint16_t status = media_read(&ns->media, lba << ns->lbads, &whole, 1);
    return status ? status : media_read(&ns->meta, lba * ns->ms, &rest, 1);
}

static uint16_t store(struct ns *ns, uint8_t *data, uint8_t *meta, uint64_t lba, unsigned blocks)
{
    struct iovec whole = {data, (size_t)blocks << ns->lbads}, rest = {meta, (size_t)blocks * ns->ms};
    uint16_t status = media_write(&ns->media, lba << ns->lbads, &whole, 1);
    return status ? status : media_write(&ns->meta, lba * ns->ms, &rest, 1);
}

static uint16_t compare(struct emu_ctrl *ctrl, struct ns *ns, uint64_t lba, unsigned blocks)
{
    uint8_t data[4096], meta[EMU_MAX_METADATA];
    size_t size = 1u << ns->lbads;
    for (unsigned i = 0; i < blocks; i++) {
        uint16_t status = load(ns, data, meta, lba + i, 1);
        if (status)
            return status;
        if (memcmp(data, ctrl->bounce + i * size, size) || memcmp(meta, ctrl->bounce_meta + (size_t)i * ns->ms, ns->ms))
            return SC_COMPARE_FAILURE;
    }
    return SC_SUCCESS;
}

/* Read, Write, Compare or Verify of blocks that exist. */
uint16_t meta_execute(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint64_t lba, uint32_t blocks)
{
    struct walk walk = {.ns = ns, .carries = true, .to_host = sqe->opcode == IO_READ};
    bool moves = sqe->opcode != IO_VERIFY;
    uint16_t status = moves ? walk_begin(ctrl, &walk, sqe, blocks) : SC_SUCCESS;
    uint32_t piece = BOUNCE_SIZE >> ns->lbads;
    for (uint32_t done = 0; done < blocks && !status; done += piece) {
        unsigned now = blocks - done < piece ? blocks - done : piece;
        if (!walk.to_host && moves)
            walk_move(ctrl, &walk, now);
        if (sqe->opcode == IO_WRITE)
            status = store(ns, ctrl->bounce, ctrl->bounce_meta, lba + done, now);
        else if (sqe->opcode == IO_COMPARE)
            status = compare(ctrl, ns, lba + done, now);
        else
            status = load(ns, ctrl->bounce, ctrl->bounce_meta, lba + done, now);
        if (walk.to_host && !status)
            walk_move(ctrl, &walk, now);
    }
    return status;
}

/* The metadata of blocks that were zeroed or deallocated. */
uint16_t meta_zero(struct ns *ns, uint64_t lba, uint64_t blocks)
{
    return ns->ms ? media_zero(&ns->meta, lba * ns->ms, blocks * ns->ms, true) : SC_SUCCESS;
}
