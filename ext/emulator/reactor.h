/*
 * The thread that serves emulated controllers. One reactor may have many; a controller belongs to
 * one reactor.
 *
 * A controller is in one of three states:
 *   active   polled in turn with the other active ones, without pause;
 *   asleep   after REACTOR_SPIN_NS without work for each active controller, if emu_ctrl_arm() and
 *            the client (vfu_server_wakeable()) promise that the next doorbell wakes us. Costs
 *            nothing;
 *   napping  the same without that promise: polled after a nap of an eighth of its idle time, but
 *            at least REACTOR_NAP_MIN_NS and at most REACTOR_NAP_MAX_NS.
 *
 * The spin is long enough for a client's event loop to send its next command, and short enough that
 * an isolated command costs little more than the two wake-ups it needs anyway. A client that uses
 * many controllers in turn comes back to each of them later, the more there are: were one of them
 * put to sleep meanwhile, each of its doorbells would cost a system call. A nap's end costs 17
 * to 27 us of processor time (timer, switch in, switch out), so naps of 2 ms are some one per cent
 * of a core, and 50 us is where the first one is no worse than the spin.
 *
 * Everything but emu_reactor_new/free/call runs on the reactor's thread; other threads use
 * emu_reactor_call().
 */
#ifndef NVME_ASYNC_EMULATOR_REACTOR_H
#define NVME_ASYNC_EMULATOR_REACTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "emulator/tcp_target.h"
#include "emulator/vfu_server.h"

#define REACTOR_SPIN_NS 100000
#define REACTOR_NAP_MIN_NS 50000
#define REACTOR_NAP_MAX_NS 2000000

struct emu_reactor;
struct emu_endpoint; /* a controller in a reactor */

struct emu_reactor_stats {
    uint64_t sleeps;     /* times the thread waited, naps included */
    uint64_t naps;       /* of which for a controller that can't wake it */
    uint64_t cpu_ns;     /* the thread's processor time */
    uint64_t yields;     /* of the processor, while there was nothing to do */
    uint64_t dear_yields; /* of which took as long as another process's time slice */
    unsigned endpoints, active;
};

/* Starts the thread. NULL with a message in err[256]. */
struct emu_reactor *emu_reactor_new(const char *name, char *err);
/* Ends the thread and waits for it. No endpoint may remain.  fork(): the child has no reactor
 * thread, but shares the epoll set and the sockets with the parent. A child may call only this
 * function, which then only frees memory. */
void emu_reactor_free(struct emu_reactor *reactor);
/* Runs fn(arg) on the reactor's thread and returns when it is done. From any thread but the
 * reactor's own. */
void emu_reactor_call(struct emu_reactor *reactor, void (*fn)(void *arg), void *arg);
void emu_reactor_stats(struct emu_reactor *reactor, struct emu_reactor_stats *stats);

/* The following call emu_reactor_call() themselves. */

/* Takes the server. NULL: out of memory, the server stays the caller's. */
struct emu_endpoint *emu_reactor_add(struct emu_reactor *reactor, struct vfu_server *server);
/* Drops the client, closes the listening socket, gives the server back. */
struct vfu_server *emu_reactor_remove(struct emu_endpoint *endpoint);
/* A connected client; takes fd. 0, EBUSY when there is a client, or an errno; fd is closed on
 * failure. */
int emu_endpoint_attach(struct emu_endpoint *endpoint, int fd);
/* A listening socket to accept clients from, one at a time; takes fd. -1 stops listening. 0 or an
 * errno. */
int emu_endpoint_listen(struct emu_endpoint *endpoint, int fd);
/* Drops the client if there is one. */
void emu_endpoint_drop(struct emu_endpoint *endpoint);
/* Serves NVMe/TCP too, over these listening sockets, which are taken; once. 0 or an errno. */
int emu_endpoint_tcp(struct emu_endpoint *endpoint, const struct emu_tcp_config *config, uint64_t patience_ns,
                     const int *fds, unsigned n);
void emu_endpoint_tcp_drop(struct emu_endpoint *endpoint);
int emu_endpoint_tcp_port(struct emu_endpoint *endpoint, unsigned port, bool open);
int emu_endpoint_tcp_ana(struct emu_endpoint *endpoint, unsigned port, uint32_t group, uint8_t state);
void emu_endpoint_tcp_stats(struct emu_endpoint *endpoint, struct emu_tcp_stats *stats);
/* Runs fn(arg) on the thread and counts the controller as having work to do. */
void emu_endpoint_call(struct emu_endpoint *endpoint, void (*fn)(void *arg), void *arg);

#endif
