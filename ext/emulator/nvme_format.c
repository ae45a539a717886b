/* LBA formats (NVM Command Set 1.1, 5.1) and Format NVM (Base 2.1, 5.1.10). */
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

#include "nvme_ctrl.h"

static const uint16_t PI_BYTES[] = {8, 16, 16}; /* of the 16b, 32b and 64b formats */
static const uint8_t STS_MAX[] = {32, 64, 48};

/* NULL, or what is wrong; a configuration without formats gets the two that every drive has. */
const char *formats_objection(struct emu_config *config)
{
    if (!config->n_formats) {
        config->n_formats = 2;
        config->formats[0] = (struct emu_format){.block_size = 512};
        config->formats[1] = (struct emu_format){.block_size = 4096};
    }
    if (config->n_formats > EMU_MAX_FORMATS)
        return "at most 16 LBA formats are supported";
    for (unsigned i = 0; i < config->n_formats; i++) {
        const struct emu_format *format = &config->formats[i];
        if (format->block_size != 512 && format->block_size != 4096)
            return "the block size of an LBA format is neither 512 nor 4096";
        if (format->metadata > EMU_MAX_METADATA)
            return "an LBA format has more than 128 bytes of metadata";
        if (format->pif > 2 || format->sts > STS_MAX[format->pif])
            return "an LBA format has no such protection information";
        if (format->pif && format->metadata < PI_BYTES[format->pif])
            return "protection information with a 32b or 64b guard needs 16 bytes of metadata";
    }
    return NULL;
}

/* The format of that name, or -1. */
int format_find(const struct emu_config *config, const struct emu_ns_config *ns)
{
    for (unsigned i = 0; i < config->n_formats; i++) {
        const struct emu_format *format = &config->formats[i];
        if (format->block_size == ns->block_size && format->metadata == ns->metadata && format->pif == ns->pif)
            return (int)i;
    }
    return -1;
}

/* NULL, or why a namespace can't have that format with those Data Protection Settings. */
const char *format_objection(const struct emu_config *config, unsigned index, uint8_t dps)
{
    if (index >= config->n_formats)
        return "the LBA format does not exist";
    if ((dps & 7) > 3 || dps & ~15u)
        return "protection information is of type 1, 2 or 3";
    if (dps & 7 && config->formats[index].metadata < PI_BYTES[config->formats[index].pif])
        return "that LBA format has no room for protection information";
    return NULL;
}

/* Makes blocks of that format out of the medium; what they held is not touched. 0 or -errno, and
 * then nothing has changed. */
int format_apply(struct emu_ctrl *ctrl, struct ns *ns, unsigned index, bool extended, uint8_t dps)
{
    const struct emu_format *format = &ctrl->config.formats[index];
    uint8_t lbads = format->block_size == 512 ? 9 : 12;
    uint64_t nblocks = ns->nbytes >> lbads;
    struct media meta = {.fd = -1, .kind = EMU_MEDIUM_NULL};
    if (format->metadata) {
        char path[4096 + 8], err[256];
        struct emu_ns_config config = {
            .medium = ns->media.kind, .nbytes = nblocks * format->metadata, .path = ns->path ? path : NULL};
        if (ns->path)
            snprintf(path, sizeof(path), "%s.meta", ns->path);
        int rc = media_open(&meta, &config, err);
        if (rc)
            return rc;
    }
    media_close(&ns->meta);
    ns->meta = meta;
    ns->format = (uint8_t)index;
    ns->lbads = lbads;
    ns->nblocks = nblocks;
    ns->ms = format->metadata;
    ns->pif = format->pif;
    ns->sts = format->sts;
    ns->extended = extended && format->metadata;
    ns->dps = dps & 7 ? dps : 0;
    ns->media.write_through = ns->ms || ctrl->config.extras.zoned;
    if (ns->media.write_through)
        undo_flush(&ns->media);
    char message[256];
    return ctrl->config.extras.zoned ? zones_new(ctrl, ns, message) : 0;
}

/* Deallocates everything. No power loss brings it back. */
uint16_t ns_erase(struct ns *ns)
{
    uint16_t status = media_zero(&ns->media, 0, ns->media.nbytes, true);
    undo_flush(&ns->media);
    if (!status && ns->ms)
        status = media_zero(&ns->meta, 0, ns->meta.nbytes, true);
    if (!status && ns->n_bad) {
        if (madvise(ns->bad, ns->bad_nbytes, MADV_DONTNEED)) /* not memset: it may be gigabytes, of which few exist */
            return SC_INTERNAL;
        ns->n_bad = 0;
    }
    zones_reset(ns);
    kv_clear(ns);
    return status;
}

static uint16_t format(struct emu_ctrl *ctrl, struct ns *ns, uint32_t cdw10)
{
    uint8_t dps = (uint8_t)((cdw10 >> 5 & 7) | (cdw10 & 1u << 8 ? 8 : 0));
    uint16_t status = ns_erase(ns); /* its metadata first: the file may be the next format's too */
    if (!status && format_apply(ctrl, ns, cdw10 & 15, cdw10 & 1u << 4, dps))
        status = SC_INTERNAL;
    return status;
}

static bool concerns(const struct nvme_sqe *sqe, const struct ns *ns)
{
    return ns && (sqe->nsid == NSID_ALL || sqe->nsid == ns->nsid);
}

static uint16_t format_all(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint16_t status = SC_SUCCESS;
    uint32_t started[3] = {sqe->nsid, 0, sqe->cdw10}, completed[3] = {sqe->nsid, 0, 0};
    persistent_add(ctrl, PEL_FORMAT_START, started, sizeof(started));
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES && !status; i++)
        if (concerns(sqe, ctrl->namespaces[i]))
            status = format(ctrl, ctrl->namespaces[i], sqe->cdw10);
    completed[2] = (uint32_t)status << 1;
    persistent_add(ctrl, PEL_FORMAT_COMPLETION, completed, sizeof(completed));
    return status;
}

/* A Format ends. A reset may have discarded its command. */
void format_done(struct emu_ctrl *ctrl)
{
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES; i++)
        if (ctrl->namespaces[i])
            ctrl->namespaces[i]->formatting = false;
    uint16_t status = format_all(ctrl, &ctrl->format_sqe);
    if (!ctrl->format_waits)
        return;
    ctrl->format_waits = false;
    complete(ctrl, &ctrl->sqs[0], &ctrl->format_sqe, 0, status, NULL);
}

/* Deallocating is the erase, with a Secure Erase Setting or without. */
uint16_t admin_format(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint32_t index = (sqe->cdw10 & 15) | (sqe->cdw10 >> 12 & 3) << 4, ses = sqe->cdw10 >> 9 & 7;
    uint8_t dps = (uint8_t)((sqe->cdw10 >> 5 & 7) | (sqe->cdw10 & 1u << 8 ? 8 : 0));
    if (ses > 2 || format_objection(&ctrl->config, index, dps))
        return SC_FORMAT_INVALID;
    if (sqe->cdw10 & 1u << 4 && !ctrl->config.formats[index].metadata)
        return SC_FORMAT_INVALID; /* MSET without metadata */
    if (ses == 2) /* cryptographic erase: FNA says there is none */
        return SC_INVALID_FIELD;
    if (op_active(&ctrl->ops[OP_FORMAT]))
        return SC_FORMAT_IN_PROGRESS;
    if (sqe->nsid != NSID_ALL) {
        struct ns *ns;
        uint16_t status = ns_find(ctrl, sqe->nsid, &ns);
        if (!status && resv_conflict(ctrl, ns, IO_WRITE))
            status = SC_RESERVATION_CONFLICT;
        if (status)
            return status;
    }
    if (op_active(&ctrl->ops[OP_SELF_TEST]))
        self_test_end(ctrl, SELF_TEST_ABORTED_FORMAT);
    if (!ctrl->config.format_ns)
        return format_all(ctrl, sqe);
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES; i++)
        if (concerns(sqe, ctrl->namespaces[i]))
            ctrl->namespaces[i]->formatting = true;
    ctrl->format_sqe = *sqe;
    ctrl->format_waits = true;
    op_start(&ctrl->ops[OP_FORMAT], ctrl->config.format_ns);
    return SC_ASYNC;
}
