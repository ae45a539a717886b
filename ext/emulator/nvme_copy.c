/* Copy (NVM Command Set 1.1, 3.3.2) with the descriptor formats 0 to 3. */
#include "nvme_ctrl.h"

#define ENTRY_MAX 40
#define CDW12_PRINFO_WRITE(cdw12) ((cdw12) >> 26 & 15)
#define CDW12_PRINFO_READ(cdw12) ((cdw12) >> 12 & 15)
#define PRACT 8u

struct copy {
    unsigned form, n;
    struct copy_part parts[COPY_MSRC + 1];
};

static bool is_extended(unsigned form)
{
    return form & 1;
}

static unsigned entry_size(unsigned form)
{
    return is_extended(form) ? 40 : 32;
}

/* Tags of 80 bits, the most significant byte first, as a command has them in dwords 2, 3 and 14. */
static void put_tags(const struct ns *ns, const uint8_t tags[10], struct nvme_sqe *expected)
{
    uint64_t low = 0;
    for (unsigned i = 2; i < 10; i++)
        low = low << 8 | tags[i];
    expected->cdw14 = (uint32_t)low;
    expected->cdw3 = (uint32_t)(low >> 32);
    if (ns->pif == 1)
        expected->cdw2 = (uint32_t)tags[0] << 8 | tags[1];
}

static uint16_t source_of(struct emu_ctrl *ctrl, struct ns *ns, unsigned form, const uint8_t *entry, struct ns **source)
{
    uint32_t nsid;
    *source = ns;
    if (form < 2)
        return SC_SUCCESS;
    memcpy(&nsid, entry, 4);
    uint16_t status = ns_find(ctrl, nsid, source);
    if (status)
        return status;
    if ((*source)->lbads != ns->lbads || (*source)->ms != ns->ms || (*source)->pif != ns->pif ||
        (*source)->sts != ns->sts || ((*source)->dps & 7) != (ns->dps & 7) || (*source)->zones || (*source)->kv)
        return SC_INCOMPATIBLE_NAMESPACE;
    return (*source)->formatting ? SC_FORMAT_IN_PROGRESS : SC_SUCCESS;
}

/* One entry, and what its blocks are to be checked for. */
static uint16_t parse(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, unsigned form,
                      const uint8_t *entry, struct copy_part *part)
{
    uint16_t nlb;
    memcpy(&part->from, entry + 8, 8);
    memcpy(&nlb, entry + 16, 2);
    part->blocks = nlb + 1u;
    part->expected = (struct nvme_sqe){.cdw12 = CDW12_PRINFO_READ(sqe->cdw12) << 26 | (sqe->cdw12 >> 25 & 1) << 24};
    memcpy(&part->expected.cdw15, entry + entry_size(form) - 4, 4);
    if (is_extended(form))
        put_tags(ns, entry + 26, &part->expected);
    else
        memcpy(&part->expected.cdw14, entry + 24, 4);
    return source_of(ctrl, ns, form, entry, &part->source);
}

/* All ranges, before the first is copied. */
static uint16_t check(const struct ns *ns, struct copy *copy, uint64_t to, uint32_t *result)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < copy->n; i++) {
        struct copy_part *part = &copy->parts[i];
        part->to = to + total;
        total += part->blocks;
        if (part->blocks > COPY_MSSRL || total > COPY_MCL)
            return SC_COMMAND_SIZE;
        *result = i;
        if (!ns_inside(part->source, part->from, part->blocks))
            return SC_LBA_RANGE;
    }
    *result = 0;
    return ns_inside(ns, to, total) ? SC_SUCCESS : SC_LBA_RANGE;
}

static uint16_t objection(struct emu_ctrl *ctrl, const struct ns *ns, const struct nvme_sqe *sqe)
{
    unsigned form = sqe->cdw12 >> 8 & 15, n = (sqe->cdw12 & 0xff) + 1;
    unsigned read = CDW12_PRINFO_READ(sqe->cdw12), write = CDW12_PRINFO_WRITE(sqe->cdw12);
    unsigned formats = ctrl->config.extras.copy_formats | 1u;
    uint16_t enabled;
    memcpy(&enabled, ctrl->host_behaviour + HOST_BEHAVIOUR_CDFE, 2);
    if (ns->formatting)
        return SC_FORMAT_IN_PROGRESS;
    ctrl->error_location = 49;
    if (!(formats >> form & 1) || (form >= 2 && !(enabled >> form & 1)))
        return SC_INVALID_FIELD;
    if (n > COPY_MSRC + 1)
        return SC_COMMAND_SIZE;
    if (!ns->dps)
        return read || write ? SC_PROTECTION_INFO : SC_SUCCESS;
    if (is_extended(form) != (ns->pif || ns->sts))
        return SC_FORMAT_INVALID;
    return (read ^ write) & PRACT ? SC_PROTECTION_INFO : SC_SUCCESS;
}

static uint16_t copy_blocks(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe,
                            const struct copy_part *part)
{
    struct ns *source = part->source;
    if (source->n_bad && bad_overlaps(source, part->from, part->blocks))
        return SC_READ_ERROR;
    if (ns->ms)
        return meta_copy(ctrl, ns, sqe, part);
    return media_copy(ctrl, &source->media, part->from << ns->lbads, &ns->media, part->to << ns->lbads,
                      (uint64_t)part->blocks << ns->lbads);
}

static uint64_t total_of(const struct copy *copy)
{
    const struct copy_part *last = &copy->parts[copy->n - 1];
    return last->to + last->blocks - copy->parts[0].to;
}

/* On failure the result is the number of the first source range that wasn't copied. */
uint16_t io_copy(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint32_t *result)
{
    uint8_t entries[(COPY_MSRC + 1) * ENTRY_MAX];
    uint64_t to = sqe->cdw10 | (uint64_t)sqe->cdw11 << 32, start = to;
    struct copy copy = {.form = sqe->cdw12 >> 8 & 15, .n = (sqe->cdw12 & 0xff) + 1};
    struct nvme_sqe write = *sqe;
    uint16_t status = objection(ctrl, ns, sqe);
    if (!status)
        status = copy_from_host(ctrl, sqe, entries, (size_t)copy.n * entry_size(copy.form));
    for (unsigned i = 0; i < copy.n && !status; i++) {
        *result = i;
        status = parse(ctrl, ns, sqe, copy.form, entries + i * entry_size(copy.form), &copy.parts[i]);
    }
    if (!status)
        status = check(ns, &copy, to, result);
    if (!status && ns->zones)
        status = zones_write(ctrl, ns, &start, (uint32_t)total_of(&copy), false);
    for (unsigned i = 0; i < copy.n && !status; i++) {
        const struct copy_part *part = &copy.parts[i];
        *result = i;
        status = copy_blocks(ctrl, ns, &write, part);
        if (ns->n_bad && !status)
            bad_clear(ns, part->to, part->blocks);
        meta_tags_after(ns, &write, part->blocks);
    }
    if (!status)
        *result = 0;
    return status;
}
