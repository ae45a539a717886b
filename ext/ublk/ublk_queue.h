/*
 * One queue of a ublk device: the kernel's requests become NVMe commands, and their results go
 * back. All of it on one thread, without the interpreter, as a source of commands
 * (hotpath/source.h); export/ublk.py makes the device and the threads.
 *
 *   fetch     each tag is offered to the kernel once, with a buffer in the controller's memory
 *   take      a completion says that a tag has a request; its descriptor says which
 *   commit    when its command has completed, one entry carries the result and fetches the next
 *
 * A request is one command: the limits that the device is made with see to it. The kernel copies
 * the data between the request's pages and the tag's buffer, from which the controller transfers
 * them; nothing else copies. All FETCH and COMMIT entries are sent by the thread that sent the
 * first, as the kernel demands.
 *
 * The kernel may write to a tag's buffer until that thread has ended: only then is it freed.
 */
#ifndef NVME_ASYNC_UBLK_QUEUE_H
#define NVME_ASYNC_UBLK_QUEUE_H

#include "hotpath/source.h"
#include "kernel/ring.h"
#include "ublk_abi.h"

struct ublk_geometry {
    uint64_t nbytes;         /* of the device; see ublk_queue_resize */
    uint32_t nsid;
    uint32_t block_shift;    /* log2 of the block size */
    uint32_t zero_blocks;    /* of one Write Zeroes command; 0: there is none */
    uint32_t discard_blocks; /* of one Dataset Management range; 0: there is none */
    uint32_t cell_nbytes;    /* of a tag's buffer: the largest transfer */
    bool read_only;
    bool legacy;             /* command numbers of kernels before 6.4 */
};

struct ublk_cell {
    struct nvq_cell c; /* first: see source.h */
    uint8_t *memory;
    struct ublk_cell *next; /* in the line for a command id */
    uint32_t nbytes;        /* of data, or what the command covers */
    uint8_t op;
    bool active;            /* has a request that was not answered */
    bool flush_due;         /* a Flush command follows: a discard with FUA */
};

struct ublk_counters {
    uint64_t requests, reads, writes, flushes, discards, zeroes, errors;
    uint64_t bytes_read, bytes_written;
    uint64_t refetched; /* entries that the kernel did not take at once */
};

struct ublk_queue {
    struct nvq_source source; /* first */
    struct ublk_geometry g;
    struct ring ring;
    int fd; /* of /dev/ublkcN */
    uint16_t number;
    bool fetching; /* the tags were offered */
    bool leaving;  /* requests that arrive are left to the next server */
    bool aborted;  /* the kernel has ended the device, or the server's part in it */
    bool ended;    /* end() was called */
    const char *why; /* the queue has failed */
    int why_errno;
    uint32_t n_offered; /* tags that the kernel has */
    uint32_t n_active;  /* requests that were begun and not answered */
    const struct ublk_descriptor *descriptors;
    size_t descriptors_nbytes;
    struct ublk_cell *ready, *ready_last; /* prepared, waiting for a command id */
    struct ublk_counters counters;
};

/* `n_tags` cells of g->cell_nbytes in `memory`, which the device reaches at iova; offset: in the
 * pool, or NVQ_NO_OFFSET. 0 or a negative errno. */
int ublk_queue_init(struct ublk_queue *u, const struct ublk_geometry *g, int fd, uint16_t number, uint8_t *memory,
                    uint64_t iova, uint64_t offset, uint32_t n_tags);
/* The device has another size. Any thread. */
void ublk_queue_resize(struct ublk_queue *u, uint64_t nbytes);
/* Closes what the kernel has. The thread has ended. */
void ublk_queue_close(struct ublk_queue *u);
/* The controller has none of its commands any more. */
void ublk_queue_free(struct ublk_queue *u);
/* In a forked child, which shares neither the ring nor the descriptors' memory. */
void ublk_queue_forget(struct ublk_queue *u);

void ublk_set_mark(uint64_t mark);

/* As Linux's nvme driver maps NVMe status to block layer errors, by the errno that ublk turns into
 * the same one; 0 or negative. */
int ublk_error_of(uint16_t status);

#endif
