/* Sending: from the submission ring to the socket. */
#define _GNU_SOURCE
#include "link.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define IOVECS 64

/* -- the send queue
 * -------------------------------------------------------------------------- */

static uint8_t *arena_room(struct tcp_link *link, uint32_t nbytes)
{
    if (link->arena_used + nbytes > link->arena_size) {
        uint32_t size = link->arena_size ? link->arena_size : 16384;
        while (size < link->arena_used + nbytes)
            size *= 2;
        uint8_t *grown = realloc(link->arena, size);
        if (!grown) {
            link_fail(link, "no memory for %u bytes to be sent", size);
            return NULL;
        }
        link->arena = grown;
        link->arena_size = size;
    }
    return link->arena + link->arena_used;
}

static bool add_piece(struct tcp_link *link, struct tcp_piece piece)
{
    if (link->first_piece + link->n_pieces == link->max_pieces) {
        if (link->first_piece > link->max_pieces / 2) {
            memmove(link->pieces, link->pieces + link->first_piece, link->n_pieces * sizeof(*link->pieces));
            link->first_piece = 0;
        } else {
            uint32_t size = link->max_pieces ? 2 * link->max_pieces : 256;
            struct tcp_piece *grown = realloc(link->pieces, size * sizeof(*grown));
            if (!grown) {
                link_fail(link, "no memory for %u pieces to be sent", size);
                return false;
            }
            link->pieces = grown;
            link->max_pieces = size;
        }
    }
    link->pieces[link->first_piece + link->n_pieces++] = piece;
    return true;
}

/* Queues what was written at the end of the arena. */
static void arena_add(struct tcp_link *link, uint32_t nbytes)
{
    struct tcp_piece *last = link->n_pieces ? &link->pieces[link->first_piece + link->n_pieces - 1] : NULL;
    if (last && !last->at && last->offset + last->nbytes == link->arena_used)
        last->nbytes += nbytes;
    else if (!add_piece(link, (struct tcp_piece){.offset = link->arena_used, .nbytes = nbytes, .slot = -1}))
        return;
    link->arena_used += nbytes;
}

/*
 * A PDU: `header` of `hlen` bytes whose common header has type and flags, then data of slot's
 * command from `data` on. Fills in digests, padding, PDO and PLEN.
 */
static void add_pdu(struct tcp_link *link, void *header, uint32_t hlen, unsigned slot, const uint8_t *data,
                    uint32_t nbytes)
{
    const struct tcp_limits *limits = &link->limits;
    const uint32_t head = hlen + (limits->header_digest ? TCP_DIGEST : 0);
    const uint32_t pdo = nbytes ? tcp_align(head, limits->alignment) : 0;
    const uint32_t begin = nbytes ? pdo : head;
    const uint32_t tail = nbytes && limits->data_digest ? TCP_DIGEST : 0;
    const bool copied = nbytes && nbytes <= LINK_COPY_MAX;
    struct tcp_ch *ch = header;

    ch->hlen = (uint8_t)hlen;
    ch->pdo = (uint8_t)pdo;
    ch->plen = begin + nbytes + tail;
    ch->flags |= (limits->header_digest ? TCP_HDGSTF : 0) | (tail ? TCP_DDGSTF : 0);

    uint8_t *at = arena_room(link, begin + (copied ? nbytes : 0) + tail);
    if (!at)
        return;
    memcpy(at, header, hlen);
    if (limits->header_digest) {
        const uint32_t digest = ~crc32c(CRC32C_INIT, header, hlen);
        memcpy(at + hlen, &digest, TCP_DIGEST);
    }
    if (begin > head)
        memset(at + head, 0, begin - head);
    uint32_t digest = 0;
    if (tail)
        digest = ~crc32c(CRC32C_INIT, data, nbytes);
    link->counters.pdus_sent++;
    if (copied || !nbytes) {
        if (nbytes)
            memcpy(at + begin, data, nbytes);
        memcpy(at + begin + nbytes, &digest, tail);
        link->counters.copied += copied;
        arena_add(link, begin + nbytes + tail);
        return;
    }
    arena_add(link, begin);
    if (add_piece(link, (struct tcp_piece){.at = data, .nbytes = nbytes, .slot = (int)slot}))
        link->out[slot].held++;
    if (tail) {
        memcpy(link->arena + link->arena_used, &digest, TCP_DIGEST);
        arena_add(link, TCP_DIGEST);
    }
}

/* -- commands and data
 * --------------------------------------------------------------------------- */

static void add_command(struct tcp_link *link, const struct nvq_sqe *sqe)
{
    struct nvq *q = link->q;
    const unsigned slot = sqe->cid & ((1u << q->slot_bits) - 1);
    const struct nvq_tracker *tracker = &q->trackers[slot];
    struct tcp_out *out = &link->out[slot];
    struct tcp_command pdu = {.ch = {.type = TCP_COMMAND}};
    struct tcp_sgl sgl = {.type = TCP_SGL_TRANSPORT};
    const uint8_t *data = NULL;
    const uint32_t nbytes = tracker->flags & (NVQ_TO_HOST | NVQ_FROM_HOST) ? tracker->data_nbytes : 0;

    *out = (struct tcp_out){
        .data = nbytes ? (uint8_t *)(uintptr_t)sqe->prp1 : NULL,
        .nbytes = nbytes,
        .cid = sqe->cid,
        .out = true,
        .to_host = tracker->flags & NVQ_TO_HOST,
    };
    link->n_out++;
    if (out->to_host && nbytes >= LINK_LONG)
        link->n_long++;
    if (out->to_host && tracker->flags & NVQ_ORPHAN)
        out->data = NULL; /* abandoned while the connection was being restored */
    sgl.length = nbytes;
    /* Data that fit go in the capsule: a controller may wait for them there without limit, as
     * Linux's does. */
    if (nbytes && !out->to_host && nbytes <= link->limits.in_capsule) {
        sgl.type = TCP_SGL_IN_CAPSULE;
        data = out->data;
        out->moved = nbytes;
        link->counters.in_capsule++;
    }
    memcpy(pdu.sqe, sqe, sizeof(pdu.sqe));
    pdu.sqe[1] = (uint8_t)((pdu.sqe[1] & 0x3f) | TCP_PSDT_SGL);
    memset(pdu.sqe + 16, 0, 8); /* MPTR */
    memcpy(pdu.sqe + TCP_SQE_SGL, &sgl, sizeof(sgl));
    add_pdu(link, &pdu, sizeof(pdu), slot, data, data ? nbytes : 0);
}

void link_submit(struct tcp_link *link)
{
    struct nvq *q = link->q;
    if (link->fd < 0 || link->broken)
        return; /* they stay in the ring; a reset posts them anew */
    while (link->sq_head != q->sq_tail) {
        add_command(link, &q->sq[link->sq_head]);
        if (++link->sq_head == q->entries)
            link->sq_head = 0;
    }
    if (!link->blocked)
        link_flush(link);
}

void link_send_data(struct tcp_link *link, unsigned slot, uint16_t ttag, uint32_t offset, uint32_t length)
{
    struct tcp_out *out = &link->out[slot];
    if (offset + length > out->moved)
        out->moved = offset + length;
    while (length) {
        const uint32_t part = length < link->limits.max_h2c ? length : link->limits.max_h2c;
        struct tcp_data pdu = {
            .ch = {.type = TCP_H2C_DATA, .flags = part == length ? TCP_LAST_PDU : 0},
            .cccid = out->cid,
            .ttag = ttag,
            .offset = offset,
            .length = part,
        };
        add_pdu(link, &pdu, sizeof(pdu), slot, out->data + offset, part);
        offset += part;
        length -= part;
    }
}

/* -- memory that returns to its owner
 * -------------------------------------------------------------------- */

bool link_keep_copy(struct tcp_link *link, unsigned slot)
{
    for (uint32_t i = 0; i < link->n_pieces && link->out[slot].held; i++) {
        struct tcp_piece *piece = &link->pieces[link->first_piece + i];
        if (piece->slot != (int)slot)
            continue;
        piece->owned = malloc(piece->nbytes);
        if (!piece->owned)
            return false;
        memcpy(piece->owned, piece->at, piece->nbytes);
        piece->at = piece->owned;
        piece->slot = -1;
        link->out[slot].held--;
    }
    return true;
}

void link_end_command(struct tcp_link *link, unsigned slot)
{
    struct tcp_out *out = &link->out[slot];
    if (out->held) {
        /* The command completed before all requested data were sent: the rest must still be sent,
         * but the caller gets its buffer back. */
        link->counters.late++;
        if (!link_keep_copy(link, slot)) {
            link_fail(link, "no memory for the rest of a write that is complete");
            link_forget_pieces(link);
        }
    }
    if (out->owned)
        free(out->data);
    if (out->to_host && out->nbytes >= LINK_LONG)
        link->n_long--;
    link->n_out--;
    *out = (struct tcp_out){0};
}

void link_forget_pieces(struct tcp_link *link)
{
    for (uint32_t i = 0; i < link->n_pieces; i++)
        free(link->pieces[link->first_piece + i].owned);
    link->first_piece = link->n_pieces = link->arena_used = 0;
}

/* -- the socket
 * ---------------------------------------------------------------------------------- */

static void want_room(struct tcp_link *link, bool want)
{
    struct epoll_event event = {.events = want ? EPOLLOUT : 0};
    if (link->blocked == want)
        return;
    link->blocked = want;
    link->counters.blocked += want;
    epoll_ctl(link->epoll_fd, EPOLL_CTL_MOD, link->fd, &event);
}

/* That many bytes of the first pieces have been sent. */
static void sent(struct tcp_link *link, size_t nbytes)
{
    link->counters.bytes_sent += nbytes;
    while (nbytes) {
        struct tcp_piece *piece = &link->pieces[link->first_piece];
        if (nbytes < piece->nbytes) {
            if (piece->at)
                piece->at += nbytes;
            piece->offset += (uint32_t)nbytes;
            piece->nbytes -= (uint32_t)nbytes;
            return;
        }
        nbytes -= piece->nbytes;
        if (piece->slot >= 0)
            link->out[piece->slot].held--;
        free(piece->owned);
        link->first_piece++;
        link->n_pieces--;
    }
    if (!link->n_pieces)
        link->first_piece = link->arena_used = 0;
}

void link_flush(struct tcp_link *link)
{
    while (link->n_pieces && link->fd >= 0 && !link->broken) {
        struct iovec iov[IOVECS];
        struct msghdr message = {.msg_iov = iov};
        for (uint32_t i = 0; i < link->n_pieces && i < IOVECS; i++) {
            const struct tcp_piece *piece = &link->pieces[link->first_piece + i];
            iov[i].iov_base = (void *)(piece->at ? piece->at : link->arena + piece->offset);
            iov[i].iov_len = piece->nbytes;
            message.msg_iovlen++;
        }
        link->counters.sends++;
        const ssize_t n = sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            sent(link, (size_t)n);
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS)) {
            want_room(link, true);
            return;
        }
        link_fail(link, "sending: %s", strerror(errno));
        return;
    }
    want_room(link, false);
}
