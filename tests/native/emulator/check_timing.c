/* The model of latency and bandwidth (nvme_timing.h), in a time of its own. */
#include "check.h"
#include "emulator/nvme_ctrl.h"

#define US 1000ull

TEST(commands_take_the_latency_at_once_on_as_many_channels_as_there_are)
{
    const struct emu_timing model = {.latency_ns = 80 * US, .channels = 4};
    struct timing timing = {0};
    for (unsigned i = 0; i < 4; i++)
        EQUAL(timing_completion(&timing, &model, 1000 * US, 4096), 1080 * US);
    for (unsigned i = 0; i < 4; i++)
        EQUAL(timing_completion(&timing, &model, 1001 * US, 4096), 1160 * US);
    EQUAL(timing_completion(&timing, &model, 5000 * US, 4096), 5080 * US);
}

TEST(the_link_moves_one_command_after_another)
{
    const struct emu_timing model = {.bytes_per_second = 1000 * 1000 * 1000, .channels = 8};
    struct timing timing = {0};
    EQUAL(timing_completion(&timing, &model, 100, 4096), 4196);
    EQUAL(timing_completion(&timing, &model, 100, 4096), 8292);
    /* Nothing to move: not behind those. */
    EQUAL(timing_completion(&timing, &model, 100, 0), 100);
    EQUAL(timing_completion(&timing, &model, 20000, 512), 20512);
}

TEST(a_transfer_and_then_a_channel)
{
    const struct emu_timing model = {.latency_ns = 10 * US, .bytes_per_second = 1000 * 1000 * 1000, .channels = 1};
    struct timing timing = {0};
    EQUAL(timing_completion(&timing, &model, 0, 4000), 14 * US);
    EQUAL(timing_completion(&timing, &model, 0, 4000), 24 * US); /* the channel is slower than the link */
    EQUAL(timing_completion(&timing, &model, 0, 40000), 58 * US);
}

TEST(jitter_is_within_its_limit_and_the_same_in_each_run)
{
    const struct emu_timing model = {.latency_ns = 80 * US, .jitter_ns = 20 * US, .channels = 1};
    struct timing timing = {0}, other = {0};
    uint64_t least = UINT64_MAX, most = 0;
    for (uint64_t now = 0; now < SECOND; now += SECOND / 1000) {
        const uint64_t took = timing_completion(&timing, &model, now, 4096) - now;
        EQUAL(timing_completion(&other, &model, now, 4096) - now, took);
        least = took < least ? took : least;
        most = took > most ? took : most;
    }
    CHECK(least >= 80 * US && least < 81 * US);
    CHECK(most <= 100 * US && most > 99 * US);
}

TEST(only_the_completion_of_a_timed_command_is_late)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 16u << 20, 512);
    struct bed bed;
    struct nvme_cqe cqe;
    config.timing = (struct emu_timing){.latency_ns = 3600 * SECOND, .channels = 1};
    bed_open_with(&bed, &config);
    memset(bed.data, 7, 512);
    const uint16_t cid = fh_push(&bed.io, fh_rw(&bed.host, IO_WRITE, 3, 1, bed.data, 512));
    fh_ring(&bed.host, &bed.io);
    bed_turn(&bed, 10);
    EQUAL(bed.host.ctrl->n_held, 1);
    EQUAL(bed.host.ctrl->counters.commands_written, 1);
    /* Others, and those that fail, overtake it. */
    EQUAL(bed_io(&bed, (struct nvme_sqe){.opcode = IO_FLUSH, .nsid = 1}), SC_SUCCESS);
    EQUAL(bed_io(&bed, fh_rw(&bed.host, IO_READ, 1u << 20, 1, bed.data, 512)), SC_LBA_RANGE);
    held_release(bed.host.ctrl);
    CHECK(fh_wait(&bed.host, &bed.io, &cqe));
    EQUAL(cqe.cid, cid);
    EQUAL(cqe.status >> 1, SC_SUCCESS);
    bed_close(&bed);
}
