/*
 * Scatter Gather Lists (Base 2.0, 4.1.2) of I/O commands, off unless the option `sgl` offers them:
 * data blocks, bit buckets, segments and last segments, for data and for metadata. Descriptors lie
 * in shared memory: each is copied once, and the copy is used. Those of fabrics (keyed, transport,
 * offsets) are other types and are refused here.
 */
#include "nvme_ctrl.h"

enum { DATA_BLOCK, BIT_BUCKET, SEGMENT, LAST_SEGMENT };

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint8_t reserved[3];
    uint8_t id; /* type 7:4, subtype 3:0 */
};
_Static_assert(sizeof(struct descriptor) == 16, "SGL descriptor");

/* A walk along a list. visit() gets each part of the transfer, buckets too; segment(), which may be
 * NULL, the memory of the list. */
struct walk {
    struct emu_ctrl *ctrl;
    uint64_t left; /* of the transfer, not described yet */
    unsigned seen; /* descriptors: also bounds lists of empty ones */
    uint16_t too_short_or_long;
    bool to_host;
    uint16_t (*visit)(struct walk *walk, uint64_t address, uint64_t nbytes, bool bucket);
    void (*segment)(struct walk *walk, uint64_t address, uint64_t nbytes);
    /* Of the visitors. */
    unsigned n, max;
    struct emu_dma_range *ranges;
};

static bool offers(const struct emu_ctrl *ctrl, unsigned what)
{
    return ctrl->config.extras.sgl & what;
}

static uint16_t one(struct walk *walk, const struct descriptor *d)
{
    bool bucket = d->id >> 4 == BIT_BUCKET;
    uint64_t nbytes = d->length;
    if (++walk->seen > MAX_SEGMENTS)
        return SC_SGL_NUMBER;
    if (bucket && !offers(walk->ctrl, EMU_SGL_BIT_BUCKET))
        return SC_SGL_TYPE;
    if (bucket && !walk->to_host)
        return SC_SUCCESS; /* it describes no data of the host's then, whatever its length */
    if (!offers(walk->ctrl, EMU_SGL_BYTE) && ((!bucket && d->address & 3) || nbytes & 3))
        return SC_SGL_GRANULARITY;
    if (nbytes > walk->left) {
        if (!offers(walk->ctrl, EMU_SGL_LONGER))
            return walk->too_short_or_long;
        nbytes = walk->left;
    }
    walk->left -= nbytes;
    return nbytes ? walk->visit(walk, d->address, nbytes, bucket) : SC_SUCCESS;
}

/* The descriptors of one segment. *next: the descriptor of the segment that follows, or the type is
 * DATA_BLOCK if none does. */
static uint16_t segment(struct walk *walk, const struct descriptor *d, struct descriptor *next)
{
    bool last = d->id >> 4 == LAST_SEGMENT;
    uint32_t count = d->length / 16;
    if (!count || d->length % 16 || d->address & 7)
        return SC_SGL_SEGMENT;
    if (walk->segment)
        walk->segment(walk, d->address, d->length);
    for (uint32_t i = 0; i < count; i++) {
        const void *at = dma(walk->ctrl, d->address + 16ull * i, 16, false);
        if (!at)
            return SC_DATA_TRANSFER;
        memcpy(next, at, sizeof(*next));
        if (next->id & 15 || next->id >> 4 > LAST_SEGMENT)
            return SC_SGL_TYPE;
        if (next->id >> 4 >= SEGMENT) {
            if (last)
                return SC_SGL_SEGMENT;
            return i == count - 1 ? SC_SUCCESS : SC_SGL_NUMBER;
        }
        uint16_t status = one(walk, next);
        if (status)
            return status;
    }
    next->id = DATA_BLOCK << 4;
    return last ? SC_SUCCESS : SC_SGL_SEGMENT; /* a segment that isn't the last leads to another */
}

static uint16_t walk_list(struct walk *walk, struct descriptor root)
{
    if (root.id & 15 || root.id >> 4 > LAST_SEGMENT)
        return SC_SGL_TYPE;
    uint16_t status = root.id >> 4 < SEGMENT ? one(walk, &root) : SC_SUCCESS;
    while (!status && root.id >> 4 >= SEGMENT) {
        struct descriptor next;
        if (++walk->seen > MAX_SEGMENTS)
            return SC_SGL_NUMBER;
        status = segment(walk, &root, &next);
        root = next;
    }
    return status ? status : walk->left ? walk->too_short_or_long : SC_SUCCESS;
}

static uint16_t add(struct walk *walk, void *ptr, uint64_t nbytes)
{
    struct iovec *last = walk->n ? &walk->ctrl->iov[walk->n - 1] : NULL;
    if (last && (uint8_t *)last->iov_base + last->iov_len == ptr && last->iov_base != walk->ctrl->sink) {
        last->iov_len += nbytes;
        return SC_SUCCESS;
    }
    if (walk->n == walk->max)
        return SC_SGL_NUMBER;
    walk->ctrl->iov[walk->n++] = (struct iovec){ptr, nbytes};
    return SC_SUCCESS;
}

static uint16_t map_part(struct walk *walk, uint64_t address, uint64_t nbytes, bool bucket)
{
    uint16_t status = SC_SUCCESS;
    void *whole = bucket ? NULL : dma(walk->ctrl, address, nbytes, walk->to_host);
    if (whole)
        return add(walk, whole, nbytes);
    while (nbytes && !status) { /* into the sink, or across mappings that touch */
        uint64_t part = bucket ? SGL_SINK : 4096 - (address & 4095);
        part = part < nbytes ? part : nbytes;
        void *ptr = bucket ? walk->ctrl->sink : dma(walk->ctrl, address, part, walk->to_host);
        if (!ptr)
            return SC_DATA_TRANSFER;
        status = add(walk, ptr, part);
        address += part;
        nbytes -= part;
    }
    return status;
}

static uint16_t map_list(struct emu_ctrl *ctrl, const struct descriptor *root, uint64_t nbytes, bool to_host,
                         unsigned first, uint16_t wrong_length, unsigned *n)
{
    struct walk walk = {
        .ctrl = ctrl,
        .left = nbytes,
        .to_host = to_host,
        .too_short_or_long = wrong_length,
        .visit = map_part,
        .n = first,
        .max = MAX_SEGMENTS,
    };
    uint16_t status = walk_list(&walk, *root);
    *n = walk.n - first;
    return status;
}

uint16_t sgl_map(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool to_host, unsigned *n)
{
    struct descriptor root;
    memcpy(&root, &sqe->prp1, sizeof(root));
    ctrl->counters.sgl_commands++;
    return map_list(ctrl, &root, nbytes, to_host, 0, SC_SGL_LENGTH, n);
}

/* PSDT 10b: MPTR is the address of one descriptor (Base 2.0, figure 87). ctrl->iov[first..first+*n)
 * is the metadata. */
uint16_t sgl_map_metadata(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool to_host,
                          unsigned first, unsigned *n)
{
    struct descriptor root;
    if (sqe->mptr & 7)
        return SC_SGL_SEGMENT;
    const void *at = dma(ctrl, sqe->mptr, sizeof(root), false);
    if (!at)
        return SC_DATA_TRANSFER;
    memcpy(&root, at, sizeof(root));
    return map_list(ctrl, &root, nbytes, to_host, first, SC_SGL_METADATA_LENGTH, n);
}

static uint16_t note_part(struct walk *walk, uint64_t address, uint64_t nbytes, bool bucket)
{
    if (!bucket && walk->n < walk->max)
        walk->ranges[walk->n++] = (struct emu_dma_range){address, nbytes, walk->to_host};
    return SC_SUCCESS;
}

static void note_segment(struct walk *walk, uint64_t address, uint64_t nbytes)
{
    if (walk->n < walk->max)
        walk->ranges[walk->n++] = (struct emu_dma_range){address, nbytes, false};
}

/* The memory that a command may access, as its list stands now. Fills at most max, returns how
 * many. */
unsigned sgl_ranges(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool to_host,
                    struct emu_dma_range *ranges, unsigned max)
{
    struct descriptor root;
    memcpy(&root, &sqe->prp1, sizeof(root));
    struct walk walk = {
        .ctrl = ctrl,
        .left = nbytes,
        .to_host = to_host,
        .visit = note_part,
        .segment = note_segment,
        .max = max,
        .ranges = ranges,
    };
    (void)walk_list(&walk, root);
    return walk.n;
}

/* FUSE and PSDT of an I/O command: fused operations go through nvme_fused.c, which clears their
 * bits, and what isn't offered is an invalid field. */
uint16_t sgl_objection(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    unsigned psdt = sqe->flags >> 6;
    if (!(sqe->flags & 3) && offers(ctrl, EMU_SGL_BYTE | EMU_SGL_DWORD) &&
        (psdt == 1 || (psdt == 2 && offers(ctrl, EMU_SGL_METADATA))))
        return SC_SUCCESS;
    ctrl->error_location = 1;
    return SC_INVALID_FIELD;
}

/* SGLS of Identify Controller (Base 2.0, figure 275). */
uint32_t sgl_support(const struct emu_config *config)
{
    unsigned sgl = config->extras.sgl;
    return (sgl & EMU_SGL_BYTE    ? 1u
            : sgl & EMU_SGL_DWORD ? 2u
                                  : 0) |
           (sgl & EMU_SGL_BIT_BUCKET ? 1u << 16 : 0) | (sgl & EMU_SGL_METADATA ? 1u << 17 | 1u << 19 : 0) |
           (sgl & EMU_SGL_LONGER ? 1u << 18 : 0);
}
