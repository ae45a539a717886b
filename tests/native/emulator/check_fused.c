/* Fused operations and Copy, as a host that breaks their rules sees them. */
#include "check.h"

static struct emu_config fused_config(void)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 16u << 20, 512);
    config.extras.fused_blocks = 4;
    config.extras.copy_formats = 0xf;
    return config;
}

static struct nvme_sqe half(struct bed *bed, unsigned opcode, unsigned fuse, uint64_t lba, uint32_t blocks)
{
    struct nvme_sqe sqe = fh_rw(&bed->host, (uint8_t)opcode, lba, blocks, bed->data, blocks * 512);
    sqe.flags = (uint8_t)fuse;
    return sqe;
}

/* Both by one doorbell; the statuses in the order of the commands. */
static void pair(struct bed *bed, struct nvme_sqe first, struct nvme_sqe second, uint16_t status[2])
{
    struct nvme_cqe cqe;
    uint16_t cid = fh_push(&bed->io, first);
    fh_push(&bed->io, second);
    fh_ring(&bed->host, &bed->io);
    for (unsigned i = 0; i < 2; i++) {
        CHECK(fh_wait(&bed->host, &bed->io, &cqe));
        status[cqe.cid != cid] = cqe.status >> 1 & (uint16_t)~SC_MORE;
    }
}

TEST(a_fused_pair_is_executed_or_fails_as_a_whole)
{
    struct emu_config config = fused_config();
    struct bed bed;
    uint16_t status[2];
    bed_open_with(&bed, &config);
    memset(bed.data, 0, 4096);
    pair(&bed, half(&bed, IO_COMPARE, 1, 8, 4), half(&bed, IO_WRITE, 2, 8, 4), status);
    EQUAL(status[0], SC_SUCCESS);
    EQUAL(status[1], SC_SUCCESS);
    memset(bed.data, 1, 4096);
    pair(&bed, half(&bed, IO_COMPARE, 1, 8, 4), half(&bed, IO_WRITE, 2, 8, 4), status);
    EQUAL(status[0], SC_COMPARE_FAILURE);
    EQUAL(status[1], SC_FUSED_FAILED);
    CHECK(bed_reads(&bed, 8, 4, 0));
    /* Over ACWU, other blocks, other commands. */
    pair(&bed, half(&bed, IO_COMPARE, 1, 8, 5), half(&bed, IO_WRITE, 2, 8, 5), status);
    EQUAL(status[0], SC_ATOMIC_WRITE_UNIT);
    EQUAL(status[1], SC_ATOMIC_WRITE_UNIT);
    pair(&bed, half(&bed, IO_COMPARE, 1, 8, 1), half(&bed, IO_WRITE, 2, 9, 1), status);
    EQUAL(status[0], SC_INVALID_FIELD);
    pair(&bed, half(&bed, IO_WRITE, 1, 8, 1), half(&bed, IO_WRITE, 2, 8, 1), status);
    EQUAL(status[1], SC_INVALID_FIELD);
    CHECK(bed_reads(&bed, 8, 4, 0));
    bed_close(&bed);
}

TEST(halves_of_fused_pairs_are_aborted)
{
    struct emu_config config = fused_config();
    struct bed bed;
    uint16_t status[2];
    bed_open_with(&bed, &config);
    /* A doorbell for each half: the first was alone. */
    EQUAL(bed_io(&bed, half(&bed, IO_COMPARE, 1, 0, 1)), SC_FUSED_MISSING);
    EQUAL(bed_io(&bed, half(&bed, IO_WRITE, 2, 0, 1)), SC_FUSED_MISSING);
    /* Another command between them, or two firsts. */
    pair(&bed, half(&bed, IO_COMPARE, 1, 0, 1), half(&bed, IO_READ, 0, 0, 1), status);
    EQUAL(status[0], SC_FUSED_MISSING);
    EQUAL(status[1], SC_SUCCESS);
    pair(&bed, half(&bed, IO_COMPARE, 1, 0, 1), half(&bed, IO_COMPARE, 1, 0, 1), status);
    EQUAL(status[0], SC_FUSED_MISSING);
    EQUAL(status[1], SC_FUSED_MISSING);
    EQUAL(bed_io(&bed, half(&bed, IO_COMPARE, 3, 0, 1)), SC_INVALID_FIELD);
    bed_close(&bed);
}

TEST(fused_operations_that_are_not_offered_are_an_invalid_field)
{
    struct bed bed;
    bed_open(&bed);
    EQUAL(bed_io(&bed, half(&bed, IO_COMPARE, 1, 0, 1)), SC_INVALID_FIELD);
    bed_close(&bed);
}

static uint16_t copy(struct bed *bed, uint32_t cdw12, const void *entries, size_t nbytes)
{
    memcpy(bed->data, entries, nbytes);
    struct nvme_sqe sqe = {.opcode = IO_COPY, .nsid = 1, .cdw10 = 1000, .cdw12 = cdw12};
    sqe.prp1 = fh_iova(&bed->host, bed->data);
    return bed_io(bed, sqe);
}

TEST(copy_refuses_what_its_formats_forbid)
{
    struct emu_config config = fused_config();
    struct bed bed;
    uint8_t entry[40] = {0};
    bed_open_with(&bed, &config);
    EQUAL(bed_write(&bed, 0, 1, 7), SC_SUCCESS);
    EQUAL(copy(&bed, 0, entry, 32), SC_SUCCESS);
    CHECK(bed_reads(&bed, 1000, 1, 7));
    EQUAL(copy(&bed, 1u << 8, entry, 40), SC_SUCCESS);
    EQUAL(copy(&bed, 4u << 8, entry, 40), SC_INVALID_FIELD); /* no such format */
    EQUAL(copy(&bed, 2u << 8, entry, 32), SC_INVALID_FIELD); /* the host hasn't enabled it */
    memset(bed.data, 0, 512);
    bed.data[4] = 1u << 2;
    struct nvme_sqe behaviour = {.opcode = ADMIN_SET_FEATURES, .cdw10 = FEAT_HOST_BEHAVIOUR};
    behaviour.prp1 = fh_iova(&bed.host, bed.data);
    EQUAL(bed_admin(&bed, behaviour, NULL), SC_SUCCESS);
    EQUAL(copy(&bed, 2u << 8, entry, 32), SC_INVALID_NAMESPACE); /* of namespace 0 */
    entry[0] = 1;
    EQUAL(copy(&bed, 2u << 8, entry, 32), SC_SUCCESS);
    EQUAL(copy(&bed, 8u << 12, entry, 32), SC_PROTECTION_INFO); /* there is none */
    bed_close(&bed);
}
