#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "emulator/reactor_internal.h"

/* A request to the reactor's thread, and its result. */
struct request {
    struct emu_reactor *reactor;
    struct emu_endpoint *endpoint;
    struct emu_reactor_stats *stats;
    int fd, error;
    void (*fn)(void *arg);
    void *arg;
};

static void call_stats(void *arg)
{
    struct request *request = arg;
    struct emu_reactor *reactor = request->reactor;
    struct timespec cpu;

    *request->stats = reactor->stats;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    request->stats->cpu_ns = (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec;
    request->stats->endpoints = reactor->n_endpoints;
    request->stats->active = reactor->n_active;
}

void emu_reactor_stats(struct emu_reactor *reactor, struct emu_reactor_stats *stats)
{
    struct request request = {.reactor = reactor, .stats = stats};

    emu_reactor_call(reactor, call_stats, &request);
}

static void call_add(void *arg)
{
    struct request *request = arg;
    struct emu_reactor *reactor = request->reactor;
    struct emu_endpoint *endpoint = request->endpoint;
    int wake_fd = emu_ctrl_wake_fd(endpoint->server->ctrl);

    if (reactor->n_endpoints == reactor->capacity) {
        unsigned capacity = reactor->capacity ? 2 * reactor->capacity : 8;
        struct emu_endpoint **endpoints = realloc(reactor->endpoints, capacity * sizeof(*endpoints)), **active;

        if (endpoints != NULL)
            reactor->endpoints = endpoints;
        active = realloc(reactor->active, capacity * sizeof(*active));
        if (active != NULL)
            reactor->active = active;
        if (endpoints == NULL || active == NULL) {
            request->error = ENOMEM;
            return;
        }
        reactor->capacity = capacity;
    }
    /* Not edge-triggered: its writer sets the flag that counts afterwards, and may be held up until
     * the reactor sleeps again. */
    if (wake_fd >= 0)
        request->error = emu_watch_fd(reactor, wake_fd, EPOLLIN, &endpoint->wake);
    if (request->error != 0)
        return;
    vfu_server_watch(endpoint->server, reactor->epoll_fd, &endpoint->kick, &endpoint->unmask);
    reactor->endpoints[reactor->n_endpoints++] = endpoint;
    emu_activate(endpoint);
}

struct emu_endpoint *emu_reactor_add(struct emu_reactor *reactor, struct vfu_server *server)
{
    struct emu_endpoint *endpoint = calloc(1, sizeof(*endpoint));
    struct request request = {.reactor = reactor, .endpoint = endpoint};

    if (endpoint == NULL)
        return NULL;
    endpoint->reactor = reactor;
    endpoint->server = server;
    endpoint->state = ASLEEP;
    endpoint->listen_fd = -1;
    endpoint->accept_at = UINT64_MAX;
    endpoint->listen = (struct emu_watch){LISTEN, endpoint};
    endpoint->client = (struct emu_watch){CLIENT, endpoint};
    endpoint->kick = (struct emu_watch){KICK, endpoint};
    endpoint->wake = (struct emu_watch){WAKE, endpoint};
    endpoint->unmask = (struct emu_watch){UNMASK, endpoint};
    emu_reactor_call(reactor, call_add, &request);
    if (request.error != 0) {
        free(endpoint);
        return NULL;
    }
    return endpoint;
}

static void stop_listening(struct emu_endpoint *endpoint)
{
    if (endpoint->listen_fd < 0)
        return;
    emu_unwatch_fd(endpoint->reactor, endpoint->listen_fd);
    close(endpoint->listen_fd);
    endpoint->listen_fd = -1;
    endpoint->accept_at = UINT64_MAX;
}

static void call_remove(void *arg)
{
    struct request *request = arg;
    struct emu_endpoint *endpoint = request->endpoint;
    struct emu_reactor *reactor = endpoint->reactor;
    int wake_fd = emu_ctrl_wake_fd(endpoint->server->ctrl);

    stop_listening(endpoint);
    emu_drop_client(endpoint, "the controller was closed");
    if (endpoint->tcp != NULL)
        emu_tcp_free(endpoint->tcp);
    endpoint->tcp = NULL;
    if (wake_fd >= 0)
        emu_unwatch_fd(reactor, wake_fd);
    emu_set_state(endpoint, ASLEEP);
    for (unsigned i = 0; i < reactor->n_endpoints; i++) {
        if (reactor->endpoints[i] == endpoint) {
            reactor->endpoints[i] = reactor->endpoints[--reactor->n_endpoints];
            break;
        }
    }
}

struct vfu_server *emu_reactor_remove(struct emu_endpoint *endpoint)
{
    struct vfu_server *server = endpoint->server;
    struct request request = {.endpoint = endpoint};

    emu_reactor_call(endpoint->reactor, call_remove, &request);
    free(endpoint);
    return server;
}

static void call_attach(void *arg)
{
    struct request *request = arg;

    /* A client that has closed may not have been noticed yet. */
    for (unsigned i = 0; i < 64 && request->endpoint->server->conn.fd >= 0; i++)
        emu_serve_client(request->endpoint);
    if (request->endpoint->server->conn.fd >= 0) {
        close(request->fd);
        request->error = EBUSY;
        return;
    }
    request->error = emu_open_client(request->endpoint, request->fd);
    emu_activate(request->endpoint);
}

static int set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 ? 0 : errno;
}

int emu_endpoint_attach(struct emu_endpoint *endpoint, int fd)
{
    struct request request = {.endpoint = endpoint, .fd = fd, .error = set_nonblocking(fd)};

    if (request.error != 0)
        close(fd);
    else
        emu_reactor_call(endpoint->reactor, call_attach, &request);
    return request.error;
}

static void call_listen(void *arg)
{
    struct request *request = arg;
    struct emu_endpoint *endpoint = request->endpoint;

    stop_listening(endpoint);
    if (request->fd < 0)
        return;
    request->error = emu_watch_fd(endpoint->reactor, request->fd, EPOLLIN, &endpoint->listen);
    if (request->error != 0) {
        close(request->fd);
        return;
    }
    endpoint->listen_fd = request->fd;
    emu_watch_listener(endpoint);
}

int emu_endpoint_listen(struct emu_endpoint *endpoint, int fd)
{
    struct request request = {.endpoint = endpoint, .fd = fd, .error = fd < 0 ? 0 : set_nonblocking(fd)};

    if (request.error != 0)
        close(fd);
    else
        emu_reactor_call(endpoint->reactor, call_listen, &request);
    return request.error;
}

static void call_drop(void *arg)
{
    struct request *request = arg;

    emu_drop_client(request->endpoint, "dropped by the owner");
    emu_activate(request->endpoint);
}

void emu_endpoint_drop(struct emu_endpoint *endpoint)
{
    struct request request = {.endpoint = endpoint};

    emu_reactor_call(endpoint->reactor, call_drop, &request);
}

static void call_endpoint(void *arg)
{
    struct request *request = arg;

    request->fn(request->arg);
    emu_activate(request->endpoint);
}

void emu_endpoint_call(struct emu_endpoint *endpoint, void (*fn)(void *arg), void *arg)
{
    struct request request = {.endpoint = endpoint, .fn = fn, .arg = arg};

    emu_reactor_call(endpoint->reactor, call_endpoint, &request);
}

/* The requests of emu_endpoint_tcp*() to the thread. */
struct tcp_request {
    struct emu_endpoint *endpoint;
    const struct emu_tcp_config *config;
    struct emu_tcp_stats *stats;
    uint64_t patience;
    const int *fds;
    unsigned n, port;
    uint32_t group; /* 0: of no ANA group, but of the port itself */
    uint8_t state;
    int error;
};

static void call_tcp(void *arg)
{
    struct tcp_request *request = arg;
    struct emu_endpoint *endpoint = request->endpoint;

    if (endpoint->tcp != NULL)
        request->error = EBUSY;
    else if ((endpoint->tcp = emu_tcp_new(endpoint, endpoint->server->ctrl, request->config, request->patience)) ==
             NULL)
        request->error = ENOMEM;
    for (unsigned i = 0; i < request->n; i++) {
        if (request->error != 0)
            close(request->fds[i]);
        else
            request->error = emu_tcp_listen(endpoint->tcp, request->fds[i]);
    }
    emu_activate(endpoint);
}

int emu_endpoint_tcp(struct emu_endpoint *endpoint, const struct emu_tcp_config *config, uint64_t patience_ns,
                     const int *fds, unsigned n)
{
    struct tcp_request request = {.endpoint = endpoint, .config = config, .patience = patience_ns, .fds = fds, .n = n};

    emu_reactor_call(endpoint->reactor, call_tcp, &request);
    return request.error;
}

static void call_tcp_drop(void *arg)
{
    struct tcp_request *request = arg;

    if (request->endpoint->tcp != NULL)
        emu_tcp_drop(request->endpoint->tcp, "dropped by the owner");
}

void emu_endpoint_tcp_drop(struct emu_endpoint *endpoint)
{
    struct tcp_request request = {.endpoint = endpoint};

    emu_reactor_call(endpoint->reactor, call_tcp_drop, &request);
}

static void call_tcp_port(void *arg)
{
    struct tcp_request *request = arg;
    struct emu_tcp *tcp = request->endpoint->tcp;

    if (tcp == NULL)
        request->error = EINVAL;
    else if (request->group != 0)
        request->error = emu_tcp_ana(tcp, request->port, request->group, request->state);
    else
        request->error = emu_tcp_port(tcp, request->port, request->state != 0);
    emu_activate(request->endpoint);
}

int emu_endpoint_tcp_port(struct emu_endpoint *endpoint, unsigned port, bool open)
{
    struct tcp_request request = {.endpoint = endpoint, .port = port, .state = open};

    emu_reactor_call(endpoint->reactor, call_tcp_port, &request);
    return request.error;
}

int emu_endpoint_tcp_ana(struct emu_endpoint *endpoint, unsigned port, uint32_t group, uint8_t state)
{
    struct tcp_request request = {.endpoint = endpoint, .port = port, .group = group, .state = state};

    if (group == 0)
        return EINVAL;
    emu_reactor_call(endpoint->reactor, call_tcp_port, &request);
    return request.error;
}

static void call_tcp_stats(void *arg)
{
    struct tcp_request *request = arg;

    if (request->endpoint->tcp != NULL)
        emu_tcp_stats(request->endpoint->tcp, request->stats);
}

void emu_endpoint_tcp_stats(struct emu_endpoint *endpoint, struct emu_tcp_stats *stats)
{
    struct tcp_request request = {.endpoint = endpoint, .stats = stats};

    *stats = (struct emu_tcp_stats){0};
    emu_reactor_call(endpoint->reactor, call_tcp_stats, &request);
}
