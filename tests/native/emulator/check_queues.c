/* I/O queues: creation and deletion with every refusal, rings, doorbells, a full CQ, Doorbell
 * Buffer Config. */
#include "check.h"

static uint16_t create_cq(struct bed *bed, uint32_t cdw10, uint32_t cdw11, uint64_t prp1)
{
    return bed_admin(bed, (struct nvme_sqe){.opcode = ADMIN_CREATE_CQ, .prp1 = prp1, .cdw10 = cdw10, .cdw11 = cdw11},
                     NULL);
}

static uint16_t create_sq(struct bed *bed, uint32_t cdw10, uint32_t cdw11, uint64_t prp1)
{
    return bed_admin(bed, (struct nvme_sqe){.opcode = ADMIN_CREATE_SQ, .prp1 = prp1, .cdw10 = cdw10, .cdw11 = cdw11},
                     NULL);
}

static uint16_t delete(struct bed *bed, uint8_t opcode, uint16_t qid)
{
    return bed_admin(bed, (struct nvme_sqe){.opcode = opcode, .cdw10 = qid}, NULL);
}

TEST(creating_a_completion_queue_is_refused_as_specified)
{
    struct bed bed;
    bed_open(&bed);
    uint64_t page = fh_iova(&bed.host, bed.data);
    EQUAL(create_cq(&bed, 15u << 16 | 0, 3, page), SC_QID_INVALID);
    EQUAL(create_cq(&bed, 15u << 16 | 1, 3, page), SC_QID_INVALID); /* exists */
    EQUAL(create_cq(&bed, 15u << 16 | 5, 3, page), SC_QID_INVALID); /* four queue pairs */
    EQUAL(create_cq(&bed, 15u << 16 | 0xffff, 3, page), SC_QID_INVALID);
    EQUAL(create_cq(&bed, 0u << 16 | 2, 3, page), SC_QUEUE_SIZE);
    EQUAL(create_cq(&bed, 4096u << 16 | 2, 3, page), SC_QUEUE_SIZE);
    EQUAL(create_cq(&bed, 15u << 16 | 2, 5u << 16 | 3, page), SC_VECTOR_INVALID);
    EQUAL(create_cq(&bed, 15u << 16 | 2, 2, page), SC_INVALID_FIELD); /* PC */
    EQUAL(create_cq(&bed, 15u << 16 | 2, 3, page + 16), SC_PRP_OFFSET);
    EQUAL(create_cq(&bed, 15u << 16 | 2, 3, 0x1000), SC_DATA_TRANSFER);
    EQUAL(create_cq(&bed, 15u << 16 | 2, 3, page), 0);
    bed_close(&bed);
}

TEST(creating_a_submission_queue_is_refused_as_specified)
{
    struct bed bed;
    bed_open(&bed);
    uint64_t page = fh_iova(&bed.host, bed.data);
    EQUAL(create_sq(&bed, 15u << 16 | 0, 1u << 16 | 1, page), SC_QID_INVALID);
    EQUAL(create_sq(&bed, 15u << 16 | 1, 1u << 16 | 1, page), SC_QID_INVALID);
    EQUAL(create_sq(&bed, 15u << 16 | 5, 1u << 16 | 1, page), SC_QID_INVALID);
    EQUAL(create_sq(&bed, 0u << 16 | 2, 1u << 16 | 1, page), SC_QUEUE_SIZE);
    EQUAL(create_sq(&bed, 4096u << 16 | 2, 1u << 16 | 1, page), SC_QUEUE_SIZE);
    EQUAL(create_sq(&bed, 15u << 16 | 2, 0u << 16 | 1, page), SC_QID_INVALID);
    EQUAL(create_sq(&bed, 15u << 16 | 2, 9u << 16 | 1, page), SC_QID_INVALID);
    EQUAL(create_sq(&bed, 15u << 16 | 2, 3u << 16 | 1, page), SC_CQ_INVALID);
    EQUAL(create_sq(&bed, 15u << 16 | 2, 1u << 16 | 0, page), SC_INVALID_FIELD);
    EQUAL(create_sq(&bed, 15u << 16 | 2, 1u << 16 | 1, page + 64), SC_PRP_OFFSET);
    EQUAL(create_sq(&bed, 15u << 16 | 2, 1u << 16 | 1, 0x1000), SC_DATA_TRANSFER);
    EQUAL(create_sq(&bed, 15u << 16 | 2, 1u << 16 | 1, page), 0); /* two SQs on one CQ */
    bed_close(&bed);
}

TEST(deleting_queues_is_refused_as_specified)
{
    struct bed bed;
    bed_open(&bed);
    EQUAL(delete(&bed, ADMIN_DELETE_SQ, 0), SC_QID_INVALID);
    EQUAL(delete(&bed, ADMIN_DELETE_SQ, 2), SC_QID_INVALID);
    EQUAL(delete(&bed, ADMIN_DELETE_SQ, 9999), SC_QID_INVALID);
    EQUAL(delete(&bed, ADMIN_DELETE_CQ, 0), SC_QID_INVALID);
    EQUAL(delete(&bed, ADMIN_DELETE_CQ, 2), SC_QID_INVALID);
    EQUAL(delete(&bed, ADMIN_DELETE_CQ, 1), SC_QUEUE_DELETION);
    EQUAL(delete(&bed, ADMIN_DELETE_SQ, 1), 0);
    EQUAL(delete(&bed, ADMIN_DELETE_SQ, 1), SC_QID_INVALID);
    EQUAL(delete(&bed, ADMIN_DELETE_CQ, 1), 0);
    EQUAL(fh_create_io(&bed.host, &bed.io, 1, 32), 0);
    EQUAL(bed_write(&bed, 0, 1, 7), 0);
    bed_close(&bed);
}

TEST(queues_of_two_entries_and_of_65536_work)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 1u << 20, 512);
    config.mqes = 65535;
    struct fake_host host;
    fh_open(&host, &config, 16u << 20);
    EQUAL(fh_enable(&host, 2), CSTS_RDY);
    struct fh_queue small, large;
    EQUAL(fh_create_io(&host, &small, 1, 2), 0);
    EQUAL(fh_create_io(&host, &large, 2, 65536), 0);
    void *data = fh_alloc(&host, 4096);
    for (unsigned i = 0; i < 7; i++)
        EQUAL(fh_do(&host, &small, fh_rw(&host, IO_READ, i, 1, data, 512), NULL), 0);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 65535; i++)
            fh_push(&large, fh_rw(&host, IO_READ, i % 2048, 1, data, 512));
        fh_ring(&host, &large);
        struct nvme_cqe cqe;
        for (unsigned i = 0; i < 65535; i++) {
            CHECK(fh_wait(&host, &large, &cqe));
            EQUAL(cqe.cid, (uint16_t)(round * 65535 + i));
        }
    }
    fh_close(&host);
}

TEST(sq_head_and_identifiers_come_back_in_each_completion)
{
    struct bed bed;
    bed_open(&bed);
    struct nvme_cqe cqe;
    for (unsigned i = 0; i < 200; i++) {
        fh_push(&bed.io, fh_rw(&bed.host, IO_READ, i, 1, bed.data, 512));
        fh_ring(&bed.host, &bed.io);
        CHECK(fh_wait(&bed.host, &bed.io, &cqe));
        EQUAL(cqe.sqhd, (i + 1) % 64);
        EQUAL(cqe.sqid, 1);
        EQUAL(cqe.cid, i);
    }
    bed_close(&bed);
}

TEST(interrupts_come_once_a_turn_and_only_where_asked_for)
{
    struct bed bed;
    bed_open(&bed);
    uint64_t before = bed.host.interrupts[1];
    for (unsigned i = 0; i < 20; i++)
        fh_push(&bed.io, fh_rw(&bed.host, IO_READ, i, 1, bed.data, 512));
    fh_ring(&bed.host, &bed.io);
    bed_turn(&bed, 1);
    EQUAL(bed.host.interrupts[1], before + 1);
    uint64_t page = fh_iova(&bed.host, bed.data + 8192);
    EQUAL(create_cq(&bed, 15u << 16 | 2, 2u << 16 | 1, page), 0); /* IEN clear */
    EQUAL(create_sq(&bed, 15u << 16 | 2, 2u << 16 | 1, page + 4096), 0);
    struct fh_queue quiet = {.sq = (void *)(bed.data + 12288),
                             .cq = (void *)(bed.data + 8192),
                             .size = 16,
                             .cq_size = 16,
                             .qid = 2,
                             .phase = 1};
    memset(bed.data + 8192, 0, 8192);
    EQUAL(fh_do(&bed.host, &quiet, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512), NULL), 0);
    EQUAL(bed.host.interrupts[2], 0);
    bed_close(&bed);
}

/* Interrupts of one turn that executes 32 reads of 8 KiB. */
static uint64_t interrupts_of_a_turn(enum emu_medium medium)
{
    struct bed bed;
    struct emu_config config = fh_config(medium, 1u << 20, 512);
    bed_open_with(&bed, &config);
    uint64_t before = bed.host.interrupts[1];
    for (unsigned i = 0; i < 32; i++)
        fh_push(&bed.io, fh_rw(&bed.host, IO_READ, i * 16, 16, bed.data, 8192));
    fh_ring(&bed.host, &bed.io);
    bed_turn(&bed, 1);
    uint64_t interrupts = bed.host.interrupts[1] - before;
    struct nvme_cqe cqe;
    for (unsigned i = 0; i < 32; i++)
        CHECK(fh_reap(&bed.host, &bed.io, &cqe));
    bed_close(&bed);
    return interrupts;
}

TEST(a_turn_that_moves_much_data_interrupts_before_its_end)
{
    EQUAL(interrupts_of_a_turn(EMU_MEDIUM_RAM), 4);
    EQUAL(interrupts_of_a_turn(EMU_MEDIUM_NULL), 1);
}

TEST(a_full_completion_queue_holds_commands_and_loses_none)
{
    struct bed bed;
    bed_open(&bed);
    uint64_t cq_at = fh_iova(&bed.host, bed.data + 8192), sq_at = fh_iova(&bed.host, bed.data + 12288);
    memset(bed.data + 8192, 0, 8192);
    EQUAL(create_cq(&bed, 3u << 16 | 2, 2u << 16 | 3, cq_at), 0); /* 4 entries: 3 completions */
    EQUAL(create_sq(&bed, 31u << 16 | 2, 2u << 16 | 1, sq_at), 0);
    struct fh_queue q = {.sq = (void *)(bed.data + 12288),
                         .cq = (void *)(bed.data + 8192),
                         .size = 32,
                         .cq_size = 4,
                         .qid = 2,
                         .phase = 1};
    for (unsigned i = 0; i < 30; i++)
        fh_push(&q, fh_rw(&bed.host, IO_READ, i, 1, bed.data, 512));
    fh_ring(&bed.host, &q);
    bed_turn(&bed, 10);
    struct emu_counters counters;
    emu_counters(bed.host.ctrl, &counters);
    EQUAL(counters.io[IO_READ], 3);
    CHECK(emu_ctrl_arm(bed.host.ctrl)); /* there is nothing to do: sleeping is correct */
    struct nvme_cqe cqe;
    for (unsigned i = 0; i < 30; i++) {
        CHECK(fh_wait(&bed.host, &q, &cqe));
        EQUAL(cqe.cid, i);
    }
    bed_close(&bed);
}

TEST(invalid_doorbells_are_reported_and_stop_their_queue)
{
    struct bed bed;
    bed_open(&bed);
    bed_aer(&bed);
    bed.host.doorbells[2] = 64; /* tail beyond the ring */
    EQUAL(bed_event(&bed), LOG_ERROR << 16 | ERROR_INVALID_DOORBELL_VALUE << 8 | EVENT_ERROR);
    bed.host.doorbells[2] = 1;
    bed_turn(&bed, 3);
    struct emu_counters counters;
    emu_counters(bed.host.ctrl, &counters);
    EQUAL(counters.io[0], 0);
    EQUAL(counters.invalid_doorbells, 1);
    EQUAL(delete(&bed, ADMIN_DELETE_SQ, 1), 0);
    EQUAL(delete(&bed, ADMIN_DELETE_CQ, 1), 0);
    EQUAL(fh_create_io(&bed.host, &bed.io, 1, 8), 0); /* deleted and created again it works */
    EQUAL(bed_write(&bed, 0, 1, 3), 0);

    bed_aer(&bed);
    bed.host.doorbells[40] = 1; /* no such queue; masked: the error log hasn't been read */
    emu_ctrl_arm(bed.host.ctrl);
    EQUAL(bed_event(&bed), 0xffffffff);
    EQUAL(bed_log(&bed, LOG_ERROR, 64, false), 0); /* which reports it: no event is needed any more */
    EQUAL(bed_event(&bed), 0xffffffff);
    bed.host.doorbells[41] = 1;
    emu_ctrl_arm(bed.host.ctrl);
    EQUAL(bed_event(&bed), LOG_ERROR << 16 | ERROR_INVALID_DOORBELL << 8 | EVENT_ERROR);
    emu_counters(bed.host.ctrl, &counters);
    EQUAL(counters.invalid_doorbells, 3);
    bed_close(&bed);
}

TEST(a_completion_head_beyond_what_was_posted_is_invalid)
{
    struct bed bed;
    bed_open(&bed);
    bed_aer(&bed);
    EQUAL(bed_write(&bed, 0, 1, 1), 0);
    bed.host.doorbells[3] = 5;
    fh_push(&bed.io, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512));
    fh_ring(&bed.host, &bed.io);
    EQUAL(bed_event(&bed), LOG_ERROR << 16 | ERROR_INVALID_DOORBELL_VALUE << 8 | EVENT_ERROR);
    struct nvme_cqe cqe;
    bed_turn(&bed, 5);
    CHECK(!fh_reap(&bed.host, &bed.io, &cqe));
    bed_close(&bed);
}

TEST(an_idle_queues_completion_head_out_of_range_is_invalid)
{
    struct bed bed;
    bed_open(&bed);
    bed_aer(&bed);
    EQUAL(bed_write(&bed, 0, 1, 1), 0);
    bed.host.doorbells[3] = 5; /* no command follows */
    emu_ctrl_arm(bed.host.ctrl);
    EQUAL(bed_event(&bed), LOG_ERROR << 16 | ERROR_INVALID_DOORBELL_VALUE << 8 | EVENT_ERROR);
    emu_ctrl_arm(bed.host.ctrl); /* reported once */
    struct emu_counters counters;
    emu_counters(bed.host.ctrl, &counters);
    EQUAL(counters.invalid_doorbells, 1);
    bed_close(&bed);
}

TEST(doorbells_work_as_register_writes)
{
    struct bed bed;
    bed_open(&bed);
    fh_push(&bed.io, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512));
    emu_ctrl_write(bed.host.ctrl, EMU_DOORBELL_OFFSET + 8, 4, bed.io.tail);
    struct nvme_cqe cqe;
    CHECK(fh_wait(&bed.host, &bed.io, &cqe));
    bed_aer(&bed);
    emu_ctrl_write(bed.host.ctrl, EMU_DOORBELL_OFFSET + 0xff8, 4, 1);
    EQUAL(bed_event(&bed), LOG_ERROR << 16 | ERROR_INVALID_DOORBELL << 8 | EVENT_ERROR);
    bed_close(&bed);
}

TEST(doorbell_buffers_replace_the_doorbells_of_io_queues)
{
    struct bed bed;
    bed_open(&bed);
    EQUAL(bed_write(&bed, 0, 1, 5), 0); /* so that the tails are not zero */
    uint32_t *shadow = fh_alloc(&bed.host, 4096), *event = fh_alloc(&bed.host, 4096);
    struct nvme_sqe sqe = {
        .opcode = ADMIN_DBBUF, .prp1 = fh_iova(&bed.host, shadow) + 4, .prp2 = fh_iova(&bed.host, event)};
    EQUAL(bed_admin(&bed, sqe, NULL), SC_INVALID_FIELD);
    sqe.prp1 -= 4;
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    EQUAL(shadow[2], 1);
    EQUAL(shadow[3], 1);
    CHECK(emu_ctrl_arm(bed.host.ctrl));
    CHECK(emu_ctrl_armed_fully(bed.host.ctrl));
    EQUAL(event[2], 1);
    bed.host.shadow = shadow;
    fh_push(&bed.io, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512));
    fh_ring(&bed.host, &bed.io);
    CHECK(!emu_ctrl_arm(bed.host.ctrl)); /* work came in */
    struct nvme_cqe cqe;
    CHECK(fh_wait(&bed.host, &bed.io, &cqe));
    /* While it polls, the controller keeps EventIdx out of reach: it requests few doorbells for
     * 1000 commands. */
    unsigned rings = 0;
    for (unsigned i = 0; i < 1000; i++) {
        uint16_t old = (uint16_t)bed.io.tail;
        fh_push(&bed.io, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512));
        fh_ring(&bed.host, &bed.io);
        rings += (uint16_t)(bed.io.tail - event[2] - 1) < (uint16_t)(bed.io.tail - old);
        CHECK(fh_wait(&bed.host, &bed.io, &cqe));
    }
    CHECK(rings <= 1000 / 32 + 1);
    /* While the mapping is missing the queue stands still, and nothing is lost. */
    bed.host.unmapped = true;
    emu_ctrl_dma_changed(bed.host.ctrl);
    fh_push(&bed.io, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512));
    fh_ring(&bed.host, &bed.io);
    bed_turn(&bed, 5);
    bed.host.unmapped = false;
    emu_ctrl_dma_changed(bed.host.ctrl);
    CHECK(fh_wait(&bed.host, &bed.io, &cqe));
    /* A queue made later starts at zero in the shadow buffer too. */
    shadow[4] = shadow[5] = 9;
    struct fh_queue second;
    EQUAL(fh_create_io(&bed.host, &second, 2, 16), 0);
    EQUAL(shadow[4], 0);
    EQUAL(fh_do(&bed.host, &second, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512), NULL), 0);
    /* A reset ends it. */
    emu_ctrl_write(bed.host.ctrl, REG_CC, 4, 0);
    bed.host.shadow = NULL;
    EQUAL(fh_enable(&bed.host, 8), CSTS_RDY);
    EQUAL(fh_create_io(&bed.host, &bed.io, 1, 8), 0);
    EQUAL(bed_write(&bed, 0, 1, 3), 0);
    bed_close(&bed);
}

TEST(without_the_offer_doorbell_buffers_are_an_invalid_opcode)
{
    struct emu_config config = fh_config(EMU_MEDIUM_NULL, 1u << 20, 512);
    config.dbbuf = false;
    struct bed bed;
    bed_open_with(&bed, &config);
    EQUAL(bed_admin(&bed, (struct nvme_sqe){.opcode = ADMIN_DBBUF, .prp1 = FH_IOVA, .prp2 = FH_IOVA}, NULL),
          SC_INVALID_OPCODE);
    CHECK(emu_ctrl_arm(bed.host.ctrl));
    CHECK(!emu_ctrl_armed_fully(bed.host.ctrl));
    bed_close(&bed);
}

TEST(a_tail_that_passes_the_head_is_invalid)
{
    struct bed bed;
    bed_open(&bed);
    bed_aer(&bed);
    uint64_t cq_at = fh_iova(&bed.host, bed.data + 8192), sq_at = fh_iova(&bed.host, bed.data + 12288);
    EQUAL(create_cq(&bed, 1u << 16 | 2, 2u << 16 | 3, cq_at), 0); /* one completion, then fetching stops */
    EQUAL(create_sq(&bed, 7u << 16 | 2, 2u << 16 | 1, sq_at), 0);
    struct fh_queue q = {.sq = (void *)(bed.data + 12288),
                         .cq = (void *)(bed.data + 8192),
                         .size = 8,
                         .cq_size = 2,
                         .qid = 2,
                         .phase = 1};
    for (unsigned i = 0; i < 5; i++)
        fh_push(&q, fh_rw(&bed.host, IO_READ, i, 1, bed.data, 512));
    fh_ring(&bed.host, &q);
    bed_turn(&bed, 3);
    EQUAL(bed_event(&bed), 0xffffffff);
    bed.host.doorbells[4] = 0; /* head is 1, so seven are waiting: full, which is allowed */
    bed_turn(&bed, 3);
    EQUAL(bed_event(&bed), 0xffffffff);
    bed.host.doorbells[4] = 1; /* one more than that */
    EQUAL(bed_event(&bed), LOG_ERROR << 16 | ERROR_INVALID_DOORBELL_VALUE << 8 | EVENT_ERROR);
    bed_close(&bed);
}

/* Three late completions meet a queue with room for one. */
TEST(a_deleted_queue_posts_nothing_more)
{
    struct bed bed;
    bed_open(&bed);
    uint64_t cq_at = fh_iova(&bed.host, bed.data + 8192), sq_at = fh_iova(&bed.host, bed.data + 12288);
    memset(bed.data + 8192, 0, 8192);
    EQUAL(create_cq(&bed, 1u << 16 | 2, 2u << 16 | 3, cq_at), 0);
    EQUAL(create_sq(&bed, 7u << 16 | 2, 2u << 16 | 1, sq_at), 0);
    EQUAL(create_sq(&bed, 7u << 16 | 3, 2u << 16 | 1, sq_at + 4096), 0);
    struct fh_queue q = {.sq = (void *)(bed.data + 12288),
                         .cq = (void *)(bed.data + 8192),
                         .size = 8,
                         .cq_size = 2,
                         .qid = 2,
                         .phase = 1};
    struct fh_queue other = {.sq = (void *)(bed.data + 16384), .size = 8, .qid = 3, .next_cid = 100};
    struct emu_fault late = {
        .qid = -1, .value = {IO_READ}, .mask = {0xff}, .actions = EMU_FAULT_DELAY, .delay_ns = 1000000};
    int id = emu_fault_add(bed.host.ctrl, &late);
    for (unsigned i = 0; i < 2; i++)
        fh_push(&q, fh_rw(&bed.host, IO_READ, i, 1, bed.data, 512));
    fh_push(&other, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512));
    fh_ring(&bed.host, &q);
    fh_ring(&bed.host, &other);
    struct emu_counters counters;
    do {
        bed_turn(&bed, 1);
        emu_counters(bed.host.ctrl, &counters);
    } while (counters.io[IO_READ] < 3);
    EQUAL(emu_fault_hits(bed.host.ctrl, id, NULL), 3);
    EQUAL(delete(&bed, ADMIN_DELETE_SQ, 2), 0);
    struct nvme_cqe cqe;
    CHECK(fh_wait(&bed.host, &q, &cqe)); /* posted before */
    EQUAL(cqe.sqid, 2);
    CHECK(fh_wait(&bed.host, &q, &cqe)); /* the other queue's */
    EQUAL(cqe.sqid, 3);
    EQUAL(cqe.cid, 100);
    bed_turn(&bed, 5);
    CHECK(!fh_reap(&bed.host, &q, &cqe));
    bed_close(&bed);
}

static uint8_t turn_and_look(struct bed *bed)
{
    bed_turn(bed, 2);
    return emu_ctrl_pin(bed->host.ctrl);
}

TEST(the_interrupt_pin_is_a_level)
{
    struct bed bed;
    bed_open(&bed);
    EQUAL(turn_and_look(&bed), 0);
    fh_push(&bed.io, fh_rw(&bed.host, IO_READ, 0, 1, bed.data, 512));
    fh_push(&bed.io, fh_rw(&bed.host, IO_READ, 1, 1, bed.data, 512));
    fh_ring(&bed.host, &bed.io);
    EQUAL(turn_and_look(&bed), 1);
    emu_ctrl_write(bed.host.ctrl, REG_INTMS, 4, 1);
    EQUAL(turn_and_look(&bed), 0);
    emu_ctrl_write(bed.host.ctrl, REG_INTMC, 4, 1);
    EQUAL(turn_and_look(&bed), 1);
    struct nvme_cqe cqe;
    CHECK(fh_reap(&bed.host, &bed.io, &cqe));
    EQUAL(turn_and_look(&bed), 1); /* one more */
    CHECK(fh_reap(&bed.host, &bed.io, &cqe));
    EQUAL(turn_and_look(&bed), 0);
    /* With shadow doorbells the next completion doorbell is requested as MMIO. */
    uint32_t *shadow = fh_alloc(&bed.host, 4096), *event = fh_alloc(&bed.host, 4096);
    struct nvme_sqe sqe = {
        .opcode = ADMIN_DBBUF, .prp1 = fh_iova(&bed.host, shadow), .prp2 = fh_iova(&bed.host, event)};
    EQUAL(bed_admin(&bed, sqe, NULL), 0);
    bed.host.shadow = shadow;
    EQUAL(bed_write(&bed, 0, 1, 5), 0);
    EQUAL(turn_and_look(&bed), 0);
    EQUAL(event[3], 3);
    EQUAL(shadow[3], 3);
    bed_close(&bed);
}
