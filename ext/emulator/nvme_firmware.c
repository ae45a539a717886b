/*
 * Firmware Image Download and Firmware Commit (Base 2.1, 5.1.9 and 5.1.8). An image is whatever
 * begins with eight printable characters: they are its revision.
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

enum { REPLACE = 0, REPLACE_AND_ACTIVATE = 1, ACTIVATE = 2, ACTIVATE_NOW = 3 };

void firmware_init(struct emu_ctrl *ctrl)
{
    struct firmware *firmware = &ctrl->extras.firmware;
    memset(firmware->slots[1], ' ', 8);
    memcpy(firmware->slots[1], ctrl->config.firmware, strnlen(ctrl->config.firmware, 8));
    firmware->active = 1;
}

static void activate(struct emu_ctrl *ctrl, uint8_t slot)
{
    struct firmware *firmware = &ctrl->extras.firmware;
    firmware->active = slot;
    firmware->next = 0;
    memcpy(ctrl->config.firmware, firmware->slots[slot], sizeof(ctrl->config.firmware));
}

static void forget_image(struct firmware *firmware)
{
    free(firmware->image);
    firmware->image = NULL;
    firmware->nbytes = 0;
    memset(firmware->pieces, 0, sizeof(firmware->pieces));
}

/* A Controller Level Reset activates a committed image, and drops one that was only downloaded. */
void firmware_reset(struct emu_ctrl *ctrl)
{
    forget_image(&ctrl->extras.firmware);
    if (ctrl->extras.firmware.next)
        activate(ctrl, ctrl->extras.firmware.next);
}

void firmware_page(const struct emu_ctrl *ctrl, uint8_t *p)
{
    const struct firmware *firmware = &ctrl->extras.firmware;
    p[0] = (uint8_t)(firmware->active | firmware->next << 4);
    for (unsigned slot = 1; slot <= 7; slot++)
        memcpy(p + 8 * slot, firmware->slots[slot], firmware->slots[slot][0] ? 8 : 0);
}

uint16_t admin_firmware_download(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    struct firmware *firmware = &ctrl->extras.firmware;
    uint64_t nbytes = ((uint64_t)sqe->cdw10 + 1) * 4, offset = (uint64_t)sqe->cdw11 * 4;
    ctrl->error_location = 40;
    if (offset % IMAGE_PIECE || nbytes > MAX_IMAGE || offset > MAX_IMAGE - nbytes || nbytes > ctrl->mdts_nbytes)
        return SC_INVALID_FIELD;
    uint64_t first = offset / IMAGE_PIECE, end = (offset + nbytes + IMAGE_PIECE - 1) / IMAGE_PIECE;
    if (!offset)
        forget_image(firmware); /* another image begins */
    for (uint64_t i = first; i < end; i++)
        if (firmware->pieces[i / 64] >> i % 64 & 1)
            return SC_OVERLAPPING_RANGE;
    if (!firmware->image && !(firmware->image = malloc(MAX_IMAGE)))
        return SC_INTERNAL;
    uint16_t status = copy_from_host(ctrl, sqe, firmware->image + offset, nbytes);
    if (status)
        return status;
    for (uint64_t i = first; i < end; i++)
        firmware->pieces[i / 64] |= 1ull << i % 64;
    if (offset + nbytes > firmware->nbytes)
        firmware->nbytes = (uint32_t)(offset + nbytes);
    return SC_SUCCESS;
}

static bool image_complete(const struct firmware *firmware)
{
    if (!firmware->image)
        return false;
    for (uint32_t i = 0; i < (firmware->nbytes + IMAGE_PIECE - 1) / IMAGE_PIECE; i++)
        if (!(firmware->pieces[i / 64] >> i % 64 & 1))
            return false; /* a gap */
    return true;
}

/* Of firmware, which begins with its revision. */
static bool image_valid(const struct firmware *firmware)
{
    if (!image_complete(firmware) || firmware->nbytes < 8)
        return false;
    for (unsigned i = 0; i < 8; i++)
        if (firmware->image[i] < ' ' || firmware->image[i] > '~')
            return false;
    return firmware->image[0] != ' ';
}

static uint8_t choose(const struct emu_ctrl *ctrl)
{
    const struct firmware *firmware = &ctrl->extras.firmware;
    for (unsigned slot = 1; slot <= ctrl->config.extras.firmware_slots; slot++)
        if (!firmware->slots[slot][0])
            return (uint8_t)slot;
    return firmware->active == 1 ? 2 : 1;
}

static uint16_t commit_boot(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    struct firmware *firmware = &ctrl->extras.firmware;
    uint16_t status = boot_commit(ctrl, sqe, image_complete(firmware) ? firmware->image : NULL, firmware->nbytes);
    forget_image(firmware);
    return status;
}

uint16_t admin_firmware_commit(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    struct firmware *firmware = &ctrl->extras.firmware;
    uint8_t slot = sqe->cdw10 & 7, action = sqe->cdw10 >> 3 & 7;
    ctrl->error_location = 40;
    *result = 0;
    if (action > ACTIVATE_NOW)
        return commit_boot(ctrl, sqe);
    if (!ctrl->config.extras.firmware_slots)
        return SC_FIRMWARE_SLOT;
    bool replaces = action == REPLACE || action == REPLACE_AND_ACTIVATE || (action == ACTIVATE_NOW && firmware->image);
    if (slot > ctrl->config.extras.firmware_slots || (!slot && !replaces))
        return SC_FIRMWARE_SLOT;
    if (!slot)
        slot = choose(ctrl);
    if (replaces) {
        if (!image_valid(firmware)) {
            forget_image(firmware);
            return SC_FIRMWARE_IMAGE;
        }
        memcpy(firmware->slots[slot], firmware->image, 8);
        forget_image(firmware);
    } else if (!firmware->slots[slot][0]) {
        return SC_FIRMWARE_IMAGE;
    }
    uint8_t event[22] = {0};
    memcpy(event, ctrl->config.firmware, strnlen(ctrl->config.firmware, 8));
    memcpy(event + 8, firmware->slots[slot], 8);
    event[16] = action;
    event[17] = slot;
    persistent_add(ctrl, PEL_FIRMWARE_COMMIT, event, sizeof(event));
    if (action == ACTIVATE_NOW) {
        event_post(ctrl, EVENT_NOTICE, NOTICE_FIRMWARE, LOG_FIRMWARE);
        activate(ctrl, slot);
    } else if (action != REPLACE) {
        firmware->next = slot;
    }
    return SC_SUCCESS;
}
