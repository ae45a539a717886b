/*
 * One NVMe/TCP connection as the transport of a queue pair (hotpath/transport.h): sends entries of
 * the submission ring as capsules, and receives responses and data into the completion ring and the
 * callers' buffers.
 *
 * It begins after ICReq, ICResp and Connect, which are Python's
 * (nvme_async/driver/tcp/handshake.py): link_attach() passes it the socket and the negotiated
 * values.
 *
 * Sending. Small data are copied behind their header into an arena, so that a burst of commands is
 * one piece of memory for one sendmsg; longer data are sent in place, and are held by a reference
 * (struct tcp_out.held) until they have been sent. A full socket is watched for EPOLLOUT through
 * the link's own epoll descriptor.
 *
 * Receiving. Headers, and small data behind them, go through a buffer. The rest of a longer
 * transfer is received into the caller's buffer itself. The link trusts nothing that it receives:
 * command ids, offsets and lengths are checked against the command in flight, and one command's
 * data can't reach another's memory.
 *
 * Threads: the queue's. link_attach() and link_detach() happen while the queue is silent.
 */
#ifndef NVME_ASYNC_TCP_LINK_H
#define NVME_ASYNC_TCP_LINK_H

#include "common/crc32c.h"
#include "common/nvme_tcp.h"
#include "hotpath/queue.h"

#define LINK_COPY_MAX 8192u /* data of a command up to this are copied behind the header */
#define LINK_RX_BYTES (128u << 10)
#define LINK_RX_SHORT \
    4096u   /* longest receive into the buffer while long transfers are in flight: their data should bypass it */
#define LINK_LONG (16u << 10) /* a long transfer */
#define LINK_ROUNDS 4u        /* calls of recv() in one poll */

/* Status of a command whose data had a wrong digest: Transient Transport Error; of one whose data
 * were incomplete: Data Transfer Error. */
enum { LINK_DIGEST_ERROR = 0x22, LINK_SHORT_DATA = 0x04 };

struct tcp_limits {
    uint32_t
        in_capsule; /* bytes of data that a command capsule may hold: IOCCSZ * 16 - 64, or 8192 for the admin queue */
    uint32_t max_h2c; /* MAXH2CDATA */
    uint32_t alignment; /* of data that we send, in bytes: (CPDA + 1) * 4 */
    bool header_digest, data_digest;
};

/* A command in flight, by its slot. */
struct tcp_out {
    uint8_t *data; /* NULL: none, or the command has no waiter */
    uint32_t nbytes, moved;
    uint32_t held; /* pieces of data not sent yet */
    uint16_t cid;
    bool out, to_host, wrong_digest;
    bool owned; /* data is the link's own copy, because this write has no waiter */
};

/* An entry of the send queue: a part of the arena, or of a command's data. */
struct tcp_piece {
    const uint8_t *at; /* NULL: in the arena, from `offset` on */
    uint8_t *owned; /* to be freed when sent */
    uint32_t offset, nbytes;
    int slot; /* whose data, or -1 */
};

enum tcp_receiving { RX_HEADER, RX_PADDING, RX_DATA, RX_DIGEST };

struct tcp_counters {
    uint64_t sends, receives, empty, polls, bytes_sent, bytes_received, pdus_sent, pdus_received;
    uint64_t r2ts, in_capsule, header_digest_errors, data_digest_errors, blocked, copied, late;
};

struct tcp_link {
    struct nvq *q; /* NULL: no queue is attached */
    int fd; /* -1: not connected. Not owned */
    int epoll_fd; /* readable when a full socket accepts data again */
    bool blocked, broken;
    struct tcp_limits limits;
    uint32_t sq_head; /* index of the next SQ entry to be sent */
    uint32_t cq_tail;
    uint16_t cq_phase;
    uint32_t n_out, n_long; /* commands in flight; of these, reads of LINK_LONG bytes or more */
    uint32_t n_slots;
    struct tcp_out *out;

    uint8_t *arena;
    uint32_t arena_used, arena_size;
    struct tcp_piece *pieces;
    uint32_t first_piece, n_pieces, max_pieces;

    uint8_t *rx;
    uint32_t rx_begin, rx_end;
    enum tcp_receiving receiving;
    struct tcp_data pdu; /* the C2HData being received */
    uint32_t left; /* bytes to the end of padding, data or digest */
    uint32_t at; /* where in the command's data the next byte goes */
    uint32_t crc;
    uint8_t digest[TCP_DIGEST];

    struct tcp_counters counters;
    char error[256]; /* why the connection ended */
};

extern const struct nvq_transport tcp_transport;

/* 0 or a negative errno. */
int link_init(struct tcp_link *link);
void link_free(struct tcp_link *link);
/* Takes a non-blocking socket on which Connect has succeeded. 0 or a negative errno. */
int link_attach(struct tcp_link *link, int fd, const struct tcp_limits *limits);
/* Detaches the connection; commands in flight stay so until the queue is reset. */
void link_detach(struct tcp_link *link);
/* Fails the connection: it is shut down, so that the socket becomes readable. Only the first reason
 * is kept. */
void link_fail(struct tcp_link *link, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* link_send.c */
void link_submit(struct tcp_link *link);
void link_flush(struct tcp_link *link);
/* An R2T: queues `length` bytes from `offset` of that command's data. */
void link_send_data(struct tcp_link *link, unsigned slot, uint16_t ttag, uint32_t offset, uint32_t length);
/* Copies the unsent part of that command's data, whose memory is no longer the link's from here on.
 * False: out of memory. */
bool link_keep_copy(struct tcp_link *link, unsigned slot);
void link_forget_pieces(struct tcp_link *link);

/* The command is complete; its slot may be used again. */
void link_end_command(struct tcp_link *link, unsigned slot);

/* link_receive.c */
void link_receive(struct tcp_link *link);

static inline uint32_t link_header_digest(const struct tcp_link *link)
{
    return link->limits.header_digest ? TCP_DIGEST : 0;
}

static inline bool link_has_answers(const struct tcp_link *link)
{
    return (link->q->cq[link->q->cq_head].status & 1) == link->q->cq_phase;
}

#endif
