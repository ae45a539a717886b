/*
 * Blocks with metadata (NVM Command Set 1.1, 5.2): at the end of each block in the data buffer, or
 * in a buffer of its own. What is stored is data and metadata apart, so a command processes both in
 * pieces of the bounce buffer.
 *
 * With protection information (5.3) the metadata is stored inverted, so that a block that was never
 * written, or was deallocated, reads with all ones there: the tags that say "don't check".
 */
#include "nvme_ctrl.h"
#include "pi/pi.h"

#define PRACT 8u
#define STC (1u << 24) /* storage tag check */

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

/* The state of one command. */
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
    if (UNLIKELY(sqe->flags >> 6 == 2)) {
        unsigned n_meta;
        status = sgl_map_metadata(ctrl, sqe, (uint64_t)blocks * ns->ms, walk->to_host, n, &n_meta);
        walk->meta = (struct cursor){ctrl->iov + n, 0};
        return status;
    }
    if (sqe->mptr & 3 && !(sqe->flags & PSDT && ctrl->config.extras.sgl & EMU_SGL_METADATA)) {
        ctrl->error_location = 16;
        return SC_INVALID_FIELD;
    }
    walk->separate.iov_len = (size_t)blocks * ns->ms;
    walk->separate.iov_base = dma(ctrl, sqe->mptr, walk->separate.iov_len, walk->to_host);
    walk->meta = (struct cursor){&walk->separate, 0};
    return walk->separate.iov_base ? SC_SUCCESS : SC_DATA_TRANSFER;
}

static void invert(const struct ns *ns, uint8_t *meta, size_t nbytes)
{
    for (size_t i = 0; ns->dps && i < nbytes; i++)
        meta[i] = (uint8_t)~meta[i];
}

static uint16_t load(struct ns *ns, uint8_t *data, uint8_t *meta, uint64_t lba, unsigned blocks)
{
    struct iovec whole = {data, (size_t)blocks << ns->lbads}, rest = {meta, (size_t)blocks * ns->ms};
    uint16_t status = media_read(&ns->media, lba << ns->lbads, &whole, 1);
    if (!status)
        status = media_read(&ns->meta, lba * ns->ms, &rest, 1);
    invert(ns, meta, (size_t)blocks * ns->ms);
    return status;
}

static uint16_t store(struct ns *ns, uint8_t *data, uint8_t *meta, uint64_t lba, unsigned blocks)
{
    struct iovec whole = {data, (size_t)blocks << ns->lbads}, rest = {meta, (size_t)blocks * ns->ms};
    uint16_t status = media_write(&ns->media, lba << ns->lbads, &whole, 1);
    invert(ns, meta, (size_t)blocks * ns->ms);
    return status ? status : media_write(&ns->meta, lba * ns->ms, &rest, 1);
}

/* Protection information is checked, not compared (3.3.1). */
static uint16_t compare(struct emu_ctrl *ctrl, struct ns *ns, uint64_t lba, unsigned blocks)
{
    uint8_t data[4096], meta[EMU_MAX_METADATA];
    size_t size = 1u << ns->lbads, pi = ns->dps ? pi_nbytes(ns->pif) : 0;
    size_t from = ns->dps & 8 ? pi : 0, length = ns->ms - pi;
    for (unsigned i = 0; i < blocks; i++) {
        uint16_t status = load(ns, data, meta, lba + i, 1);
        if (status)
            return status;
        if (memcmp(data, ctrl->bounce + i * size, size) ||
            memcmp(meta + from, ctrl->bounce_meta + (size_t)i * ns->ms + from, length))
            return SC_COMPARE_FAILURE;
    }
    return SC_SUCCESS;
}

static struct pi_format pi_of(const struct ns *ns)
{
    return (struct pi_format){
        .block_size = 1u << ns->lbads,
        .metadata = ns->ms,
        .pif = ns->pif,
        .sts = ns->sts,
        .type = ns->dps & 7,
        .first = ns->dps & 8,
    };
}

/* The command's tags: LBST and ILBRT in dwords 2, 3 and 14, LBAT and LBATM in dword 15 (NVM Command
 * Set 1.1, 3.3.4). */
static struct pi_tags tags_of(const struct ns *ns, const struct nvme_sqe *sqe)
{
    pi_space space = sqe->cdw14;
    if (ns->pif == 1)
        space |= (pi_space)sqe->cdw3 << 32 | (pi_space)(sqe->cdw2 & 0xffff) << 64;
    else if (ns->pif == 2)
        space |= (pi_space)(sqe->cdw3 & 0xffff) << 32;
    return (struct pi_tags){(uint16_t)sqe->cdw15, (uint16_t)(sqe->cdw15 >> 16), space};
}

/* Checks of PRINFO that are possible before any transfer. */
static uint16_t pi_objection(const struct ns *ns, const struct nvme_sqe *sqe, uint64_t lba)
{
    unsigned prinfo = sqe->cdw12 >> 26 & 15;
    struct pi_format format = pi_of(ns);
    if (!format.type)
        return prinfo ? SC_PROTECTION_INFO : SC_SUCCESS;
    if (!(prinfo & PI_CHECK_REF))
        return SC_SUCCESS;
    if (format.type == 3)
        return SC_PROTECTION_INFO; /* its reference tag is set by the application */
    if (format.type == 1) { /* the reference tag is the LBA, as far as it has room */
        unsigned bits = pi_space_bits(format.pif) - format.sts;
        pi_space mask = (((pi_space)1 << bits) - 1) & UINT64_MAX;
        if ((tags_of(ns, sqe).space & mask) != (lba & mask))
            return SC_PROTECTION_INFO;
    }
    return SC_SUCCESS;
}

static uint16_t pi_verify(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, const struct pi_tags *tags,
                          uint64_t lba, const struct pi_blocks *blocks)
{
    struct pi_format format = pi_of(ns);
    unsigned checks = (sqe->cdw12 >> 26 & 7) | (sqe->cdw12 & STC && ns->sts ? PI_CHECK_STORAGE : 0);
    struct pi_failure failure = pi_check(&format, blocks, tags, checks);
    if (!failure.what)
        return SC_SUCCESS;
    ctrl->error_at_lba = true;
    ctrl->error_lba = lba + failure.block;
    return failure.what == PI_CHECK_GUARD ? SC_GUARD
           : failure.what == PI_CHECK_APP ? SC_APPLICATION_TAG
           : failure.what == PI_CHECK_REF ? SC_REFERENCE_TAG
                                          : SC_STORAGE_TAG;
}

/* Read, Write, Compare or Verify of blocks that exist. */
uint16_t meta_execute(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint64_t lba, uint32_t blocks)
{
    struct walk walk = {.ns = ns, .carries = true, .to_host = sqe->opcode == IO_READ};
    struct pi_format format = pi_of(ns);
    struct pi_tags tags = tags_of(ns, sqe);
    bool moves = sqe->opcode != IO_VERIFY, acts = format.type && sqe->cdw12 >> 26 & PRACT;
    uint16_t status = pi_objection(ns, sqe, lba);
    if (acts && ns->ms == pi_nbytes(ns->pif))
        walk.carries = false; /* inserted here, stripped here */
    if (!status && moves)
        status = walk_begin(ctrl, &walk, sqe, blocks);
    uint32_t piece = BOUNCE_SIZE >> ns->lbads;
    for (uint32_t done = 0; done < blocks && !status; done += piece) {
        unsigned now = blocks - done < piece ? blocks - done : piece;
        struct pi_blocks bounce = {ctrl->bounce, ctrl->bounce_meta, format.block_size, ns->ms, now};
        bool ours = sqe->opcode == IO_READ || sqe->opcode == IO_VERIFY;
        if (ours)
            status = load(ns, ctrl->bounce, ctrl->bounce_meta, lba + done, now);
        else
            walk_move(ctrl, &walk, now);
        if (!status && acts && sqe->opcode == IO_WRITE)
            pi_generate(&format, &bounce, &tags);
        else if (!status && format.type)
            status = pi_verify(ctrl, ns, sqe, &tags, lba + done, &bounce);
        tags.space = pi_space_after(&format, tags.space, now);
        if (status)
            break;
        if (sqe->opcode == IO_WRITE)
            status = store(ns, ctrl->bounce, ctrl->bounce_meta, lba + done, now);
        else if (sqe->opcode == IO_COMPARE)
            status = compare(ctrl, ns, lba + done, now);
        else if (walk.to_host)
            walk_move(ctrl, &walk, now);
    }
    return status;
}

/* Write Zeroes with PRACT: zeroes with valid protection information. */
uint16_t meta_protect_zeroes(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint64_t lba,
                             uint64_t blocks)
{
    struct pi_format format = pi_of(ns);
    struct pi_tags tags = tags_of(ns, sqe);
    uint16_t status = pi_objection(ns, sqe, lba);
    if (!format.type || !(sqe->cdw12 >> 26 & PRACT) || status)
        return status;
    uint32_t piece = BOUNCE_SIZE >> ns->lbads;
    for (uint64_t done = 0; done < blocks && !status; done += piece) {
        unsigned now = (unsigned)(blocks - done < piece ? blocks - done : piece);
        struct pi_blocks bounce = {ctrl->bounce, ctrl->bounce_meta, format.block_size, ns->ms, now};
        memset(ctrl->bounce, 0, (size_t)now << ns->lbads);
        memset(ctrl->bounce_meta, 0, (size_t)now * ns->ms);
        pi_generate(&format, &bounce, &tags);
        tags.space = pi_space_after(&format, tags.space, now);
        invert(ns, ctrl->bounce_meta, (size_t)now * ns->ms);
        struct iovec rest = {ctrl->bounce_meta, (size_t)now * ns->ms};
        status = media_write(&ns->meta, (lba + done) * ns->ms, &rest, 1);
    }
    return status;
}

/* The metadata of blocks that were zeroed or deallocated. */
uint16_t meta_zero(struct ns *ns, uint64_t lba, uint64_t blocks)
{
    return ns->ms ? media_zero(&ns->meta, lba * ns->ms, blocks * ns->ms, true) : SC_SUCCESS;
}

/*
 * One source range of a Copy (NVM Command Set 1.1, 3.3.2). sqe has the tags of the first block that
 * is written, and in dword 12 PRINFO of the write. With PRACT protection information is checked and
 * made anew; without, it goes along as it is. From the end where the ranges overlap so.
 */
uint16_t meta_copy(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, const struct copy_part *part)
{
    struct ns *source = part->source;
    struct pi_format format = pi_of(ns), theirs = pi_of(source);
    struct pi_tags tags = tags_of(ns, sqe), expected = tags_of(source, &part->expected);
    bool acts = sqe->cdw12 >> 26 & PRACT, backwards = source == ns && part->to > part->from;
    uint32_t piece = BOUNCE_SIZE >> ns->lbads;
    uint16_t status = SC_SUCCESS;
    for (uint32_t done = 0; done < part->blocks && !status;) {
        unsigned now = part->blocks - done < piece ? part->blocks - done : piece;
        uint64_t at = backwards ? part->blocks - done - now : done;
        struct pi_blocks bounce = {ctrl->bounce, ctrl->bounce_meta, format.block_size, ns->ms, now};
        struct pi_tags read = expected, written = tags;
        read.space = pi_space_after(&theirs, expected.space, at);
        written.space = pi_space_after(&format, tags.space, at);
        status = load(source, ctrl->bounce, ctrl->bounce_meta, part->from + at, now);
        if (!status && format.type)
            status = pi_verify(ctrl, source, &part->expected, &read, part->from + at, &bounce);
        if (!status && format.type && acts)
            pi_generate(&format, &bounce, &written);
        else if (!status && format.type)
            status = pi_verify(ctrl, ns, sqe, &written, part->to + at, &bounce);
        if (!status)
            status = store(ns, ctrl->bounce, ctrl->bounce_meta, part->to + at, now);
        done += now;
    }
    return status;
}

/* The tags of dwords 2, 3 and 14 as they are so many blocks later. */
void meta_tags_after(const struct ns *ns, struct nvme_sqe *sqe, uint32_t blocks)
{
    struct pi_format format = pi_of(ns);
    pi_space space = pi_space_after(&format, tags_of(ns, sqe).space, blocks);
    sqe->cdw14 = (uint32_t)space;
    if (ns->pif)
        sqe->cdw3 = (uint32_t)(space >> 32);
    if (ns->pif == 1)
        sqe->cdw2 = (uint32_t)(space >> 64);
}
