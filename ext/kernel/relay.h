/*
 * A queue pair whose commands Python executes: admin commands, which block in an ioctl or are
 * emulated. The relay's eventfd announces posted commands; Python takes them, and completes them in
 * any order, at any time.
 *
 * Data to be sent are copied when a command is posted, received data when it is completed, so
 * memory of a cancelled caller is never accessed. Threads: the queue's.
 */
#ifndef NVME_ASYNC_KERNEL_RELAY_H
#define NVME_ASYNC_KERNEL_RELAY_H

#include "hotpath/queue.h"

struct relay_out {
    struct nvq_sqe sqe;
    uint8_t *data; /* where received data go; NULL: nowhere, or the command has no waiter */
    uint8_t *copy; /* what is sent */
    uint32_t nbytes;
    bool out, to_host, fetched;
};

struct relay {
    struct nvq *q;
    int event_fd;
    uint32_t sq_head, cq_tail;
    uint16_t cq_phase;
    uint32_t n_slots, n_out;
    struct relay_out *out;
};

extern const struct nvq_transport relay_transport;

int relay_init(struct relay *relay);
/* Once it is a queue pair's transport. */
int relay_start(struct relay *relay);
void relay_free(struct relay *relay);
/* The next posted command that was not fetched yet; NULL: none. */
struct relay_out *relay_fetch(struct relay *relay);
/* Ends a command. False: it is no longer in flight. `nbytes` may be fewer than requested: the rest
 * becomes zeroes. */
bool relay_answer(struct relay *relay, uint16_t cid, uint16_t status, uint32_t dw0, uint32_t dw1, const void *data,
                  uint32_t nbytes);

#endif
