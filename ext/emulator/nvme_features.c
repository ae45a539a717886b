/*
 * Get Features and Set Features (Base 2.0, 5.15 and 5.27). Saved values last as long as the
 * controller's process, if the option save_features offers them. Without a saved value "saved" is
 * the default (Select 010b), and SV=1 is refused with Feature Identifier Not Saveable where nothing
 * can be saved.
 */
#include "nvme_ctrl.h"

enum { SELECT_CURRENT, SELECT_DEFAULT, SELECT_SAVED, SELECT_CAPABILITIES };

#define CHANGEABLE 4u
#define NS_SPECIFIC 2u
#define SAVEABLE 1u

/* Can its value be saved? Not those that have a data structure, or a value for each vector. */
static bool saveable(const struct emu_ctrl *ctrl, uint8_t fid)
{
    switch (fid) {
    case FEAT_ARBITRATION:
    case FEAT_POWER:
    case FEAT_TEMPERATURE:
    case FEAT_ERROR_RECOVERY:
    case FEAT_WRITE_CACHE:
    case FEAT_COALESCING:
    case FEAT_ATOMICITY:
    case FEAT_ASYNC_EVENT:
    case FEAT_NON_OPERATIONAL:
    case FEAT_LBA_STATUS:
        return ctrl->config.extras.save_features;
    default:
        return false;
    }
}

/* Changeable and namespace specific, as in capabilities(); -1: the feature isn't there. */
static int change_capabilities(const struct emu_ctrl *ctrl, uint8_t fid)
{
    switch (fid) {
    case FEAT_ARBITRATION:
    case FEAT_POWER:
    case FEAT_TEMPERATURE:
    case FEAT_QUEUES:
    case FEAT_COALESCING:
    case FEAT_VECTOR:
    case FEAT_ATOMICITY:
    case FEAT_ASYNC_EVENT:
    case FEAT_TIMESTAMP:
    case FEAT_KEEP_ALIVE:
    case FEAT_HOST_BEHAVIOUR:
    case FEAT_HOST_ID:
        return CHANGEABLE;
    case FEAT_AUTONOMOUS_POWER:
    case FEAT_NON_OPERATIONAL:
        return ctrl->config.extras.power_states > 1 ? (int)CHANGEABLE : -1;
    case FEAT_HOST_MEMORY:
        return ctrl->config.extras.hmb_nbytes ? (int)CHANGEABLE : -1;
    case FEAT_LBA_STATUS:
        return ctrl->config.extras.lba_status ? (int)CHANGEABLE : -1;
    case FEAT_ENDURANCE:
        return ctrl->config.extras.endurance ? (int)CHANGEABLE : -1;
    case FEAT_BOOT_PROTECTION:
        return ctrl->config.extras.boot_protection ? (int)CHANGEABLE : -1;
    case FEAT_FDP:
        return ctrl->config.extras.fdp_handles ? (int)(CHANGEABLE | SAVEABLE) : -1;
    case FEAT_FDP_EVENTS:
        return ctrl->config.extras.fdp_handles ? (int)(CHANGEABLE | NS_SPECIFIC) : -1;
    case FEAT_COMMAND_SET:
        return CC_CSS(ctrl->cc) == CC_CSS_ALL ? (int)CHANGEABLE : -1;
    case FEAT_WRITE_CACHE:
        return ctrl->has_cache ? (int)CHANGEABLE : -1;
    case FEAT_ERROR_RECOVERY:
    case FEAT_RESV_MASK:
        return CHANGEABLE | NS_SPECIFIC;
    case FEAT_RESV_PERSIST:
        return NS_SPECIFIC;
    default:
        return -1;
    }
}

/* Capabilities (Select 011b), or -1 when the feature isn't there. */
static int capabilities(const struct emu_ctrl *ctrl, uint8_t fid)
{
    int caps = change_capabilities(ctrl, fid);
    return caps < 0 ? caps : caps | (saveable(ctrl, fid) ? (int)SAVEABLE : 0);
}

static uint32_t default_value(const struct emu_ctrl *ctrl, uint8_t fid, uint32_t cdw11)
{
    switch (fid) {
    case FEAT_ARBITRATION:
        return 5; /* AB: 32 commands, which is what a turn takes from a queue */
    case FEAT_TEMPERATURE:
        /* composite, over: 70 C; the other sensors have none */
        return cdw11 & 0x1f0000 ? 0 : 343;
    case FEAT_WRITE_CACHE:
        return 1;
    case FEAT_BOOT_PROTECTION:
        return 2 | 2 << 3; /* both locked */
    case FEAT_QUEUES:
        return (ctrl->config.n_io_queues - 1) | (ctrl->config.n_io_queues - 1) << 16;
    case FEAT_COALESCING: /* as if they had been saved */
        return ctrl->config.aggregation_threshold | (uint32_t)ctrl->config.aggregation_time << 8;
    case FEAT_VECTOR:
        return cdw11 & 0xffff;
    default:
        return 0;
    }
}

static bool is_saved(const struct emu_ctrl *ctrl, uint8_t fid)
{
    return ctrl->extras.saved.bits[fid / 64] >> fid % 64 & 1;
}

/* The value that Get Features reports of the stored one. */
static uint32_t reported(uint8_t fid, uint32_t value, uint32_t cdw11)
{
    if (fid != FEAT_TEMPERATURE)
        return value;
    return cdw11 & 0x1f0000 && (cdw11 >> 16 & 15) ? 0 : cdw11 >> 20 & 3 ? value >> 16 : value & 0xffff;
}

static uint16_t get_saved(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint8_t fid, uint32_t *result)
{
    if (fid == FEAT_ERROR_RECOVERY) {
        struct ns *ns;
        uint16_t status = ns_find(ctrl, sqe->nsid, &ns);
        if (!status)
            *result = ctrl->extras.saved.error_recovery[sqe->nsid - 1];
        return status;
    }
    *result = reported(fid, ctrl->extras.saved.values[fid], sqe->cdw11);
    return SC_SUCCESS;
}

static void save(struct emu_ctrl *ctrl, uint8_t fid, uint32_t nsid)
{
    struct saved_features *saved = &ctrl->extras.saved;
    saved->bits[fid / 64] |= 1ull << fid % 64;
    saved->values[fid] = ctrl->features[fid];
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES && fid == FEAT_ERROR_RECOVERY; i++)
        if (nsid == NSID_ALL || nsid == i + 1)
            saved->error_recovery[i] = ctrl->error_recovery[i];
}

/* After a Controller Level Reset every feature has its saved value, or its default. */
void features_reset(struct emu_ctrl *ctrl)
{
    for (unsigned fid = 0; fid < 256; fid++)
        ctrl->features[fid] =
            is_saved(ctrl, (uint8_t)fid) ? ctrl->extras.saved.values[fid] : default_value(ctrl, (uint8_t)fid, 0);
    for (unsigned vector = 0; vector < EMU_MAX_VECTORS; vector++)
        ctrl->vector_config[vector] = vector;
    memcpy(ctrl->error_recovery, ctrl->extras.saved.error_recovery, sizeof(ctrl->error_recovery));
    memset(ctrl->host_behaviour, 0, sizeof(ctrl->host_behaviour));
    memset(ctrl->hostid, 0, sizeof(ctrl->hostid));
    ctrl->hostid_extended = false;
    ctrl->timestamp = 0;
    ctrl->timestamp_at = now_ns();
    ctrl->timestamp_origin = 0;
    ctrl->keep_alive_at = UINT64_MAX;
    irq_configure(ctrl);
}

/* Base 2.0, 5.27.1.10: 48 bits of milliseconds, then whether they were set by the host. */
uint64_t timestamp(const struct emu_ctrl *ctrl)
{
    uint64_t ms = ctrl->timestamp + (now_ns() - ctrl->timestamp_at) / 1000000;
    return (ms & 0xffffffffffffull) | (uint64_t)ctrl->timestamp_origin << 49;
}

static uint16_t get_current(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint8_t fid, uint32_t *result)
{
    struct ns *ns;
    uint16_t status;
    uint64_t value;
    switch (fid) {
    case FEAT_TEMPERATURE:
        if (sqe->cdw11 & 0x1f0000 && (sqe->cdw11 >> 16 & 15) != 0)
            return SC_INVALID_FIELD; /* TMPSEL: the composite temperature is the only one */
        *result = reported(fid, ctrl->features[fid], sqe->cdw11);
        return SC_SUCCESS;
    case FEAT_VECTOR:
        if ((sqe->cdw11 & 0xffff) >= ctrl->config.n_vectors)
            return SC_INVALID_FIELD;
        *result = ctrl->vector_config[sqe->cdw11 & 0xffff];
        return SC_SUCCESS;
    case FEAT_ERROR_RECOVERY:
    case FEAT_RESV_MASK:
    case FEAT_RESV_PERSIST:
        status = ns_find(ctrl, sqe->nsid, &ns);
        if (!status)
            *result = fid == FEAT_ERROR_RECOVERY ? ctrl->error_recovery[sqe->nsid - 1]
                      : fid == FEAT_RESV_MASK    ? ns->resv.mask
                                                 : 0;
        return status;
    case FEAT_TIMESTAMP:
        value = timestamp(ctrl);
        return copy_to_host(ctrl, sqe, &value, sizeof(value));
    case FEAT_HOST_BEHAVIOUR:
        return copy_to_host(ctrl, sqe, ctrl->host_behaviour, sizeof(ctrl->host_behaviour));
    case FEAT_POWER:
        *result = power_get_state(ctrl);
        return SC_SUCCESS;
    case FEAT_AUTONOMOUS_POWER:
        return power_get_autonomous(ctrl, sqe, true, result);
    case FEAT_HOST_MEMORY:
        return hmb_get(ctrl, sqe, true, result);
    case FEAT_BOOT_PROTECTION:
        *result = boot_get_protection(ctrl);
        return SC_SUCCESS;
    case FEAT_FDP:
        return fdp_get_mode(ctrl, sqe, result);
    case FEAT_FDP_EVENTS:
        return fdp_get_events(ctrl, sqe, result);
    case FEAT_HOST_ID:
        *result = ctrl->hostid_extended;
        return copy_to_host(ctrl, sqe, ctrl->hostid, sqe->cdw11 & 1 ? 16 : 8);
    default:
        *result = ctrl->features[fid];
        return SC_SUCCESS;
    }
}

uint16_t admin_get_features(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    uint8_t fid = (uint8_t)sqe->cdw10, select = sqe->cdw10 >> 8 & 7;
    int caps = capabilities(ctrl, fid);
    ctrl->error_location = 40;
    if (caps < 0 || select > SELECT_CAPABILITIES)
        return SC_INVALID_FIELD;
    uint64_t zero[64] = {0};
    switch (select) {
    case SELECT_CAPABILITIES:
        *result = (uint32_t)caps;
        return SC_SUCCESS;
    case SELECT_DEFAULT:
    case SELECT_SAVED:
        if (select == SELECT_SAVED && is_saved(ctrl, fid))
            return get_saved(ctrl, sqe, fid, result);
        *result = default_value(ctrl, fid, sqe->cdw11);
        if (fid == FEAT_TIMESTAMP)
            return copy_to_host(ctrl, sqe, zero, 8);
        if (fid == FEAT_AUTONOMOUS_POWER)
            return power_get_autonomous(ctrl, sqe, false, result);
        if (fid == FEAT_HOST_MEMORY)
            return hmb_get(ctrl, sqe, false, result);
        if (fid == FEAT_HOST_BEHAVIOUR)
            return copy_to_host(ctrl, sqe, zero, 512);
        if (fid == FEAT_HOST_ID)
            return copy_to_host(ctrl, sqe, zero, sqe->cdw11 & 1 ? 16 : 8);
        return SC_SUCCESS;
    default:
        return get_current(ctrl, sqe, fid, result);
    }
}

static uint16_t set_temperature(struct emu_ctrl *ctrl, uint32_t value)
{
    uint32_t sensor = value >> 16 & 15, kind = value >> 20 & 3;
    if ((sensor && sensor != 15) || kind > 1)
        return SC_INVALID_FIELD;
    if (kind)
        ctrl->features[FEAT_TEMPERATURE] = (ctrl->features[FEAT_TEMPERATURE] & 0xffff) | (value & 0xffff) << 16;
    else
        ctrl->features[FEAT_TEMPERATURE] = (ctrl->features[FEAT_TEMPERATURE] & ~0xffffu) | (value & 0xffff);
    smart_check(ctrl);
    return SC_SUCCESS;
}

static bool io_queues_exist(const struct emu_ctrl *ctrl)
{
    for (unsigned qid = 1; qid < N_QUEUES; qid++)
        if (ctrl->sqs[qid].created || ctrl->cqs[qid].created)
            return true;
    return false;
}

/* All queues are allocated always, whatever is asked for (Base 2.0, 5.27.1.5 allows more and
 * less). */
static uint16_t set_queues(struct emu_ctrl *ctrl, uint32_t value, uint32_t *result)
{
    if ((value & 0xffff) == 0xffff || value >> 16 == 0xffff)
        return SC_INVALID_FIELD;
    if (io_queues_exist(ctrl))
        return SC_COMMAND_SEQUENCE;
    *result = ctrl->features[FEAT_QUEUES];
    return SC_SUCCESS;
}

static uint16_t set_error_recovery(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    if (sqe->cdw11 & 0x10000) /* DULBE: NSFEAT says that it isn't there */
        return SC_INVALID_FIELD;
    struct ns *ns;
    if (sqe->nsid != NSID_ALL) {
        uint16_t status = ns_find(ctrl, sqe->nsid, &ns);
        if (!status)
            ctrl->error_recovery[sqe->nsid - 1] = sqe->cdw11 & 0xffff;
        return status;
    }
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES; i++)
        ctrl->error_recovery[i] = sqe->cdw11 & 0xffff;
    return SC_SUCCESS;
}

static uint16_t set_resv_mask(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    for (unsigned i = 0; sqe->nsid == NSID_ALL && i < EMU_MAX_NAMESPACES; i++)
        if (ctrl->namespaces[i])
            ctrl->namespaces[i]->resv.mask = sqe->cdw11 & 0xe;
    if (sqe->nsid == NSID_ALL)
        return SC_SUCCESS;
    struct ns *ns;
    uint16_t status = ns_find(ctrl, sqe->nsid, &ns);
    if (!status)
        ns->resv.mask = sqe->cdw11 & 0xe;
    return status;
}

static uint16_t set_timestamp(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint64_t value;
    uint16_t status = copy_from_host(ctrl, sqe, &value, sizeof(value));
    if (status)
        return status;
    ctrl->timestamp = value & 0xffffffffffffull;
    ctrl->timestamp_at = now_ns();
    ctrl->timestamp_origin = 1;
    return SC_SUCCESS;
}

static uint16_t set_host_id(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint8_t id[16] = {0};
    uint16_t status = copy_from_host(ctrl, sqe, id, sqe->cdw11 & 1 ? 16 : 8);
    if (status)
        return status;
    static const uint8_t none[16];
    bool set = memcmp(ctrl->hostid, none, sizeof(none));
    if (set && memcmp(ctrl->hostid, id, sizeof(id)))
        return SC_COMMAND_SEQUENCE; /* once set it stays until a reset (Base 2.0, 5.27.1.25) */
    memcpy(ctrl->hostid, id, sizeof(id));
    ctrl->hostid_extended = sqe->cdw11 & 1;
    return SC_SUCCESS;
}

static uint16_t set_plain(struct emu_ctrl *ctrl, uint8_t fid, uint32_t value, uint32_t valid)
{
    ctrl->features[fid] = value & valid;
    return SC_SUCCESS;
}

/* Switching it off writes it back (Base 2.1, 5.1.25.1.4). */
static uint16_t set_write_cache(struct emu_ctrl *ctrl, uint32_t value)
{
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES && !(value & 1); i++)
        if (ctrl->namespaces[i] && ctrl->namespaces[i]->media.undo)
            undo_flush(&ctrl->namespaces[i]->media);
    return set_plain(ctrl, FEAT_WRITE_CACHE, value, 1);
}

static uint16_t set_feature(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    uint8_t fid = (uint8_t)sqe->cdw10;
    uint32_t value = sqe->cdw11;
    int caps = capabilities(ctrl, fid);
    ctrl->error_location = 40;
    if (caps < 0)
        return SC_INVALID_FIELD;
    if (sqe->cdw10 >> 31 && !(caps & SAVEABLE))
        return SC_NOT_SAVEABLE;
    if (!(caps & CHANGEABLE))
        return SC_NOT_CHANGEABLE;
    if (!(caps & NS_SPECIFIC) && sqe->nsid && sqe->nsid != NSID_ALL)
        return SC_NOT_NS_SPECIFIC;
    ctrl->error_location = 44;
    switch (fid) {
    case FEAT_ARBITRATION:
        return set_plain(ctrl, fid, value, 0xffffff07);
    case FEAT_POWER:
        return power_set_state(ctrl, value);
    case FEAT_AUTONOMOUS_POWER:
        return power_set_autonomous(ctrl, sqe);
    case FEAT_NON_OPERATIONAL:
        return set_plain(ctrl, fid, value, 1);
    case FEAT_TEMPERATURE:
        return set_temperature(ctrl, value);
    case FEAT_ERROR_RECOVERY:
        return set_error_recovery(ctrl, sqe);
    case FEAT_WRITE_CACHE:
        return set_write_cache(ctrl, value);
    case FEAT_HOST_MEMORY:
        return hmb_set(ctrl, sqe);
    case FEAT_LBA_STATUS:
        return set_plain(ctrl, fid, value, 0xffffffff);
    case FEAT_ENDURANCE:
        return !capacity_group_exists(ctrl, value & 0xffff) ? SC_INVALID_FIELD : set_plain(ctrl, fid, value, 0xffffff);
    case FEAT_BOOT_PROTECTION:
        return boot_set_protection(ctrl, value);
    case FEAT_FDP:
        return fdp_set_mode(ctrl, sqe);
    case FEAT_FDP_EVENTS:
        return fdp_set_events(ctrl, sqe);
    case FEAT_QUEUES:
        return set_queues(ctrl, value, result);
    case FEAT_COALESCING:
        ctrl->features[fid] = value & 0xffff;
        irq_configure(ctrl);
        return SC_SUCCESS;
    case FEAT_VECTOR:
        if ((value & 0xffff) >= ctrl->config.n_vectors)
            return SC_INVALID_FIELD;
        ctrl->vector_config[value & 0xffff] = value & 0x1ffff;
        return SC_SUCCESS;
    case FEAT_ATOMICITY:
        return set_plain(ctrl, fid, value, 1);
    case FEAT_ASYNC_EVENT:
        return set_plain(ctrl, fid, value, 0x1ff | extras_events(ctrl));
    case FEAT_TIMESTAMP:
        return set_timestamp(ctrl, sqe);
    case FEAT_KEEP_ALIVE: /* rounded up to KAS, 100 ms */
        value = value > UINT32_MAX - 99 ? UINT32_MAX : (value + 99) / 100 * 100;
        ctrl->features[fid] = value;
        ctrl->keep_alive_at = value ? now_ns() + value * 1000000ull : UINT64_MAX;
        return SC_SUCCESS;
    case FEAT_HOST_BEHAVIOUR:
        return copy_from_host(ctrl, sqe, ctrl->host_behaviour, sizeof(ctrl->host_behaviour));
    case FEAT_COMMAND_SET: /* I/O Command Set Profile: combination 0 is the only one */
        return value & 0x1ff ? SC_IOCS_COMBINATION_REJECTED : SC_SUCCESS;
    case FEAT_HOST_ID:
        return set_host_id(ctrl, sqe);
    default:
        return set_resv_mask(ctrl, sqe);
    }
}

uint16_t admin_set_features(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    uint8_t fid = (uint8_t)sqe->cdw10;
    uint64_t before = fid == FEAT_TIMESTAMP ? timestamp(ctrl) : 0;
    uint16_t status = set_feature(ctrl, sqe, result);
    if (status)
        return status;
    if (sqe->cdw10 >> 31)
        save(ctrl, fid, sqe->nsid);
    uint64_t moment[2] = {before, (now_ns() - ctrl->power_on_at) / 1000000};
    uint32_t event[4] = {2, sqe->cdw10, sqe->cdw11, 0}; /* two dwords of the command */
    if (fid == FEAT_TIMESTAMP)
        persistent_add(ctrl, PEL_TIMESTAMP, moment, sizeof(moment));
    else
        persistent_add(ctrl, PEL_SET_FEATURE, event, 12);
    return status;
}
