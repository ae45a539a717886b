/*
 * A queue pair whose commands are carried out by Python: admin commands, which block in an ioctl or
 * are answered by emulation. The relay announces what was posted with its eventfd; Python takes it,
 * and gives answers back in any order, at any time.
 *
 * What is to be sent is copied when a command is posted, what is received is copied in when it is
 * answered: so memory of a caller that has gone away is touched by nothing. Threads: the queue's.
 */
#ifndef NVME_ASYNC_KERNEL_RELAY_H
#define NVME_ASYNC_KERNEL_RELAY_H

#include "hotpath/queue.h"

struct relay_out {
    struct nvq_sqe sqe;
    uint8_t *data; /* where an answer goes; NULL: nowhere, or it has no waiter any more */
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
/* A command that was posted and not fetched yet; NULL: there is none. */
struct relay_out *relay_fetch(struct relay *relay);
/* Ends a command. False: it is not out any more. `nbytes` of data, or fewer than are wanted: the
 * rest are zeroes. */
bool relay_answer(struct relay *relay, uint16_t cid, uint16_t status, uint32_t dw0, uint32_t dw1, const void *data,
                  uint32_t nbytes);

#endif
