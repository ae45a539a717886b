/*
 * One NBD connection in its transmission phase: requests come in, commands go to the queue pair,
 * replies are sent. All on one thread, without the interpreter; export/nbd.py does the handshake
 * and passes the socket.
 *
 *   receive   a header, then the data of a write straight into a cell's memory
 *   issue     the request is cut into cells of at most cell_nbytes, one NVMe command each
 *   finish    when all cells of a request have completed, its reply is queued
 *   send      headers and the cells' memory, gathered; a read's cells are free once they are sent
 *
 * The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md. Nothing that a
 * client sends is trusted: offsets, lengths and flags are checked before anything is done, and an
 * invalid header ends the connection. Requests are issued one after the other in the order of their
 * arrival, and complete in any order. A request that needs more cells than are free waits, and
 * nothing more is received meanwhile.
 */
#ifndef NVME_ASYNC_NBD_H
#define NVME_ASYNC_NBD_H

#include <sys/types.h>

#include "hotpath/source.h"

enum { /* commands */
       NBD_READ = 0,
       NBD_WRITE = 1,
       NBD_DISC = 2,
       NBD_FLUSH = 3,
       NBD_TRIM = 4,
       NBD_WRITE_ZEROES = 6,
};

enum { /* command flags */
       NBD_FUA = 1 << 0,
       NBD_NO_HOLE = 1 << 1,
};

enum { /* errors */
       NBD_EPERM = 1,
       NBD_EIO = 5,
       NBD_EINVAL = 22,
       NBD_ENOSPC = 28,
       NBD_ENOTSUP = 95,
};

#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_MAGIC 0x67446698u
#define NBD_CHUNK_MAGIC 0x668e33efu
#define NBD_HEADER 28u  /* of a request */
#define NBD_REPLY 32u   /* room for the longest header: a chunk's 20 bytes and its payload's */
#define NBD_MAX_IOV 64
#define NBD_STAGE 1024u /* bytes received ahead: headers of several requests in one system call */

struct nbd_geometry {
    uint64_t nbytes;      /* of the export */
    uint32_t nsid;
    uint32_t block_shift; /* log2 of the block size */
    uint32_t zero_blocks; /* of one Write Zeroes command; 0: the controller has none */
    uint32_t trim_blocks; /* of one Dataset Management range; 0: trim is accepted and does nothing */
    uint32_t max_nbytes;  /* of one request with data */
    bool read_only;
    bool structured;      /* structured replies, as negotiated */
};

struct nbd_cell {
    struct nvq_cell c; /* first: see source.h */
    uint8_t *memory;
    struct nbd_request *request;
    struct nbd_cell *next; /* of the request's, or the next free one */
    uint64_t offset;       /* in the export, in bytes */
    uint32_t nbytes;       /* of the export that it covers */
    uint8_t header[NBD_REPLY];
};

struct nbd_request {
    uint64_t cookie, offset;
    uint32_t length;
    uint32_t left;   /* bytes that no cell covers yet */
    uint16_t type, flags;
    uint16_t status; /* first NVMe status that is not 0 */
    uint32_t error;  /* refused by this server: NBD's error number */
    uint32_t out;    /* cells prepared but not completed */
    bool issued;     /* its cells are complete */
    bool flush_due;  /* a Flush command follows the others */
    struct nbd_cell *first, *last;
    struct nbd_request *next; /* in the queue of replies, or the next free one */
    uint8_t header[NBD_REPLY];
    uint32_t header_nbytes;
};

struct nbd_counters {
    uint64_t requests, reads, writes, flushes, trims, zeroes, errors;
    uint64_t bytes_read, bytes_written;
    uint64_t receives, sends, blocked;
};

enum nbd_state { NBD_IN_HEADER, NBD_IN_DATA, NBD_SKIPPING, NBD_ISSUING, NBD_ENDED };

struct nbd {
    struct nvq_source source; /* first */
    struct nbd_geometry g;
    int fd;
    enum nbd_state state;
    const char *why; /* the connection ended; NULL: by a disconnect request */
    uint8_t stage[NBD_STAGE];
    uint32_t stage_begin, stage_end;
    uint64_t skip;                /* bytes of a refused write not received yet */
    struct nbd_request *current;  /* being received or issued */
    struct nbd_cell *filling;     /* gets a write's data */
    uint32_t filled;
    struct nbd_cell *ready, *ready_last; /* prepared, waiting for a command id */
    struct nbd_cell *free_cells;
    struct nbd_request *free_requests, *requests;
    struct nbd_request *answers, *answers_last; /* replies to be sent, in the order of completion */
    uint64_t sent;   /* bytes of the first reply already sent */
    uint32_t n_busy; /* requests received whose replies have not been sent completely */
    uint32_t cell_nbytes;
    bool send_blocked;
    struct nbd_counters counters;
};

/* Cells of `cell_nbytes` each in `memory`, which the device accesses at iova; offset: in the pool,
 * or NVQ_NO_OFFSET. 0 or -ENOMEM. */
int nbd_init(struct nbd *n, const struct nbd_geometry *g, int fd, uint8_t *memory, uint64_t iova, uint64_t offset,
             uint32_t n_cells, uint32_t cell_nbytes);
void nbd_free(struct nbd *n);

/* Detection of short reads (short.h). The mark is local to a file, so all three functions are in
 * nbd.c. */
void nbd_set_mark(uint64_t mark);
void nbd_mark(struct nbd_cell *cell);
uint16_t nbd_check(struct nbd_cell *cell);

/* nbd_receive.c. True: progress was made. */
bool nbd_receive(struct nbd *n);
bool nbd_post(struct nbd *n, struct nvq *q, struct nvb_slot *slots, uint32_t keep);
void nbd_flush_after(struct nbd *n, struct nbd_request *r);
void nbd_drop_partial(struct nbd *n);
/* nbd_send.c */
bool nbd_send(struct nbd *n);
void nbd_complete(void *self, struct nvq_cell *cell);
void nbd_finish(struct nbd *n, struct nbd_request *r);
void nbd_answer(struct nbd *n, struct nbd_request *r);

/* Ends the connection: nothing more is received. */
static inline void nbd_stop(struct nbd *n, const char *why)
{
    if (n->state != NBD_ENDED) {
        n->state = NBD_ENDED;
        n->why = why;
    }
}

static inline uint64_t nbd_get(const uint8_t *at, unsigned nbytes)
{
    uint64_t value = 0;
    while (nbytes--)
        value = value << 8 | *at++;
    return value;
}

static inline void nbd_put(uint8_t *at, uint64_t value, unsigned nbytes)
{
    while (nbytes--) {
        at[nbytes] = (uint8_t)value;
        value >>= 8;
    }
}

#endif
