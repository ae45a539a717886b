/*
 * One client's socket: whole messages in, whole replies out, never waiting. A message may arrive in
 * any pieces; a reply that the socket does not accept stays here, and no further message is read
 * until it has been sent. So a client can occupy at most one message and one reply of bounded size,
 * and conn->since is the time when it left something incomplete.
 */
#ifndef NVME_ASYNC_EMULATOR_VFU_CONN_H
#define NVME_ASYNC_EMULATOR_VFU_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "emulator/vfu_proto.h"

/* The longest message: a region access of max_data_xfer_size. */
#define VFU_MAX_MESSAGE (sizeof(struct vfu_header) + sizeof(struct vfu_region_access) + VFU_MAX_DATA_XFER)

enum vfu_recv {
    VFU_RECV_MESSAGE, /* conn->header, conn->payload and conn->fds hold one */
    VFU_RECV_AGAIN,   /* nothing whole yet */
    VFU_RECV_CLOSED,  /* the peer closed, or broke the framing: conn->reason says which */
};

struct vfu_conn {
    int fd;             /* -1 = no client */
    uint64_t since;     /* when the incomplete message or reply began; 0 = none is */
    const char *reason; /* why the latest connection ended */

    struct vfu_header header;
    uint8_t *payload;
    size_t have, capacity; /* have: bytes of header and payload received */
    int fds[VFU_MAX_MSG_FDS];
    unsigned n_fds;

    uint8_t *reply; /* header and payload */
    size_t reply_capacity, reply_length, reply_sent;
    int reply_fd; /* goes with the reply's first byte; borrowed, -1 = none */
};

void vfu_conn_init(struct vfu_conn *conn);
/* Takes fd, which is non-blocking. */
void vfu_conn_open(struct vfu_conn *conn, int fd, uint64_t now);
void vfu_conn_close(struct vfu_conn *conn);

/* Must not be called while a reply is unsent, or before vfu_conn_done() for the previous
 * message. */
enum vfu_recv vfu_conn_recv(struct vfu_conn *conn, uint64_t now);
/* The message was handled: closes the remaining descriptors (those not set to -1). */
void vfu_conn_done(struct vfu_conn *conn);

/* Room for a reply's payload of nbytes; NULL = out of memory. */
uint8_t *vfu_conn_reply(struct vfu_conn *conn, size_t nbytes);
/* Sends what vfu_conn_reply() prepared, or with error != 0 the bare header. False when the
 * connection is gone. */
bool vfu_conn_send(struct vfu_conn *conn, size_t nbytes, int error, int fd, uint64_t now);
/* Continues an unsent reply. */
bool vfu_conn_flush(struct vfu_conn *conn);
static inline bool vfu_conn_unsent(const struct vfu_conn *conn)
{
    return conn->reply_length > conn->reply_sent;
}

#endif
