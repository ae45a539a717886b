/* Clients of a controller in a reactor: accepted one at a time, served, dropped. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "emulator/reactor_internal.h"

#define ACCEPT_RETRY_NS 100000000 /* after accept() failed, for want of descriptors for example */

void emu_watch_listener(struct emu_endpoint *endpoint)
{
    struct epoll_event event = {.data.ptr = &endpoint->listen};

    if (endpoint->listen_fd < 0)
        return;
    event.events = endpoint->server->conn.fd < 0 && endpoint->accept_at == UINT64_MAX ? EPOLLIN : 0;
    epoll_ctl(endpoint->reactor->epoll_fd, EPOLL_CTL_MOD, endpoint->listen_fd, &event);
}

void emu_drop_client(struct emu_endpoint *endpoint, const char *reason)
{
    if (endpoint->server->conn.fd < 0)
        return;
    emu_unwatch_fd(endpoint->reactor, endpoint->server->conn.fd);
    vfu_server_drop(endpoint->server, reason);
    emu_watch_listener(endpoint);
}

int emu_open_client(struct emu_endpoint *endpoint, int fd)
{
    int error = emu_watch_fd(endpoint->reactor, fd, EPOLLIN, &endpoint->client);

    if (error) {
        close(fd);
        return error;
    }
    endpoint->client_events = EPOLLIN;
    vfu_server_open(endpoint->server, fd, emu_now());
    emu_watch_listener(endpoint);
    return 0;
}

void emu_accept_client(struct emu_endpoint *endpoint)
{
    int fd;

    if (endpoint->listen_fd < 0 || endpoint->server->conn.fd >= 0)
        return;
    endpoint->accept_at = UINT64_MAX;
    fd = accept4(endpoint->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0)
        emu_open_client(endpoint, fd);
    else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        endpoint->accept_at = emu_now() + ACCEPT_RETRY_NS;
    emu_watch_listener(endpoint);
}

void emu_serve_client(struct emu_endpoint *endpoint)
{
    struct vfu_server *server = endpoint->server;
    uint32_t events;
    bool open;

    if (server->conn.fd < 0)
        return;
    vfu_guard_enter(&server->dma);
    open = vfu_server_ready(server, emu_now());
    vfu_guard_enter(NULL);
    if (!open) {
        emu_drop_client(endpoint, NULL);
        return;
    }
    /* While a reply is unsent, nothing more is read. */
    events = vfu_conn_unsent(&server->conn) ? EPOLLOUT : EPOLLIN;
    if (events != endpoint->client_events) {
        struct epoll_event event = {.events = events, .data.ptr = &endpoint->client};

        epoll_ctl(endpoint->reactor->epoll_fd, EPOLL_CTL_MOD, server->conn.fd, &event);
        endpoint->client_events = events;
    }
}
