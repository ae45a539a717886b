#include "check.h"

static struct {
    const char *name;
    void (*run)(void);
} tests[256];
static unsigned n_tests;

void check_register(const char *name, void (*run)(void))
{
    tests[n_tests].name = name;
    tests[n_tests++].run = run;
}

int main(int argc, char **argv)
{
    bool list = argc == 2 && !strcmp(argv[1], "--list");
    for (unsigned i = 0; i < n_tests; i++) {
        if (list)
            puts(tests[i].name);
        else if (argc < 2 || !strcmp(argv[1], tests[i].name)) {
            tests[i].run();
            if (argc == 2)
                return 0;
        }
    }
    return list || argc < 2 ? 0 : 2;
}

void bed_open_with(struct bed *bed, const struct emu_config *config)
{
    fh_open(&bed->host, config, 8u << 20);
    EQUAL(fh_enable(&bed->host, 32), CSTS_RDY);
    EQUAL(fh_create_io(&bed->host, &bed->io, 1, 64), 0);
    bed->data = fh_alloc(&bed->host, 64 * 4096);
}

void bed_open(struct bed *bed)
{
    struct emu_config config = fh_config(EMU_MEDIUM_RAM, 16u << 20, 512);
    bed_open_with(bed, &config);
}

void bed_close(struct bed *bed)
{
    fh_close(&bed->host);
}

uint16_t bed_io(struct bed *bed, struct nvme_sqe sqe)
{
    return fh_do(&bed->host, &bed->io, sqe, NULL);
}

uint16_t bed_admin(struct bed *bed, struct nvme_sqe sqe, uint32_t *result)
{
    return fh_do(&bed->host, &bed->host.admin, sqe, result);
}

uint16_t bed_write(struct bed *bed, uint64_t lba, uint32_t blocks, uint8_t fill)
{
    memset(bed->data, fill, 8192);
    return bed_io(bed, fh_rw(&bed->host, IO_WRITE, lba, blocks, bed->data, blocks * 512));
}

bool bed_reads(struct bed *bed, uint64_t lba, uint32_t blocks, uint8_t fill)
{
    memset(bed->data, (uint8_t)~fill, 8192);
    if (bed_io(bed, fh_rw(&bed->host, IO_READ, lba, blocks, bed->data, blocks * 512)))
        return false;
    for (uint32_t i = 0; i < blocks * 512; i++)
        if (bed->data[i] != fill)
            return false;
    return true;
}

uint16_t bed_log(struct bed *bed, uint8_t lid, uint32_t nbytes, bool retain)
{
    struct nvme_sqe sqe = {.opcode = ADMIN_GET_LOG_PAGE,
                           .nsid = NSID_ALL,
                           .prp1 = fh_iova(&bed->host, bed->data),
                           .cdw10 = lid | (retain ? 1u << 15 : 0) | (nbytes / 4 - 1) << 16};
    return bed_admin(bed, sqe, NULL);
}

void bed_turn(struct bed *bed, unsigned n)
{
    while (n--)
        emu_ctrl_poll(bed->host.ctrl);
}

uint16_t bed_aer(struct bed *bed)
{
    uint16_t cid = fh_push(&bed->host.admin, (struct nvme_sqe){.opcode = ADMIN_ASYNC_EVENT});
    fh_ring(&bed->host, &bed->host.admin);
    bed_turn(bed, 1);
    return cid;
}

uint32_t bed_event(struct bed *bed)
{
    struct nvme_cqe cqe;
    bed_turn(bed, 1);
    if (!fh_reap(&bed->host, &bed->host.admin, &cqe))
        return 0xffffffff;
    EQUAL(cqe.status >> 1, 0);
    return cqe.result;
}
