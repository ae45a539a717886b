/* A hostile or broken client: random values in commands, addresses, doorbells, registers and shared
 * memory. */
#include "check.h"

static uint64_t seed = 0x2545f4914f6cdd1dull;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* An address: mostly inside the host's memory, often at an edge, sometimes anywhere. */
static uint64_t rnd_address(const struct fake_host *host)
{
    switch (rnd() % 8) {
    case 0:
        return rnd();
    case 1:
        return FH_IOVA + host->nbytes - rnd() % 8192;
    case 2:
        return FH_IOVA + (rnd() % host->nbytes & ~7ull);
    default:
        return FH_IOVA + (rnd() % host->nbytes & ~4095ull);
    }
}

/* Runs random rounds; returns how often the controller had to be reset. */
static unsigned mistreat(struct bed *bed, unsigned rounds, bool all_command_sets)
{
    struct fake_host *host = &bed->host;
    static const uint8_t admin[] = {0,    1,    2,    4,    5,    6,    8,    9,    0xa,  0xc,  0x18, 0x7c,
                                    0x80, 0x55, 0x0d, 0x10, 0x11, 0x14, 0x15, 0x81, 0x82, 0x84, 0x86};
    static const uint8_t io[] = {0,    1,    2,    4,    5,    8,    9,    0xc,  0xd,  0xe,
                                 0x11, 0x15, 0x19, 0x33, 0x79, 0x7a, 0x7d, 0x06, 0x10, 0x14};
    unsigned resets = 0, silent = 0;
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned q = 0; q < 2; q++) {
            struct fh_queue *queue = q ? &bed->io : &host->admin;
            struct nvme_sqe sqe;
            uint64_t *words = (uint64_t *)&sqe;
            for (unsigned i = 0; i < 8; i++)
                words[i] = rnd() & rnd() & rnd();
            sqe.opcode = q ? io[rnd() % sizeof(io)] : admin[rnd() % sizeof(admin)];
            sqe.flags = rnd() % 16 ? 0 : (uint8_t)rnd();
            sqe.nsid = (uint32_t)(rnd() % 8 ? rnd() % 4 : rnd());
            sqe.prp1 = rnd_address(host);
            sqe.prp2 = rnd_address(host);
            sqe.mptr = rnd_address(host) & ~3ull;
            sqe.cdw10 = rnd() % 4 ? (uint32_t)(rnd() % 300) | (uint32_t)(rnd() % 16) << 16 : sqe.cdw10;
            sqe.cdw11 = rnd() % 4 ? (uint32_t)(rnd() % 8) | (uint32_t)(rnd() % 5) << 16 : sqe.cdw11;
            sqe.cdw12 = rnd() % 4 ? (uint32_t)(rnd() % 64) : sqe.cdw12;
            if (!q && (sqe.opcode == ADMIN_SET_FEATURES && (uint8_t)sqe.cdw10 == FEAT_KEEP_ALIVE))
                continue;
            fh_push(queue, sqe);
            fh_ring(host, queue);
        }
        if (rnd() % 64 == 0)
            host->doorbells[rnd() % 16] = (uint32_t)(rnd() % 128);
        if (rnd() % 64 == 0) /* random values in lists, rings and buffers */
            memset(host->memory + rnd() % (host->nbytes - 64), (int)rnd(), 64);
        if (rnd() % 64 == 0)
            emu_ctrl_write(host->ctrl, (uint32_t)(rnd() % 0x2000), rnd() % 2 ? 4 : 8, rnd() & rnd());
        if (rnd() % 128 == 0)
            emu_ctrl_dma_changed(host->ctrl);
        bed_turn(bed, 2);
        emu_ctrl_arm(host->ctrl);
        struct nvme_cqe cqe;
        silent++;
        while (fh_reap(host, &host->admin, &cqe) || fh_reap(host, &bed->io, &cqe))
            silent = 0;
        if (rnd() % 32 && silent < 8) /* otherwise it has stopped, by its own guard or by the random writes */
            continue;
        silent = 0;
        emu_ctrl_reset(host->ctrl);
        host->used = 0;
        resets++;
        if (fh_enable(host, 32) == CSTS_RDY && all_command_sets) {
            emu_ctrl_write(host->ctrl, REG_CC, 4, 0);
            emu_ctrl_write(host->ctrl, REG_CC, 4, CC_EN | CC_CSS_ALL << 4 | 6 << 16 | 4 << 20);
        }
        fh_create_io(host, &bed->io, 1, 64);
        bed->data = fh_alloc(host, 64 * 4096);
    }
    emu_ctrl_reset(host->ctrl);
    host->used = 0;
    memset(host->memory, 0, host->nbytes);
    return resets;
}

TEST(a_hostile_client_does_no_harm)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 16u << 20, 512);
    config.mdts = 0;
    config.n_namespaces = 3;
    config.namespaces[1] =
        (struct emu_ns_config){.nbytes = 1u << 20, .block_size = 4096, .medium = EMU_MEDIUM_RAM, .path = NULL};
    config.namespaces[2] =
        (struct emu_ns_config){.nbytes = 1ull << 45, .block_size = 512, .medium = EMU_MEDIUM_NULL, .path = NULL};
    struct bed bed;
    bed_open_with(&bed, &config);
    struct fake_host *host = &bed.host;
    CHECK(mistreat(&bed, 100000, false) > 10);
    EQUAL(fh_enable(host, 32), CSTS_RDY); /* and it still works */
    EQUAL(fh_create_io(host, &bed.io, 1, 64), 0);
    bed.data = fh_alloc(host, 64 * 4096);
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_FORMAT, .nsid = 1}, NULL), 0);
    EQUAL(bed_write(&bed, 0, 1, 1), 0);
    CHECK(bed_reads(&bed, 0, 1, 1));
    bed_close(&bed);
}

/* Every feature, and formats of every kind. */
static struct emu_config everything(bool zoned, bool key_value)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 1u << 20, 512);
    config.mdts = 0;
    config.n_formats = 6;
    config.formats[0] = (struct emu_format){.block_size = 512};
    config.formats[1] = (struct emu_format){.block_size = 4096};
    config.formats[2] = (struct emu_format){.block_size = 512, .metadata = 8};
    config.formats[3] = (struct emu_format){.block_size = 4096, .metadata = 128};
    config.formats[4] = (struct emu_format){.block_size = 4096, .metadata = 16, .pif = 2, .sts = 16};
    config.formats[5] = (struct emu_format){.block_size = 512, .metadata = 16, .pif = 1, .sts = 64};
    config.format_ns = 100000;
    config.extras = (struct emu_extras){
        .capacity = 8u << 20,
        .medium = EMU_MEDIUM_RAM,
        .self_test = true,
        .self_test_ns = 100000,
        .sanitize = true,
        .sanitize_ns = 10000,
        .firmware_slots = 3,
        .lba_status = true,
        .endurance = true,
        .telemetry = true,
        .persistent_events = true,
        .security = true,
        .write_cache = true,
        .ana_groups = 2,
        .zoned = zoned,
        .key_value = key_value,
        .zone_nbytes = 64u << 10,
        .zone_capacity_nbytes = 48u << 10,
        .max_open = 3,
        .max_active = 4,
        .zasl = 1,
    };
    return config;
}

static void mistreat_everything(bool zoned, bool key_value)
{
    struct emu_config config = everything(zoned, key_value);
    struct bed bed;
    bed_open_with(&bed, &config);
    CHECK(mistreat(&bed, 60000, zoned || key_value) > 10);
    struct emu_counters counters;
    emu_counters(bed.host.ctrl, &counters);
    CHECK(counters.io[IO_WRITE] > 500 && counters.admin[ADMIN_GET_LOG_PAGE] > 500); /* commands did get through */
    EQUAL(fh_enable(&bed.host, 32), CSTS_RDY); /* and it still answers */
    bed.data = fh_alloc(&bed.host, 64 * 4096);
    EQUAL(bed_log(&bed, LOG_SMART, 512, true), 0);
    bed_close(&bed);
}

TEST(a_hostile_client_does_no_harm_to_any_feature)
{
    mistreat_everything(false, false);
}

TEST(a_hostile_client_does_no_harm_to_zones)
{
    mistreat_everything(true, false);
}

TEST(a_hostile_client_does_no_harm_to_keys_and_values)
{
    mistreat_everything(false, true);
}
