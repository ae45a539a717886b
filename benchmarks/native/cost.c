/*
 * Instructions of one I/O in the primitives, for benchmarks/cost.py under callgrind. A controller
 * that completes commands at once, inline and outside the measured functions. Not part of any
 * extension.
 */
#include <stdio.h>
#include <sys/mman.h>

#include "hotpath/batch.h"

#define ENTRIES 256
#define IOVA 0x100000000ull

static struct nvq q;
static struct nvb_slot slots[ENTRIES];
static uint32_t doorbells[2];
static uint32_t sq_head, cq_tail;
static uint16_t phase = 1;

__attribute__((noinline)) void cost_submit(struct nvb_batch *b, uint32_t n)
{
    b->depth = n;
    nvb_fill(&q, slots, b, 0);
    nvq_ring_sq(&q);
}

__attribute__((noinline)) void cost_reap(struct nvb_batch *b)
{
    nvq_reap(&q, ENTRIES);
    nvb_settle(&q, slots, b);
    nvq_ring_cq(&q);
}

static void answer(void)
{
    while (sq_head != doorbells[0]) {
        struct nvq_cqe *cqe = (struct nvq_cqe *)&q.cq[cq_tail];
        cqe->dw0 = cqe->dw1 = 0;
        cqe->sqhd = (uint16_t)sq_head;
        cqe->sqid = q.qid;
        cqe->cid = q.sq[sq_head].cid;
        cqe->status = phase;
        if (++sq_head == ENTRIES)
            sq_head = 0;
        if (++cq_tail == ENTRIES) {
            cq_tail = 0;
            phase ^= 1;
        }
    }
}

int main(int argc, char **argv)
{
    const uint32_t rounds = argc > 1 ? (uint32_t)atoi(argv[1]) : 1000;
    const uint32_t depth = argc > 2 ? (uint32_t)atoi(argv[2]) : 32;
    struct nvq_header layout;
    memset(&layout, 0, sizeof layout);
    const uint64_t nbytes = nvq_layout(&layout, ENTRIES, ENTRIES - 2, 256);
    uint8_t *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    layout.qid = 1;
    memcpy(memory, &layout, sizeof layout);
    if (nvq_open(&q, memory, IOVA))
        return 1;
    nvq_reset(&q);
    q.sq_doorbell = &doorbells[0];
    q.cq_doorbell = &doorbells[1];
    nvq_choose_ringing(&q);
    uint64_t *lbas = calloc((size_t)rounds * depth, sizeof *lbas);
    uint16_t *statuses = calloc((size_t)rounds * depth, sizeof *statuses);
    static uint8_t data;
    struct nvb_batch b;
    memset(&b, 0, sizeof b);
    b.command.opcode = 2;
    b.lbas = lbas;
    b.status = statuses;
    b.data = &data; /* never touched: the device has its own address for it */
    b.iova = IOVA + (1ull << 30);
    b.offset = NVQ_NO_OFFSET;
    b.nbytes = 4096;
    b.n = rounds * depth;
    b.flags = NVQ_TO_HOST;
    nvb_prepare(&b);
    for (uint32_t i = 0; i < rounds; i++) {
        cost_submit(&b, depth);
        answer();
        cost_reap(&b);
    }
    printf("%u\n", b.done);
    return b.done == rounds * depth && !b.failed ? 0 : 1;
}
