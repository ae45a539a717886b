/*
 * Faults, namespace changes, counters and traces of an emulated controller, for tests.
 *
 * Every function here may be called from any thread as long as the controller lives, the reactor's
 * own thread excepted for those that say "waits for the reactor": they hand a request over and
 * return when poll() has executed it, or -ETIMEDOUT after timeout_ns (then it has not been and will
 * not be executed).
 *
 * Returns are 0 or negative errno unless said otherwise.
 */
#ifndef NVME_ASYNC_EMULATOR_FAULTS_H
#define NVME_ASYNC_EMULATOR_FAULTS_H

#include "ctrl.h"

enum emu_fault_queue { EMU_FAULT_ANY_QUEUE, EMU_FAULT_ADMIN_QUEUE, EMU_FAULT_IO_QUEUES };

/* What a rule does with a command; they combine where that is meaningful. With none the rule only
 * counts (verify / notify). */
enum {
    EMU_FAULT_DELAY = 1
        << 0,      /* executed, data transfer included, delay_ns after the fetch; EMU_FOREVER: until released */
    EMU_FAULT_DELAY_POST = 1 << 1, /* executed at once, completion posted delay_ns later */
    EMU_FAULT_DROP = 1 << 2,       /* executed, completion never posted */
    EMU_FAULT_DISCARD = 1 << 3,    /* neither executed nor completed */
    EMU_FAULT_FAIL = 1 << 4,       /* not executed, completed with `status` */
    EMU_FAULT_SQE = 1 << 5,        /* bytes of `sqe` under `sqe_mask` replace the command's before anything else */
    EMU_FAULT_CQE = 1
        << 6,        /* bytes of `cqe` under `cqe_mask` replace the completion's (status without the phase bit) */
    EMU_FAULT_WRONG_PHASE = 1 << 7,
    EMU_FAULT_DUPLICATE = 1 << 8,      /* the completion is posted twice */
    EMU_FAULT_REORDER = 1 << 9,        /* posted after `distance` later completions of its CQ, or after delay_ns */
    EMU_FAULT_PAYLOAD = 1 << 10,       /* the data of a command begin with `payload`: see nvme_io.c */
    EMU_FAULT_LOSE_INTERRUPT = 1 << 11, /* posted, but nothing is raised on that vector in this turn */
    EMU_FAULT_SPURIOUS_INTERRUPT = 1 << 12, /* the vector is raised also when the completion isn't posted */
    EMU_FAULT_FATAL = 1 << 13,         /* CSTS.CFS instead of execution */
    EMU_FAULT_REMOVE = 1 << 14,        /* surprise removal instead of execution */
};

#define EMU_FOREVER UINT64_MAX
#define EMU_PAYLOAD_MAX 8192

struct emu_fault {
    enum emu_fault_queue queue;
    int32_t qid;                     /* SQ identifier, -1 = any */
    uint8_t value[64], mask[64];     /* the command matches where mask bits are set */
    uint32_t skip;                   /* matching commands to skip before it acts */
    uint32_t count;                  /* then how many to act on; 0 = all */
    uint32_t actions;
    uint64_t delay_ns;
    uint32_t distance;
    uint16_t status;                 /* the status field without the phase: SC 7:0, SCT 10:8, DNR 14; CRD 12:11, which
                                      * is cleared unless the host has enabled it (ACRE) */
    uint8_t sqe[64], sqe_mask[64];
    uint8_t cqe[16], cqe_mask[16];
    const void *payload;             /* copied */
    size_t payload_len;
};

/* Adds a rule; the first matching rule with hits left acts. Returns its id (> 0), -EINVAL, -ENOMEM,
 * or -ENOSPC beyond 64 rules. */
int emu_fault_add(struct emu_ctrl *ctrl, const struct emu_fault *fault);
/* -ENOENT when there is none. Commands held by it stay held. */
int emu_fault_remove(struct emu_ctrl *ctrl, int id);
void emu_fault_clear(struct emu_ctrl *ctrl);
/* One switch for all rules: while it is off they stay, and neither act nor count. On at first. */
void emu_fault_switch(struct emu_ctrl *ctrl, bool on);
/* Matching commands seen so far, those skipped included; -ENOENT. Copies the last matching command
 * into sqe[64] unless NULL. */
int64_t emu_fault_hits(struct emu_ctrl *ctrl, int id, uint8_t *sqe);
/* Until the rule has seen `hits` matches; -ETIMEDOUT, -ENOENT. */
int emu_fault_wait(struct emu_ctrl *ctrl, int id, uint64_t hits, uint64_t timeout_ns);
/* Held commands continue at once, as if their delay had elapsed. Waits for the reactor. */
int emu_fault_release(struct emu_ctrl *ctrl, uint64_t timeout_ns);

/* RDY follows CC.EN=1 (ready) or CC.EN=0 (disabled) by this much; EMU_FOREVER: never. 0
 * restores. */
int emu_fault_enable_delay(struct emu_ctrl *ctrl, uint64_t ready_ns, uint64_t disabled_ns);
/* CAP.MQES as read and as enforced from now on, 0..65535 (0 is what no controller may report); -1:
 * as configured. */
int emu_fault_mqes(struct emu_ctrl *ctrl, int32_t mqes);
/* Sets CSTS.CFS. Waits for the reactor. */
int emu_fault_fatal(struct emu_ctrl *ctrl, uint64_t timeout_ns);
/* Surprise removal (or its end): registers read all ones, nothing is processed. Waits for the
 * reactor. */
int emu_fault_removed(struct emu_ctrl *ctrl, bool removed, uint64_t timeout_ns);
/* A spurious interrupt. Waits for the reactor. */
int emu_fault_interrupt(struct emu_ctrl *ctrl, unsigned vector, uint64_t timeout_ns);
/*
 * The power fails: as a removal, and what volatile write caches held is lost: all of it, or with
 * `tear` each logical block or not, as `seed` has it. With `tear` also writes that are held, and
 * were not executed, reach some of their blocks. One block is never torn (AWUPF 0).
 * emu_fault_removed(false) brings it back. Waits.
 */
int emu_fault_power_loss(struct emu_ctrl *ctrl, bool tear, uint64_t seed, uint64_t timeout_ns);
/* The controller checks and writes every page of its Host Memory Buffer. Waits for the reactor. */
int emu_use_host_memory(struct emu_ctrl *ctrl, uint64_t timeout_ns);
/* The next sanitize fails. Waits for the reactor. */
int emu_fault_sanitize(struct emu_ctrl *ctrl, uint64_t timeout_ns);
/* A zone becomes read only (Dh), full (Eh) or offline (Fh), with its event. -ENOENT, -EINVAL. Waits
 * for the reactor. */
int emu_zone_state(struct emu_ctrl *ctrl, uint32_t nsid, uint64_t index, uint8_t state, uint64_t timeout_ns);
/* The state of an ANA group, with its event. -EINVAL when there is no such group or state. Waits
 * for the reactor. */
int emu_ana_state(struct emu_ctrl *ctrl, uint32_t group, uint8_t state, uint64_t timeout_ns);
/* The composite temperature in kelvin (SMART, the temperature threshold's event). Waits for the
 * reactor. */
int emu_fault_temperature(struct emu_ctrl *ctrl, uint16_t kelvin, uint64_t timeout_ns);

/* Namespaces at run time; all wait for the reactor. `notice` notifies the host: Changed Namespace
 * List and the asynchronous event. err[256] gives the reason of a failure. -EEXIST, -ENOENT,
 * -EINVAL, or the medium's error. */
int emu_ns_add(struct emu_ctrl *ctrl, uint32_t nsid, const struct emu_ns_config *config, bool notice, char *err,
               uint64_t timeout_ns);
int emu_ns_remove(struct emu_ctrl *ctrl, uint32_t nsid, bool notice, uint64_t timeout_ns);
int emu_ns_resize(struct emu_ctrl *ctrl, uint32_t nsid, uint64_t nbytes, bool notice, uint64_t timeout_ns);
/* Other names: 16 bytes of NGUID, 8 of EUI-64, 16 of UUID; NULL: as it is, zeroes: none. */
int emu_ns_identity(struct emu_ctrl *ctrl, uint32_t nsid, const uint8_t *nguid, const uint8_t *eui64,
                    const uint8_t *uuid, bool notice, uint64_t timeout_ns);

/* A range of the client's memory. */
struct emu_dma_range {
    uint64_t iova, nbytes;
    bool write; /* by the controller */
};

/* A command that the controller has fetched and may still touch memory for, or post. */
struct emu_outstanding {
    uint16_t sqid, cid;
    uint8_t opcode;
    bool executed; /* only its completion is still due */
    uint64_t deadline_ns;
    uint8_t sqe[64];
    uint32_t n_ranges; /* in `ranges`, beginning at first_range */
    uint32_t first_range;
};
/* Fills at most max commands and max_ranges ranges; *n_ranges becomes the number filled. Returns
 * the number of held commands filled, or negative errno. A test uses this to prove that memory that
 * the controller may still write isn't reused. Waits for the reactor. */
int emu_outstanding(struct emu_ctrl *ctrl, struct emu_outstanding *out, uint32_t max, struct emu_dma_range *ranges,
                    uint32_t max_ranges, uint32_t *n_ranges, uint64_t timeout_ns);

/* Doorbells as the controller saw them, while tracing is on: the last 4096. */
struct emu_doorbell {
    uint64_t sequence, time_ns; /* CLOCK_MONOTONIC */
    uint16_t qid;
    bool is_cq;
    uint32_t old, new;
};
void emu_trace_doorbells(struct emu_ctrl *ctrl, bool on);
/* Entries with a sequence of `from` or more, oldest first; returns how many were filled. */
uint32_t emu_trace_read(struct emu_ctrl *ctrl, uint64_t from, struct emu_doorbell *out, uint32_t max);

/* All since the controller was made. */
struct emu_counters {
    uint64_t enables, disables, resets, shutdowns, fatals;
    uint64_t doorbells;         /* changes seen */
    uint64_t doorbell_writes;   /* those that came as register writes */
    uint64_t invalid_doorbells;
    uint64_t interrupts, interrupts_lost;
    uint64_t errors;            /* commands completed with an error */
    uint64_t commands_read, commands_written, bytes_read, bytes_written;
    uint64_t queues_created, queues_deleted;
    uint64_t sgl_commands; /* whose data an SGL describes */
    uint64_t power_state; /* now */
    uint64_t power_transitions, power_wakeups; /* autonomous ones, and back for an I/O command */
    uint64_t host_memory_pages; /* of the Host Memory Buffer, now */
    uint64_t host_memory_writes, host_memory_damaged; /* pages written; found changed by others */
    uint64_t admin[256], io[256]; /* executed commands by opcode */
};
/* A snapshot; each counter is exact, but they may differ by some commands from each other. */
void emu_counters(const struct emu_ctrl *ctrl, struct emu_counters *out);
/* CSTS as it stands, without the side effects of a register read. */
uint32_t emu_csts(const struct emu_ctrl *ctrl);

#endif
