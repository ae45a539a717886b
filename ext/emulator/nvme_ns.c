/* Namespaces: their identity, size and lifecycle. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "nvme_ctrl.h"

#define NS_MAX (1ull << 46) /* 64 TiB: its bitmap of bad blocks takes 16 GiB of address space */

/* FNV-1a, 64 bits: identifiers only have to be stable and distinct. */
static uint64_t hash(uint64_t seed, const void *data, size_t nbytes)
{
    const uint8_t *bytes = data;
    uint64_t h = 0xcbf29ce484222325ull ^ seed;
    for (size_t i = 0; i < nbytes; i++)
        h = (h ^ bytes[i]) * 0x100000001b3ull;
    return h ^ h >> 29;
}

static uint64_t serial_hash(const struct emu_ctrl *ctrl, unsigned i)
{
    return hash(i, ctrl->config.serial, strnlen(ctrl->config.serial, sizeof(ctrl->config.serial)));
}

/* Stable for that serial number and key. */
void uuid_of(const struct emu_ctrl *ctrl, const uint32_t key[2], uint8_t uuid[16])
{
    for (unsigned i = 0; i < 2; i++) {
        uint64_t h = hash(serial_hash(ctrl, i) ^ 0x75756964u, key, 2 * sizeof(key[0]));
        memcpy(uuid + 8 * i, &h, 8);
    }
    uuid[6] = (uint8_t)(0x80 | (uuid[6] & 0x0f)); /* version 8: made by a scheme of our own (RFC 9562) */
    uuid[8] = (uint8_t)(0x80 | (uuid[8] & 0x3f));
}

/* From the serial number, the nsid and how often this nsid has been attached: a namespace keeps its
 * names over resets and restarts of the emulator, and a new one under an old nsid has new ones. */
static void name(const struct emu_ctrl *ctrl, struct ns *ns)
{
    uint32_t key[2] = {ns->nsid, ctrl->incarnations[ns->nsid - 1]};
    for (unsigned i = 0; i < 2; i++) {
        uint64_t h = hash(serial_hash(ctrl, i), key, sizeof(key));
        memcpy(ns->nguid + 8 * i, &h, 8);
    }
    memcpy(ns->eui64, ns->nguid, sizeof(ns->eui64));
    uuid_of(ctrl, key, ns->uuid);
}

/* One bit for each block of the smaller size, so that a Format needs no other; address space only,
 * until a bit is set. */
static int bad_reserve(struct ns *ns, uint64_t nbytes)
{
    size_t wanted = ((nbytes >> 9) / 64 + 1) * 8;
    if (ns->bad && wanted <= ns->bad_nbytes)
        return 0;
    void *bits = ns->bad
                     ? mremap(ns->bad, ns->bad_nbytes, wanted, MREMAP_MAYMOVE)
                     : mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bits == MAP_FAILED)
        return -errno;
    ns->bad = bits;
    ns->bad_nbytes = wanted;
    return 0;
}

struct ns *ns_new(struct emu_ctrl *ctrl, uint32_t nsid, const struct emu_ns_config *config, char *err)
{
    int index = format_find(&ctrl->config, config);
    if (index < 0) {
        snprintf(err, 256, "namespace %u: no LBA format has %u bytes of data and %u of metadata", nsid,
                 config->block_size, config->metadata);
        return NULL;
    }
    const char *objection = format_objection(&ctrl->config, (unsigned)index, config->dps);
    if (objection) {
        snprintf(err, 256, "namespace %u: %s", nsid, objection);
        return NULL;
    }
    if (config->nbytes < config->block_size || config->nbytes % 4096 || config->nbytes > NS_MAX) {
        snprintf(err, 256, "namespace %u: size %llu is not a multiple of 4096 from 4096 to 64 TiB", nsid,
                 (unsigned long long)config->nbytes);
        return NULL;
    }
    struct ns *ns = calloc(1, sizeof(*ns));
    if (!ns) {
        snprintf(err, 256, "namespace %u: out of memory", nsid);
        return NULL;
    }
    ns->nsid = nsid;
    ns->nbytes = config->nbytes;
    ns->anagrpid = ctrl->config.extras.ana_groups ? (nsid - 1) % ctrl->config.extras.ana_groups + 1 : 0;
    ns->media.fd = ns->meta.fd = -1;
    resv_init(&ns->resv);
    fdp_assign_handles(ctrl, ns, 0, NULL);
    name(ctrl, ns);
    if (config->path && !(ns->path = strdup(config->path))) {
        snprintf(err, 256, "namespace %u: out of memory", nsid);
        ns_free(ns);
        return NULL;
    }
    if (media_open(&ns->media, config, err)) {
        ns->media.fd = -1;
        ns_free(ns);
        return NULL;
    }
    int rc = ctrl->config.extras.write_cache && config->medium == EMU_MEDIUM_RAM ? undo_new(&ns->media) : 0;
    if (!rc && ctrl->config.extras.key_value && kv_new(ns))
        rc = -ENOMEM;
    if (!rc)
        rc = format_apply(ctrl, ns, (unsigned)index, config->extended, config->dps);
    if (!rc)
        rc = bad_reserve(ns, config->nbytes);
    if (rc) {
        snprintf(err, 256, "namespace %u: %s", nsid, strerror(-rc));
        ns_free(ns);
        return NULL;
    }
    return ns;
}

void ns_free(struct ns *ns)
{
    if (!ns)
        return;
    media_close(&ns->media);
    media_close(&ns->meta);
    if (ns->bad)
        munmap(ns->bad, ns->bad_nbytes);
    kv_free(ns);
    free(ns->zones);
    free(ns->path);
    free(ns);
}

int ns_resize(struct ns *ns, uint64_t nbytes)
{
    if (nbytes < 4096 || nbytes % 4096 || nbytes > NS_MAX)
        return -EINVAL;
    int rc = bad_reserve(ns, nbytes);
    if (ns->zones)
        return -EOPNOTSUPP;
    uint64_t nblocks = nbytes >> ns->lbads;
    undo_flush(&ns->media);
    if (!rc && ns->ms)
        rc = media_resize(&ns->meta, nblocks * ns->ms);
    if (!rc)
        rc = media_resize(&ns->media, nbytes);
    if (rc)
        return rc;
    if (nblocks < ns->nblocks)
        bad_clear(ns, nblocks, ns->nblocks - nblocks);
    ns->nblocks = nblocks;
    ns->nbytes = nbytes;
    return 0;
}

/* Notifies the host, if enabled, that a namespace was added, removed or changed (Base 2.0,
 * 5.16.1.5). */
void ns_changed(struct emu_ctrl *ctrl, uint32_t nsid, bool notice)
{
    ns_cache_changed(ctrl);
    if (!notice)
        return;
    ctrl->changed |= 1u << (nsid - 1);
    event_post(ctrl, EVENT_NOTICE, NOTICE_NAMESPACE, LOG_CHANGED_NS);
}

void ns_cache_changed(struct emu_ctrl *ctrl)
{
    ctrl->has_cache = false;
    for (unsigned i = 0; i < EMU_MAX_NAMESPACES; i++)
        if (ctrl->namespaces[i] &&
            (ctrl->namespaces[i]->media.kind == EMU_MEDIUM_FILE || ctrl->namespaces[i]->media.undo))
            ctrl->has_cache = true;
}

/* Base 2.0, 3.2.1: an nsid beyond NN (or 0) is invalid; one in range without a namespace is
 * inactive, an invalid field. */
uint16_t ns_find(struct emu_ctrl *ctrl, uint32_t nsid, struct ns **ns)
{
    if (UNLIKELY(nsid - 1 >= EMU_MAX_NAMESPACES))
        return SC_INVALID_NAMESPACE;
    *ns = ctrl->namespaces[nsid - 1];
    if (UNLIKELY(!*ns)) {
        ctrl->error_location = 4;
        return SC_INVALID_FIELD;
    }
    return SC_SUCCESS;
}
