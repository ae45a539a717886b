/* A link's setup and end, and the functions for its queue pair. */
#define _GNU_SOURCE
#define CRC32C_IMPLEMENTATION
#include "link.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>

int link_init(struct tcp_link *link)
{
    memset(link, 0, sizeof(*link));
    crc32c_init();
    link->fd = -1;
    link->cq_phase = 1;
    link->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (link->epoll_fd < 0)
        return -errno;
    link->rx = malloc(LINK_RX_BYTES);
    if (!link->rx) {
        close(link->epoll_fd);
        link->epoll_fd = -1;
        return -ENOMEM;
    }
    return 0;
}

static void unbind(struct tcp_link *link)
{
    if (link->q) {
        link->q->transport = NULL;
        link->q->link = NULL;
    }
    link->q = NULL;
    free(link->out);
    link->out = NULL;
    link->n_slots = link->n_out = link->n_long = 0;
}

void link_free(struct tcp_link *link)
{
    link_forget_pieces(link);
    unbind(link);
    if (link->epoll_fd >= 0)
        close(link->epoll_fd);
    link->epoll_fd = -1;
    free(link->rx);
    free(link->arena);
    free(link->pieces);
    link->rx = link->arena = NULL;
    link->pieces = NULL;
}

void link_fail(struct tcp_link *link, const char *format, ...)
{
    va_list arguments;
    if (link->broken)
        return;
    link->broken = true;
    va_start(arguments, format);
    vsnprintf(link->error, sizeof(link->error), format, arguments);
    va_end(arguments);
    /* Makes the socket readable for the loop, and ends the connection for the controller. */
    shutdown(link->fd, SHUT_RDWR);
}

static void forget_commands(struct tcp_link *link)
{
    link_forget_pieces(link);
    for (uint32_t slot = 0; slot < link->n_slots; slot++) {
        if (link->out[slot].owned)
            free(link->out[slot].data);
        link->out[slot] = (struct tcp_out){0};
    }
    link->sq_head = link->cq_tail = 0;
    link->cq_phase = 1;
    link->n_out = link->n_long = 0;
    link->rx_begin = link->rx_end = 0;
    link->receiving = RX_HEADER;
    link->left = 0;
}

static void unwatch(struct tcp_link *link)
{
    if (link->fd >= 0)
        epoll_ctl(link->epoll_fd, EPOLL_CTL_DEL, link->fd, NULL);
    link->fd = -1;
    link->blocked = false;
}

int link_attach(struct tcp_link *link, int fd, const struct tcp_limits *limits)
{
    struct nvq *q = link->q;
    struct epoll_event none = {.events = 0};
    if (!q)
        return -EINVAL;
    unwatch(link);
    if (!link->out) {
        link->out = calloc(q->n_trackers, sizeof(*link->out));
        if (!link->out)
            return -ENOMEM;
        link->n_slots = q->n_trackers;
    }
    /* In the set from the start, without events: so EPOLL_CTL_MOD can't fail for lack of memory
     * while data wait. */
    if (epoll_ctl(link->epoll_fd, EPOLL_CTL_ADD, fd, &none))
        return -errno;
    link->fd = fd;
    link->limits = *limits;
    link->error[0] = '\0';
    link->broken = false;
    return 0;
}

void link_detach(struct tcp_link *link)
{
    unwatch(link);
    link_forget_pieces(link);
}

/* -- called by the queue pair
 * ------------------------------------------------------------------- */

static void transport_submit(struct nvq *q)
{
    link_submit(q->link);
}

static bool transport_poll(struct nvq *q)
{
    struct tcp_link *link = q->link;
    link->counters.polls++;
    if (link->fd < 0 || q->silent)
        return link_has_answers(link);
    if (!link->broken)
        link_receive(link);
    return link_has_answers(link);
}

static void transport_reset(struct nvq *q)
{
    struct tcp_link *link = q->link;
    unwatch(link);
    forget_commands(link);
}

static bool transport_abandon(struct nvq *q, unsigned slot)
{
    struct tcp_link *link = q->link;
    if (link->fd < 0 || q->silent || slot >= link->n_slots)
        return false;
    if (q->n_unrung)
        nvq_ring_sq(q);
    struct tcp_out *out = &link->out[slot];
    if (!out->out)
        return false;
    if (out->to_host) {
        out->data = NULL;
        return true;
    }
    if (out->held && !link_keep_copy(link, slot))
        return false;
    if (out->data && !out->owned && out->moved < out->nbytes) {
        /* The controller may still request it by R2T, and then receives the same data. */
        uint8_t *copy = malloc(out->nbytes);
        if (!copy)
            return false;
        memcpy(copy, out->data, out->nbytes);
        out->data = copy;
        out->owned = true;
    }
    return true;
}

static void transport_unbind(struct nvq *q)
{
    struct tcp_link *link = q->link;
    unwatch(link);
    forget_commands(link);
    unbind(link);
}

static void transport_disown(struct nvq *q)
{
    struct tcp_link *link = q->link;
    link->fd = -1;
    close(link->epoll_fd);
    link->epoll_fd = -1;
}

const struct nvq_transport tcp_transport = {
    .shared_polls = true,
    .submit = transport_submit,
    .poll = transport_poll,
    .reset = transport_reset,
    .abandon = transport_abandon,
    .unbind = transport_unbind,
    .disown = transport_disown,
};
