/*
 * A host for the emulated controller without a transport: one mapping of memory, interrupts are
 * counted. Commands are built by hand, so that a test controls exactly what the controller gets.
 * One thread drives, unless the caller polls from another one.
 */
#ifndef NVME_ASYNC_EMULATOR_BENCH_FAKE_HOST_H
#define NVME_ASYNC_EMULATOR_BENCH_FAKE_HOST_H

#include "emulator/ctrl.h"
#include "emulator/faults.h"
#include "emulator/nvme_spec.h"

#define FH_IOVA 0x100000000ull /* where the memory lies for the controller */

struct fh_queue {
    struct nvme_sqe *sq;
    volatile struct nvme_cqe *cq;
    uint32_t size, cq_size, tail, head;
    uint16_t qid, phase, next_cid;
};

struct fake_host {
    struct emu_ctrl *ctrl;
    uint8_t *memory;
    size_t nbytes, used;
    volatile uint32_t *doorbells;
    volatile uint32_t *shadow; /* used instead of the I/O doorbells once set */
    uint64_t interrupts[EMU_MAX_VECTORS];
    bool unmapped;  /* every translation fails */
    bool auto_poll; /* fh_wait() polls the controller itself */
    struct fh_queue admin;
};

/* A configuration with one namespace of that medium and size. */
struct emu_config fh_config(enum emu_medium medium, uint64_t nbytes, uint32_t block_size);
/* A controller on nbytes of host memory, not yet enabled. Exits with a message when it can't be
 * had. */
void fh_open(struct fake_host *host, const struct emu_config *config, size_t nbytes);
void fh_close(struct fake_host *host);

/* Zeroed pages; never given back. */
void *fh_alloc(struct fake_host *host, size_t nbytes);
uint64_t fh_iova(const struct fake_host *host, const void *ptr);

/* Admin queue of `depth` entries, CC.EN=1. Returns CSTS. */
uint32_t fh_enable(struct fake_host *host, uint32_t depth);
/* Create I/O CQ and SQ of `depth` entries; qid is also the vector when there are as many. Returns
 * the first status that isn't 0.
 */
uint16_t fh_create_io(struct fake_host *host, struct fh_queue *queue, uint16_t qid, uint32_t depth);

/* Puts a command into the ring (chooses and returns its cid); fh_ring() rings the doorbell. */
uint16_t fh_push(struct fh_queue *queue, struct nvme_sqe sqe);
void fh_ring(struct fake_host *host, struct fh_queue *queue);
/* The next completion if there is one; consumes it, the doorbell included. */
bool fh_reap(struct fake_host *host, struct fh_queue *queue, struct nvme_cqe *cqe);
/* Polls until a completion comes; false after a second without one. */
bool fh_wait(struct fake_host *host, struct fh_queue *queue, struct nvme_cqe *cqe);
/* Push, ring, wait: the status field without phase and "more"; *result gets DW0 unless NULL. 0xffff
 * when nothing came. */
uint16_t fh_do(struct fake_host *host, struct fh_queue *queue, struct nvme_sqe sqe, uint32_t *result);
/* Read or write of blocks at lba with the pages of `data` (which has to be page aligned, at most
 * two pages). */
struct nvme_sqe fh_rw(const struct fake_host *host, uint8_t opcode, uint64_t lba, uint32_t blocks, const void *data,
                      size_t nbytes);

#endif
