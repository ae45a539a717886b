/*
 * A source of commands: a server in C (an NBD connection, …) that turns what its clients ask for
 * into NVMe commands, without the interpreter. It sends them through the queue pair of the event
 * loop that it runs on, so holds, time limits, resets and a namespace's geometry are those of every
 * other I/O.
 *
 * Each command of a source is a cell: a batch (batch.h) of one element, in memory that the device
 * reaches and that the source owns until the cell is idle. stream.pxi is the Python side.
 */
#ifndef NVME_ASYNC_HOTPATH_SOURCE_H
#define NVME_ASYNC_HOTPATH_SOURCE_H

#include "batch.h"

/* One command of a source. The owner's struct begins with it. */
struct nvq_cell {
    struct nvb_batch batch;
    uint64_t lba;    /* batch.lbas: dwords 10 and 11 */
    uint64_t offset; /* of its memory in the pool, or NVQ_NO_OFFSET */
    uint16_t status; /* batch.status */
    bool busy;       /* prepared, and its result not taken yet by the source */
};

/* What a capsule named NVQ_SOURCE holds, from the source's extension module to the queue pair's. */
#define NVQ_SOURCE "nvme_async.source"

struct nvq_source {
    /*
     * One go, on the queue pair's thread and without the GIL: takes requests in, posts, rings,
     * reaps, and sends answers, until nothing moves for as long as `budget` says (NVB_QUIET),
     * `slice_ns` have passed (NVB_SLICE), the source has ended and no cell is busy (NVB_DONE), or
     * the caller has to act (NVB_REGISTER, NVB_STRAYS). `keep` command ids are left to others.
     */
    enum nvb_why (*pump)(void *self, struct nvq *q, struct nvb_slot *slots, uint32_t keep, uint64_t slice_ns,
                         struct nvw_budget *budget, unsigned *ring);
    /* No more commands: the clients learn that service has ended. Cells that are out stay until
     * they complete. */
    void (*end)(void *self);
    void *self;
    uint8_t *cells; /* n_cells structs of cell_bytes, each beginning with a struct nvq_cell */
    size_t cell_bytes;
    uint32_t n_cells;
    /* Set by pump(): what a sleeping source waits for, beside completions. */
    bool wants_read, wants_write;
};

/* The cell with index i. */
static inline struct nvq_cell *nvq_cell_at(const struct nvq_source *source, uint32_t i)
{
    return (struct nvq_cell *)(source->cells + (size_t)i * source->cell_bytes);
}

/* Whether the batch is a cell of this source. */
static inline bool nvq_owns(const struct nvq_source *source, const struct nvb_batch *batch)
{
    const uint8_t *at = (const uint8_t *)batch;
    return at >= source->cells && at < source->cells + (size_t)source->n_cells * source->cell_bytes;
}

/* A cell becomes a command of `nbytes` of data (0: none) at batch.data; what it does is in
 * batch.command. */
static inline void nvq_cell_prepare(struct nvq_cell *cell, uint64_t lba, uint32_t nbytes, uint16_t flags)
{
    struct nvb_batch *b = &cell->batch;
    cell->lba = lba;
    cell->status = 0;
    cell->busy = true;
    b->lbas = &cell->lba;
    b->status = &cell->status;
    b->nbytes = nbytes;
    b->flags = flags;
    b->n = b->depth = 1;
    b->next = b->done = b->failed = b->out = 0;
    b->offset = nbytes ? cell->offset : NVQ_NO_OFFSET;
    nvb_prepare(b);
}

/* Posts a prepared cell. False: no command id is free beyond `keep`. */
static inline bool nvq_cell_post(struct nvq *q, struct nvb_slot *slots, struct nvq_cell *cell, uint32_t keep)
{
    return nvb_fill(q, slots, &cell->batch, keep) != 0;
}

/*
 * Finishes the cells of `source` among the reaped, and calls finished() for each; the rest keeps
 * its order in done_slots. Cells that were delivered by the event loop meanwhile have batch.done
 * set and are still busy: pump() begins with those.
 */
static inline void nvq_source_settle(struct nvq *q, struct nvb_slot *slots, struct nvq_source *source,
                                     void (*finished)(void *self, struct nvq_cell *cell))
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < q->n_done; i++) {
        const unsigned slot = q->done_slots[i];
        struct nvb_batch *batch = slots[slot].batch;
        if (batch && nvq_owns(source, batch)) {
            nvb_finish(q, slots, slot);
            finished(source->self, (struct nvq_cell *)batch);
        } else {
            q->done_slots[kept++] = (uint16_t)slot;
        }
    }
    q->n_done = kept;
}

/* Cells with the controller. */
static inline uint32_t nvq_source_out(const struct nvq_source *source)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < source->n_cells; i++)
        n += nvq_cell_at(source, i)->batch.out;
    return n;
}

#endif
