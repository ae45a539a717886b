/*
 * Capacity Management (Base 2.1, 5.1.3 and 8.1.4): Variable Capacity, so Endurance Groups and NVM
 * Sets are created and deleted, and namespaces lie in NVM Sets. At first there is one of each, 1,
 * which has what the namespaces take; they persist across resets.
 */
#include "nvme_ctrl.h"

enum { SELECT, CREATE_GROUP, DELETE_GROUP, CREATE_SET, DELETE_SET };

static bool managed(const struct emu_ctrl *ctrl)
{
    return ctrl->config.extras.capacity_management;
}

bool capacity_group_exists(const struct emu_ctrl *ctrl, uint32_t group)
{
    if (!managed(ctrl))
        return ctrl->config.extras.endurance && group == 1;
    return group && group <= EMU_MAX_ENDURANCE_GROUPS && ctrl->extras.capacity.groups[group - 1];
}

static const struct nvm_set *set_at(const struct emu_ctrl *ctrl, uint32_t id)
{
    return id && id <= EMU_MAX_SETS && ctrl->extras.capacity.sets[id - 1].group ? &ctrl->extras.capacity.sets[id - 1]
                                                                                : NULL;
}

/* Of a set, of a group, of the controller. */
static uint64_t set_left(const struct emu_ctrl *ctrl, uint32_t id)
{
    const struct nvm_set *set = set_at(ctrl, id);
    uint64_t used = 0;
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++) {
        const struct ns *ns = ns_allocated(ctrl, nsid);
        used += ns && ns->set == id ? ns->media.nbytes : 0;
    }
    return set && used < set->nbytes ? set->nbytes - used : 0;
}

static uint64_t group_left(const struct emu_ctrl *ctrl, uint32_t group)
{
    uint64_t left = ctrl->extras.capacity.groups[group - 1];
    for (unsigned i = 0; i < EMU_MAX_SETS; i++)
        left -= ctrl->extras.capacity.sets[i].group == group ? ctrl->extras.capacity.sets[i].nbytes : 0;
    return left;
}

static uint64_t unallocated(const struct emu_ctrl *ctrl)
{
    uint64_t left = ctrl->config.extras.capacity;
    for (unsigned i = 0; i < EMU_MAX_ENDURANCE_GROUPS; i++)
        left -= ctrl->extras.capacity.groups[i];
    return left;
}

/* UNVMCAP: of the controller, in no Endurance Group; without Capacity Management, of no
 * namespace. */
uint64_t capacity_left(const struct emu_ctrl *ctrl)
{
    if (managed(ctrl))
        return unallocated(ctrl);
    uint64_t used = 0;
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++) {
        const struct ns *ns = ns_allocated(ctrl, nsid);
        used += ns ? ns->media.nbytes : 0;
    }
    return used < ctrl->config.extras.capacity ? ctrl->config.extras.capacity - used : 0;
}

/* The namespaces exist. Their capacity is at least what they take. */
void capacity_init(struct emu_ctrl *ctrl)
{
    uint64_t used = 0;
    for (uint32_t nsid = 1; managed(ctrl) && nsid <= EMU_MAX_NAMESPACES; nsid++) {
        struct ns *ns = ns_allocated(ctrl, nsid);
        if (!ns)
            continue;
        ns->set = 1;
        used += ns->media.nbytes;
    }
    if (!used)
        return;
    if (ctrl->config.extras.capacity < used)
        ctrl->config.extras.capacity = used;
    ctrl->extras.capacity.groups[0] = used;
    ctrl->extras.capacity.sets[0] = (struct nvm_set){1, used};
}

/* Where a namespace of nbytes is created (Base 2.1, 5.1.21): in `set`, in a set of `group`, or in
 * any. 0: nowhere, and *status says why. */
uint16_t capacity_choose(const struct emu_ctrl *ctrl, uint16_t set, uint16_t group, uint64_t nbytes, uint16_t *status)
{
    *status = SC_INVALID_FIELD;
    if ((set && !set_at(ctrl, set)) || (group && !capacity_group_exists(ctrl, group)) ||
        (set && group && set_at(ctrl, set)->group != group))
        return 0;
    *status = SC_NS_CAPACITY;
    for (uint16_t id = 1; id <= EMU_MAX_SETS; id++)
        if (set_at(ctrl, id) && (!set || set == id) && (!group || set_at(ctrl, id)->group == group) &&
            nbytes <= set_left(ctrl, id))
            return id;
    return 0;
}

uint16_t capacity_group_of(const struct emu_ctrl *ctrl, const struct ns *ns)
{
    const struct nvm_set *set = set_at(ctrl, ns->set);
    return managed(ctrl) ? (set ? set->group : 0) : ctrl->config.extras.endurance;
}

static void delete_set(struct emu_ctrl *ctrl, uint16_t id)
{
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++)
        if (ns_allocated(ctrl, nsid) && ns_allocated(ctrl, nsid)->set == id)
            ns_delete(ctrl, nsid);
    ctrl->extras.capacity.sets[id - 1] = (struct nvm_set){0, 0};
}

static uint16_t create_group(struct emu_ctrl *ctrl, uint64_t nbytes, uint32_t *result)
{
    if (nbytes > unallocated(ctrl))
        return SC_INSUFFICIENT_CAPACITY;
    for (uint32_t group = 1; group <= EMU_MAX_ENDURANCE_GROUPS; group++) {
        if (!ctrl->extras.capacity.groups[group - 1]) {
            ctrl->extras.capacity.groups[group - 1] = nbytes;
            *result = group;
            return SC_SUCCESS;
        }
    }
    return SC_IDENTIFIER_UNAVAILABLE;
}

static uint16_t create_set(struct emu_ctrl *ctrl, uint16_t group, uint64_t nbytes, uint32_t *result)
{
    if (nbytes > group_left(ctrl, group))
        return SC_INSUFFICIENT_CAPACITY;
    for (uint32_t id = 1; id <= EMU_MAX_SETS; id++) {
        if (!set_at(ctrl, id)) {
            ctrl->extras.capacity.sets[id - 1] = (struct nvm_set){group, nbytes};
            *result = id;
            return SC_SUCCESS;
        }
    }
    return SC_IDENTIFIER_UNAVAILABLE;
}

uint16_t admin_capacity(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    uint8_t operation = sqe->cdw10 & 15;
    uint16_t element = (uint16_t)(sqe->cdw10 >> 16);
    uint64_t nbytes = (uint64_t)sqe->cdw12 << 32 | sqe->cdw11;
    bool creates = operation == CREATE_GROUP || operation == CREATE_SET;
    ctrl->error_location = 40;
    if (operation == SELECT || operation > DELETE_SET || (creates && (!nbytes || nbytes % 4096)))
        return SC_INVALID_FIELD;
    if ((operation == DELETE_GROUP || operation == CREATE_SET) && !capacity_group_exists(ctrl, element))
        return SC_INVALID_FIELD;
    if (operation == DELETE_SET && !set_at(ctrl, element))
        return SC_INVALID_FIELD;
    if (!creates && op_active(&ctrl->ops[OP_FORMAT]))
        return SC_FORMAT_IN_PROGRESS;
    switch (operation) {
    case CREATE_GROUP:
        return create_group(ctrl, nbytes, result);
    case CREATE_SET:
        return create_set(ctrl, element, nbytes, result);
    case DELETE_SET:
        delete_set(ctrl, element);
        return SC_SUCCESS;
    default:
        for (uint16_t id = 1; id <= EMU_MAX_SETS; id++)
            if (set_at(ctrl, id) && set_at(ctrl, id)->group == element)
                delete_set(ctrl, id);
        ctrl->extras.capacity.groups[element - 1] = 0;
        return SC_SUCCESS;
    }
}

/* Identify Controller: FCM isn't offered; VCM, deletion, NVM Sets. */
void capacity_identify(const struct emu_ctrl *ctrl, uint8_t *p, uint32_t *ctratt)
{
    if (!managed(ctrl))
        return;
    *ctratt |= 1u << 2 | 1u << 12 | 1u << 13 | 1u << 14;
    put16(p, 338, EMU_MAX_SETS);
    put16(p, 340, EMU_MAX_ENDURANCE_GROUPS);
    put64(p, 384, ctrl->config.extras.capacity); /* MEGCAP */
}

/* CNS 04h: NVM Sets from `from` on. */
void capacity_identify_sets(const struct emu_ctrl *ctrl, uint16_t from, uint8_t *p)
{
    for (uint16_t id = from ? from : 1; id <= EMU_MAX_SETS; id++) {
        const struct nvm_set *set = set_at(ctrl, id);
        if (!set)
            continue;
        uint8_t *entry = p + 128 + 128 * (unsigned)p[0]++;
        put16(entry, 0, id);
        put16(entry, 2, set->group);
        put32(entry, 12, 4096); /* OWS */
        put64(entry, 16, set->nbytes);
        put64(entry, 32, set_left(ctrl, id));
    }
}

/* CNS 19h: Endurance Groups from `from` on. */
void capacity_identify_groups(const struct emu_ctrl *ctrl, uint16_t from, uint8_t *p)
{
    uint16_t n = 0;
    for (uint32_t group = from ? from : 1; group <= EMU_MAX_ENDURANCE_GROUPS; group++)
        if (capacity_group_exists(ctrl, group))
            put16(p, 2u + 2u * n++, (uint16_t)group);
    put16(p, 0, n);
}

/* TEGCAP and UEGCAP of log page 09h. */
void capacity_endurance(const struct emu_ctrl *ctrl, uint32_t group, uint8_t *p)
{
    put64(p, 160, managed(ctrl) ? ctrl->extras.capacity.groups[group - 1] : ctrl->config.extras.capacity);
    put64(p, 176, managed(ctrl) ? group_left(ctrl, group) : capacity_left(ctrl));
}
