/* LBA formats, blocks with metadata, a slow Format NVM, configured namespace identifiers. */
#include "check.h"

static struct emu_config formats(void)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 16u << 20, 512);
    config.n_formats = 4;
    config.formats[0] = (struct emu_format){.block_size = 512};
    config.formats[1] = (struct emu_format){.block_size = 4096};
    config.formats[2] = (struct emu_format){.block_size = 512, .metadata = 8};
    config.formats[3] = (struct emu_format){.block_size = 4096, .metadata = 64};
    return config;
}

static uint16_t identify(struct bed *bed, uint8_t cns)
{
    struct nvme_sqe sqe = {.opcode = ADMIN_IDENTIFY, .nsid = 1, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = cns};
    return bed_admin(bed, sqe, NULL);
}

static uint16_t format(struct bed *bed, uint32_t cdw10)
{
    return bed_admin(bed, (struct nvme_sqe){.opcode = ADMIN_FORMAT, .nsid = 1, .cdw10 = cdw10}, NULL);
}

static uint64_t blocks(const struct bed *bed)
{
    uint64_t value;
    memcpy(&value, bed->data, 8);
    return value;
}

TEST(format_knows_the_formats_that_were_chosen)
{
    struct emu_config config = formats();
    struct bed bed;
    bed_open_with(&bed, &config);
    EQUAL(identify(&bed, 0), 0);
    EQUAL(bed.data[25], 3); /* NLBAF */
    EQUAL(bed.data[27], 3); /* MC */
    EQUAL(bed.data[136], 8);
    EQUAL(bed.data[138], 9);
    EQUAL(bed.data[140], 64);
    EQUAL(bed.data[142], 12);
    EQUAL(format(&bed, 4), SC_FORMAT_INVALID);
    EQUAL(format(&bed, 1 | 1 << 4), SC_FORMAT_INVALID); /* MSET without metadata */
    EQUAL(format(&bed, 3 | 1 << 12), SC_FORMAT_INVALID); /* LBAFU: format 19 */
    EQUAL(format(&bed, 3 | 1 << 4), 0);
    EQUAL(identify(&bed, 0), 0);
    EQUAL(bed.data[26], 0x13); /* FLBAS: format 3, extended */
    EQUAL(blocks(&bed), (16u << 20) / 4096);
    bed_close(&bed);
}

static void fill(uint8_t *at, size_t nbytes, unsigned seed)
{
    for (size_t i = 0; i < nbytes; i++)
        at[i] = (uint8_t)(seed + i * 7 + i / 256);
}

/* 20 blocks need more than one piece of the bounce buffer. */
TEST(metadata_comes_back_from_a_buffer_of_its_own_and_from_extended_blocks)
{
    for (unsigned extended = 0; extended < 2; extended++) {
        struct emu_config config = formats();
        struct bed bed;
        enum { N = 20, DATA = N * 4096, META = N * 64 };
        bed_open_with(&bed, &config);
        EQUAL(format(&bed, 3 | extended << 4), 0);
        uint8_t *buffer = fh_alloc(&bed.host, DATA + META + 4096), *meta = fh_alloc(&bed.host, META);
        uint64_t *list = fh_alloc(&bed.host, 4096);
        for (unsigned i = 0; i < 30; i++)
            list[i] = fh_iova(&bed.host, buffer) + (i + 1) * 4096;
        struct nvme_sqe sqe = {.opcode = IO_WRITE,
                               .nsid = 1,
                               .mptr = fh_iova(&bed.host, meta),
                               .prp1 = fh_iova(&bed.host, buffer),
                               .prp2 = fh_iova(&bed.host, list),
                               .cdw10 = 5,
                               .cdw12 = N - 1};
        size_t nbytes = extended ? DATA + META : DATA;
        fill(buffer, nbytes, 3);
        fill(meta, META, 9);
        EQUAL(bed_io(&bed, sqe), 0);
        sqe.opcode = IO_COMPARE;
        EQUAL(bed_io(&bed, sqe), 0);
        uint8_t *last = extended ? buffer + nbytes - 1 : meta + META - 1;
        *last ^= 1; /* one bit of the metadata of the last block */
        EQUAL(bed_io(&bed, sqe), SC_COMPARE_FAILURE);
        memset(buffer, 0, nbytes);
        memset(meta, 0, META);
        sqe.opcode = IO_READ;
        EQUAL(bed_io(&bed, sqe), 0);
        uint8_t *expected = malloc(nbytes + META);
        fill(expected, nbytes, 3);
        CHECK(!memcmp(buffer, expected, nbytes));
        fill(expected, META, 9);
        CHECK(extended || !memcmp(meta, expected, META));
        free(expected);
        sqe.opcode = IO_VERIFY;
        EQUAL(bed_io(&bed, sqe), 0);
        if (!extended) {
            sqe.opcode = IO_READ;
            sqe.mptr += 2;
            EQUAL(bed_io(&bed, sqe), SC_INVALID_FIELD);
            sqe.mptr = 0x10;
            EQUAL(bed_io(&bed, sqe), SC_DATA_TRANSFER);
        }
        sqe.opcode = IO_WRITE_ZEROES;
        sqe.mptr = fh_iova(&bed.host, meta);
        EQUAL(bed_io(&bed, sqe), 0);
        sqe.opcode = IO_READ;
        EQUAL(bed_io(&bed, sqe), 0);
        for (size_t i = 0; i < nbytes; i++)
            EQUAL(buffer[i], 0);
        for (size_t i = 0; i < META && !extended; i++)
            EQUAL(meta[i], 0);
        bed_close(&bed);
    }
}

TEST(format_takes_its_time_and_says_how_far_it_is)
{
    struct emu_config config = formats();
    config.format_ns = SECOND / 10;
    struct bed bed;
    struct nvme_cqe cqe;
    bed_open_with(&bed, &config);
    EQUAL(bed_write(&bed, 0, 1, 7), 0);
    fh_push(&bed.host.admin, (struct nvme_sqe){.opcode = ADMIN_FORMAT, .nsid = 1, .cdw10 = 1});
    fh_ring(&bed.host, &bed.host.admin);
    EQUAL(identify(&bed, 0), 0);
    CHECK(bed.data[32] & 0x80);
    CHECK((bed.data[32] & 0x7f) > 1); /* FPI: percent that remain */
    EQUAL(bed.data[26], 0);
    EQUAL(bed_io(&bed, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512)), SC_FORMAT_IN_PROGRESS);
    EQUAL(format(&bed, 1), SC_FORMAT_IN_PROGRESS);
    CHECK(fh_wait(&bed.host, &bed.host.admin, &cqe));
    EQUAL(cqe.status >> 1, 0);
    EQUAL(identify(&bed, 0), 0);
    EQUAL(bed.data[32], 0x80);
    EQUAL(bed.data[26], 1);
    EQUAL(bed_io(&bed, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 4096)), 0);
    bed_close(&bed);
}

/* The reset drops the command; the namespace is formatted nevertheless. */
TEST(format_goes_on_over_a_reset)
{
    struct emu_config config = formats();
    config.format_ns = SECOND / 20;
    struct bed bed;
    bed_open_with(&bed, &config);
    fh_push(&bed.host.admin, (struct nvme_sqe){.opcode = ADMIN_FORMAT, .nsid = 1, .cdw10 = 1});
    fh_ring(&bed.host, &bed.host.admin);
    bed_turn(&bed, 4);
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0);
    bed.host.admin.head = bed.host.admin.tail = 0;
    EQUAL(fh_enable(&bed.host, 32), CSTS_RDY);
    EQUAL(identify(&bed, 0), 0);
    CHECK((bed.data[32] & 0x7f) > 0);
    while (bed.data[26] != 1)
        EQUAL(identify(&bed, 0), 0);
    EQUAL(bed.data[32], 0x80);
    bed_close(&bed);
}

TEST(the_effects_log_can_be_left_out)
{
    struct emu_config config = formats();
    config.no_effects = true;
    struct bed bed;
    bed_open_with(&bed, &config);
    EQUAL(bed_log(&bed, LOG_EFFECTS, 512, true), SC_LOG_PAGE_INVALID);
    EQUAL(identify(&bed, 1), 0);
    EQUAL(bed.data[261] & 2, 0);
    bed_close(&bed);
}
