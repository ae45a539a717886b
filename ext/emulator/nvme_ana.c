/* Asymmetric Namespace Access (Base 2.1, 8.1.1): groups of namespaces, their states, the log page,
 * the status of I/O. */
#include <errno.h>
#include <stdlib.h>

#include "nvme_ctrl.h"

uint16_t ana_status(const struct emu_ctrl *ctrl, const struct ns *ns)
{
    switch (ctrl->extras.ana.states[ns->anagrpid]) {
    case ANA_INACCESSIBLE:
        return SC_ANA_INACCESSIBLE;
    case ANA_PERSISTENT_LOSS:
        return SC_ANA_PERSISTENT_LOSS;
    case ANA_CHANGE:
        return SC_ANA_TRANSITION;
    default:
        return SC_SUCCESS;
    }
}

bool emu_ana_valid(const struct emu_config *config, uint32_t group, uint8_t state)
{
    const bool known = (state >= ANA_OPTIMIZED && state <= ANA_PERSISTENT_LOSS) || state == ANA_CHANGE;
    return group && group <= config->extras.ana_groups && known;
}

int ana_set(struct emu_ctrl *ctrl, uint32_t group, uint8_t state)
{
    struct ana *ana = &ctrl->extras.ana;
    if (!emu_ana_valid(&ctrl->config, group, state))
        return -EINVAL;
    ana->states[group] = state;
    ana->changes[group] = ++ana->change;
    event_post(ctrl, EVENT_NOTICE, NOTICE_ANA, LOG_ANA);
    return 0;
}

uint8_t *ana_page(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes)
{
    const struct ana *ana = &ctrl->extras.ana;
    bool groups_only = sqe->cdw10 & 1u << 8; /* RGO */
    uint8_t *page = calloc(1, 16 + EMU_MAX_NAMESPACES * (32 + 4 * EMU_MAX_NAMESPACES));
    if (!page)
        return NULL;
    unsigned at = 16;
    put64(page, 0, ana->change);
    put16(page, 8, (uint16_t)ctrl->config.extras.ana_groups);
    for (uint32_t group = 1; group <= ctrl->config.extras.ana_groups; group++) {
        unsigned head = at;
        uint32_t n = 0;
        at += 32;
        for (unsigned i = 0; i < EMU_MAX_NAMESPACES && !groups_only; i++) {
            if (!ctrl->namespaces[i] || ctrl->namespaces[i]->anagrpid != group)
                continue;
            put32(page, at, i + 1);
            at += 4;
            n++;
        }
        put32(page, head, group);
        put32(page, head + 4, n);
        put64(page, head + 8, ana->changes[group]);
        page[head + 16] = ana->states[group];
    }
    *nbytes = at;
    return page;
}
