/*
 * The controller as seen through its registers (Base 2.0, 3.1.3): properties, the CC/CSTS state
 * machine, and creation and destruction of the controller.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "nvme_ctrl.h"

/* In units of 500 ms. Enabling takes no time here; a fault can delay it, to test a driver's time
 * limit. */
#define READY_TIMEOUT 4

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t cap(const struct emu_ctrl *ctrl)
{
    /* DSTRD 0, MPSMIN 0 (4 KiB), round robin arbitration only, no subsystem reset */
    return faults_mqes(ctrl) | CAP_CQR | (uint64_t)READY_TIMEOUT << 24 | CAP_CSS_NVM | CAP_CSS_IOCSS |
           (uint64_t)MPS_MAX << 52 | CAP_CRMS_CRWMS | region_cap(ctrl) |
           (ctrl->config.extras.boot_nbytes ? CAP_BPS : 0);
}

/* Controller Fatal Status: nothing more is processed until the controller is reset. */
void ctrl_fatal(struct emu_ctrl *ctrl, const char *why)
{
    if (ctrl->csts & CSTS_CFS)
        return;
    snprintf(ctrl->message, sizeof(ctrl->message), "controller fatal status: %s", why);
    ctrl->csts |= CSTS_CFS;
    ctrl->running = false;
    ctrl->counters.fatals++;
    telemetry_fatal(ctrl);
}

/* What every Controller Level Reset does (Base 2.0, 3.7.2), AQA, ASQ and ACQ excepted. */
static void controller_level_reset(struct emu_ctrl *ctrl)
{
    ctrl->generation++;
    ctrl->running = false;
    held_drop_all(ctrl);
    queues_reset(ctrl);
    dbbuf_off(ctrl);
    features_reset(ctrl);
    ctrl->n_aer = ctrl->n_events = 0;
    extras_reset(ctrl);
    ctrl->events_masked = 0;
    ctrl->csts = 0;
    ctrl->intms = 0;
    ctrl->enable_due = ctrl->disable_due = UINT64_MAX;
    ctrl->counters.resets++;
}

/* NULL if the controller may start as configured, else the reason why not. */
static const char *enable_objection(struct emu_ctrl *ctrl)
{
    uint32_t cc = ctrl->cc;
    if (CC_MPS(cc) > MPS_MAX)
        return "CC.MPS is above CAP.MPSMAX";
    if (CC_CSS(cc) != CC_CSS_NVM && CC_CSS(cc) != CC_CSS_ALL)
        return "CC.CSS names a command set that CAP.CSS does not offer";
    if (CC_AMS(cc))
        return "CC.AMS names an arbitration mechanism that CAP.AMS does not offer";
    /* Zero is legal until the first I/O queue is created (Base 2.0, 3.5.1: set after Identify
     * Controller). */
    if (CC_IOSQES(cc) && CC_IOSQES(cc) != 6)
        return "CC.IOSQES is not 6";
    if (CC_IOCQES(cc) && CC_IOCQES(cc) != 4)
        return "CC.IOCQES is not 4";
    if (!(ctrl->aqa & 0xfff) || !(ctrl->aqa >> 16 & 0xfff))
        return "AQA asks for an admin queue of less than two entries";
    uint64_t mask = (4096ull << CC_MPS(cc)) - 1;
    if (ctrl->asq & mask)
        return "ASQ is not aligned to CC.MPS";
    if (ctrl->acq & mask)
        return "ACQ is not aligned to CC.MPS";
    return NULL;
}

static void become_ready(struct emu_ctrl *ctrl)
{
    ctrl->enable_due = UINT64_MAX;
    cq_init(ctrl, 0, ctrl->acq, (ctrl->aqa >> 16 & 0xfff) + 1, 0, true);
    sq_init(ctrl, 0, ctrl->asq, (ctrl->aqa & 0xfff) + 1, &ctrl->cqs[0]);
    if (!cq_translate(ctrl, &ctrl->cqs[0]) || !sq_translate(ctrl, &ctrl->sqs[0]))
        return; /* fatal, and the reason is logged */
    ctrl->running = true;
    ctrl->csts |= CSTS_RDY;
    smart_check(ctrl);
}

static void enable(struct emu_ctrl *ctrl)
{
    ctrl->counters.enables++;
    ctrl->page_size = 4096u << CC_MPS(ctrl->cc);
    const char *objection = enable_objection(ctrl);
    if (objection) {
        ctrl->page_size = 4096;
        ctrl_fatal(ctrl, objection);
        return;
    }
    uint64_t delay = faults_ready_delay(ctrl);
    if (!delay)
        become_ready(ctrl);
    else
        ctrl->enable_due = delay == UINT64_MAX ? UINT64_MAX : now_ns() + delay;
}

static void disable(struct emu_ctrl *ctrl)
{
    ctrl->counters.disables++;
    uint32_t ready = ctrl->csts & CSTS_RDY;
    uint64_t delay = faults_disable_delay(ctrl);
    controller_level_reset(ctrl);
    if (delay && ready) {
        ctrl->csts = CSTS_RDY;
        ctrl->disable_due = delay == UINT64_MAX ? UINT64_MAX : now_ns() + delay;
    }
}

void regs_shutdown_done(struct emu_ctrl *ctrl)
{
    if ((ctrl->csts & CSTS_SHST_MASK) != CSTS_SHST_OCCURRING)
        return;
    ctrl->csts = (ctrl->csts & ~CSTS_SHST_MASK) | CSTS_SHST_COMPLETE;
    ctrl->running = false;
    held_drop_all(ctrl);
    ctrl->n_aer = 0;
}

static void shut_down(struct emu_ctrl *ctrl, bool abrupt)
{
    ctrl->counters.shutdowns++;
    ctrl->csts = (ctrl->csts & ~CSTS_SHST_MASK) | CSTS_SHST_OCCURRING;
    /* A normal shutdown makes the write cache durable first (Base 2.0, 3.6.1); the helper does
     * it. */
    if (abrupt || sync_start(ctrl, NULL, NULL, NULL, true) != SC_ASYNC)
        regs_shutdown_done(ctrl);
}

static void write_cc(struct emu_ctrl *ctrl, uint32_t value)
{
    uint32_t old = ctrl->cc;
    ctrl->cc = value & CC_WRITABLE;
    if ((old & CC_EN) && !(value & CC_EN))
        disable(ctrl);
    else if (!(old & CC_EN) && (value & CC_EN))
        enable(ctrl);
    if (CC_SHN(value) && !CC_SHN(old))
        shut_down(ctrl, CC_SHN(value) != 1);
    else if (!CC_SHN(value) && !(value & CC_EN))
        ctrl->csts &= ~CSTS_SHST_MASK;
}

/* The present CSTS, including a delayed change of RDY that became due since the last poll. */
static uint32_t read_csts(struct emu_ctrl *ctrl)
{
    if (regs_deadline(ctrl) != UINT64_MAX)
        regs_tick(ctrl, now_ns());
    return ctrl->csts;
}

uint64_t regs_deadline(const struct emu_ctrl *ctrl)
{
    return ctrl->enable_due < ctrl->disable_due ? ctrl->enable_due : ctrl->disable_due;
}

unsigned regs_tick(struct emu_ctrl *ctrl, uint64_t now)
{
    if (now >= ctrl->enable_due) {
        become_ready(ctrl);
        return 1;
    }
    if (now >= ctrl->disable_due) {
        ctrl->disable_due = UINT64_MAX;
        ctrl->csts &= ~CSTS_RDY;
        return 1;
    }
    return 0;
}

static uint32_t read_register(struct emu_ctrl *ctrl, uint32_t offset)
{
    switch (offset) {
    case REG_CAP:
        return (uint32_t)cap(ctrl);
    case REG_CAP + 4:
        return (uint32_t)(cap(ctrl) >> 32);
    case REG_VS:
        return NVME_VERSION;
    case REG_INTMS:
    case REG_INTMC:
        return ctrl->intms;
    case REG_CC:
        return ctrl->cc;
    case REG_CSTS:
        return read_csts(ctrl);
    case REG_AQA:
        return ctrl->aqa;
    case REG_ASQ:
        return (uint32_t)ctrl->asq;
    case REG_ASQ + 4:
        return (uint32_t)(ctrl->asq >> 32);
    case REG_ACQ:
        return (uint32_t)ctrl->acq;
    case REG_ACQ + 4:
        return (uint32_t)(ctrl->acq >> 32);
    case REG_BPINFO:
        return boot_info(ctrl);
    case REG_BPRSEL:
        return ctrl->extras.boot.select;
    case REG_BPMBL:
        return (uint32_t)ctrl->extras.boot.buffer;
    case REG_BPMBL + 4:
        return (uint32_t)(ctrl->extras.boot.buffer >> 32);
    case REG_CRTO:
        return READY_TIMEOUT; /* CRWMT */
    default:
        return region_read(ctrl, offset);
    }
}

static void write_low(uint64_t *reg, uint32_t value)
{
    *reg = (*reg & ~0xffffffffull) | (value & ~0xfffu);
}

static void write_high(uint64_t *reg, uint32_t value)
{
    *reg = (uint32_t)*reg | (uint64_t)value << 32;
}

static void write_register(struct emu_ctrl *ctrl, uint32_t offset, uint32_t value)
{
    switch (offset) {
    case REG_INTMS: /* kept for the reader: they mask pin and MSI interrupts, and only MSI-X is offered */
        ctrl->intms |= value;
        break;
    case REG_INTMC:
        ctrl->intms &= ~value;
        break;
    case REG_CC:
        write_cc(ctrl, value);
        break;
    case REG_AQA:
        ctrl->aqa = value & 0x0fff0fff;
        break;
    case REG_ASQ:
        write_low(&ctrl->asq, value);
        break;
    case REG_ASQ + 4:
        write_high(&ctrl->asq, value);
        break;
    case REG_ACQ:
        write_low(&ctrl->acq, value);
        break;
    case REG_ACQ + 4:
        write_high(&ctrl->acq, value);
        break;
    case REG_BPRSEL:
        boot_select(ctrl, value);
        break;
    case REG_BPMBL:
        write_low(&ctrl->extras.boot.buffer, value);
        break;
    case REG_BPMBL + 4:
        write_high(&ctrl->extras.boot.buffer, value);
        break;
    default:
        region_write(ctrl, offset, value); /* else read-only, or not there */
        break;
    }
}

uint64_t emu_ctrl_read(struct emu_ctrl *ctrl, uint32_t offset, unsigned width)
{
    if (ctrl->removed)
        return width >= 8 ? UINT64_MAX : (1ull << width * 8) - 1;
    if (offset >= EMU_DOORBELL_OFFSET)
        return 0; /* the value of a doorbell read is undefined (Base 2.0, 3.1.3.30) */
    if (width == 8 && !(offset & 3))
        return read_register(ctrl, offset) | (uint64_t)read_register(ctrl, offset + 4) << 32;
    /* Narrower or misaligned accesses are undefined for a host; here they return the bytes at that
     * offset. */
    uint64_t value = read_register(ctrl, offset & ~3u) >> (offset & 3) * 8;
    return width >= 4 ? value : value & ((1ull << width * 8) - 1);
}

void emu_ctrl_write(struct emu_ctrl *ctrl, uint32_t offset, unsigned width, uint64_t value)
{
    if (ctrl->removed || (offset & 3) || (width != 4 && width != 8))
        return;
    if (offset >= EMU_DOORBELL_OFFSET) {
        doorbell_written(ctrl, offset - EMU_DOORBELL_OFFSET, (uint32_t)value);
        if (width == 8)
            doorbell_written(ctrl, offset - EMU_DOORBELL_OFFSET + 4, (uint32_t)(value >> 32));
        return;
    }
    write_register(ctrl, offset, (uint32_t)value);
    if (width == 8)
        write_register(ctrl, offset + 4, (uint32_t)(value >> 32));
}

/* The host is gone, as if power had failed: this, and not CC.EN=0 alone, is an unsafe shutdown. */
void emu_ctrl_reset(struct emu_ctrl *ctrl)
{
    if (ctrl->running && (ctrl->csts & CSTS_SHST_MASK) != CSTS_SHST_COMPLETE)
        ctrl->unsafe_shutdowns++;
    region_reset(ctrl);
    controller_level_reset(ctrl);
    ctrl->cc = ctrl->aqa = 0;
    ctrl->asq = ctrl->acq = 0;
    ctrl->page_size = 4096;
    ctrl->changed = 0; /* the next client reads everything anyway */
}

void emu_ctrl_dma_changed(struct emu_ctrl *ctrl)
{
    memset(ctrl->windows, 0, sizeof(ctrl->windows));
    for (unsigned i = 0; i < N_QUEUES; i++) {
        ctrl->sqs[i].ring = NULL;
        ctrl->cqs[i].ring = NULL;
    }
    dbbuf_park(ctrl);
}

int emu_ctrl_doorbell_fd(struct emu_ctrl *ctrl)
{
    return ctrl->doorbell_fd;
}

int emu_ctrl_wake_fd(const struct emu_ctrl *ctrl)
{
    return ctrl->wake.fd;
}

static const char *config_objection(const struct emu_config *config)
{
    if (config->n_namespaces > EMU_MAX_NAMESPACES)
        return "at most 16 namespaces are supported";
    if (config->n_io_queues < 1 || config->n_io_queues > EMU_MAX_IO_QUEUES)
        return "the number of I/O queue pairs must be 1 to 64";
    if (config->n_vectors < 1 || config->n_vectors > EMU_MAX_VECTORS)
        return "the number of MSI-X vectors must be 1 to 65";
    if (config->mqes < 1 || config->mqes > 65535)
        return "mqes (0-based) must be 1 to 65535";
    if (config->mdts > 16)
        return "mdts must be 0 (no limit) to 16 (256 MiB)";
    return NULL;
}

/* A new page, at the address of the old one if there is one, so that pointers into it stay valid.
 * Its size is sealed, whatever the client does with the descriptor: accessing a shrunk file would
 * raise SIGBUS. */
int emu_ctrl_renew_doorbells(struct emu_ctrl *ctrl)
{
    int fd = memfd_create("nvme-doorbells", MFD_CLOEXEC | MFD_ALLOW_SEALING), rc;

    if (fd < 0)
        return -errno;
    if (ftruncate(fd, EMU_BAR0_SIZE) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        goto fail;
    void *page = mmap((void *)ctrl->doorbells, DOORBELL_PAGE, PROT_READ | PROT_WRITE,
                      MAP_SHARED | (ctrl->doorbells ? MAP_FIXED : 0), fd, EMU_DOORBELL_OFFSET);
    if (page == MAP_FAILED)
        goto fail;
    if (ctrl->doorbell_fd >= 0)
        close(ctrl->doorbell_fd);
    ctrl->doorbell_fd = fd;
    ctrl->doorbells = page;
    return 0;
fail:
    rc = -errno;
    close(fd);
    return rc;
}

struct emu_ctrl *emu_ctrl_new(const struct emu_config *config, const struct emu_host *host, char *err)
{
    const char *objection = config_objection(config);
    if (objection) {
        snprintf(err, 256, "%s", objection);
        return NULL;
    }
    struct emu_ctrl *ctrl = calloc(1, sizeof(*ctrl));
    if (!ctrl) {
        snprintf(err, 256, "out of memory");
        return NULL;
    }
    ctrl->config = *config;
    objection = formats_objection(&ctrl->config);
    if (!objection)
        objection = extras_objection(&ctrl->config);
    if (objection) {
        snprintf(err, 256, "%s", objection);
        free(ctrl);
        return NULL;
    }
    ctrl->host = *host;
    ctrl->page_size = 4096;
    ctrl->mdts_nbytes = config->mdts ? 4096ull << config->mdts : UINT64_MAX;
    ctrl->enable_due = ctrl->disable_due = UINT64_MAX;
    ctrl->doorbell_fd = ctrl->wake.fd = -1;
    ctrl->power_on_at = now_ns();
    ctrl->temperature = 313; /* 40 C */
    held_init(ctrl);
    extras_init(ctrl);
    ctrl->iov = malloc(MAX_SEGMENTS * sizeof(*ctrl->iov));
    ctrl->bounce = aligned_alloc(4096, BOUNCE_SIZE);
    ctrl->bounce_meta = malloc(BOUNCE_META);
    ctrl->sink = config->extras.sgl ? malloc(SGL_SINK) : NULL;
    bool memory = ctrl->iov && ctrl->bounce && ctrl->bounce_meta && (ctrl->sink || !config->extras.sgl);
    int rc = !memory || !boot_init(ctrl) ? -ENOMEM : faults_init(ctrl);
    if (!rc)
        rc = region_init(ctrl);
    if (!rc)
        rc = wake_init(&ctrl->wake);
    if (!rc)
        rc = emu_ctrl_renew_doorbells(ctrl);
    if (rc) {
        snprintf(err, 256, "cannot set up the controller: %s", strerror(-rc));
        emu_ctrl_free(ctrl);
        return NULL;
    }
    for (unsigned i = 0; i < config->n_namespaces; i++) {
        ctrl->namespaces[i] = ns_new(ctrl, i + 1, &config->namespaces[i], err);
        if (!ctrl->namespaces[i]) {
            emu_ctrl_free(ctrl);
            return NULL;
        }
    }
    capacity_init(ctrl);
    ns_cache_changed(ctrl);
    controller_level_reset(ctrl);
    ctrl->counters.resets = 0;
    return ctrl;
}

void emu_ctrl_free(struct emu_ctrl *ctrl)
{
    if (!ctrl)
        return;
    wake_destroy(&ctrl->wake);
    held_drop_all(ctrl);
    if (ctrl->doorbells) {
        queues_reset(ctrl);
        munmap((void *)ctrl->doorbells, DOORBELL_PAGE);
    }
    if (ctrl->doorbell_fd >= 0)
        close(ctrl->doorbell_fd);
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES; i++)
        ns_free(ctrl->namespaces[i]);
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES; i++)
        ns_free(ctrl->detached[i]);
    extras_free(ctrl);
    faults_destroy(ctrl);
    free(ctrl->bounce);
    free(ctrl->bounce_meta);
    free(ctrl->sink);
    free(ctrl->iov);
    free(ctrl);
}
