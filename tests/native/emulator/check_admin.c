/* Identify, features, log pages, events, Format NVM, added and removed namespaces. */
#include "check.h"

static uint16_t identify(struct bed *bed, uint8_t cns, uint32_t nsid, uint32_t cdw11)
{
    memset(bed->data, 0xaa, 4096);
    struct nvme_sqe sqe = {
        .opcode = ADMIN_IDENTIFY, .nsid = nsid, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = cns, .cdw11 = cdw11};
    return bed_admin(bed, sqe, NULL);
}

static uint32_t u32(const struct bed *bed, unsigned at)
{
    uint32_t value;
    memcpy(&value, bed->data + at, 4);
    return value;
}

static uint64_t u64(const struct bed *bed, unsigned at)
{
    uint64_t value;
    memcpy(&value, bed->data + at, 8);
    return value;
}

TEST(identify_answers_what_drivers_ask)
{
    struct bed bed;
    bed_open(&bed);
    EQUAL(identify(&bed, 0x01, 0, 0), 0);
    CHECK(!memcmp(bed.data + 4, "FAKE0001            ", 20));
    EQUAL(bed.data[77], 5);
    EQUAL(u32(&bed, 80), 0x20000);
    EQUAL(bed.data[111], 1);
    EQUAL(bed.data[512], 0x66);
    EQUAL(u32(&bed, 516), 16);
    EQUAL(bed.data[525], 6); /* VWC: none; Flush of all namespaces */
    CHECK(!strncmp((char *)bed.data + 768, "nqn.2014-08.org.nvmexpress:uuid:", 32));
    EQUAL(strlen((char *)bed.data + 768), 32 + 36);
    EQUAL(u32(&bed, 536), 0); /* SGLS */
    EQUAL(identify(&bed, 0x00, 1, 0), 0);
    EQUAL(u64(&bed, 0), 32768);
    EQUAL(bed.data[26], 0);
    uint8_t nguid[16];
    memcpy(nguid, bed.data + 104, 16);
    EQUAL(identify(&bed, 0x00, 2, 0), 0); /* inactive: zeroes */
    EQUAL(u64(&bed, 0), 0);
    EQUAL(identify(&bed, 0x00, 17, 0), SC_INVALID_NAMESPACE);
    EQUAL(identify(&bed, 0x00, 0, 0), SC_INVALID_NAMESPACE);
    EQUAL(identify(&bed, 0x00, NSID_ALL, 0), SC_INVALID_NAMESPACE); /* OACS: no Namespace Management */
    EQUAL(identify(&bed, 0x02, 0, 0), 0);
    EQUAL(u64(&bed, 0), 1);
    EQUAL(identify(&bed, 0x02, 1, 0), 0);
    EQUAL(u64(&bed, 0), 0);
    EQUAL(identify(&bed, 0x02, NSID_ALL, 0), SC_INVALID_NAMESPACE);
    EQUAL(identify(&bed, 0x03, 1, 0), 0);
    EQUAL(bed.data[0], 1);
    CHECK(!memcmp(bed.data + 16, nguid, 16));
    EQUAL(identify(&bed, 0x03, 2, 0), SC_INVALID_FIELD);
    EQUAL(identify(&bed, 0x05, 1, 0), 0);
    EQUAL(identify(&bed, 0x05, 1, 2u << 24), SC_INVALID_FIELD); /* ZNS */
    EQUAL(identify(&bed, 0x05, NSID_ALL, 0), SC_INVALID_NAMESPACE);
    EQUAL(identify(&bed, 0x05, 2, 0), 0);
    EQUAL(u64(&bed, 0), 0);
    EQUAL(identify(&bed, 0x08, NSID_ALL, 0), SC_INVALID_NAMESPACE);
    EQUAL(identify(&bed, 0x08, 2, 0), 0);
    EQUAL(bed.data[14], 0); /* inactive: not ready */
    EQUAL(identify(&bed, 0x06, 0, 0), 0);
    EQUAL(identify(&bed, 0x07, 0, 0), 0);
    EQUAL(identify(&bed, 0x08, 1, 0), 0);
    EQUAL(bed.data[14], 1);
    EQUAL(identify(&bed, 0x10, 0, 0), 0);
    EQUAL(identify(&bed, 0x12, 1, 0), 0);
    EQUAL(u32(&bed, 0), 1);
    EQUAL(identify(&bed, 0x13, 0, 0), 0);
    EQUAL(identify(&bed, 0x1c, 0, 0), 0);
    EQUAL(u64(&bed, 0), 1);
    EQUAL(identify(&bed, 0x77, 0, 0), SC_INVALID_FIELD);
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = 0xd0}, NULL), SC_INVALID_OPCODE);
    bed_close(&bed);
}

static uint16_t set(struct bed *bed, uint32_t cdw10, uint32_t nsid, uint32_t cdw11, uint32_t *result)
{
    struct nvme_sqe sqe = {.opcode = ADMIN_SET_FEATURES,
                           .nsid = nsid,
                           .prp1 = fh_iova(&bed->host, bed->data),
                           .cdw10 = cdw10,
                           .cdw11 = cdw11};
    return bed_admin(bed, sqe, result);
}

static uint32_t get(struct bed *bed, uint32_t cdw10, uint32_t nsid, uint32_t cdw11)
{
    uint32_t result = 0;
    struct nvme_sqe sqe = {.opcode = ADMIN_GET_FEATURES,
                           .nsid = nsid,
                           .prp1 = fh_iova(&bed->host, bed->data),
                           .cdw10 = cdw10,
                           .cdw11 = cdw11};
    EQUAL(bed_admin(bed, sqe, &result), 0);
    return result;
}

TEST(features_have_defaults_capabilities_and_are_not_saved)
{
    struct bed bed;
    bed_open(&bed);
    uint32_t result;
    EQUAL(get(&bed, FEAT_ARBITRATION | 1 << 8, 0, 0), 5);
    EQUAL(set(&bed, FEAT_ARBITRATION, 0, 3, NULL), 0);
    EQUAL(get(&bed, FEAT_ARBITRATION, 0, 0), 3);
    EQUAL(get(&bed, FEAT_ARBITRATION | 2 << 8, 0, 0), 5); /* saved: there is none, so the default */
    EQUAL(get(&bed, FEAT_ARBITRATION | 3 << 8, 0, 0), 4); /* changeable, not saveable */
    EQUAL(set(&bed, FEAT_ARBITRATION | 1u << 31, 0, 3, NULL), SC_NOT_SAVEABLE);
    EQUAL(set(&bed, FEAT_ARBITRATION, 1, 3, NULL), SC_NOT_NS_SPECIFIC);
    EQUAL(set(&bed, 0x7f, 0, 0, NULL), SC_INVALID_FIELD);
    EQUAL(set(&bed, FEAT_POWER, 0, 1, NULL), SC_INVALID_FIELD);
    EQUAL(set(&bed, FEAT_WRITE_CACHE, 0, 1, NULL), SC_INVALID_FIELD); /* RAM has no write cache */
    EQUAL(set(&bed, FEAT_QUEUES, 0, 3 | 3 << 16, &result), SC_COMMAND_SEQUENCE);
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_DELETE_SQ, .cdw10 = 1}, NULL), 0);
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_DELETE_CQ, .cdw10 = 1}, NULL), 0);
    EQUAL(set(&bed, FEAT_QUEUES, 0, 0xffff, NULL), SC_INVALID_FIELD);
    EQUAL(set(&bed, FEAT_QUEUES, 0, 99 | 99 << 16, &result), 0);
    EQUAL(result, 3 | 3 << 16);
    EQUAL(set(&bed, FEAT_VECTOR, 0, 5, NULL), SC_INVALID_FIELD);
    EQUAL(set(&bed, FEAT_VECTOR, 0, 4 | 1 << 16, NULL), 0);
    EQUAL(get(&bed, FEAT_VECTOR, 0, 4), 4 | 1 << 16);
    EQUAL(get(&bed, FEAT_VECTOR, 0, 3), 3);
    EQUAL(set(&bed, FEAT_ERROR_RECOVERY, 1, 50, NULL), 0);
    EQUAL(get(&bed, FEAT_ERROR_RECOVERY, 1, 0), 50);
    EQUAL(set(&bed, FEAT_ERROR_RECOVERY, 2, 50, NULL), SC_INVALID_FIELD);
    uint64_t ms = 1234567890123;
    memcpy(bed.data, &ms, 8);
    EQUAL(set(&bed, FEAT_TIMESTAMP, 0, 0, NULL), 0);
    get(&bed, FEAT_TIMESTAMP, 0, 0);
    CHECK((u64(&bed, 0) & 0xffffffffffff) - ms < 10000);
    EQUAL(u64(&bed, 0) >> 48 & 0xe, 2); /* origin: set by the host */
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0);
    EQUAL(fh_enable(&bed.host, 8), CSTS_RDY);
    EQUAL(get(&bed, FEAT_ARBITRATION, 0, 0), 5);
    bed_close(&bed);
}

TEST(log_pages_take_offset_and_length)
{
    struct bed bed;
    bed_open(&bed);
    static const uint8_t pages[] = {0, 1, 2, 3, 4, 5, 0x12, 0x13, 0x80};
    for (unsigned i = 0; i < sizeof(pages); i++)
        EQUAL(bed_log(&bed, pages[i], 512, true), 0);
    EQUAL(bed_log(&bed, 0, 1024, true), 0);
    for (unsigned lid = 0; lid < 256; lid++)
        EQUAL(u32(&bed, lid * 4), !!memchr(pages, (int)lid, sizeof(pages)));
    EQUAL(bed_log(&bed, 0x0d, 512, true), SC_LOG_PAGE_INVALID);
    struct nvme_sqe sqe = {.opcode = ADMIN_GET_LOG_PAGE,
                           .prp1 = fh_iova(&bed.host, bed.data),
                           .cdw10 = LOG_EFFECTS | 3 << 16,
                           .cdw12 = 1024};
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(u32(&bed, 0), 1); /* Flush is supported */
    EQUAL(u32(&bed, 4), 3); /* Write changes content */
    sqe.cdw12 = 1026;
    EQUAL(bed_admin(&bed, sqe, NULL), SC_INVALID_FIELD);
    sqe.cdw12 = 8192; /* beyond the page */
    EQUAL(bed_admin(&bed, sqe, NULL), SC_INVALID_FIELD);
    sqe.cdw12 = 4092; /* its last word, then zeroes */
    memset(bed.data, 0xff, 16);
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(u64(&bed, 8), 0);
    bed_close(&bed);
}

TEST(the_error_log_tells_newest_first)
{
    struct bed bed;
    bed_open(&bed);
    struct nvme_sqe sqe = fh_rw(&bed.host, IO_READ, 1u << 20, 1, bed.data, 512);
    EQUAL(bed_io(&bed, sqe), SC_LBA_RANGE);
    sqe.nsid = 99;
    EQUAL(bed_io(&bed, sqe), SC_INVALID_NAMESPACE);
    EQUAL(bed_log(&bed, LOG_ERROR, 128, false), 0);
    EQUAL(u64(&bed, 0), 2);
    EQUAL(u32(&bed, 24), 99);
    EQUAL(u64(&bed, 64), 1);
    EQUAL(bed.data[72] | bed.data[73] << 8, 1);                   /* SQID */
    EQUAL((bed.data[76] | bed.data[77] << 8) >> 1, SC_LBA_RANGE); /* status */
    EQUAL(u64(&bed, 80), 1u << 20);
    bed_close(&bed);
}

TEST(smart_counts_what_was_done)
{
    struct bed bed;
    bed_open(&bed);
    for (unsigned i = 0; i < 1001; i++)
        EQUAL(bed_write(&bed, i, 1, 1), 0);
    CHECK(bed_reads(&bed, 0, 1, 1));
    EQUAL(bed_log(&bed, LOG_SMART, 512, false), 0);
    EQUAL(bed.data[1] | bed.data[2] << 8, 313);
    EQUAL(u64(&bed, 32), 1); /* thousands of 512 B, rounded up */
    EQUAL(u64(&bed, 48), 2);
    EQUAL(u64(&bed, 64), 1);
    EQUAL(u64(&bed, 80), 1001);
    bed_close(&bed);
}

TEST(events_are_limited_aborted_and_masked_until_their_log_is_read)
{
    struct bed bed;
    bed_open(&bed);
    uint16_t cids[4];
    for (unsigned i = 0; i < 4; i++)
        cids[i] = bed_aer(&bed);
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_ASYNC_EVENT}, NULL), SC_AER_LIMIT);
    struct nvme_cqe cqe;
    fh_push(&bed.host.admin, (struct nvme_sqe){.opcode = ADMIN_ABORT, .cdw10 = (uint32_t)cids[3] << 16});
    fh_ring(&bed.host, &bed.host.admin);
    CHECK(fh_wait(&bed.host, &bed.host.admin, &cqe));
    EQUAL(cqe.cid, cids[3]);
    EQUAL(cqe.status >> 1 & 0x7ff, SC_ABORT_REQUESTED);
    CHECK(fh_wait(&bed.host, &bed.host.admin, &cqe));
    EQUAL(cqe.result, 0);

    /* Temperature: not enabled yet. */
    EQUAL(set(&bed, FEAT_TEMPERATURE, 0, 300, NULL), 0);
    EQUAL(bed_event(&bed), 0xffffffff);
    EQUAL(set(&bed, FEAT_TEMPERATURE, 0, 400, NULL), 0);
    EQUAL(set(&bed, FEAT_ASYNC_EVENT, 0, 2, NULL), 0);
    fh_push(&bed.host.admin, (struct nvme_sqe){.opcode = ADMIN_SET_FEATURES, .cdw10 = FEAT_TEMPERATURE, .cdw11 = 300});
    fh_ring(&bed.host, &bed.host.admin);
    CHECK(fh_wait(&bed.host, &bed.host.admin, &cqe));
    EQUAL(cqe.result, LOG_SMART << 16 | SMART_TEMPERATURE << 8 | EVENT_SMART);
    CHECK(fh_wait(&bed.host, &bed.host.admin, &cqe));
    /* Masked now: a second crossing is silent. */
    EQUAL(set(&bed, FEAT_TEMPERATURE, 0, 400, NULL), 0);
    EQUAL(set(&bed, FEAT_TEMPERATURE, 0, 300, NULL), 0);
    EQUAL(bed_log(&bed, LOG_SMART, 512, true), 0); /* RAE: stays masked */
    EQUAL(bed_event(&bed), 0xffffffff);
    EQUAL(bed_log(&bed, LOG_SMART, 512, false), 0);
    EQUAL(bed.data[0], 2); /* critical warning: temperature */
    bed_close(&bed);
}

TEST(format_changes_the_block_size_and_erases)
{
    struct bed bed;
    bed_open(&bed);
    EQUAL(bed_write(&bed, 0, 4, 9), 0);
    struct nvme_sqe sqe = {.opcode = ADMIN_FORMAT, .nsid = 1, .cdw10 = 2};
    EQUAL(bed_admin(&bed, sqe, NULL), SC_FORMAT_INVALID);
    sqe.cdw10 = 1 | 1 << 5; /* protection information */
    EQUAL(bed_admin(&bed, sqe, NULL), SC_FORMAT_INVALID);
    sqe.cdw10 = 1;
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(identify(&bed, 0x00, 1, 0), 0);
    EQUAL(u64(&bed, 0), 4096);
    EQUAL(bed.data[26], 1);
    memset(bed.data, 1, 4096);
    EQUAL(bed_io(&bed, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 4096)), 0);
    CHECK(!bed.data[0] && !memcmp(bed.data, bed.data + 1, 4095));
    bed_close(&bed);
}

TEST(the_keep_alive_timer_is_fatal_when_it_expires)
{
    struct bed bed;
    bed_open(&bed);
    EQUAL(set(&bed, FEAT_KEEP_ALIVE, 0, 1, NULL), 0);
    EQUAL(get(&bed, FEAT_KEEP_ALIVE, 0, 0), 100);
    CHECK(emu_ctrl_deadline(bed.host.ctrl) != UINT64_MAX);
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_KEEP_ALIVE}, NULL), 0);
    while (!(emu_csts(bed.host.ctrl) & CSTS_CFS))
        emu_ctrl_poll(bed.host.ctrl);
    bed_close(&bed);
}

TEST(both_command_set_selections_work)
{
    struct bed bed;
    bed_open(&bed);
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0);
    bed.host.admin.head = bed.host.admin.tail = 0;
    EQUAL(fh_enable(&bed.host, 8), CSTS_RDY);
    EQUAL(set(&bed, FEAT_COMMAND_SET, 0, 0, NULL), SC_INVALID_FIELD);
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0);
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, CC_EN | 6 << 4 | 6 << 16 | 4 << 20);
    bed.host.admin.head = bed.host.admin.tail = 0;
    bed.host.admin.phase = 1;
    memset((void *)bed.host.admin.cq, 0, 8 * 16);
    EQUAL(set(&bed, FEAT_COMMAND_SET, 0, 0, NULL), 0);
    EQUAL(set(&bed, FEAT_COMMAND_SET, 0, 1, NULL), SC_IOCS_COMBINATION_REJECTED);
    bed_close(&bed);
}
