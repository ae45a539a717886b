/* Physical Region Pages: every layout against a simple model, and every reason for a refusal. */
#include "check.h"

#define BLOCKS_MAX 256u /* of 512: 128 KiB, the MDTS of the bed */

static uint64_t seed = 0x9e3779b97f4a7c15ull;

static uint64_t rnd(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

/* Pages of host memory in random order, and a PRP list over them; list_at says where in its page
 * the first list begins. */
struct layout {
    uint8_t *pages[4096];
    unsigned n_pages;
    uint32_t offset;
    uint64_t prp1, prp2;
};

static void shuffle(uint8_t **pages, unsigned n)
{
    for (unsigned i = n; i > 1; i--) {
        unsigned j = (unsigned)rnd(i);
        uint8_t *swap = pages[i - 1];
        pages[i - 1] = pages[j];
        pages[j] = swap;
    }
}

static void lay_out(struct fake_host *host, struct layout *l, uint8_t *memory, uint32_t page, uint64_t nbytes,
                    uint32_t offset, uint8_t *lists, uint32_t list_at)
{
    l->offset = offset;
    l->n_pages = (unsigned)((offset + nbytes + page - 1) / page);
    for (unsigned i = 0; i < l->n_pages; i++)
        l->pages[i] = memory + (size_t)i * page;
    shuffle(l->pages, l->n_pages);
    l->prp1 = fh_iova(host, l->pages[0]) + offset;
    l->prp2 = 0;
    if (l->n_pages == 2)
        l->prp2 = fh_iova(host, l->pages[1]);
    if (l->n_pages <= 2)
        return;
    l->prp2 = fh_iova(host, lists) + list_at;
    uint8_t *at = lists + list_at;
    for (unsigned i = 1; i < l->n_pages; i++) {
        uint64_t in_page = (uint64_t)(at - lists) % page;
        if (in_page == page - 8 && i + 1 < l->n_pages) { /* the last entry of a list page that isn't the last: a link */
            uint8_t *next = lists + ((uint64_t)(at - lists) / page + 2) * page;
            uint64_t link = fh_iova(host, next);
            memcpy(at, &link, 8);
            at = next;
        }
        uint64_t entry = fh_iova(host, l->pages[i]);
        memcpy(at, &entry, 8);
        at += 8;
    }
}

static uint8_t *byte(const struct layout *l, uint32_t page, uint64_t i)
{
    i += l->offset;
    return l->pages[i / page] + i % page;
}

/* Memory aligned to the controller's page. */
static uint8_t *alloc_pages(struct fake_host *host, uint32_t page, size_t nbytes)
{
    host->used += (page - host->used % page) % page;
    return fh_alloc(host, nbytes);
}

/* As fh_enable() and fh_create_io(), with rings on pages of that size. */
static void enable_with_pages(struct fake_host *host, struct fh_queue *io, uint32_t mps)
{
    const uint32_t page = 4096u << mps;
    uint8_t *rings = alloc_pages(host, page, 4 * (size_t)page);
    host->admin = (struct fh_queue){.size = 16, .cq_size = 16, .phase = 1};
    *io = (struct fh_queue){.size = 16, .cq_size = 16, .qid = 1, .phase = 1};
    host->admin.sq = (void *)rings;
    host->admin.cq = (void *)(rings + page);
    io->sq = (void *)(rings + 2 * page);
    io->cq = (void *)(rings + 3 * page);
    emu_ctrl_write(host->ctrl, REG_AQA, 4, 15 | 15 << 16);
    emu_ctrl_write(host->ctrl, REG_ASQ, 8, fh_iova(host, rings));
    emu_ctrl_write(host->ctrl, REG_ACQ, 8, fh_iova(host, rings + page));
    emu_ctrl_write(host->ctrl, REG_CC, 4, CC_EN | mps << 7 | 6 << 16 | 4 << 20);
    EQUAL(emu_ctrl_read(host->ctrl, REG_CSTS, 4), CSTS_RDY);
    struct nvme_sqe create = {
        .opcode = ADMIN_CREATE_CQ, .prp1 = fh_iova(host, rings + 3 * page), .cdw10 = 15u << 16 | 1, .cdw11 = 3};
    EQUAL(fh_do(host, &host->admin, create, NULL), 0);
    create.opcode = ADMIN_CREATE_SQ;
    create.prp1 -= page;
    create.cdw11 = 1u << 16 | 1;
    EQUAL(fh_do(host, &host->admin, create, NULL), 0);
}

static void check_layouts(uint32_t mps, unsigned rounds, uint64_t max_blocks, size_t memory_nbytes)
{
    const uint32_t page = 4096u << mps;
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 32u << 20, 512);
    config.mdts = 0;
    struct fake_host host;
    struct fh_queue io;
    fh_open(&host, &config, memory_nbytes + (8u << 20));
    enable_with_pages(&host, &io, mps);
    uint8_t *memory = alloc_pages(&host, page, memory_nbytes), *lists = alloc_pages(&host, page, 64 * (size_t)page);

    static struct layout l;
    uint8_t *model = malloc(max_blocks * 512);
    for (unsigned round = 0; round < rounds; round++) {
        uint32_t blocks = (uint32_t)rnd(max_blocks) + 1, offset = (uint32_t)rnd(page / 4) * 4;
        uint64_t nbytes = (uint64_t)blocks * 512, lba = rnd(65536 - blocks);
        if (round % 3 == 0)
            offset = 0;
        uint32_t list_at = round % 2 ? (uint32_t)rnd(page / 8) * 8 : page - 8;
        lay_out(&host, &l, memory, page, nbytes, offset, lists, list_at);
        for (uint64_t i = 0; i < nbytes; i++)
            *byte(&l, page, i) = model[i] = (uint8_t)rnd(256);
        struct nvme_sqe sqe = fh_rw(&host, IO_WRITE, lba, blocks, memory, 0);
        sqe.prp1 = l.prp1;
        sqe.prp2 = l.prp2;
        EQUAL(fh_do(&host, &io, sqe, NULL), 0);
        sqe.opcode = IO_COMPARE;
        EQUAL(fh_do(&host, &io, sqe, NULL), 0);
        /* Read back through another layout. */
        offset = (uint32_t)rnd(page / 4) * 4;
        lay_out(&host, &l, memory, page, nbytes, offset, lists, (uint32_t)rnd(page / 8) * 8);
        memset(memory, 0xee, memory_nbytes);
        sqe.opcode = IO_READ;
        sqe.prp1 = l.prp1;
        sqe.prp2 = l.prp2;
        EQUAL(fh_do(&host, &io, sqe, NULL), 0);
        for (uint64_t i = 0; i < nbytes; i++)
            EQUAL(*byte(&l, page, i), model[i]);
        for (uint32_t i = 0; i < offset; i++)
            EQUAL(l.pages[0][i], 0xee);
        for (uint64_t i = nbytes + offset; i % page; i++)
            EQUAL(l.pages[l.n_pages - 1][i % page], 0xee);
    }
    free(model);
    fh_close(&host);
}

TEST(small_layouts_of_prps_transfer_every_byte)
{
    check_layouts(0, 300, 40, 256u << 10);
}

TEST(chained_prp_lists_transfer_every_byte)
{
    check_layouts(0, 6, 12000, 8u << 20);
}

TEST(prps_follow_the_memory_page_size)
{
    check_layouts(2, 60, 400, 1u << 20);
}

TEST(prps_are_refused_as_specified)
{
    struct bed bed;
    bed_open(&bed);
    uint64_t data = fh_iova(&bed.host, bed.data);
    uint64_t *list = fh_alloc(&bed.host, 8192);
    uint64_t list_at = fh_iova(&bed.host, list);
    struct nvme_sqe one = fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512),
                    two = fh_rw(&bed.host, IO_READ, 0, 16, bed.data, 8192);
    struct nvme_sqe many = fh_rw(&bed.host, IO_READ, 0, 64, bed.data, 0);
    for (unsigned i = 0; i < 7; i++)
        list[i] = data + (i + 1) * 4096;
    many.prp2 = list_at;
    EQUAL(bed_io(&bed, one), 0);
    EQUAL(bed_io(&bed, two), 0);
    EQUAL(bed_io(&bed, many), 0);

    one.prp1 = data + 2;
    EQUAL(bed_io(&bed, one), SC_PRP_OFFSET);
    one.prp1 = 0;
    EQUAL(bed_io(&bed, one), SC_DATA_TRANSFER);
    one.prp1 = UINT64_MAX - 511;
    EQUAL(bed_io(&bed, one), SC_DATA_TRANSFER);
    one.prp1 = FH_IOVA + bed.host.nbytes - 512; /* the very last bytes */
    EQUAL(bed_io(&bed, one), 0);
    two.prp2 = data + 4096 + 512;
    EQUAL(bed_io(&bed, two), SC_PRP_OFFSET);
    two.prp2 = 0x1000;
    EQUAL(bed_io(&bed, two), SC_DATA_TRANSFER);
    many.prp2 = list_at + 4;
    EQUAL(bed_io(&bed, many), SC_PRP_OFFSET);
    many.prp2 = 0x7000;
    EQUAL(bed_io(&bed, many), SC_DATA_TRANSFER);
    many.prp2 = list_at;
    list[3] += 8;
    EQUAL(bed_io(&bed, many), SC_PRP_OFFSET);
    list[3] = ~4095ull;
    EQUAL(bed_io(&bed, many), SC_DATA_TRANSFER);
    list[511] = list_at + 8; /* a link into the middle of a page */
    many.prp2 = list_at + 511 * 8;
    EQUAL(bed_io(&bed, many), SC_PRP_OFFSET);
    list[511] = list_at + 511 * 8;
    EQUAL(bed_io(&bed, many), SC_PRP_OFFSET);
    list[511] = 0x3000;
    EQUAL(bed_io(&bed, many), SC_DATA_TRANSFER);
    bed_close(&bed);
}

TEST(transfers_beyond_mdts_are_refused)
{
    struct bed bed;
    bed_open(&bed);
    uint64_t *list = fh_alloc(&bed.host, 4096);
    for (unsigned i = 0; i < 63; i++)
        list[i] = fh_iova(&bed.host, bed.data) + (i + 1) % 64 * 4096;
    struct nvme_sqe sqe = fh_rw(&bed.host, IO_WRITE, 0, BLOCKS_MAX, bed.data, 0);
    sqe.prp2 = fh_iova(&bed.host, list);
    EQUAL(bed_io(&bed, sqe), 0);
    sqe.cdw12 = BLOCKS_MAX;
    EQUAL(bed_io(&bed, sqe), SC_INVALID_FIELD);
    sqe.flags = 0x40; /* SGL */
    sqe.cdw12 = 0;
    EQUAL(bed_io(&bed, sqe), SC_INVALID_FIELD);
    sqe.flags = 1; /* fused */
    EQUAL(bed_io(&bed, sqe), SC_INVALID_FIELD);
    bed_close(&bed);
}
