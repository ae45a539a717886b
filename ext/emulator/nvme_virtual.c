/*
 * Virtualization Management (Base 2.1, 5.1.33 and 8.2.6): this controller is the primary one, 0,
 * and has secondary ones, 1 to N, that no host can reach. Their flexible resources and states are
 * those of the specification's figures, and are reported by Identify (CNS 14h and 15h).
 *
 * Assignments and states persist across Controller Level Resets; the primary controller's own
 * flexible resources change at the next one.
 */
#include "nvme_ctrl.h"

enum { ALLOCATE_PRIMARY = 1, OFFLINE = 7, ASSIGN = 8, ONLINE = 9 };
#define EACH 4u /* flexible resources of each kind for a secondary controller */

static uint32_t total(const struct emu_ctrl *ctrl)
{
    return EACH * ctrl->config.extras.secondary;
}

static uint32_t assigned(const struct emu_ctrl *ctrl, unsigned kind)
{
    uint32_t n = 0;
    for (unsigned i = 0; i < ctrl->config.extras.secondary; i++)
        n += ctrl->extras.virtual.secondary[i].resources[kind];
    return n;
}

void virtual_reset(struct emu_ctrl *ctrl)
{
    struct virtual *virtual = &ctrl->extras.virtual;
    memcpy(virtual->primary, virtual->wanted, sizeof(virtual->primary));
}

static uint16_t allocate(struct emu_ctrl *ctrl, uint16_t id, unsigned kind, uint16_t n, uint32_t *result)
{
    if (id)
        return SC_CONTROLLER_ID;
    if (n > total(ctrl) - assigned(ctrl, kind))
        return SC_RESOURCES;
    ctrl->extras.virtual.wanted[kind] = n;
    *result = n;
    return SC_SUCCESS;
}

static uint16_t assign(struct emu_ctrl *ctrl, struct secondary *one, unsigned kind, uint16_t n, uint32_t *result)
{
    const struct virtual *virtual = &ctrl->extras.virtual;
    uint32_t others = assigned(ctrl, kind) - one->resources[kind];
    uint32_t primary = virtual->primary[kind] > virtual->wanted[kind] ? virtual->primary[kind] : virtual->wanted[kind];
    if (one->online)
        return SC_SECONDARY_STATE;
    if (n > 2 * EACH || n > total(ctrl) - others - primary)
        return SC_RESOURCES;
    one->resources[kind] = n;
    *result = n;
    return SC_SUCCESS;
}

uint16_t admin_virtualization(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    uint8_t action = sqe->cdw10 & 15, kind = sqe->cdw10 >> 8 & 7;
    uint16_t id = (uint16_t)(sqe->cdw10 >> 16), n = (uint16_t)sqe->cdw11;
    ctrl->error_location = 40;
    if (kind > 1 && (action == ALLOCATE_PRIMARY || action == ASSIGN))
        return SC_RESOURCE_ID;
    if (action == ALLOCATE_PRIMARY)
        return allocate(ctrl, id, kind, n, result);
    if (action < OFFLINE || action > ONLINE)
        return SC_INVALID_FIELD;
    if (!id || id > ctrl->config.extras.secondary)
        return SC_CONTROLLER_ID;
    struct secondary *one = &ctrl->extras.virtual.secondary[id - 1];
    if (action == ASSIGN)
        return assign(ctrl, one, kind, n, result);
    if (action == ONLINE && (one->resources[0] < 2 || !one->resources[1])) /* two queues, and a vector */
        return SC_SECONDARY_STATE;
    one->online = action == ONLINE;
    if (!one->online) /* its resources are free again */
        memset(one->resources, 0, sizeof(one->resources));
    return SC_SUCCESS;
}

/* CNS 14h */
void virtual_identify_primary(const struct emu_ctrl *ctrl, uint8_t *p)
{
    static const unsigned at[2] = {32, 64};
    const uint16_t private[2] = {(uint16_t)(ctrl->config.n_io_queues + 1), (uint16_t)ctrl->config.n_vectors};
    p[4] = 3; /* CRT: VQ and VI resources */
    for (unsigned kind = 0; kind < 2; kind++) {
        put32(p, at[kind], total(ctrl));
        put32(p, at[kind] + 4, assigned(ctrl, kind));
        put16(p, at[kind] + 8, ctrl->extras.virtual.primary[kind]);
        put16(p, at[kind] + 10, private[kind]);
        put16(p, at[kind] + 12, 2 * EACH);
        put16(p, at[kind] + 14, 1);
    }
}

/* CNS 15h: those whose identifier is `from` or greater. */
void virtual_identify_secondary(const struct emu_ctrl *ctrl, uint16_t from, uint8_t *p)
{
    for (unsigned id = from ? from : 1; id <= ctrl->config.extras.secondary; id++) {
        const struct secondary *one = &ctrl->extras.virtual.secondary[id - 1];
        uint8_t *entry = p + 32 + 32 * (unsigned)p[0]++;
        put16(entry, 0, (uint16_t)id);
        entry[4] = one->online;
        put16(entry, 8, (uint16_t)id); /* VFN */
        put16(entry, 10, one->resources[0]);
        put16(entry, 12, one->resources[1]);
    }
}
