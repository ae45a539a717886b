/* Zoned namespaces: states, limits, write pointers, append, reports. Zones of 64 KiB, 48 KiB of
 * which can be written. */
#include "check.h"

#define ZONE 128u
#define CAPACITY 96u

static void open_zoned(struct bed *bed, uint32_t max_open, uint32_t max_active)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 1u << 20, 512);
    config.extras.zoned = true;
    config.extras.zone_nbytes = ZONE * 512;
    config.extras.zone_capacity_nbytes = CAPACITY * 512;
    config.extras.max_open = max_open;
    config.extras.max_active = max_active;
    config.extras.zasl = 1;
    fh_open(&bed->host, &config, 8u << 20);
    EQUAL(fh_enable(&bed->host, 32), CSTS_RDY);
    emu_ctrl_write(bed->host.ctrl, REG_CC, 4, 0);
    emu_ctrl_write(bed->host.ctrl, REG_CC, 4, CC_EN | CC_CSS_ALL << 4 | 6 << 16 | 4 << 20);
    EQUAL(fh_create_io(&bed->host, &bed->io, 1, 64), 0);
    bed->data = fh_alloc(&bed->host, 64 * 4096);
}

static uint16_t send(struct bed *bed, uint64_t lba, uint32_t cdw13)
{
    struct nvme_sqe sqe = {.opcode = IO_ZONE_SEND, .nsid = 1, .cdw10 = (uint32_t)lba, .cdw13 = cdw13};
    return bed_io(bed, sqe);
}

static uint64_t report(struct bed *bed, uint64_t lba, uint32_t cdw13)
{
    struct nvme_sqe sqe = {.opcode = IO_ZONE_RECEIVE,
                           .nsid = 1,
                           .prp1 = fh_iova(&bed->host, bed->data),
                           .cdw10 = (uint32_t)lba,
                           .cdw12 = 1023,
                           .cdw13 = cdw13};
    uint64_t n;
    EQUAL(bed_io(bed, sqe), 0);
    memcpy(&n, bed->data, 8);
    return n;
}

static unsigned state(struct bed *bed, uint64_t zone)
{
    report(bed, zone * ZONE, 0);
    return bed->data[64 + 1] >> 4;
}

static uint64_t pointer(struct bed *bed, uint64_t zone)
{
    uint64_t wp;
    report(bed, zone * ZONE, 0);
    memcpy(&wp, bed->data + 64 + 24, 8);
    return wp;
}

static uint16_t append(struct bed *bed, uint64_t lba, uint32_t blocks, uint32_t *at)
{
    struct nvme_sqe sqe = fh_rw(&bed->host, IO_ZONE_APPEND, lba, blocks, bed->data, blocks * 512);
    return fh_do(&bed->host, &bed->io, sqe, at);
}

TEST(writes_go_where_the_write_pointer_is)
{
    struct bed bed;
    uint32_t at;
    open_zoned(&bed, 0, 0);
    EQUAL(state(&bed, 0), 1);
    EQUAL(bed_write(&bed, 1, 1, 7), SC_ZONE_INVALID_WRITE);
    EQUAL(bed_write(&bed, 0, 4, 7), 0);
    EQUAL(state(&bed, 0), 2);
    EQUAL(pointer(&bed, 0), 4);
    EQUAL(append(&bed, 1, 1, &at), SC_INVALID_FIELD);
    EQUAL(append(&bed, 0, 3, &at), 0);
    EQUAL(at, 4);
    EQUAL(append(&bed, 0, 16, &at), 0);
    EQUAL(append(&bed, 0, 17, &at), SC_INVALID_FIELD); /* ZASL: 8 KiB */
    for (unsigned lba = 23; lba < CAPACITY - 1; lba++)
        EQUAL(bed_write(&bed, lba, 1, 9), 0);
    EQUAL(bed_write(&bed, CAPACITY - 1, 2, 9), SC_ZONE_BOUNDARY);
    EQUAL(bed_write(&bed, CAPACITY - 1, 1, 9), 0);
    EQUAL(state(&bed, 0), 0xe);
    EQUAL(bed_write(&bed, 0, 1, 7), SC_ZONE_FULL);
    EQUAL(append(&bed, 0, 1, &at), SC_ZONE_FULL);
    CHECK(bed_reads(&bed, 23, 1, 9));
    EQUAL(send(&bed, 0, 4), 0);
    CHECK(bed_reads(&bed, 23, 1, 0));
    EQUAL(state(&bed, 0), 1);
    struct nvme_sqe bad = fh_rw(&bed.host, IO_WRITE, 0, 1, bed.data, 512);
    bad.prp1 = 0x10;
    EQUAL(bed_io(&bed, bad), SC_DATA_TRANSFER);
    EQUAL(pointer(&bed, 0), 0); /* nothing was written */
    bed_close(&bed);
}

TEST(open_and_active_zones_are_limited)
{
    struct bed bed;
    open_zoned(&bed, 2, 3);
    EQUAL(send(&bed, 0, 3), 0);
    EQUAL(state(&bed, 0), 3);
    EQUAL(bed_write(&bed, ZONE, 1, 1), 0);
    EQUAL(bed_write(&bed, 2 * ZONE, 1, 1), 0); /* the implicitly opened one is closed to make room */
    EQUAL(state(&bed, 1), 4);
    EQUAL(bed_write(&bed, 3 * ZONE, 1, 1), SC_TOO_MANY_ACTIVE);
    EQUAL(send(&bed, 2 * ZONE, 3), 0);
    EQUAL(bed_write(&bed, ZONE + 1, 1, 1), SC_TOO_MANY_OPEN);
    EQUAL(send(&bed, 2 * ZONE, 2), 0); /* finish */
    EQUAL(state(&bed, 2), 0xe);
    EQUAL(bed_write(&bed, ZONE + 1, 1, 1), 0);
    EQUAL(send(&bed, 0, 1), 0); /* closed with nothing in it: empty */
    EQUAL(state(&bed, 0), 1);
    EQUAL(send(&bed, 5 * ZONE, 1), SC_ZONE_TRANSITION);
    EQUAL(send(&bed, 5 * ZONE + 1, 4), SC_INVALID_FIELD);
    EQUAL(send(&bed, 0, 4 | 1 << 8), 0); /* reset all */
    EQUAL(report(&bed, 0, 1 << 8), 16);
    EQUAL(report(&bed, 8 * ZONE, 1 << 8), 8);
    EQUAL(report(&bed, 0, 5 << 8), 0);
    bed_close(&bed);
}

TEST(zoned_identify_says_what_there_is)
{
    struct bed bed;
    open_zoned(&bed, 2, 3);
    struct nvme_sqe sqe = {
        .opcode = ADMIN_IDENTIFY, .nsid = 1, .prp1 = fh_iova(&bed.host, bed.data), .cdw10 = 5, .cdw11 = 2u << 24};
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(bed.data[4], 2);
    EQUAL(bed.data[8], 1);
    EQUAL(bed.data[2816], ZONE);
    sqe.cdw10 = 7;
    sqe.nsid = 0;
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(bed.data[0], 1);
    sqe.cdw11 = 0;
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(bed.data[0], 0);
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_FORMAT, .nsid = 1, .cdw10 = 1}, NULL), 0);
    EQUAL(report(&bed, 0, 0), 16);
    bed_close(&bed);
}
