/* Admin commands: dispatch, I/O queue creation and deletion (Base 2.0, 5.4 to 5.7), Abort, Keep
 * Alive. */
#include "nvme_ctrl.h"

/* Queue size in entries, or 0 when the specification refuses it. */
static uint32_t queue_size(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint32_t qsize = sqe->cdw10 >> 16; /* 0-based */
    return qsize && qsize <= faults_mqes(ctrl) ? qsize + 1 : 0;
}

static uint16_t queue_memory(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t size, uint32_t entry,
                             bool write)
{
    if (!(sqe->cdw11 & 1)) /* PC: CAP.CQR says that queues must be contiguous */
        return SC_INVALID_FIELD;
    if (sqe->prp1 & page_mask(ctrl))
        return SC_PRP_OFFSET;
    return dma(ctrl, sqe->prp1, (uint64_t)size * entry, write) ? SC_SUCCESS : SC_DATA_TRANSFER;
}

uint16_t admin_create_cq(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint16_t qid = (uint16_t)sqe->cdw10, vector = (uint16_t)(sqe->cdw11 >> 16);
    uint32_t size = queue_size(ctrl, sqe);
    bool ien = sqe->cdw11 & 2;
    if (!qid || qid > ctrl->config.n_io_queues || ctrl->cqs[qid].created)
        return SC_QID_INVALID;
    if (!size || CC_IOCQES(ctrl->cc) != 4)
        return SC_QUEUE_SIZE;
    /* Without interrupts the vector has no meaning, but a vector that doesn't exist is refused
     * nevertheless. */
    if (vector >= ctrl->config.n_vectors)
        return SC_VECTOR_INVALID;
    uint16_t status = queue_memory(ctrl, sqe, size, sizeof(struct nvme_cqe), true);
    if (status)
        return status;
    cq_init(ctrl, qid, sqe->prp1, size, vector, ien);
    ctrl->counters.queues_created++;
    return SC_SUCCESS;
}

uint16_t admin_create_sq(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint16_t qid = (uint16_t)sqe->cdw10, cqid = (uint16_t)(sqe->cdw11 >> 16);
    uint32_t size = queue_size(ctrl, sqe);
    if (!qid || qid > ctrl->config.n_io_queues || ctrl->sqs[qid].created)
        return SC_QID_INVALID;
    if (!size || CC_IOSQES(ctrl->cc) != 6)
        return SC_QUEUE_SIZE;
    /* The admin CQ and one out of range are an invalid queue identifier; one in range that doesn't
     * exist is an invalid CQ. */
    if (!cqid || cqid > ctrl->config.n_io_queues)
        return SC_QID_INVALID;
    if (!ctrl->cqs[cqid].created)
        return SC_CQ_INVALID;
    uint16_t status = queue_memory(ctrl, sqe, size, sizeof(struct nvme_sqe), false);
    if (status)
        return status;
    sq_init(ctrl, qid, sqe->prp1, size, &ctrl->cqs[cqid]);
    ctrl->counters.queues_created++;
    return SC_SUCCESS;
}

uint16_t admin_delete_cq(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint16_t qid = (uint16_t)sqe->cdw10;
    if (!qid || qid >= N_QUEUES || !ctrl->cqs[qid].created)
        return SC_QID_INVALID;
    if (ctrl->cqs[qid].n_sqs)
        return SC_QUEUE_DELETION;
    cq_remove(ctrl, &ctrl->cqs[qid]);
    ctrl->counters.queues_deleted++;
    return SC_SUCCESS;
}

uint16_t admin_delete_sq(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint16_t qid = (uint16_t)sqe->cdw10;
    if (!qid || qid >= N_QUEUES || !ctrl->sqs[qid].created)
        return SC_QID_INVALID;
    /* Held commands end here; the completion of a flush that the helper thread still runs is
     * discarded. */
    held_abort_sq(ctrl, &ctrl->sqs[qid]);
    sq_remove(ctrl, &ctrl->sqs[qid]);
    ctrl->counters.queues_deleted++;
    return SC_SUCCESS;
}

/* Base 2.0, 5.1. Bit 0 of the result: not aborted. Commands complete as they are fetched; only held
 * ones and AERs can be caught.
 */
static uint16_t admin_abort(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    uint16_t sqid = (uint16_t)sqe->cdw10, cid = (uint16_t)(sqe->cdw10 >> 16);
    bool aborted = held_abort(ctrl, sqid, cid) || (!sqid && aer_abort(ctrl, cid));
    *result = !aborted;
    return SC_SUCCESS;
}

static uint16_t admin_keep_alive(struct emu_ctrl *ctrl)
{
    uint32_t kato_ms = ctrl->features[FEAT_KEEP_ALIVE];
    ctrl->keep_alive_at = kato_ms ? now_ns() + kato_ms * 1000000ull : UINT64_MAX;
    return SC_SUCCESS;
}

uint16_t admin_execute(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint32_t *result)
{
    (void)sq;
    ctrl->error_location = 0;
    if (sqe->flags & 0xc3) { /* neither fused operations nor SGLs are for admin commands (Base 2.0, 4.1) */
        ctrl->error_location = 1;
        return SC_INVALID_FIELD;
    }
    uint16_t forbidden = extras_forbid(ctrl, sqe, true);
    if (!forbidden && UNLIKELY(ctrl->config.extras.lockdown))
        forbidden = lockdown_status(ctrl, sqe);
    if (forbidden)
        return forbidden;
    switch (sqe->opcode) {
    case ADMIN_DELETE_SQ:
        return admin_delete_sq(ctrl, sqe);
    case ADMIN_CREATE_SQ:
        return admin_create_sq(ctrl, sqe);
    case ADMIN_GET_LOG_PAGE:
        return admin_get_log(ctrl, sqe);
    case ADMIN_DELETE_CQ:
        return admin_delete_cq(ctrl, sqe);
    case ADMIN_CREATE_CQ:
        return admin_create_cq(ctrl, sqe);
    case ADMIN_IDENTIFY:
        return admin_identify(ctrl, sqe);
    case ADMIN_ABORT:
        return admin_abort(ctrl, sqe, result);
    case ADMIN_SET_FEATURES:
        return admin_set_features(ctrl, sqe, result);
    case ADMIN_GET_FEATURES:
        return admin_get_features(ctrl, sqe, result);
    case ADMIN_ASYNC_EVENT:
        return admin_async_event(ctrl, sqe);
    case ADMIN_KEEP_ALIVE:
        return admin_keep_alive(ctrl);
    case ADMIN_DBBUF:
        return admin_dbbuf(ctrl, sqe);
    case ADMIN_FORMAT:
        return admin_format(ctrl, sqe);
    default:
        return extras_admin(ctrl, sqe, result);
    }
}
