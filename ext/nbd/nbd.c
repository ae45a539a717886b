/* One NBD connection: its memory, and one iteration. See nbd.h. */
#include "nbd.h"

void nbd_set_mark(uint64_t mark)
{
    nvs_set_mark(mark);
}

void nbd_mark(struct nbd_cell *cell)
{
    nvs_prepare(cell->memory, cell->nbytes);
}

uint16_t nbd_check(struct nbd_cell *cell)
{
    return nvs_finish(cell->memory, cell->nbytes);
}

static void end(void *self)
{
    struct nbd *n = self;
    n->state = NBD_ENDED;
    n->why = "service has ended";
    while (n->ready) { /* never sent */
        struct nbd_cell *cell = n->ready;
        n->ready = cell->next;
        cell->c.status = NVB_GIVEN_UP;
        nbd_complete(n, &cell->c);
    }
    nbd_drop_partial(n);
    nbd_send(n); /* drops the rest */
}

static bool is_over(const struct nbd *n)
{
    return n->state == NBD_ENDED && !n->n_busy && !n->ready;
}

/* Results that the event loop has delivered since the last iteration, and those of commands that a
 * reset has ended. */
static void take_delivered(struct nbd *n)
{
    for (uint32_t i = 0; i < n->source.n_cells; i++) {
        struct nvq_cell *cell = nvq_cell_at(&n->source, i);
        if (cell->busy && cell->batch.done)
            nbd_complete(n, cell);
    }
}

static enum nvb_why pump(void *self, struct nvq *q, struct nvb_slot *slots, uint32_t keep, uint64_t slice_ns,
                         struct nvw_budget *budget, unsigned *ring)
{
    struct nbd *n = self;
    const uint64_t start = nvq_now_ns();
    const uint64_t bound = nvw_budget_ns(budget);
    uint64_t quiet_since = 0, polled = 0;
    bool moved = true;
    *ring = 0;
    take_delivered(n);
    for (unsigned turn = 1;; turn++) {
        /* Each poll of the socket is a system call: while idle, the completion ring is polled eight
         * times as often. */
        if (moved || turn % 8 == 0) {
            moved = nbd_receive(n);
            if (n->state == NBD_ENDED && (n->current || n->filling))
                nbd_drop_partial(n);
            moved |= nbd_post(n, q, slots, keep);
            moved |= n->answers && nbd_send(n);
        } else {
            moved = nbd_post(n, q, slots, keep);
        }
        if (q->n_unrung)
            *ring |= nvq_ring_sq(q) ? 1 : 0;
        if (nvq_reap(q, 64)) {
            moved = true;
            nvq_source_settle(q, slots, &n->source, nbd_complete);
            if (q->n_unacked >= q->entries / 4 || q->n_unacked >= 64)
                *ring |= nvq_ring_cq(q) ? 2 : 0;
            if (n->answers)
                nbd_send(n);
        }
        if (q->strays.n)
            return NVB_STRAYS;
        if (is_over(n))
            return NVB_DONE;
        if (*ring)
            return NVB_REGISTER;
        if (moved && turn % 16)
            continue;
        if (!moved) {
            nvq_relax();
            if (turn % 16)
                continue;
        }
        const uint64_t now = nvq_now_ns();
        if (now - start >= slice_ns)
            return NVB_SLICE;
        if (moved) {
            if (quiet_since)
                nvw_budget_learn(budget, polled - quiet_since);
            quiet_since = 0;
            continue;
        }
        polled = now;
        if (!quiet_since)
            quiet_since = now;
        if (now - quiet_since >= bound) {
            if (bound)
                nvw_budget_learn(budget, 4 * bound);
            n->source.wants_write = n->send_blocked && n->answers;
            n->source.wants_read = n->state == NBD_IN_DATA   ? n->filling || n->free_cells
                                   : n->state == NBD_ISSUING ? false
                                   : n->state == NBD_ENDED   ? false
                                                             : n->free_requests != NULL || n->state == NBD_SKIPPING;
            return NVB_QUIET;
        }
    }
}

int nbd_init(struct nbd *n, const struct nbd_geometry *g, int fd, uint8_t *memory, uint64_t iova, uint64_t offset,
             uint32_t n_cells, uint32_t cell_nbytes)
{
    struct nbd_cell *cells = calloc(n_cells, sizeof *cells);
    memset(n, 0, sizeof *n);
    n->requests = calloc(n_cells, sizeof *n->requests);
    n->source.cells = (uint8_t *)cells;
    if (!cells || !n->requests) {
        nbd_free(n);
        return -ENOMEM;
    }
    n->g = *g;
    n->fd = fd;
    n->cell_nbytes = cell_nbytes;
    n->source.pump = pump;
    n->source.end = end;
    n->source.self = n;
    n->source.n_cells = n_cells;
    n->source.cell_bytes = sizeof *cells;
    for (uint32_t i = n_cells; i--;) {
        const uint64_t at = (uint64_t)i * cell_nbytes;
        cells[i].memory = memory + at;
        cells[i].c.batch.iova = iova + at;
        cells[i].c.offset = offset == NVQ_NO_OFFSET ? NVQ_NO_OFFSET : offset + at;
        cells[i].next = n->free_cells;
        n->free_cells = &cells[i];
        n->requests[i].next = n->free_requests;
        n->free_requests = &n->requests[i];
    }
    return 0;
}

void nbd_free(struct nbd *n)
{
    free(n->source.cells);
    free(n->requests);
    n->source.cells = NULL;
    n->requests = NULL;
}
