/* Flexible Data Placement and directives, as a host that breaks their rules sees them. */
#include "check.h"

static struct emu_config placement_config(void)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 16u << 20, 512);
    config.extras.endurance = true;
    config.extras.fdp_handles = 3;
    config.extras.fdp_groups = 3;
    config.extras.fdp_unit_nbytes = 8192;
    config.extras.streams = 2;
    return config;
}

static uint16_t write_with(struct bed *bed, unsigned type, unsigned value)
{
    struct nvme_sqe sqe = fh_rw(&bed->host, IO_WRITE, 0, 8, bed->data, 4096);
    sqe.cdw12 |= type << 20;
    sqe.cdw13 = value << 16;
    return bed_io(bed, sqe);
}

/* I/O Management Receive or Send. */
static uint16_t manage(struct bed *bed, uint8_t opcode, uint32_t cdw10, uint32_t dwords)
{
    struct nvme_sqe sqe = {.opcode = opcode, .nsid = 1, .cdw10 = cdw10, .cdw11 = dwords - 1};
    sqe.prp1 = fh_iova(&bed->host, bed->data);
    return bed_io(bed, sqe);
}

/* What can be written to the reclaim unit of a placement identifier, in blocks. */
static uint64_t room(struct bed *bed, unsigned index, uint16_t pid)
{
    uint64_t blocks;
    EQUAL(manage(bed, IO_MANAGEMENT_RECEIVE, 1, 1024), SC_SUCCESS);
    EQUAL(bed->data[14], 9);
    CHECK(!memcmp(bed->data + 16 + 32 * index, &pid, 2));
    memcpy(&blocks, bed->data + 16 + 32 * index + 8, 8);
    return blocks;
}

static uint16_t directive(struct bed *bed, uint8_t opcode, uint32_t cdw11, uint32_t cdw12, uint32_t *result)
{
    struct nvme_sqe sqe = {.opcode = opcode, .nsid = 1, .cdw10 = 1023, .cdw11 = cdw11, .cdw12 = cdw12};
    sqe.prp1 = fh_iova(&bed->host, bed->data);
    return bed_admin(bed, sqe, result);
}

TEST(placement_identifiers_have_the_reclaim_group_in_their_upper_bits)
{
    struct emu_config config = placement_config();
    struct bed bed;
    bed_open_with(&bed, &config);
    EQUAL(room(&bed, 0, 0), 16);
    EQUAL(room(&bed, 5, 1u << 14 | 2), 16);
    EQUAL(write_with(&bed, 2, 1u << 14 | 2), SC_SUCCESS);
    EQUAL(room(&bed, 5, 1u << 14 | 2), 8);
    EQUAL(write_with(&bed, 2, 1u << 14 | 2), SC_SUCCESS); /* full: the next unit */
    EQUAL(room(&bed, 5, 1u << 14 | 2), 16);
    EQUAL(write_with(&bed, 2, 3u << 14), SC_SUCCESS); /* of no group: as without a directive */
    EQUAL(room(&bed, 0, 0), 8);
    bed_close(&bed);
}

TEST(io_management_refuses_what_there_is_not)
{
    struct emu_config config = placement_config();
    struct bed bed;
    bed_open_with(&bed, &config);
    EQUAL(manage(&bed, IO_MANAGEMENT_RECEIVE, 0, 1), SC_SUCCESS);
    EQUAL(manage(&bed, IO_MANAGEMENT_RECEIVE, 2, 1), SC_INVALID_FIELD);
    EQUAL(manage(&bed, IO_MANAGEMENT_RECEIVE, 1, 0), SC_INVALID_FIELD); /* 2^32 dwords */
    memset(bed.data, 0xff, 4096);
    EQUAL(manage(&bed, IO_MANAGEMENT_RECEIVE, 1, 1), SC_SUCCESS); /* no byte more than it asked for */
    EQUAL(bed.data[4], 0xff);
    EQUAL(write_with(&bed, 2, 0), SC_SUCCESS);
    memset(bed.data, 0, 4096);
    bed.data[2] = 3; /* identifiers 0 and 3: none is updated */
    EQUAL(manage(&bed, IO_MANAGEMENT_SEND, 1u << 16 | 1, 1), SC_INVALID_FIELD);
    EQUAL(room(&bed, 0, 0), 8);
    EQUAL(manage(&bed, IO_MANAGEMENT_SEND, 9u << 16 | 1, 1), SC_INVALID_FIELD); /* over MAXPIDS */
    EQUAL(manage(&bed, IO_MANAGEMENT_SEND, 0xffffu << 16 | 1, 1), SC_INVALID_FIELD);
    EQUAL(manage(&bed, IO_MANAGEMENT_SEND, 3, 1), SC_INVALID_FIELD);
    memset(bed.data, 0, 4096);
    EQUAL(manage(&bed, IO_MANAGEMENT_SEND, 1, 1), SC_SUCCESS);
    EQUAL(room(&bed, 0, 0), 16);
    bed_close(&bed);
}

TEST(without_the_options_there_is_neither_placement_nor_a_directive)
{
    struct bed bed;
    bed_open(&bed);
    EQUAL(manage(&bed, IO_MANAGEMENT_RECEIVE, 1, 1), SC_INVALID_OPCODE);
    EQUAL(manage(&bed, IO_MANAGEMENT_SEND, 1, 1), SC_INVALID_OPCODE);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_RECEIVE, 1, 0, NULL), SC_INVALID_OPCODE);
    EQUAL(write_with(&bed, 1, 1), SC_INVALID_FIELD);
    EQUAL(write_with(&bed, 2, 0), SC_INVALID_FIELD);
    bed_close(&bed);
}

TEST(directives_refuse_what_there_is_not)
{
    struct emu_config config = placement_config();
    uint32_t result = 0;
    struct bed bed;
    bed_open_with(&bed, &config);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_RECEIVE, 1, 0, NULL), SC_SUCCESS);
    EQUAL(bed.data[0], 7);  /* supported: Identify, Streams, Data Placement */
    EQUAL(bed.data[32], 5); /* enabled */
    EQUAL(write_with(&bed, 1, 1), SC_INVALID_FIELD);
    EQUAL(write_with(&bed, 3, 1), SC_INVALID_FIELD);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_RECEIVE, 1u << 8 | 2, 0, NULL), SC_INVALID_FIELD); /* not enabled */
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_SEND, 1, 2u << 8, NULL), SC_INVALID_FIELD); /* placement stays */
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_SEND, 1, 1u << 8 | 1, NULL), SC_SUCCESS);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_SEND, 1u << 8 | 9, 0, NULL), SC_INVALID_FIELD);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_RECEIVE, 1u << 8 | 9, 0, NULL), SC_INVALID_FIELD);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_RECEIVE, 1u << 8 | 3, 0, NULL), SC_INVALID_FIELD); /* no streams asked for */
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_RECEIVE, 1u << 8 | 3, 0xffff, &result), SC_SUCCESS);
    EQUAL(result, 2);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_RECEIVE, 1u << 8 | 3, 1, NULL), SC_INVALID_FIELD); /* twice */
    for (unsigned stream = 1; stream < 1000; stream++)
        EQUAL(write_with(&bed, 1, stream), SC_SUCCESS);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_RECEIVE, 1u << 8 | 2, 0, NULL), SC_SUCCESS);
    EQUAL(bed.data[0], 2);
    EQUAL(bed.data[2] | bed.data[3] << 8, 998);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_SEND, 999u << 16 | 1u << 8 | 1, 0, NULL), SC_SUCCESS);
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_SEND, 7u << 16 | 1u << 8 | 1, 0, NULL), SC_SUCCESS); /* none: no error */
    EQUAL(directive(&bed, ADMIN_DIRECTIVE_RECEIVE, 1u << 8 | 2, 0, NULL), SC_SUCCESS);
    EQUAL(bed.data[0], 1);
    bed_close(&bed);
}

TEST(logs_and_features_of_placement_name_the_endurance_group)
{
    struct emu_config config = placement_config();
    struct bed bed;
    bed_open_with(&bed, &config);
    for (unsigned lid = LOG_FDP_CONFIGURATIONS; lid <= LOG_FDP_EVENTS; lid++) {
        struct nvme_sqe sqe = {.opcode = ADMIN_GET_LOG_PAGE, .cdw10 = lid | 15u << 16};
        sqe.prp1 = fh_iova(&bed.host, bed.data);
        EQUAL(bed_admin(&bed, sqe, NULL), SC_INVALID_FIELD);
        sqe.cdw11 = 1u << 16;
        EQUAL(bed_admin(&bed, sqe, NULL), SC_SUCCESS);
    }
    struct nvme_sqe events = {.opcode = ADMIN_SET_FEATURES, .nsid = 1, .cdw10 = FEAT_FDP_EVENTS, .cdw12 = 1};
    events.prp1 = fh_iova(&bed.host, bed.data);
    memset(bed.data, 0x7f, 4096);
    events.cdw11 = 255u << 16;
    EQUAL(bed_admin(&bed, events, NULL), SC_INVALID_FIELD); /* no such event */
    events.cdw11 = 3;
    EQUAL(bed_admin(&bed, events, NULL), SC_INVALID_FIELD); /* no such handle */
    events = (struct nvme_sqe){.opcode = ADMIN_SET_FEATURES, .cdw10 = FEAT_FDP, .cdw11 = 1};
    EQUAL(bed_admin(&bed, events, NULL), SC_COMMAND_SEQUENCE); /* there is a namespace */
    events.cdw11 = 2;
    EQUAL(bed_admin(&bed, events, NULL), SC_INVALID_FIELD);
    bed_close(&bed);
}
