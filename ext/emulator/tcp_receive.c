/* Receiving: PDUs, their data, and the execution of commands whose data are complete. */
#define _GNU_SOURCE
#include "emulator/tcp_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define PAGE 4096u

/* -- execution
 * ----------------------------------------------------------------------------------- */

/* PRP1 and PRP2 of the request's buffer; the list is after it. The entry after the last page is 0,
 * which is an invalid address. */
static void describe(struct tcp_conn *conn, struct tcp_request *request, struct nvme_sqe *sqe)
{
    const uint64_t at = (uint64_t)(uintptr_t)request->buffer;
    const uint64_t pages = ((uint64_t)request->nbytes + PAGE - 1) / PAGE;
    sqe->prp1 = pages ? at : 0;
    sqe->prp2 = pages == 2 ? at + PAGE : 0;
    if (pages <= 2)
        return;
    uint64_t *list = (uint64_t *)(request->buffer + conn->buffer_nbytes);
    sqe->prp2 = (uint64_t)(uintptr_t)list;
    uint64_t entry = 0;
    for (uint64_t page = 1; page < pages; page++) {
        if (entry % (PAGE / 8) == PAGE / 8 - 1 && page + 1 < pages) {
            list[entry] = (uint64_t)(uintptr_t)&list[entry + 1];
            entry++;
        }
        list[entry++] = at + page * PAGE;
    }
    if (entry % (PAGE / 8))
        list[entry] = 0;
}

static bool to_controller_only(uint8_t opcode)
{
    return (opcode & 3) == 1;
}

void tcp_execute(struct tcp_conn *conn, unsigned index)
{
    struct tcp_request *request = &conn->requests[index];
    struct nvme_sqe sqe = request->sqe;
    conn->tcp->stats.commands++;
    if (request->wrong_digest) {
        tcp_refuse(conn, index, SC_TRANSPORT, 0);
        return;
    }
    if (sqe.opcode == FABRICS) {
        tcp_fabrics(conn, index);
        return;
    }
    if (conn->stage != CONN_LIVE || !emu_ctrl_running(conn->ctrl->ctrl)) {
        tcp_refuse(conn, index, SC_COMMAND_SEQUENCE, 0); /* before Connect, or before CC.EN */
        return;
    }
    if (conn->ctrl->discovery && tcp_discovery(conn, index))
        return;
    if (!conn->qid) {
        switch (sqe.opcode) {
        case ADMIN_DELETE_SQ: /* they carry addresses, and are for memory-based transports only */
        case ADMIN_CREATE_SQ:
        case ADMIN_DELETE_CQ:
        case ADMIN_CREATE_CQ:
        case ADMIN_DBBUF:
            tcp_refuse(conn, index, SC_INVALID_OPCODE, 0);
            return;
        }
    }
    const uint64_t needed = emu_ctrl_transfer(conn->ctrl->ctrl, conn->qid, &sqe);
    if (needed && needed != request->nbytes) {
        tcp_refuse(conn, index, SC_SGL_LENGTH, 0);
        return;
    }
    sqe.flags &= 0x3f;
    sqe.cid = (uint16_t)index;
    sqe.mptr = 0;
    describe(conn, request, &sqe);
    conn->sq[conn->sq_tail] = sqe;
    if (++conn->sq_tail == conn->size)
        conn->sq_tail = 0;
    request->executing = true;
    conn->n_executing++;
    conn->rung = true;
}

/* -- PDUs
 * ---------------------------------------------------------------------------------------- */

static bool on_icreq(struct tcp_conn *conn, const uint8_t *at)
{
    struct tcp_ic request, response = {.ch = {.type = TCP_ICRESP, .hlen = 128, .plen = 128}};
    const struct emu_tcp_config *config = &conn->tcp->config;
    memcpy(&request, at, sizeof(request));
    if (conn->stage != CONN_NEW) {
        tcp_conn_terminate(conn, TCP_FES_SEQUENCE, 0, at, sizeof(request));
        return false;
    }
    if (request.pfv != 0) {
        tcp_conn_terminate(conn, TCP_FES_PARAMETER, 8, at, sizeof(request));
        return false;
    }
    if (request.pda > 31) {
        tcp_conn_terminate(conn, TCP_FES_HEADER_FIELD, 10, at, sizeof(request));
        return false;
    }
    response.pda = config->cpda;
    response.dgst = (config->no_header_digest ? 0 : request.dgst & TCP_HDGST_ENABLE) |
                    (config->no_data_digest ? 0 : request.dgst & TCP_DDGST_ENABLE);
    response.limit = config->max_h2c;
    tcp_send_raw(conn, &response, sizeof(response));
    conn->alignment = (request.pda + 1u) * 4;
    conn->header_digest = response.dgst & TCP_HDGST_ENABLE;
    conn->data_digest = response.dgst & TCP_DDGST_ENABLE;
    conn->stage = CONN_READY;
    return true;
}

static void want(struct tcp_conn *conn, unsigned request, uint32_t padding, uint32_t nbytes, uint32_t offset,
                 bool command)
{
    conn->receiving = (int)request;
    conn->left = padding;
    conn->wants = padding ? WANT_PADDING : WANT_DATA;
    conn->at = offset;
    conn->crc = CRC32C_INIT;
    conn->digest_follows = conn->data_digest;
    conn->command_follows = command;
    conn->requests[request].received += nbytes;
    if (!padding)
        conn->left = nbytes;
}

/* 0: handled. A FES otherwise, with *fei. */
static unsigned on_command(struct tcp_conn *conn, const struct tcp_ch *ch, const uint8_t *at, uint32_t head,
                           uint32_t *data, uint32_t *fei)
{
    struct tcp_sgl sgl;
    if (conn->stage < CONN_READY)
        return TCP_FES_SEQUENCE;
    const unsigned index = conn->free_requests[--conn->n_free];
    struct tcp_request *request = &conn->requests[index];
    *request = (struct tcp_request){.buffer = request->buffer, .used = true};
    memcpy(&request->sqe, at + sizeof(*ch), sizeof(request->sqe));
    memcpy(&sgl, at + sizeof(*ch) + TCP_SQE_SGL, sizeof(sgl));
    const uint32_t tail = ch->pdo && conn->data_digest ? TCP_DIGEST : 0;
    const bool has_data = ch->plen > head;
    *data = 0;
    if (has_data) {
        if (ch->pdo < head || ch->plen < ch->pdo + tail) {
            *fei = 3;
            return TCP_FES_HEADER_FIELD;
        }
        *data = ch->plen - ch->pdo - tail;
        if (*data > conn->in_capsule)
            return TCP_FES_LIMIT;
        if (!tail != !(ch->flags & TCP_DDGSTF))
            return TCP_FES_HEADER_FIELD;
    }
    const uint8_t opcode = request->sqe.opcode == FABRICS ? (uint8_t)request->sqe.nsid : request->sqe.opcode;
    request->to_host = (opcode & 3) == 2;
    const bool sends = to_controller_only(opcode);
    uint16_t status = 0;
    if ((request->sqe.flags & 0xc0) != TCP_PSDT_SGL)
        status = SC_INVALID_FIELD;
    else if (sgl.type == TCP_SGL_IN_CAPSULE)
        status = !sends || sgl.length != *data ? SC_SGL_LENGTH : sgl.address ? SC_SGL_OFFSET : 0;
    else if (sgl.type == TCP_SGL_TRANSPORT || (!sgl.type && !sgl.length))
        status = *data ? SC_SGL_LENGTH : 0;
    else
        status = SC_SGL_TYPE;
    if (!status && (sends || request->to_host) && sgl.length > conn->buffer_nbytes)
        status = SC_INVALID_FIELD; /* beyond MDTS */
    if (status) {
        /* Data that arrived with it are dropped. */
        request->to_host = false;
        request->nbytes = 0;
        tcp_refuse(conn, index, status, 0);
        conn->receiving = -1;
        if (has_data) {
            conn->wants = WANT_PADDING;
            conn->left = ch->plen - head;
        }
        return 0;
    }
    request->nbytes = sends || request->to_host ? sgl.length : 0;
    if (*data) {
        want(conn, index, ch->pdo - head, *data, 0, true);
        return 0;
    }
    if (sends && request->nbytes) {
        request->by_r2t = true;
        tcp_send_r2t(conn, index);
        return 0;
    }
    tcp_execute(conn, index);
    return 0;
}

static unsigned on_data(struct tcp_conn *conn, const struct tcp_ch *ch, const uint8_t *at, uint32_t head,
                        uint32_t *data, uint32_t *fei)
{
    struct tcp_data pdu;
    memcpy(&pdu, at, sizeof(pdu));
    const uint32_t tail = conn->data_digest ? TCP_DIGEST : 0;
    if (pdu.ttag >= conn->n_requests || !conn->requests[pdu.ttag].used || !conn->requests[pdu.ttag].by_r2t) {
        *fei = 10;
        return TCP_FES_HEADER_FIELD;
    }
    struct tcp_request *request = &conn->requests[pdu.ttag];
    if (request->sqe.cid != pdu.cccid) {
        *fei = 8;
        return TCP_FES_HEADER_FIELD;
    }
    if (ch->pdo < head || ch->plen != ch->pdo + pdu.length + tail || !tail != !(ch->flags & TCP_DDGSTF)) {
        *fei = 3;
        return TCP_FES_HEADER_FIELD;
    }
    if (pdu.length > conn->tcp->config.max_h2c)
        return TCP_FES_LIMIT;
    if (!pdu.length || pdu.offset != request->received || pdu.length > request->asked - pdu.offset)
        return TCP_FES_OUT_OF_RANGE;
    *data = pdu.length;
    want(conn, pdu.ttag, ch->pdo - head, pdu.length, pdu.offset, false);
    return 0;
}

static uint32_t header_length(uint8_t type)
{
    switch (type) {
    case TCP_ICREQ:
        return 128;
    case TCP_COMMAND:
        return 72;
    case TCP_H2C_DATA:
    case TCP_H2C_TERM:
        return 24;
    default:
        return 0;
    }
}

/* True: continue with the next. */
static bool take_header(struct tcp_conn *conn)
{
    const uint8_t *at = conn->rx + conn->rx_begin;
    const uint32_t available = conn->rx_end - conn->rx_begin;
    struct tcp_ch ch;
    uint32_t data = 0, fei = 0;
    if (available < sizeof(ch))
        return false;
    memcpy(&ch, at, sizeof(ch));
    const uint32_t hlen = header_length(ch.type);
    const bool plain = ch.type == TCP_ICREQ || ch.type == TCP_H2C_TERM;
    const uint32_t digest = !plain && conn->header_digest ? TCP_DIGEST : 0;
    const uint32_t head = hlen + digest;
    if (!hlen || ch.hlen != hlen || ch.plen < head || (!plain && !(ch.flags & TCP_HDGSTF) != !digest)) {
        tcp_conn_terminate(conn, TCP_FES_HEADER_FIELD,
                           !hlen             ? 0
                           : ch.hlen != hlen ? 2
                           : ch.plen < head  ? 4
                                             : 1,
                           at, sizeof(ch));
        return false;
    }
    if (ch.type != TCP_ICREQ && conn->stage < CONN_READY) {
        tcp_conn_terminate(conn, TCP_FES_SEQUENCE, 0, at, sizeof(ch));
        return false;
    }
    if (available < head)
        return false;
    if (ch.type == TCP_COMMAND && !conn->n_free)
        return false; /* when one is free again */
    if (digest) {
        uint32_t got;
        memcpy(&got, at + hlen, TCP_DIGEST);
        if (got != ~crc32c(CRC32C_INIT, at, hlen)) {
            conn->tcp->stats.header_digest_errors++;
            tcp_conn_terminate(conn, TCP_FES_HEADER_DIGEST, got, at, hlen);
            return false;
        }
    }
    unsigned fes = 0;
    switch (ch.type) {
    case TCP_ICREQ:
        if (ch.plen != head) {
            fes = TCP_FES_HEADER_FIELD;
            fei = 4;
        } else if (!on_icreq(conn, at)) {
            return false;
        }
        break;
    case TCP_COMMAND:
        fes = on_command(conn, &ch, at, head, &data, &fei);
        break;
    case TCP_H2C_DATA:
        fes = on_data(conn, &ch, at, head, &data, &fei);
        break;
    default: /* the host ends it */
        tcp_conn_die(conn);
        return false;
    }
    if (fes) {
        tcp_conn_terminate(conn, (enum tcp_fes)fes, fei, at, hlen);
        return false;
    }
    conn->rx_begin += head;
    return conn->stage < CONN_ENDING;
}

/* -- data
 * ---------------------------------------------------------------------------------------- */

static void end_of_data(struct tcp_conn *conn)
{
    const unsigned index = (unsigned)conn->receiving;
    struct tcp_request *request = &conn->requests[index];
    conn->wants = WANT_HEADER;
    conn->receiving = -1;
    if (!conn->command_follows && request->received < request->nbytes) {
        if (request->received == request->asked)
            tcp_send_r2t(conn, index);
        return;
    }
    request->by_r2t = false;
    tcp_execute(conn, index);
}

static void data_came(struct tcp_conn *conn, const uint8_t *from, uint32_t n)
{
    if (conn->digest_follows)
        conn->crc = crc32c(conn->crc, from, n);
    conn->at += n;
    conn->left -= n;
    if (conn->left)
        return;
    if (!conn->digest_follows) {
        end_of_data(conn);
        return;
    }
    conn->wants = WANT_DIGEST;
    conn->left = TCP_DIGEST;
}

static void end_of_padding(struct tcp_conn *conn)
{
    if (conn->receiving < 0) { /* data of a command that was refused */
        conn->wants = WANT_HEADER;
        return;
    }
    struct tcp_request *request = &conn->requests[conn->receiving];
    conn->wants = WANT_DATA;
    conn->left = request->received - conn->at;
}

static void parse(struct tcp_conn *conn)
{
    while (conn->rx_begin < conn->rx_end && conn->stage < CONN_ENDING) {
        const uint32_t available = conn->rx_end - conn->rx_begin;
        const uint32_t part = available < conn->left ? available : conn->left;
        const uint8_t *at = conn->rx + conn->rx_begin;
        switch (conn->wants) {
        case WANT_HEADER:
            if (!take_header(conn))
                goto out;
            continue;
        case WANT_PADDING:
            conn->rx_begin += part;
            conn->left -= part;
            if (!conn->left)
                end_of_padding(conn);
            continue;
        case WANT_DATA:
            memcpy(conn->requests[conn->receiving].buffer + conn->at, at, part);
            conn->rx_begin += part;
            data_came(conn, at, part);
            continue;
        default:
            memcpy(conn->digest + (TCP_DIGEST - conn->left), at, part);
            conn->rx_begin += part;
            conn->left -= part;
            if (!conn->left) {
                uint32_t got;
                memcpy(&got, conn->digest, TCP_DIGEST);
                if (got != ~conn->crc) {
                    conn->tcp->stats.data_digest_errors++;
                    conn->requests[conn->receiving].wrong_digest = true;
                }
                end_of_data(conn);
            }
        }
    }
out:
    if (conn->rx_begin == conn->rx_end) {
        conn->rx_begin = conn->rx_end = 0;
    } else if (conn->rx_begin > TCP_RX_BYTES / 2) {
        memmove(conn->rx, conn->rx + conn->rx_begin, conn->rx_end - conn->rx_begin);
        conn->rx_end -= conn->rx_begin;
        conn->rx_begin = 0;
    }
}

unsigned tcp_conn_receive(struct tcp_conn *conn)
{
    unsigned work = 0;
    if (conn->stage >= CONN_ENDING)
        return 0;
    parse(conn); /* commands that had to wait */
    for (unsigned i = 0; i < 8 && conn->stage < CONN_ENDING && conn->n_free && conn->unsent < TCP_BACKLOG; i++) {
        struct iovec iov[2];
        unsigned n_iov = 0;
        uint32_t direct = 0;
        uint8_t *to = NULL;
        if (conn->wants == WANT_DATA && conn->rx_begin == conn->rx_end) {
            to = conn->requests[conn->receiving].buffer + conn->at;
            direct = conn->left;
            iov[n_iov++] = (struct iovec){to, direct};
        }
        const uint32_t room = TCP_RX_BYTES - conn->rx_end;
        if (!room && !direct)
            break;
        iov[n_iov++] = (struct iovec){conn->rx + conn->rx_end, room};
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = n_iov};
        const ssize_t n = recvmsg(conn->fd, &message, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (n <= 0) {
            tcp_conn_die(conn);
            return work + 1;
        }
        work++;
        const uint32_t part = (size_t)n < direct ? (uint32_t)n : direct;
        conn->rx_end += (uint32_t)n - part;
        if (direct)
            data_came(conn, to, part);
        parse(conn);
        if ((size_t)n < (size_t)direct + room)
            break;
    }
    if (conn->rung && conn->stage < CONN_ENDING) {
        conn->rung = false;
        emu_ctrl_write(conn->ctrl->ctrl, EMU_DOORBELL_OFFSET + 2u * conn->qid * 4, 4, conn->sq_tail);
    }
    if (conn->stage != CONN_DEAD && conn->n_output)
        tcp_conn_flush(conn);
    if (conn->stage != CONN_DEAD)
        tcp_conn_watch(conn);
    return work;
}
