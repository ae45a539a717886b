/*
 * What a message-based transport needs of the controller besides its registers: queues that Connect
 * creates instead of admin commands, and several controllers of one subsystem, which share
 * namespaces and faults.
 */
#include "nvme_ctrl.h"

struct emu_ctrl *emu_ctrl_new_sibling(struct emu_ctrl *first, const struct emu_host *host, char *err)
{
    struct emu_config config = first->config;
    config.n_namespaces = 0;
    config.n_vectors = EMU_MAX_VECTORS;
    config.n_io_queues = first->config.n_io_queues;
    config.dbbuf = false;
    const unsigned ana_groups = config.extras.ana_groups;
    memset(&config.extras, 0, sizeof(config.extras));
    config.extras.ana_groups = ana_groups;
    config.adaptive_irqs = false;
    struct emu_ctrl *ctrl = emu_ctrl_new(&config, host, err);
    if (!ctrl)
        return NULL;
    ctrl->by_messages = true;
    faults_destroy(ctrl);
    ctrl->faults = first->faults;
    emu_ctrl_share(ctrl, first, false);
    return ctrl;
}

void emu_ctrl_share(struct emu_ctrl *ctrl, struct emu_ctrl *first, bool notice)
{
    atomic_store_explicit(&ctrl->faults_armed,
                          atomic_load_explicit(&first->faults_armed, memory_order_relaxed) & FAULTS_RULES,
                          memory_order_relaxed);
    ctrl->has_cache = first->has_cache;
    if (!memcmp(ctrl->namespaces, first->namespaces, sizeof(ctrl->namespaces)))
        return;
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES; i++) {
        if (ctrl->namespaces[i] == first->namespaces[i])
            continue;
        ctrl->namespaces[i] = first->namespaces[i];
        ns_changed(ctrl, i + 1, notice);
    }
}

void emu_ctrl_free_sibling(struct emu_ctrl *ctrl)
{
    memset(ctrl->namespaces, 0, sizeof(ctrl->namespaces));
    ctrl->faults = NULL;
    emu_ctrl_free(ctrl);
}

int emu_ctrl_add_queue(struct emu_ctrl *ctrl, uint16_t qid, uint64_t sq, uint64_t cq, uint32_t size)
{
    if (!ctrl->running || !qid || qid > ctrl->config.n_io_queues || ctrl->sqs[qid].created || ctrl->cqs[qid].created)
        return -1;
    cq_init(ctrl, qid, cq, size, 0, false);
    sq_init(ctrl, qid, sq, size, &ctrl->cqs[qid]);
    ctrl->counters.queues_created++;
    return 0;
}

void emu_ctrl_remove_queue(struct emu_ctrl *ctrl, uint16_t qid)
{
    if (!ctrl->sqs[qid].created)
        return;
    held_abort_sq(ctrl, &ctrl->sqs[qid]);
    sq_remove(ctrl, &ctrl->sqs[qid]);
    cq_remove(ctrl, &ctrl->cqs[qid]);
    ctrl->counters.queues_deleted++;
}

void emu_ctrl_ana(struct emu_ctrl *ctrl, uint32_t group, uint8_t state)
{
    ana_set(ctrl, group, state);
}

const struct emu_config *emu_ctrl_config(const struct emu_ctrl *ctrl)
{
    return &ctrl->config;
}

bool emu_ctrl_running(const struct emu_ctrl *ctrl)
{
    return ctrl->running;
}

void emu_ctrl_keep_alive(struct emu_ctrl *ctrl, uint32_t kato_ms)
{
    kato_ms = kato_ms > UINT32_MAX - 99 ? UINT32_MAX : (kato_ms + 99) / 100 * 100; /* KAS: 100 ms */
    ctrl->features[FEAT_KEEP_ALIVE] = kato_ms;
    ctrl->keep_alive_at = kato_ms ? now_ns() + kato_ms * 1000000ull : UINT64_MAX;
}

uint32_t emu_ctrl_kato(const struct emu_ctrl *ctrl)
{
    return ctrl->features[FEAT_KEEP_ALIVE];
}

bool emu_ctrl_has_namespace(const struct emu_ctrl *ctrl, uint32_t nsid)
{
    return nsid - 1 < EMU_MAX_NAMESPACES && ctrl->namespaces[nsid - 1];
}

void emu_ctrl_set_host(struct emu_ctrl *ctrl, const uint8_t hostid[16])
{
    memcpy(ctrl->hostid, hostid, 16);
    ctrl->hostid_extended = true;
}

/* The bytes that a command moves by its own fields, so that an SGL of another length is detected
 * before execution. */
uint64_t emu_ctrl_transfer(struct emu_ctrl *ctrl, uint16_t qid, const void *entry)
{
    const struct nvme_sqe *sqe = entry;
    struct ns *ns;
    const uint64_t numd = ((uint64_t)(sqe->cdw11 & 0xffff) << 16 | sqe->cdw10 >> 16) + 1;
    if (!qid) {
        switch (sqe->opcode) {
        case ADMIN_IDENTIFY:
            return 4096;
        case ADMIN_GET_LOG_PAGE:
            return numd * 4;
        case ADMIN_SET_FEATURES:
        case ADMIN_GET_FEATURES:
            switch (sqe->cdw10 & 0xff) {
            case FEAT_TIMESTAMP:
                return 8;
            case FEAT_HOST_BEHAVIOUR:
                return 512;
            case FEAT_HOST_ID:
                return sqe->cdw11 & 1 ? 16 : 8;
            }
            return 0;
        default:
            return 0;
        }
    }
    if (ns_find(ctrl, sqe->nsid, &ns))
        return 0;
    switch (sqe->opcode) {
    case IO_READ:
    case IO_WRITE:
    case IO_COMPARE:
        return ((uint64_t)(sqe->cdw12 & 0xffff) + 1) * ((1u << ns->lbads) + (ns->extended ? ns->ms : 0));
    case IO_DSM:
        return ((sqe->cdw10 & 0xff) + 1) * 16u;
    case IO_COPY:
        return ((sqe->cdw12 & 0xff) + 1) * (sqe->cdw12 & 1u << 8 ? 40u : 32u); /* by descriptor format */
    case IO_RESV_REGISTER:
    case IO_RESV_ACQUIRE:
        return 16;
    case IO_RESV_RELEASE:
        return 8;
    case IO_RESV_REPORT:
        return ((uint64_t)sqe->cdw10 + 1) * 4;
    default:
        return 0;
    }
}
