/* Features beyond a plain drive: namespace management, self-test, sanitize, firmware, logs, ANA,
 * the volatile write cache. */
#define _GNU_SOURCE
#include <pthread.h>

#include "check.h"

static struct emu_config everything(void)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 1u << 20, 512);
    config.extras = (struct emu_extras){
        .capacity = 4u << 20,
        .medium = EMU_MEDIUM_RAM,
        .self_test = true,
        .self_test_ns = SECOND / 50,
        .sanitize = true,
        .sanitize_ns = SECOND / 50,
        .firmware_slots = 3,
        .lba_status = true,
        .endurance = true,
        .telemetry = true,
        .persistent_events = true,
        .security = true,
        .write_cache = true,
        .ana_groups = 2,
    };
    return config;
}

static void open_all(struct bed *bed)
{
    struct emu_config config = everything();
    bed_open_with(bed, &config);
}

static uint16_t identify(struct bed *bed, uint8_t cns, uint32_t nsid)
{
    struct nvme_sqe sqe = {
        .opcode = ADMIN_IDENTIFY, .nsid = nsid, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = cns};
    return bed_admin(bed, sqe, NULL);
}

static uint64_t get(const struct bed *bed, unsigned at, unsigned nbytes)
{
    uint64_t value = 0;
    memcpy(&value, bed->data + at, nbytes);
    return value;
}

static uint16_t do_admin(struct bed *bed, uint8_t opcode, uint32_t nsid, uint32_t cdw10, uint32_t cdw11)
{
    struct nvme_sqe sqe = {
        .opcode = opcode, .nsid = nsid, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = cdw10, .cdw11 = cdw11};
    return bed_admin(bed, sqe, NULL);
}

static uint16_t create(struct bed *bed, uint64_t blocks, uint8_t flbas, uint32_t *nsid)
{
    memset(bed->data, 0, 4096);
    memcpy(bed->data, &blocks, 8);
    memcpy(bed->data + 8, &blocks, 8);
    bed->data[26] = flbas;
    struct nvme_sqe sqe = {.opcode = ADMIN_NS_MANAGEMENT, .prp1 = fh_iova(&bed->host, bed->data)};
    return bed_admin(bed, sqe, nsid);
}

static uint16_t attach(struct bed *bed, uint32_t nsid, uint32_t select, uint16_t controller)
{
    memset(bed->data, 0, 4096);
    bed->data[0] = 1;
    memcpy(bed->data + 2, &controller, 2);
    return do_admin(bed, ADMIN_NS_ATTACHMENT, nsid, select, 0);
}

TEST(a_plain_drive_has_none_of_it)
{
    static const uint8_t opcodes[] = {0x0d, 0x10, 0x11, 0x14, 0x15, 0x81, 0x82, 0x84, 0x86};
    static const uint8_t logs[] = {6, 7, 8, 9, 0xc, 0xd, 0xe, 0xf, 0x81};
    struct bed bed;
    bed_open(&bed);
    for (unsigned i = 0; i < sizeof(opcodes); i++)
        EQUAL(do_admin(&bed, opcodes[i], 1, 0, 0), SC_INVALID_OPCODE);
    for (unsigned i = 0; i < sizeof(logs); i++)
        EQUAL(bed_log(&bed, logs[i], 512, true), SC_LOG_PAGE_INVALID);
    bed_close(&bed);
}

TEST(what_is_offered_is_announced)
{
    struct bed bed;
    open_all(&bed);
    EQUAL(identify(&bed, 1, 0), 0);
    EQUAL(get(&bed, 256, 2) & 0x21d, 0x21d);           /* OACS */
    EQUAL(get(&bed, 92, 4), 1u << 8 | 0x6e00);         /* OAES */
    EQUAL(get(&bed, 328, 4) & 7, 7);                   /* SANICAP */
    EQUAL(bed.data[260], 3 << 1 | 1 << 4);             /* FRMW */
    EQUAL(bed.data[261] & 0x18, 0x18);                 /* LPA */
    EQUAL(bed.data[76], 8);                            /* CMIC */
    EQUAL(bed.data[525] & 1, 1);                       /* VWC */
    EQUAL(get(&bed, 280, 8), 4u << 20);                /* TNVMCAP */
    EQUAL(get(&bed, 296, 8), 3u << 20);
    EQUAL(bed_log(&bed, LOG_SUPPORTED, 1024, true), 0);
    EQUAL(get(&bed, 0x81 * 4, 4), 1);
    EQUAL(bed_log(&bed, LOG_EFFECTS, 4096, true), 0);
    EQUAL(get(&bed, ADMIN_NS_MANAGEMENT * 4, 4) & 8, 8);
    bed_close(&bed);
}

TEST(namespaces_are_created_attached_detached_and_deleted)
{
    struct bed bed;
    uint32_t nsid = 0;
    open_all(&bed);
    EQUAL(create(&bed, 16384, 0, &nsid), SC_NS_CAPACITY);
    EQUAL(create(&bed, 0, 0, &nsid), SC_INVALID_FIELD);
    EQUAL(create(&bed, 100, 2, &nsid), SC_FORMAT_INVALID);
    EQUAL(create(&bed, 101, 0, &nsid), 0);
    EQUAL(nsid, 2);
    EQUAL(identify(&bed, 0x00, 2), 0);
    EQUAL(get(&bed, 0, 8), 0); /* inactive */
    EQUAL(identify(&bed, 0x11, 2), 0);
    EQUAL(get(&bed, 0, 8), 101);
    EQUAL(identify(&bed, 0x10, 0), 0);
    EQUAL(get(&bed, 0, 8), 1 | 2ull << 32);
    EQUAL(identify(&bed, 0x12, 2), 0);
    EQUAL(get(&bed, 0, 2), 0);
    EQUAL(attach(&bed, 2, 1, 0), SC_NS_NOT_ATTACHED);
    EQUAL(attach(&bed, 2, 0, 5), SC_CONTROLLER_LIST);
    EQUAL(attach(&bed, 2, 0, 0), 0);
    EQUAL(attach(&bed, 2, 0, 0), SC_NS_ATTACHED);
    struct nvme_sqe sqe = fh_rw(&bed.host, IO_READ, 100, 1, bed.data, 512);
    sqe.nsid = 2;
    EQUAL(bed_io(&bed, sqe), 0);
    sqe.cdw10 = 101;
    EQUAL(bed_io(&bed, sqe), SC_LBA_RANGE);
    EQUAL(attach(&bed, 2, 1, 0), 0);
    EQUAL(bed_io(&bed, sqe), SC_INVALID_FIELD);
    EQUAL(do_admin(&bed, ADMIN_NS_MANAGEMENT, 2, 1, 0), 0);
    EQUAL(do_admin(&bed, ADMIN_NS_MANAGEMENT, 2, 1, 0), SC_INVALID_FIELD);
    EQUAL(do_admin(&bed, ADMIN_NS_MANAGEMENT, NSID_ALL, 1, 0), 0);
    EQUAL(identify(&bed, 0x02, 0), 0);
    EQUAL(get(&bed, 0, 4), 0);
    EQUAL(identify(&bed, 1, 0), 0);
    EQUAL(get(&bed, 296, 8), 4u << 20);
    bed_close(&bed);
}

TEST(a_self_test_has_progress_a_result_and_an_abort)
{
    struct bed bed;
    open_all(&bed);
    EQUAL(do_admin(&bed, ADMIN_SELF_TEST, NSID_ALL, 3, 0), SC_INVALID_FIELD);
    EQUAL(do_admin(&bed, ADMIN_SELF_TEST, NSID_ALL, 2, 0), 0);
    EQUAL(do_admin(&bed, ADMIN_SELF_TEST, NSID_ALL, 1, 0), SC_SELF_TEST_IN_PROGRESS);
    EQUAL(bed_log(&bed, LOG_SELF_TEST, 564, true), 0);
    EQUAL(bed.data[0], 2);
    CHECK(bed.data[1] < 100);
    EQUAL(bed.data[4], 0xf);
    EQUAL(do_admin(&bed, ADMIN_SELF_TEST, 0, 15, 0), 0);
    EQUAL(do_admin(&bed, ADMIN_SELF_TEST, 1, 1, 0), 0);
    do
        EQUAL(bed_log(&bed, LOG_SELF_TEST, 564, true), 0);
    while (bed.data[0]);
    EQUAL(bed.data[4], 1 << 4);          /* the short one passed */
    EQUAL(bed.data[4 + 28], 2 << 4 | 1); /* the extended one was aborted */
    EQUAL(bed.data[4 + 56], 0xf);
    bed_close(&bed);
}

TEST(a_sanitize_erases_and_nothing_else_happens_meanwhile)
{
    struct bed bed;
    open_all(&bed);
    EQUAL(bed_write(&bed, 5, 1, 7), 0);
    EQUAL(do_admin(&bed, ADMIN_SANITIZE, 0, 0, 0), SC_INVALID_FIELD);
    EQUAL(do_admin(&bed, ADMIN_SANITIZE, 0, 3 | 1 << 4 | 1 << 9, 0x5a5a5a5a), 0); /* overwrite, kept */
    EQUAL(do_admin(&bed, ADMIN_SANITIZE, 0, 2, 0), SC_SANITIZE_IN_PROGRESS);
    EQUAL(do_admin(&bed, ADMIN_FORMAT, 1, 0, 0), SC_SANITIZE_IN_PROGRESS);
    EQUAL(bed_write(&bed, 5, 1, 7), SC_SANITIZE_IN_PROGRESS);
    EQUAL(bed_log(&bed, LOG_SANITIZE, 512, true), 0);
    EQUAL(get(&bed, 2, 2) & 7, 2);
    do
        EQUAL(bed_log(&bed, LOG_SANITIZE, 512, true), 0);
    while (get(&bed, 0, 2) != 0xffff);
    EQUAL(get(&bed, 2, 2), 1 | 1 << 3 | 1 << 8); /* completed, one pass, all erased */
    CHECK(bed_reads(&bed, 5, 1, 0x5a));
    EQUAL(bed_write(&bed, 5, 1, 7), 0);
    EQUAL(bed_log(&bed, LOG_SANITIZE, 512, true), 0);
    EQUAL(get(&bed, 2, 2) >> 8 & 1, 0);
    bed_close(&bed);
}

static void download(struct bed *bed, const char *revision)
{
    memset(bed->data, 0x11, 8192);
    memcpy(bed->data, revision, 8);
    EQUAL(do_admin(bed, ADMIN_FIRMWARE_DOWNLOAD, 0, 1023, 0), 0);
    EQUAL(do_admin(bed, ADMIN_FIRMWARE_DOWNLOAD, 0, 1023, 0x400), 0);
}

TEST(firmware_is_downloaded_committed_and_activated)
{
    struct bed bed;
    open_all(&bed);
    EQUAL(do_admin(&bed, ADMIN_FIRMWARE_COMMIT, 0, 2 | 1 << 3, 0), SC_FIRMWARE_IMAGE); /* nothing downloaded */
    EQUAL(do_admin(&bed, ADMIN_FIRMWARE_DOWNLOAD, 0, 1023, 1), SC_INVALID_FIELD);      /* FWUG */
    download(&bed, "NEW     ");
    EQUAL(do_admin(&bed, ADMIN_FIRMWARE_DOWNLOAD, 0, 1023, 0x400), SC_OVERLAPPING_RANGE);
    EQUAL(do_admin(&bed, ADMIN_FIRMWARE_COMMIT, 0, 7 | 1 << 3, 0), SC_FIRMWARE_SLOT);
    EQUAL(do_admin(&bed, ADMIN_FIRMWARE_COMMIT, 0, 2 | 1 << 3, 0), 0);
    EQUAL(bed_log(&bed, LOG_FIRMWARE, 512, true), 0);
    EQUAL(bed.data[0], 1 | 2 << 4);
    CHECK(!memcmp(bed.data + 16, "NEW     ", 8));
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0);
    EQUAL(fh_enable(&bed.host, 32), CSTS_RDY);
    EQUAL(identify(&bed, 1, 0), 0);
    CHECK(!memcmp(bed.data + 64, "NEW     ", 8));
    download(&bed, "NOW     ");
    EQUAL(do_admin(&bed, ADMIN_FIRMWARE_COMMIT, 0, 3 << 3, 0), 0); /* the controller chooses the slot */
    EQUAL(bed_log(&bed, LOG_FIRMWARE, 512, true), 0);
    EQUAL(bed.data[0], 3);
    EQUAL(do_admin(&bed, ADMIN_FIRMWARE_COMMIT, 0, 1 | 3 << 3, 0), 0); /* back to slot 1 */
    EQUAL(bed_log(&bed, LOG_FIRMWARE, 512, true), 0);
    EQUAL(bed.data[0], 1);
    memset(bed.data, 0, 4096);
    EQUAL(do_admin(&bed, ADMIN_FIRMWARE_DOWNLOAD, 0, 1023, 0), 0);
    EQUAL(do_admin(&bed, ADMIN_FIRMWARE_COMMIT, 0, 2, 0), SC_FIRMWARE_IMAGE);
    bed_close(&bed);
}

static bool torn;
static uint64_t seed;

static void *ask(void *arg)
{
    struct bed *bed = arg;
    EQUAL(emu_fault_power_loss(bed->host.ctrl, torn, seed, 5 * SECOND), 0);
    EQUAL(emu_fault_removed(bed->host.ctrl, false, 5 * SECOND), 0);
    return NULL;
}

/* Power is lost and restored; the host starts again. */
static void lose_power(struct bed *bed)
{
    pthread_t asker;
    pthread_create(&asker, NULL, ask, bed);
    while (pthread_tryjoin_np(asker, NULL))
        emu_ctrl_poll(bed->host.ctrl);
    EQUAL(fh_enable(&bed->host, 32), CSTS_RDY);
    EQUAL(fh_create_io(&bed->host, &bed->io, 1, 64), 0);
}

TEST(a_power_loss_takes_what_was_not_flushed)
{
    struct bed bed;
    open_all(&bed);
    EQUAL(bed_write(&bed, 0, 1, 1), 0);
    EQUAL(bed_io(&bed, (struct nvme_sqe){.opcode = IO_FLUSH, .nsid = 1}), 0);
    EQUAL(bed_write(&bed, 0, 1, 2), 0);
    EQUAL(bed_write(&bed, 8, 1, 3), 0);
    memset(bed.data, 4, 512);
    struct nvme_sqe fua =
        fh_rw(&bed.host, IO_WRITE, 1, 1, bed.data, 512); /* in the page of block 0, which stays in the cache */
    fua.cdw12 |= 1u << 30;
    EQUAL(bed_io(&bed, fua), 0);
    CHECK(bed_reads(&bed, 0, 1, 2));
    lose_power(&bed);
    CHECK(bed_reads(&bed, 0, 1, 1));
    CHECK(bed_reads(&bed, 1, 1, 4));
    CHECK(bed_reads(&bed, 8, 1, 0));
    EQUAL(do_admin(&bed, ADMIN_SET_FEATURES, 0, FEAT_WRITE_CACHE, 0), 0);
    EQUAL(bed_write(&bed, 8, 1, 5), 0);
    lose_power(&bed);
    CHECK(bed_reads(&bed, 8, 1, 5));
    bed_close(&bed);
}

static uint16_t deallocate(struct bed *bed, uint64_t lba, uint32_t blocks)
{
    memset(bed->data, 0, 16);
    memcpy(bed->data + 4, &blocks, sizeof(blocks));
    memcpy(bed->data + 8, &lba, sizeof(lba));
    return bed_io(bed,
                  (struct nvme_sqe){.opcode = IO_DSM, .nsid = 1, .prp1 = fh_iova(&bed->host, bed->data), .cdw11 = 4});
}

TEST(a_power_loss_does_not_bring_back_what_was_erased)
{
    struct bed bed;
    open_all(&bed);
    EQUAL(bed_write(&bed, 0, 1, 1), 0);
    EQUAL(bed_io(&bed, (struct nvme_sqe){.opcode = IO_FLUSH, .nsid = 1}), 0);
    EQUAL(deallocate(&bed, 0, 1), 0);
    CHECK(bed_reads(&bed, 0, 1, 0));
    lose_power(&bed);
    CHECK(bed_reads(&bed, 0, 1, 1)); /* as the cache held it back */
    EQUAL(do_admin(&bed, ADMIN_SET_FEATURES, 0, FEAT_WRITE_CACHE, 0), 0);
    EQUAL(bed_write(&bed, 1, 1, 2), 0);
    EQUAL(deallocate(&bed, 0, 1), 0);
    lose_power(&bed);
    CHECK(bed_reads(&bed, 0, 1, 0));
    CHECK(bed_reads(&bed, 1, 1, 2));
    EQUAL(do_admin(&bed, ADMIN_FORMAT, 1, 0, 0), 0);
    lose_power(&bed);
    CHECK(bed_reads(&bed, 1, 1, 0));
    bed_close(&bed);
}

/* Which of blocks 0..64 are new (2) after a power loss, as bits; each is old or new as a whole. */
static uint64_t tear(uint64_t with, bool backwards)
{
    struct bed bed;
    uint64_t new = 0;
    open_all(&bed);
    for (unsigned i = 0; i < 64; i++)
        EQUAL(bed_write(&bed, i, 1, 1), 0);
    EQUAL(bed_io(&bed, (struct nvme_sqe){.opcode = IO_FLUSH, .nsid = 1}), 0);
    for (unsigned i = 0; i < 64; i++)
        EQUAL(bed_write(&bed, backwards ? 63 - i : i, 1, 2), 0);
    torn = true;
    seed = with;
    lose_power(&bed);
    torn = false;
    for (unsigned i = 0; i < 64; i++) {
        bool is_new = bed_reads(&bed, i, 1, 2);
        CHECK(is_new || bed_reads(&bed, i, 1, 1));
        new |= (uint64_t)is_new << i;
    }
    lose_power(&bed);
    for (unsigned i = 0; i < 64; i++)
        CHECK(bed_reads(&bed, i, 1, new >> i & 1 ? 2 : 1)); /* what it left is on the medium */
    bed_close(&bed);
    return new;
}

TEST(a_torn_power_loss_is_the_same_for_the_same_seed)
{
    uint64_t new = tear(7, false);
    CHECK(__builtin_popcountll(new) > 16 && __builtin_popcountll(new) < 48);
    EQUAL(tear(7, true), new);
    CHECK(tear(8, false) != new);
}

TEST(telemetry_has_generations)
{
    struct bed bed;
    open_all(&bed);
    struct nvme_sqe sqe = {.opcode = ADMIN_GET_LOG_PAGE,
                           .prp1 = fh_iova(&bed.host, bed.data),
                           .cdw10 = LOG_TELEMETRY_HOST | 1 << 8 | 255 << 16};
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(bed.data[381], 1);
    EQUAL(get(&bed, 12, 2), 10);
    EQUAL(get(&bed, 512, 4), 1u << 24 | 1u << 16);
    sqe.cdw10 &= ~(1u << 8);
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(bed.data[381], 1);
    EQUAL(bed_log(&bed, LOG_TELEMETRY_CONTROLLER, 512, false), 0);
    EQUAL(bed.data[382], 0);
    EQUAL(get(&bed, 12, 2), 0);
    bed_close(&bed);
}

TEST(persistent_events_are_read_in_a_context)
{
    struct bed bed;
    open_all(&bed);
    EQUAL(do_admin(&bed, ADMIN_FORMAT, 1, 0, 0), 0);
    struct nvme_sqe sqe = {
        .opcode = ADMIN_GET_LOG_PAGE, .prp1 = fh_iova(&bed.host, bed.data), .cdw10 = LOG_PERSISTENT | 1023 << 16};
    EQUAL(bed_admin(&bed, sqe, NULL), SC_COMMAND_SEQUENCE);
    sqe.cdw10 |= 1 << 8;
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(bed_admin(&bed, sqe, NULL), SC_COMMAND_SEQUENCE);
    EQUAL(bed.data[0], LOG_PERSISTENT);
    uint32_t n = (uint32_t)get(&bed, 4, 4);
    uint64_t end = get(&bed, 8, 8), at = 512;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < n; i++) {
        seen |= 1ull << bed.data[at];
        EQUAL(bed.data[at + 2], 21);
        at += 24 + get(&bed, (unsigned)at + 22, 2);
    }
    EQUAL(at, end);
    EQUAL(seen & (1u << PEL_SMART | 1u << PEL_FORMAT_START | 1u << PEL_FORMAT_COMPLETION | 1u << PEL_RESET),
          1u << PEL_SMART | 1u << PEL_FORMAT_START | 1u << PEL_FORMAT_COMPLETION | 1u << PEL_RESET);
    sqe.cdw10 = LOG_PERSISTENT | 2 << 8 | 127 << 16;
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    bed_close(&bed);
}

TEST(lba_status_names_blocks_that_can_not_be_read)
{
    struct bed bed;
    open_all(&bed);
    EQUAL(bed_io(&bed, (struct nvme_sqe){.opcode = IO_WRITE_UNCORRECTABLE, .nsid = 1, .cdw10 = 10, .cdw12 = 4}), 0);
    EQUAL(bed_io(&bed, (struct nvme_sqe){.opcode = IO_WRITE_UNCORRECTABLE, .nsid = 1, .cdw10 = 100, .cdw12 = 0}), 0);
    struct nvme_sqe sqe = {.opcode = ADMIN_LBA_STATUS,
                           .nsid = 1,
                           .prp1 = fh_iova(&bed.host, bed.data),
                           .cdw12 = 1023,
                           .cdw13 = 0x10u << 24};
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(get(&bed, 0, 4), 2);
    EQUAL(bed.data[4], 2);
    EQUAL(get(&bed, 8, 8), 10);
    EQUAL(get(&bed, 16, 4), 4); /* 0-based */
    EQUAL(get(&bed, 24, 8), 100);
    sqe.cdw12 = 5; /* room for one */
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(get(&bed, 0, 4), 1);
    EQUAL(bed.data[4], 1);
    EQUAL(bed_log(&bed, LOG_LBA_STATUS, 512, true), 0);
    EQUAL(get(&bed, 4, 4), 1);
    EQUAL(get(&bed, 8, 4), 6);
    bed_close(&bed);
}

TEST(ana_and_endurance_and_security_answer)
{
    struct bed bed;
    open_all(&bed);
    EQUAL(bed_log(&bed, LOG_ANA, 512, true), 0);
    EQUAL(get(&bed, 8, 2), 2);
    EQUAL(get(&bed, 16, 4), 1);
    EQUAL(get(&bed, 20, 4), 1);
    EQUAL(bed.data[32], ANA_OPTIMIZED);
    EQUAL(get(&bed, 48, 4), 1); /* namespace 1 */
    EQUAL(get(&bed, 52, 4), 2);
    struct nvme_sqe sqe = {.opcode = ADMIN_GET_LOG_PAGE,
                           .prp1 = fh_iova(&bed.host, bed.data),
                           .cdw10 = LOG_ENDURANCE | 127 << 16,
                           .cdw11 = 1 << 16};
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(get(&bed, 160, 8), 4u << 20);
    sqe.cdw11 = 2 << 16;
    EQUAL(bed_admin(&bed, sqe, NULL), SC_INVALID_FIELD);
    EQUAL(do_admin(&bed, ADMIN_SECURITY_RECEIVE, 0, 1u << 24 | 1 << 8, 512), 0);
    EQUAL(bed.data[3], 44 + 16 + 16 + 32 + 20); /* what follows the length, in four descriptors */
    EQUAL(bed.data[48] << 8 | bed.data[49], 1); /* TPer */
    EQUAL(do_admin(&bed, ADMIN_SECURITY_RECEIVE, 0, 9u << 24, 512), SC_INVALID_FIELD);
    bed_close(&bed);
}
