/* Faults, namespaces at run time, traces. A separate thread polls the controller. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "check.h"

struct live {
    struct bed bed;
    pthread_t thread;
    atomic_bool stop;
};

static void *poll_main(void *arg)
{
    struct live *live = arg;
    while (!atomic_load(&live->stop))
        if (!emu_ctrl_poll(live->bed.host.ctrl))
            usleep(20);
    return NULL;
}

static void live_open(struct live *live)
{
    bed_open(&live->bed);
    live->bed.host.auto_poll = false;
    live->stop = false;
    CHECK(!pthread_create(&live->thread, NULL, poll_main, live));
}

static void live_close(struct live *live)
{
    atomic_store(&live->stop, true);
    pthread_join(live->thread, NULL);
    bed_close(&live->bed);
}

static struct emu_fault rule(uint8_t opcode, uint32_t actions)
{
    struct emu_fault fault = {.queue = EMU_FAULT_IO_QUEUES, .qid = -1, .actions = actions};
    fault.value[0] = opcode;
    fault.mask[0] = 0xff;
    return fault;
}

static struct nvme_sqe read_one(struct live *live, uint64_t lba)
{
    return fh_rw(&live->bed.host, IO_READ, lba, 1, live->bed.data, 512);
}

static bool nothing_comes(struct live *live, struct fh_queue *queue)
{
    struct nvme_cqe cqe;
    usleep(20000);
    return !fh_reap(&live->bed.host, queue, &cqe);
}

TEST(a_rule_skips_acts_so_often_and_counts)
{
    struct live live;
    live_open(&live);
    struct emu_ctrl *ctrl = live.bed.host.ctrl;
    struct emu_fault fault = rule(IO_READ, EMU_FAULT_FAIL);
    fault.skip = 1;
    fault.count = 2;
    fault.status = SC_WRITE_FAULT;
    int id = emu_fault_add(ctrl, &fault);
    CHECK(id > 0);
    EQUAL(bed_io(&live.bed, read_one(&live, 0)), 0);
    EQUAL(bed_io(&live.bed, read_one(&live, 0)), SC_WRITE_FAULT);
    EQUAL(bed_write(&live.bed, 0, 1, 1), 0); /* doesn't match */
    EQUAL(bed_io(&live.bed, read_one(&live, 0)), SC_WRITE_FAULT);
    EQUAL(bed_io(&live.bed, read_one(&live, 7)), 0);
    struct nvme_sqe last;
    EQUAL(emu_fault_hits(ctrl, id, (uint8_t *)&last), 4);
    EQUAL(last.cdw10, 7);
    EQUAL(emu_fault_wait(ctrl, id, 4, SECOND), 0);
    EQUAL(-emu_fault_wait(ctrl, id, 5, SECOND / 100), ETIMEDOUT);
    EQUAL(emu_fault_remove(ctrl, id), 0);
    EQUAL(-emu_fault_remove(ctrl, id), ENOENT);
    EQUAL(-emu_fault_hits(ctrl, id, NULL), ENOENT);
    fault.actions = 1u << 20;
    EQUAL(-emu_fault_add(ctrl, &fault), EINVAL);
    live_close(&live);
}

TEST(a_delayed_command_touches_no_memory_until_it_is_executed)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    EQUAL(bed_write(bed, 5, 1, 0x42), 0);
    struct emu_fault fault = rule(IO_READ, EMU_FAULT_DELAY);
    fault.delay_ns = EMU_FOREVER;
    int id = emu_fault_add(bed->host.ctrl, &fault);
    memset(bed->data, 0, 512);
    uint16_t cid = fh_push(&bed->io, read_one(&live, 5));
    fh_ring(&bed->host, &bed->io);
    EQUAL(emu_fault_wait(bed->host.ctrl, id, 1, SECOND), 0);
    CHECK(nothing_comes(&live, &bed->io));
    EQUAL(bed->data[0], 0);
    struct emu_outstanding out[4];
    struct emu_dma_range ranges[8];
    uint32_t n_ranges;
    EQUAL(emu_outstanding(bed->host.ctrl, out, 4, ranges, 8, &n_ranges, SECOND), 1);
    EQUAL(out[0].cid, cid);
    EQUAL(out[0].opcode, IO_READ);
    CHECK(!out[0].executed);
    EQUAL(n_ranges, 1);
    EQUAL(ranges[0].iova, fh_iova(&bed->host, bed->data));
    EQUAL(ranges[0].nbytes, 512);
    CHECK(ranges[0].write);
    EQUAL(emu_fault_release(bed->host.ctrl, SECOND), 0);
    struct nvme_cqe cqe;
    CHECK(fh_wait(&bed->host, &bed->io, &cqe));
    EQUAL(bed->data[0], 0x42);
    EQUAL(emu_outstanding(bed->host.ctrl, out, 4, ranges, 8, &n_ranges, SECOND), 0);

    /* Its list's pages are part of it. */
    uint64_t *list = fh_alloc(&bed->host, 4096);
    for (unsigned i = 0; i < 3; i++)
        list[i] = fh_iova(&bed->host, bed->data) + 4096 * (i + 1);
    struct nvme_sqe sqe = fh_rw(&bed->host, IO_WRITE, 0, 32, bed->data, 0);
    sqe.prp2 = fh_iova(&bed->host, list);
    fault.value[0] = IO_WRITE;
    emu_fault_add(bed->host.ctrl, &fault);
    fh_push(&bed->io, sqe);
    fh_ring(&bed->host, &bed->io);
    while (emu_outstanding(bed->host.ctrl, out, 4, ranges, 8, &n_ranges, SECOND) != 1)
        ;
    EQUAL(n_ranges, 5);
    CHECK(!ranges[0].write);
    EQUAL(ranges[4].iova, fh_iova(&bed->host, list));
    live_close(&live);
}

TEST(delays_expire_by_themselves)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    struct emu_fault fault = rule(IO_READ, EMU_FAULT_DELAY);
    fault.delay_ns = 30000000;
    emu_fault_add(bed->host.ctrl, &fault);
    fault = rule(IO_WRITE, EMU_FAULT_DELAY_POST);
    fault.delay_ns = 30000000;
    emu_fault_add(bed->host.ctrl, &fault);
    for (unsigned i = 0; i < 50; i++)
        fh_push(&bed->io, read_one(&live, i));
    memset(bed->data + 4096, 9, 512);
    fh_push(&bed->io, fh_rw(&bed->host, IO_WRITE, 9, 1, bed->data + 4096, 512));
    fh_ring(&bed->host, &bed->io);
    struct nvme_cqe cqe;
    for (unsigned i = 0; i < 51; i++)
        CHECK(fh_wait(&bed->host, &bed->io, &cqe));
    emu_fault_clear(bed->host.ctrl);
    CHECK(bed_reads(bed, 9, 1, 9));
    live_close(&live);
}

TEST(abort_and_queue_deletion_end_held_commands)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    struct emu_fault fault = rule(IO_READ, EMU_FAULT_DELAY);
    fault.delay_ns = EMU_FOREVER;
    int id = emu_fault_add(bed->host.ctrl, &fault);
    uint16_t cid = fh_push(&bed->io, read_one(&live, 0));
    fh_push(&bed->io, read_one(&live, 0));
    fh_ring(&bed->host, &bed->io);
    EQUAL(emu_fault_wait(bed->host.ctrl, id, 2, SECOND), 0);
    uint32_t result = 9;
    EQUAL(bed_admin(bed, (struct nvme_sqe){.opcode = ADMIN_ABORT, .cdw10 = 1 | (uint32_t)cid << 16}, &result), 0);
    EQUAL(result, 0);
    struct nvme_cqe cqe;
    CHECK(fh_wait(&bed->host, &bed->io, &cqe));
    EQUAL(cqe.cid, cid);
    EQUAL(cqe.status >> 1 & 0x7ff, SC_ABORT_REQUESTED);
    EQUAL(bed_admin(bed, (struct nvme_sqe){.opcode = ADMIN_ABORT, .cdw10 = 1 | (uint32_t)cid << 16}, &result), 0);
    EQUAL(result, 1);
    EQUAL(bed_admin(bed, (struct nvme_sqe){.opcode = ADMIN_DELETE_SQ, .cdw10 = 1}, NULL), 0);
    CHECK(fh_wait(&bed->host, &bed->io, &cqe));
    EQUAL(cqe.status >> 1 & 0x7ff, SC_ABORTED_SQ_DELETION);
    live_close(&live);
}

TEST(completions_are_dropped_forged_doubled_and_reordered)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    struct emu_ctrl *ctrl = bed->host.ctrl;
    struct nvme_cqe cqe;
    struct emu_fault fault = rule(IO_READ, EMU_FAULT_DROP);
    fault.count = 1;
    int id = emu_fault_add(ctrl, &fault);
    fh_push(&bed->io, read_one(&live, 0));
    fh_ring(&bed->host, &bed->io);
    EQUAL(emu_fault_wait(ctrl, id, 1, SECOND), 0);
    CHECK(nothing_comes(&live, &bed->io));
    emu_fault_clear(ctrl);

    fault = rule(IO_READ, EMU_FAULT_CQE);
    struct nvme_cqe forged = {.cid = 0xbeef, .sqhd = 0x1234, .status = SC_READ_ERROR};
    struct nvme_cqe mask = {.cid = 0xffff, .sqhd = 0xffff, .status = 0x7fff};
    memcpy(fault.cqe, &forged, 16);
    memcpy(fault.cqe_mask, &mask, 16);
    emu_fault_add(ctrl, &fault);
    fh_push(&bed->io, read_one(&live, 0));
    fh_ring(&bed->host, &bed->io);
    CHECK(fh_wait(&bed->host, &bed->io, &cqe));
    EQUAL(cqe.cid, 0xbeef);
    EQUAL(cqe.sqhd, 0x1234);
    EQUAL(cqe.status >> 1, SC_READ_ERROR);
    emu_fault_clear(ctrl);

    fault = rule(IO_READ, EMU_FAULT_DUPLICATE);
    emu_fault_add(ctrl, &fault);
    uint16_t cid = fh_push(&bed->io, read_one(&live, 0));
    fh_ring(&bed->host, &bed->io);
    for (unsigned i = 0; i < 2; i++) {
        CHECK(fh_wait(&bed->host, &bed->io, &cqe));
        EQUAL(cqe.cid, cid);
    }
    emu_fault_clear(ctrl);

    fault = rule(IO_READ, EMU_FAULT_REORDER);
    fault.distance = 2;
    fault.delay_ns = EMU_FOREVER;
    fault.count = 1;
    emu_fault_add(ctrl, &fault);
    cid = fh_push(&bed->io, read_one(&live, 0));
    for (unsigned i = 0; i < 4; i++)
        fh_push(&bed->io, read_one(&live, 0));
    fh_ring(&bed->host, &bed->io);
    unsigned place = 9;
    for (unsigned i = 0; i < 5; i++) {
        CHECK(fh_wait(&bed->host, &bed->io, &cqe));
        if (cqe.cid == cid)
            place = i;
    }
    CHECK(place >= 2 && place <= 4);
    emu_fault_clear(ctrl);

    fault = rule(IO_READ, EMU_FAULT_WRONG_PHASE);
    id = emu_fault_add(ctrl, &fault);
    fh_push(&bed->io, read_one(&live, 0));
    fh_ring(&bed->host, &bed->io);
    EQUAL(emu_fault_wait(ctrl, id, 1, SECOND), 0);
    CHECK(nothing_comes(&live, &bed->io));
    live_close(&live);
}

TEST(interrupts_are_lost_and_come_from_nowhere)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    struct emu_fault fault = rule(IO_READ, EMU_FAULT_LOSE_INTERRUPT);
    emu_fault_add(bed->host.ctrl, &fault);
    uint64_t before = __atomic_load_n(&bed->host.interrupts[1], __ATOMIC_RELAXED);
    EQUAL(bed_io(bed, read_one(&live, 0)), 0);
    usleep(2000);
    EQUAL(__atomic_load_n(&bed->host.interrupts[1], __ATOMIC_RELAXED), before);
    EQUAL(emu_fault_interrupt(bed->host.ctrl, 1, SECOND), 0);
    EQUAL(__atomic_load_n(&bed->host.interrupts[1], __ATOMIC_RELAXED), before + 1);
    EQUAL(-emu_fault_interrupt(bed->host.ctrl, 5, SECOND), EINVAL);
    emu_fault_clear(bed->host.ctrl);
    EQUAL(bed_io(bed, read_one(&live, 0)), 0);
    /* The interrupt follows the completion. */
    for (unsigned i = 0; i < 10000 && __atomic_load_n(&bed->host.interrupts[1], __ATOMIC_RELAXED) == before + 1; i++)
        usleep(100);
    EQUAL(__atomic_load_n(&bed->host.interrupts[1], __ATOMIC_RELAXED), before + 2);
    live_close(&live);
}

TEST(commands_and_admin_data_are_replaced)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    EQUAL(bed_write(bed, 3, 1, 0x33), 0);
    struct emu_fault fault = rule(IO_READ, EMU_FAULT_SQE);
    struct nvme_sqe sqe = {.cdw10 = 3}, mask = {.cdw10 = 0xffffffff};
    memcpy(fault.sqe, &sqe, 64);
    memcpy(fault.sqe_mask, &mask, 64);
    emu_fault_add(bed->host.ctrl, &fault);
    CHECK(bed_reads(bed, 0, 1, 0x33));
    fault = rule(ADMIN_IDENTIFY, EMU_FAULT_PAYLOAD);
    fault.queue = EMU_FAULT_ADMIN_QUEUE;
    fault.payload = "forged";
    fault.payload_len = 6;
    emu_fault_add(bed->host.ctrl, &fault);
    struct nvme_sqe identify = {.opcode = ADMIN_IDENTIFY, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = 1};
    EQUAL(bed_admin(bed, identify, NULL), 0);
    CHECK(!memcmp(bed->data, "forged0001", 6) && bed->data[111] == 1);
    live_close(&live);
}

TEST(data_of_reads_and_writes_are_replaced)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    EQUAL(bed_write(bed, 3, 1, 0x33), 0);
    struct emu_fault fault = rule(IO_READ, EMU_FAULT_PAYLOAD);
    fault.count = 1;
    fault.payload = "forged";
    fault.payload_len = 6;
    emu_fault_add(bed->host.ctrl, &fault);
    EQUAL(bed_io(bed, read_one(&live, 3)), 0);
    CHECK(!memcmp(bed->data, "forged\x33", 7) && bed->data[511] == 0x33);
    CHECK(bed_reads(bed, 3, 1, 0x33)); /* the medium has what was written */
    static uint8_t longer[1024];
    memset(longer, 0x55, sizeof(longer));
    fault = rule(IO_WRITE, EMU_FAULT_PAYLOAD);
    fault.count = 1;
    fault.payload = longer;
    fault.payload_len = sizeof(longer); /* more than is written */
    emu_fault_add(bed->host.ctrl, &fault);
    EQUAL(bed_write(bed, 3, 1, 0x44), 0);
    EQUAL(bed->data[0], 0x44); /* the host's memory is its own */
    CHECK(bed_reads(bed, 3, 1, 0x55));
    CHECK(bed_reads(bed, 4, 1, 0));
    live_close(&live);
}

TEST(fatal_status_and_surprise_removal)
{
    struct live live;
    live_open(&live);
    struct emu_ctrl *ctrl = live.bed.host.ctrl;
    EQUAL(emu_fault_fatal(ctrl, SECOND), 0);
    EQUAL(emu_csts(ctrl), CSTS_RDY | CSTS_CFS);
    EQUAL(emu_fault_removed(ctrl, true, SECOND), 0);
    EQUAL(emu_ctrl_read(ctrl, REG_CSTS, 4), 0xffffffff);
    EQUAL(emu_ctrl_read(ctrl, REG_CAP, 8), UINT64_MAX);
    EQUAL(emu_fault_removed(ctrl, false, SECOND), 0);
    EQUAL(emu_ctrl_read(ctrl, REG_CSTS, 4), 0);
    live_close(&live);
}

TEST(namespaces_come_go_and_grow_with_notice)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    struct emu_ctrl *ctrl = bed->host.ctrl;
    char err[256];
    struct nvme_sqe config = {.opcode = ADMIN_SET_FEATURES, .cdw10 = FEAT_ASYNC_EVENT, .cdw11 = 1 << 8};
    EQUAL(bed_admin(bed, config, NULL), 0);
    fh_push(&bed->host.admin, (struct nvme_sqe){.opcode = ADMIN_ASYNC_EVENT});
    fh_ring(&bed->host, &bed->host.admin);
    EQUAL(bed_write(bed, 1, 1, 1), 0);
    EQUAL(emu_ns_resize(ctrl, 1, 32u << 20, true, SECOND), 0);
    struct nvme_cqe cqe;
    CHECK(fh_wait(&bed->host, &bed->host.admin, &cqe));
    EQUAL(cqe.result, LOG_CHANGED_NS << 16 | NOTICE_NAMESPACE << 8 | EVENT_NOTICE);
    struct emu_ns_config ns = {.nbytes = 1u << 20, .block_size = 4096, .medium = EMU_MEDIUM_RAM};
    EQUAL(emu_ns_add(ctrl, 3, &ns, true, err, SECOND), 0); /* masked, but in the list */
    EQUAL(-emu_ns_add(ctrl, 3, &ns, true, err, SECOND), EEXIST);
    CHECK(strstr(err, "3"));
    EQUAL(-emu_ns_add(ctrl, 17, &ns, true, err, SECOND), EINVAL);
    EQUAL(bed_log(bed, LOG_CHANGED_NS, 4096, false), 0);
    uint32_t list[3];
    memcpy(list, bed->data, sizeof(list));
    CHECK(list[0] == 1 && list[1] == 3 && list[2] == 0);
    EQUAL(bed_log(bed, LOG_CHANGED_NS, 4096, false), 0);
    EQUAL(bed->data[0], 0);
    CHECK(bed_reads(bed, 1, 1, 1));
    EQUAL(bed_write(bed, 65535, 1, 1), 0); /* it has grown */
    EQUAL(emu_ns_resize(ctrl, 1, 8u << 20, false, SECOND), 0);
    EQUAL(bed_write(bed, 16384, 1, 1), SC_LBA_RANGE);
    EQUAL(emu_ns_remove(ctrl, 1, false, SECOND), 0);
    EQUAL(bed_write(bed, 0, 1, 1), SC_INVALID_FIELD);
    EQUAL(-emu_ns_remove(ctrl, 1, false, SECOND), ENOENT);
    live_close(&live);
}

TEST(requests_time_out_when_nobody_polls)
{
    struct bed bed;
    bed_open(&bed);
    EQUAL(-emu_fault_fatal(bed.host.ctrl, SECOND / 100), ETIMEDOUT);
    CHECK(!emu_ctrl_arm(bed.host.ctrl));
    bed_turn(&bed, 1);
    EQUAL(emu_csts(bed.host.ctrl), CSTS_RDY); /* it was withdrawn */
    CHECK(emu_ctrl_arm(bed.host.ctrl));
    bed_close(&bed);
}

TEST(doorbells_are_traced_and_everything_is_counted)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    emu_trace_doorbells(bed->host.ctrl, true);
    EQUAL(bed_io(bed, read_one(&live, 0)), 0);
    EQUAL(bed_io(bed, read_one(&live, 0)), 0);
    struct emu_doorbell trace[16];
    uint32_t n = emu_trace_read(bed->host.ctrl, 0, trace, 16);
    CHECK(n >= 3);
    CHECK(trace[0].qid == 1 && !trace[0].is_cq && trace[0].old == 0 && trace[0].new == 1 && trace[0].sequence == 0);
    EQUAL(emu_trace_read(bed->host.ctrl, n, trace, 16), 0);
    emu_trace_doorbells(bed->host.ctrl, false);
    struct emu_counters counters;
    emu_counters(bed->host.ctrl, &counters);
    EQUAL(counters.io[IO_READ], 2);
    EQUAL(counters.admin[ADMIN_CREATE_CQ], 1);
    EQUAL(counters.queues_created, 2);
    EQUAL(counters.bytes_read, 1024);
    CHECK(counters.interrupts >= 2);
    live_close(&live);
}

TEST(a_held_abort_may_end_the_command_held_after_it)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    struct emu_fault fault = {.qid = -1, .actions = EMU_FAULT_DELAY, .delay_ns = EMU_FOREVER};
    fault.mask[0] = 0xf0; /* every opcode below 10h, both queues */
    int id = emu_fault_add(bed->host.ctrl, &fault);
    fh_push(&bed->host.admin, (struct nvme_sqe){.opcode = ADMIN_ABORT, .cdw10 = 1 | (uint32_t)bed->io.next_cid << 16});
    fh_ring(&bed->host, &bed->host.admin);
    EQUAL(emu_fault_wait(bed->host.ctrl, id, 1, SECOND), 0);
    fh_push(&bed->io, read_one(&live, 0));
    fh_push(&bed->io, read_one(&live, 0));
    fh_ring(&bed->host, &bed->io);
    EQUAL(emu_fault_wait(bed->host.ctrl, id, 3, SECOND), 0);
    EQUAL(emu_fault_release(bed->host.ctrl, SECOND), 0);
    struct nvme_cqe cqe;
    CHECK(fh_wait(&bed->host, &bed->host.admin, &cqe));
    EQUAL(cqe.result, 0);
    CHECK(fh_wait(&bed->host, &bed->io, &cqe));
    EQUAL(cqe.status >> 1 & 0x7ff, SC_ABORT_REQUESTED);
    CHECK(fh_wait(&bed->host, &bed->io, &cqe));
    EQUAL(cqe.status >> 1, 0);
    live_close(&live);
}

TEST(a_held_command_keeps_its_payload_and_its_lost_interrupt)
{
    struct live live;
    live_open(&live);
    struct bed *bed = &live.bed;
    struct emu_fault fault = rule(ADMIN_IDENTIFY, EMU_FAULT_DELAY | EMU_FAULT_PAYLOAD);
    fault.queue = EMU_FAULT_ADMIN_QUEUE;
    fault.delay_ns = SECOND / 100;
    fault.payload = "late";
    fault.payload_len = 4;
    int id = emu_fault_add(bed->host.ctrl, &fault);
    struct nvme_sqe identify = {.opcode = ADMIN_IDENTIFY, .prp1 = fh_iova(&bed->host, bed->data), .cdw10 = 1};
    fh_push(&bed->host.admin, identify);
    fh_ring(&bed->host, &bed->host.admin);
    EQUAL(emu_fault_wait(bed->host.ctrl, id, 1, SECOND), 0);
    EQUAL(emu_fault_remove(bed->host.ctrl, id), 0);
    struct nvme_cqe cqe;
    CHECK(fh_wait(&bed->host, &bed->host.admin, &cqe));
    CHECK(!memcmp(bed->data, "late", 4) && bed->data[111] == 1);
    fault = rule(IO_READ, EMU_FAULT_DELAY_POST | EMU_FAULT_LOSE_INTERRUPT);
    fault.delay_ns = SECOND / 100;
    emu_fault_add(bed->host.ctrl, &fault);
    uint64_t before = __atomic_load_n(&bed->host.interrupts[1], __ATOMIC_RELAXED);
    EQUAL(bed_io(bed, read_one(&live, 0)), 0);
    usleep(2000);
    EQUAL(__atomic_load_n(&bed->host.interrupts[1], __ATOMIC_RELAXED), before);
    live_close(&live);
}
