/*
 * Boot partitions (Base 2.1, 8.1.3): two, read through BPINFO, BPRSEL and BPMBL even while the
 * controller is disabled, or through log page 15h; written by Firmware Commit.
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

#define UNIT (128u << 10) /* of BPSZ */
#define READ_UNIT 4096u   /* of BPROF and BPRSZ */
enum { BRS_NONE = 0, BRS_DONE = 2, BRS_ERROR = 3 };
enum { REPLACE_BOOT = 6, ACTIVATE_BOOT = 7 };
enum { UNCHANGED = 0, UNLOCKED = 1, LOCKED = 2, LOCKED_UNTIL_POWER_CYCLE = 3 }; /* feature 85h */

const char *boot_objection(const struct emu_extras *extras)
{
    if (extras->boot_nbytes % UNIT || extras->boot_nbytes > MAX_IMAGE)
        return "a boot partition has a multiple of 128 KiB, at most 8 MiB";
    return NULL;
}

bool boot_init(struct emu_ctrl *ctrl)
{
    struct boot *boot = &ctrl->extras.boot;
    for (unsigned i = 0; i < 2 && ctrl->config.extras.boot_nbytes; i++)
        if (!(boot->partitions[i] = calloc(1, ctrl->config.extras.boot_nbytes)))
            return false;
    memset(boot->locked, LOCKED, sizeof(boot->locked)); /* as after each power cycle */
    return true;
}

/* Feature 85h (Base 2.1, 8.1.3.3): BP0WPS in bits 2:0, BP1WPS in bits 5:3. */
uint16_t boot_set_protection(struct emu_ctrl *ctrl, uint32_t value)
{
    uint8_t *locked = ctrl->extras.boot.locked;
    for (unsigned i = 0; i < 2; i++) {
        uint8_t wanted = value >> 3 * i & 7;
        if (wanted > LOCKED_UNTIL_POWER_CYCLE)
            return SC_INVALID_FIELD;
        if (wanted != UNCHANGED && wanted != locked[i] && locked[i] == LOCKED_UNTIL_POWER_CYCLE)
            return SC_NOT_CHANGEABLE;
    }
    for (unsigned i = 0; i < 2; i++)
        if (value >> 3 * i & 7)
            locked[i] = value >> 3 * i & 7;
    return SC_SUCCESS;
}

uint32_t boot_get_protection(const struct emu_ctrl *ctrl)
{
    return ctrl->extras.boot.locked[0] | (uint32_t)ctrl->extras.boot.locked[1] << 3;
}

void boot_free(struct emu_ctrl *ctrl)
{
    for (unsigned i = 0; i < 2; i++)
        free(ctrl->extras.boot.partitions[i]);
}

uint32_t boot_info(const struct emu_ctrl *ctrl)
{
    const struct boot *boot = &ctrl->extras.boot;
    if (!ctrl->config.extras.boot_nbytes)
        return 0;
    return ctrl->config.extras.boot_nbytes / UNIT | (uint32_t)boot->status << 24 | (uint32_t)boot->active << 31;
}

static bool transfer(struct emu_ctrl *ctrl, uint32_t select)
{
    uint64_t offset = (uint64_t)(select >> 10 & 0xfffff) * READ_UNIT, nbytes = (uint64_t)(select & 0x3ff) * READ_UNIT;
    const uint8_t *from = ctrl->extras.boot.partitions[select >> 31];
    if (!nbytes || offset + nbytes > ctrl->config.extras.boot_nbytes)
        return false;
    for (uint64_t at = 0; at < nbytes; at += READ_UNIT) {
        void *to = dma(ctrl, (ctrl->extras.boot.buffer & ~0xfffull) + at, READ_UNIT, true);
        if (!to)
            return false;
        memcpy(to, from + offset + at, READ_UNIT);
    }
    return true;
}

/* BPRSEL was written: a read begins, and is done. */
void boot_select(struct emu_ctrl *ctrl, uint32_t value)
{
    struct boot *boot = &ctrl->extras.boot;
    if (!ctrl->config.extras.boot_nbytes)
        return;
    boot->select = value;
    boot->status = transfer(ctrl, value) ? BRS_DONE : BRS_ERROR;
}

/* Firmware Commit, actions 110b and 111b, with a complete image of any contents, or NULL. */
uint16_t boot_commit(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, const uint8_t *image, uint32_t nbytes)
{
    struct boot *boot = &ctrl->extras.boot;
    uint8_t partition = (uint8_t)(sqe->cdw10 >> 31), action = sqe->cdw10 >> 3 & 7;
    if (!ctrl->config.extras.boot_nbytes)
        return SC_INVALID_FIELD;
    if (action == ACTIVATE_BOOT) {
        boot->active = partition;
        return SC_SUCCESS;
    }
    if (ctrl->config.extras.boot_protection && boot->locked[partition] != UNLOCKED)
        return SC_BOOT_PROHIBITED;
    if (!image || nbytes > ctrl->config.extras.boot_nbytes)
        return SC_FIRMWARE_IMAGE;
    memset(boot->partitions[partition], 0, ctrl->config.extras.boot_nbytes);
    memcpy(boot->partitions[partition], image, nbytes);
    return SC_SUCCESS;
}

uint8_t *boot_page(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes)
{
    uint8_t *page = calloc(1, 16 + ctrl->config.extras.boot_nbytes);
    if (!page)
        return NULL;
    page[0] = LOG_BOOT_PARTITION;
    put32(page, 4, boot_info(ctrl) & ~(3u << 24));
    memcpy(page + 16, ctrl->extras.boot.partitions[sqe->cdw10 >> 8 & 1], ctrl->config.extras.boot_nbytes);
    *nbytes = 16 + ctrl->config.extras.boot_nbytes;
    return page;
}
