/* The latency and bandwidth of the medium: nvme_timing.h has the model. */
#include "nvme_ctrl.h"

static uint64_t jitter(struct timing *timing, uint64_t most)
{
    timing->random = timing->random * 6364136223846793005u + 1442695040888963407u;
    return (uint64_t)((double)(timing->random >> 11) * 0x1p-53 * (double)most);
}

uint64_t timing_completion(struct timing *timing, const struct emu_timing *model, uint64_t now, uint64_t nbytes)
{
    unsigned first = 0;
    if (model->bytes_per_second && nbytes) {
        if (timing->link > now)
            now = timing->link;
        now += nbytes * 1000000000u / model->bytes_per_second;
        timing->link = now;
    }
    for (unsigned i = 1; i < model->channels; i++)
        if (timing->channels[i] < timing->channels[first])
            first = i;
    if (timing->channels[first] > now)
        now = timing->channels[first];
    now += model->latency_ns + jitter(timing, model->jitter_ns);
    timing->channels[first] = now;
    return now;
}

/* Does the command occupy the medium? *nbytes: what it moves over the link. */
static bool is_timed(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t *nbytes)
{
    struct ns *ns;
    if (ns_find(ctrl, sqe->nsid, &ns) || ns->kv)
        return false;
    *nbytes = ((uint64_t)(sqe->cdw12 & 0xffff) + 1) << ns->lbads;
    switch (sqe->opcode) {
    case IO_READ:
    case IO_WRITE:
    case IO_COMPARE:
    case IO_ZONE_APPEND:
        return true;
    case IO_VERIFY:
    case IO_WRITE_ZEROES:
        *nbytes = 0;
        return true;
    default:
        return false;
    }
}

bool timing_hold(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint32_t result)
{
    static const struct effect none;
    const struct nvme_cqe cqe = {.result = result, .dw1 = ctrl->result_high, .sqid = sq->qid, .cid = sqe->cid};
    uint64_t nbytes;
    if (!is_timed(ctrl, sqe, &nbytes))
        return false;
    const uint64_t now = now_ns();
    const uint64_t completion = timing_completion(&ctrl->extras.timing, &ctrl->config.timing, now, nbytes);
    if (!held_add(ctrl, sq, sqe, &cqe, &none, 0, completion - now, UINT64_MAX))
        return false;
    ctrl->result_high = 0;
    return true;
}
