/*
 * Command and Feature Lockdown (Base 2.1, 8.1.5): the Lockdown command, and its log page. What is
 * prohibited stays so across resets. There is no out-of-band interface: what is prohibited there
 * alone is noted, and has no effect.
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

enum { SCOPE_COMMAND = 0, SCOPE_FEATURE = 2 };
enum { IFC_ADMIN = 0, IFC_BOTH = 1, IFC_OUT_OF_BAND = 2 };

/* What can be prohibited: commands and features that change the drive. */
static const uint8_t COMMANDS[] = {ADMIN_NS_MANAGEMENT, ADMIN_FIRMWARE_COMMIT, ADMIN_FIRMWARE_DOWNLOAD,
                                   ADMIN_NS_ATTACHMENT, ADMIN_FORMAT,          ADMIN_SECURITY_SEND,
                                   ADMIN_SANITIZE};
static const uint8_t FEATURES[] = {FEAT_POWER, FEAT_TEMPERATURE, FEAT_WRITE_CACHE, FEAT_TIMESTAMP};

static const uint8_t *known(uint32_t scope, unsigned *n)
{
    if (scope == SCOPE_FEATURE) {
        *n = sizeof(FEATURES);
        return FEATURES;
    }
    *n = scope == SCOPE_COMMAND ? sizeof(COMMANDS) : 0;
    return COMMANDS;
}

static bool *entry(struct emu_ctrl *ctrl, uint32_t scope, bool out_of_band, uint8_t target)
{
    struct lockdown *lockdown = &ctrl->extras.lockdown;
    return &lockdown->prohibited[out_of_band][scope == SCOPE_FEATURE][target];
}

uint16_t admin_lockdown(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint32_t scope = sqe->cdw10 & 15, interface = sqe->cdw10 >> 5 & 3;
    uint8_t target = (uint8_t)(sqe->cdw10 >> 8);
    bool prohibit = sqe->cdw10 >> 4 & 1;
    unsigned n;
    ctrl->error_location = 40;
    const uint8_t *may = known(scope, &n);
    if (!n || interface > IFC_OUT_OF_BAND)
        return SC_INVALID_FIELD;
    if (!memchr(may, target, n))
        return SC_LOCKDOWN_NOT_SUPPORTED;
    if (interface != IFC_OUT_OF_BAND)
        *entry(ctrl, scope, false, target) = prohibit;
    if (interface != IFC_ADMIN)
        *entry(ctrl, scope, true, target) = prohibit;
    return SC_SUCCESS;
}

/* SC_SUCCESS, or that the command is prohibited. */
uint16_t lockdown_status(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    if (*entry(ctrl, SCOPE_COMMAND, false, sqe->opcode))
        return SC_LOCKDOWN_PROHIBITED;
    if (sqe->opcode == ADMIN_SET_FEATURES && *entry(ctrl, SCOPE_FEATURE, false, (uint8_t)sqe->cdw10))
        return SC_LOCKDOWN_PROHIBITED;
    return SC_SUCCESS;
}

/* The page of log 14h. LSP: scope in bits 3:0; contents in bits 5:4: what can be prohibited, what
 * is on the admin queue, what is out of band. */
uint8_t *lockdown_page(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status)
{
    uint32_t scope = sqe->cdw10 >> 8 & 15, contents = sqe->cdw10 >> 12 & 3;
    unsigned n, found = 0;
    const uint8_t *may = known(scope, &n);
    *status = SC_INVALID_FIELD;
    if (!n || contents > 2)
        return NULL;
    uint8_t *page = calloc(1, 512);
    *status = SC_INTERNAL;
    if (!page)
        return NULL;
    *nbytes = 512;
    page[0] = (uint8_t)(scope | contents << 4);
    for (unsigned i = 0; i < n; i++)
        if (!contents || *entry(ctrl, scope, contents == 2, may[i]))
            page[4 + found++] = may[i];
    page[3] = (uint8_t)found;
    return page;
}
