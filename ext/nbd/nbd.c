/* One NBD connection: its memory, and one iteration. See nbd.h. */
#include "nbd.h"

#include "hotpath/source_pump.h"

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

static bool receive(void *self)
{
    struct nbd *n = self;
    const bool moved = nbd_receive(n);
    if (n->state == NBD_ENDED && (n->current || n->filling))
        nbd_drop_partial(n);
    return moved;
}

static bool post(void *self, struct nvq *q, struct nvb_slot *slots, uint32_t keep)
{
    return nbd_post(self, q, slots, keep);
}

static bool send_answers(void *self)
{
    struct nbd *n = self;
    return n->answers && nbd_send(n);
}

static bool is_over(const void *self)
{
    const struct nbd *n = self;
    return n->state == NBD_ENDED && !n->n_busy && !n->ready;
}

static void before_sleep(void *self)
{
    struct nbd *n = self;
    n->source.wants_write = n->send_blocked && n->answers;
    n->source.wants_read = n->state == NBD_IN_DATA   ? n->filling || n->free_cells
                           : n->state == NBD_ISSUING ? false
                           : n->state == NBD_ENDED   ? false
                                                     : n->free_requests != NULL || n->state == NBD_SKIPPING;
}

static const struct nvq_source_face face = {
    .receive = receive,
    .receive_every = 8, /* a system call */
    .post = post,
    .finished = nbd_complete,
    .send = send_answers,
    .is_over = is_over,
    .before_sleep = before_sleep,
};

static enum nvb_why pump(void *self, struct nvq *q, struct nvb_slot *slots, uint32_t keep, uint64_t slice_ns,
                         struct nvw_budget *budget, unsigned *ring)
{
    struct nbd *n = self;
    return nvq_source_go(&n->source, &face, q, slots, keep, slice_ns, budget, ring);
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
