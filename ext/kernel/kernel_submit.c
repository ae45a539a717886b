/* From the submission ring to the kernel, and back. */
#define _GNU_SOURCE
#include "kernel_link.h"

#include <sys/uio.h>

#define AGAIN_MAX 8u
#define CANCEL (1ull << 32) /* in user_data: of a request to cancel, whose own result means nothing */

void kl_announce(struct kernel_link *link)
{
    const uint64_t one = 1;
    ssize_t rc;
    do
        rc = write(link->event_fd, &one, sizeof(one));
    while (rc < 0 && errno == EINTR);
}

/* -- aligned memory
 * ------------------------------------------------------------------------------ */

uint8_t *kl_aligned(struct kernel_link *link, uint32_t nbytes)
{
    if (nbytes <= KL_SPARE_BYTES && link->n_spares)
        return link->spares[--link->n_spares];
    return aligned_alloc(4096, nbytes <= KL_SPARE_BYTES ? KL_SPARE_BYTES : (nbytes + 4095) & ~4095u);
}

void kl_give_aligned(struct kernel_link *link, uint8_t *memory, uint32_t nbytes)
{
    if (nbytes <= KL_SPARE_BYTES && link->n_spares < KL_SPARES)
        link->spares[link->n_spares++] = memory;
    else
        free(memory);
}

/* -- completion of a command
 * ------------------------------------------------------------------------ */

static void finish(struct kernel_link *link, unsigned slot, uint16_t status, uint32_t dw0, uint32_t dw1)
{
    struct nvq *q = link->q;
    struct kl_out *out = &link->out[slot];
    if (out->bounce) {
        if (out->to_host && out->data && !status)
            memcpy(out->data, out->bounce, out->nbytes);
        kl_give_aligned(link, out->bounce, out->nbytes);
        out->bounce = NULL;
    }
    if (out->in_kernel)
        link->n_in_kernel--;
    out->in_kernel = false;
    out->data = NULL;
    if (link->giving_up && status == KL_ABORTED)
        return;
    out->out = false;
    link->n_out--;
    volatile struct nvq_cqe *cqe = &q->cq[link->cq_tail];
    cqe->dw0 = dw0;
    cqe->dw1 = dw1;
    cqe->sqhd = (uint16_t)link->sq_head;
    cqe->sqid = q->qid;
    cqe->cid = out->cid;
    cqe->status = (uint16_t)((status & 0x7fff) << 1 | link->cq_phase);
    if (++link->cq_tail == q->entries) {
        link->cq_tail = 0;
        link->cq_phase ^= 1;
    }
}

/* -- to the kernel
 * ------------------------------------------------------------------------------- */

static int region_of(const struct kernel_link *link, const uint8_t *data, uint32_t nbytes)
{
    for (uint32_t i = 0; link->n_fixed && i < KL_REGIONS; i++) {
        const struct kl_region *region = &link->regions[i];
        if (region->fixed && data >= region->base && data + nbytes <= region->base + region->nbytes)
            return (int)i;
    }
    return -1;
}

/* The memory at MPTR, which must be within the link's regions. */
static uint8_t *metadata_at(struct kernel_link *link, uint64_t iova, uint64_t nbytes)
{
    for (uint32_t i = 0; i < KL_REGIONS; i++) {
        const struct kl_region *region = &link->regions[i];
        if (region->base && iova >= region->iova && iova - region->iova <= region->nbytes &&
            nbytes <= region->nbytes - (iova - region->iova))
            return region->base + (iova - region->iova);
    }
    return NULL;
}

static bool by_blocks(uint8_t opcode)
{
    return opcode == OP_READ || opcode == OP_WRITE || opcode == OP_COMPARE || opcode == OP_ZONE_APPEND;
}

static uint32_t metadata_bytes(const struct kl_out *out)
{
    return by_blocks(out->opcode) && out->sqe.mptr ? ((out->sqe.cdw12 & 0xffff) + 1) * out->target->metadata : 0;
}

static void fill_passthrough(struct kernel_link *link, struct uring_sqe *sqe, const struct kl_out *out)
{
    struct nvme_uring_cmd *command = (struct nvme_uring_cmd *)&sqe->addr3;
    const struct nvq_sqe *from = &out->sqe;
    const uint32_t metadata = metadata_bytes(out);
    sqe->opcode = URING_OP_URING_CMD;
    sqe->off = NVME_URING_CMD_IO_;
    command->opcode = from->opcode;
    command->nsid = from->nsid;
    command->cdw2 = from->cdw2;
    command->cdw3 = from->cdw3;
    command->addr = (uint64_t)(uintptr_t)out->data;
    command->data_len = out->nbytes;
    if (metadata) {
        command->metadata = (uint64_t)(uintptr_t)metadata_at(link, from->mptr, metadata);
        command->metadata_len = metadata;
    }
    command->cdw10 = from->cdw10;
    command->cdw11 = from->cdw11;
    command->cdw12 = from->cdw12;
    command->cdw13 = from->cdw13;
    command->cdw14 = from->cdw14;
    command->cdw15 = from->cdw15;
    /* Not as a registered buffer: Linux 6.1 refuses (EINVAL) a buffer smaller than one of its
     * segments, a huge page for example. */
}

static void fill_transfer(struct kernel_link *link, struct uring_sqe *sqe, const struct kl_out *out)
{
    uint8_t *data = (out->bounce ? out->bounce : out->data) + out->moved;
    const uint32_t nbytes = out->nbytes - out->moved;
    const int region = region_of(link, data, nbytes);
    sqe->opcode = out->to_host ? URING_OP_READ : URING_OP_WRITE;
    if (region >= 0) {
        sqe->opcode = out->to_host ? URING_OP_READ_FIXED : URING_OP_WRITE_FIXED;
        sqe->buf_index = (uint16_t)region;
        link->counters.fixed++;
    }
    sqe->off = out->at + out->moved;
    sqe->addr = (uint64_t)(uintptr_t)data;
    sqe->len = nbytes;
    sqe->op_flags = out->fua ? RWF_DSYNC : 0;
}

/* A command without data can't be polled for; Linux 6.1 crashes on it. */
static bool polled_for(const struct kernel_link *link, const struct kl_out *out)
{
    return link->iopoll && !out->unpolled && (out->opcode == OP_READ || out->opcode == OP_WRITE);
}

static struct ring *ring_of(struct kernel_link *link, const struct kl_out *out)
{
    return &link->rings[link->iopoll && !polled_for(link, out)];
}

/* False: the ring is full. */
static bool to_ring(struct kernel_link *link, unsigned slot)
{
    struct kl_out *out = &link->out[slot];
    const bool transfers = out->opcode == OP_READ || out->opcode == OP_WRITE;
    struct uring_sqe *sqe = ring_entry(ring_of(link, out));
    if (!sqe)
        return false;
    if (out->target->kind == KL_PASSTHROUGH) {
        fill_passthrough(link, sqe, out);
    } else if (transfers) {
        fill_transfer(link, sqe, out);
    } else {
        sqe->opcode = URING_OP_FSYNC;
        sqe->op_flags = URING_FSYNC_DATASYNC;
    }
    sqe->fd = out->target->fd;
    sqe->user_data = out->cid;
    link->counters.ring_commands++;
    return true;
}

static bool for_ring(const struct kernel_link *link, const struct kl_out *out)
{
    if (link->rings[0].fd < 0)
        return false;
    return out->target->kind == KL_PASSTHROUGH || out->opcode == OP_READ || out->opcode == OP_WRITE ||
           out->opcode == OP_FLUSH;
}

static bool to_worker(struct kernel_link *link, unsigned slot)
{
    struct kl_out *out = &link->out[slot];
    struct kl_job *job = &out->job;
    job->sqe = out->sqe;
    job->target = *out->target;
    job->data = out->bounce ? out->bounce : out->data;
    job->nbytes = out->nbytes;
    job->cancelled = false;
    link->counters.worker_commands++;
    return kl_give_to_worker(link, job);
}

/* Direct I/O requires aligned memory. False: out of memory. */
static bool place(struct kernel_link *link, struct kl_out *out)
{
    const struct kl_target *target = out->target;
    const bool transfers = out->opcode == OP_READ || out->opcode == OP_WRITE;
    if (!target->direct || !transfers || target->kind == KL_PASSTHROUGH)
        return true;
    if (!((uintptr_t)out->data & (target->memory_align - 1)))
        return true;
    out->bounce = kl_aligned(link, out->nbytes);
    if (!out->bounce)
        return false;
    if (!out->to_host)
        memcpy(out->bounce, out->data, out->nbytes);
    link->counters.bounced++;
    return true;
}

static const struct kl_target *find_target(const struct kernel_link *link, uint32_t nsid)
{
    for (uint32_t i = 0; i < link->n_targets; i++)
        if (link->targets[i].nsid == nsid)
            return &link->targets[i];
    /* A flush of all namespaces: one for each. */
    return nsid == 0xffffffffu && link->n_targets == 1 ? &link->targets[0] : NULL;
}

/* 0, or the status with which it ends here; *dw0 has details. */
static uint16_t begin(struct kernel_link *link, const struct nvq_sqe *sqe, unsigned slot, uint32_t *dw0)
{
    const struct nvq_tracker *tracker = &link->q->trackers[slot];
    struct kl_out *out = &link->out[slot];
    const bool has_data = tracker->flags & (NVQ_TO_HOST | NVQ_FROM_HOST);

    out->data = has_data ? (uint8_t *)(uintptr_t)sqe->prp1 : NULL;
    out->bounce = NULL;
    out->nbytes = has_data ? tracker->data_nbytes : 0;
    out->moved = 0;
    out->cid = sqe->cid;
    out->opcode = sqe->opcode;
    out->again = 0;
    out->out = true;
    out->in_kernel = false;
    out->to_host = tracker->flags & NVQ_TO_HOST;
    out->unpolled = link->poll_refused;
    out->sqe = *sqe;
    link->n_out++;

    *dw0 = 0;
    out->target = find_target(link, sqe->nsid);
    if (!out->target)
        return KL_INVALID_NAMESPACE | KL_DO_NOT_RETRY;
    out->fua = sqe->opcode == OP_WRITE && sqe->cdw12 >> 30 & 1;
    out->at = ((uint64_t)sqe->cdw11 << 32 | sqe->cdw10) << out->target->block_shift;
    const uint16_t status = kl_check(out->target, sqe, out->nbytes);
    if (status)
        return status;
    if (metadata_bytes(out) && (!metadata_at(link, sqe->mptr, metadata_bytes(out)) || !for_ring(link, out)))
        return KL_INVALID_FIELD | KL_DO_NOT_RETRY;
    if (!place(link, out)) {
        *dw0 = KL_ERRNO | ENOMEM;
        return KL_INTERNAL_ERROR;
    }
    out->in_kernel = true;
    link->n_in_kernel++;
    if (for_ring(link, out) ? !to_ring(link, slot) : !to_worker(link, slot)) {
        *dw0 = KL_ERRNO | EAGAIN;
        return KL_INTERNAL_ERROR;
    }
    return 0;
}

void kl_submit(struct kernel_link *link)
{
    struct nvq *q = link->q;
    bool refused = false;
    while (link->sq_head != q->sq_tail) {
        const struct nvq_sqe *sqe = &q->sq[link->sq_head];
        const unsigned slot = sqe->cid & ((1u << q->slot_bits) - 1);
        uint32_t dw0;
        if (++link->sq_head == q->entries)
            link->sq_head = 0;
        const uint16_t status = begin(link, sqe, slot, &dw0);
        if (status) {
            link->counters.refused++;
            finish(link, slot, status, dw0, 0);
            refused = true;
        }
    }
    for (int i = 0; i < 2; i++)
        if (link->rings[i].unsubmitted)
            ring_submit(&link->rings[i]); /* what it does not accept now is submitted with the next poll */
    if (refused)
        kl_announce(link);
}

/* -- back
 * ---------------------------------------------------------------------------------------- */

/* The device can't be polled: repeat the command without polling. */
static bool again_unpolled(struct kernel_link *link, unsigned slot, int res)
{
    struct kl_out *out = &link->out[slot];
    if (res != -EOPNOTSUPP || !polled_for(link, out))
        return false;
    link->poll_refused = out->unpolled = true;
    link->counters.retries++;
    return to_ring(link, slot);
}

/* The kernel has completed a read, a write or a flush of a block device or a file. */
static void on_transfer(struct kernel_link *link, unsigned slot, int res)
{
    struct kl_out *out = &link->out[slot];
    const bool write = out->opcode != OP_READ;
    if (again_unpolled(link, slot, res))
        return;
    if (res >= 0 && out->opcode == OP_FLUSH) {
        finish(link, slot, 0, 0, 0);
        return;
    }
    if (res > 0) {
        out->moved += (uint32_t)res;
        out->again = 0;
        if (out->moved >= out->nbytes) {
            finish(link, slot, 0, 0, 0);
            return;
        }
        link->counters.short_transfers++;
        if (to_ring(link, slot))
            return;
        res = -EAGAIN;
    } else if ((res == -EINTR || res == -EAGAIN) && out->again++ < AGAIN_MAX) {
        link->counters.retries++;
        if (to_ring(link, slot))
            return;
    }
    if (res == 0 || (res == -EINVAL && out->moved)) /* the file has become shorter; see transfer() */
        finish(link, slot, (write ? KL_CAPACITY_EXCEEDED : KL_LBA_OUT_OF_RANGE) | KL_DO_NOT_RETRY, 0, 0);
    else
        finish(link, slot, kl_status_of(-res, write), KL_ERRNO | (uint32_t)-res, 0);
}

static void on_passthrough(struct kernel_link *link, unsigned slot, const struct uring_cqe *cqe)
{
    const uint64_t *result = (const uint64_t *)(cqe + 1);
    struct kl_out *out = &link->out[slot];
    if (again_unpolled(link, slot, cqe->res))
        return;
    if (cqe->res < 0 && (cqe->res == -EAGAIN || cqe->res == -EINTR) && out->again++ < AGAIN_MAX) {
        link->counters.retries++;
        if (to_ring(link, slot))
            return;
    }
    if (cqe->res < 0)
        finish(link, slot, kl_status_of(-cqe->res, kl_changes_data(out->opcode)), KL_ERRNO | (uint32_t)-cqe->res, 0);
    else
        finish(link, slot, (uint16_t)(cqe->res & 0x7fff), (uint32_t)*result, (uint32_t)(*result >> 32));
}

static void drain_ring(struct kernel_link *link, struct ring *ring)
{
    const struct uring_cqe *cqe;
    while ((cqe = ring_peek(ring))) {
        const struct uring_cqe copy[2] = {cqe[0], link->passthrough ? cqe[1] : (struct uring_cqe){0}};
        const unsigned slot = copy->user_data & ((1u << link->q->slot_bits) - 1);
        ring_seen(ring);
        if (copy->user_data & CANCEL)
            continue;
        if (slot >= link->n_slots || !link->out[slot].in_kernel || link->out[slot].cid != (uint16_t)copy->user_data)
            continue;
        if (link->out[slot].target->kind == KL_PASSTHROUGH)
            on_passthrough(link, slot, copy);
        else
            on_transfer(link, slot, copy->res);
    }
}

void kl_take_completions(struct kernel_link *link)
{
    for (int i = 0; i < 2; i++) {
        struct ring *ring = &link->rings[i];
        if (ring->fd < 0 || (!ring->in_kernel && !ring->unsubmitted))
            continue;
        drain_ring(link, ring);
        ring_progress(ring);
        drain_ring(link, ring);
        if (ring->unsubmitted)
            ring_submit(ring); /* commands that are repeated */
    }
    if (link->rings[1].fd >= 0 && link->rings[1].unsubmitted)
        ring_submit(&link->rings[1]); /* what the first ring passed on */
    for (struct kl_job *job = kl_take_finished(link), *next; job; job = next) {
        struct kl_out *out = (struct kl_out *)((uint8_t *)job - offsetof(struct kl_out, job));
        next = job->next;
        finish(link, (unsigned)(out - link->out), job->status, job->dw0, job->dw1);
    }
}

void kl_request_cancel(struct kernel_link *link, unsigned slot)
{
    struct kl_out *out = &link->out[slot];
    if (!out->in_kernel)
        return;
    if (!for_ring(link, out)) {
        out->job.cancelled = true;
        return;
    }
    struct uring_sqe *sqe =
        polled_for(link, out) ? NULL : ring_entry(ring_of(link, out)); /* polled for, it ends by itself */
    if (!sqe)
        return;
    sqe->opcode = URING_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->addr = out->cid;
    sqe->user_data = CANCEL | out->cid;
    link->counters.cancels++;
}
