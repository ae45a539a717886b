/*
 * Block devices, files and NVMe character devices of the kernel as the transport of a queue pair
 * (hotpath/transport.h): NVMe commands out of the submission ring become io_uring entries or, if
 * io_uring is unavailable and for blocking operations, jobs of a few threads; their results become
 * completions.
 *
 * Memory. The kernel accesses the callers' buffers until a command's completion; no buffer is
 * released earlier. link_in_flight() counts the commands that hold buffers. While it is not 0, the
 * queue pair must be neither reset nor closed. If direct I/O needs more alignment than the caller's
 * memory has, the data go through the link's own aligned copy.
 *
 * Threads: the queue's. Workers touch their job and the list of finished ones, nothing else.
 */
#ifndef NVME_ASYNC_KERNEL_LINK_H
#define NVME_ASYNC_KERNEL_LINK_H

#include "hotpath/queue.h"
#include "ring.h"

#include <pthread.h>
#include <sys/types.h>

enum kl_kind {
    KL_FILE,        /* a file, or a block device that is not an NVMe namespace */
    KL_NVME_BLOCK,  /* /dev/nvme0n1: reads and writes as for a file, other commands by ioctl */
    KL_PASSTHROUGH, /* /dev/ng0n1 */
};

/* A completion with an error of the kernel, not of the controller: DW0 is this and the errno. */
#define KL_ERRNO 0x80000000u
#define KL_TARGETS 256u
/* Of a ring, at most: its memory counts against the user's limit of locked memory, often 64 KiB,
 * and a full one is just submitted. */
#define KL_SQ_ENTRIES 64u
#define KL_REGIONS 64u
#define KL_WORKERS 16u
#define KL_SPARE_BYTES (128u << 10) /* aligned copies up to this are kept for the next command */
#define KL_SPARES 32u

/* Status codes that are made here (Base 2.0, 4.2.3; NVM Command Set 1.0, 3). */
enum kl_status {
    KL_INVALID_OPCODE = 0x01,
    KL_INVALID_FIELD = 0x02,
    KL_DATA_TRANSFER_ERROR = 0x04,
    KL_INTERNAL_ERROR = 0x06,
    KL_ABORTED = 0x07,
    KL_INVALID_NAMESPACE = 0x0b,
    KL_LENGTH_INVALID = 0x0f,
    KL_OPERATION_DENIED = 0x15,
    KL_WRITE_PROTECTED = 0x20,
    KL_LBA_OUT_OF_RANGE = 0x80,
    KL_CAPACITY_EXCEEDED = 0x81,
    KL_RESERVATION_CONFLICT = 0x83,
    KL_WRITE_FAULT = 0x280,
    KL_READ_ERROR = 0x281,
    KL_GUARD_ERROR = 0x282,
    KL_COMPARE_FAILURE = 0x285,
    KL_DO_NOT_RETRY = 0x4000,
};

enum kl_opcode {
    OP_FLUSH = 0x00,
    OP_WRITE = 0x01,
    OP_READ = 0x02,
    OP_COMPARE = 0x05,
    OP_WRITE_ZEROES = 0x08,
    OP_DATASET_MANAGEMENT = 0x09,
    OP_VERIFY = 0x0c,
    OP_ZONE_APPEND = 0x7d,
};

/* A namespace. */
struct kl_target {
    uint32_t nsid;
    int fd; /* not owned */
    uint8_t kind, block_shift;
    bool writable, direct;
    uint32_t memory_align; /* of data, for direct I/O */
    uint32_t block_bytes;  /* that a block has in a buffer: with metadata at its end, where the format says so */
    uint32_t metadata;     /* bytes of each block, in a buffer of their own at MPTR; 0: none */
    uint64_t blocks;
};

/* A command for a worker. */
struct kl_job {
    struct kl_job *next;
    struct nvq_sqe sqe;
    struct kl_target target;
    uint8_t *data;
    uint32_t nbytes;
    uint32_t dw0, dw1;
    uint16_t status;
    _Atomic bool cancelled; /* before it has begun: then it ends without any effect */
};

/* A command in flight, by its slot. */
struct kl_out {
    uint8_t *data;   /* the caller's; NULL: there are none, or the caller has them back */
    uint8_t *bounce; /* aligned memory in its place */
    uint32_t nbytes, moved;
    uint64_t at; /* byte offset of the first */
    const struct kl_target *target;
    uint16_t cid;
    uint8_t opcode, again;
    bool out, to_host, fua, in_kernel;
    bool unpolled; /* not polled for: the device has refused that */
    struct nvq_sqe sqe;
    struct kl_job job;
};

/* Memory that the link knows, at index `i` of the rings' tables if it is registered with them. */
struct kl_region {
    uint8_t *base; /* NULL: free */
    size_t nbytes;
    uint64_t iova; /* that commands name it by, in MPTR */
    bool fixed;    /* registered */
};

struct kl_counters {
    uint64_t polls, ring_commands, worker_commands, short_transfers, retries, bounced, fixed, cancels, refused;
};

struct kernel_link {
    struct nvq *q; /* NULL: no queue is attached */
    struct ring rings[2]; /* reads and writes; commands that can't be polled for, with IOPOLL */
    bool iopoll, passthrough;
    bool poll_refused; /* the device has no queues for polling: everything goes through the second ring */
    bool giving_up; /* since kl_cancel_all(): aborted commands have no completion, and are left to the reset */
    int event_fd;
    pid_t pid; /* the process that the workers belong to */

    uint32_t cq_tail;
    uint16_t cq_phase;
    uint32_t sq_head;
    uint32_t n_out, n_in_kernel;
    uint32_t n_slots;
    struct kl_out *out;

    struct kl_target targets[KL_TARGETS];
    uint32_t n_targets;
    struct kl_region regions[KL_REGIONS];
    bool has_table; /* the rings take registrations */
    uint32_t n_fixed;

    uint8_t *spares[KL_SPARES];
    uint32_t n_spares;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t work;
    struct kl_job *first, *last, *finished;
    uint32_t n_workers, n_idle, max_workers;
    bool ending;
    pthread_t workers[KL_WORKERS];
    _Atomic bool announced; /* the eventfd was written for `finished` */
    bool has_lock;

    struct kl_counters counters;
};

extern const struct nvq_transport kernel_transport;

/* 0 or a negative errno. max_workers: 1 to KL_WORKERS. */
int kl_init(struct kernel_link *link, uint32_t max_workers);
/* Allocates memory for commands, once it is a queue pair's transport. Until then commands stay in
 * the ring. 0 or a negative errno. */
int kl_start(struct kernel_link *link);
/* From here on commands of this queue go through io_uring. Without this call, through the workers.
 * 0 or a negative errno. */
int kl_use_ring(struct kernel_link *link, uint32_t entries, bool passthrough, bool iopoll);
/* Nothing may be in flight, else the memory is not freed. */
void kl_free(struct kernel_link *link);
/* Adds a namespace, or changes it; -ENOSPC. */
int kl_set_target(struct kernel_link *link, const struct kl_target *target);
/* Adds memory that commands may name, and registers it with the rings if they accept it. 1:
 * registered; 0: not registered; -ENOSPC. */
int kl_add_region(struct kernel_link *link, void *base, size_t nbytes, uint64_t iova);
void kl_drop_region(struct kernel_link *link, const void *base);
/* Takes completions; returns how many commands still hold memory. */
uint32_t kl_in_flight(struct kernel_link *link);
/* Requests the kernel to cancel what it has not begun, before a reset or close. */
void kl_cancel_all(struct kernel_link *link);

/* kernel_translate.c */
uint16_t kl_status_of(int error, bool write);
/* 0, or the status that the command ends with: its range is checked against the namespace. */
uint16_t kl_check(const struct kl_target *target, const struct nvq_sqe *sqe, uint32_t nbytes);
bool kl_changes_data(uint8_t opcode);
/* Executes a command; blocks until it ends. */
void kl_execute(struct kl_job *job);
/* What O_DIRECT asks of this file, in bytes, both 0 if it does not support it. -ENODATA: the kernel
 * does not report it. */
int kl_direct_alignment(int fd, uint32_t *memory, uint32_t *offset);
/* One admin or I/O command by ioctl; 0 or the status, or KL_ERRNO in *dw0. */
uint16_t kl_ioctl(int fd, bool admin, const struct nvq_sqe *sqe, void *data, uint32_t nbytes, uint32_t timeout_ms,
                  uint32_t *dw0, uint32_t *dw1);

/* kernel_workers.c */
bool kl_give_to_worker(struct kernel_link *link, struct kl_job *job);
struct kl_job *kl_take_finished(struct kernel_link *link);
void kl_end_workers(struct kernel_link *link);

/* kernel_submit.c */
void kl_submit(struct kernel_link *link);
void kl_take_completions(struct kernel_link *link);
void kl_request_cancel(struct kernel_link *link, unsigned slot);
uint8_t *kl_aligned(struct kernel_link *link, uint32_t nbytes);
void kl_give_aligned(struct kernel_link *link, uint8_t *memory, uint32_t nbytes);

/* Wakes the loop. From any thread. */
void kl_announce(struct kernel_link *link);

static inline bool kl_has_answers(const struct kernel_link *link)
{
    return (link->q->cq[link->q->cq_head].status & 1) == link->q->cq_phase;
}

#endif
