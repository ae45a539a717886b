/*
 * Memory of the controller that the host reaches through BAR 2: a Controller Memory Buffer (Base
 * 2.0, 8.5 and 3.1.3.11 ff.) or a Persistent Memory Region (8.14 and 3.1.3.22 ff.), whichever the
 * options ask for. The host may also give it an address, and use that in commands: then dma_at()
 * finds it here before the host's own mappings.
 *
 * A Controller Reset (CC.EN=0) leaves the registers of both as they are (3.7.2); a reset of the
 * function clears them. The content of a PMR outlives both.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nvme_ctrl.h"

#define BIR 2u /* BAR 2 */
#define PAGE 4096u

/* CMBSZ: the unit is 4 KiB. CMBLOC: BAR 2, offset 0; no restriction on how the commands' parts mix
 * (bits 3 to 8). */
#define CMBLOC_FREE 0x1f8u

#define MSC_CRE 1u  /* CMBMSC */
#define MSC_CMSE 2u /* both */

#define PMRCAP_RDS (1u << 3)
#define PMRCAP_WDS (1u << 4)
#define PMRCAP_READ_PMRSTS (2u << 10) /* PMRWBM: a read of PMRSTS makes earlier writes durable */
#define PMRCAP_CMSS (1u << 24)
#define PMRCTL_EN 1u
#define PMRSTS_NRDY (1u << 8)
#define PMRSTS_CBAI (1u << 12)

static bool is_cmb(const struct emu_ctrl *ctrl)
{
    return ctrl->extras.region.nbytes && ctrl->config.extras.cmb_nbytes; /* not of a sibling over fabrics */
}

static bool is_pmr(const struct emu_ctrl *ctrl)
{
    return ctrl->extras.region.nbytes && ctrl->config.extras.pmr_nbytes;
}

static int open_memory(const struct emu_config *config, uint64_t nbytes)
{
    int fd = config->extras.pmr_path ? open(config->extras.pmr_path, O_RDWR | O_CREAT | O_CLOEXEC, 0644)
                                     : memfd_create("nvme-controller-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    off_t size = lseek(fd, 0, SEEK_END);
    int rc = 0;
    if (size < 0 || ((uint64_t)size < nbytes && ftruncate(fd, (off_t)nbytes)))
        rc = -errno;
    /* As for the doorbells: an access to a shrunk file would raise SIGBUS. */
    if (!rc && !config->extras.pmr_path && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        rc = -errno;
    if (!rc)
        return fd;
    close(fd);
    return rc;
}

/* The translated addresses are outdated. */
static void region_changed(struct emu_ctrl *ctrl)
{
    if (ctrl->extras.region.nbytes)
        emu_ctrl_dma_changed(ctrl);
}

/* At the address of the old memory if there is one, so that pointers into it stay valid. */
static int map_memory(struct region *region, int fd)
{
    void *memory = mmap(region->memory, region->nbytes, PROT_READ | PROT_WRITE,
                        MAP_SHARED | (region->memory ? MAP_FIXED : 0), fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    if (region->fd >= 0)
        close(region->fd);
    region->memory = memory;
    region->fd = fd;
    return 0;
}

int region_init(struct emu_ctrl *ctrl)
{
    struct region *region = &ctrl->extras.region;
    region->fd = -1;
    region->nbytes = ctrl->config.extras.cmb_nbytes | ctrl->config.extras.pmr_nbytes;
    if (!region->nbytes)
        return 0;
    int fd = open_memory(&ctrl->config, region->nbytes);
    int rc = fd < 0 ? fd : map_memory(region, fd);
    if (rc && fd >= 0)
        close(fd);
    return rc;
}

/*
 * New memory for the next client: the last one may have the old memory mapped still. That of a PMR
 * has the old content; a file stays as it is. 0, or a negative errno: then the next client shares
 * the memory with the last one.
 */
int emu_ctrl_renew_region(struct emu_ctrl *ctrl)
{
    struct region *region = &ctrl->extras.region;
    if (!region->nbytes || ctrl->config.extras.pmr_path)
        return 0;
    int fd = open_memory(&ctrl->config, region->nbytes), rc = fd < 0 ? fd : 0;
    for (uint64_t at = 0; !rc && is_pmr(ctrl) && at < region->nbytes;) {
        ssize_t n = pwrite(fd, region->memory + at, region->nbytes - at, (off_t)at);
        if (n > 0)
            at += (uint64_t)n;
        else
            rc = n < 0 ? -errno : -ENOSPC;
    }
    if (!rc)
        rc = map_memory(region, fd);
    if (rc && fd >= 0)
        close(fd);
    region_changed(ctrl);
    return rc;
}

void region_free(struct emu_ctrl *ctrl)
{
    struct region *region = &ctrl->extras.region;
    if (region->memory)
        munmap(region->memory, region->nbytes);
    if (region->nbytes && region->fd >= 0)
        close(region->fd);
}

const char *region_objection(const struct emu_extras *extras)
{
    uint64_t nbytes = extras->cmb_nbytes ? extras->cmb_nbytes : extras->pmr_nbytes;
    if (extras->cmb_nbytes && extras->pmr_nbytes)
        return "a controller memory buffer and a persistent memory region exclude each other: one BAR is left";
    if (nbytes && (nbytes < PAGE || nbytes > 1u << 30 || nbytes & (nbytes - 1)))
        return "the controller's memory must be a power of two from 4 KiB to 1 GiB";
    return NULL;
}

/* A reset of the function. */
void region_reset(struct emu_ctrl *ctrl)
{
    struct region *region = &ctrl->extras.region;
    region->control = region->pmrctl = 0;
    region_changed(ctrl);
}

static uint64_t base(const struct region *region)
{
    return region->control & ~(uint64_t)(PAGE - 1);
}

static bool base_valid(const struct region *region)
{
    return base(region) + (region->nbytes - 1) >= base(region);
}

/* Does the controller answer at the address that the host gave its memory? */
static bool decodes(const struct emu_ctrl *ctrl)
{
    const struct region *region = &ctrl->extras.region;
    if (!(region->control & MSC_CMSE) || !base_valid(region))
        return false;
    return is_cmb(ctrl) ? region->control & MSC_CRE : region->pmrctl & PMRCTL_EN;
}

bool region_window(const struct emu_ctrl *ctrl, uint64_t iova, struct emu_window *window)
{
    const struct region *region = &ctrl->extras.region;
    if (!region->nbytes || !decodes(ctrl) || iova - base(region) >= region->nbytes)
        return false;
    *window = (struct emu_window){base(region), region->nbytes, region->memory, true, true};
    return true;
}

uint64_t region_cap(const struct emu_ctrl *ctrl)
{
    return (is_cmb(ctrl) ? CAP_CMBS : 0) | (is_pmr(ctrl) ? CAP_PMRS : 0);
}

static uint32_t read_pmrsts(struct emu_ctrl *ctrl)
{
    const struct region *region = &ctrl->extras.region;
    if (ctrl->config.extras.pmr_path)
        msync(region->memory, region->nbytes, MS_ASYNC);
    bool ready = region->pmrctl & PMRCTL_EN && now_ns() >= region->ready_at;
    return (ready ? 0 : PMRSTS_NRDY) | (uint32_t)ctrl->config.extras.pmr_health << 9 |
           (region->control & MSC_CMSE && !base_valid(region) ? PMRSTS_CBAI : 0);
}

/* The registers that belong to the memory; those that aren't there read 0. */
uint32_t region_read(struct emu_ctrl *ctrl, uint32_t offset)
{
    const struct region *region = &ctrl->extras.region;
    bool shown = is_cmb(ctrl) && region->control & MSC_CRE;
    switch (offset) {
    case REG_CMBLOC:
        return shown ? CMBLOC_FREE | BIR : 0;
    case REG_CMBSZ:
        return shown ? (uint32_t)(region->nbytes / PAGE) << 12 | ctrl->config.extras.cmb_uses : 0;
    case REG_CMBMSC:
        return is_cmb(ctrl) ? (uint32_t)region->control : 0;
    case REG_CMBMSC + 4:
        return is_cmb(ctrl) ? (uint32_t)(region->control >> 32) : 0;
    case REG_CMBSTS:
        return is_cmb(ctrl) && region->control & MSC_CMSE && !base_valid(region);
    case REG_PMRCAP:
        return is_pmr(ctrl) ? PMRCAP_RDS | PMRCAP_WDS | BIR << 5 | PMRCAP_READ_PMRSTS | 1u << 16 | PMRCAP_CMSS : 0;
    case REG_PMRCTL:
        return is_pmr(ctrl) ? region->pmrctl : 0;
    case REG_PMRSTS:
        return is_pmr(ctrl) ? read_pmrsts(ctrl) : 0;
    case REG_PMREBS:
        return is_pmr(ctrl) ? 4u << 8 | 1u << 4 | 1u : 0; /* 4 KiB, and reads bypass it */
    case REG_PMRSWTP:
        return is_pmr(ctrl) ? 1u << 8 | 3u : 0; /* 1 GiB/s */
    case REG_PMRMSCL:
        return is_pmr(ctrl) ? (uint32_t)region->control & ~MSC_CRE : 0;
    case REG_PMRMSCU:
        return is_pmr(ctrl) ? (uint32_t)(region->control >> 32) : 0;
    default:
        return 0;
    }
}

static void write_half(struct emu_ctrl *ctrl, bool high, uint32_t value, uint32_t writable)
{
    uint64_t *control = &ctrl->extras.region.control;
    *control = high ? (uint32_t)*control | (uint64_t)value << 32 : (*control & ~0xffffffffull) | (value & writable);
    region_changed(ctrl);
}

void region_write(struct emu_ctrl *ctrl, uint32_t offset, uint32_t value)
{
    if (is_cmb(ctrl) && (offset & ~4u) == REG_CMBMSC)
        write_half(ctrl, offset & 4, value, ~(PAGE - 1) | MSC_CRE | MSC_CMSE);
    if (!is_pmr(ctrl))
        return;
    if (offset == REG_PMRCTL) {
        if (value & ~ctrl->extras.region.pmrctl & PMRCTL_EN)
            ctrl->extras.region.ready_at = now_ns() + ctrl->config.extras.pmr_ready_ns;
        ctrl->extras.region.pmrctl = value & PMRCTL_EN;
        region_changed(ctrl);
    } else if (offset == REG_PMRMSCL || offset == REG_PMRMSCU) {
        write_half(ctrl, offset == REG_PMRMSCU, value, ~(PAGE - 1) | MSC_CMSE);
    }
}

int emu_ctrl_region(const struct emu_ctrl *ctrl, uint64_t *nbytes)
{
    *nbytes = ctrl->extras.region.nbytes;
    return *nbytes ? ctrl->extras.region.fd : -1;
}

uint8_t *emu_ctrl_region_memory(const struct emu_ctrl *ctrl)
{
    return ctrl->extras.region.memory;
}
