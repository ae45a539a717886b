/*
 * Flexible Data Placement of endurance group 1 (Base 2.1, 8.1.10): what hosts write is counted
 * against reclaim units, one for each reclaim unit handle and reclaim group. There is no garbage
 * collection, so the media are written as hosts write them, and a reclaim unit that begins was
 * erased before.
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

#define HEADER 16u
#define CONFIGURATION 64u
#define EVENT 64u
#define MAX_EVENTS 63u
#define OPERATION_RUH 1u

static unsigned n_handles(const struct emu_ctrl *ctrl)
{
    return ctrl->config.extras.fdp_handles;
}

static unsigned n_groups(const struct emu_ctrl *ctrl)
{
    return ctrl->config.extras.fdp_groups;
}

/* RGIF: bits of a placement identifier that are the reclaim group. */
static unsigned group_bits(const struct emu_ctrl *ctrl)
{
    unsigned bits = 0;
    while (1u << bits < n_groups(ctrl))
        bits++;
    return bits;
}

static uint16_t identifier(const struct emu_ctrl *ctrl, unsigned handle, unsigned group)
{
    return (uint16_t)(group << (16 - group_bits(ctrl)) % 16 | handle);
}

static bool parse(const struct emu_ctrl *ctrl, const struct ns *ns, uint16_t pid, unsigned *handle, unsigned *group)
{
    unsigned low = 16 - group_bits(ctrl);
    *handle = pid & ((1u << low) - 1);
    *group = (uint32_t)pid >> low;
    return *handle < ns->n_handles && *group < n_groups(ctrl);
}

void fdp_enable(struct emu_ctrl *ctrl, bool enabled)
{
    struct fdp *fdp = &ctrl->extras.fdp;
    memset(fdp, 0, sizeof(*fdp));
    fdp->enabled = enabled;
    for (unsigned i = 0; i < EMU_MAX_HANDLES * EMU_MAX_GROUPS; i++)
        fdp->left[i] = ctrl->config.extras.fdp_unit_nbytes;
}

/* May a namespace be created with this list of placement handles? Not with a reclaim unit handle
 * that doesn't exist, or twice the same (NVM Command Set 1.1, 4.1.6). */
uint16_t fdp_check_handles(const struct emu_ctrl *ctrl, unsigned n, const uint16_t *list)
{
    if (!ctrl->extras.fdp.enabled)
        return n ? SC_FDP_DISABLED : SC_SUCCESS;
    if (n > n_handles(ctrl))
        return SC_PLACEMENT_HANDLES;
    for (unsigned i = 0; i < n; i++) {
        if (list[i] >= n_handles(ctrl))
            return SC_PLACEMENT_HANDLES;
        for (unsigned other = 0; other < i; other++)
            if (list[other] == list[i])
                return SC_PLACEMENT_HANDLES;
    }
    return SC_SUCCESS;
}

/* The placement handles of a namespace: those of the list, without one the first reclaim unit
 * handle alone. NULL: all. */
void fdp_assign_handles(const struct emu_ctrl *ctrl, struct ns *ns, unsigned n, const uint16_t *list)
{
    ns->n_handles = 0;
    if (!ctrl->extras.fdp.enabled)
        return;
    ns->n_handles = !list ? n_handles(ctrl) : n ? n : 1;
    for (unsigned i = 0; i < ns->n_handles; i++)
        ns->handles[i] = n && list ? list[i] : (uint16_t)i;
}

static void add_event(struct emu_ctrl *ctrl, struct ns *ns, uint8_t type, uint16_t pid, int ruh, unsigned group)
{
    struct fdp *fdp = &ctrl->extras.fdp;
    unsigned filter = ruh < 0 ? ns->handles[0] : (unsigned)ruh;
    unsigned by = type < 0x80; /* LSP bit 0: those that hosts caused */
    if (!(fdp->filters[filter] & fdp_event_bit(type)))
        return;
    uint8_t *at = fdp->events[by][fdp->n_events[by]++ % MAX_EVENTS];
    memset(at, 0, EVENT);
    at[0] = type;
    at[1] = ruh < 0 ? 3 : 7; /* valid: identifier, namespace, group and handle */
    memcpy(at + 2, &pid, 2);
    put64(at, 4, timestamp(ctrl));
    put32(at, 12, ns->nsid);
    if (ruh >= 0) {
        put16(at, 32, (uint16_t)group);
        at[34] = (uint8_t)ruh;
    }
}

/* The events that a reclaim unit handle can log, by bit of its filter; 0: this type isn't
 * offered. */
uint8_t fdp_event_bit(uint8_t type)
{
    switch (type) {
    case FDP_NOT_FULLY_WRITTEN:
        return 1;
    case FDP_INVALID_IDENTIFIER:
        return 2;
    case FDP_IMPLICITLY_MODIFIED:
        return 4;
    default:
        return 0;
    }
}

static void next_unit(struct emu_ctrl *ctrl, unsigned unit)
{
    ctrl->extras.fdp.left[unit] = ctrl->config.extras.fdp_unit_nbytes;
    ctrl->extras.fdp.erased += ctrl->config.extras.fdp_unit_nbytes;
}

/* A write has succeeded. An identifier that is none counts as no directive (NVM Command Set 1.1,
 * 5.6): handle 0, and group 0 is chosen for it. */
void fdp_write(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint64_t nbytes)
{
    struct fdp *fdp = &ctrl->extras.fdp;
    unsigned handle = 0, group = 0;
    uint16_t pid = (uint16_t)(sqe->cdw13 >> 16);
    if (CDW12_DTYPE_OF(sqe->cdw12) != DIRECTIVE_PLACEMENT) {
        pid = 0;
    } else if (!parse(ctrl, ns, pid, &handle, &group)) {
        add_event(ctrl, ns, FDP_INVALID_IDENTIFIER, pid, -1, 0);
        handle = group = pid = 0;
    }
    unsigned ruh = ns->handles[handle], unit = ruh * EMU_MAX_GROUPS + group;
    fdp->written += nbytes;
    while (nbytes >= fdp->left[unit]) {
        nbytes -= fdp->left[unit];
        next_unit(ctrl, unit);
        add_event(ctrl, ns, FDP_IMPLICITLY_MODIFIED, pid, (int)ruh, group);
    }
    fdp->left[unit] -= nbytes;
}

static uint16_t status_of_handles(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint64_t wanted)
{
    const struct fdp *fdp = &ctrl->extras.fdp;
    size_t nbytes = HEADER + 32u * ns->n_handles * n_groups(ctrl), at = HEADER;
    uint8_t *page = calloc(1, nbytes);
    if (!page)
        return SC_INTERNAL;
    put16(page, 14, (uint16_t)(ns->n_handles * n_groups(ctrl)));
    for (unsigned group = 0; group < n_groups(ctrl); group++) {
        for (unsigned handle = 0; handle < ns->n_handles; handle++, at += 32) {
            put16(page, (unsigned)at, identifier(ctrl, handle, group));
            put16(page, (unsigned)at + 2, ns->handles[handle]);
            put64(page, (unsigned)at + 8, fdp->left[ns->handles[handle] * EMU_MAX_GROUPS + group] >> ns->lbads);
        }
    }
    uint16_t status = copy_to_host_padded(ctrl, sqe, page, nbytes < wanted ? nbytes : wanted, wanted);
    free(page);
    return status;
}

/* I/O Management Receive (Base 2.1, 7.3). */
uint16_t io_management_receive(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    uint64_t wanted = ((uint64_t)sqe->cdw11 + 1) * 4;
    ctrl->error_location = 40;
    switch (sqe->cdw10 & 0xff) {
    case 0:
        return SC_SUCCESS;
    case OPERATION_RUH:
        if (!ctrl->extras.fdp.enabled)
            return SC_FDP_DISABLED;
        ctrl->error_location = 44;
        return wanted > ctrl->mdts_nbytes ? SC_INVALID_FIELD : status_of_handles(ctrl, ns, sqe, wanted);
    default:
        return SC_INVALID_FIELD;
    }
}

static uint16_t update(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    uint16_t list[EMU_MAX_HANDLES * EMU_MAX_GROUPS];
    unsigned n = (sqe->cdw10 >> 16) + 1, handle, group;
    if (!ctrl->extras.fdp.enabled)
        return SC_FDP_DISABLED;
    if (n > n_handles(ctrl) * n_groups(ctrl)) /* MAXPIDS */
        return SC_INVALID_FIELD;
    uint16_t status = copy_from_host(ctrl, sqe, list, n * sizeof(*list));
    for (unsigned i = 0; i < n && !status; i++)
        status = parse(ctrl, ns, list[i], &handle, &group) ? SC_SUCCESS : SC_INVALID_FIELD;
    for (unsigned i = 0; i < n && !status; i++) {
        parse(ctrl, ns, list[i], &handle, &group);
        unsigned ruh = ns->handles[handle], unit = ruh * EMU_MAX_GROUPS + group;
        if (ctrl->extras.fdp.left[unit] == ctrl->config.extras.fdp_unit_nbytes)
            continue; /* nothing was written to it */
        add_event(ctrl, ns, FDP_NOT_FULLY_WRITTEN, list[i], (int)ruh, group);
        next_unit(ctrl, unit);
    }
    return status;
}

/* I/O Management Send (Base 2.1, 7.4). */
uint16_t io_management_send(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    ctrl->error_location = 40;
    switch (sqe->cdw10 & 0xff) {
    case 0:
        return SC_SUCCESS;
    case OPERATION_RUH:
        return update(ctrl, ns, sqe);
    default:
        return SC_INVALID_FIELD;
    }
}

/* -- log pages (Base 2.1, 5.1.12.1.29 to 5.1.12.1.32) */

static uint8_t *configurations_page(const struct emu_ctrl *ctrl, size_t *nbytes)
{
    const struct emu_extras *extras = &ctrl->config.extras;
    unsigned size = (CONFIGURATION + 4 * n_handles(ctrl) + 7) & ~7u;
    uint8_t *page = calloc(1, *nbytes = HEADER + size), *entry = page + HEADER;
    if (!page)
        return NULL;
    put32(page, 4, (uint32_t)*nbytes); /* one configuration: NUMFDPC is 0 */
    put16(entry, 0, (uint16_t)size);
    entry[2] = (uint8_t)(0x80 | group_bits(ctrl)); /* FDPA: valid, RGIF */
    put32(entry, 4, n_groups(ctrl));
    put16(entry, 8, (uint16_t)n_handles(ctrl));
    put16(entry, 10, (uint16_t)(n_handles(ctrl) * n_groups(ctrl) - 1)); /* MAXPIDS */
    put64(entry, 16, extras->fdp_unit_nbytes);                           /* RUNS */
    for (unsigned i = 0; i < n_handles(ctrl); i++)
        entry[CONFIGURATION + 4 * i] = 1; /* initially isolated */
    return page;
}

static uint8_t *usage_page(const struct emu_ctrl *ctrl, size_t *nbytes)
{
    uint8_t *page = calloc(1, *nbytes = 8 + 8 * n_handles(ctrl));
    if (!page)
        return NULL;
    put16(page, 0, (uint16_t)n_handles(ctrl));
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++) {
        const struct ns *ns = ns_allocated(ctrl, nsid);
        for (unsigned i = 0; ns && i < ns->n_handles; i++)
            page[8 + 8 * ns->handles[i]] = 1; /* host specified */
    }
    return page;
}

static uint8_t *statistics_page(const struct emu_ctrl *ctrl, size_t *nbytes)
{
    const struct fdp *fdp = &ctrl->extras.fdp;
    uint8_t *page = calloc(1, *nbytes = 64);
    if (!page)
        return NULL;
    put64(page, 0, fdp->written);
    put64(page, 16, fdp->written);
    put64(page, 32, fdp->erased);
    return page;
}

static uint8_t *events_page(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes)
{
    const struct fdp *fdp = &ctrl->extras.fdp;
    unsigned by = sqe->cdw10 >> 8 & 1;
    uint64_t all = fdp->n_events[by], n = all < MAX_EVENTS ? all : MAX_EVENTS;
    uint8_t *page = calloc(1, *nbytes = EVENT * (MAX_EVENTS + 1));
    if (!page)
        return NULL;
    put32(page, 0, (uint32_t)n);
    for (uint64_t i = 0; i < n; i++) /* oldest first */
        memcpy(page + EVENT * (i + 1), fdp->events[by][(all - n + i) % MAX_EVENTS], EVENT);
    return page;
}

uint8_t *fdp_page(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status)
{
    uint8_t lid = (uint8_t)sqe->cdw10;
    if (sqe->cdw11 >> 16 != 1) { /* the endurance group */
        *status = SC_INVALID_FIELD;
        return NULL;
    }
    if (lid == LOG_FDP_CONFIGURATIONS)
        return configurations_page(ctrl, nbytes);
    if (!ctrl->extras.fdp.enabled) {
        *status = SC_FDP_DISABLED;
        return NULL;
    }
    if (lid == LOG_FDP_USAGE)
        return usage_page(ctrl, nbytes);
    return lid == LOG_FDP_STATISTICS ? statistics_page(ctrl, nbytes) : events_page(ctrl, sqe, nbytes);
}

/* -- features 1Dh and 1Eh (Base 2.1, 5.1.25.1.20 and 5.1.25.1.21) */

uint16_t fdp_set_mode(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    if ((sqe->cdw11 & 0xffff) != 1 || (sqe->cdw12 & 1 && sqe->cdw12 >> 8 & 0xff))
        return SC_INVALID_FIELD;
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++)
        if (ns_allocated(ctrl, nsid))
            return SC_COMMAND_SEQUENCE;
    fdp_enable(ctrl, sqe->cdw12 & 1);
    return SC_SUCCESS;
}

uint16_t fdp_get_mode(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    if ((sqe->cdw11 & 0xffff) != 1)
        return SC_INVALID_FIELD;
    *result = ctrl->extras.fdp.enabled;
    return SC_SUCCESS;
}

/* The filter of a placement handle's reclaim unit handle. */
static uint16_t find_filter(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint8_t **filter)
{
    struct ns *ns;
    uint16_t status = ns_find(ctrl, sqe->nsid, &ns);
    if (status)
        return status;
    if (!ctrl->extras.fdp.enabled)
        return SC_FDP_DISABLED;
    if ((sqe->cdw11 & 0xffff) >= ns->n_handles)
        return SC_INVALID_FIELD;
    *filter = &ctrl->extras.fdp.filters[ns->handles[sqe->cdw11 & 0xffff]];
    return SC_SUCCESS;
}

uint16_t fdp_set_events(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint8_t types[255], *filter, bits = 0;
    unsigned n = sqe->cdw11 >> 16 & 0xff;
    uint16_t status = find_filter(ctrl, sqe, &filter);
    if (!status && n)
        status = copy_from_host(ctrl, sqe, types, n);
    for (unsigned i = 0; i < n && !status; i++) {
        status = fdp_event_bit(types[i]) ? SC_SUCCESS : SC_INVALID_FIELD;
        bits |= fdp_event_bit(types[i]);
    }
    if (!status)
        *filter = (uint8_t)(sqe->cdw12 & 1 ? *filter | bits : *filter & ~bits);
    return status;
}

uint16_t fdp_get_events(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    static const uint8_t types[] = {FDP_NOT_FULLY_WRITTEN, FDP_INVALID_IDENTIFIER, FDP_IMPLICITLY_MODIFIED};
    uint8_t page[2 * 255] = {0}, *filter;
    unsigned n = sqe->cdw11 >> 16 & 0xff;
    uint16_t status = find_filter(ctrl, sqe, &filter);
    if (status)
        return status;
    for (unsigned i = 0; i < sizeof(types); i++) {
        page[2 * i] = types[i];
        page[2 * i + 1] = (*filter & fdp_event_bit(types[i])) != 0;
    }
    *result = sizeof(types);
    return n ? copy_to_host(ctrl, sqe, page, 2 * n) : SC_SUCCESS;
}
