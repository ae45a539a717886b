/*
 * Zoned namespaces (ZNS Command Set 1.1): zones and their states (2.1.1), what a write may do
 * (2.1.1.2), Zone Append, Zone Management Send and Receive. Zones have no descriptor extension and
 * no random write area.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "nvme_ctrl.h"

enum { EMPTY = 0x1, IMPLICIT = 0x2, EXPLICIT = 0x3, CLOSED = 0x4, READ_ONLY = 0xd, FULL = 0xe, OFFLINE = 0xf };
enum { SEND_CLOSE = 1, SEND_FINISH = 2, SEND_OPEN = 3, SEND_RESET = 4, SEND_OFFLINE = 5 };
enum { RECEIVE_REPORT = 0 };
#define SELECT_ALL (1u << 8)
#define PARTIAL (1u << 16)
#define FINISHED_BY_CONTROLLER 1u

struct zone {
    uint64_t wp;
    uint8_t state, attributes;
    bool changed;
};

struct zones {
    uint64_t n, size, capacity; /* blocks */
    uint32_t open, active;      /* zones in an open state; those and the closed ones */
    struct zone zones[];
};

static bool is_open(const struct zone *zone)
{
    return zone->state == IMPLICIT || zone->state == EXPLICIT;
}

static bool is_active(const struct zone *zone)
{
    return is_open(zone) || zone->state == CLOSED;
}

static void set_state(struct zones *zones, struct zone *zone, uint8_t state)
{
    zones->open -= is_open(zone);
    zones->active -= is_active(zone);
    zone->state = state;
    zones->open += is_open(zone);
    zones->active += is_active(zone);
}

static uint64_t start_of(const struct zones *zones, const struct zone *zone)
{
    return (uint64_t)(zone - zones->zones) * zones->size;
}

/* For a namespace whose format is set; 0, or -errno with a message. */
int zones_new(struct emu_ctrl *ctrl, struct ns *ns, char *err)
{
    const struct emu_extras *extras = &ctrl->config.extras;
    uint64_t size = extras->zone_nbytes >> ns->lbads, capacity = extras->zone_capacity_nbytes >> ns->lbads;
    free(ns->zones);
    ns->zones = NULL;
    if (!size || !capacity || capacity > size || ns->nblocks % size) {
        snprintf(err, 256, "namespace %u: %llu blocks are not a whole number of zones", ns->nsid,
                 (unsigned long long)ns->nblocks);
        return -EINVAL;
    }
    uint64_t n = ns->nblocks / size;
    struct zones *zones = calloc(1, sizeof(*zones) + n * sizeof(zones->zones[0]));
    if (!zones)
        return -ENOMEM;
    zones->n = n;
    zones->size = size;
    zones->capacity = capacity;
    ns->zones = zones;
    for (uint64_t i = 0; i < n; i++)
        zones->zones[i] = (struct zone){.wp = i * size, .state = EMPTY};
    return 0;
}

/* Everything was erased. */
void zones_reset(struct ns *ns)
{
    struct zones *zones = ns->zones;
    for (uint64_t i = 0; zones && i < zones->n; i++) {
        set_state(zones, &zones->zones[i], EMPTY);
        zones->zones[i].wp = i * zones->size;
        zones->zones[i].attributes = 0;
    }
}

/* Room for one more open zone: closes an implicitly opened one if necessary. */
static uint16_t make_room(struct emu_ctrl *ctrl, struct zones *zones, bool active)
{
    const struct emu_extras *extras = &ctrl->config.extras;
    if (active && extras->max_active && zones->active >= extras->max_active)
        return SC_TOO_MANY_ACTIVE;
    if (!extras->max_open || zones->open < extras->max_open)
        return SC_SUCCESS;
    for (uint64_t i = 0; i < zones->n; i++) {
        if (zones->zones[i].state != IMPLICIT)
            continue;
        set_state(zones, &zones->zones[i], CLOSED);
        return SC_SUCCESS;
    }
    return SC_TOO_MANY_OPEN;
}

static uint16_t refusal(const struct zone *zone)
{
    return zone->state == FULL        ? SC_ZONE_FULL
           : zone->state == READ_ONLY ? SC_ZONE_READ_ONLY
           : zone->state == OFFLINE   ? SC_ZONE_OFFLINE
                                      : SC_SUCCESS;
}

/* Before blocks are written at *lba (by an append: at the zone's start, and *lba becomes the write
 * pointer). */
uint16_t zones_write(struct emu_ctrl *ctrl, struct ns *ns, uint64_t *lba, uint32_t blocks, bool append)
{
    struct zones *zones = ns->zones;
    struct zone *zone = &zones->zones[*lba / zones->size];
    uint64_t start = start_of(zones, zone);
    uint16_t status = refusal(zone);
    if (status)
        return status;
    if (append && *lba != start)
        return SC_INVALID_FIELD;
    uint64_t at = append ? zone->wp : *lba;
    if (at + blocks > start + zones->capacity)
        return SC_ZONE_BOUNDARY;
    if (at != zone->wp)
        return SC_ZONE_INVALID_WRITE;
    if (!is_open(zone)) {
        status = make_room(ctrl, zones, zone->state == EMPTY);
        if (status)
            return status;
        set_state(zones, zone, IMPLICIT);
    }
    zone->wp += blocks;
    if (zone->wp == start + zones->capacity)
        set_state(zones, zone, FULL);
    *lba = at;
    return SC_SUCCESS;
}

/* A read may cross zones (OZCS) but not touch one that is offline. */
uint16_t zones_read(const struct ns *ns, uint64_t lba, uint32_t blocks)
{
    const struct zones *zones = ns->zones;
    for (uint64_t i = lba / zones->size; i <= (lba + blocks - 1) / zones->size; i++)
        if (zones->zones[i].state == OFFLINE)
            return SC_ZONE_OFFLINE;
    return SC_SUCCESS;
}

static uint16_t reset(struct emu_ctrl *ctrl, struct ns *ns, struct zone *zone)
{
    struct zones *zones = ns->zones;
    uint64_t start = start_of(zones, zone);
    uint16_t status = media_zero(&ns->media, start << ns->lbads, zones->size << ns->lbads, true);
    if (!status)
        status = meta_zero(ns, start, zones->size);
    if (ns->n_bad && !status)
        bad_clear(ns, start, zones->size);
    if (status)
        return status;
    (void)ctrl;
    set_state(zones, zone, EMPTY);
    zone->wp = start;
    zone->attributes = 0;
    return SC_SUCCESS;
}

/* One zone, named by the command: states in which the action is not allowed are refused (ZNS
 * 3.4.3). */
static uint16_t act(struct emu_ctrl *ctrl, struct ns *ns, struct zone *zone, uint8_t action)
{
    struct zones *zones = ns->zones;
    uint16_t status;
    switch (action) {
    case SEND_CLOSE:
        if (zone->state != CLOSED && !is_open(zone))
            return SC_ZONE_TRANSITION;
        set_state(zones, zone, zone->wp == start_of(zones, zone) ? EMPTY : CLOSED);
        return SC_SUCCESS;
    case SEND_FINISH:
        if (zone->state == READ_ONLY || zone->state == OFFLINE)
            return SC_ZONE_TRANSITION;
        if (zone->state == EMPTY && ctrl->config.extras.max_active && zones->active >= ctrl->config.extras.max_active)
            return SC_TOO_MANY_ACTIVE;
        set_state(zones, zone, FULL);
        return SC_SUCCESS;
    case SEND_OPEN:
        if (zone->state == FULL || zone->state == READ_ONLY || zone->state == OFFLINE)
            return SC_ZONE_TRANSITION;
        if (!is_open(zone) && (status = make_room(ctrl, zones, zone->state == EMPTY)))
            return status;
        set_state(zones, zone, EXPLICIT);
        return SC_SUCCESS;
    case SEND_RESET:
        if (zone->state == READ_ONLY || zone->state == OFFLINE)
            return SC_ZONE_TRANSITION;
        return reset(ctrl, ns, zone);
    case SEND_OFFLINE:
        if (zone->state != READ_ONLY && zone->state != OFFLINE)
            return SC_ZONE_TRANSITION;
        set_state(zones, zone, OFFLINE);
        return SC_SUCCESS;
    default:
        return SC_INVALID_FIELD;
    }
}

/* What "select all" means for each action (ZNS 3.4.3). */
static bool concerned(const struct zone *zone, uint8_t action)
{
    switch (action) {
    case SEND_CLOSE:
        return is_open(zone);
    case SEND_FINISH:
        return is_active(zone);
    case SEND_OPEN:
        return zone->state == CLOSED;
    case SEND_RESET:
        return is_active(zone) || zone->state == FULL;
    default:
        return zone->state == READ_ONLY;
    }
}

uint16_t zones_send(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct zones *zones = ns->zones;
    uint64_t lba = sqe->cdw10 | (uint64_t)sqe->cdw11 << 32;
    uint8_t action = (uint8_t)sqe->cdw13;
    ctrl->error_location = 52;
    if (action < SEND_CLOSE || action > SEND_OFFLINE)
        return SC_INVALID_FIELD;
    if (ns->formatting)
        return SC_FORMAT_IN_PROGRESS;
    if (!(sqe->cdw13 & SELECT_ALL)) {
        if (lba >= ns->nblocks)
            return SC_LBA_RANGE;
        if (lba % zones->size)
            return SC_INVALID_FIELD;
        return act(ctrl, ns, &zones->zones[lba / zones->size], action);
    }
    if (action == SEND_OPEN) { /* all or none */
        uint64_t closed = 0;
        for (uint64_t i = 0; i < zones->n; i++)
            closed += zones->zones[i].state == CLOSED;
        if (ctrl->config.extras.max_open && zones->open + closed > ctrl->config.extras.max_open)
            return SC_TOO_MANY_OPEN;
    }
    for (uint64_t i = 0; i < zones->n; i++) {
        if (!concerned(&zones->zones[i], action))
            continue;
        uint16_t status = act(ctrl, ns, &zones->zones[i], action);
        if (status)
            return status;
    }
    return SC_SUCCESS;
}

static bool wanted(const struct zone *zone, uint8_t filter)
{
    static const uint8_t states[] = {0, EMPTY, IMPLICIT, EXPLICIT, CLOSED, FULL, READ_ONLY, OFFLINE};
    return !filter || zone->state == states[filter];
}

uint16_t zones_receive(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct zones *zones = ns->zones;
    uint64_t lba = sqe->cdw10 | (uint64_t)sqe->cdw11 << 32, nbytes = ((uint64_t)sqe->cdw12 + 1) * 4;
    uint8_t action = (uint8_t)sqe->cdw13, filter = (uint8_t)(sqe->cdw13 >> 8);
    ctrl->error_location = 52;
    if (action != RECEIVE_REPORT || filter > 7 || nbytes > ctrl->mdts_nbytes)
        return SC_INVALID_FIELD;
    if (lba >= ns->nblocks)
        return SC_LBA_RANGE;
    uint64_t room = nbytes < 64 ? 0 : (nbytes - 64) / 64, matching = 0, listed = 0;
    uint8_t *page = calloc(1, 64 + room * 64);
    if (!page)
        return SC_INTERNAL;
    for (uint64_t i = lba / zones->size; i < zones->n; i++) {
        struct zone *zone = &zones->zones[i];
        if (!wanted(zone, filter))
            continue;
        matching++;
        if (listed == room)
            continue;
        uint8_t *at = page + 64 + 64 * listed++;
        at[0] = 2; /* sequential write required */
        at[1] = (uint8_t)(zone->state << 4);
        at[2] = zone->attributes;
        put64(at, 8, zones->capacity);
        put64(at, 16, i * zones->size);
        put64(at, 24,
              zone->state == FULL || zone->state == READ_ONLY || zone->state == OFFLINE ? UINT64_MAX : zone->wp);
    }
    put64(page, 0, sqe->cdw13 & PARTIAL ? listed : matching);
    uint64_t valid = 64 + 64 * listed;
    uint16_t status = copy_to_host_padded(ctrl, sqe, page, valid < nbytes ? valid : nbytes, nbytes);
    free(page);
    return status;
}

/* CNS 05h, CSI 02h: limits, and the zone size of each LBA format. */
void zones_identify(const struct emu_ctrl *ctrl, const struct ns *ns, uint8_t *p)
{
    const struct emu_extras *extras = &ctrl->config.extras;
    (void)ns;
    put16(p, 2, 1); /* OZCS: reads across zones */
    put32(p, 4, extras->max_active ? extras->max_active - 1 : UINT32_MAX);
    put32(p, 8, extras->max_open ? extras->max_open - 1 : UINT32_MAX);
    for (unsigned i = 0; i < ctrl->config.n_formats; i++)
        put64(p, 2816 + 16 * i, extras->zone_nbytes / ctrl->config.formats[i].block_size);
}

/* A test puts a zone into a state, as a drive does by itself. */
int zones_change(struct emu_ctrl *ctrl, uint32_t nsid, uint64_t index, uint8_t state)
{
    struct ns *ns = nsid - 1 < EMU_MAX_NAMESPACES ? ctrl->namespaces[nsid - 1] : NULL;
    if (!ns || !ns->zones || index >= ns->zones->n)
        return -ENOENT;
    if (state != READ_ONLY && state != OFFLINE && state != FULL)
        return -EINVAL;
    struct zone *zone = &ns->zones->zones[index];
    set_state(ns->zones, zone, state);
    zone->attributes |= state == FULL ? FINISHED_BY_CONTROLLER : 0;
    zone->changed = true;
    event_post(ctrl, EVENT_NOTICE, NOTICE_ZONES, LOG_CHANGED_ZONES);
    return 0;
}

/* The Changed Zone List of one namespace; reading it clears it (ZNS 4.1). */
uint8_t *zones_changed_page(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status)
{
    struct ns *ns;
    uint16_t found = ns_find(ctrl, sqe->nsid, &ns);
    if (found || !ns->zones) {
        *status = found ? found : SC_INVALID_FIELD;
        return NULL;
    }
    uint8_t *page = calloc(1, 4096);
    if (!page)
        return NULL;
    *nbytes = 4096;
    uint16_t n = 0;
    for (uint64_t i = 0; i < ns->zones->n; i++) {
        struct zone *zone = &ns->zones->zones[i];
        if (!zone->changed)
            continue;
        if (n < 511)
            put64(page, 8 + 8u * n, i * ns->zones->size);
        n = n < 511 ? n + 1 : 0xfffe;
        if (!(sqe->cdw10 & 1u << 15))
            zone->changed = false;
    }
    put16(page, 0, n > 511 ? 0xffff : n);
    return page;
}
