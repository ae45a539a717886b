/*
 * What a successor does with the memory of a queue pair (hotpath/adopt.h): a sound image, with
 * commands that are out, recorded, and unread in the completion ring, and changes to it.
 *
 * Input: records of 12 bytes: an offset (32 bits), then what is stored there (64 bits).
 */
#include <stdlib.h>

#include "hotpath/adopt.h"

#define ENTRIES 16u
#define TRACKERS 14u
#define POOL_IOVA 0x100000000ull
#define POOL_BYTES (1ull << 24)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *image;
static uint64_t nbytes;

static void answer(struct nvq *q, uint32_t index, uint16_t cid, uint16_t status)
{
    struct nvq_cqe *cqe = (struct nvq_cqe *)&q->cq[index];
    *cqe =
        (struct nvq_cqe){.sqid = 1, .sqhd = (uint16_t)(index + 1), .cid = cid, .status = (uint16_t)(status << 1 | 1)};
}

static void make_image(void)
{
    struct nvq_header layout;
    struct nvq q;
    memset(&layout, 0, sizeof layout);
    nbytes = nvq_layout(&layout, ENTRIES, TRACKERS, 256);
    layout.magic = NVQ_MAGIC;
    layout.version = NVQ_LAYOUT_VERSION;
    layout.qid = 1;
    layout.n_reserved = 1;
    layout.sums = NVQ_SUMS;
    image = aligned_alloc(NVQ_PAGE, nbytes);
    if (!image)
        abort();
    memset(image, 0, nbytes);
    memcpy(image, &layout, sizeof layout);
    if (nvq_open(&q, image, POOL_IOVA))
        abort();
    nvq_reset(&q);
    for (unsigned i = 0; i < 8; i++) {
        const unsigned slot = (unsigned)nvq_take(&q);
        struct nvq_tracker *t = &q.trackers[slot];
        const uint64_t length = i == 7 ? 0 : 4096ull << i % 4;
        memset(&t->sqe, 0, sizeof t->sqe);
        t->sqe.opcode = i % 2 ? 1 : 2;
        t->sqe.nsid = 1;
        t->sqe.cdw10 = i;
        t->flags = !length ? 0 : i % 2 ? NVQ_FROM_HOST : NVQ_TO_HOST;
        t->tag = i;
        t->data_nbytes = (uint32_t)length;
        t->data_offset = length ? (uint64_t)(i + 1) << 16 : NVQ_NO_OFFSET;
        (void)prp_build(&t->sqe.prp1, POOL_IOVA + t->data_offset, length, nvq_list(&q, slot), nvq_list_iova(&q, slot),
                        q.list_bytes);
        nvq_post(&q, slot);
        if (i == 5) {
            (void)nvq_ring_sq(&q); /* no doorbell: the caller writes it */
            nvq_rang_sq(&q);
        }
    }
    answer(&q, 0, q.sq[0].cid, 0);
    answer(&q, 1, q.sq[1].cid, 0x281);
    (void)nvq_reap(&q, 2);
    answer(&q, 2, q.sq[2].cid, 0);
    nvq_close(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t *memory;
    static uint64_t scratch[NVQ_PAGE / 8];
    char error[NVQ_ERROR_BYTES] = "";
    struct nvq_found found;
    struct nvq q;
    if (!image) {
        make_image();
        memory = aligned_alloc(NVQ_PAGE, nbytes);
        if (!memory)
            abort();
    }
    memcpy(memory, image, nbytes);
    for (; size >= 12; data += 12, size -= 12) {
        uint32_t offset;
        memcpy(&offset, data, sizeof offset);
        memcpy(memory + offset % (nbytes - 7), data + 4, 8);
    }
    struct nvq_header *h = (struct nvq_header *)memory;
    if (nvq_check_header(h, nbytes, 1, error)) {
        if (!error[0])
            abort();
        return 0;
    }
    if (nvq_open(&q, memory, POOL_IOVA))
        abort();
    const struct nvq_measure measure = {.pool_iova = POOL_IOVA,
                                        .pool_nbytes = POOL_BYTES,
                                        .max_transfer = 1 << 20,
                                        .sums = h->sums == NVQ_SUMS,
                                        .scratch = q.list_bytes <= sizeof scratch ? scratch : calloc(1, q.list_bytes)};
    if (!measure.scratch)
        abort();
    if (nvq_inspect(&q, &measure, &found, error)) {
        if (!error[0])
            abort();
    } else {
        nvq_adopt(&q, &measure, &found);
        if (q.n_free > q.n_trackers || q.n_armed > q.n_trackers || q.cq_head >= q.entries || q.sq_tail >= q.entries)
            abort();
        (void)nvq_reap(&q, ENTRIES);
        if (q.n_done > q.n_trackers)
            abort();
    }
    if (measure.scratch != scratch)
        free(measure.scratch);
    nvq_close(&q);
    return 0;
}
