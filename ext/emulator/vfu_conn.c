#define _GNU_SOURCE
#include "emulator/vfu_conn.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define KEEP_CAPACITY 8192 /* larger buffers are given back after use */

void vfu_conn_init(struct vfu_conn *conn)
{
    memset(conn, 0, sizeof(*conn));
    conn->fd = conn->reply_fd = -1;
}

void vfu_conn_open(struct vfu_conn *conn, int fd, uint64_t now)
{
    vfu_conn_init(conn);
    conn->fd = fd;
    conn->since = now;
}

void vfu_conn_close(struct vfu_conn *conn)
{
    const char *reason = conn->reason;

    if (conn->fd < 0)
        return;
    vfu_conn_done(conn);
    shutdown(conn->fd, SHUT_RDWR); /* a fork()ed child may have a copy */
    close(conn->fd);
    free(conn->payload);
    free(conn->reply);
    vfu_conn_init(conn);
    conn->reason = reason;
}

void vfu_conn_done(struct vfu_conn *conn)
{
    for (unsigned i = 0; i < conn->n_fds; i++) {
        if (conn->fds[i] >= 0)
            close(conn->fds[i]);
    }
    conn->n_fds = 0;
    conn->have = 0;
    if (conn->capacity > KEEP_CAPACITY) {
        free(conn->payload);
        conn->payload = NULL;
        conn->capacity = 0;
    }
}

/* False when the message carries more descriptors than VERSION allowed. */
static bool take_fds(struct vfu_conn *conn, struct msghdr *msg)
{
    bool fits = !(msg->msg_flags & MSG_CTRUNC);

    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (conn->n_fds < VFU_MAX_MSG_FDS) {
                conn->fds[conn->n_fds++] = fd;
            } else {
                close(fd);
                fits = false;
            }
        }
    }
    return fits;
}

/*
 * Reads up to n bytes of the message under way. The header is read alone and the payload to its
 * exact length, so that the descriptors a recvmsg() yields are those of this message and not of the
 * next.
 */
static enum vfu_recv fill(struct vfu_conn *conn, uint8_t *to, size_t n, uint64_t now)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(VFU_MAX_MSG_FDS * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = to, .iov_len = n};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(conn->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (got < 0) {
        if (errno == EAGAIN || errno == EINTR)
            return VFU_RECV_AGAIN;
        conn->reason = "the connection failed";
        return VFU_RECV_CLOSED;
    }
    if (got == 0) {
        conn->reason = conn->have ? "closed within a message" : "closed by the client";
        return VFU_RECV_CLOSED;
    }
    if (conn->since == 0)
        conn->since = now;
    conn->have += (size_t)got;
    if (!take_fds(conn, &msg)) {
        conn->reason = "more descriptors than max_msg_fds in one message";
        return VFU_RECV_CLOSED;
    }
    return (size_t)got == n ? VFU_RECV_MESSAGE : VFU_RECV_AGAIN;
}

static enum vfu_recv bad(struct vfu_conn *conn, const char *reason)
{
    conn->reason = reason;
    return VFU_RECV_CLOSED;
}

enum vfu_recv vfu_conn_recv(struct vfu_conn *conn, uint64_t now)
{
    enum vfu_recv result;
    size_t want, have;

    if (conn->have < sizeof(conn->header)) {
        result = fill(conn, (uint8_t *)&conn->header + conn->have, sizeof(conn->header) - conn->have, now);
        if (result != VFU_RECV_MESSAGE)
            return result;
        if (conn->header.size < sizeof(conn->header))
            return bad(conn, "message size below that of the header");
        if (conn->header.size > VFU_MAX_MESSAGE)
            return bad(conn, "message size above max_data_xfer_size");
    }
    want = conn->header.size - sizeof(conn->header);
    while ((have = conn->have - sizeof(conn->header)) < want) {
        /* Memory grows with what has arrived, not with what was announced. */
        size_t room = have < KEEP_CAPACITY ? KEEP_CAPACITY : 2 * have;

        if (conn->capacity < room && conn->capacity < want) {
            uint8_t *payload = realloc(conn->payload, room);

            if (payload == NULL)
                return bad(conn, "out of memory");
            conn->payload = payload;
            conn->capacity = room;
        }
        room = (want < conn->capacity ? want : conn->capacity) - have;
        result = fill(conn, conn->payload + have, room, now);
        if (result != VFU_RECV_MESSAGE)
            return result;
    }
    return VFU_RECV_MESSAGE;
}

uint8_t *vfu_conn_reply(struct vfu_conn *conn, size_t nbytes)
{
    size_t total = sizeof(struct vfu_header) + nbytes;

    if (conn->reply_capacity < total || (conn->reply_capacity > KEEP_CAPACITY && total <= KEEP_CAPACITY)) {
        size_t capacity = total < KEEP_CAPACITY ? KEEP_CAPACITY : total;
        uint8_t *reply = realloc(conn->reply, capacity);

        if (reply == NULL)
            return NULL;
        conn->reply = reply;
        conn->reply_capacity = capacity;
    }
    return conn->reply + sizeof(struct vfu_header);
}

bool vfu_conn_send(struct vfu_conn *conn, size_t nbytes, int error, int fd, uint64_t now)
{
    struct vfu_header header = {
        .msg_id = conn->header.msg_id,
        .command = conn->header.command,
        .size = (uint32_t)(sizeof(header) + (error ? 0 : nbytes)),
        .flags = VFU_FLAG_REPLY | (error ? VFU_FLAG_ERROR : 0),
        .error = (uint32_t)error,
    };

    if (conn->reply == NULL && vfu_conn_reply(conn, 0) == NULL) {
        conn->reason = "out of memory";
        return false;
    }
    memcpy(conn->reply, &header, sizeof(header));
    conn->reply_length = header.size;
    conn->reply_sent = 0;
    conn->reply_fd = error ? -1 : fd;
    conn->since = now;
    return vfu_conn_flush(conn);
}

bool vfu_conn_flush(struct vfu_conn *conn)
{
    while (vfu_conn_unsent(conn)) {
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec iov = {.iov_base = conn->reply + conn->reply_sent,
                            .iov_len = conn->reply_length - conn->reply_sent};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t sent;

        if (conn->reply_fd >= 0) {
            memset(&control, 0, sizeof(control));
            control.align.cmsg_len = CMSG_LEN(sizeof(int));
            control.align.cmsg_level = SOL_SOCKET;
            control.align.cmsg_type = SCM_RIGHTS;
            memcpy(CMSG_DATA(&control.align), &conn->reply_fd, sizeof(int));
            msg.msg_control = &control;
            msg.msg_controllen = sizeof(control.bytes);
        }
        sent = sendmsg(conn->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return true;
        if (sent < 0) {
            conn->reason = "the connection failed";
            return false;
        }
        conn->reply_sent += (size_t)sent;
        conn->reply_fd = -1;
    }
    conn->since = 0;
    return true;
}
