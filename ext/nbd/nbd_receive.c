/* From the socket to NVMe commands. See nbd.h. */
#include <errno.h>
#include <sys/socket.h>

#include "nbd.h"

#include "hotpath/nvm_commands.h"

/* Receives up to `n` bytes. 0: there are no data, or the connection has ended. */
static size_t pull(struct nbd *n, uint8_t *to, size_t nbytes)
{
    n->counters.receives++;
    const ssize_t got = recv(n->fd, to, nbytes, MSG_DONTWAIT);
    if (got > 0)
        return (size_t)got;
    if (got == 0)
        nbd_stop(n, "the client closed its socket without a disconnect request");
    else if (errno != EAGAIN && errno != EINTR)
        nbd_stop(n, "the socket failed");
    return 0;
}

static uint32_t staged(const struct nbd *n)
{
    return n->stage_end - n->stage_begin;
}

/* Bytes of data, first those that came with a header. */
static size_t pull_data(struct nbd *n, uint8_t *to, size_t nbytes)
{
    if (!staged(n))
        return pull(n, to, nbytes);
    if (nbytes > staged(n))
        nbytes = staged(n);
    memcpy(to, n->stage + n->stage_begin, nbytes);
    n->stage_begin += (uint32_t)nbytes;
    return nbytes;
}

/* NBD's error for a request that must be refused, or 0. */
static uint32_t refusal(const struct nbd *n, const struct nbd_request *r)
{
    const struct nbd_geometry *g = &n->g;
    const uint32_t mask = (1u << g->block_shift) - 1;
    const bool changes = r->type == NBD_WRITE || r->type == NBD_TRIM || r->type == NBD_WRITE_ZEROES;
    uint16_t known = NBD_FUA;
    switch (r->type) {
    case NBD_FLUSH:
        return r->flags & ~known ? NBD_EINVAL : 0;
    case NBD_WRITE_ZEROES:
        known |= NBD_NO_HOLE;
        if (!g->zero_blocks)
            return NBD_EINVAL; /* it was not offered */
        break;
    case NBD_READ:
    case NBD_WRITE:
        if (r->length > g->max_nbytes)
            return NBD_EINVAL;
        break;
    case NBD_TRIM:
        break;
    default:
        return NBD_EINVAL;
    }
    if (changes && g->read_only)
        return NBD_EPERM;
    if (r->flags & ~known || !r->length || (r->offset | r->length) & mask)
        return NBD_EINVAL;
    if (r->offset > g->nbytes || r->length > g->nbytes - r->offset)
        return r->type == NBD_WRITE || r->type == NBD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
    return 0;
}

/* A header is complete. */
static void begin(struct nbd *n, const uint8_t *in)
{
    struct nbd_request *r = n->free_requests;
    if (nbd_get(in, 4) != NBD_REQUEST_MAGIC) {
        nbd_stop(n, "the client sent a request without its magic number");
        return;
    }
    const uint16_t type = (uint16_t)nbd_get(in + 6, 2);
    if (type == NBD_DISC) {
        nbd_stop(n, NULL);
        return;
    }
    n->free_requests = r->next;
    *r = (struct nbd_request){
        .flags = (uint16_t)nbd_get(in + 4, 2),
        .type = type,
        .cookie = nbd_get(in + 8, 8),
        .offset = nbd_get(in + 16, 8),
        .length = (uint32_t)nbd_get(in + 24, 4),
    };
    r->error = refusal(n, r);
    r->left = r->type == NBD_FLUSH ? 0 : r->length;
    n->current = r;
    n->n_busy++;
    n->counters.requests++;
    if (r->error && type == NBD_WRITE) {
        n->skip = r->length;
        n->state = NBD_SKIPPING;
    } else if (r->error) {
        nbd_answer(n, r);
        n->current = NULL;
    } else {
        n->state = type == NBD_WRITE ? NBD_IN_DATA : NBD_ISSUING;
    }
}

static struct nbd_cell *free_cell(struct nbd *n, struct nbd_request *r)
{
    struct nbd_cell *cell = n->free_cells;
    if (!cell)
        return NULL;
    n->free_cells = cell->next;
    cell->next = NULL;
    cell->request = r;
    cell->offset = r->offset + (r->length - r->left);
    return cell;
}

/* The cell's command is to be posted: the next of its request. */
static void make_ready(struct nbd *n, struct nbd_cell *cell, uint8_t opcode, uint32_t cdw12, uint64_t lba,
                       uint32_t nbytes, uint16_t flags)
{
    struct nbd_request *r = cell->request;
    struct nvb_batch *b = &cell->c.batch;
    b->command = (struct nvq_sqe){.opcode = opcode, .nsid = n->g.nsid, .cdw12 = cdw12};
    b->data = nbytes ? cell->memory : NULL;
    nvq_cell_prepare(&cell->c, lba, nbytes, flags);
    r->out++;
    cell->next = NULL;
    if (n->ready)
        n->ready_last->next = cell;
    else
        n->ready = cell;
    n->ready_last = cell;
}

/* The next cell of the current request, which is not a write; false: none is free. */
static bool issue_one(struct nbd *n, struct nbd_request *r)
{
    const struct nbd_geometry *g = &n->g;
    const uint32_t fua = r->flags & NBD_FUA ? CDW12_FUA : 0;
    struct nbd_cell *cell = free_cell(n, r);
    if (!cell)
        return false;
    const uint64_t lba = cell->offset >> g->block_shift;
    uint32_t blocks = r->left >> g->block_shift;
    switch (r->type) {
    case NBD_READ:
        cell->nbytes = r->left < n->cell_nbytes ? r->left : n->cell_nbytes;
        nbd_mark(cell);
        make_ready(n, cell, OPC_READ, (cell->nbytes >> g->block_shift) - 1, lba, cell->nbytes, NVQ_TO_HOST);
        break;
    case NBD_WRITE_ZEROES:
        blocks = blocks < g->zero_blocks ? blocks : g->zero_blocks;
        cell->nbytes = blocks << g->block_shift;
        make_ready(n, cell, OPC_WRITE_ZEROES, (blocks - 1) | fua | (r->flags & NBD_NO_HOLE ? 0 : CDW12_DEAC), lba, 0,
                   0);
        break;
    case NBD_TRIM:
        blocks = blocks < g->trim_blocks ? blocks : g->trim_blocks;
        cell->nbytes = blocks << g->block_shift;
        nvm_dsm_range(cell->memory, lba, blocks);
        make_ready(n, cell, OPC_DSM, 0, DSM_DEALLOCATE, DSM_RANGE, NVQ_FROM_HOST);
        r->flush_due = fua; /* the command has no FUA */
        break;
    default:
        cell->nbytes = 0;
        make_ready(n, cell, OPC_FLUSH, 0, 0, 0, 0);
    }
    r->left -= cell->nbytes;
    return true;
}

/* The request has all its cells. */
static void issued(struct nbd *n)
{
    struct nbd_request *r = n->current;
    r->issued = true;
    n->current = NULL;
    n->state = NBD_IN_HEADER;
    if (!r->out)
        nbd_finish(n, r);
}

static bool issue_current(struct nbd *n)
{
    struct nbd_request *r = n->current;
    if (r->type == NBD_TRIM && !n->g.trim_blocks)
        r->left = 0; /* a hint, and the controller takes none */
    else if (r->type == NBD_FLUSH && !issue_one(n, r))
        return false;
    while (r->left)
        if (!issue_one(n, r))
            return false;
    issued(n);
    return true;
}

static bool receive_data(struct nbd *n)
{
    struct nbd_request *r = n->current;
    if (!n->filling) {
        n->filling = free_cell(n, r);
        if (!n->filling)
            return false;
        n->filling->nbytes = r->left < n->cell_nbytes ? r->left : n->cell_nbytes;
        n->filled = 0;
    }
    struct nbd_cell *cell = n->filling;
    const size_t got = pull_data(n, cell->memory + n->filled, cell->nbytes - n->filled);
    n->filled += (uint32_t)got;
    if (n->filled < cell->nbytes)
        return got != 0;
    n->filling = NULL;
    r->left -= cell->nbytes;
    make_ready(n, cell, OPC_WRITE, ((cell->nbytes >> n->g.block_shift) - 1) | (r->flags & NBD_FUA ? CDW12_FUA : 0),
               cell->offset >> n->g.block_shift, cell->nbytes, NVQ_FROM_HOST);
    if (!r->left)
        issued(n);
    return true;
}

static bool skip_data(struct nbd *n)
{
    uint8_t waste[16384];
    const size_t got = pull_data(n, waste, n->skip < sizeof waste ? n->skip : sizeof waste);
    n->skip -= got;
    if (!n->skip) {
        struct nbd_request *r = n->current;
        n->current = NULL;
        n->state = NBD_IN_HEADER;
        nbd_answer(n, r);
    }
    return got != 0;
}

static bool receive_header(struct nbd *n)
{
    if (!n->free_requests)
        return false;
    if (staged(n) < NBD_HEADER) {
        memmove(n->stage, n->stage + n->stage_begin, staged(n));
        n->stage_end = staged(n);
        n->stage_begin = 0;
        n->stage_end += (uint32_t)pull(n, n->stage + n->stage_end, NBD_STAGE - n->stage_end);
        if (staged(n) < NBD_HEADER)
            return false;
    }
    const uint8_t *header = n->stage + n->stage_begin;
    n->stage_begin += NBD_HEADER;
    begin(n, header);
    return true;
}

/* Bounded, so that a client that never stops sending leaves time for completions and replies. */
#define TURNS 64

bool nbd_receive(struct nbd *n)
{
    bool moved = false;
    for (int turn = 0; turn < TURNS; turn++) {
        bool more;
        switch (n->state) {
        case NBD_IN_HEADER:
            more = receive_header(n);
            break;
        case NBD_IN_DATA:
            more = receive_data(n);
            break;
        case NBD_SKIPPING:
            more = skip_data(n);
            break;
        case NBD_ISSUING:
            more = issue_current(n);
            break;
        default:
            more = false;
        }
        moved |= more;
        if (!more)
            break;
    }
    return moved;
}

bool nbd_post(struct nbd *n, struct nvq *q, struct nvb_slot *slots, uint32_t keep)
{
    bool moved = false;
    while (n->ready) {
        struct nbd_cell *cell = n->ready;
        struct nbd_request *r = cell->request;
        struct nbd_cell *next = cell->next;
        if (!nvq_cell_post(q, slots, &cell->c, keep))
            break;
        n->ready = next;
        cell->next = NULL;
        if (r->type == NBD_READ) { /* its memory is sent, so the order is kept */
            if (r->first)
                r->last->next = cell;
            else
                r->first = cell;
            r->last = cell;
        }
        moved = true;
    }
    return moved;
}

void nbd_flush_after(struct nbd *n, struct nbd_request *r)
{
    struct nbd_cell *cell = free_cell(n, r); /* the cell that has just completed */
    cell->nbytes = 0;
    make_ready(n, cell, OPC_FLUSH, 0, 0, 0, 0);
}

/* A partly received request is dropped; commands in flight stay. */
void nbd_drop_partial(struct nbd *n)
{
    if (n->filling) {
        n->filling->next = n->free_cells;
        n->free_cells = n->filling;
        n->filling = NULL;
    }
    if (n->current) {
        n->current->issued = true;
        n->current->error = NBD_EIO;
        if (!n->current->out)
            nbd_finish(n, n->current);
        n->current = NULL;
    }
}
