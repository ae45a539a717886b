#define _GNU_SOURCE
#include "relay.h"

#include <sys/eventfd.h>

int relay_init(struct relay *relay)
{
    memset(relay, 0, sizeof(*relay));
    relay->cq_phase = 1;
    relay->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return relay->event_fd < 0 ? -errno : 0;
}

int relay_start(struct relay *relay)
{
    if (!relay->q)
        return -EINVAL;
    if (!relay->out)
        relay->out = calloc(relay->q->n_trackers, sizeof(*relay->out));
    relay->n_slots = relay->out ? relay->q->n_trackers : 0;
    return relay->out ? 0 : -ENOMEM;
}

static void forget(struct relay *relay)
{
    for (uint32_t slot = 0; slot < relay->n_slots; slot++) {
        free(relay->out[slot].copy);
        relay->out[slot] = (struct relay_out){0};
    }
    relay->n_out = relay->sq_head = relay->cq_tail = 0;
    relay->cq_phase = 1;
}

static void unbind(struct relay *relay)
{
    forget(relay);
    if (relay->q) {
        relay->q->transport = NULL;
        relay->q->link = NULL;
    }
    relay->q = NULL;
}

void relay_free(struct relay *relay)
{
    unbind(relay);
    free(relay->out);
    relay->out = NULL;
    relay->n_slots = 0;
    if (relay->event_fd >= 0)
        close(relay->event_fd);
    relay->event_fd = -1;
}

static void post(struct relay *relay, uint16_t cid, uint16_t status, uint32_t dw0, uint32_t dw1)
{
    struct nvq *q = relay->q;
    volatile struct nvq_cqe *cqe = &q->cq[relay->cq_tail];
    cqe->dw0 = dw0;
    cqe->dw1 = dw1;
    cqe->sqhd = (uint16_t)relay->sq_head;
    cqe->sqid = q->qid;
    cqe->cid = cid;
    cqe->status = (uint16_t)((status & 0x7fff) << 1 | relay->cq_phase);
    if (++relay->cq_tail == q->entries) {
        relay->cq_tail = 0;
        relay->cq_phase ^= 1;
    }
}

static void end(struct relay *relay, struct relay_out *out)
{
    free(out->copy);
    *out = (struct relay_out){0};
    relay->n_out--;
}

struct relay_out *relay_fetch(struct relay *relay)
{
    for (uint32_t slot = 0; slot < relay->n_slots; slot++) {
        struct relay_out *out = &relay->out[slot];
        if (out->out && !out->fetched) {
            out->fetched = true;
            return out;
        }
    }
    return NULL;
}

bool relay_answer(struct relay *relay, uint16_t cid, uint16_t status, uint32_t dw0, uint32_t dw1, const void *data,
                  uint32_t nbytes)
{
    if (!relay->q)
        return false;
    const unsigned slot = cid & ((1u << relay->q->slot_bits) - 1);
    if (slot >= relay->n_slots || !relay->out[slot].out || relay->out[slot].sqe.cid != cid)
        return false;
    struct relay_out *out = &relay->out[slot];
    if (out->to_host && out->data) {
        const uint32_t n = nbytes < out->nbytes ? nbytes : out->nbytes;
        if (n) /* data may be NULL: a response without data */
            memcpy(out->data, data, n);
        memset(out->data + n, 0, out->nbytes - n);
    }
    end(relay, out);
    post(relay, cid, status, dw0, dw1);
    return true;
}

/* -- called by the queue pair
 * ------------------------------------------------------------------- */

static void transport_submit(struct nvq *q)
{
    struct relay *relay = q->link;
    const uint64_t one = 1;
    ssize_t rc;
    if (!relay->out)
        return;
    while (relay->sq_head != q->sq_tail) {
        const struct nvq_sqe *sqe = &q->sq[relay->sq_head];
        const unsigned slot = sqe->cid & ((1u << q->slot_bits) - 1);
        const struct nvq_tracker *tracker = &q->trackers[slot];
        struct relay_out *out = &relay->out[slot];
        const bool has_data = tracker->flags & (NVQ_TO_HOST | NVQ_FROM_HOST);
        if (++relay->sq_head == q->entries)
            relay->sq_head = 0;
        *out = (struct relay_out){
            .sqe = *sqe,
            .data = has_data ? (uint8_t *)(uintptr_t)sqe->prp1 : NULL,
            .nbytes = has_data ? tracker->data_nbytes : 0,
            .out = true,
            .to_host = tracker->flags & NVQ_TO_HOST,
        };
        relay->n_out++;
        if (tracker->flags & NVQ_FROM_HOST && out->nbytes) {
            out->copy = malloc(out->nbytes);
            if (!out->copy) {
                const uint16_t cid = sqe->cid;
                end(relay, out);
                post(relay, cid, 0x06, 0, 0); /* Internal Error */
                continue;
            }
            memcpy(out->copy, out->data, out->nbytes);
        }
        if (!out->to_host)
            out->data = NULL;
    }
    do
        rc = write(relay->event_fd, &one, sizeof(one));
    while (rc < 0 && errno == EINTR);
}

static bool transport_poll(struct nvq *q)
{
    return (q->cq[q->cq_head].status & 1) == q->cq_phase;
}

static void transport_reset(struct nvq *q)
{
    forget(q->link);
}

static bool transport_abandon(struct nvq *q, unsigned slot)
{
    struct relay *relay = q->link;
    if (q->silent)
        return false;
    if (q->n_unrung)
        nvq_ring_sq(q);
    if (slot >= relay->n_slots || !relay->out[slot].out)
        return false;
    relay->out[slot].data = NULL;
    return true;
}

static void transport_unbind(struct nvq *q)
{
    unbind(q->link);
}

static void transport_disown(struct nvq *q)
{
    struct relay *relay = q->link;
    relay->out = NULL;
    relay->n_slots = relay->n_out = 0;
}

const struct nvq_transport relay_transport = {
    .submit = transport_submit,
    .poll = transport_poll,
    .reset = transport_reset,
    .abandon = transport_abandon,
    .unbind = transport_unbind,
    .disown = transport_disown,
};
