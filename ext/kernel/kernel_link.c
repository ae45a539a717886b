/* A link's setup and end, and the functions for its queue pair. */
#define _GNU_SOURCE
#include "kernel_link.h"

#include <sys/eventfd.h>

int kl_init(struct kernel_link *link, uint32_t max_workers)
{
    memset(link, 0, sizeof(*link));
    link->rings[0].fd = link->rings[1].fd = -1;
    link->cq_phase = 1;
    link->pid = getpid();
    link->max_workers = max_workers < 1 ? 1 : max_workers > KL_WORKERS ? KL_WORKERS : max_workers;
    pthread_mutex_init(&link->lock, NULL);
    pthread_cond_init(&link->work, NULL);
    link->has_lock = true;
    link->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return link->event_fd < 0 ? -errno : 0;
}

int kl_start(struct kernel_link *link)
{
    if (!link->q)
        return -EINVAL;
    if (!link->out)
        link->out = calloc(link->q->n_trackers, sizeof(*link->out));
    link->n_slots = link->out ? link->q->n_trackers : 0;
    return link->out ? 0 : -ENOMEM;
}

static int open_ring(struct kernel_link *link, struct ring *ring, uint32_t entries, uint32_t flags)
{
    struct uring_rsrc_register table = {.nr = KL_REGIONS, .flags = URING_RSRC_REGISTER_SPARSE};
    const uint32_t sq_entries = entries < KL_SQ_ENTRIES ? entries : KL_SQ_ENTRIES;
    int rc = ring_open(ring, sq_entries, 2 * entries,
                       flags | (link->passthrough ? URING_SETUP_SQE128 | URING_SETUP_CQE32 : 0));
    if (rc)
        return rc;
    rc = ring_register(ring, URING_REGISTER_EVENTFD, &link->event_fd, 1);
    if (rc) {
        ring_close(ring);
        return rc;
    }
    /* 5.19; without it no memory is registered. */
    link->has_table = ring_register(ring, URING_REGISTER_BUFFERS2, &table, sizeof(table)) >= 0;
    return 0;
}

int kl_use_ring(struct kernel_link *link, uint32_t entries, bool passthrough, bool iopoll)
{
    if (link->rings[0].fd >= 0 || link->n_out || link->regions[0].base)
        return -EBUSY;
    link->passthrough = passthrough;
    int rc = open_ring(link, &link->rings[0], entries, iopoll ? URING_SETUP_IOPOLL : 0);
    if (!rc && iopoll) {
        rc = open_ring(link, &link->rings[1], entries, 0);
        if (rc)
            ring_close(&link->rings[0]);
    }
    link->iopoll = iopoll && !rc;
    return rc;
}

static void unbind(struct kernel_link *link)
{
    if (link->q) {
        link->q->transport = NULL;
        link->q->link = NULL;
    }
    link->q = NULL;
}

void kl_free(struct kernel_link *link)
{
    const bool ours = link->pid == getpid(); /* a child has no threads and may not use the rings */
    unbind(link);
    if (link->n_in_kernel && ours)
        return; /* the kernel still writes, so its memory is never freed */
    if (link->has_lock && ours) {
        kl_end_workers(link);
        pthread_mutex_destroy(&link->lock);
        pthread_cond_destroy(&link->work);
    }
    link->has_lock = false;
    for (int i = 0; i < 2; i++)
        if (link->rings[i].fd >= 0)
            ring_close(&link->rings[i]);
    if (link->event_fd >= 0)
        close(link->event_fd);
    link->event_fd = -1;
    while (link->n_spares)
        free(link->spares[--link->n_spares]);
    free(link->out);
    link->out = NULL;
}

int kl_set_target(struct kernel_link *link, const struct kl_target *target)
{
    uint32_t i = 0;
    while (i < link->n_targets && link->targets[i].nsid != target->nsid)
        i++;
    if (i == KL_TARGETS)
        return -ENOSPC;
    link->targets[i] = *target;
    if (i == link->n_targets)
        link->n_targets++;
    return 0;
}

/* -- registered memory
 * ----------------------------------------------------- */

static int update_region(struct kernel_link *link, uint32_t index, const void *base, size_t nbytes)
{
    struct {
        const void *base;
        size_t nbytes;
    } iovec = {base, nbytes};
    struct uring_rsrc_update2 update = {.offset = index, .data = (uint64_t)(uintptr_t)&iovec, .nr = 1};
    for (int i = 0; i < 2; i++) {
        if (link->rings[i].fd < 0)
            continue;
        const int rc = ring_register(&link->rings[i], URING_REGISTER_BUFFERS_UPDATE, &update, sizeof(update));
        if (rc < 0)
            return rc;
    }
    return 0;
}

int kl_add_region(struct kernel_link *link, void *base, size_t nbytes, uint64_t iova)
{
    for (uint32_t i = 0; i < KL_REGIONS; i++) {
        struct kl_region *region = &link->regions[i];
        if (region->base)
            continue;
        *region = (struct kl_region){.base = base, .nbytes = nbytes, .iova = iova};
        region->fixed = link->has_table && update_region(link, i, base, nbytes) == 0;
        if (link->has_table && !region->fixed)
            update_region(link, i, NULL, 0); /* one of the two rings may have accepted it */
        link->n_fixed += region->fixed;
        return region->fixed;
    }
    return -ENOSPC;
}

void kl_drop_region(struct kernel_link *link, const void *base)
{
    for (uint32_t i = 0; i < KL_REGIONS; i++) {
        struct kl_region *region = &link->regions[i];
        if (region->base != base)
            continue;
        if (region->fixed)
            update_region(link, i, NULL, 0); /* commands that use it keep it until they end */
        link->n_fixed -= region->fixed;
        *region = (struct kl_region){0};
        return;
    }
}

/* -- commands in flight
 * --------------------------------------------------------------------------- */

uint32_t kl_in_flight(struct kernel_link *link)
{
    if (link->q && link->out)
        kl_take_completions(link);
    return link->n_in_kernel;
}

void kl_cancel_all(struct kernel_link *link)
{
    link->giving_up = true;
    for (uint32_t slot = 0; slot < link->n_slots; slot++)
        kl_request_cancel(link, slot);
    for (int i = 0; i < 2; i++)
        if (link->rings[i].unsubmitted)
            ring_submit(&link->rings[i]);
}

/* -- called by the queue pair
 * ------------------------------------------------------------------- */

static void transport_submit(struct nvq *q)
{
    struct kernel_link *link = q->link;
    if (link->out)
        kl_submit(link);
}

static bool transport_poll(struct nvq *q)
{
    struct kernel_link *link = q->link;
    link->counters.polls++;
    if (link->out)
        kl_take_completions(link);
    return kl_has_answers(link);
}

static void transport_reset(struct nvq *q)
{
    struct kernel_link *link = q->link;
    link->sq_head = link->cq_tail = 0;
    link->cq_phase = 1;
    link->n_out = link->n_in_kernel;
    link->giving_up = false;
    for (uint32_t slot = 0; slot < link->n_slots; slot++)
        link->out[slot].out = link->out[slot].in_kernel;
}

static bool transport_abandon(struct nvq *q, unsigned slot)
{
    struct kernel_link *link = q->link;
    if (q->silent || slot >= link->n_slots || !link->out[slot].out)
        return false;
    if (q->n_unrung)
        nvq_ring_sq(q);
    struct kl_out *out = &link->out[slot];
    if (!out->in_kernel)
        return false;
    if (out->bounce) {
        out->data = NULL; /* the kernel has its own reference until the command ends */
        return true;
    }
    kl_request_cancel(link, slot);
    for (int i = 0; i < 2; i++)
        if (link->rings[i].unsubmitted)
            ring_submit(&link->rings[i]);
    return false;
}

static void transport_unbind(struct nvq *q)
{
    unbind(q->link);
}

/* Rings, threads and commands in the kernel belong to the parent; the memory that describes them is
 * left unchanged. */
static void transport_disown(struct nvq *q)
{
    struct kernel_link *link = q->link;
    for (int i = 0; i < 2; i++)
        if (link->rings[i].fd >= 0)
            ring_close(&link->rings[i]);
    link->out = NULL;
    link->n_slots = link->n_out = link->n_in_kernel = 0;
}

const struct nvq_transport kernel_transport = {
    .submit = transport_submit,
    .poll = transport_poll,
    .reset = transport_reset,
    .abandon = transport_abandon,
    .unbind = transport_unbind,
    .disown = transport_disown,
};
