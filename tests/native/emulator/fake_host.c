#define _GNU_SOURCE
#include "fake_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static void *host_dma(void *opaque, uint64_t iova, size_t nbytes, bool write)
{
    struct fake_host *host = opaque;
    (void)write;
    if (host->unmapped || iova < FH_IOVA || iova - FH_IOVA > host->nbytes || nbytes > host->nbytes - (iova - FH_IOVA))
        return NULL;
    return host->memory + (iova - FH_IOVA);
}

static bool host_window(void *opaque, uint64_t iova, struct emu_window *window)
{
    struct fake_host *host = opaque;
    if (host->unmapped || iova < FH_IOVA || iova - FH_IOVA >= host->nbytes)
        return false;
    *window = (struct emu_window){FH_IOVA, host->nbytes, host->memory, true, true};
    return true;
}

static void host_interrupt(void *opaque, unsigned vector)
{
    struct fake_host *host = opaque;
    __atomic_fetch_add(&host->interrupts[vector], 1, __ATOMIC_RELAXED);
}

struct emu_config fh_config(enum emu_medium medium, uint64_t nbytes, uint32_t block_size)
{
    struct emu_config config = {
        .n_namespaces = 1,
        .namespaces = {{.nbytes = nbytes, .block_size = block_size, .medium = medium}},
        .n_io_queues = 4,
        .n_vectors = 5,
        .mqes = 4095,
        .mdts = 5,
        .dbbuf = true,
        .vendor_id = 0x1b36,
        .subsystem_vendor_id = 0x1af4,
        .serial = "FAKE0001",
        .model = "fake host",
        .firmware = "1.0",
    };
    return config;
}

void fh_open(struct fake_host *host, const struct emu_config *config, size_t nbytes)
{
    char err[256] = "";
    *host = (struct fake_host){.nbytes = nbytes, .auto_poll = true};
    host->memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (host->memory == MAP_FAILED) {
        perror("host memory");
        exit(2);
    }
    struct emu_host callbacks = {
        .opaque = host, .dma = host_dma, .dma_window = host_window, .interrupt = host_interrupt};
    host->ctrl = emu_ctrl_new(config, &callbacks, err);
    if (!host->ctrl) {
        fprintf(stderr, "no controller: %s\n", err);
        exit(2);
    }
    void *page =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, emu_ctrl_doorbell_fd(host->ctrl), EMU_DOORBELL_OFFSET);
    if (page == MAP_FAILED) {
        perror("doorbells");
        exit(2);
    }
    host->doorbells = page;
}

void fh_close(struct fake_host *host)
{
    emu_ctrl_free(host->ctrl);
    munmap((void *)host->doorbells, 4096);
    munmap(host->memory, host->nbytes);
}

void *fh_alloc(struct fake_host *host, size_t nbytes)
{
    nbytes = (nbytes + 4095) & ~(size_t)4095;
    if (nbytes > host->nbytes - host->used) {
        fprintf(stderr, "host memory is used up\n");
        exit(2);
    }
    void *ptr = host->memory + host->used;
    host->used += nbytes;
    memset(ptr, 0, nbytes);
    return ptr;
}

uint64_t fh_iova(const struct fake_host *host, const void *ptr)
{
    return FH_IOVA + (uint64_t)((const uint8_t *)ptr - host->memory);
}

static void queue_init(struct fake_host *host, struct fh_queue *queue, uint16_t qid, uint32_t depth)
{
    *queue = (struct fh_queue){.size = depth, .cq_size = depth, .qid = qid, .phase = 1};
    queue->sq = fh_alloc(host, depth * sizeof(struct nvme_sqe));
    queue->cq = fh_alloc(host, depth * sizeof(struct nvme_cqe));
}

uint32_t fh_enable(struct fake_host *host, uint32_t depth)
{
    queue_init(host, &host->admin, 0, depth);
    emu_ctrl_write(host->ctrl, REG_AQA, 4, (depth - 1) | (depth - 1) << 16);
    emu_ctrl_write(host->ctrl, REG_ASQ, 8, fh_iova(host, host->admin.sq));
    emu_ctrl_write(host->ctrl, REG_ACQ, 8, fh_iova(host, (const void *)host->admin.cq));
    emu_ctrl_write(host->ctrl, REG_CC, 4, CC_EN | 6 << 16 | 4 << 20);
    return (uint32_t)emu_ctrl_read(host->ctrl, REG_CSTS, 4);
}

uint16_t fh_create_io(struct fake_host *host, struct fh_queue *queue, uint16_t qid, uint32_t depth)
{
    queue_init(host, queue, qid, depth);
    struct nvme_sqe cq = {.opcode = ADMIN_CREATE_CQ,
                          .prp1 = fh_iova(host, (const void *)queue->cq),
                          .cdw10 = qid | (depth - 1) << 16,
                          .cdw11 = 3u | (uint32_t)qid << 16};
    uint16_t status = fh_do(host, &host->admin, cq, NULL);
    if (status)
        return status;
    struct nvme_sqe sq = {.opcode = ADMIN_CREATE_SQ,
                          .prp1 = fh_iova(host, queue->sq),
                          .cdw10 = qid | (depth - 1) << 16,
                          .cdw11 = 1u | (uint32_t)qid << 16};
    return fh_do(host, &host->admin, sq, NULL);
}

uint16_t fh_push(struct fh_queue *queue, struct nvme_sqe sqe)
{
    sqe.cid = queue->next_cid++;
    queue->sq[queue->tail] = sqe;
    if (++queue->tail == queue->size)
        queue->tail = 0;
    return sqe.cid;
}

static void doorbell(struct fake_host *host, const struct fh_queue *queue, unsigned index, uint32_t value)
{
    volatile uint32_t *page = host->shadow && queue->qid ? host->shadow : host->doorbells;
    __atomic_store_n(&page[index], value, __ATOMIC_RELEASE);
}

void fh_ring(struct fake_host *host, struct fh_queue *queue)
{
    doorbell(host, queue, 2u * queue->qid, queue->tail);
}

bool fh_reap(struct fake_host *host, struct fh_queue *queue, struct nvme_cqe *cqe)
{
    volatile struct nvme_cqe *slot = &queue->cq[queue->head];
    uint64_t word =
        __atomic_load_n((volatile uint64_t *)&slot->sqhd, __ATOMIC_ACQUIRE); /* the status is its upper quarter */
    if ((word >> 48 & 1) != queue->phase)
        return false;
    memcpy(cqe, (const void *)slot, sizeof(*cqe));
    if (++queue->head == queue->cq_size) {
        queue->head = 0;
        queue->phase ^= 1;
    }
    doorbell(host, queue, 2u * queue->qid + 1, queue->head);
    return true;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

bool fh_wait(struct fake_host *host, struct fh_queue *queue, struct nvme_cqe *cqe)
{
    double until = seconds() + 1;
    do {
        if (host->auto_poll)
            emu_ctrl_poll(host->ctrl);
        if (fh_reap(host, queue, cqe))
            return true;
    } while (seconds() < until);
    return false;
}

uint16_t fh_do(struct fake_host *host, struct fh_queue *queue, struct nvme_sqe sqe, uint32_t *result)
{
    struct nvme_cqe cqe;
    uint16_t cid = fh_push(queue, sqe);
    fh_ring(host, queue);
    if (!fh_wait(host, queue, &cqe) || cqe.cid != cid)
        return 0xffff;
    if (result)
        *result = cqe.result;
    return (uint16_t)(cqe.status >> 1 & ~SC_MORE);
}

struct nvme_sqe fh_rw(const struct fake_host *host, uint8_t opcode, uint64_t lba, uint32_t blocks, const void *data,
                      size_t nbytes)
{
    uint64_t at = fh_iova(host, data);
    struct nvme_sqe sqe = {.opcode = opcode,
                           .nsid = 1,
                           .prp1 = at,
                           .prp2 = nbytes > 4096 ? at + 4096 : 0,
                           .cdw10 = (uint32_t)lba,
                           .cdw11 = (uint32_t)(lba >> 32),
                           .cdw12 = blocks - 1};
    return sqe;
}
