/* Listening sockets, associations, and the turn of the reactor. */
#define _GNU_SOURCE
#define CRC32C_IMPLEMENTATION
#include "emulator/tcp_internal.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* -- associations
 * -------------------------------------------------------------------------------- */

static bool host_window(void *opaque, uint64_t iova, struct emu_window *window)
{
    const struct tcp_ctrl *ctrl = opaque;
    const struct emu_tcp *tcp = ctrl->tcp;
    for (unsigned i = 0; i < tcp->n_conns; i++) {
        const struct tcp_conn *conn = tcp->conns[i];
        if (conn->ctrl != ctrl || !conn->memory || iova - (uint64_t)(uintptr_t)conn->memory >= conn->memory_nbytes)
            continue;
        *window = (struct emu_window){(uint64_t)(uintptr_t)conn->memory, conn->memory_nbytes, conn->memory, true, true};
        return true;
    }
    return false;
}

static void *host_dma(void *opaque, uint64_t iova, size_t nbytes, bool write)
{
    struct emu_window window;
    (void)write;
    if (!host_window(opaque, iova, &window) || nbytes > window.nbytes - (iova - window.iova))
        return NULL;
    return (void *)(uintptr_t)iova;
}

static void host_interrupt(void *opaque, unsigned vector)
{
    (void)opaque; /* completions are polled for after each turn */
    (void)vector;
}

static uint16_t new_cntlid(struct emu_tcp *tcp)
{
    for (;;) {
        bool taken = false;
        if (++tcp->last_cntlid >= 0xfff0)
            tcp->last_cntlid = 1;
        for (unsigned i = 0; i < tcp->n_ctrls; i++)
            taken = taken || tcp->ctrls[i]->cntlid == tcp->last_cntlid;
        if (!taken)
            return tcp->last_cntlid;
    }
}

struct tcp_ctrl *tcp_ctrl_new(struct emu_tcp *tcp, unsigned port, bool discovery)
{
    char err[256];
    struct tcp_ctrl *ctrl = tcp->n_ctrls < TCP_MAX_CONNECTIONS ? calloc(1, sizeof(*ctrl)) : NULL;
    struct emu_host host = {.opaque = ctrl, .dma = host_dma, .dma_window = host_window, .interrupt = host_interrupt};
    if (!ctrl)
        return NULL;
    ctrl->tcp = tcp;
    ctrl->port = port;
    ctrl->discovery = discovery;
    ctrl->wake = (struct emu_watch){SIBLING_WAKE, tcp->endpoint};
    ctrl->ctrl = emu_ctrl_new_sibling(tcp->first, &host, err);
    if (!ctrl->ctrl) {
        free(ctrl);
        return NULL;
    }
    if (emu_watch_fd(tcp->endpoint->reactor, emu_ctrl_wake_fd(ctrl->ctrl), EPOLLIN, &ctrl->wake)) {
        emu_ctrl_free_sibling(ctrl->ctrl);
        free(ctrl);
        return NULL;
    }
    for (uint32_t group = 1; group <= EMU_MAX_NAMESPACES; group++)
        if (tcp->ana[port][group])
            emu_ctrl_ana(ctrl->ctrl, group, tcp->ana[port][group]);
    ctrl->cntlid = new_cntlid(tcp);
    tcp->ctrls[tcp->n_ctrls++] = ctrl;
    tcp->stats.associations++;
    return ctrl;
}

/* Closes its connections; it is freed with the last of them. */
void tcp_ctrl_end(struct tcp_ctrl *ctrl)
{
    struct emu_tcp *tcp = ctrl->tcp;
    if (ctrl->dying)
        return;
    ctrl->dying = true;
    for (unsigned i = 0; i < tcp->n_conns; i++)
        if (tcp->conns[i]->ctrl == ctrl)
            tcp_conn_die(tcp->conns[i]);
}

static void ctrl_free(struct tcp_ctrl *ctrl)
{
    struct emu_tcp *tcp = ctrl->tcp;
    for (unsigned i = 0; i < tcp->n_ctrls; i++) {
        if (tcp->ctrls[i] == ctrl) {
            tcp->ctrls[i] = tcp->ctrls[--tcp->n_ctrls];
            break;
        }
    }
    emu_unwatch_fd(tcp->endpoint->reactor, emu_ctrl_wake_fd(ctrl->ctrl));
    emu_ctrl_free_sibling(ctrl->ctrl);
    free(ctrl);
}

/* -- the target
 * ----------------------------------------------------------------------------------- */

struct emu_tcp *emu_tcp_new(struct emu_endpoint *endpoint, struct emu_ctrl *first, const struct emu_tcp_config *config,
                            uint64_t patience)
{
    struct emu_tcp *tcp = calloc(1, sizeof(*tcp));
    if (!tcp)
        return NULL;
    crc32c_init();
    tcp->endpoint = endpoint;
    tcp->first = first;
    tcp->config = *config;
    tcp->patience = patience;
    tcp->genctr = 1;
    return tcp;
}

static void bury(struct emu_tcp *tcp)
{
    for (unsigned i = tcp->n_conns; i-- > 0;) {
        struct tcp_conn *conn = tcp->conns[i];
        struct tcp_ctrl *ctrl = conn->ctrl;
        if (conn->stage != CONN_DEAD)
            continue;
        if (ctrl && ctrl->admin == conn)
            tcp_ctrl_end(ctrl); /* an association lives as long as its admin connection */
    }
    for (unsigned i = tcp->n_conns; i-- > 0;) {
        struct tcp_conn *conn = tcp->conns[i];
        if (conn->stage != CONN_DEAD)
            continue;
        tcp->conns[i] = tcp->conns[--tcp->n_conns];
        tcp_conn_free(conn);
    }
    for (unsigned i = tcp->n_ctrls; i-- > 0;)
        if (tcp->ctrls[i]->dying && !tcp->ctrls[i]->n_conns)
            ctrl_free(tcp->ctrls[i]);
}

void emu_tcp_drop(struct emu_tcp *tcp, const char *reason)
{
    (void)reason;
    for (unsigned i = 0; i < tcp->n_conns; i++)
        tcp_conn_die(tcp->conns[i]);
    bury(tcp);
}

int emu_tcp_port(struct emu_tcp *tcp, unsigned port, bool open)
{
    if (port >= tcp->n_listeners)
        return EINVAL;
    tcp->closed[port] = !open;
    for (unsigned i = 0; i < tcp->n_conns && !open; i++)
        if (tcp->conns[i]->port == port)
            tcp_conn_die(tcp->conns[i]);
    bury(tcp);
    return 0;
}

int emu_tcp_ana(struct emu_tcp *tcp, unsigned port, uint32_t group, uint8_t state)
{
    if (port >= tcp->n_listeners || !emu_ana_valid(emu_ctrl_config(tcp->first), group, state))
        return EINVAL;
    tcp->ana[port][group] = state;
    for (unsigned i = 0; i < tcp->n_ctrls; i++)
        if (tcp->ctrls[i]->port == port)
            emu_ctrl_ana(tcp->ctrls[i]->ctrl, group, state);
    return 0;
}

void emu_tcp_free(struct emu_tcp *tcp)
{
    emu_tcp_drop(tcp, "the target was closed");
    for (unsigned i = 0; i < tcp->n_listeners; i++) {
        emu_unwatch_fd(tcp->endpoint->reactor, tcp->listener_fds[i]);
        close(tcp->listener_fds[i]);
    }
    free(tcp);
}

int emu_tcp_listen(struct emu_tcp *tcp, int fd)
{
    if (tcp->n_listeners == TCP_MAX_PORTS) {
        close(fd);
        return ENOSPC;
    }
    struct emu_watch *watch = &tcp->listeners[tcp->n_listeners];
    *watch = (struct emu_watch){SOCKET_LISTEN, tcp->endpoint};
    const int error = emu_watch_fd(tcp->endpoint->reactor, fd, EPOLLIN, watch);
    if (error) {
        close(fd);
        return error;
    }
    tcp->listener_fds[tcp->n_listeners++] = fd;
    tcp->genctr++;
    return 0;
}

void emu_tcp_accept(struct emu_tcp *tcp, void *watch)
{
    const unsigned port = (unsigned)((struct emu_watch *)watch - tcp->listeners);
    const int listener = tcp->listener_fds[port];
    for (unsigned i = 0; i < 16; i++) {
        const int one = 1;
        const int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        if (tcp->closed[port]) {
            close(fd);
            continue;
        }
        struct tcp_conn *conn = tcp->n_conns < TCP_MAX_CONNECTIONS ? tcp_conn_new(tcp, fd) : NULL;
        if (!conn) {
            tcp->stats.refused++;
            close(fd);
            continue;
        }
        conn->port = port;
        tcp->conns[tcp->n_conns++] = conn;
        tcp->stats.connections++;
    }
}

void tcp_recent(struct tcp_conn *conn)
{
    struct emu_tcp *tcp = conn->tcp;
    for (unsigned i = 0; i < TCP_RECENT; i++)
        if (tcp->recent[i] == conn)
            return;
    memmove(&tcp->recent[1], &tcp->recent[0], (TCP_RECENT - 1) * sizeof(tcp->recent[0]));
    tcp->recent[0] = conn;
}

void emu_tcp_event(void *watch, uint32_t events)
{
    struct tcp_conn *conn = watch;
    if (conn->stage == CONN_DEAD)
        return;
    if (events & EPOLLOUT)
        tcp_conn_flush(conn);
    if (conn->stage != CONN_DEAD && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        tcp_recent(conn);
        tcp_conn_receive(conn);
    }
}

static unsigned run(struct emu_tcp *tcp, struct tcp_ctrl *ctrl)
{
    unsigned work;
    emu_ctrl_share(ctrl->ctrl, tcp->first, true);
    const bool ran = emu_ctrl_running(ctrl->ctrl);
    work = emu_ctrl_poll(ctrl->ctrl);
    if (ran && emu_ctrl_read(ctrl->ctrl, REG_CSTS, 4) & CSTS_CFS && emu_ctrl_kato(ctrl->ctrl)) {
        /* The Keep Alive timer, most likely: the association ends (Base 2.0, 3.9). */
        tcp->stats.keep_alive_timeouts++;
        tcp_ctrl_end(ctrl);
        work++;
    }
    return work;
}

unsigned emu_tcp_poll(struct emu_tcp *tcp)
{
    unsigned work = 0;
    for (unsigned i = 0; i < TCP_RECENT; i++)
        if (tcp->recent[i] && tcp->recent[i]->stage != CONN_DEAD)
            work += tcp_conn_receive(tcp->recent[i]);
    for (unsigned i = 0; i < tcp->n_ctrls; i++)
        if (!tcp->ctrls[i]->dying)
            work += run(tcp, tcp->ctrls[i]);
    bool dead = false;
    for (unsigned i = 0; i < tcp->n_conns; i++) {
        struct tcp_conn *conn = tcp->conns[i];
        if (conn->stage == CONN_LIVE && conn->n_executing)
            work += tcp_conn_drain(conn);
        if (conn->give_up_at != UINT64_MAX && conn->stage < CONN_LIVE && emu_now() >= conn->give_up_at)
            tcp_conn_die(conn);
        dead = dead || conn->stage == CONN_DEAD;
    }
    if (dead) {
        bury(tcp);
        work++;
    }
    return work;
}

uint64_t emu_tcp_deadline(const struct emu_tcp *tcp)
{
    uint64_t deadline = UINT64_MAX;
    for (unsigned i = 0; i < tcp->n_ctrls; i++) {
        const uint64_t one = emu_ctrl_deadline(tcp->ctrls[i]->ctrl);
        deadline = one < deadline ? one : deadline;
    }
    for (unsigned i = 0; i < tcp->n_conns; i++)
        if (tcp->conns[i]->stage < CONN_LIVE && tcp->conns[i]->give_up_at < deadline)
            deadline = tcp->conns[i]->give_up_at;
    return deadline;
}

void emu_tcp_stats(const struct emu_tcp *tcp, struct emu_tcp_stats *stats)
{
    *stats = tcp->stats;
    stats->open_connections = tcp->n_conns;
    stats->controllers = tcp->n_ctrls;
}
