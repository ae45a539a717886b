/*
 * Identify (Base 2.0, 5.17; NVM Command Set 1.0, 4.1.5). Each page reports only what the controller
 * does. Offsets are the specification's, written out so that they can be compared with its figures.
 */
#include <stdio.h>

#include "nvme_ctrl.h"

#define PAGE 4096
#define RESCAP 0x7e /* all reservation types; none persists through power loss */

/* SUBNQN in the form without a registered domain: by UUID (Base 2.0, 4.5). nsid 0 is unused, so its
 * key is free for the subsystem. */
static void put_nqn(const struct emu_ctrl *ctrl, uint8_t *at)
{
    static const uint32_t key[2] = {0, 0};
    uint8_t u[16];
    uuid_of(ctrl, key, u);
    snprintf((char *)at, 256,
             "nqn.2014-08.org.nvmexpress:uuid:%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

static bool extended_formats(const struct emu_config *config)
{
    for (unsigned i = 0; i < config->n_formats; i++)
        if (config->formats[i].pif || config->formats[i].sts)
            return true;
    return false;
}

static void identify_controller(const struct emu_ctrl *ctrl, uint8_t *p)
{
    const struct emu_config *config = &ctrl->config;
    put16(p, 0, config->vendor_id);
    put16(p, 2, config->subsystem_vendor_id);
    put_text(p, 4, 20, config->serial);
    put_text(p, 24, 40, config->model);
    put_text(p, 64, 8, config->firmware);
    p[77] = (uint8_t)config->mdts;
    put16(p, 78, 0); /* CNTLID */
    put32(p, 80, NVME_VERSION);
    put32(p, 92, 1u << 8);                                  /* OAES: namespace attribute notices */
    put32(p, 96, 1u << 0 | (extended_formats(config) ? 1u << 15 : 0)); /* CTRATT: 128-bit host identifier, ELBAS */
    p[111] = 1;                                             /* CNTRLTYPE: I/O controller */
    put16(p, 256, 1u << 1 | (config->dbbuf ? 1u << 8 : 0)); /* OACS: Format NVM, Doorbell Buffer Config */
    p[258] = 3;                                             /* ACL, 0-based */
    p[259] = AERL;
    p[260] = 1u << 1 | 1u;                /* FRMW: one slot, read-only */
    p[261] = (config->no_effects ? 0 : 1u << 1) | 1u << 2 |
             1u << 5; /* LPA: effects, extended offsets, pages 00h, 12h and 13h */
    p[262] = ERROR_LOG_ENTRIES - 1;       /* ELPE */
    put16(p, 266, 343);                   /* WCTEMP */
    put16(p, 268, 353);                   /* CCTEMP */
    put16(p, 320, 1);                     /* KAS: 100 ms */
    p[512] = 6 << 4 | 6;                  /* SQES */
    p[513] = 4 << 4 | 4;                  /* CQES */
    put32(p, 516, EMU_MAX_NAMESPACES);    /* NN */
    /* ONCS: Compare, Write Uncorrectable, DSM, Write Zeroes, Save/Select, Reservations, Timestamp,
     * Verify, Copy */
    put16(p, 520, 0x1ff);
    p[524] = 0;                                   /* FNA: each namespace by itself, no cryptographic erase */
    p[525] = (uint8_t)(3 << 1 | ctrl->has_cache); /* VWC: Flush of all namespaces is supported */
    put16(p, 526, 0xffff); /* AWUN: commands run one at a time, so any size is atomic to others */
    put16(p, 528, 0); /* AWUPF */
    put16(p, 522, config->extras.fused_blocks ? 1 : 0); /* FUSES: Compare and Write */
    put16(p, 532, (uint16_t)(config->extras.fused_blocks ? config->extras.fused_blocks - 1 : 0)); /* ACWU */
    put16(p, 534, config->extras.copy_formats | 1); /* OCFS */
    put32(p, 536, sgl_support(config)); /* SGLS */
    put32(p, 540, EMU_MAX_NAMESPACES); /* MNAN */
    for (unsigned i = 0; i < 3; i++)
        put16(p, 128 + 2 * i, config->extras.retry_delays[i]); /* CRDT1 to CRDT3 */
    put_nqn(ctrl, p + 768);
    extras_identify(ctrl, p);
}

/* NLBAF, MC, DPC and the table of LBA formats: what is common to all namespaces. */
static void identify_formats(const struct emu_config *config, uint8_t *p)
{
    p[25] = (uint8_t)(config->n_formats - 1); /* NLBAF, 0-based */
    for (unsigned i = 0; i < config->n_formats; i++) {
        const struct emu_format *format = &config->formats[i];
        put32(p, 128 + 4 * i, (format->block_size == 512 ? 9u : 12u) << 16 | format->metadata);
        if (format->metadata)
            p[27] = 3; /* MC: extended blocks, separate buffer */
        if (format->metadata >= 8)
            p[28] = 0x1f; /* DPC: types 1, 2 and 3, at the beginning and at the end */
    }
}

static void identify_namespace(const struct emu_ctrl *ctrl, const struct ns *ns, uint8_t *p)
{
    put64(p, 0, ns->nblocks); /* NSZE */
    put64(p, 8, ns->nblocks); /* NCAP */
    put64(p, 16, ns->nblocks); /* NUSE */
    p[24] = 0; /* NSFEAT: no thin provisioning, no preferred sizes */
    identify_formats(&ctrl->config, p);
    p[26] = (uint8_t)(ns->format | (ns->extended ? 1u << 4 : 0)); /* FLBAS */
    p[29] = ns->dps;
    p[31] = RESCAP;
    if (ctrl->config.format_ns) /* FPI: what remains */
        p[32] = (uint8_t)(0x80 | (ns->formatting ? 100 - op_parts(&ctrl->ops[OP_FORMAT], now_ns(), 100) : 0));
    p[33] = 1u << 3 | 1; /* DLFEAT: Write Zeroes deallocates; deallocated blocks read as zeroes */
    put16(p, 74, COPY_MSSRL);
    put32(p, 76, COPY_MCL);
    p[80] = COPY_MSRC;
    put64(p, 48, ns->media.nbytes); /* NVMCAP */
    put32(p, 92, ns->anagrpid);
    put16(p, 100, ns->set); /* NVMSETID */
    put16(p, 102, capacity_group_of(ctrl, ns)); /* ENDGID */
    memcpy(p + 104, ns->nguid, 16);
    memcpy(p + 120, ns->eui64, 8);
}

/* CNS 05h of the NVM command set: masks of the storage tag, and what extends the LBA formats. */
static void identify_nvm(const struct emu_config *config, const struct ns *ns, uint8_t *p)
{
    put64(p, 0, ns && ns->sts && ns->sts < 64 ? (1ull << ns->sts) - 1 : ns && ns->sts ? UINT64_MAX : 0); /* LBSTM */
    for (unsigned i = 0; i < config->n_formats; i++) {
        put32(p, 12 + 4 * i, config->formats[i].sts | (uint32_t)config->formats[i].pif << 7);
    }
    p[8] = extended_formats(config) ? 1u << 0 | 1u << 1 : 0; /* PIC: 16b guard with storage tags, masks */
}

/* CNS 08h, I/O Command Set independent. */
static void identify_independent(const struct ns *ns, uint8_t *p)
{
    put32(p, 4, ns->anagrpid);
    p[2] = RESCAP;
    p[14] = 1; /* NSTAT.NRDY */
}

static unsigned put_descriptor(uint8_t *p, unsigned at, uint8_t type, const void *id, uint8_t nbytes)
{
    p[at] = type;
    p[at + 1] = nbytes;
    memcpy(p + at + 4, id, nbytes);
    return at + 4 + nbytes;
}

static void identify_descriptors(const struct ns *ns, uint8_t *p)
{
    uint8_t csi = ns->kv ? CSI_KV : ns->zones ? CSI_ZNS : CSI_NVM;
    unsigned at = put_descriptor(p, 0, 1, ns->eui64, 8);
    at = put_descriptor(p, at, 2, ns->nguid, 16);
    at = put_descriptor(p, at, 3, ns->uuid, 16);
    put_descriptor(p, at, 4, &csi, 1);
}

static void namespace_list(const struct emu_ctrl *ctrl, uint32_t after, bool allocated, uint8_t *p)
{
    unsigned at = 0;
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++) {
        if (nsid > after && (allocated ? ns_allocated(ctrl, nsid) : ctrl->namespaces[nsid - 1])) {
            put32(p, at, nsid);
            at += 4;
        }
    }
}

static uint16_t list(struct emu_ctrl *ctrl, uint32_t after, bool allocated, uint8_t *p)
{
    if (after >= 0xfffffffe) {
        ctrl->error_location = 4;
        return SC_INVALID_NAMESPACE;
    }
    namespace_list(ctrl, after, allocated, p);
    return SC_SUCCESS;
}

/* The one controller there is, if its identifier is not below `from`. */
static void controller_list(uint16_t from, uint8_t *p)
{
    if (from == 0)
        put16(p, 0, 1); /* count; entry 0 is CNTLID 0 */
}

/* The pages of one namespace: *ns is NULL for an inactive nsid, of which all pages are zeroes. */
static uint16_t page_of(struct emu_ctrl *ctrl, uint32_t nsid, bool allocated, struct ns **ns)
{
    if (nsid - 1 >= EMU_MAX_NAMESPACES)
        return SC_INVALID_NAMESPACE;
    *ns = allocated ? ns_allocated(ctrl, nsid) : ctrl->namespaces[nsid - 1];
    return SC_SUCCESS;
}

/* CNS 00h and 11h. FFFFFFFFh asks for what is common to all namespaces, which controllers with
 * Namespace Management have. */
static uint16_t identify_one(struct emu_ctrl *ctrl, uint32_t nsid, bool allocated, uint8_t *p)
{
    struct ns *ns = NULL;
    if (nsid == NSID_ALL && ctrl->config.extras.capacity && !allocated) {
        identify_formats(&ctrl->config, p);
        p[31] = RESCAP;
        return SC_SUCCESS;
    }
    uint16_t status = page_of(ctrl, nsid, allocated, &ns);
    if (!status && ns && ns->kv)
        return SC_INVALID_FIELD; /* the page is the NVM command set's */
    if (!status && ns)
        identify_namespace(ctrl, ns, p);
    return status;
}

static uint16_t build(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint8_t *p)
{
    uint8_t cns = (uint8_t)sqe->cdw10;
    uint16_t cntid = (uint16_t)(sqe->cdw10 >> 16);
    uint8_t csi = (uint8_t)(sqe->cdw11 >> 24);
    struct ns *ns;
    uint16_t status;

    ctrl->error_location = 40;
    switch (cns) {
    case 0x05:
    case 0x06:
    case 0x07:
    case 0x1a:
    case 0x1b:
        if (csi != CSI_NVM && !(csi == CSI_ZNS && ctrl->config.extras.zoned) &&
            !(csi == CSI_KV && ctrl->config.extras.key_value))
            return SC_INVALID_FIELD;
    }
    switch (cns) {
    case 0x00:
    case 0x11:
        return identify_one(ctrl, sqe->nsid, cns == 0x11, p);
    case 0x01:
        identify_controller(ctrl, p);
        return SC_SUCCESS;
    case 0x07: /* all namespaces are of one command set */
    case 0x1a:
        if ((csi == CSI_ZNS) != ctrl->config.extras.zoned || (csi == CSI_KV) != ctrl->config.extras.key_value)
            return SC_SUCCESS;
        return list(ctrl, sqe->nsid, cns == 0x1a, p);
    case 0x02:
    case 0x10:
        return list(ctrl, sqe->nsid, cns == 0x10, p);
    case 0x03:
        status = ns_find(ctrl, sqe->nsid, &ns);
        if (!status)
            identify_descriptors(ns, p);
        return status;
    case 0x05:
    case 0x1b:
        status = page_of(ctrl, sqe->nsid, cns == 0x1b, &ns);
        if (!status && ns && csi == CSI_KV)
            kv_identify(ns, p);
        else if (!status && ns && csi == CSI_ZNS)
            zones_identify(ctrl, ns, p);
        else if (!status && ns)
            identify_nvm(&ctrl->config, ns, p);
        return status;
    case 0x06: /* NVM: WZSL, WUSL, DMRL, DMRSL and DMSL are all "no limit" */
        p[0] = csi == CSI_ZNS ? ctrl->config.extras.zasl : VSL;
        return SC_SUCCESS;
    case 0x08:
        status = page_of(ctrl, sqe->nsid, false, &ns);
        if (!status && ns)
            identify_independent(ns, p);
        return status;
    case 0x12:
        status = page_of(ctrl, sqe->nsid, true, &ns);
        if (!status && !ns)
            return SC_INVALID_FIELD;
        if (!status && ctrl->namespaces[sqe->nsid - 1])
            controller_list(cntid, p);
        return status;
    case 0x19: /* endurance groups */
        if (!ctrl->config.extras.endurance)
            return SC_INVALID_FIELD;
        capacity_identify_groups(ctrl, (uint16_t)sqe->cdw11, p);
        return SC_SUCCESS;
    case 0x04:
        if (!ctrl->config.extras.capacity_management)
            return SC_INVALID_FIELD;
        capacity_identify_sets(ctrl, (uint16_t)sqe->cdw11, p);
        return SC_SUCCESS;
    case 0x14:
    case 0x15:
        if (!ctrl->config.extras.secondary)
            return SC_INVALID_FIELD;
        if (cns == 0x14)
            virtual_identify_primary(ctrl, p);
        else
            virtual_identify_secondary(ctrl, cntid, p);
        return SC_SUCCESS;
    case 0x13:
        controller_list(cntid, p);
        return SC_SUCCESS;
    case 0x1c: /* I/O Command Set combinations: one */
        if (cntid != 0 && cntid != 0xffff)
            return SC_INVALID_FIELD;
        put64(p, 0,
              1u << CSI_NVM | (ctrl->config.extras.zoned ? 1u << CSI_ZNS : 0) |
                  (ctrl->config.extras.key_value ? 1u << CSI_KV : 0));
        return SC_SUCCESS;
    default:
        return SC_INVALID_FIELD;
    }
}

uint16_t admin_identify(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint8_t page[PAGE] = {0};
    uint16_t status = build(ctrl, sqe, page);
    return status ? status : copy_to_host(ctrl, sqe, page, sizeof(page));
}
