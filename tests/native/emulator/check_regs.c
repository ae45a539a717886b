/* Registers and the CC/CSTS state machine. */
#include "check.h"

static uint64_t get(struct fake_host *host, uint32_t offset, unsigned width)
{
    return emu_ctrl_read(host->ctrl, offset, width);
}

static void open_default(struct fake_host *host)
{
    struct emu_config config = fh_config(EMU_MEDIUM_NULL, 1u << 20, 512);
    fh_open(host, &config, 4u << 20);
}

TEST(registers_say_what_the_controller_can)
{
    struct fake_host host;
    open_default(&host);
    uint64_t cap = get(&host, REG_CAP, 8);
    EQUAL(cap & 0xffff, 4095);
    EQUAL(cap >> 16 & 1, 1);       /* CQR */
    EQUAL(cap >> 32 & 15, 0);      /* DSTRD */
    EQUAL(cap >> 36 & 1, 0);       /* NSSRS */
    EQUAL(cap >> 37 & 0xff, 0x41); /* CSS: NVM, I/O command sets */
    EQUAL(cap >> 48 & 15, 0);      /* MPSMIN */
    EQUAL(cap >> 59 & 3, 1);       /* CRMS */
    CHECK((cap >> 24 & 0xff) > 0); /* TO */
    EQUAL(get(&host, REG_CAP, 4), cap & 0xffffffff);
    EQUAL(get(&host, REG_CAP + 4, 4), cap >> 32);
    EQUAL(get(&host, REG_VS, 4), 0x20000);
    EQUAL(get(&host, REG_CSTS, 4), 0);
    EQUAL(get(&host, 0x20, 4), 0); /* NSSR */
    EQUAL(get(&host, 0x38, 8), 0); /* CMB */
    emu_ctrl_write(host.ctrl, REG_INTMS, 4, 0xf0);
    emu_ctrl_write(host.ctrl, REG_INTMC, 4, 0x30);
    EQUAL(get(&host, REG_INTMS, 4), 0xc0);
    EQUAL(get(&host, REG_INTMC, 4), 0xc0);
    emu_ctrl_write(host.ctrl, REG_ASQ, 4, 0x12345fff);
    emu_ctrl_write(host.ctrl, REG_ASQ + 4, 4, 0x9);
    EQUAL(get(&host, REG_ASQ, 8), 0x912345000);
    emu_ctrl_write(host.ctrl, REG_CAP, 8, 0); /* read-only */
    EQUAL(get(&host, REG_CAP, 8), cap);
    fh_close(&host);
}

/* Sets everything up as fh_enable() does, then corrupts one register. */
static uint32_t enable_with(uint32_t cc, uint32_t aqa, uint64_t asq, uint64_t acq)
{
    struct fake_host host;
    open_default(&host);
    emu_ctrl_write(host.ctrl, REG_AQA, 4, aqa);
    emu_ctrl_write(host.ctrl, REG_ASQ, 8, asq);
    emu_ctrl_write(host.ctrl, REG_ACQ, 8, acq);
    emu_ctrl_write(host.ctrl, REG_CC, 4, cc);
    uint32_t csts = (uint32_t)get(&host, REG_CSTS, 4);
    if (csts & CSTS_CFS) { /* and a reset brings it back */
        emu_ctrl_write(host.ctrl, REG_CC, 4, 0);
        EQUAL(get(&host, REG_CSTS, 4), 0);
        EQUAL(fh_enable(&host, 16), CSTS_RDY);
    }
    fh_close(&host);
    return csts;
}

TEST(enabling_checks_everything)
{
    const uint32_t good = CC_EN | 6 << 16 | 4 << 20, aqa = 0x000f000f;
    const uint64_t asq = FH_IOVA, acq = FH_IOVA + 0x10000;
    EQUAL(enable_with(good, aqa, asq, acq), CSTS_RDY);
    EQUAL(enable_with(CC_EN, aqa, asq, acq), CSTS_RDY); /* entry sizes may follow before the first I/O queue */
    EQUAL(enable_with(good | 4 << 7, aqa, asq, acq), CSTS_RDY);
    EQUAL(enable_with(good | 6 << 4, aqa, asq, acq), CSTS_RDY);
    EQUAL(enable_with(good | 5 << 7, aqa, asq, acq), CSTS_CFS); /* MPS */
    EQUAL(enable_with(good | 1 << 4, aqa, asq, acq), CSTS_CFS); /* CSS */
    EQUAL(enable_with(good | 7 << 4, aqa, asq, acq), CSTS_CFS);
    EQUAL(enable_with(good | 1 << 11, aqa, asq, acq), CSTS_CFS); /* AMS */
    EQUAL(enable_with(CC_EN | 5 << 16 | 4 << 20, aqa, asq, acq), CSTS_CFS);
    EQUAL(enable_with(CC_EN | 6 << 16 | 5 << 20, aqa, asq, acq), CSTS_CFS);
    EQUAL(enable_with(good, 0x000f0000, asq, acq), CSTS_CFS);
    EQUAL(enable_with(good, 0x0000000f, asq, acq), CSTS_CFS);
    EQUAL(enable_with(good | 1 << 7, aqa, asq + 0x1000, acq), CSTS_CFS); /* aligned to 4 KiB, not to 8 */
    EQUAL(enable_with(good | 1 << 7, aqa, asq, acq + 0x1000), CSTS_CFS);
    EQUAL(enable_with(good, aqa, 0x5000, acq), CSTS_CFS); /* not mapped */
    EQUAL(enable_with(good, aqa, asq, 0x5000), CSTS_CFS);
}

TEST(disabling_forgets_queues_and_keeps_admin_registers)
{
    struct bed bed;
    bed_open(&bed);
    struct fake_host *host = &bed.host;
    uint64_t asq = get(host, REG_ASQ, 8);
    emu_ctrl_write(host->ctrl, REG_CC, 4, 6 << 16 | 4 << 20);
    EQUAL(get(host, REG_CSTS, 4), 0);
    EQUAL(get(host, REG_ASQ, 8), asq);
    EQUAL(host->doorbells[0], 0);
    EQUAL(host->doorbells[2], 0);
    EQUAL(emu_ctrl_poll(host->ctrl), 0);
    EQUAL(fh_enable(host, 8), CSTS_RDY);
    EQUAL(fh_create_io(host, &bed.io, 1, 16), 0); /* the qid is free again */
    struct emu_counters counters;
    emu_counters(host->ctrl, &counters);
    EQUAL(counters.enables, 2);
    EQUAL(counters.disables, 1);
    emu_ctrl_reset(host->ctrl);
    EQUAL(get(host, REG_ASQ, 8), 0);
    EQUAL(get(host, REG_CC, 4), 0);
    bed_close(&bed);
}

TEST(shutdown_runs_to_complete_and_needs_a_reset)
{
    for (unsigned shn = 1; shn <= 2; shn++) {
        struct bed bed;
        bed_open(&bed);
        emu_ctrl_write(bed.host.ctrl, REG_CC, 4, CC_EN | 6 << 16 | 4 << 20 | shn << 14);
        EQUAL(get(&bed.host, REG_CSTS, 4), CSTS_RDY | CSTS_SHST_COMPLETE);
        fh_push(&bed.io, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512));
        fh_ring(&bed.host, &bed.io);
        EQUAL(emu_ctrl_poll(bed.host.ctrl), 0); /* nothing is processed any more */
        emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0);
        EQUAL(get(&bed.host, REG_CSTS, 4), 0);
        EQUAL(fh_enable(&bed.host, 8), CSTS_RDY);
        bed_close(&bed);
    }
}

TEST(unsafe_shutdowns_are_counted)
{
    struct bed bed;
    bed_open(&bed);
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0); /* a reset is no loss of power */
    EQUAL(fh_enable(&bed.host, 8), CSTS_RDY);
    EQUAL(bed_log(&bed, LOG_SMART, 512, false), 0);
    EQUAL(bed.data[144], 0);
    emu_ctrl_reset(bed.host.ctrl);
    EQUAL(fh_enable(&bed.host, 8), CSTS_RDY);
    EQUAL(bed_log(&bed, LOG_SMART, 512, false), 0);
    EQUAL(bed.data[144], 1);
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, CC_EN | 1 << 14);
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0);
    EQUAL(fh_enable(&bed.host, 8), CSTS_RDY);
    EQUAL(bed_log(&bed, LOG_SMART, 512, false), 0);
    EQUAL(bed.data[144], 1);
    bed_close(&bed);
}

TEST(a_ring_that_loses_its_mapping_is_fatal_only_when_it_is_needed)
{
    struct bed bed;
    bed_open(&bed);
    bed.host.unmapped = true;
    emu_ctrl_dma_changed(bed.host.ctrl);
    bed_turn(&bed, 3);
    EQUAL(get(&bed.host, REG_CSTS, 4), CSTS_RDY); /* idle: not noticed */
    bed.host.unmapped = false;
    emu_ctrl_dma_changed(bed.host.ctrl);
    EQUAL(bed_write(&bed, 0, 1, 1), 0);
    bed.host.unmapped = true;
    emu_ctrl_dma_changed(bed.host.ctrl);
    fh_push(&bed.host.admin, (struct nvme_sqe){.opcode = ADMIN_IDENTIFY});
    fh_ring(&bed.host, &bed.host.admin);
    bed_turn(&bed, 1);
    EQUAL(get(&bed.host, REG_CSTS, 4), CSTS_RDY | CSTS_CFS);
    bed_close(&bed);
}

TEST(faults_of_the_registers)
{
    struct fake_host host;
    open_default(&host);
    EQUAL(emu_fault_mqes(host.ctrl, 0), 0);
    EQUAL(get(&host, REG_CAP, 4) & 0xffff, 0);
    EQUAL(emu_fault_mqes(host.ctrl, 7), 0);
    EQUAL(emu_fault_enable_delay(host.ctrl, EMU_FOREVER, 0), 0);
    EQUAL(fh_enable(&host, 8), 0);
    EQUAL(emu_ctrl_deadline(host.ctrl), UINT64_MAX);
    emu_ctrl_write(host.ctrl, REG_CC, 4, 0);
    EQUAL(emu_fault_enable_delay(host.ctrl, 20000000, 20000000), 0);
    EQUAL(fh_enable(&host, 8), 0);
    CHECK(emu_ctrl_deadline(host.ctrl) != UINT64_MAX);
    while (!(get(&host, REG_CSTS, 4) & CSTS_RDY))
        ;
    struct fh_queue io;
    EQUAL(fh_create_io(&host, &io, 1, 9), SC_QUEUE_SIZE);
    EQUAL(fh_create_io(&host, &io, 1, 8), 0);
    emu_ctrl_write(host.ctrl, REG_CC, 4, 0);
    EQUAL(get(&host, REG_CSTS, 4), CSTS_RDY);
    while (get(&host, REG_CSTS, 4) & CSTS_RDY)
        emu_ctrl_poll(host.ctrl);
    fh_close(&host);
}

TEST(configurations_that_can_not_be_had)
{
    char err[256];
    struct emu_host none = {0};
    struct emu_config config = fh_config(EMU_MEDIUM_NULL, 1u << 20, 512);
    config.mqes = 0;
    CHECK(!emu_ctrl_new(&config, &none, err) && strstr(err, "mqes"));
    config.mqes = 65535;
    config.n_io_queues = 65;
    CHECK(!emu_ctrl_new(&config, &none, err) && strstr(err, "queue"));
    config.n_io_queues = 1;
    config.namespaces[0].block_size = 520;
    CHECK(!emu_ctrl_new(&config, &none, err) && strstr(err, "520"));
    config.namespaces[0] = (struct emu_ns_config){
        .nbytes = 1u << 20, .block_size = 512, .medium = EMU_MEDIUM_FILE, .path = "/nowhere/at/all"};
    CHECK(!emu_ctrl_new(&config, &none, err) && strstr(err, "/nowhere/at/all"));
}
