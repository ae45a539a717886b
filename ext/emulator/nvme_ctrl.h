/*
 * The emulated controller's internals, shared only by nvme_*.c.
 *
 * One thread, the reactor, owns everything here except what struct wake and struct faults guard
 * with their mutexes. All data from the client is untrusted: a submission queue entry is copied
 * once, then checked and used from the copy, because the client may rewrite its memory at any time.
 */
#ifndef NVME_ASYNC_EMULATOR_NVME_CTRL_H
#define NVME_ASYNC_EMULATOR_NVME_CTRL_H

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>

#include "ctrl.h"
#include "faults.h"
#include "nvme_spec.h"

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

#define N_QUEUES (EMU_MAX_IO_QUEUES + 1)
#define BATCH 32 /* commands taken from one SQ in one turn */
#define RAISE_EVERY (64 << 10) /* bytes moved after which interrupts are raised within a turn */
#define AERL 3   /* 0-based: four Asynchronous Event Request commands may be outstanding */
#define ERROR_LOG_ENTRIES 64
#define SQ_HELD_MAX 65536 /* commands of one SQ that may be held back; then it is not fetched from */
#define MPS_MAX 4         /* CAP.MPSMAX: 64 KiB */
#define N_WINDOWS 8
#define MAX_SEGMENTS \
    67585 /* the largest transfer, 65536 blocks of 4 KiB with 128 bytes of metadata, at an odd offset */
#define DOORBELL_PAGE 0x1000
#define N_DOORBELLS (DOORBELL_PAGE / 4)

struct cq {
    struct nvme_cqe *ring;      /* NULL: not translated yet, or its mapping is gone */
    volatile uint32_t *head_db; /* in the doorbell page or the shadow buffer, or &parked */
    uint32_t parked;            /* stands in for a shadow doorbell whose mapping is gone */
    uint32_t head, tail, size;
    uint16_t phase;
    uint16_t qid, vector;
    bool created, ien, stalled;
    unsigned n_sqs;
    uint64_t iova;
    uint64_t posted;                        /* entries ever posted: what a reorder fault counts */
    uint32_t irq_tail, irq_head; /* adaptive interrupts: tail at the last one, head when it was last compared */
    struct waiting *waiting, **waiting_end; /* completions that found the queue full, oldest first */
};

struct sq {
    const struct nvme_sqe *ring; /* NULL as above */
    volatile uint32_t *tail_db; /* as in struct cq */
    uint32_t parked;
    uint32_t event; /* EventIdx as published */
    uint32_t head, tail, size;
    uint16_t qid;
    bool created, stalled;
    struct cq *cq;
    unsigned n_held;
    uint32_t incarnation; /* which creation of this qid: late helpers must not complete into its successor */
    uint64_t iova;
    bool fused_waits; /* `fused` is the first command of a fused operation, and the second is to come */
    struct nvme_sqe fused;
};

/* A completion that found its CQ full. */
struct waiting {
    struct waiting *next;
    struct nvme_cqe cqe;
};

/* What a fault rule does after the command has been executed. */
struct effect {
    uint32_t actions;
    struct nvme_cqe cqe, cqe_mask;
    uint64_t delay_ns;
    uint32_t distance;
    const void *payload; /* owned by the rule, valid in this turn only */
    size_t payload_len;
};

/* A command held back by a fault: not yet executed, or executed and not yet posted. Sorted by
 * deadline. */
struct held {
    struct held *next, *prev;
    uint64_t deadline; /* CLOCK_MONOTONIC ns; UINT64_MAX: until released, aborted or reset */
    uint64_t post_after; /* also when cq->posted gets here; UINT64_MAX: no */
    struct nvme_sqe sqe;
    struct sq *sq;
    bool executed;
    uint16_t forced; /* not executed: status to complete with instead, or 0 */
    struct nvme_cqe cqe; /* executed: what is to be posted */
    struct effect effect;
    unsigned n_ranges; /* the client's memory that it may still access */
    struct emu_dma_range ranges[];
};

/* An interrupt that waits for more completions, or for the aggregation time (feature 08h). */
struct held_irq {
    uint32_t entries; /* posted since the last one; 0 = none waits */
    uint64_t deadline; /* CLOCK_MONOTONIC ns */
};

/* Work of the helper thread: an fdatasync, then a completion. */
struct job {
    struct job *next;
    int fds[2 * EMU_MAX_NAMESPACES]; /* owned duplicates, of data and of metadata */
    uint32_t nsids[EMU_MAX_NAMESPACES];
    unsigned n_fds;
    bool failed; /* by fdatasync */
    bool shutdown;
    uint32_t generation, incarnation;
    struct nvme_sqe sqe;
    uint16_t sqid;
    bool has_effect;
    struct effect effect;
};

/* A request of another thread (faults.h), executed by the reactor. On the requester's stack. */
struct mail {
    struct mail *next;
    void (*run)(struct emu_ctrl *ctrl, struct mail *mail);
    bool done;
    int rc;
    uint32_t nsid;
    uint64_t value;
    bool notice;
    struct emu_ns_config ns;
    const uint8_t *nguid, *eui64, *uuid;
    char *err;
    struct emu_outstanding *out;
    struct emu_dma_range *ranges;
    uint32_t max, max_ranges, n_ranges;
};

/* How other threads reach the reactor. */
struct wake {
    int fd; /* eventfd */
    atomic_bool pending;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t mail_done, jobs_in;
    struct mail *mail, **mail_end;
    struct job *in, **in_end, *out, **out_end;
    bool helper_runs, stop;
    pthread_t helper;
};

struct undo;

struct media {
    enum emu_medium kind;
    uint64_t nbytes;
    struct undo *undo; /* what a volatile write cache holds back from the medium, or NULL */
    bool write_through; /* it holds nothing back: blocks with metadata and zones are durable at once */
    uint8_t *ram;
    int fd;
};

struct registrant {
    uint8_t hostid[16];
    uint64_t key;
    uint16_t cntlid;
};

#define MAX_REGISTRANTS 128
struct reservation {
    struct registrant registrants[MAX_REGISTRANTS];
    unsigned n_registrants;
    int holder; /* index, -1 = none */
    uint8_t type;
    uint32_t generation;
    uint32_t mask; /* Feature 82h */
};

enum { OP_FORMAT, OP_SELF_TEST, OP_SANITIZE, N_OPS };

/* A long operation, from `started` to `due`; due == 0: none is in progress. */
struct op {
    uint64_t started, due;
};

#include "nvme_extra.h"

struct ns {
    uint32_t nsid;
    uint8_t lbads;
    uint8_t format; /* index of the LBA format */
    uint8_t pif, sts;
    uint8_t dps; /* PIT 2:0, PIP 3 */
    bool extended; /* FLBAS bit 4 */
    uint16_t ms; /* metadata bytes of a block */
    uint64_t nblocks;
    uint64_t nbytes; /* of data, as requested: the medium may be longer */
    uint32_t anagrpid;
    uint16_t set; /* NVM Set, 0 without Capacity Management */
    struct media media, meta; /* meta: ms bytes a block, only with ms */
    char *path; /* of a file medium */
    struct zones *zones; /* of a zoned one */
    struct kv *kv; /* of a key value one */
    bool formatting; /* a Format of it is in progress */
    uint8_t nguid[16], eui64[8], uuid[16];
    uint64_t *bad; /* one bit a block: Write Uncorrectable; reserved address space, filled on demand */
    size_t bad_nbytes;
    uint64_t n_bad; /* bits set; 0 is the fast path */
    struct reservation resv;
    unsigned n_handles; /* placement handles */
    uint16_t handles[EMU_MAX_HANDLES];
    struct streams streams;
};

struct error_entry {
    uint64_t count;
    uint16_t sqid, cid, status, location;
    uint64_t lba;
    uint32_t nsid;
    uint64_t command_info;
};

struct event {
    uint8_t type, info, log;
};

struct emu_ctrl {
    struct emu_config config;
    struct emu_host host;

    /* Registers */
    uint32_t cc, csts, intms, aqa;
    uint64_t asq, acq;
    uint64_t enable_due, disable_due; /* when RDY follows EN (a fault); UINT64_MAX = nothing is due */
    bool running; /* commands are fetched */
    bool removed; /* a fault: surprise removal */
    bool by_messages; /* Connect creates its queues (nvme_fabrics.c) */
    uint32_t page_size; /* by CC.MPS, valid while enabled */
    uint32_t generation; /* of controller level resets */
    uint64_t mdts_nbytes; /* UINT64_MAX: no limit */

    /* Queues */
    volatile uint32_t *doorbells; /* the shared page */
    int doorbell_fd;
    struct sq sqs[N_QUEUES];
    struct cq cqs[N_QUEUES];
    struct sq *active[N_QUEUES]; /* the I/O SQs that exist */
    unsigned n_active;
    unsigned n_waiting; /* completions in cq->waiting lists */
    uint64_t irq[2]; /* vectors to raise */
    uint64_t irq_lost[2]; /* a fault: not raised with the others */
    uint64_t moved; /* bytes of data since interrupts were raised last */
    bool irq_moderated; /* some completions raise no interrupt at once (nvme_irq.c) */
    uint64_t irq_compare_at; /* adaptive: when the CQ heads are compared next */
    unsigned n_held_irqs; /* vectors that hold one back */
    struct held_irq held_irqs[EMU_MAX_VECTORS];
    unsigned turn;
    uint32_t sq_incarnations;
    struct emu_window windows[N_WINDOWS];
    unsigned next_window;
    struct iovec *iov; /* MAX_SEGMENTS; the command being executed */
    uint8_t *bounce; /* BOUNCE_SIZE, for media that are no memory, and for blocks with metadata */
    uint8_t *sink; /* where data for a bit bucket goes, SGL_SINK bytes; NULL without SGLs */
    uint8_t *bounce_meta; /* the metadata of BOUNCE_SIZE of data */

    /* Doorbell Buffer Config */
    bool dbbuf;
    uint64_t shadow_iova, eventidx_iova;
    volatile uint32_t *shadow, *eventidx;

    /* Commands that are not done yet */
    struct held held; /* list head */
    unsigned n_held, n_reordered;
    struct nvme_sqe aer[AERL + 1];
    struct effect aer_effect[AERL + 1];
    unsigned n_aer;
    struct event events[32];
    unsigned n_events;
    uint32_t events_masked; /* by type */
    const struct effect *effect; /* of the command being executed, or NULL */

    /* Long operations. A Controller Level Reset does not end them; only the command that waits for
     * one is discarded. */
    struct op ops[N_OPS];
    struct nvme_sqe format_sqe; /* the Format in progress */
    bool format_waits; /* its command has not been completed */

    struct extras extras;

    /* Features */
    uint32_t features[256];
    uint32_t error_recovery[EMU_MAX_NAMESPACES];
    uint32_t vector_config[EMU_MAX_VECTORS];
    uint8_t host_behaviour[512];
    uint8_t hostid[16];
    bool hostid_extended;
    uint64_t timestamp, timestamp_at; /* ms as set, CLOCK_MONOTONIC ns of the setting */
    uint8_t timestamp_origin;
    bool queues_set; /* Number of Queues can be set once between resets: before the first queue */
    uint16_t temperature; /* K */
    uint64_t keep_alive_at;

    /* Namespaces */
    struct ns *namespaces[EMU_MAX_NAMESPACES]; /* by nsid - 1; NULL = inactive */
    struct ns *detached[EMU_MAX_NAMESPACES]; /* allocated and not attached */
    uint32_t incarnations[EMU_MAX_NAMESPACES];
    uint32_t changed; /* bit nsid - 1: Changed Namespace List */
    bool has_cache; /* some medium has a volatile write cache */

    /* Log pages */
    struct error_entry errors[ERROR_LOG_ENTRIES];
    uint64_t n_errors;
    uint16_t error_location; /* of the command being executed */
    uint32_t result_high; /* dword 1 of its completion */
    bool error_at_lba; /* it failed at error_lba, not at its first block */
    uint64_t error_lba;
    uint64_t blocks_read, blocks_written; /* in 512 B units */
    uint64_t media_errors, unsafe_shutdowns, power_on_at;
    uint8_t critical_warning;

    struct emu_counters counters;
    struct wake wake;
    struct faults *faults;
    atomic_uint faults_armed; /* bits FAULTS_*; read on every batch */
    char message[256];
};

#define BOUNCE_SIZE 65536u
#define BOUNCE_META (BOUNCE_SIZE / 512 * EMU_MAX_METADATA)
#define VSL 10 /* Verify Size Limit: 4 MiB, as an exponent over 4 KiB; bounds the time of a Verify */
#define COPY_MSRC 127u /* Copy: source ranges (0-based), blocks in one, blocks in all */
#define COPY_MSSRL 4096u
#define COPY_MCL 16384u

static inline uint64_t page_mask(const struct emu_ctrl *ctrl)
{
    return ctrl->page_size - 1;
}

uint64_t now_ns(void);

/* nvme_regs.c */
void ctrl_fatal(struct emu_ctrl *ctrl, const char *why);
uint64_t regs_deadline(const struct emu_ctrl *ctrl);
unsigned regs_tick(struct emu_ctrl *ctrl, uint64_t now);
void regs_shutdown_done(struct emu_ctrl *ctrl);

/* nvme_queue.c, nvme_complete.c */
void queues_reset(struct emu_ctrl *ctrl);
bool cq_translate(struct emu_ctrl *ctrl, struct cq *cq);
bool sq_translate(struct emu_ctrl *ctrl, struct sq *sq);
uint32_t cq_room(struct emu_ctrl *ctrl, struct cq *cq);
bool queues_have_work(struct emu_ctrl *ctrl);
unsigned doorbells_scan(struct emu_ctrl *ctrl);
void cq_init(struct emu_ctrl *ctrl, uint16_t qid, uint64_t iova, uint32_t size, uint16_t vector, bool ien);
void sq_init(struct emu_ctrl *ctrl, uint16_t qid, uint64_t iova, uint32_t size, struct cq *cq);
void sq_remove(struct emu_ctrl *ctrl, struct sq *sq);
void cq_remove(struct emu_ctrl *ctrl, struct cq *cq);
void cq_post(struct emu_ctrl *ctrl, struct cq *cq, const struct nvme_cqe *cqe);
unsigned cq_post_waiting(struct emu_ctrl *ctrl);
void invalid_doorbell(struct emu_ctrl *ctrl, uint8_t info);
void doorbell_written(struct emu_ctrl *ctrl, uint32_t offset, uint32_t value);
/* Completes a command: error log, the effects of faults, the CQ. */
void complete(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint32_t result, uint16_t status,
              const struct effect *effect);
void post_as(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_cqe *cqe, const struct effect *effect);

/* nvme_irq.c */
void irq_raise(struct emu_ctrl *ctrl, unsigned vector);
/* An entry was posted to a CQ with interrupts enabled, and some are moderated; failed: its status
 * isn't success. */
void irq_posted(struct emu_ctrl *ctrl, struct cq *cq, bool failed);
/* Features 08h or 09h changed. */
void irq_configure(struct emu_ctrl *ctrl);
/* Compares the CQ heads of a controller with adaptive interrupts; true if one is to be compared
 * again. */
bool irq_compare(struct emu_ctrl *ctrl);
unsigned irq_tick(struct emu_ctrl *ctrl, uint64_t now);
uint64_t irq_deadline(const struct emu_ctrl *ctrl);
void irq_raise_pending(struct emu_ctrl *ctrl);
void irq_reset(struct emu_ctrl *ctrl);

void execute_with_faults(struct emu_ctrl *ctrl, struct sq *sq, struct nvme_sqe *sqe);
void execute_as(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint16_t forced,
                const struct effect *effect);

/* nvme_prp.c */
void *dma_at(struct emu_ctrl *ctrl, uint64_t iova, uint64_t nbytes, bool write);
uint16_t prp_map_list(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool to_host, unsigned *n);
void forge(struct emu_ctrl *ctrl, unsigned n, const uint8_t *payload, size_t nbytes);
uint16_t copy_to_host(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, const void *data, uint64_t nbytes);
uint16_t copy_to_host_padded(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, const void *data, uint64_t valid,
                             uint64_t nbytes);
uint16_t copy_from_host(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, void *data, size_t nbytes);

/* nvme_admin.c and other admin commands: return a status, or SC_ASYNC */
uint16_t admin_execute(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint32_t *result);
uint16_t admin_identify(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t admin_get_features(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);
uint16_t admin_set_features(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);
void features_reset(struct emu_ctrl *ctrl);
uint16_t admin_get_log(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
void log_error(struct emu_ctrl *ctrl, uint16_t sqid, const struct nvme_sqe *sqe, uint16_t status);
uint16_t admin_dbbuf(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t admin_create_cq(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t admin_create_sq(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t admin_delete_cq(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t admin_delete_sq(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);

/* nvme_events.c */
void event_post(struct emu_ctrl *ctrl, uint8_t type, uint8_t info, uint8_t log);
void events_send(struct emu_ctrl *ctrl);
void event_cleared(struct emu_ctrl *ctrl, uint8_t log);
uint16_t admin_async_event(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
bool aer_abort(struct emu_ctrl *ctrl, uint16_t cid);
void smart_check(struct emu_ctrl *ctrl);

/* nvme_dbbuf.c */
bool dbbuf_translate(struct emu_ctrl *ctrl);
void dbbuf_off(struct emu_ctrl *ctrl);
void dbbuf_park(struct emu_ctrl *ctrl);
void dbbuf_keep_behind(struct emu_ctrl *ctrl, struct sq *sq);
/* Where a queue's doorbell is read from now on; zeroed for a new queue. */
volatile uint32_t *dbbuf_doorbell(struct emu_ctrl *ctrl, unsigned index);

/* nvme_io.c */
uint16_t io_execute(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint32_t *result);

/* nvme_ranges.c: DSM, write uncorrectable */
bool ns_inside(const struct ns *ns, uint64_t lba, uint64_t blocks);
uint16_t io_dsm(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe);
uint16_t io_write_uncorrectable(struct ns *ns, uint64_t lba, uint32_t blocks);
bool bad_overlaps(const struct ns *ns, uint64_t lba, uint64_t blocks);
void bad_clear(struct ns *ns, uint64_t lba, uint64_t blocks);

/* nvme_resv.c */
bool resv_conflict(const struct emu_ctrl *ctrl, const struct ns *ns, uint8_t opcode);
uint16_t io_reservation(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe);
void resv_init(struct reservation *resv);

/* nvme_ns.c */
struct ns *ns_new(struct emu_ctrl *ctrl, uint32_t nsid, const struct emu_ns_config *config, char *err);
void ns_free(struct ns *ns);
void uuid_of(const struct emu_ctrl *ctrl, const uint32_t key[2], uint8_t uuid[16]);
int ns_resize(struct ns *ns, uint64_t nbytes);
void ns_changed(struct emu_ctrl *ctrl, uint32_t nsid, bool notice);
void ns_cache_changed(struct emu_ctrl *ctrl);
uint16_t ns_find(struct emu_ctrl *ctrl, uint32_t nsid, struct ns **ns);

/* nvme_media.c: offsets and lengths inside the medium, checked by the caller. The status of the
 * command, or success */
int media_open(struct media *media, const struct emu_ns_config *config, char *err);
void media_close(struct media *media);
int media_resize(struct media *media, uint64_t nbytes);
uint16_t media_read(struct media *media, uint64_t offset, struct iovec *iov, unsigned n);
uint16_t media_write(struct media *media, uint64_t offset, struct iovec *iov, unsigned n);
uint16_t media_zero(struct media *media, uint64_t offset, uint64_t nbytes, bool deallocate);
uint16_t media_compare(struct emu_ctrl *ctrl, struct media *media, uint64_t offset, const struct iovec *iov,
                       unsigned n);
uint16_t media_verify(struct emu_ctrl *ctrl, struct media *media, uint64_t offset, uint64_t nbytes);
uint16_t media_move(struct emu_ctrl *ctrl, struct media *media, uint64_t from, uint64_t to, uint64_t nbytes);
uint16_t media_copy(struct emu_ctrl *ctrl, struct media *source, uint64_t from, struct media *media, uint64_t to,
                    uint64_t nbytes);

/* nvme_wake.c */
int wake_init(struct wake *wake);
void wake_destroy(struct wake *wake);
unsigned wake_drain(struct emu_ctrl *ctrl);
/* fdatasync of a namespace (or all, NULL), then the command's completion. SC_ASYNC, or a status if
 * it can't be started. */
uint16_t sync_start(struct emu_ctrl *ctrl, struct ns *ns, struct sq *sq, const struct nvme_sqe *sqe, bool shutdown);
int mail_send(struct emu_ctrl *ctrl, struct mail *mail, uint64_t timeout_ns);

/* nvme_held.c */
void held_init(struct emu_ctrl *ctrl);
bool held_add(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, const struct nvme_cqe *cqe,
              const struct effect *effect, uint16_t forced, uint64_t delay_ns, uint64_t post_after);
unsigned held_run(struct emu_ctrl *ctrl, uint64_t now);
void held_release(struct emu_ctrl *ctrl);
bool held_abort(struct emu_ctrl *ctrl, uint16_t sqid, uint16_t cid);
void held_abort_sq(struct emu_ctrl *ctrl, struct sq *sq);
void held_drop_all(struct emu_ctrl *ctrl);

/* nvme_faults.c */
int faults_init(struct emu_ctrl *ctrl);
void faults_destroy(struct emu_ctrl *ctrl);
#define FAULTS_RULES 1u
#define FAULTS_TRACE 2u
/* Applies the first matching rule. True: the command has been dealt with. Else *sqe may have been
 * changed and *effect filled. */
bool faults_intercept(struct emu_ctrl *ctrl, struct sq *sq, struct nvme_sqe *sqe, struct effect *effect,
                      uint16_t *forced);
void faults_trace(struct emu_ctrl *ctrl, uint16_t doorbell, uint32_t old, uint32_t new);
uint32_t faults_mqes(const struct emu_ctrl *ctrl);
uint64_t faults_ready_delay(const struct emu_ctrl *ctrl);
uint64_t faults_disable_delay(const struct emu_ctrl *ctrl);

#include "nvme_manage.h"

#include "nvme_dma.h"

#endif
