/*
 * Key value namespaces (Key Value Command Set 1.1): Store, Retrieve, Delete, Exist, List. Values
 * are in memory, keys in order. A value has at most KV_VALUE_MAX bytes; the total of their sizes is
 * limited by the namespace's.
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

#define KEY_MAX 16u
#define KV_VALUE_MAX (1u << 20)
#define MUST_EXIST (1u << 8)
#define MUST_NOT_EXIST (1u << 9)

struct kv_entry {
    uint8_t key[KEY_MAX];
    uint8_t length;
    uint32_t nbytes;
    uint8_t *value;
};

struct kv {
    struct kv_entry *entries; /* by key */
    uint32_t n, room;
    uint64_t used;
};

int kv_new(struct ns *ns)
{
    ns->kv = calloc(1, sizeof(*ns->kv));
    return ns->kv ? 0 : -1;
}

void kv_clear(struct ns *ns)
{
    struct kv *kv = ns->kv;
    for (uint32_t i = 0; kv && i < kv->n; i++)
        free(kv->entries[i].value);
    if (kv)
        kv->n = 0, kv->used = 0;
}

void kv_free(struct ns *ns)
{
    if (!ns->kv)
        return;
    kv_clear(ns);
    free(ns->kv->entries);
    free(ns->kv);
}

/* The key: its bytes in dwords 2, 3, 14 and 15, its length in dword 11. False for an invalid
 * length. */
static bool key_of(const struct nvme_sqe *sqe, struct kv_entry *key)
{
    *key = (struct kv_entry){.length = (uint8_t)sqe->cdw11};
    const uint32_t words[] = {sqe->cdw2, sqe->cdw3, sqe->cdw14, sqe->cdw15};
    if (key->length > KEY_MAX)
        return false;
    memcpy(key->key, words, key->length);
    return true;
}

static int compare(const struct kv_entry *a, const struct kv_entry *b)
{
    int order = memcmp(a->key, b->key, KEY_MAX);
    return order ? order : (int)a->length - (int)b->length;
}

/* Where the key is, or would be. */
static uint32_t place(const struct kv *kv, const struct kv_entry *key, bool *found)
{
    uint32_t low = 0, high = kv->n;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (compare(&kv->entries[middle], key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *found = low < kv->n && !compare(&kv->entries[low], key);
    return low;
}

static uint16_t store(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct kv *kv = ns->kv;
    struct kv_entry entry;
    bool found;
    if (!key_of(sqe, &entry) || !entry.length)
        return SC_KV_KEY_SIZE;
    entry.nbytes = sqe->cdw10;
    if (entry.nbytes > KV_VALUE_MAX || entry.nbytes > ctrl->mdts_nbytes)
        return SC_KV_VALUE_SIZE;
    uint32_t at = place(kv, &entry, &found);
    if (found && sqe->cdw11 & MUST_NOT_EXIST)
        return SC_KV_EXISTS;
    if (!found && sqe->cdw11 & MUST_EXIST)
        return SC_KV_NO_KEY;
    uint64_t freed = found ? kv->entries[at].nbytes : 0;
    if (kv->used - freed + entry.nbytes > ns->nbytes)
        return SC_CAPACITY_EXCEEDED;
    if (!found && kv->n == kv->room) {
        uint32_t room = kv->room ? 2 * kv->room : 64;
        struct kv_entry *entries = realloc(kv->entries, room * sizeof(*entries));
        if (!entries)
            return SC_INTERNAL;
        kv->entries = entries;
        kv->room = room;
    }
    entry.value = malloc(entry.nbytes ? entry.nbytes : 1);
    if (!entry.value)
        return SC_INTERNAL;
    uint16_t status = entry.nbytes ? copy_from_host(ctrl, sqe, entry.value, entry.nbytes) : SC_SUCCESS;
    if (status) {
        free(entry.value);
        return status;
    }
    if (found) {
        free(kv->entries[at].value);
    } else {
        memmove(&kv->entries[at + 1], &kv->entries[at], (kv->n - at) * sizeof(entry));
        kv->n++;
    }
    kv->entries[at] = entry;
    kv->used += entry.nbytes - freed;
    ctrl->counters.commands_written++;
    ctrl->counters.bytes_written += entry.nbytes;
    return SC_SUCCESS;
}

/* The host gets what its buffer holds, and in dword 0 how long the value is. */
static uint16_t retrieve(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint32_t *result)
{
    struct kv_entry key;
    bool found;
    if (!key_of(sqe, &key) || !key.length)
        return SC_KV_KEY_SIZE;
    uint32_t at = place(ns->kv, &key, &found);
    if (!found)
        return SC_KV_NO_KEY;
    const struct kv_entry *entry = &ns->kv->entries[at];
    uint32_t room = sqe->cdw10;
    if (room > ctrl->mdts_nbytes)
        return SC_KV_VALUE_SIZE;
    uint32_t nbytes = entry->nbytes < room ? entry->nbytes : room;
    uint16_t status = nbytes ? copy_to_host(ctrl, sqe, entry->value, nbytes) : SC_SUCCESS;
    if (!status)
        *result = entry->nbytes;
    ctrl->counters.commands_read++;
    ctrl->counters.bytes_read += nbytes;
    return status;
}

static uint16_t delete(struct ns *ns, const struct nvme_sqe *sqe, bool really)
{
    struct kv *kv = ns->kv;
    struct kv_entry key;
    bool found;
    if (!key_of(sqe, &key) || !key.length)
        return SC_KV_KEY_SIZE;
    uint32_t at = place(kv, &key, &found);
    if (!found)
        return SC_KV_NO_KEY;
    if (!really)
        return SC_SUCCESS;
    kv->used -= kv->entries[at].nbytes;
    free(kv->entries[at].value);
    kv->n--;
    memmove(&kv->entries[at], &kv->entries[at + 1], (kv->n - at) * sizeof(key));
    return SC_SUCCESS;
}

/* Keys from the one that is named on, as many as the buffer holds: a count, then each with its
 * length, padded to dwords. */
static uint16_t list(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct kv_entry key;
    bool found;
    uint32_t nbytes = sqe->cdw10, at = 4, n = 0;
    if (!key_of(sqe, &key))
        return SC_KV_KEY_SIZE;
    if (nbytes < 4 || nbytes > ctrl->mdts_nbytes || nbytes > 1u << 20)
        return SC_INVALID_FIELD;
    uint8_t *page = calloc(1, nbytes);
    if (!page)
        return SC_INTERNAL;
    for (uint32_t i = place(ns->kv, &key, &found); i < ns->kv->n; i++) {
        const struct kv_entry *entry = &ns->kv->entries[i];
        uint32_t size = (2u + entry->length + 3) & ~3u;
        if (size > nbytes - at)
            break;
        put16(page, at, entry->length);
        memcpy(page + at + 2, entry->key, entry->length);
        at += size;
        n++;
    }
    put32(page, 0, n);
    uint16_t status = copy_to_host(ctrl, sqe, page, nbytes);
    free(page);
    return status;
}

uint16_t io_key_value(struct emu_ctrl *ctrl, struct sq *sq, struct ns *ns, const struct nvme_sqe *sqe, uint32_t *result)
{
    ctrl->error_location = 44;
    if (ns->formatting)
        return SC_FORMAT_IN_PROGRESS;
    switch (sqe->opcode) {
    case IO_FLUSH:
        return sync_start(ctrl, ns, sq, sqe, false);
    case KV_STORE:
        return store(ctrl, ns, sqe);
    case KV_RETRIEVE:
        return retrieve(ctrl, ns, sqe, result);
    case KV_LIST:
        return list(ctrl, ns, sqe);
    case KV_DELETE:
        return delete(ns, sqe, true);
    case KV_EXIST:
        return delete(ns, sqe, false);
    case IO_RESV_REGISTER:
    case IO_RESV_REPORT:
    case IO_RESV_ACQUIRE:
    case IO_RESV_RELEASE:
        return io_reservation(ctrl, ns, sqe);
    default:
        return SC_INVALID_OPCODE;
    }
}

/* CNS 05h, CSI 01h. */
void kv_identify(const struct ns *ns, uint8_t *p)
{
    put64(p, 0, ns->nbytes);    /* NSZE */
    put64(p, 16, ns->kv->used); /* NUSE */
    p[27] = 0x7e;               /* RESCAP */
    put16(p, 72, KEY_MAX);      /* KVF0: longest key, longest value, keys: no limit of their own */
    put32(p, 76, KV_VALUE_MAX);
}
