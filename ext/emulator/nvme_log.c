/* Get Log Page (Base 2.0, 5.16) and the collecting of error information. */
#include <stdlib.h>

#include "nvme_ctrl.h"

#define LOG_MAX 4096 /* the largest page we have; what lies beyond a page's end reads as zeroes */

void log_error(struct emu_ctrl *ctrl, uint16_t sqid, const struct nvme_sqe *sqe, uint16_t status)
{
    struct error_entry *entry = &ctrl->errors[ctrl->n_errors % ERROR_LOG_ENTRIES];
    bool io = sqid && sqid != 0xffff;
    *entry = (struct error_entry){
        .count = ++ctrl->n_errors,
        .sqid = sqid,
        .cid = sqe->cid,
        .status = (uint16_t)(status << 1),
        .location =
            SC_CODE(status) == SC_CODE(SC_INVALID_FIELD) && ctrl->error_location ? ctrl->error_location : 0xffff,
        .lba = !io                  ? 0
               : ctrl->error_at_lba ? ctrl->error_lba
                                    : (uint64_t)sqe->cdw11 << 32 | sqe->cdw10,
        .nsid = sqe->nsid,
    };
    ctrl->error_location = 0;
    ctrl->error_at_lba = false;
}

static unsigned error_page(const struct emu_ctrl *ctrl, uint8_t *p)
{
    uint64_t n = ctrl->n_errors < ERROR_LOG_ENTRIES ? ctrl->n_errors : ERROR_LOG_ENTRIES;
    for (uint64_t i = 0; i < n; i++) { /* newest first */
        const struct error_entry *e = &ctrl->errors[(ctrl->n_errors - 1 - i) % ERROR_LOG_ENTRIES];
        uint8_t *at = p + i * 64;
        put64(at, 0, e->count);
        memcpy(at + 8, &e->sqid, 2);
        memcpy(at + 10, &e->cid, 2);
        memcpy(at + 12, &e->status, 2);
        memcpy(at + 14, &e->location, 2);
        put64(at, 16, e->lba);
        put32(at, 24, e->nsid);
    }
    return ERROR_LOG_ENTRIES * 64;
}

unsigned smart_page(const struct emu_ctrl *ctrl, uint8_t *p)
{
    uint64_t up = now_ns() - ctrl->power_on_at;
    p[0] = ctrl->critical_warning;
    memcpy(p + 1, &ctrl->temperature, 2);
    p[3] = 100; /* available spare, and its threshold */
    p[4] = 10;
    put64(p, 32, (ctrl->blocks_read + 999) / 1000); /* data units: thousands of 512 B, rounded up */
    put64(p, 48, (ctrl->blocks_written + 999) / 1000);
    put64(p, 64, ctrl->counters.commands_read);
    put64(p, 80, ctrl->counters.commands_written);
    put64(p, 112, 1); /* power cycles */
    put64(p, 128, up / 3600000000000ull);
    put64(p, 144, ctrl->unsafe_shutdowns);
    put64(p, 160, ctrl->media_errors);
    put64(p, 176, ctrl->n_errors);
    return 512;
}

static unsigned changed_page(const struct emu_ctrl *ctrl, uint8_t *p)
{
    unsigned at = 0;
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++) {
        if (ctrl->changed & 1u << (nsid - 1)) {
            put32(p, at, nsid);
            at += 4;
        }
    }
    return 4096;
}

#define CSUPP 1u
#define LBCC 2u
#define NCC 4u
#define NIC 8u

static void io_effects(uint8_t *p, const uint8_t *opcodes, size_t n, uint32_t effects)
{
    for (size_t i = 0; i < n; i++)
        put32(p, 1024 + opcodes[i] * 4u, effects);
}

/* csi: the I/O command set whose commands are in the second half (CDW14). Linux writes to a zoned
 * namespace only if its page has Zone Append. */
static unsigned effects_page(const struct emu_ctrl *ctrl, uint8_t csi, uint8_t *p)
{
    static const uint8_t admin[] = {
        ADMIN_GET_LOG_PAGE, ADMIN_IDENTIFY,    ADMIN_ABORT,      ADMIN_SET_FEATURES,
        ADMIN_GET_FEATURES, ADMIN_ASYNC_EVENT, ADMIN_KEEP_ALIVE,
    };
    /* Connect does that over fabrics (Base 2.0, 3.3.2). */
    static const uint8_t queues[] = {ADMIN_DELETE_SQ, ADMIN_CREATE_SQ, ADMIN_DELETE_CQ, ADMIN_CREATE_CQ};
    static const uint8_t plain[] = {
        IO_FLUSH, IO_READ, IO_COMPARE, IO_VERIFY, IO_RESV_REGISTER, IO_RESV_REPORT, IO_RESV_ACQUIRE, IO_RESV_RELEASE,
    };
    static const uint8_t writes[] = {IO_WRITE, IO_WRITE_UNCORRECTABLE, IO_WRITE_ZEROES, IO_DSM, IO_COPY};
    static const uint8_t zone_reads[] = {IO_ZONE_RECEIVE}, zone_writes[] = {IO_ZONE_SEND, IO_ZONE_APPEND};
    static const uint8_t key_reads[] = {
        IO_FLUSH, KV_RETRIEVE, KV_LIST, KV_EXIST, IO_RESV_REGISTER, IO_RESV_REPORT, IO_RESV_ACQUIRE, IO_RESV_RELEASE,
    };
    static const uint8_t key_writes[] = {KV_STORE, KV_DELETE};
    for (unsigned i = 0; i < sizeof(admin); i++)
        put32(p, admin[i] * 4u, CSUPP);
    for (unsigned i = 0; i < sizeof(queues) && !ctrl->by_messages; i++)
        put32(p, queues[i] * 4u, CSUPP);
    if (ctrl->config.dbbuf)
        put32(p, ADMIN_DBBUF * 4u, CSUPP);
    put32(p, ADMIN_FORMAT * 4u, CSUPP | LBCC | NCC | 1u << 16); /* CSE: not with other commands on that namespace */
    extras_effects(ctrl, p);
    /* nvme-cli asks for zoned namespaces' commands wherever CAP.CSS bit 6 is 1. Of a command set
     * that is not there the controller supports no command. */
    if (csi != CSI_NVM && !(csi == CSI_ZNS && ctrl->config.extras.zoned) &&
        !(csi == CSI_KV && ctrl->config.extras.key_value))
        return 4096;
    if (csi == CSI_KV) {
        io_effects(p, key_reads, sizeof(key_reads), CSUPP);
        io_effects(p, key_writes, sizeof(key_writes), CSUPP | LBCC);
        return 4096;
    }
    io_effects(p, plain, sizeof(plain), CSUPP);
    io_effects(p, writes, sizeof(writes), CSUPP | LBCC);
    if (csi == CSI_ZNS) {
        io_effects(p, zone_reads, sizeof(zone_reads), CSUPP);
        io_effects(p, zone_writes, sizeof(zone_writes), CSUPP | LBCC);
    }
    if (ctrl->config.extras.fdp_handles) {
        put32(p, 1024 + IO_MANAGEMENT_RECEIVE * 4u, CSUPP);
        put32(p, 1024 + IO_MANAGEMENT_SEND * 4u, CSUPP);
    }
    return 4096;
}

static unsigned supported_page(const struct emu_ctrl *ctrl, uint8_t *p)
{
    static const uint8_t pages[] = {LOG_SUPPORTED, LOG_ERROR,    LOG_SMART,      LOG_FIRMWARE,   LOG_CHANGED_NS,
                                    LOG_EFFECTS,   LOG_FEATURES, LOG_MI_EFFECTS, LOG_RESERVATION};
    for (unsigned i = 0; i < sizeof(pages); i++)
        put32(p, pages[i] * 4u, 1); /* LSUPP */
    if (ctrl->config.no_effects)
        put32(p, LOG_EFFECTS * 4u, 0);
    for (unsigned lid = 0; lid < 256; lid++)
        if (extras_log_offered(ctrl, (uint8_t)lid))
            put32(p, lid * 4u, 1);
    return 1024;
}

/* Feature Identifiers Supported and Effects: FSUPP, and CDQSCP-less scope bits for namespace and
 * controller. */
static unsigned features_page(const struct emu_ctrl *ctrl, uint8_t *p)
{
    static const uint8_t controller[] = {FEAT_ARBITRATION, FEAT_POWER,      FEAT_TEMPERATURE,    FEAT_QUEUES,
                                         FEAT_COALESCING,  FEAT_VECTOR,     FEAT_ATOMICITY,      FEAT_ASYNC_EVENT,
                                         FEAT_TIMESTAMP,   FEAT_KEEP_ALIVE, FEAT_HOST_BEHAVIOUR, FEAT_HOST_ID};
    static const uint8_t namespace[] = {FEAT_ERROR_RECOVERY, FEAT_RESV_MASK, FEAT_RESV_PERSIST};
    for (unsigned i = 0; i < sizeof(controller); i++)
        put32(p, controller[i] * 4u, 1u | 1u << 21); /* FSUPP, FSP: controller */
    for (unsigned i = 0; i < sizeof(namespace); i++)
        put32(p, namespace[i] * 4u, 1u | 1u << 20); /* FSUPP, FSP: namespace */
    if (ctrl->has_cache)
        put32(p, FEAT_WRITE_CACHE * 4u, 1u | 1u << 21);
    if (CC_CSS(ctrl->cc) == CC_CSS_ALL)
        put32(p, FEAT_COMMAND_SET * 4u, 1u | 1u << 21);
    if (ctrl->config.extras.lba_status)
        put32(p, FEAT_LBA_STATUS * 4u, 1u | 1u << 21);
    if (ctrl->config.extras.boot_protection)
        put32(p, FEAT_BOOT_PROTECTION * 4u, 1u | 1u << 21);
    if (ctrl->config.extras.endurance)
        put32(p, FEAT_ENDURANCE * 4u, 1u | 1u << 22);
    if (ctrl->config.extras.fdp_handles) {
        put32(p, FEAT_FDP * 4u, 1u | 1u << 22);
        put32(p, FEAT_FDP_EVENTS * 4u, 1u | 1u << 20);
    }
    return 1024;
}

/* Fills the page and returns its length, or 0 when there is no such page. */
static unsigned build(const struct emu_ctrl *ctrl, uint8_t lid, uint8_t csi, uint8_t *p)
{
    switch (lid) {
    case LOG_SUPPORTED:
        return supported_page(ctrl, p);
    case LOG_ERROR:
        return error_page(ctrl, p);
    case LOG_SMART:
        return smart_page(ctrl, p);
    case LOG_FIRMWARE:
        firmware_page(ctrl, p);
        return 512;
    case LOG_CHANGED_NS:
        return changed_page(ctrl, p);
    case LOG_EFFECTS:
        return ctrl->config.no_effects ? 0 : effects_page(ctrl, csi, p);
    case LOG_FEATURES:
        return features_page(ctrl, p);
    case LOG_MI_EFFECTS: /* no management interface, so nothing is supported */
        return 1024;
    case LOG_RESERVATION: /* one host only: no reservation is ever taken from it, and the page stays empty */
        return 64;
    default:
        return 0;
    }
}

uint16_t admin_get_log(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint8_t ours[LOG_MAX] = {0}, *extra = NULL, *page = ours;
    uint8_t lid = (uint8_t)sqe->cdw10;
    bool retain = sqe->cdw10 & 1u << 15; /* RAE */
    uint64_t nbytes = (((uint64_t)(sqe->cdw11 & 0xffff) << 16 | sqe->cdw10 >> 16) + 1) * 4;
    uint64_t offset = (uint64_t)sqe->cdw13 << 32 | sqe->cdw12;
    ctrl->error_location = 40;
    if ((offset & 3) || sqe->cdw14 & 1u << 23) /* OT: no page has an index */
        return SC_INVALID_FIELD;
    /* A page of ours ends where it ends; more may be asked for, to the limit of one transfer, and
     * is zeroes. */
    if (nbytes > (ctrl->config.mdts ? 4096ull << ctrl->config.mdts : 1ull << 20))
        return SC_INVALID_FIELD;
    uint8_t csi = (uint8_t)(sqe->cdw14 >> 24);
    if (lid == LOG_SMART && sqe->nsid && sqe->nsid != NSID_ALL)
        return SC_INVALID_FIELD; /* LPA: there is none by namespace */

    size_t length = build(ctrl, lid, csi, page);
    uint16_t status = SC_SUCCESS;
    if (!length) {
        page = extra = extras_log(ctrl, sqe, &length, &status);
        if (!extra)
            return status;
    }
    if (offset > length) {
        free(extra);
        return SC_INVALID_FIELD;
    }
    uint64_t valid = length - offset < nbytes ? length - offset : nbytes;
    status = copy_to_host_padded(ctrl, sqe, page + offset, valid, nbytes);
    free(extra);
    /* Only what the host has got is cleared. */
    if (!status && !retain) {
        if (lid == LOG_CHANGED_NS)
            ctrl->changed = 0;
        event_cleared(ctrl, lid);
    }
    return status;
}
