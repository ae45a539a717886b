/* Shared by reactor.c (the thread), reactor_clients.c (its sockets) and endpoint.c (requests to
 * it). */
#ifndef NVME_ASYNC_EMULATOR_REACTOR_INTERNAL_H
#define NVME_ASYNC_EMULATOR_REACTOR_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "emulator/reactor.h"
#include "emulator/tcp_target.h"

enum emu_state { ACTIVE, ASLEEP, NAPPING };
enum emu_source { CONTROL, LISTEN, CLIENT, KICK, WAKE, UNMASK, SOCKET_LISTEN, SOCKET_CONN, SIBLING_WAKE };

/* What an epoll event refers to. */
struct emu_watch {
    enum emu_source source;
    struct emu_endpoint *endpoint;
};

struct emu_endpoint {
    struct emu_reactor *reactor;
    struct vfu_server *server;
    enum emu_state state;
    uint64_t idle_since; /* ACTIVE: since when poll() had nothing to do; 0 = it had the last time */
    uint64_t wake_at;    /* otherwise: when to be polled */
    uint64_t dozing_since; /* NAPPING or between naps: when the first one began; 0 = there was work */
    int listen_fd;
    uint64_t accept_at; /* when to try accept() again; UINT64_MAX = whenever the socket is ready */
    uint32_t client_events;
    struct emu_watch listen, client, kick, wake, unmask;
    struct emu_tcp *tcp; /* or NULL */
};

struct emu_call {
    void (*fn)(void *arg);
    void *arg;
    bool done;
    struct emu_call *next;
};

struct emu_reactor {
    pthread_t thread;
    pid_t pid;
    char name[16];
    int epoll_fd, control_fd;
    struct emu_watch control;
    struct emu_endpoint **endpoints, **active; /* active: those in that state, in no order */
    struct emu_endpoint *latest; /* the active one that had work last, or NULL */
    unsigned n_endpoints, n_active, n_napping, capacity;
    uint64_t next_deadline; /* when the endpoints' deadlines are due; 0 = now */
    struct emu_reactor_stats stats;
    bool no_pwait2; /* the kernel is older than 5.11 */

    pthread_mutex_t lock; /* of calls */
    pthread_cond_t done;
    struct emu_call *calls;
    atomic_bool called, stop;
};

/* All of these: on the reactor's thread. */
uint64_t emu_now(void);
int emu_watch_fd(struct emu_reactor *reactor, int fd, uint32_t events, struct emu_watch *watch);
void emu_unwatch_fd(struct emu_reactor *reactor, int fd);
void emu_set_state(struct emu_endpoint *endpoint, enum emu_state state);
/* There may be work: polls it for a while, whatever state it is in. */
void emu_activate(struct emu_endpoint *endpoint);
/* Listening and having a client exclude each other, so that the next client waits in the socket's
 * backlog. */
void emu_watch_listener(struct emu_endpoint *endpoint);
/* Takes fd, non-blocking; 0 or an errno. */
int emu_open_client(struct emu_endpoint *endpoint, int fd);
/* The next client of the listening socket, if the controller has none. */
void emu_accept_client(struct emu_endpoint *endpoint);
/* Receives what the client's socket has, and sends what it accepts; drops the client if the
 * connection ends. */
void emu_serve_client(struct emu_endpoint *endpoint);
void emu_drop_client(struct emu_endpoint *endpoint, const char *reason);

#endif
