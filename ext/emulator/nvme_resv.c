/*
 * Reservations (NVMe Base 2.0, 8.19). The controller serves one host at a time, so the registrants
 * of a namespace are this host under the host identifiers that it has used, and a reservation
 * outlives the connection that made it.
 */
#include "nvme_ctrl.h"

void resv_init(struct reservation *resv)
{
    *resv = (struct reservation){.holder = -1};
}

static int find_registrant(const struct reservation *resv, const uint8_t *hostid)
{
    for (unsigned i = 0; i < resv->n_registrants; i++)
        if (!memcmp(resv->registrants[i].hostid, hostid, 16))
            return (int)i;
    return -1;
}

enum {
    WRITE_EXCLUSIVE = 1,
    EXCLUSIVE = 2,
    WRITE_REGISTRANTS = 3,
    EXCLUSIVE_REGISTRANTS = 4,
    WRITE_ALL = 5,
    EXCLUSIVE_ALL = 6
};

static bool held_by_all(const struct reservation *resv)
{
    return resv->type == WRITE_ALL || resv->type == EXCLUSIVE_ALL;
}

static bool is_holder(const struct reservation *resv, int registrant)
{
    return registrant >= 0 && resv->type && (held_by_all(resv) || resv->holder == registrant);
}

static bool reads(uint8_t opcode)
{
    return opcode == IO_READ || opcode == IO_COMPARE || opcode == IO_VERIFY;
}

static bool writes(uint8_t opcode)
{
    return opcode == IO_WRITE || opcode == IO_WRITE_UNCORRECTABLE || opcode == IO_WRITE_ZEROES || opcode == IO_DSM ||
           opcode == IO_COPY || opcode == IO_FLUSH;
}

/* Whether the reservation forbids this command to this host (figure "Command Behavior in the
 * Presence of a Reservation"). */
bool resv_conflict(const struct emu_ctrl *ctrl, const struct ns *ns, uint8_t opcode)
{
    const struct reservation *resv = &ns->resv;
    if (!resv->type || (!reads(opcode) && !writes(opcode)))
        return false;
    int me = find_registrant(resv, ctrl->hostid);
    if (is_holder(resv, me))
        return false;
    bool exclusive = resv->type == EXCLUSIVE || resv->type == EXCLUSIVE_REGISTRANTS || resv->type == EXCLUSIVE_ALL;
    bool registrants = resv->type >= WRITE_REGISTRANTS;
    if (registrants && me >= 0)
        return false;
    return writes(opcode) || exclusive;
}

static void drop_reservation(struct reservation *resv)
{
    resv->type = 0;
    resv->holder = -1;
}

static void unregister(struct reservation *resv, int which)
{
    if (resv->type && !held_by_all(resv) && resv->holder == which)
        drop_reservation(resv);
    resv->n_registrants--;
    memmove(&resv->registrants[which], &resv->registrants[which + 1],
            (resv->n_registrants - (unsigned)which) * sizeof(resv->registrants[0]));
    if (resv->holder > which)
        resv->holder--;
    if (!resv->n_registrants)
        drop_reservation(resv);
}

struct keys {
    uint64_t current, next; /* CRKEY, and NRKEY or PRKEY */
};

static uint16_t resv_register(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct reservation *resv = &ns->resv;
    struct keys keys;
    uint32_t action = sqe->cdw10 & 7;
    bool ignore_key = sqe->cdw10 & 8;
    if (action > 2 || sqe->cdw10 >> 30 & 1) /* CPTPL: persistence through power loss is not supported */
        return SC_INVALID_FIELD;
    uint16_t status = copy_from_host(ctrl, sqe, &keys, sizeof(keys));
    if (status)
        return status;
    int me = find_registrant(resv, ctrl->hostid);
    if (action == 0) {
        if (me >= 0) /* repeating it with the same key is allowed, with another it is a conflict */
            return resv->registrants[me].key == keys.next ? SC_SUCCESS : SC_RESERVATION_CONFLICT;
        if (resv->n_registrants == MAX_REGISTRANTS)
            return SC_INTERNAL;
        struct registrant *new = &resv->registrants[resv->n_registrants++];
        *new = (struct registrant){.key = keys.next, .cntlid = 0};
        memcpy(new->hostid, ctrl->hostid, sizeof(new->hostid));
        resv->generation++;
        return SC_SUCCESS;
    }
    if (me < 0 || (!ignore_key && resv->registrants[me].key != keys.current))
        return SC_RESERVATION_CONFLICT;
    if (action == 1)
        unregister(resv, me);
    else
        resv->registrants[me].key = keys.next;
    resv->generation++;
    return SC_SUCCESS;
}

static void preempt(struct reservation *resv, int me, uint64_t key, uint8_t type)
{
    uint8_t hostid[16];
    memcpy(hostid, resv->registrants[me].hostid, sizeof(hostid));
    bool takes = resv->type && (held_by_all(resv) ? key == 0 : resv->registrants[resv->holder].key == key);
    for (int i = (int)resv->n_registrants - 1; i >= 0; i--)
        if (memcmp(resv->registrants[i].hostid, hostid, 16) &&
            (resv->registrants[i].key == key || (takes && held_by_all(resv) && !key)))
            unregister(resv, i);
    if (takes) {
        resv->type = type;
        resv->holder = find_registrant(resv, hostid);
    }
    resv->generation++;
}

static uint16_t resv_acquire(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct reservation *resv = &ns->resv;
    struct keys keys;
    uint32_t action = sqe->cdw10 & 7;
    uint8_t type = (uint8_t)(sqe->cdw10 >> 8);
    if (action > 2 || (sqe->cdw10 & 8) || !type || type > EXCLUSIVE_ALL)
        return SC_INVALID_FIELD;
    uint16_t status = copy_from_host(ctrl, sqe, &keys, sizeof(keys));
    if (status)
        return status;
    int me = find_registrant(resv, ctrl->hostid);
    if (me < 0 || resv->registrants[me].key != keys.current)
        return SC_RESERVATION_CONFLICT;
    if (action) { /* preempt, preempt and abort: no other host has commands here that could be aborted */
        preempt(resv, me, keys.next, type);
        return SC_SUCCESS;
    }
    if (resv->type && (!is_holder(resv, me) || resv->type != type))
        return SC_RESERVATION_CONFLICT;
    resv->type = type;
    resv->holder = me;
    return SC_SUCCESS;
}

static uint16_t resv_release(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct reservation *resv = &ns->resv;
    uint64_t key;
    uint32_t action = sqe->cdw10 & 7;
    if (action > 1 || (sqe->cdw10 & 8))
        return SC_INVALID_FIELD;
    uint16_t status = copy_from_host(ctrl, sqe, &key, sizeof(key));
    if (status)
        return status;
    int me = find_registrant(resv, ctrl->hostid);
    if (me < 0 || resv->registrants[me].key != key)
        return SC_RESERVATION_CONFLICT;
    if (action == 1) { /* clear */
        resv->n_registrants = 0;
        drop_reservation(resv);
        resv->generation++;
        return SC_SUCCESS;
    }
    if (!is_holder(resv, me))
        return SC_SUCCESS;
    if (resv->type != (uint8_t)(sqe->cdw10 >> 8))
        return SC_INVALID_FIELD;
    drop_reservation(resv);
    return SC_SUCCESS;
}

/*
 * Whether the host's identifiers, and those of the registrants, fit the requested data structure
 * (Base 2.0, 7.5 and 8.19): a host that has set none yet may ask for either, unless 64 bits would
 * cut a registrant's identifier.
 */
static bool format_fits(const struct emu_ctrl *ctrl, const struct reservation *resv, bool extended)
{
    static const uint8_t none[16];
    if (memcmp(ctrl->hostid, none, sizeof(none)))
        return extended == ctrl->hostid_extended;
    for (unsigned i = 0; i < resv->n_registrants && !extended; i++)
        if (memcmp(resv->registrants[i].hostid + 8, none, 8))
            return false;
    return true;
}

/* Reservation Status: 24 bytes of header and 24 for each registrant, or 64 and 64 in the extended
 * structure. */
static uint16_t resv_report(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    const struct reservation *resv = &ns->resv;
    uint8_t page[64 + 64 * MAX_REGISTRANTS] = {0};
    bool extended = sqe->cdw11 & 1;
    if (!format_fits(ctrl, resv, extended))
        return SC_HOST_ID_INCONSISTENT;
    unsigned header = extended ? 64 : 24, entry = header;
    memcpy(page, &resv->generation, 4);
    page[4] = resv->type;
    uint16_t count = (uint16_t)resv->n_registrants;
    memcpy(page + 5, &count, 2);
    for (unsigned i = 0; i < resv->n_registrants; i++) {
        const struct registrant *r = &resv->registrants[i];
        uint8_t *at = page + header + i * entry;
        memcpy(at, &r->cntlid, 2);
        at[2] = is_holder(resv, (int)i);
        memcpy(at + (extended ? 16 : 8), r->hostid, extended ? 16 : 8);
        memcpy(at + (extended ? 8 : 16), &r->key, 8);
    }
    uint64_t valid = header + (uint64_t)entry * resv->n_registrants, nbytes = ((uint64_t)sqe->cdw10 + 1) * 4;
    if (nbytes > ctrl->mdts_nbytes || nbytes > 1u << 20)
        return SC_INVALID_FIELD;
    return copy_to_host_padded(ctrl, sqe, page, valid < nbytes ? valid : nbytes, nbytes);
}

uint16_t io_reservation(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    switch (sqe->opcode) {
    case IO_RESV_REGISTER:
        return resv_register(ctrl, ns, sqe);
    case IO_RESV_ACQUIRE:
        return resv_acquire(ctrl, ns, sqe);
    case IO_RESV_RELEASE:
        return resv_release(ctrl, ns, sqe);
    default:
        return resv_report(ctrl, ns, sqe);
    }
}
