/*
 * The seam inside the emulated controller: the NVMe controller proper (nvme_*.c) below, the
 * transport (vfio-user server, reactor) above. Neither includes the other's headers; both include
 * this one.
 *
 * Threads: every function runs on the reactor thread that serves the controller, unless its comment
 * says otherwise.
 */
#ifndef NVME_ASYNC_EMULATOR_CTRL_H
#define NVME_ASYNC_EMULATOR_CTRL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EMU_MAX_IO_QUEUES 64
#define EMU_MAX_VECTORS 65
#define EMU_MAX_NAMESPACES 16
#define EMU_MAX_HANDLES 128u /* reclaim unit handles */
#define EMU_MAX_GROUPS 16u   /* reclaim groups */
#define EMU_MAX_STREAMS 256u
#define EMU_DOORBELL_OFFSET 0x1000 /* of the doorbells in BAR0; CAP.DSTRD is 0 */
#define EMU_BAR0_SIZE 0x2000

enum emu_medium { EMU_MEDIUM_RAM, EMU_MEDIUM_FILE, EMU_MEDIUM_NULL };

#define EMU_MAX_FORMATS 16
#define EMU_MAX_METADATA 128

/* An LBA format: what a block is. Without protection information pif and sts have no meaning. */
struct emu_format {
    uint32_t block_size; /* 512 or 4096 */
    uint16_t metadata;   /* bytes, 0 to EMU_MAX_METADATA */
    uint8_t pif;         /* Protection Information Format: 0 = 16b, 1 = 32b, 2 = 64b guard */
    uint8_t sts;         /* Storage Tag Size in bits */
};

struct emu_ns_config {
    uint64_t nbytes;         /* of data, metadata not counted */
    uint32_t block_size;     /* together with metadata and pif one of the controller's formats */
    uint16_t metadata;
    uint8_t pif;
    uint8_t dps;             /* as in Identify Namespace: PIT 2:0, PIP 3 */
    bool extended;           /* metadata at the end of each block, not in a buffer of its own */
    enum emu_medium medium;
    const char *path; /* EMU_MEDIUM_FILE; metadata is in PATH.meta */
};

/* Scatter Gather Lists: by byte or by dword; 0 is neither, and then none are offered. */
#define EMU_SGL_BYTE 1u
#define EMU_SGL_DWORD 2u
#define EMU_SGL_BIT_BUCKET 4u
#define EMU_SGL_METADATA 8u /* PSDT 10b, and metadata at any byte */
#define EMU_SGL_LONGER 16u  /* lists may describe more than the transfer */

/* What a plain drive doesn't have; zero: not offered. */
struct emu_extras {
    uint64_t capacity;       /* Namespace Management: bytes of all namespaces together */
    enum emu_medium medium;  /* of the namespaces that are created */
    const char *path;        /* for EMU_MEDIUM_FILE: PATH.NSID */
    bool self_test, sanitize, lba_status, endurance, telemetry, persistent_events, security;
    bool write_cache;        /* RAM media have a volatile write cache, which a power loss empties */
    uint64_t self_test_ns;   /* a short one; an extended one takes twice as long */
    uint64_t sanitize_ns;
    unsigned firmware_slots; /* 2 to 7; 0: one that can't be written */
    unsigned ana_groups;     /* namespaces are assigned to them in turn */
    bool key_value;          /* all namespaces hold keys and values, not blocks */
    bool zoned;              /* all namespaces */
    uint64_t zone_nbytes, zone_capacity_nbytes;
    uint32_t max_open, max_active; /* 0: no limit */
    uint8_t zasl;            /* Zone Append Size Limit, exponent over 4 KiB; 0: MDTS */
    bool save_features, lockdown;
    bool capacity_management; /* Endurance Groups and NVM Sets can be created and deleted */
    unsigned secondary;       /* controllers that Virtualization Management manages; at most EMU_MAX_SECONDARY */
    bool boot_protection;     /* of the boot partitions against writing, by feature 85h */
    uint32_t boot_nbytes;      /* of each of two boot partitions; 0: none */
    unsigned power_states;     /* 0 and 1: one */
    uint64_t hmb_nbytes, hmb_min_nbytes; /* Host Memory Buffer: preferred, minimum; multiples of 4 KiB */
    uint32_t hmb_entry_nbytes; /* smallest descriptor entry; 0: no limit */
    uint16_t hmb_entries;      /* most descriptor entries; 0: no limit */
    uint32_t fused_blocks;   /* Compare and Write: its largest number of blocks; 0: not offered */
    uint8_t copy_formats;    /* OCFS; bit 0 is always set */
    unsigned fdp_handles, fdp_groups; /* Flexible Data Placement: reclaim unit handles (0: not offered), groups */
    uint64_t fdp_unit_nbytes; /* of a reclaim unit */
    unsigned streams;         /* MSL */
    uint16_t retry_delays[3]; /* CRDT1 to 3, in 100 ms */
    unsigned sgl;             /* EMU_SGL_* */
    uint8_t cmb_uses; /* CMBSZ bits 4:0 */
    uint64_t cmb_nbytes, pmr_nbytes; /* Controller Memory Buffer or Persistent Memory Region: powers of two */
    const char *pmr_path;     /* where it keeps its content; NULL: in memory */
    uint8_t pmr_health;       /* PMRSTS.HSTS */
    uint64_t pmr_ready_ns;    /* after PMRCTL.EN=1 */
};

#define EMU_MAX_CHANNELS 256
#define EMU_MAX_SECONDARY 16
#define EMU_MAX_ENDURANCE_GROUPS 4
#define EMU_MAX_SETS 8

/* How long I/O commands take (nvme_timing.h); channels 0: no longer than their execution. */
struct emu_timing {
    uint64_t latency_ns, jitter_ns; /* jitter: up to so much more */
    uint64_t bytes_per_second;      /* 0: no limit */
    unsigned channels;              /* commands at once */
};

struct emu_config {
    unsigned n_namespaces;
    struct emu_ns_config namespaces[EMU_MAX_NAMESPACES];
    unsigned n_io_queues; /* pairs, 1..64 */
    unsigned n_vectors;   /* MSI-X, 1..65 */
    uint32_t mqes;        /* 0-based, as in CAP */
    uint32_t mdts;        /* exponent over 4 KiB; 0 = no limit */
    bool dbbuf;           /* offer Doorbell Buffer Config */
    bool no_effects;      /* no Commands Supported and Effects log */
    unsigned n_formats;   /* 0: 512 and 4096 bytes without metadata */
    struct emu_format formats[EMU_MAX_FORMATS];
    struct emu_extras extras;
    struct emu_timing timing;
    uint64_t format_ns;   /* duration of a Format; Identify shows the progress */
    bool adaptive_irqs;   /* an interrupt only where the CQ head stands still: see nvme_irq.c */
    uint8_t aggregation_threshold, aggregation_time; /* feature 08h after a reset: 0-based entries, units of 100 us */
    uint16_t vendor_id, subsystem_vendor_id;
    uint16_t device_id, subsystem_id; /* of the PCI function */
    char serial[20 + 1], model[40 + 1], firmware[8 + 1];
};

/* A mapping of the client's memory: [iova, iova + nbytes) is at ptr. */
struct emu_window {
    uint64_t iova;
    uint64_t nbytes;
    void *ptr;
    bool readable, writable;
};

/* What the transport lends the controller. */
struct emu_host {
    void *opaque;
    /* [iova, iova+nbytes) as one pointer, or NULL when it isn't inside one mapping with that
     * access. Valid until the transport calls emu_ctrl_dma_changed(). */
    void *(*dma)(void *opaque, uint64_t iova, size_t nbytes, bool write);
    /* Optional (NULL): the whole mapping that holds iova; false when there is none. Valid as long
     * as dma()'s pointers. The controller keeps the last few, so that translating a recently used
     * address needs no call. */
    bool (*dma_window)(void *opaque, uint64_t iova, struct emu_window *window);
    /* Sends MSI-X message `vector`. */
    void (*interrupt)(void *opaque, unsigned vector);
};

struct emu_ctrl;

/* NULL with a message in err[256] if the configuration is not supported. */
struct emu_ctrl *emu_ctrl_new(const struct emu_config *config, const struct emu_host *host, char *err);
void emu_ctrl_free(struct emu_ctrl *ctrl);

/* BAR0 below EMU_DOORBELL_OFFSET; width 4 or 8. Doorbell offsets are handled too (REGION_WRITE of a
 * doorbell). */
uint64_t emu_ctrl_read(struct emu_ctrl *ctrl, uint32_t offset, unsigned width);
void emu_ctrl_write(struct emu_ctrl *ctrl, uint32_t offset, unsigned width, uint64_t value);

/* The file behind the doorbells, shared with the client: EMU_BAR0_SIZE bytes, of which the page at
 * EMU_DOORBELL_OFFSET is used (a client maps it at region offset + area offset, so file and BAR
 * count alike). Created and owned by the controller. */
int emu_ctrl_doorbell_fd(struct emu_ctrl *ctrl);
/* Replaces it by an empty one, because a former client may still have the old one mapped. Only
 * while CC.EN is 0. Returns 0, or negative errno and the old one stays. */
int emu_ctrl_renew_doorbells(struct emu_ctrl *ctrl);

/* The file behind the controller's own memory in BAR 2 (nvme_regions.c), the controller's, and its
 * size; -1 and 0: there is none. Its address in this process. */
int emu_ctrl_region(const struct emu_ctrl *ctrl, uint64_t *nbytes);
int emu_ctrl_renew_region(struct emu_ctrl *ctrl);
uint8_t *emu_ctrl_region_memory(const struct emu_ctrl *ctrl);

/* The interrupt pin, for a client without MSI-X: true if a completion queue with interrupts enabled
 * holds entries that the host has not taken, and INTMS does not mask it. With Doorbell Buffer
 * Config it also requests the next completion doorbell as MMIO, which shows the emulation of the
 * pin that the interrupt has been served. */
bool emu_ctrl_pin(struct emu_ctrl *ctrl);

/* One bounded turn: polls the doorbells, executes, posts, raises interrupts at most once a vector.
 * Returns the work done (0 = idle). */
unsigned emu_ctrl_poll(struct emu_ctrl *ctrl);

/* Before sleeping: publishes EventIdx where the host uses Doorbell Buffer Config. False when work
 * came in meanwhile: poll again. */
bool emu_ctrl_arm(struct emu_ctrl *ctrl);
/* True when every doorbell that could bring work now rings as MMIO (arm() could publish it all). */
bool emu_ctrl_armed_fully(const struct emu_ctrl *ctrl);
/* CLOCK_MONOTONIC nanoseconds at which poll() has work without a doorbell (delayed completions,
 * timers); UINT64_MAX = never. */
uint64_t emu_ctrl_deadline(const struct emu_ctrl *ctrl);
/* A descriptor that becomes readable when another thread has work for poll(): a helper thread has
 * finished a flush, or a request of faults.h has arrived. The reactor watches it whenever it
 * sleeps, with or without a client; poll() drains it. Never -1. */
int emu_ctrl_wake_fd(const struct emu_ctrl *ctrl);

/* -- for transports whose queues are created by Connect (nvme_fabrics.c) -- */

/* Another controller of the same subsystem: `first`'s namespaces and faults, and its own registers,
 * queues, features. `first` must outlive it. NULL with a message in err[256]. */
struct emu_ctrl *emu_ctrl_new_sibling(struct emu_ctrl *first, const struct emu_host *host, char *err);
void emu_ctrl_free_sibling(struct emu_ctrl *ctrl);
/* Takes over what changed at `first`; before each poll(). notice: the host is notified of
 * namespaces by an event. */
void emu_ctrl_share(struct emu_ctrl *ctrl, struct emu_ctrl *first, bool notice);
/* An I/O queue pair of `size` entries each; the rings lie at these addresses. -1: the qid is
 * invalid, or the controller is not in a state for it. */
int emu_ctrl_add_queue(struct emu_ctrl *ctrl, uint16_t qid, uint64_t sq, uint64_t cq, uint32_t size);
void emu_ctrl_remove_queue(struct emu_ctrl *ctrl, uint16_t qid);
const struct emu_config *emu_ctrl_config(const struct emu_ctrl *ctrl);
/* The state of an ANA group (Base 2.1, 8.1.1), with its event; it must be valid. */
void emu_ctrl_ana(struct emu_ctrl *ctrl, uint32_t group, uint8_t state);
bool emu_ana_valid(const struct emu_config *config, uint32_t group, uint8_t state);
bool emu_ctrl_running(const struct emu_ctrl *ctrl);
/* The Keep Alive Timeout as Connect has it, in milliseconds; 0 = none. The clock starts now. */
void emu_ctrl_keep_alive(struct emu_ctrl *ctrl, uint32_t kato_ms);
uint32_t emu_ctrl_kato(const struct emu_ctrl *ctrl);
bool emu_ctrl_has_namespace(const struct emu_ctrl *ctrl, uint32_t nsid);
void emu_ctrl_set_host(struct emu_ctrl *ctrl, const uint8_t hostid[16]);
/* Bytes that the command (64 bytes) transfers according to its own fields; 0: none, or unknown. */
uint64_t emu_ctrl_transfer(struct emu_ctrl *ctrl, uint16_t qid, const void *sqe);

/* Mappings changed: forget every pointer from host->dma(). */
void emu_ctrl_dma_changed(struct emu_ctrl *ctrl);
/* Controller level reset as by CC.EN=0, plus registers to their power-on values. The client left,
 * or asked for DEVICE_RESET. */
void emu_ctrl_reset(struct emu_ctrl *ctrl);

#endif
