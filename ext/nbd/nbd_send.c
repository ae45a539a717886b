/* From completed commands to replies. See nbd.h. */
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "nbd.h"

enum { /* chunks of a structured reply */
       CHUNK_DONE = 1,
       CHUNK_NONE = 0,
       CHUNK_OFFSET_DATA = 1,
       CHUNK_ERROR = 0x8001,
};

/* As Linux's nvme driver maps them to block layer errors (drivers/nvme/host/core.c,
 * nvme_error_status), and those to errno. */
static uint32_t error_of(uint16_t status)
{
    switch (status & 0x7ff) { /* type and code; Base 2.0, 3.3.3.2.1 */
    case 0x000:
        return 0;
    case 0x001: /* Invalid Command Opcode */
        return NBD_ENOTSUP;
    case 0x002: /* Invalid Field in Command */
    case 0x10a: /* Invalid Format */
        return NBD_EINVAL;
    case 0x080: /* LBA Out of Range */
    case 0x081: /* Capacity Exceeded */
        return NBD_ENOSPC;
    case 0x020: /* Namespace is Write Protected */
    case 0x182: /* Attempted Write to Read Only Range */
        return NBD_EPERM;
    default:
        return NBD_EIO;
    }
}

static void chunk(uint8_t *at, uint16_t flags, uint16_t type, uint64_t cookie, uint32_t nbytes)
{
    nbd_put(at, NBD_CHUNK_MAGIC, 4);
    nbd_put(at + 4, flags, 2);
    nbd_put(at + 6, type, 2);
    nbd_put(at + 8, cookie, 8);
    nbd_put(at + 16, nbytes, 4);
}

static bool sends_data(const struct nbd_request *r)
{
    return r->type == NBD_READ && !r->error;
}

/* All cells have completed: the request's reply joins the queue. */
void nbd_answer(struct nbd *n, struct nbd_request *r)
{
    if (!r->error)
        r->error = error_of(r->status);
    n->counters.errors += r->error != 0;
    if (!n->g.structured) {
        nbd_put(r->header, NBD_SIMPLE_MAGIC, 4);
        nbd_put(r->header + 4, r->error, 4);
        nbd_put(r->header + 8, r->cookie, 8);
        r->header_nbytes = 16;
    } else if (r->error) {
        chunk(r->header, CHUNK_DONE, CHUNK_ERROR, r->cookie, 6);
        nbd_put(r->header + 20, r->error, 4);
        nbd_put(r->header + 24, 0, 2); /* no message */
        r->header_nbytes = 26;
    } else if (r->type != NBD_READ) {
        chunk(r->header, CHUNK_DONE, CHUNK_NONE, r->cookie, 0);
        r->header_nbytes = 20;
    } else {
        r->header_nbytes = 0;
        for (struct nbd_cell *cell = r->first; cell; cell = cell->next) {
            chunk(cell->header, cell->next ? 0 : CHUNK_DONE, CHUNK_OFFSET_DATA, r->cookie, 8 + cell->nbytes);
            nbd_put(cell->header + 20, cell->offset, 8);
        }
    }
    r->next = NULL;
    if (n->answers)
        n->answers_last->next = r;
    else
        n->answers = r;
    n->answers_last = r;
}

/* No cell of the request is in flight, and it gets no more. */
void nbd_finish(struct nbd *n, struct nbd_request *r)
{
    if (r->flush_due && !r->status && !r->error) {
        r->flush_due = false;
        nbd_flush_after(n, r);
        return;
    }
    nbd_answer(n, r);
}

static void give_cell(struct nbd *n, struct nbd_cell *cell)
{
    cell->next = n->free_cells;
    n->free_cells = cell;
}

void nbd_complete(void *self, struct nvq_cell *c)
{
    struct nbd *n = self;
    struct nbd_cell *cell = (struct nbd_cell *)c;
    struct nbd_request *r = cell->request;
    uint16_t status = c->status;
    c->busy = false;
    if (r->type == NBD_READ) {
        if (!status)
            status = nbd_check(cell);
        n->counters.reads++;
        n->counters.bytes_read += cell->nbytes;
    } else {
        n->counters.writes += r->type == NBD_WRITE;
        n->counters.bytes_written += r->type == NBD_WRITE ? cell->nbytes : 0;
        n->counters.flushes += c->batch.command.opcode == 0;
        n->counters.trims += r->type == NBD_TRIM && c->batch.data;
        n->counters.zeroes += r->type == NBD_WRITE_ZEROES;
        give_cell(n, cell);
    }
    if (status && !r->status)
        r->status = status;
    if (!--r->out && r->issued)
        nbd_finish(n, r);
}

/* The parts of a reply from byte `skip` on, as far as iov has room. Returns how many entries of iov
 * are used. */
static int parts(const struct nbd *n, struct nbd_request *r, uint64_t skip, struct iovec *iov, int room)
{
    int used = 0;
    struct nbd_cell *cell = NULL;
    const uint8_t *at = r->header;
    size_t nbytes = r->header_nbytes;
    bool data = true; /* the next byte, of `cell` or of the header */
    for (;;) {
        if (skip >= nbytes) {
            skip -= nbytes;
        } else if (used == room) {
            return used;
        } else {
            iov[used++] = (struct iovec){(void *)(at + skip), nbytes - skip};
            skip = 0;
        }
        if (data) {
            cell = cell ? cell->next : sends_data(r) ? r->first : NULL;
            if (!cell)
                return used;
            data = !n->g.structured;
        } else {
            data = true;
        }
        at = data ? cell->memory : cell->header;
        nbytes = data ? cell->nbytes : 28;
    }
}

static uint64_t size_of(const struct nbd *n, const struct nbd_request *r)
{
    uint64_t nbytes = r->header_nbytes;
    if (sends_data(r))
        for (const struct nbd_cell *cell = r->first; cell; cell = cell->next)
            nbytes += cell->nbytes + (n->g.structured ? 28 : 0);
    return nbytes;
}

static void forget(struct nbd *n)
{
    struct nbd_request *r = n->answers;
    n->answers = r->next;
    while (r->first) {
        struct nbd_cell *cell = r->first;
        r->first = cell->next;
        give_cell(n, cell);
    }
    r->next = n->free_requests;
    n->free_requests = r;
    n->n_busy--;
}

bool nbd_send(struct nbd *n)
{
    bool moved = false;
    if (n->state == NBD_ENDED && n->why) {
        for (; n->answers; moved = true)
            forget(n);
        return moved;
    }
    while (n->answers) {
        struct iovec iov[NBD_MAX_IOV];
        int used = 0;
        uint64_t skip = n->sent;
        for (struct nbd_request *r = n->answers; r && used < NBD_MAX_IOV; r = r->next) {
            used += parts(n, r, skip, iov + used, NBD_MAX_IOV - used);
            skip = 0;
        }
        const struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)used};
        n->counters.sends++;
        const ssize_t sent = sendmsg(n->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN) {
            n->counters.blocked++;
            n->send_blocked = true;
            return moved;
        }
        if (sent < 0) {
            n->state = NBD_ENDED;
            n->why = "the client is gone";
            nbd_drop_partial(n);
            return true;
        }
        n->send_blocked = false;
        moved = true;
        n->sent += (uint64_t)sent;
        while (n->answers && n->sent >= size_of(n, n->answers)) {
            n->sent -= size_of(n, n->answers);
            forget(n);
        }
    }
    return moved;
}
