/* Which features beyond a plain drive's are offered, and what they add to commands, Identify,
 * events and log pages. */
#include <stdlib.h>

#include "nvme_ctrl.h"

const char *extras_objection(const struct emu_config *config)
{
    const struct emu_extras *extras = &config->extras;
    if (extras->firmware_slots > 7 || extras->firmware_slots == 1)
        return "the number of firmware slots must be 0 (one, not to be written) or 2 to 7";
    if (extras->ana_groups > EMU_MAX_NAMESPACES)
        return "at most 16 ANA groups are supported";
    if (extras->capacity && extras->medium == EMU_MEDIUM_FILE && !extras->path)
        return "namespaces on files need a path";
    if (extras->key_value && extras->zoned)
        return "namespaces are zoned or hold keys and values";
    if (extras->hmb_nbytes % 4096 || extras->hmb_min_nbytes % 4096 || extras->hmb_entry_nbytes % 4096 ||
        extras->hmb_min_nbytes > extras->hmb_nbytes)
        return "the sizes of the host memory buffer must be multiples of 4 KiB, the minimum at most the preferred one";
    if (extras->fdp_handles &&
        (extras->fdp_handles > EMU_MAX_HANDLES || extras->fdp_groups < 1 || extras->fdp_groups > EMU_MAX_GROUPS ||
         extras->fdp_unit_nbytes < 4096 || extras->fdp_unit_nbytes % 4096))
        return "at most 128 reclaim unit handles and 16 reclaim groups, of reclaim units of whole 4 KiB, are supported";
    if (extras->sgl && !(extras->sgl & EMU_SGL_BYTE) == !(extras->sgl & EMU_SGL_DWORD))
        return "SGLs are by byte or by dword";
    if (extras->secondary > EMU_MAX_SECONDARY)
        return "at most 16 secondary controllers are supported";
    if (extras->capacity_management && (!extras->capacity || extras->fdp_handles))
        return "capacity management needs a capacity, and excludes Flexible Data Placement";
    if (extras->boot_protection && !extras->boot_nbytes)
        return "there are no boot partitions to protect";
    if (extras->streams > EMU_MAX_STREAMS)
        return "at most 256 streams are supported";
    const char *region = region_objection(extras);
    if (region)
        return region;
    const char *objection = power_objection(extras);
    return objection ? objection : boot_objection(extras);
}

void extras_init(struct emu_ctrl *ctrl)
{
    if (ctrl->config.extras.path)
        ctrl->config.extras.path = strdup(ctrl->config.extras.path); /* the caller's goes */
    if (ctrl->config.extras.pmr_path)
        ctrl->config.extras.pmr_path = strdup(ctrl->config.extras.pmr_path);
    firmware_init(ctrl);
    fdp_enable(ctrl, ctrl->config.extras.fdp_handles);
    for (uint32_t group = 1; group <= ctrl->config.extras.ana_groups; group++)
        ctrl->extras.ana.states[group] = ANA_OPTIMIZED;
}

void extras_free(struct emu_ctrl *ctrl)
{
    free((char *)ctrl->config.extras.path);
    free((char *)ctrl->config.extras.pmr_path);
    region_free(ctrl);
    free(ctrl->extras.firmware.image);
    free(ctrl->extras.persistent.context);
    hmb_free(&ctrl->extras.hmb);
    boot_free(ctrl);
}

/* A Controller Level Reset: operations in progress continue, except a short self-test. */
void extras_reset(struct emu_ctrl *ctrl)
{
    uint8_t event[44] = {0};
    memcpy(event, ctrl->config.firmware, strnlen(ctrl->config.firmware, 8));
    put64(event, 28, (now_ns() - ctrl->power_on_at) / 1000000);
    ctrl->format_waits = false;
    if (ctrl->extras.self_test.code == 1)
        self_test_end(ctrl, SELF_TEST_ABORTED_RESET);
    firmware_reset(ctrl);
    hmb_reset(ctrl);
    power_reset(ctrl);
    virtual_reset(ctrl);
    memset(&ctrl->extras.timing, 0, sizeof(ctrl->extras.timing));
    directives_reset(ctrl);
    free(ctrl->extras.persistent.context);
    ctrl->extras.persistent.context = NULL;
    persistent_add(ctrl, PEL_RESET, event, sizeof(event));
}

/* SC_SUCCESS, or why a command can't be executed now: a sanitize is in progress or has failed (Base
 * 2.1, 8.1.24.4). */
uint16_t extras_forbid(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, bool admin)
{
    uint8_t state = ctrl->extras.sanitize.state, lid = (uint8_t)sqe->cdw10;
    if (state != 2 && state != 3)
        return SC_SUCCESS;
    uint16_t status = state == 2 ? SC_SANITIZE_IN_PROGRESS : SC_SANITIZE_FAILED;
    if (!admin)
        return status;
    switch (sqe->opcode) {
    case ADMIN_FORMAT:
    case ADMIN_NS_MANAGEMENT:
    case ADMIN_NS_ATTACHMENT:
    case ADMIN_FIRMWARE_COMMIT:
    case ADMIN_FIRMWARE_DOWNLOAD:
    case ADMIN_SELF_TEST:
    case ADMIN_SECURITY_SEND:
    case ADMIN_SECURITY_RECEIVE:
    case ADMIN_LBA_STATUS:
        return status;
    case ADMIN_GET_LOG_PAGE:
        return lid == LOG_PERSISTENT || lid == LOG_TELEMETRY_HOST || lid == LOG_TELEMETRY_CONTROLLER ? status
                                                                                                     : SC_SUCCESS;
    default:
        return SC_SUCCESS;
    }
}

/* Commands, by the option that offers them: OACS bit, effects. */
static const struct {
    uint8_t opcode, oacs;
    uint32_t effects;
} COMMANDS[] = {
    {ADMIN_SECURITY_SEND, 0, 1},
    {ADMIN_SECURITY_RECEIVE, 0, 1},
    {ADMIN_FIRMWARE_DOWNLOAD, 2, 1},
    {ADMIN_FIRMWARE_COMMIT, 2, 1 | 1u << 4 | 2u << 16}, /* CCC, not beside any other command */
    {ADMIN_NS_MANAGEMENT, 3, 1 | 1u << 1 | 1u << 3 | 2u << 16},
    {ADMIN_NS_ATTACHMENT, 3, 1 | 1u << 3 | 2u << 16},
    {ADMIN_SELF_TEST, 4, 1},
    {ADMIN_DIRECTIVE_SEND, 5, 1},
    {ADMIN_DIRECTIVE_RECEIVE, 5, 1},
    {ADMIN_LBA_STATUS, 9, 1},
    {ADMIN_LOCKDOWN, 10, 1},
    {ADMIN_VIRTUALIZATION, 7, 1},
};

static bool offered(const struct emu_extras *extras, uint8_t oacs)
{
    switch (oacs) {
    case 0:
        return extras->security;
    case 2:
        return extras->firmware_slots || extras->boot_nbytes;
    case 3:
        return extras->capacity;
    case 4:
        return extras->self_test;
    case 5:
        return extras->streams || extras->fdp_handles;
    case 7:
        return extras->secondary;
    case 10:
        return extras->lockdown;
    default:
        return extras->lba_status;
    }
}

static bool command_offered(const struct emu_extras *extras, uint8_t opcode)
{
    for (unsigned i = 0; i < sizeof(COMMANDS) / sizeof(COMMANDS[0]); i++)
        if (COMMANDS[i].opcode == opcode)
            return offered(extras, COMMANDS[i].oacs);
    return (opcode == ADMIN_SANITIZE && extras->sanitize) || (opcode == ADMIN_CAPACITY && extras->capacity_management);
}

uint16_t extras_admin(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    if (!command_offered(&ctrl->config.extras, sqe->opcode))
        return SC_INVALID_OPCODE;
    switch (sqe->opcode) {
    case ADMIN_NS_MANAGEMENT:
        return admin_ns_management(ctrl, sqe, result);
    case ADMIN_NS_ATTACHMENT:
        return admin_ns_attachment(ctrl, sqe);
    case ADMIN_FIRMWARE_DOWNLOAD:
        return admin_firmware_download(ctrl, sqe);
    case ADMIN_FIRMWARE_COMMIT:
        return admin_firmware_commit(ctrl, sqe, result);
    case ADMIN_SELF_TEST:
        return admin_self_test(ctrl, sqe);
    case ADMIN_SANITIZE:
        return admin_sanitize(ctrl, sqe);
    case ADMIN_LBA_STATUS:
        return admin_lba_status(ctrl, sqe);
    case ADMIN_DIRECTIVE_SEND:
        return admin_directive_send(ctrl, sqe);
    case ADMIN_DIRECTIVE_RECEIVE:
        return admin_directive_receive(ctrl, sqe, result);
    case ADMIN_LOCKDOWN:
        return admin_lockdown(ctrl, sqe);
    case ADMIN_VIRTUALIZATION:
        return admin_virtualization(ctrl, sqe, result);
    case ADMIN_CAPACITY:
        return admin_capacity(ctrl, sqe, result);
    default:
        return admin_security(ctrl, sqe);
    }
}

void extras_effects(const struct emu_ctrl *ctrl, uint8_t *p)
{
    for (unsigned i = 0; i < sizeof(COMMANDS) / sizeof(COMMANDS[0]); i++)
        if (offered(&ctrl->config.extras, COMMANDS[i].oacs))
            put32(p, COMMANDS[i].opcode * 4u, COMMANDS[i].effects);
    if (ctrl->config.extras.sanitize)
        put32(p, ADMIN_SANITIZE * 4u, 1 | 1u << 1 | 2u << 16);
    if (ctrl->config.extras.capacity_management)
        put32(p, ADMIN_CAPACITY * 4u, 1 | 1u << 1 | 1u << 3 | 1u << 4 | 2u << 16); /* LBCC, NIC, CCC */
}

/* Optional asynchronous events, as bits of OAES and of feature 0Bh. */
uint32_t extras_events(const struct emu_ctrl *ctrl)
{
    const struct emu_extras *extras = &ctrl->config.extras;
    return (extras->firmware_slots ? 1u << 9 : 0) | (extras->telemetry ? 1u << 10 : 0) |
           (extras->ana_groups ? 1u << 11 : 0) | (extras->lba_status ? 1u << 13 : 0) |
           (extras->endurance ? 1u << 14 : 0) | (extras->zoned ? 1u << 27 : 0);
}

void extras_identify(const struct emu_ctrl *ctrl, uint8_t *p)
{
    const struct emu_extras *extras = &ctrl->config.extras;
    uint16_t oacs;
    uint32_t oaes, ctratt;
    memcpy(&oaes, p + 92, 4);
    memcpy(&ctratt, p + 96, 4);
    memcpy(&oacs, p + 256, 2);
    for (unsigned i = 0; i < sizeof(COMMANDS) / sizeof(COMMANDS[0]); i++)
        oacs |= offered(extras, COMMANDS[i].oacs) ? (uint16_t)(1u << COMMANDS[i].oacs) : 0;
    put16(p, 256, oacs);
    put32(p, 92, oaes | extras_events(ctrl));
    p[261] |= (uint8_t)((extras->telemetry ? 1u << 3 : 0) | (extras->persistent_events ? 1u << 4 : 0));
    if (extras->firmware_slots) {
        p[260] = (uint8_t)(1u << 4 | extras->firmware_slots << 1); /* FRMW: activation without reset, slots */
        p[319] = IMAGE_PIECE / 4096;                               /* FWUG */
    }
    if (extras->capacity) {
        put64(p, 280, extras->capacity); /* TNVMCAP, UNVMCAP */
        put64(p, 296, capacity_left(ctrl));
    }
    if (extras->self_test) {
        put16(p, 316, (uint16_t)(extras->self_test_ns * 2 / 60000000000ull + 1)); /* EDSTT, minutes */
        p[318] = 1;                                                               /* DSTO: one at a time */
    }
    if (extras->sanitize)
        put32(p, 328,
              1u << 30 | 7); /* SANICAP: nothing else changes media afterwards; crypto, block erase, overwrite */
    if (extras->ana_groups) {
        p[76] |= 1u << 3;   /* CMIC: ANA */
        p[342] = 10;        /* ANATT, seconds */
        p[343] = 0x1f;      /* ANACAP: every state; a namespace's group doesn't change */
        put32(p, 344, extras->ana_groups);
        put32(p, 348, extras->ana_groups);
    }
    if (extras->endurance) {
        ctratt |= 1u << 4 | (extras->fdp_handles ? 1u << 19 : 0);
        put16(p, 340, 1); /* ENDGIDMAX */
    }
    capacity_identify(ctrl, p, &ctratt);
    if (extras->boot_protection)
        p[102] = 1u << 2 | 1; /* BPCAP: by Set Features, not by RPMB */
    if (extras->persistent_events)
        put32(p, 352, 1); /* PELS, in 64 KiB */
    hmb_identify(extras, p);
    power_identify(extras, p, &ctratt);
    put32(p, 96, ctratt);
}

bool extras_log_offered(const struct emu_ctrl *ctrl, uint8_t lid)
{
    const struct emu_extras *extras = &ctrl->config.extras;
    switch (lid) {
    case LOG_SELF_TEST:
        return extras->self_test;
    case LOG_TELEMETRY_HOST:
    case LOG_TELEMETRY_CONTROLLER:
        return extras->telemetry;
    case LOG_ENDURANCE:
    case LOG_ENDURANCE_EVENTS:
        return extras->endurance;
    case LOG_ANA:
        return extras->ana_groups;
    case LOG_PERSISTENT:
        return extras->persistent_events;
    case LOG_LBA_STATUS:
        return extras->lba_status;
    case LOG_SANITIZE:
        return extras->sanitize;
    case LOG_LOCKDOWN:
        return extras->lockdown;
    case LOG_BOOT_PARTITION:
        return extras->boot_nbytes;
    case LOG_CHANGED_ZONES:
        return extras->zoned;
    case LOG_FDP_CONFIGURATIONS:
    case LOG_FDP_USAGE:
    case LOG_FDP_STATISTICS:
    case LOG_FDP_EVENTS:
        return extras->fdp_handles;
    default:
        return false;
    }
}

static void endurance_page(const struct emu_ctrl *ctrl, uint32_t group, uint8_t *p)
{
    p[3] = 100; /* available spare, its threshold */
    p[4] = 10;
    put64(p, 48, (ctrl->blocks_read * 512 + 999999999) / 1000000000);
    put64(p, 64, (ctrl->blocks_written * 512 + 999999999) / 1000000000);
    put64(p, 80, (ctrl->blocks_written * 512 + 999999999) / 1000000000);
    put64(p, 96, ctrl->counters.commands_read);
    put64(p, 112, ctrl->counters.commands_written);
    put64(p, 128, ctrl->media_errors);
    put64(p, 144, ctrl->n_errors);
    capacity_endurance(ctrl, group, p);
}

uint8_t *extras_log(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status)
{
    uint8_t lid = (uint8_t)sqe->cdw10, *page = NULL;
    *status = SC_LOG_PAGE_INVALID;
    if (!extras_log_offered(ctrl, lid))
        return NULL;
    *status = SC_INTERNAL;
    switch (lid) {
    case LOG_TELEMETRY_HOST:
    case LOG_TELEMETRY_CONTROLLER:
        return telemetry_page(ctrl, sqe, nbytes);
    case LOG_ANA:
        return ana_page(ctrl, sqe, nbytes);
    case LOG_PERSISTENT:
        return persistent_page(ctrl, sqe, nbytes, status);
    case LOG_LBA_STATUS:
        return lba_status_page(ctrl, nbytes);
    case LOG_CHANGED_ZONES:
        return zones_changed_page(ctrl, sqe, nbytes, status);
    case LOG_FDP_CONFIGURATIONS:
    case LOG_FDP_USAGE:
    case LOG_FDP_STATISTICS:
    case LOG_FDP_EVENTS:
        return fdp_page(ctrl, sqe, nbytes, status);
    case LOG_LOCKDOWN:
        return lockdown_page(ctrl, sqe, nbytes, status);
    case LOG_BOOT_PARTITION:
        return boot_page(ctrl, sqe, nbytes);
    case LOG_ENDURANCE:
        if (!capacity_group_exists(ctrl, sqe->cdw11 >> 16)) {
            *status = SC_INVALID_FIELD;
            return NULL;
        }
    }
    *nbytes = lid == LOG_SELF_TEST ? 564 : 512;
    page = calloc(1, *nbytes);
    if (!page)
        return NULL;
    if (lid == LOG_SELF_TEST)
        self_test_page(ctrl, page);
    else if (lid == LOG_SANITIZE)
        sanitize_page(ctrl, page);
    else if (lid == LOG_ENDURANCE)
        endurance_page(ctrl, sqe->cdw11 >> 16, page);
    return page; /* Endurance Group Event Aggregate: no events */
}
