/* State of what a plain drive doesn't have. Included by nvme_ctrl.h. */
#ifndef NVME_ASYNC_EMULATOR_NVME_EXTRA_H
#define NVME_ASYNC_EMULATOR_NVME_EXTRA_H

#include "nvme_timing.h"

#define MAX_IMAGE (8u << 20) /* of firmware */
#define IMAGE_PIECE 4096u    /* FWUG */
#define PEL_EVENTS 64

struct self_test {
    uint8_t code;
    uint32_t nsid;
    unsigned n; /* results, newest first */
    uint8_t results[20][28];
};

struct sanitize {
    uint32_t cdw10, cdw11;
    uint8_t state;   /* SSTAT 2:0 */
    bool fails;      /* a fault: the next one fails */
    uint64_t clean;  /* blocks_written when it ended: while they are equal, all data is erased */
};

struct firmware {
    char slots[8][8 + 1]; /* revisions, by slot; empty: none */
    uint8_t active, next;
    uint8_t *image;       /* what has been downloaded, NULL: nothing */
    uint32_t nbytes;      /* its end */
    uint64_t pieces[MAX_IMAGE / IMAGE_PIECE / 64];
};

struct telemetry {
    uint8_t host_generation, controller_generation;
    bool available; /* controller-initiated data */
};

struct persistent_event {
    uint8_t type, revision;
    uint16_t nbytes;
    uint64_t timestamp;
    uint8_t data[512];
};

struct persistent_events {
    struct persistent_event events[PEL_EVENTS];
    uint64_t n; /* ever */
    uint8_t *context;
    size_t context_nbytes;
    uint16_t generation;
};

/* The host's memory that the controller may use (nvme_hmb.c). */
struct hmb {
    bool enabled;
    uint64_t list;
    uint32_t entries;
    uint32_t n_pages, next;
    uint64_t *pages;  /* their addresses */
    uint64_t *stamps; /* what each holds; 0: nothing yet */
    uint64_t stamp;
};

struct power {
    uint8_t state, operational; /* now; the last operational one */
    bool autonomous;
    uint64_t table[32];
    uint64_t since; /* in this state, or without a command */
};

struct ana {
    uint8_t states[EMU_MAX_NAMESPACES + 1]; /* by group */
    uint64_t changes[EMU_MAX_NAMESPACES + 1], change;
};

/* Of a namespace (nvme_directives.c). */
struct streams {
    bool enabled;
    uint16_t allocated, n;
    uint16_t open[EMU_MAX_STREAMS]; /* oldest first */
};

/* Flexible Data Placement (nvme_fdp.c), of reclaim unit `handle * EMU_MAX_GROUPS + group`. */
struct fdp {
    bool enabled;
    uint64_t left[EMU_MAX_HANDLES * EMU_MAX_GROUPS]; /* bytes until it is full */
    uint8_t filters[EMU_MAX_HANDLES];                /* which events a reclaim unit handle logs */
    uint64_t written, erased;
    uint64_t n_events[2]; /* ever: the controller's, hosts' */
    uint8_t events[2][63][64];
};

/* Of Set Features with SV: features that were saved, by identifier. */
struct saved_features {
    uint64_t bits[4];
    uint32_t values[256];
    uint32_t error_recovery[EMU_MAX_NAMESPACES]; /* of namespaces */
};

struct lockdown {
    bool prohibited[2][2][256]; /* on the admin queue, out of band; commands, features */
};

struct boot {
    uint8_t *partitions[2];
    uint8_t active, status; /* BRS */
    uint8_t locked[2];      /* feature 85h */
    uint32_t select;
    uint64_t buffer; /* BPMBL */
};

/* The controller's own memory (nvme_regions.c). */
struct region {
    uint64_t nbytes; /* 0: none */
    uint8_t *memory;
    int fd;
    uint64_t control; /* CMBMSC, or PMRMSC */
    uint32_t pmrctl;
    uint64_t ready_at; /* CLOCK_MONOTONIC ns */
};

/* Of Virtualization Management (nvme_virtual.c); resources: queues, interrupt vectors. */
struct secondary {
    bool online;
    uint16_t resources[2];
};

struct virtual
{
    uint16_t primary[2], wanted[2]; /* of the primary controller, and from the next reset on */
    struct secondary secondary[EMU_MAX_SECONDARY];
};

/* Of Capacity Management (nvme_capacity.c), in bytes. */
struct nvm_set {
    uint16_t group; /* 0: there is none */
    uint64_t nbytes;
};

struct capacity {
    uint64_t groups[EMU_MAX_ENDURANCE_GROUPS]; /* 0: there is none */
    struct nvm_set sets[EMU_MAX_SETS];
};

struct extras {
    struct virtual virtual;
    struct capacity capacity;
    struct region region;
    struct fdp fdp;
    struct lockdown lockdown;
    struct boot boot;
    struct saved_features saved;
    struct self_test self_test;
    struct sanitize sanitize;
    struct firmware firmware;
    struct telemetry telemetry;
    struct persistent_events persistent;
    struct ana ana;
    struct power power;
    struct hmb hmb;
    struct timing timing;
    uint32_t lba_status_interval, endurance_config;
    uint16_t lba_status_generation;
};

#endif
