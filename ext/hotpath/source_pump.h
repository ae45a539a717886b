/* One iteration of a source: the common part. See nvq_source.pump in source.h. */
#ifndef NVME_ASYNC_HOTPATH_SOURCE_PUMP_H
#define NVME_ASYNC_HOTPATH_SOURCE_PUMP_H

#include "source.h"

/* The source's part. `self` is nvq_source.self; functions that return bool say whether anything
 * moved. */
struct nvq_source_face {
    bool (*receive)(void *self);                 /* takes requests in */
    unsigned receive_every;                      /* turns, while nothing moves: more where it is a system call */
    bool (*post)(void *self, struct nvq *q, struct nvb_slot *slots, uint32_t keep);
    void (*finished)(void *self, struct nvq_cell *cell);
    bool (*send)(void *self);                    /* answers that are due, if there are any */
    bool (*is_over)(const void *self);
    void (*before_sleep)(void *self);            /* sets wants_read and wants_write */
};

/* Results that the event loop has delivered since the last iteration, and those of commands that a
 * reset has ended. */
static inline void nvq_source_take_delivered(struct nvq_source *source, const struct nvq_source_face *face)
{
    for (uint32_t i = 0; i < source->n_cells; i++) {
        struct nvq_cell *cell = nvq_cell_at(source, i);
        if (cell->busy && cell->batch.done && !cell->due_ns && !nvq_cell_delay(source, cell))
            face->finished(source->self, cell);
    }
}

/* What nvq_source.pump does, with the source's part in `face`. Returns why it stopped, and in *ring
 * which doorbells the caller has to write: 1 = submission, 2 = completion. */
static inline __attribute__((always_inline)) enum nvb_why
nvq_source_go(struct nvq_source *source, const struct nvq_source_face *face, struct nvq *q, struct nvb_slot *slots,
              uint32_t keep, uint64_t slice_ns, struct nvw_budget *budget, unsigned *ring)
{
    void *self = source->self;
    const uint64_t start = nvq_now_ns();
    const uint64_t bound = nvw_budget_ns(budget);
    uint64_t quiet_since = 0, polled = 0;
    bool moved = true;
    *ring = 0;
    nvq_source_take_delivered(source, face);
    for (unsigned turn = 1;; turn++) {
        if (moved || turn % face->receive_every == 0) {
            moved = face->receive(self);
            moved |= face->post(self, q, slots, keep);
            moved |= face->send(self);
        } else {
            moved = face->post(self, q, slots, keep);
        }
        if (__builtin_expect(source->n_delayed, 0))
            moved |= nvq_source_post_due(source, q, slots, keep);
        if (q->n_unrung)
            *ring |= nvq_ring_sq(q) ? 1 : 0;
        if (nvq_reap(q, 64)) {
            moved = true;
            nvq_source_settle(q, slots, source, face->finished);
            if (q->n_unacked >= q->entries / 4 || q->n_unacked >= 64)
                *ring |= nvq_ring_cq(q) ? 2 : 0;
            face->send(self);
        }
        if (q->strays.n)
            return NVB_STRAYS;
        if (face->is_over(self))
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
                nvw_budget_in_vain(budget, bound);
            face->before_sleep(self);
            return NVB_QUIET;
        }
    }
}

#endif
