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
    uint32_t attempts; /* how often it was sent again after a delay */
    uint64_t due_ns;   /* it failed for now, and is sent again then; 0: not so */
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
    /* Commands that the controller asks to be sent again after a delay (Base 2.1, 3.3.3.2.1), which
     * all commands of a source may be. Set by the queue pair's side, before the first pump(). */
    uint32_t retries;     /* of one command; 0: none is sent again */
    uint32_t retry_ms[4]; /* by Command Retry Delay; UINT32_MAX: it isn't */
    uint32_t n_delayed;   /* cells with due_ns */
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
    cell->attempts = 0;
    cell->due_ns = 0;
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

#define NVQ_COMMAND_INTERRUPTED 0x21u

/* Is a cell that has completed to be sent again later? Then it stays busy. */
static inline bool nvq_cell_delay(struct nvq_source *source, struct nvq_cell *cell)
{
    const uint16_t status = cell->status;
    const unsigned crd = status >> 11 & 3;
    if (__builtin_expect(!status, 1) || status & 1u << 14 || cell->attempts >= source->retries ||
        (!crd && (status & 0x7ff) != NVQ_COMMAND_INTERRUPTED) || source->retry_ms[crd] == UINT32_MAX)
        return false;
    cell->attempts++;
    cell->due_ns = nvq_now_ns() + source->retry_ms[crd] * 1000000ull;
    source->n_delayed++;
    return true;
}

/* When the first cell is due; 0: none waits. */
static inline uint64_t nvq_source_due(const struct nvq_source *source)
{
    uint64_t first = 0;
    for (uint32_t i = 0; i < source->n_cells && source->n_delayed; i++) {
        const uint64_t due = nvq_cell_at(source, i)->due_ns;
        if (due && (!first || due < first))
            first = due;
    }
    return first;
}

/* Posts the cells whose delay is over, as far as command ids are free. */
static inline bool nvq_source_post_due(struct nvq_source *source, struct nvq *q, struct nvb_slot *slots, uint32_t keep)
{
    const uint64_t now = nvq_now_ns();
    bool posted = false;
    for (uint32_t i = 0; i < source->n_cells; i++) {
        struct nvq_cell *cell = nvq_cell_at(source, i);
        if (!cell->due_ns || cell->due_ns > now || q->n_free <= keep)
            continue;
        cell->due_ns = 0;
        cell->status = 0;
        cell->batch.next = cell->batch.done = cell->batch.failed = 0;
        source->n_delayed--;
        posted |= nvq_cell_post(q, slots, cell, keep);
    }
    return posted;
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
            if (!nvq_cell_delay(source, (struct nvq_cell *)batch))
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
