/* The NVM commands, on RAM, file and null. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

TEST(blocks_read_as_they_were_written)
{
    struct bed bed;
    bed_open(&bed);
    CHECK(bed_reads(&bed, 100, 16, 0));
    EQUAL(bed_write(&bed, 100, 16, 0x5a), 0);
    CHECK(bed_reads(&bed, 100, 16, 0x5a));
    CHECK(bed_reads(&bed, 99, 1, 0));
    CHECK(bed_reads(&bed, 116, 1, 0));
    EQUAL(bed_write(&bed, 32767, 1, 1), 0);
    EQUAL(bed_write(&bed, 32767, 2, 1), SC_LBA_RANGE);
    EQUAL(bed_write(&bed, 32768, 1, 1), SC_LBA_RANGE);
    EQUAL(bed_write(&bed, UINT64_MAX, 2, 1), SC_LBA_RANGE);
    bed_close(&bed);
}

TEST(fields_that_have_no_meaning_here_are_refused)
{
    struct bed bed;
    bed_open(&bed);
    struct nvme_sqe sqe = fh_rw(&bed.host, IO_WRITE, 0, 1, bed.data, 512);
    sqe.cdw12 |= 1u << 29; /* PRACT */
    EQUAL(bed_io(&bed, sqe), SC_PROTECTION_INFO);
    sqe.cdw12 = 1u << 20; /* streams */
    EQUAL(bed_io(&bed, sqe), SC_INVALID_FIELD);
    sqe.cdw12 = 1u << 31; /* limited retry: fine */
    EQUAL(bed_io(&bed, sqe), 0);
    sqe.nsid = 0;
    EQUAL(bed_io(&bed, sqe), SC_INVALID_NAMESPACE);
    sqe.nsid = 2;
    EQUAL(bed_io(&bed, sqe), SC_INVALID_FIELD);
    sqe.nsid = NSID_ALL;
    EQUAL(bed_io(&bed, sqe), SC_INVALID_NAMESPACE);
    EQUAL(bed_io(&bed, (struct nvme_sqe){.opcode = 0x7f, .nsid = 1}), SC_INVALID_OPCODE);
    EQUAL(bed_io(&bed, (struct nvme_sqe){.opcode = IO_FLUSH, .nsid = NSID_ALL}), 0);
    bed_close(&bed);
}

static void exercise(struct bed *bed)
{
    EQUAL(bed_write(bed, 0, 16, 0x11), 0);
    EQUAL(bed_write(bed, 16, 16, 0x22), 0);
    /* compare */
    memset(bed->data, 0x11, 8192);
    EQUAL(bed_io(bed, fh_rw(&bed->host, IO_COMPARE, 0, 16, bed->data, 8192)), 0);
    bed->data[8191] = 0;
    EQUAL(bed_io(bed, fh_rw(&bed->host, IO_COMPARE, 0, 16, bed->data, 8192)), SC_COMPARE_FAILURE);
    /* write zeroes, with and without deallocation */
    struct nvme_sqe zeroes = {.opcode = IO_WRITE_ZEROES, .nsid = 1, .cdw10 = 1, .cdw12 = 1};
    EQUAL(bed_io(bed, zeroes), 0);
    CHECK(bed_reads(bed, 0, 1, 0x11) && bed_reads(bed, 1, 2, 0) && bed_reads(bed, 3, 13, 0x11));
    zeroes.cdw10 = 0;
    zeroes.cdw12 = 15 | 1u << 25;
    EQUAL(bed_io(bed, zeroes), 0);
    CHECK(bed_reads(bed, 0, 16, 0) && bed_reads(bed, 16, 16, 0x22));
    zeroes.cdw10 = 32767;
    EQUAL(bed_io(bed, zeroes), SC_LBA_RANGE);
    /* deallocate: two ranges, then one that is out of range, which must leave the others alone */
    uint32_t ranges[8] = {0, 2, 17, 0, 0, 1, 30, 0};
    memcpy(bed->data, ranges, sizeof(ranges));
    struct nvme_sqe dsm = {.opcode = IO_DSM, .nsid = 1, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = 1, .cdw11 = 4};
    EQUAL(bed_io(bed, dsm), 0);
    CHECK(bed_reads(bed, 16, 1, 0x22) && bed_reads(bed, 17, 2, 0) && bed_reads(bed, 19, 11, 0x22) &&
          bed_reads(bed, 30, 1, 0));
    ranges[2] = 20;
    ranges[6] = 32768;
    memcpy(bed->data, ranges, sizeof(ranges));
    EQUAL(bed_io(bed, dsm), SC_LBA_RANGE);
    CHECK(bed_reads(bed, 20, 1, 0x22));
    /* copy: blocks 16 and 20-21 to 1000 */
    struct {
        uint64_t reserved, lba;
        uint16_t nlb, rest[7];
    } sources[2] = {{.lba = 16}, {.lba = 20, .nlb = 1}};
    _Static_assert(sizeof(sources[0]) == 32, "source range entry");
    memcpy(bed->data, sources, sizeof(sources));
    struct nvme_sqe copy = {
        .opcode = IO_COPY, .nsid = 1, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = 1000, .cdw12 = 1};
    uint32_t result = 9;
    EQUAL(fh_do(&bed->host, &bed->io, copy, &result), 0);
    CHECK(bed_reads(bed, 1000, 3, 0x22) && bed_reads(bed, 1003, 1, 0));
    sources[1].lba = 32768;
    memcpy(bed->data, sources, sizeof(sources));
    EQUAL(fh_do(&bed->host, &bed->io, copy, &result), SC_LBA_RANGE);
    EQUAL(result, 1);
    sources[1] = sources[0];
    sources[1].nlb = 4096;
    memcpy(bed->data, sources, sizeof(sources));
    EQUAL(bed_io(bed, copy), SC_COMMAND_SIZE);
    copy.cdw12 |= 1 << 8;
    EQUAL(bed_io(bed, copy), SC_INVALID_FIELD);
    /* uncorrectable blocks until they are written */
    EQUAL(bed_io(bed, (struct nvme_sqe){.opcode = IO_WRITE_UNCORRECTABLE, .nsid = 1, .cdw10 = 70, .cdw12 = 1}), 0);
    EQUAL(bed_io(bed, fh_rw(&bed->host, IO_READ, 64, 8, bed->data, 4096)), SC_READ_ERROR);
    EQUAL(bed_io(bed, (struct nvme_sqe){.opcode = IO_VERIFY, .nsid = 1, .cdw10 = 60, .cdw12 = 15}), SC_READ_ERROR);
    CHECK(bed_reads(bed, 64, 6, 0) && bed_reads(bed, 72, 8, 0));
    EQUAL(bed_write(bed, 70, 1, 3), 0);
    EQUAL(bed_io(bed, fh_rw(&bed->host, IO_READ, 71, 1, bed->data, 512)), SC_READ_ERROR);
    EQUAL(bed_write(bed, 71, 1, 3), 0);
    EQUAL(bed_io(bed, (struct nvme_sqe){.opcode = IO_VERIFY, .nsid = 1, .cdw10 = 60, .cdw12 = 15}), 0);
    CHECK(bed_reads(bed, 70, 2, 3));
}

TEST(every_command_on_ram)
{
    struct bed bed;
    bed_open(&bed);
    exercise(&bed);
    bed_close(&bed);
}

static struct emu_config file_config(char *path)
{
    struct emu_config config = fh_config(EMU_MEDIUM_FILE, 16u << 20, 512);
    strcpy(path, "/tmp/emulator-check-XXXXXX");
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    config.namespaces[0].path = path;
    return config;
}

TEST(every_command_on_a_file)
{
    char path[64];
    struct emu_config config = file_config(path);
    struct bed bed;
    bed_open_with(&bed, &config);
    exercise(&bed);
    bed_close(&bed);
    int fd = open(path, O_RDWR); /* what was written is what the file holds, at its place */
    uint8_t block[512];
    CHECK(pread(fd, block, 512, 1000 * 512) == 512);
    EQUAL(block[17], 0x22);
    block[17] = 0x23;
    CHECK(pwrite(fd, block, 512, 1000 * 512) == 512);
    bed_open_with(&bed, &config);
    CHECK(!bed_reads(&bed, 1000, 1, 0x22));
    EQUAL(bed.data[17], 0x23);
    /* A truncated file is a medium error, not a crash. */
    CHECK(!ftruncate(fd, 8u << 20));
    EQUAL(bed_io(&bed, fh_rw(&bed.host, IO_READ, 20000, 1, bed.data, 512)), SC_READ_ERROR);
    close(fd);
    unlink(path);
    bed_close(&bed);
}

TEST(flush_and_fua_on_a_file_complete_through_the_helper)
{
    char path[64];
    struct emu_config config = file_config(path);
    struct bed bed;
    bed_open_with(&bed, &config);
    struct nvme_sqe flush = {.opcode = IO_FLUSH, .nsid = 1}, fua = fh_rw(&bed.host, IO_WRITE, 0, 1, bed.data, 512);
    fua.cdw12 |= 1u << 30;
    for (unsigned i = 0; i < 20; i++) {
        fh_push(&bed.io, flush);
        fh_push(&bed.io, fua);
    }
    fh_ring(&bed.host, &bed.io);
    struct nvme_cqe cqe;
    bool seen[40] = {0};
    for (unsigned i = 0; i < 40; i++) {
        CHECK(fh_wait(&bed.host, &bed.io, &cqe));
        EQUAL(cqe.status >> 1, 0);
        CHECK(cqe.cid < 40 && !seen[cqe.cid]);
        seen[cqe.cid] = true;
    }
    EQUAL(bed_io(&bed, (struct nvme_sqe){.opcode = IO_FLUSH, .nsid = NSID_ALL}), 0);
    /* Without the write cache each write is durable. */
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_SET_FEATURES, .cdw10 = FEAT_WRITE_CACHE}, NULL), 0);
    EQUAL(bed_write(&bed, 5, 1, 5), 0);
    /* A reset while the helper works: its completion goes nowhere. */
    for (unsigned i = 0; i < 10; i++)
        fh_push(&bed.io, flush);
    fh_ring(&bed.host, &bed.io);
    bed_turn(&bed, 1);
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0);
    EQUAL(fh_enable(&bed.host, 8), CSTS_RDY);
    EQUAL(fh_create_io(&bed.host, &bed.io, 1, 16), 0);
    usleep(20000);
    bed_turn(&bed, 10);
    CHECK(!fh_reap(&bed.host, &bed.io, &cqe));
    /* Normal shutdown syncs, then reports completion. */
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, CC_EN | 6 << 16 | 4 << 20 | 1 << 14);
    for (unsigned i = 0; i < 100000 && (emu_csts(bed.host.ctrl) & CSTS_SHST_MASK) != CSTS_SHST_COMPLETE; i++) {
        emu_ctrl_poll(bed.host.ctrl);
        usleep(10);
    }
    EQUAL(emu_csts(bed.host.ctrl), CSTS_RDY | CSTS_SHST_COMPLETE);
    bed_close(&bed);
    unlink(path);
}

TEST(the_null_medium_moves_nothing_but_checks_everything)
{
    struct emu_config config = fh_config(EMU_MEDIUM_NULL, 1ull << 45, 512);
    struct bed bed;
    bed_open_with(&bed, &config);
    memset(bed.data, 0x77, 4096);
    EQUAL(bed_io(&bed, fh_rw(&bed.host, IO_READ, 1ull << 35, 8, bed.data, 4096)), 0);
    EQUAL(bed.data[0], 0x77);
    EQUAL(bed_io(&bed, fh_rw(&bed.host, IO_READ, 1ull << 36, 8, bed.data, 4096)), SC_LBA_RANGE);
    struct nvme_sqe sqe = fh_rw(&bed.host, IO_READ, 0, 8, bed.data, 4096);
    sqe.prp1 = 0x1000;
    EQUAL(bed_io(&bed, sqe), SC_DATA_TRANSFER);
    bed_close(&bed);
}

static uint16_t reserve(struct bed *bed, uint8_t opcode, uint32_t cdw10, uint64_t key, uint64_t next)
{
    uint64_t keys[2] = {key, next};
    memcpy(bed->data, keys, sizeof(keys));
    return bed_io(
        bed, (struct nvme_sqe){.opcode = opcode, .nsid = 1, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = cdw10});
}

static void become_host(struct bed *bed, uint64_t id)
{
    emu_ctrl_write(bed->host.ctrl, REG_CC, 4, 0);
    EQUAL(fh_enable(&bed->host, 32), CSTS_RDY);
    EQUAL(fh_create_io(&bed->host, &bed->io, 1, 32), 0);
    memcpy(bed->data, &id, 8);
    struct nvme_sqe sqe = {.opcode = ADMIN_SET_FEATURES, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = FEAT_HOST_ID};
    EQUAL(bed_admin(bed, sqe, NULL), 0);
}

TEST(a_reservation_report_before_any_host_identifier_has_either_format)
{
    struct bed bed;
    bed_open(&bed);
    struct nvme_sqe report = {.opcode = IO_RESV_REPORT, .nsid = 1, .prp1 = fh_iova(&bed.host, bed.data), .cdw10 = 1023};
    EQUAL(bed_io(&bed, report), 0);
    report.cdw11 = 1; /* EDS */
    EQUAL(bed_io(&bed, report), 0);
    become_host(&bed, 0xa);
    EQUAL(bed_io(&bed, report), SC_HOST_ID_INCONSISTENT);
    bed_close(&bed);
}

TEST(reservations_keep_other_hosts_out)
{
    struct bed bed;
    bed_open(&bed);
    become_host(&bed, 0xa);
    EQUAL(reserve(&bed, IO_RESV_ACQUIRE, 1 << 8, 1, 0), SC_RESERVATION_CONFLICT); /* not registered */
    EQUAL(reserve(&bed, IO_RESV_REGISTER, 0, 0, 111), 0);
    EQUAL(reserve(&bed, IO_RESV_ACQUIRE, 1 << 8, 112, 0), SC_RESERVATION_CONFLICT);
    EQUAL(reserve(&bed, IO_RESV_ACQUIRE, 1 << 8, 111, 0), 0); /* write exclusive */
    EQUAL(bed_write(&bed, 0, 1, 1), 0);
    become_host(&bed, 0xb);
    EQUAL(bed_write(&bed, 0, 1, 1), SC_RESERVATION_CONFLICT);
    CHECK(bed_reads(&bed, 0, 1, 1));
    EQUAL(reserve(&bed, IO_RESV_REGISTER, 0, 0, 222), 0);
    EQUAL(bed_write(&bed, 0, 1, 1), SC_RESERVATION_CONFLICT);
    struct nvme_sqe report = {.opcode = IO_RESV_REPORT, .nsid = 1, .prp1 = fh_iova(&bed.host, bed.data), .cdw10 = 1023};
    EQUAL(bed_io(&bed, report), 0);
    EQUAL(bed.data[4], 1);
    EQUAL(bed.data[5], 2);
    EQUAL(bed.data[24 + 2], 1);
    EQUAL(bed.data[24 + 8], 0xa);
    EQUAL(bed.data[24 + 16], 111);
    EQUAL(bed.data[48 + 2], 0);
    EQUAL(bed.data[48 + 16], 222);
    report.cdw11 = 1;
    EQUAL(bed_io(&bed, report), SC_HOST_ID_INCONSISTENT);
    EQUAL(reserve(&bed, IO_RESV_ACQUIRE, 1 | 2 << 8, 222, 111), 0); /* preempt: exclusive access is ours now */
    EQUAL(bed_write(&bed, 0, 1, 2), 0);
    become_host(&bed, 0xa);
    EQUAL(bed_io(&bed, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512)), SC_RESERVATION_CONFLICT);
    become_host(&bed, 0xb);
    EQUAL(reserve(&bed, IO_RESV_RELEASE, 1 << 8, 222, 0), SC_INVALID_FIELD); /* not that type */
    EQUAL(reserve(&bed, IO_RESV_RELEASE, 2 << 8, 222, 0), 0);
    EQUAL(reserve(&bed, IO_RESV_REGISTER, 1, 222, 0), 0);
    become_host(&bed, 0xa);
    EQUAL(bed_write(&bed, 0, 1, 1), 0);
    bed_close(&bed);
}
