/* A connection: its rings and buffers, and sending. */
#define _GNU_SOURCE
#include "emulator/tcp_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define IOVECS 64
#define PAGE 4096u
#define LIST_ENTRIES (PAGE / 8 - 1) /* the last entry of a list page may point to the next */

struct tcp_conn *tcp_conn_new(struct emu_tcp *tcp, int fd)
{
    struct tcp_conn *conn = calloc(1, sizeof(*conn));
    if (!conn)
        return NULL;
    conn->watch = (struct emu_watch){SOCKET_CONN, tcp->endpoint};
    conn->tcp = tcp;
    conn->fd = fd;
    conn->alignment = 4;
    conn->receiving = -1;
    conn->give_up_at = tcp->patience ? emu_now() + tcp->patience : UINT64_MAX;
    conn->in_capsule = TCP_ADMIN_IN_CAPSULE;
    conn->rx = malloc(TCP_RX_BYTES);
    conn->events = EPOLLIN;
    if (!conn->rx || tcp_conn_rings(conn, 32) || emu_watch_fd(tcp->endpoint->reactor, fd, EPOLLIN, &conn->watch)) {
        conn->fd = -1;
        tcp_conn_free(conn);
        return NULL;
    }
    return conn;
}

void tcp_conn_die(struct tcp_conn *conn)
{
    if (conn->stage == CONN_DEAD)
        return;
    conn->stage = CONN_DEAD;
    emu_unwatch_fd(conn->tcp->endpoint->reactor, conn->fd);
    if (conn->ctrl && conn->qid)
        emu_ctrl_remove_queue(conn->ctrl->ctrl, conn->qid);
    emu_activate(conn->tcp->endpoint);
}

static void free_rings(struct tcp_conn *conn)
{
    if (conn->memory)
        munmap(conn->memory, conn->memory_nbytes);
    free(conn->requests);
    free(conn->free_requests);
    conn->memory = NULL;
    conn->requests = NULL;
    conn->free_requests = NULL;
    if (conn->ctrl)
        emu_ctrl_dma_changed(conn->ctrl->ctrl);
}

void tcp_conn_free(struct tcp_conn *conn)
{
    struct emu_tcp *tcp = conn->tcp;
    for (unsigned i = 0; i < TCP_RECENT; i++)
        if (tcp->recent[i] == conn)
            tcp->recent[i] = NULL;
    if (conn->fd >= 0)
        close(conn->fd);
    if (conn->ctrl) {
        if (conn->ctrl->admin == conn) {
            /* Its rings are being freed, so the controller must not read them again. */
            emu_ctrl_reset(conn->ctrl->ctrl);
            conn->ctrl->admin = NULL;
        }
        conn->ctrl->n_conns--;
    }
    free_rings(conn);
    free(conn->rx);
    free(conn->arena);
    free(conn->output);
    free(conn);
}

/* Allocates rings of that many entries, and a buffer for each command; replaces existing ones,
 * which must be idle. */
int tcp_conn_rings(struct tcp_conn *conn, uint32_t entries)
{
    const struct emu_config *config = emu_ctrl_config(conn->tcp->first);
    const size_t transfer = config->mdts ? (size_t)PAGE << config->mdts : 1u << 20;
    const size_t buffer = transfer > conn->tcp->config.in_capsule ? transfer : conn->tcp->config.in_capsule;
    const size_t pages = (buffer + PAGE - 1) / PAGE;
    const size_t rings = ((size_t)entries * sizeof(struct nvme_sqe) + PAGE - 1) / PAGE * PAGE +
                         ((size_t)entries * sizeof(struct nvme_cqe) + PAGE - 1) / PAGE * PAGE;
    const size_t stride = (pages + (pages + LIST_ENTRIES - 1) / LIST_ENTRIES + 1) * PAGE;
    const size_t nbytes = rings + stride * entries;
    struct tcp_request *requests = calloc(entries, sizeof(*requests));
    uint16_t *free_requests = malloc(entries * sizeof(*free_requests));
    void *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!requests || !free_requests || memory == MAP_FAILED) {
        free(requests);
        free(free_requests);
        if (memory != MAP_FAILED)
            munmap(memory, nbytes);
        return ENOMEM;
    }
    free_rings(conn);
    conn->memory = memory;
    conn->memory_nbytes = nbytes;
    conn->buffer_nbytes = pages * PAGE;
    conn->requests = requests;
    conn->free_requests = free_requests;
    conn->n_requests = conn->size = entries;
    conn->sq = memory;
    conn->cq = (void *)(conn->memory + ((size_t)entries * sizeof(struct nvme_sqe) + PAGE - 1) / PAGE * PAGE);
    for (uint32_t i = 0; i < entries; i++)
        requests[i].buffer = conn->memory + rings + i * stride;
    conn->n_free = 0;
    for (uint32_t i = entries; i-- > 0;)
        free_requests[conn->n_free++] = (uint16_t)i;
    conn->n_executing = 0;
    tcp_conn_restart_rings(conn);
    return 0;
}

/* The controller restarts at the rings' beginning: commands in flight are discarded. */
void tcp_conn_restart_rings(struct tcp_conn *conn)
{
    memset(conn->cq, 0, conn->size * sizeof(*conn->cq));
    conn->sq_tail = conn->cq_head = 0;
    conn->cq_phase = 1;
    conn->rung = false;
    for (uint32_t i = 0; i < conn->n_requests; i++) {
        struct tcp_request *request = &conn->requests[i];
        if (!request->executing)
            continue;
        request->executing = request->used = false;
        conn->free_requests[conn->n_free++] = (uint16_t)i;
    }
    conn->n_executing = 0;
}

/* -- the send queue
 * -------------------------------------------------------------------------- */

static uint8_t *arena_room(struct tcp_conn *conn, uint32_t nbytes)
{
    if (conn->arena_used + nbytes > conn->arena_size) {
        uint32_t size = conn->arena_size ? conn->arena_size : 16384;
        while (size < conn->arena_used + nbytes)
            size *= 2;
        uint8_t *grown = realloc(conn->arena, size);
        if (!grown) {
            tcp_conn_die(conn);
            return NULL;
        }
        conn->arena = grown;
        conn->arena_size = size;
    }
    return conn->arena + conn->arena_used;
}

static bool add_output(struct tcp_conn *conn, struct tcp_output output)
{
    if (conn->first_output + conn->n_output == conn->max_output) {
        if (conn->n_output)
            memmove(conn->output, conn->output + conn->first_output, conn->n_output * sizeof(*conn->output));
        conn->first_output = 0;
        if (conn->n_output == conn->max_output) {
            const uint32_t size = conn->max_output ? 2 * conn->max_output : 64;
            struct tcp_output *grown = realloc(conn->output, size * sizeof(*grown));
            if (!grown) {
                tcp_conn_die(conn);
                return false;
            }
            conn->output = grown;
            conn->max_output = size;
        }
    }
    conn->output[conn->first_output + conn->n_output++] = output;
    return true;
}

static void arena_add(struct tcp_conn *conn, uint32_t nbytes)
{
    struct tcp_output *last = conn->n_output ? &conn->output[conn->first_output + conn->n_output - 1] : NULL;
    if (last && !last->at && last->offset + last->nbytes == conn->arena_used)
        last->nbytes += nbytes;
    else if (!add_output(conn, (struct tcp_output){.offset = conn->arena_used, .nbytes = nbytes, .request = -1}))
        return;
    conn->arena_used += nbytes;
    conn->unsent += nbytes;
}

void tcp_send_raw(struct tcp_conn *conn, const void *data, uint32_t nbytes)
{
    uint8_t *at = arena_room(conn, nbytes);
    if (!at)
        return;
    memcpy(at, data, nbytes);
    arena_add(conn, nbytes);
}

/* A PDU whose header is `hlen` bytes: type and flags are set. Data are a part of that request's
 * buffer. */
static void send_pdu(struct tcp_conn *conn, void *header, uint32_t hlen, int request, const uint8_t *data,
                     uint32_t nbytes)
{
    const uint32_t head = hlen + (conn->header_digest ? TCP_DIGEST : 0);
    const uint32_t begin = nbytes ? tcp_align(head, conn->alignment) : head;
    const uint32_t tail = nbytes && conn->data_digest ? TCP_DIGEST : 0;
    const bool copied = nbytes && nbytes <= TCP_COPY_MAX;
    struct tcp_ch *ch = header;
    uint32_t digest = 0;

    ch->hlen = (uint8_t)hlen;
    ch->pdo = nbytes ? (uint8_t)begin : 0;
    ch->plen = begin + nbytes + tail;
    ch->flags |= (conn->header_digest ? TCP_HDGSTF : 0) | (tail ? TCP_DDGSTF : 0);
    uint8_t *at = arena_room(conn, begin + (copied ? nbytes : 0) + tail);
    if (!at)
        return;
    memcpy(at, header, hlen);
    if (conn->header_digest) {
        digest = ~crc32c(CRC32C_INIT, header, hlen);
        memcpy(at + hlen, &digest, TCP_DIGEST);
    }
    memset(at + head, 0, begin - head);
    if (tail)
        digest = ~crc32c(CRC32C_INIT, data, nbytes);
    if (copied || !nbytes) {
        if (copied)
            memcpy(at + begin, data, nbytes);
        memcpy(at + begin + nbytes, &digest, tail);
        arena_add(conn, begin + nbytes + tail);
        return;
    }
    arena_add(conn, begin);
    if (!add_output(conn, (struct tcp_output){.at = data, .nbytes = nbytes, .request = request}))
        return;
    conn->unsent += nbytes;
    conn->requests[request].held++;
    if (tail)
        tcp_send_raw(conn, &digest, TCP_DIGEST);
}

void tcp_send_r2t(struct tcp_conn *conn, unsigned index)
{
    struct tcp_request *request = &conn->requests[index];
    const uint32_t most = conn->tcp->config.r2t_bytes ? conn->tcp->config.r2t_bytes : UINT32_MAX;
    const uint32_t left = request->nbytes - request->asked;
    struct tcp_data pdu = {
        .ch = {.type = TCP_R2T},
        .cccid = request->sqe.cid,
        .ttag = (uint16_t)index,
        .offset = request->asked,
        .length = left < most ? left : most,
    };
    request->asked += pdu.length;
    send_pdu(conn, &pdu, sizeof(pdu), -1, NULL, 0);
}

void tcp_send_response(struct tcp_conn *conn, const struct nvme_cqe *cqe)
{
    struct tcp_response pdu = {
        .ch = {.type = TCP_RESPONSE},
        .dw0 = cqe->result,
        .dw1 = cqe->dw1,
        .sqhd = cqe->sqhd,
        .cid = cqe->cid,
        .status = (uint16_t)(cqe->status & ~1u),
    };
    send_pdu(conn, &pdu, sizeof(pdu), -1, NULL, 0);
}

void tcp_send_result(struct tcp_conn *conn, unsigned index, const struct nvme_cqe *cqe)
{
    struct tcp_request *request = &conn->requests[index];
    const bool data = request->to_host && request->nbytes && !(cqe->status >> 1);
    const bool silent = data && conn->success && !cqe->result && !cqe->dw1;
    const uint32_t most = conn->tcp->config.c2h_bytes ? conn->tcp->config.c2h_bytes : UINT32_MAX;
    for (uint32_t at = 0; data && at < request->nbytes && conn->stage != CONN_DEAD;) {
        const uint32_t part = request->nbytes - at < most ? request->nbytes - at : most;
        const bool last = at + part == request->nbytes;
        struct tcp_data pdu = {
            .ch = {.type = TCP_C2H_DATA, .flags = (last ? TCP_LAST_PDU : 0) | (last && silent ? TCP_SUCCESS : 0)},
            .cccid = cqe->cid,
            .offset = at,
            .length = part,
        };
        send_pdu(conn, &pdu, sizeof(pdu), (int)index, request->buffer + at, part);
        at += part;
    }
    if (!silent)
        tcp_send_response(conn, cqe);
    tcp_request_done(conn, index);
}

void tcp_refuse(struct tcp_conn *conn, unsigned index, uint16_t status, uint64_t result)
{
    const struct nvme_cqe cqe = {
        .result = (uint32_t)result,
        .dw1 = (uint32_t)(result >> 32),
        .cid = conn->requests[index].sqe.cid,
        .status = (uint16_t)(status << 1),
    };
    tcp_send_response(conn, &cqe);
    tcp_request_done(conn, index);
}

void tcp_request_done(struct tcp_conn *conn, unsigned index)
{
    struct tcp_request *request = &conn->requests[index];
    request->finished = true;
    if (request->held)
        return; /* until its buffer has been sent */
    request->used = false;
    conn->free_requests[conn->n_free++] = (uint16_t)index;
}

unsigned tcp_conn_drain(struct tcp_conn *conn)
{
    unsigned n = 0;
    while (conn->n_executing &&
           (__atomic_load_n(&conn->cq[conn->cq_head].status, __ATOMIC_ACQUIRE) & 1) == conn->cq_phase) {
        struct nvme_cqe cqe = conn->cq[conn->cq_head];
        const unsigned index = cqe.cid;
        cqe.status &= (uint16_t)~1u;
        if (++conn->cq_head == conn->size) {
            conn->cq_head = 0;
            conn->cq_phase ^= 1;
        }
        n++;
        if (index >= conn->n_requests || !conn->requests[index].executing) {
            tcp_send_response(conn, &cqe); /* forged by a fault, or posted twice: it is sent unchanged */
            continue;
        }
        conn->n_executing--;
        conn->requests[index].executing = false;
        cqe.cid = conn->requests[index].sqe.cid;
        if (!(cqe.status >> 1))
            tcp_adorn(conn, &conn->requests[index]);
        tcp_send_result(conn, index, &cqe);
        if (conn->stage == CONN_DEAD)
            return n;
    }
    if (n) {
        emu_ctrl_write(conn->ctrl->ctrl, EMU_DOORBELL_OFFSET + (2u * conn->qid + 1) * 4, 4, conn->cq_head);
        tcp_conn_flush(conn);
        if (conn->stage != CONN_DEAD && conn->rx_begin < conn->rx_end)
            n += tcp_conn_receive(conn); /* commands that had to wait for a free request */
    }
    return n;
}

/* -- the socket
 * ---------------------------------------------------------------------------------- */

void tcp_conn_watch(struct tcp_conn *conn)
{
    const bool read = conn->stage < CONN_ENDING && conn->unsent < TCP_BACKLOG && conn->n_free;
    const uint32_t events = (read ? EPOLLIN : 0) | (conn->n_output ? EPOLLOUT : 0);
    struct epoll_event event = {.events = events, .data.ptr = &conn->watch};
    if (events == conn->events || conn->stage == CONN_DEAD)
        return;
    conn->events = events;
    epoll_ctl(conn->tcp->endpoint->reactor->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event);
}

static void sent(struct tcp_conn *conn, size_t nbytes)
{
    conn->unsent -= nbytes;
    while (nbytes) {
        struct tcp_output *output = &conn->output[conn->first_output];
        if (nbytes < output->nbytes) {
            if (output->at)
                output->at += nbytes;
            output->offset += (uint32_t)nbytes;
            output->nbytes -= (uint32_t)nbytes;
            return;
        }
        nbytes -= output->nbytes;
        const int request = output->request;
        conn->first_output++;
        conn->n_output--;
        if (request >= 0 && !--conn->requests[request].held && conn->requests[request].finished)
            tcp_request_done(conn, (unsigned)request);
    }
    if (!conn->n_output)
        conn->first_output = conn->arena_used = 0;
}

void tcp_conn_flush(struct tcp_conn *conn)
{
    while (conn->n_output && conn->stage != CONN_DEAD) {
        struct iovec iov[IOVECS];
        struct msghdr message = {.msg_iov = iov};
        for (uint32_t i = 0; i < conn->n_output && i < IOVECS; i++) {
            const struct tcp_output *output = &conn->output[conn->first_output + i];
            iov[i] = (struct iovec){(void *)(output->at ? output->at : conn->arena + output->offset), output->nbytes};
            message.msg_iovlen++;
        }
        const ssize_t n = sendmsg(conn->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            sent(conn, (size_t)n);
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == ENOBUFS))
            break;
        tcp_conn_die(conn);
        return;
    }
    if (conn->stage == CONN_ENDING && !conn->n_output)
        tcp_conn_die(conn);
    else
        tcp_conn_watch(conn);
}

void tcp_conn_terminate(struct tcp_conn *conn, enum tcp_fes fes, uint32_t fei, const void *pdu, uint32_t nbytes)
{
    if (conn->stage >= CONN_ENDING)
        return;
    const uint32_t copied =
        nbytes < TCP_TERM_MAX - sizeof(struct tcp_term) ? nbytes : TCP_TERM_MAX - sizeof(struct tcp_term);
    struct tcp_term term = {
        .ch = {.type = TCP_C2H_TERM, .hlen = sizeof(term), .plen = (uint32_t)sizeof(term) + copied},
        .fes = (uint16_t)fes,
        .fei = fei,
    };
    conn->tcp->stats.protocol_errors++;
    tcp_send_raw(conn, &term, sizeof(term));
    tcp_send_raw(conn, pdu, copied);
    if (conn->stage == CONN_DEAD)
        return;
    conn->stage = CONN_ENDING;
    conn->give_up_at = UINT64_MAX;
    tcp_conn_flush(conn);
}
