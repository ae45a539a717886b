/* From the socket into buffers and the completion ring. */
#define _GNU_SOURCE
#include "link.h"

#include <sys/socket.h>
#include <sys/uio.h>

static const char *fes_name(unsigned fes)
{
    static const char *const names[] = {"",
                                        "invalid PDU header field",
                                        "PDU sequence error",
                                        "header digest error",
                                        "data transfer out of range",
                                        "data transfer limit exceeded",
                                        "unsupported parameter"};
    return fes >= 1 && fes <= 6 ? names[fes] : "unknown reason";
}

static void post(struct tcp_link *link, uint16_t cid, uint32_t dw0, uint32_t dw1, uint16_t sqhd, uint16_t status)
{
    struct nvq *q = link->q;
    volatile struct nvq_cqe *cqe = &q->cq[link->cq_tail];
    cqe->dw0 = dw0;
    cqe->dw1 = dw1;
    cqe->sqhd = sqhd;
    cqe->sqid = q->qid;
    cqe->cid = cid;
    cqe->status = (uint16_t)(status << 1 | link->cq_phase);
    if (++link->cq_tail == q->entries) {
        link->cq_tail = 0;
        link->cq_phase ^= 1;
    }
}

/* The slot of the command with that id, if it is in flight; else -1, and the connection has
 * failed. */
static int find(struct tcp_link *link, uint16_t cid, const char *what)
{
    const unsigned slot = cid & ((1u << link->q->slot_bits) - 1);
    if (slot < link->n_slots && link->out[slot].out && link->out[slot].cid == cid)
        return (int)slot;
    link_fail(link, "%s for command id %#06x, which is not in flight", what, cid);
    return -1;
}

static void complete(struct tcp_link *link, unsigned slot, uint32_t dw0, uint32_t dw1, uint16_t sqhd, uint16_t status)
{
    struct tcp_out *out = &link->out[slot];
    if (!status && out->wrong_digest)
        status = LINK_DIGEST_ERROR;
    else if (!status && out->to_host && out->moved < out->nbytes)
        status = LINK_SHORT_DATA;
    const uint16_t cid = out->cid;
    link_end_command(link, slot);
    post(link, cid, dw0, dw1, sqhd, status);
}

/* -- PDUs
 * ---------------------------------------------------------------------------------------- */

static void on_response(struct tcp_link *link, const struct tcp_response *pdu)
{
    const int slot = find(link, pdu->cid, "CapsuleResp");
    if (slot >= 0)
        complete(link, (unsigned)slot, pdu->dw0, pdu->dw1, pdu->sqhd, pdu->status >> 1);
}

static void on_r2t(struct tcp_link *link, const struct tcp_data *pdu)
{
    const int slot = find(link, pdu->cccid, "R2T");
    if (slot < 0)
        return;
    const struct tcp_out *out = &link->out[slot];
    if (out->to_host || !out->data || !pdu->length || pdu->length > out->nbytes ||
        pdu->offset > out->nbytes - pdu->length) {
        link_fail(link, "R2T for %u bytes from %u of a command with %u bytes to send", pdu->length, pdu->offset,
                  out->to_host || !out->data ? 0 : out->nbytes);
        return;
    }
    link->counters.r2ts++;
    link_send_data(link, (unsigned)slot, pdu->ttag, pdu->offset, pdu->length);
}

/* All data of a C2HData have arrived. */
static void end_of_data(struct tcp_link *link)
{
    const struct tcp_data *pdu = &link->pdu;
    const unsigned slot = pdu->cccid & ((1u << link->q->slot_bits) - 1);
    link->receiving = RX_HEADER;
    if (pdu->ch.flags & TCP_SUCCESS)
        complete(link, slot, 0, 0, 0, 0);
}

static void begin_data(struct tcp_link *link)
{
    const struct tcp_data *pdu = &link->pdu;
    link->receiving = RX_DATA;
    link->left = pdu->length;
    link->at = pdu->offset;
    link->crc = CRC32C_INIT;
}

static void on_data(struct tcp_link *link, const struct tcp_data *pdu, uint32_t head)
{
    const int slot = find(link, pdu->cccid, "C2HData");
    if (slot < 0)
        return;
    struct tcp_out *out = &link->out[slot];
    const uint32_t tail = pdu->ch.flags & TCP_DDGSTF ? TCP_DIGEST : 0;
    if (!out->to_host || !pdu->length || pdu->length > out->nbytes || pdu->offset > out->nbytes - pdu->length) {
        link_fail(link, "C2HData with %u bytes at %u for a command that takes %u", pdu->length, pdu->offset,
                  out->to_host ? out->nbytes : 0);
        return;
    }
    if (pdu->offset != out->moved) {
        link_fail(link, "C2HData at offset %u, expected %u", pdu->offset, out->moved);
        return;
    }
    if (pdu->ch.pdo < head || pdu->ch.plen != pdu->ch.pdo + pdu->length + tail || !tail != !link->limits.data_digest) {
        link_fail(link, "C2HData with PDO %u, PLEN %u, flags %#x and %u bytes of data", pdu->ch.pdo, pdu->ch.plen,
                  pdu->ch.flags, pdu->length);
        return;
    }
    if (pdu->ch.flags & TCP_SUCCESS && !(pdu->ch.flags & TCP_LAST_PDU)) {
        link_fail(link, "C2HData with SUCCESS and without LAST_PDU");
        return;
    }
    out->moved += pdu->length;
    link->pdu = *pdu;
    link->left = pdu->ch.pdo - head;
    link->receiving = RX_PADDING;
    if (!link->left)
        begin_data(link);
}

static void on_term(struct tcp_link *link, const struct tcp_term *pdu)
{
    link_fail(link, "the controller ended the connection: %s (FES %#x, FEI %#x)", fes_name(pdu->fes), pdu->fes,
              pdu->fei);
}

/* The header length of a PDU type; 0 if a host may not receive this type. */
static uint32_t header_length(uint8_t type)
{
    switch (type) {
    case TCP_RESPONSE:
    case TCP_C2H_DATA:
    case TCP_R2T:
    case TCP_C2H_TERM:
        return 24;
    default:
        return 0;
    }
}

/* Handles the header at rx_begin. False: it is incomplete, or the connection has failed. */
static bool take_header(struct tcp_link *link)
{
    const uint8_t *at = link->rx + link->rx_begin;
    const uint32_t available = link->rx_end - link->rx_begin;
    struct tcp_ch ch;
    if (available < sizeof(ch))
        return false;
    memcpy(&ch, at, sizeof(ch));
    const uint32_t hlen = header_length(ch.type);
    const bool term = ch.type == TCP_C2H_TERM;
    const uint32_t digest = term ? 0 : link_header_digest(link);
    if (!hlen || ch.hlen != hlen || (!term && !(ch.flags & TCP_HDGSTF) != !digest)) {
        link_fail(link, "a PDU of type %#x with HLEN %u, PLEN %u, flags %#x", ch.type, ch.hlen, ch.plen, ch.flags);
        return false;
    }
    if (available < hlen + digest)
        return false;
    if (digest) {
        uint32_t got;
        memcpy(&got, at + hlen, TCP_DIGEST);
        if (got != ~crc32c(CRC32C_INIT, at, hlen)) {
            link->counters.header_digest_errors++;
            link_fail(link, "header digest error in a PDU of type %#x", ch.type);
            return false;
        }
    }
    if (ch.type != TCP_C2H_DATA && !term && ch.plen != hlen + digest) {
        link_fail(link, "a PDU of type %#x with PLEN %u", ch.type, ch.plen);
        return false;
    }
    link->rx_begin += hlen + digest;
    link->counters.pdus_received++;
    struct tcp_data data;
    struct tcp_response response;
    struct tcp_term terminate;
    switch (ch.type) {
    case TCP_RESPONSE:
        memcpy(&response, at, sizeof(response));
        on_response(link, &response);
        break;
    case TCP_R2T:
        memcpy(&data, at, sizeof(data));
        on_r2t(link, &data);
        break;
    case TCP_C2H_DATA:
        memcpy(&data, at, sizeof(data));
        on_data(link, &data, hlen + digest);
        break;
    default:
        memcpy(&terminate, at, sizeof(terminate));
        on_term(link, &terminate);
    }
    return !link->broken;
}

/* -- bytes
 * --------------------------------------------------------------------------------------- */

/* The place of the data being received, or NULL if they are discarded. */
static uint8_t *target(struct tcp_link *link)
{
    struct tcp_out *out = &link->out[link->pdu.cccid & ((1u << link->q->slot_bits) - 1)];
    return out->data ? out->data + link->at : NULL;
}

/* n bytes of data have arrived at `from`. */
static void data_came(struct tcp_link *link, const uint8_t *from, uint32_t n)
{
    if (link->limits.data_digest)
        link->crc = crc32c(link->crc, from, n);
    link->at += n;
    link->left -= n;
    if (link->left)
        return;
    if (!link->limits.data_digest) {
        end_of_data(link);
        return;
    }
    link->receiving = RX_DIGEST;
    link->left = TCP_DIGEST;
}

static void check_digest(struct tcp_link *link)
{
    uint32_t got;
    memcpy(&got, link->digest, TCP_DIGEST);
    if (got != ~link->crc) {
        link->counters.data_digest_errors++;
        link->out[link->pdu.cccid & ((1u << link->q->slot_bits) - 1)].wrong_digest = true;
    }
    end_of_data(link);
}

/* Parses the buffer. */
static void parse(struct tcp_link *link)
{
    while (link->rx_begin < link->rx_end && !link->broken) {
        const uint32_t available = link->rx_end - link->rx_begin;
        const uint32_t part = available < link->left ? available : link->left;
        const uint8_t *at = link->rx + link->rx_begin;
        uint8_t *to;
        switch (link->receiving) {
        case RX_HEADER:
            if (!take_header(link))
                goto out;
            continue;
        case RX_PADDING:
            link->rx_begin += part;
            link->left -= part;
            if (!link->left)
                begin_data(link);
            continue;
        case RX_DATA:
            to = target(link);
            if (to)
                memcpy(to, at, part);
            link->rx_begin += part;
            data_came(link, at, part);
            continue;
        case RX_DIGEST:
            memcpy(link->digest + (TCP_DIGEST - link->left), at, part);
            link->rx_begin += part;
            link->left -= part;
            if (!link->left)
                check_digest(link);
            continue;
        }
    }
out:
    if (link->rx_begin == link->rx_end)
        link->rx_begin = link->rx_end = 0;
}

/* Receives `direct` bytes at `to`, then up to `room` bytes into the buffer. As recv(). */
static ssize_t receive(struct tcp_link *link, uint8_t *to, uint32_t direct, uint32_t room)
{
    uint8_t *const buffer = link->rx + link->rx_end;
    struct iovec iov[] = {{to, direct}, {buffer, room}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
    ssize_t n;
    link->counters.receives++;
    do
        n = direct ? recvmsg(link->fd, &message, MSG_DONTWAIT) : recv(link->fd, buffer, room, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    link->counters.empty += n < 0;
    return n;
}

/* Receives once. False: there is no more data, or the connection has ended. */
static bool receive_once(struct tcp_link *link)
{
    uint32_t direct = 0;
    uint8_t *to = link->receiving == RX_DATA && link->rx_begin == link->rx_end ? target(link) : NULL;

    if (link->rx_begin && link->rx_end > LINK_RX_BYTES / 2) {
        memmove(link->rx, link->rx + link->rx_begin, link->rx_end - link->rx_begin);
        link->rx_end -= link->rx_begin;
        link->rx_begin = 0;
    }
    if (to)
        direct = link->left;
    uint32_t room = LINK_RX_BYTES - link->rx_end;
    if (link->n_long && room > LINK_RX_SHORT)
        room = LINK_RX_SHORT;
    const size_t wanted = (size_t)direct + room;
    const ssize_t n = receive(link, to, direct, room);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return false;
    if (n <= 0) {
        link_fail(link, n ? "receiving: %s" : "the controller closed the connection", strerror(errno));
        return false;
    }
    link->counters.bytes_received += (uint64_t)n;
    if (direct) {
        const uint32_t part = (size_t)n < direct ? (uint32_t)n : direct;
        link->rx_end += (uint32_t)n - part;
        data_came(link, to, part);
    } else {
        link->rx_end += (uint32_t)n;
    }
    parse(link);
    return (size_t)n == wanted && !link->broken;
}

void link_receive(struct tcp_link *link)
{
    const uint32_t before = link->cq_tail;
    for (unsigned i = 0; i < LINK_ROUNDS; i++)
        if (!receive_once(link) || (link->cq_tail != before && !link->n_long))
            break;
    if (link->n_pieces && !link->blocked)
        link_flush(link); /* data requested by R2Ts */
}
