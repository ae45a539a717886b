/* Protection information at the controller: inserted, stripped, passed through and checked; errors
 * name the block. */
#include "check.h"
#include "pi/pi.h"

#define N 4u

static struct emu_config config_of(uint8_t pif, uint16_t metadata, uint8_t sts, uint8_t dps, bool extended)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 1u << 20, 512);
    config.n_formats = 2;
    config.formats[0] = (struct emu_format){.block_size = 512};
    config.formats[1] = (struct emu_format){.block_size = 512, .metadata = metadata, .pif = pif, .sts = sts};
    config.namespaces[0].metadata = metadata;
    config.namespaces[0].pif = pif;
    config.namespaces[0].dps = dps;
    config.namespaces[0].extended = extended;
    return config;
}

static void extend(struct bed *bed)
{
    memset(bed->data, 0, 512);
    bed->data[HOST_BEHAVIOUR_LBAFEE] = 1;
    struct nvme_sqe sqe = {
        .opcode = ADMIN_SET_FEATURES, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = FEAT_HOST_BEHAVIOUR};
    EQUAL(bed_admin(bed, sqe, NULL), 0);
}

static struct nvme_sqe command(struct bed *bed, uint8_t opcode, const uint8_t *meta, uint32_t prinfo, uint32_t ref)
{
    struct nvme_sqe sqe = fh_rw(&bed->host, opcode, 100, N, bed->data, N * 640);
    sqe.mptr = fh_iova(&bed->host, meta);
    sqe.cdw12 |= prinfo << 26;
    sqe.cdw14 = ref;
    sqe.cdw15 = 0xffff1234;
    return sqe;
}

static void error_is_at(struct bed *bed, uint64_t lba)
{
    uint64_t at;
    EQUAL(bed_log(bed, LOG_ERROR, 64, false), 0);
    memcpy(&at, bed->data + 16, 8);
    EQUAL(at, lba);
}

TEST(protection_information_is_inserted_and_stripped)
{
    for (uint8_t pif = 0; pif < 3; pif++) {
        struct emu_config config = config_of(pif, pif ? 16 : 8, 0, 1, false);
        struct bed bed;
        bed_open_with(&bed, &config);
        extend(&bed);
        uint8_t *meta = fh_alloc(&bed.host, 4096);
        memset(bed.data, 0x3c, N * 512);
        EQUAL(bed_io(&bed, command(&bed, IO_WRITE, meta, 8, 100)), 0); /* PRACT: nothing comes from `meta` */
        memset(bed.data, 0, N * 512);
        EQUAL(bed_io(&bed, command(&bed, IO_READ, meta, 8 | 7, 100)), 0);
        EQUAL(bed.data[0], 0x3c);
        EQUAL(meta[0] | meta[1], 0);
        EQUAL(bed_io(&bed, command(&bed, IO_READ, meta, 7, 100)), 0); /* passed to the host */
        struct pi_format format = {.block_size = 512, .metadata = pif ? 16 : 8, .pif = pif, .type = 1};
        struct pi_blocks blocks = {bed.data, meta, 512, format.metadata, N};
        struct pi_tags tags = {0x1234, 0xffff, 100};
        EQUAL(pi_check(&format, &blocks, &tags, 7).what, 0);
        EQUAL(bed_io(&bed, command(&bed, IO_READ, meta, 1, 101)), SC_PROTECTION_INFO); /* type 1: the LBA */
        struct nvme_sqe sqe = command(&bed, IO_READ, meta, 2, 100);
        sqe.cdw15 = 0xffff4321;
        EQUAL(bed_io(&bed, sqe), SC_APPLICATION_TAG);
        sqe = command(&bed, IO_VERIFY, meta, 7, 100);
        EQUAL(bed_io(&bed, sqe), 0);
        bed_close(&bed);
    }
}

/* The third block's guard, application tag, reference tag, one after the other; written without
 * checks. */
TEST(the_block_that_is_wrong_is_named)
{
    static const uint16_t statuses[] = {SC_GUARD, SC_APPLICATION_TAG, SC_REFERENCE_TAG};
    for (unsigned extended = 0; extended < 2; extended++) {
        for (unsigned wrong = 0; wrong < 3; wrong++) {
            struct emu_config config = config_of(0, 64, 0, 2 | (wrong & 1 ? 8 : 0), extended);
            struct bed bed;
            bed_open_with(&bed, &config);
            uint8_t *separate = fh_alloc(&bed.host, 4096);
            struct pi_format format = {.block_size = 512, .metadata = 64, .type = 2, .first = wrong & 1};
            struct pi_blocks blocks = {bed.data, separate, 512, 64, N};
            if (extended)
                blocks = (struct pi_blocks){bed.data, bed.data + 512, 576, 576, N};
            struct pi_tags tags = {0x1234, 0xffff, 7};
            memset(bed.data, 0x5a, N * 576);
            memset(separate, 0x77, N * 64);
            pi_generate(&format, &blocks, &tags);
            EQUAL(bed_io(&bed, command(&bed, IO_WRITE, separate, 7, 7)), 0);
            uint8_t *pi = blocks.meta + 2 * blocks.meta_stride + (format.first ? 0 : 56);
            pi[wrong == 0 ? 0 : wrong == 1 ? 2 : 7] ^= 1;
            EQUAL(bed_io(&bed, command(&bed, IO_WRITE, separate, 7, 7)), statuses[wrong]);
            EQUAL(bed_io(&bed, command(&bed, IO_WRITE, separate, 0, 7)), 0);
            EQUAL(bed_io(&bed, command(&bed, IO_READ, separate, 0, 7)), 0);
            EQUAL(bed_io(&bed, command(&bed, IO_READ, separate, 7, 7)), statuses[wrong]);
            error_is_at(&bed, 102);
            bed_close(&bed);
        }
    }
}

TEST(blocks_that_were_never_written_are_not_checked)
{
    struct emu_config config = config_of(0, 8, 0, 1, false);
    struct bed bed;
    bed_open_with(&bed, &config);
    uint8_t *meta = fh_alloc(&bed.host, 4096);
    EQUAL(bed_io(&bed, command(&bed, IO_READ, meta, 7, 100)), 0);
    for (unsigned i = 0; i < N * 8; i++)
        EQUAL(meta[i], 0xff);
    EQUAL(bed_io(&bed, command(&bed, IO_WRITE_ZEROES, meta, 8, 100)), 0);
    EQUAL(bed_io(&bed, command(&bed, IO_READ, meta, 7, 100)), 0);
    EQUAL(meta[2] << 8 | meta[3], 0x1234);
    bed_close(&bed);
}

TEST(type_3_keeps_its_reference_tag_and_storage_tags_are_checked)
{
    struct emu_config config = config_of(2, 16, 16, 3, false);
    struct bed bed;
    bed_open_with(&bed, &config);
    uint8_t *meta = fh_alloc(&bed.host, 4096);
    EQUAL(bed_io(&bed, command(&bed, IO_WRITE, meta, 8, 55)), SC_INVALID_NAMESPACE); /* LBAFEE is not set */
    extend(&bed);
    struct nvme_sqe sqe = command(&bed, IO_WRITE, meta, 8, 55);
    sqe.cdw3 = 0xbeef;
    EQUAL(bed_io(&bed, sqe), 0);
    EQUAL(bed_io(&bed, command(&bed, IO_READ, meta, 1, 55)), SC_PROTECTION_INFO);
    sqe = command(&bed, IO_READ, meta, 4, 55);
    sqe.cdw12 |= 1u << 24;
    EQUAL(bed_io(&bed, sqe), SC_STORAGE_TAG);
    sqe.cdw3 = 0xbeef;
    EQUAL(bed_io(&bed, sqe), 0);
    EQUAL(meta[16 + 15], 55); /* the second block's, too */
    bed_close(&bed);
}
