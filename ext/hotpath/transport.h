/*
 * If no device reads a queue's entries from memory, a transport carries them: it takes commands out
 * of the submission ring when the doorbell would be rung, and enters completions into the
 * completion ring when the driver polls for them. Everything above (waiters, cancellation, batches,
 * back-pressure, resending after a reset) is the same. A transport that fails makes its own
 * descriptor readable, and so notifies its listener.
 *
 * A command's data are where prp1 says, as a pointer, for tracker.data_nbytes: the address map of
 * such a queue is the identity.
 */
#ifndef NVME_ASYNC_HOTPATH_TRANSPORT_H
#define NVME_ASYNC_HOTPATH_TRANSPORT_H

#include <stdbool.h>

struct nvq;

/* The functions are called with the queue's thread alone, with or without the GIL. None may
 * block. */
struct nvq_transport {
    /* poll() is a system call, also if there is nothing, and the listener is notified again while
     * there is more: waiters share polls. */
    bool shared_polls;
    /* Sends what was posted since the last call. */
    void (*submit)(struct nvq *q);
    /* Polls for completions. True: there is something to reap. */
    bool (*poll)(struct nvq *q);
    /* The rings are at their start again: every command is forgotten, and no memory of one is
     * touched any more. */
    void (*reset)(struct nvq *q);
    /* This command has no waiter any more. True: its memory is not touched from now on, although it
     * is still in flight. */
    bool (*abandon)(struct nvq *q, unsigned slot);
    /* The queue is closed, or another transport takes over. */
    void (*unbind)(struct nvq *q);
    /* The process is a forked child: what it shares with its parent (sockets, epoll sets) is not
     * touched from here on. */
    void (*disown)(struct nvq *q);
};

/* What a capsule named NVQ_BINDING holds, from the transport's extension module to the queue
 * pair's. */
#define NVQ_BINDING "nvme_async.transport"

struct nvq_binding {
    const struct nvq_transport *transport;
    void *link;
    struct nvq **queue; /* where the transport learns of the queue */
};

#endif
