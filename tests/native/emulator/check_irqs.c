/* Moderated interrupts: adaptive by the CQ head, and NVMe coalescing (features 08h and 09h). */
#include <unistd.h>

#include "check.h"

/* Long enough for the next comparison of CQ heads to be due. */
static void look_twice(struct bed *bed)
{
    for (unsigned i = 0; i < 2; i++) {
        usleep(100);
        bed_turn(bed, 1);
    }
}

static void reads(struct bed *bed, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        fh_push(&bed->io, fh_rw(&bed->host, IO_READ, i, 1, bed->data, 512));
    fh_ring(&bed->host, &bed->io);
    bed_turn(bed, 1);
}

static void reap(struct bed *bed, unsigned n)
{
    struct nvme_cqe cqe;
    while (n--)
        CHECK(fh_reap(&bed->host, &bed->io, &cqe));
}

static void open_adaptive(struct bed *bed)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 1u << 20, 512);
    config.adaptive_irqs = true;
    bed_open_with(bed, &config);
}

TEST(adaptive_interrupts_come_where_the_head_stands_still)
{
    struct bed bed;
    open_adaptive(&bed);
    uint64_t before = bed.host.interrupts[1];
    reads(&bed, 3);
    look_twice(&bed);
    EQUAL(bed.host.interrupts[1], before + 1);
    look_twice(&bed);
    EQUAL(bed.host.interrupts[1], before + 1); /* signalled once */
    reap(&bed, 3);
    look_twice(&bed);
    EQUAL(bed.host.interrupts[1], before + 1);
    bed_close(&bed);
}

TEST(adaptive_interrupts_forget_a_ring_that_went_round_once)
{
    struct bed bed;
    open_adaptive(&bed);
    reads(&bed, 5);
    look_twice(&bed);
    uint64_t before = bed.host.interrupts[1];
    reap(&bed, 5);
    /* 64 entries: the host polls all of them, and the tail is where the last interrupt was sent. */
    for (unsigned i = 0; i < 59; i++) {
        reads(&bed, 1);
        reap(&bed, 1);
    }
    reads(&bed, 5);
    look_twice(&bed);
    look_twice(&bed);
    EQUAL(bed.host.interrupts[1], before);
    reads(&bed, 1);
    look_twice(&bed);
    EQUAL(bed.host.interrupts[1], before + 1);
    bed_close(&bed);
}

TEST(the_admin_queue_is_told_at_once_whatever_is_moderated)
{
    struct bed bed;
    open_adaptive(&bed);
    uint64_t before = bed.host.interrupts[0];
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_SET_FEATURES, .cdw10 = 8, .cdw11 = 0xff05}, NULL), 0);
    EQUAL(bed.host.interrupts[0], before + 1);
    bed_close(&bed);
}

static void set_feature(struct bed *bed, uint32_t fid, uint32_t value)
{
    EQUAL(bed_admin(bed, (struct nvme_sqe){.opcode = ADMIN_SET_FEATURES, .cdw10 = fid, .cdw11 = value}, NULL), 0);
}

TEST(coalescing_waits_for_the_threshold_or_the_time)
{
    struct bed bed;
    bed_open(&bed);
    set_feature(&bed, 8, 200 << 8 | 3); /* four entries, or 20 ms */
    uint64_t before = bed.host.interrupts[1];
    reads(&bed, 3);
    EQUAL(bed.host.interrupts[1], before);
    CHECK(emu_ctrl_deadline(bed.host.ctrl) != UINT64_MAX);
    reads(&bed, 1);
    EQUAL(bed.host.interrupts[1], before + 1);
    EQUAL(emu_ctrl_deadline(bed.host.ctrl), UINT64_MAX);
    reads(&bed, 1);
    EQUAL(bed.host.interrupts[1], before + 1);
    usleep(21000);
    bed_turn(&bed, 1);
    EQUAL(bed.host.interrupts[1], before + 2);
    reads(&bed, 1);
    usleep(1000);
    fh_push(&bed.io, fh_rw(&bed.host, IO_READ, 1u << 30, 1, bed.data, 512)); /* fails: not held back */
    fh_ring(&bed.host, &bed.io);
    bed_turn(&bed, 1);
    EQUAL(bed.host.interrupts[1], before + 3);
    bed_close(&bed);
}

TEST(a_vector_may_be_left_out_of_coalescing)
{
    struct bed bed;
    bed_open(&bed);
    set_feature(&bed, 8, 255 << 8 | 255);
    set_feature(&bed, 9, 1 << 16 | 1);
    uint64_t before = bed.host.interrupts[1];
    reads(&bed, 1);
    EQUAL(bed.host.interrupts[1], before + 1);
    set_feature(&bed, 9, 1);
    reads(&bed, 1);
    EQUAL(bed.host.interrupts[1], before + 1);
    set_feature(&bed, 8, 255); /* no time set: it doesn't wait */
    reads(&bed, 1);
    EQUAL(bed.host.interrupts[1], before + 2);
    bed_close(&bed);
}

TEST(coalescing_may_be_the_default)
{
    struct bed bed;
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 1u << 20, 512);
    config.aggregation_threshold = 7;
    config.aggregation_time = 255;
    bed_open_with(&bed, &config);
    uint32_t result;
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_GET_FEATURES, .cdw10 = 8}, &result), 0);
    EQUAL(result, 0xff07);
    uint64_t before = bed.host.interrupts[1];
    reads(&bed, 7);
    EQUAL(bed.host.interrupts[1], before);
    reads(&bed, 1);
    EQUAL(bed.host.interrupts[1], before + 1);
    bed_close(&bed);
}
