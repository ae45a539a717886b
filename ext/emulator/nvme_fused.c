/*
 * Fused operations (Base 2.1, 3.4.2; NVM Command Set 1.1, 3.3.1): Compare and Write. Both commands
 * must follow each other in a queue, and one write of its doorbell must announce both: a first
 * command at the end of what has been announced is aborted, and so is a second one without a first.
 */
#include "nvme_ctrl.h"

enum { FUSE_NONE, FUSE_FIRST, FUSE_SECOND, FUSE_RESERVED };

static unsigned fuse_of(const struct nvme_sqe *sqe)
{
    return sqe->flags & 3;
}

/* Why the two make no Compare and Write, or success. */
static uint16_t objection(struct emu_ctrl *ctrl, const struct nvme_sqe *first, const struct nvme_sqe *second)
{
    ctrl->error_location = 0;
    if (first->opcode != IO_COMPARE || second->opcode != IO_WRITE)
        return SC_INVALID_FIELD;
    ctrl->error_location = 40;
    if (first->nsid != second->nsid || first->cdw10 != second->cdw10 || first->cdw11 != second->cdw11 ||
        (first->cdw12 & 0xffff) != (second->cdw12 & 0xffff))
        return SC_INVALID_FIELD;
    if ((first->cdw12 & 0xffff) >= ctrl->config.extras.fused_blocks) /* ACWU */
        return SC_ATOMIC_WRITE_UNIT;
    return SC_SUCCESS;
}

/* The first command, as one of its own would be executed. Anything but success fails the second. */
static uint16_t execute_first(struct emu_ctrl *ctrl, struct sq *sq, struct nvme_sqe *sqe, bool faulty)
{
    struct effect effect = {0};
    uint16_t forced = 0;
    uint32_t result = 0;
    if (faulty && faults_intercept(ctrl, sq, sqe, &effect, &forced))
        return SC_ASYNC; /* held back, or lost */
    const struct effect *has_effect = effect.actions ? &effect : NULL;
    ctrl->counters.io[sqe->opcode]++;
    ctrl->effect = has_effect;
    uint16_t status = forced ? forced : io_execute(ctrl, sq, sqe, &result);
    ctrl->effect = NULL;
    complete(ctrl, sq, sqe, result, status, has_effect);
    return status;
}

static void execute_pair(struct emu_ctrl *ctrl, struct sq *sq, struct nvme_sqe *first, struct nvme_sqe *second,
                         bool faulty)
{
    uint16_t status = objection(ctrl, first, second);
    if (status) {
        complete(ctrl, sq, first, 0, status, NULL);
        complete(ctrl, sq, second, 0, status, NULL);
        return;
    }
    first->flags &= (uint8_t)~3;
    second->flags &= (uint8_t)~3;
    if (execute_first(ctrl, sq, first, faulty)) {
        complete(ctrl, sq, second, 0, SC_FUSED_FAILED, NULL);
        return;
    }
    if (faulty)
        execute_with_faults(ctrl, sq, second);
    else
        execute_as(ctrl, sq, second, 0, NULL);
}

void fused_next(struct emu_ctrl *ctrl, struct sq *sq, struct nvme_sqe *sqe, bool faulty)
{
    bool offered = sq->qid && ctrl->config.extras.fused_blocks;
    unsigned fuse = offered ? fuse_of(sqe) : FUSE_NONE; /* what isn't offered is an invalid field */
    struct nvme_sqe first = sq->fused;
    if (sq->fused_waits) {
        sq->fused_waits = false;
        if (fuse == FUSE_SECOND) {
            execute_pair(ctrl, sq, &first, sqe, faulty);
            return;
        }
        complete(ctrl, sq, &first, 0, SC_FUSED_MISSING, NULL);
    }
    if (fuse == FUSE_FIRST) {
        sq->fused = *sqe;
        sq->fused_waits = true;
    } else if (fuse == FUSE_SECOND) {
        complete(ctrl, sq, sqe, 0, SC_FUSED_MISSING, NULL);
    } else if (faulty) {
        execute_with_faults(ctrl, sq, sqe);
    } else {
        execute_as(ctrl, sq, sqe, 0, NULL);
    }
}

/* All that the doorbell had announced was fetched. */
void fused_end(struct emu_ctrl *ctrl, struct sq *sq)
{
    struct nvme_sqe first = sq->fused;
    sq->fused_waits = false;
    complete(ctrl, sq, &first, 0, SC_FUSED_MISSING, NULL);
}
