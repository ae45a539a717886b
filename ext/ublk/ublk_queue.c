/* From the kernel's requests to NVMe commands and back. See ublk_queue.h. */
#define _GNU_SOURCE
#include "ublk_queue.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hotpath/nvm_commands.h"
#include "hotpath/source_pump.h"

#define SET_IO_FLUSHER 57 /* PR_SET_IO_FLUSHER, Linux 5.6 */

void ublk_set_mark(uint64_t mark)
{
    nvs_set_mark(mark);
}

/* drivers/nvme/host/core.c, nvme_error_status(); block/blk-core.c, blk_errors. */
int ublk_error_of(uint16_t status)
{
    switch (status & 0x7ff) { /* type and code; Base 2.0, 3.3.3.2.1 */
    case 0x000:
        return 0;
    case 0x081: /* Capacity Exceeded */
        return -ENOSPC;
    case 0x021: /* Command Interrupted */
    case 0x080: /* LBA Out of Range */
    case 0x082: /* Namespace Not Ready */
        return -EREMOTEIO;
    case 0x001: /* Invalid Command Opcode */
    case 0x002: /* Invalid Field in Command */
    case 0x00b: /* Invalid Namespace or Format */
    case 0x180: /* Conflicting Attributes */
        return -EOPNOTSUPP;
    case 0x182: /* Attempted Write to Read Only Range */
    case 0x280: /* Write Fault */
    case 0x281: /* Unrecovered Read Error */
    case 0x285: /* Compare Failure */
    case 0x286: /* Access Denied */
    case 0x287: /* Deallocated or Unwritten Logical Block */
        return -ENODATA;
    case 0x181: /* Invalid Protection Information */
    case 0x282: /* End-to-end Guard Check Error */
    case 0x283: /* Application Tag Check Error */
    case 0x284: /* Reference Tag Check Error */
        return -EILSEQ;
    case 0x083: /* Reservation Conflict */
        return -EBADE;
    case 0x370: /* Host Pathing Error */
        return -ENOLINK;
    default:
        return -EIO;
    }
}

static void fail(struct ublk_queue *u, const char *why, int error)
{
    if (!u->why) {
        u->why = why;
        u->why_errno = error;
    }
}

static void send_entry(struct ublk_queue *u, uint32_t tag, unsigned command, int32_t result)
{
    struct uring_sqe *sqe = ring_entry(&u->ring);
    if (!sqe) { /* it has an entry for each tag, and a tag is on one side at a time */
        fail(u, "the ring is full", EBUSY);
        return;
    }
    const struct ublk_cell *cell = (struct ublk_cell *)nvq_cell_at(&u->source, tag);
    const struct ublk_io_cmd cmd = {
        .q_id = u->number,
        .tag = (uint16_t)tag,
        .result = result,
        .addr = (uint64_t)(uintptr_t)cell->memory,
    };
    sqe->opcode = URING_OP_URING_CMD;
    sqe->fd = u->fd;
    sqe->off = u->g.legacy ? command : ublk_io_number(command);
    sqe->user_data = tag;
    memcpy(&sqe->addr3, &cmd, sizeof cmd);
    u->n_offered++;
}

static int set_capabilities(struct __user_cap_data_struct data[2])
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    return (int)syscall(SYS_capset, &header, data);
}

/*
 * All tags are offered, in one system call and without CAP_SYS_ADMIN: a kernel that sees privileged
 * servers scans for partitions within START_DEV, and before Linux 6.16 a server that dies then
 * leaves a device that neither ends nor recovers.
 */
static void fetch_all(struct ublk_queue *u)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct held[2], less[2];
    /* Memory that this thread allocates is never freed by writing to its own device. */
    (void)prctl(SET_IO_FLUSHER, 1, 0, 0, 0);
    const bool known = !syscall(SYS_capget, &header, held);
    if (known) {
        memcpy(less, held, sizeof less);
        less[CAP_SYS_ADMIN / 32].effective &= ~(1u << CAP_SYS_ADMIN % 32);
        (void)set_capabilities(less);
    }
    for (uint32_t tag = 0; tag < u->source.n_cells; tag++)
        send_entry(u, tag, UBLK_FETCH_REQ, 0);
    const int sent = ring_submit(&u->ring);
    if (known)
        (void)set_capabilities(held);
    if (sent)
        fail(u, "the kernel takes no requests for requests", -sent);
    u->fetching = true;
}

static void answer(struct ublk_queue *u, struct ublk_cell *cell, int32_t result)
{
    const uint32_t tag = (uint32_t)(((uint8_t *)cell - u->source.cells) / u->source.cell_bytes);
    cell->active = false;
    u->n_active--;
    u->counters.errors += result < 0;
    if (!u->ended)
        send_entry(u, tag, UBLK_COMMIT_AND_FETCH_REQ, result);
}

/* The cell's command is to be posted. */
static void make_ready(struct ublk_queue *u, struct ublk_cell *cell, uint8_t opcode, uint32_t cdw12, uint64_t lba,
                       uint32_t nbytes, uint16_t flags)
{
    struct nvb_batch *b = &cell->c.batch;
    b->command = (struct nvq_sqe){.opcode = opcode, .nsid = u->g.nsid, .cdw12 = cdw12};
    b->data = nbytes ? cell->memory : NULL;
    nvq_cell_prepare(&cell->c, lba, nbytes, flags);
    cell->next = NULL;
    if (u->ready)
        u->ready_last->next = cell;
    else
        u->ready = cell;
    u->ready_last = cell;
}

/* Whether the request may be carried out: 0 or a negative errno. The kernel keeps to the device's
 * limits, but a command that breaks them would write elsewhere. */
static int refusal(const struct ublk_queue *u, uint8_t op, uint64_t start, uint64_t nbytes)
{
    const struct ublk_geometry *g = &u->g;
    uint64_t most = g->cell_nbytes;
    switch (op) {
    case UBLK_OP_FLUSH:
        return 0;
    case UBLK_OP_READ:
        break;
    case UBLK_OP_DISCARD:
        most = (uint64_t)g->discard_blocks << g->block_shift;
        break;
    case UBLK_OP_WRITE_ZEROES:
        most = (uint64_t)g->zero_blocks << g->block_shift;
        break;
    case UBLK_OP_WRITE:
        break;
    default:
        return -EOPNOTSUPP;
    }
    if (g->read_only && op != UBLK_OP_READ)
        return -EPERM;
    if (!most)
        return -EOPNOTSUPP;
    if (!nbytes || nbytes > most || (start | nbytes) & ((1u << g->block_shift) - 1))
        return -EINVAL;
    const uint64_t size = __atomic_load_n(&g->nbytes, __ATOMIC_RELAXED);
    return start > size || nbytes > size - start ? -EINVAL : 0;
}

/* The tag has a request. */
static void begin(struct ublk_queue *u, uint32_t tag)
{
    const struct ublk_geometry *g = &u->g;
    struct ublk_cell *cell = (struct ublk_cell *)nvq_cell_at(&u->source, tag);
    const struct ublk_descriptor d = u->descriptors[tag];
    const uint8_t op = d.op_flags & 0xff;
    const uint64_t start = d.start_sector << UBLK_SECTOR_SHIFT, nbytes = (uint64_t)d.nr_sectors << UBLK_SECTOR_SHIFT;
    const uint64_t lba = start >> g->block_shift;
    const uint32_t blocks = (uint32_t)(nbytes >> g->block_shift);
    const uint32_t fua = d.op_flags & UBLK_IO_FUA ? CDW12_FUA : 0;
    cell->active = true;
    cell->flush_due = false;
    cell->op = op;
    cell->nbytes = (uint32_t)nbytes;
    u->n_active++;
    u->counters.requests++;
    const int refused = refusal(u, op, start, nbytes);
    if (refused) {
        answer(u, cell, refused);
        return;
    }
    switch (op) {
    case UBLK_OP_READ:
        nvs_prepare(cell->memory, nbytes);
        make_ready(u, cell, OPC_READ, blocks - 1, lba, cell->nbytes, NVQ_TO_HOST);
        break;
    case UBLK_OP_WRITE:
        make_ready(u, cell, OPC_WRITE, (blocks - 1) | fua, lba, cell->nbytes, NVQ_FROM_HOST);
        break;
    case UBLK_OP_WRITE_ZEROES:
        make_ready(u, cell, OPC_WRITE_ZEROES, (blocks - 1) | fua | (d.op_flags & UBLK_IO_NOUNMAP ? 0 : CDW12_DEAC), lba,
                   0, 0);
        break;
    case UBLK_OP_DISCARD:
        nvm_dsm_range(cell->memory, lba, blocks);
        make_ready(u, cell, OPC_DSM, 0, DSM_DEALLOCATE, DSM_RANGE, NVQ_FROM_HOST);
        cell->flush_due = fua; /* the command has no FUA */
        break;
    default:
        make_ready(u, cell, OPC_FLUSH, 0, 0, 0, 0);
    }
}

static bool receive(void *self)
{
    struct ublk_queue *u = self;
    const struct uring_cqe *cqe;
    bool moved = false;
    if (!u->fetching) {
        fetch_all(u);
        moved = true;
    }
    ring_progress(&u->ring);
    while ((cqe = ring_peek(&u->ring))) {
        const uint32_t tag = (uint32_t)cqe->user_data;
        const int result = cqe->res;
        ring_seen(&u->ring);
        u->n_offered--;
        moved = true;
        if (result == UBLK_RESULT_ABORT)
            u->aborted = true;
        else if (result)
            fail(u, "the kernel refused a tag", -result);
        else if (!u->leaving && !u->ended)
            begin(u, tag);
    }
    return moved;
}

static bool post(void *self, struct nvq *q, struct nvb_slot *slots, uint32_t keep)
{
    struct ublk_queue *u = self;
    bool moved = false;
    while (u->ready) {
        struct ublk_cell *next = u->ready->next;
        if (!nvq_cell_post(q, slots, &u->ready->c, keep))
            break;
        u->ready = next;
        moved = true;
    }
    return moved;
}

static void finished(void *self, struct nvq_cell *c)
{
    struct ublk_queue *u = self;
    struct ublk_cell *cell = (struct ublk_cell *)c;
    uint16_t status = c->status;
    c->busy = false;
    if (!cell->active)
        return;
    switch (c->batch.command.opcode) {
    case OPC_READ:
        if (!status)
            status = nvs_finish(cell->memory, cell->nbytes);
        u->counters.reads++;
        u->counters.bytes_read += cell->nbytes;
        break;
    case OPC_WRITE:
        u->counters.writes++;
        u->counters.bytes_written += cell->nbytes;
        break;
    case OPC_WRITE_ZEROES:
        u->counters.zeroes++;
        break;
    case OPC_DSM:
        u->counters.discards++;
        break;
    default:
        u->counters.flushes++;
    }
    if (cell->flush_due && !status && !u->ended) {
        cell->flush_due = false;
        make_ready(u, cell, OPC_FLUSH, 0, 0, 0, 0);
        return;
    }
    const int error = ublk_error_of(status);
    const bool transfers = cell->op == UBLK_OP_READ || cell->op == UBLK_OP_WRITE;
    answer(u, cell, error ? error : transfers ? (int32_t)cell->nbytes : 0);
}

static bool send_answers(void *self)
{
    struct ublk_queue *u = self;
    if (!u->ring.unsubmitted)
        return false;
    const int sent = ring_submit(&u->ring);
    if (sent == -EAGAIN || sent == -EBUSY || sent == -ENOMEM) {
        u->counters.refetched++;
        return true; /* nothing would wake a sleeping thread to send them */
    }
    if (sent)
        fail(u, "the kernel takes no answers", -sent);
    return true;
}

static bool is_over(const void *self)
{
    const struct ublk_queue *u = self;
    if (u->why || u->ended) /* nothing can be answered any more */
        return true;
    if (u->ready || u->n_active || u->ring.unsubmitted)
        return false;
    return u->leaving || (u->aborted && !u->n_offered);
}

static void before_sleep(void *self)
{
    struct ublk_queue *u = self;
    u->source.wants_read = true;
    u->source.wants_write = false;
}

static const struct nvq_source_face face = {
    .receive = receive,
    .receive_every = 1, /* it reads memory */
    .post = post,
    .finished = finished,
    .send = send_answers,
    .is_over = is_over,
    .before_sleep = before_sleep,
};

static enum nvb_why pump(void *self, struct nvq *q, struct nvb_slot *slots, uint32_t keep, uint64_t slice_ns,
                         struct nvw_budget *budget, unsigned *ring)
{
    struct ublk_queue *u = self;
    return nvq_source_go(&u->source, &face, q, slots, keep, slice_ns, budget, ring);
}

/* What was not sent to the controller is left to the next server, as what is with it is. */
static void end(void *self)
{
    struct ublk_queue *u = self;
    u->ended = true;
    while (u->ready) {
        struct ublk_cell *cell = u->ready;
        u->ready = cell->next;
        cell->c.busy = cell->active = false;
        u->n_active--;
    }
}

int ublk_queue_init(struct ublk_queue *u, const struct ublk_geometry *g, int fd, uint16_t number, uint8_t *memory,
                    uint64_t iova, uint64_t offset, uint32_t n_tags)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    memset(u, 0, sizeof *u);
    u->ring.fd = -1;
    u->g = *g;
    u->fd = fd;
    u->number = number;
    struct ublk_cell *cells = calloc(n_tags, sizeof *cells);
    if (!cells)
        return -ENOMEM;
    u->source = (struct nvq_source){
        .pump = pump,
        .end = end,
        .self = u,
        .cells = (uint8_t *)cells,
        .cell_bytes = sizeof *cells,
        .n_cells = n_tags,
    };
    for (uint32_t i = 0; i < n_tags; i++) {
        const uint64_t at = (uint64_t)i * g->cell_nbytes;
        cells[i].memory = memory + at;
        cells[i].c.batch.iova = iova + at;
        cells[i].c.offset = offset == NVQ_NO_OFFSET ? NVQ_NO_OFFSET : offset + at;
    }
    u->descriptors_nbytes = (n_tags * sizeof *u->descriptors + page - 1) / page * page;
    void *map = mmap(NULL, u->descriptors_nbytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd,
                     (off_t)(number * UBLK_MAX_DEPTH * sizeof *u->descriptors));
    if (map == MAP_FAILED) {
        const int rc = -errno;
        ublk_queue_free(u);
        return rc;
    }
    u->descriptors = map;
    const int rc = ring_open(&u->ring, n_tags, 2 * n_tags, 0);
    if (rc) {
        ublk_queue_free(u);
        return rc;
    }
    /* A child that had these would keep the device from a successor. */
    (void)madvise(map, u->descriptors_nbytes, MADV_DONTFORK);
    (void)madvise(u->ring.sq_ring, u->ring.sq_bytes, MADV_DONTFORK);
    if (u->ring.cq_ring != u->ring.sq_ring)
        (void)madvise(u->ring.cq_ring, u->ring.cq_bytes, MADV_DONTFORK);
    (void)madvise(u->ring.sqes, u->ring.sqes_bytes, MADV_DONTFORK);
    return 0;
}

void ublk_queue_resize(struct ublk_queue *u, uint64_t nbytes)
{
    __atomic_store_n(&u->g.nbytes, nbytes, __ATOMIC_RELAXED);
}

void ublk_queue_close(struct ublk_queue *u)
{
    if (u->ring.fd >= 0)
        ring_close(&u->ring);
    if (u->descriptors)
        munmap((void *)u->descriptors, u->descriptors_nbytes);
    u->descriptors = NULL;
}

void ublk_queue_free(struct ublk_queue *u)
{
    ublk_queue_close(u);
    free(u->source.cells);
    u->source.cells = NULL;
    u->source.n_cells = 0;
}

void ublk_queue_forget(struct ublk_queue *u)
{
    if (u->ring.fd >= 0)
        close(u->ring.fd);
    memset(&u->ring, 0, sizeof u->ring);
    u->ring.fd = -1;
    u->descriptors = NULL;
}
