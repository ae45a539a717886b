/* Directives (Base 2.1, 8.1.8): Identify, Streams, and which of them a write may name. Data
 * Placement is in nvme_fdp.c. */
#include <stdlib.h>

#include "nvme_ctrl.h"

#define OPERATION_PARAMETERS 1u
#define OPERATION_STATUS 2u
#define OPERATION_ALLOCATE 3u
#define RELEASE_IDENTIFIER 1u
#define RELEASE_RESOURCES 2u
#define STREAM_WRITE_NBYTES 4096u /* SWS */

static unsigned total(const struct emu_ctrl *ctrl, bool open)
{
    unsigned n = 0;
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++) {
        const struct ns *ns = ns_allocated(ctrl, nsid);
        n += !ns ? 0 : open ? ns->streams.n : ns->streams.allocated;
    }
    return n;
}

static unsigned available(const struct emu_ctrl *ctrl)
{
    return ctrl->config.extras.streams - total(ctrl, false);
}

void directives_reset(struct emu_ctrl *ctrl)
{
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++) {
        struct ns *ns = ns_allocated(ctrl, nsid);
        if (ns)
            memset(&ns->streams, 0, sizeof(ns->streams));
    }
}

/* May a write name this directive? */
uint16_t directive_check(struct emu_ctrl *ctrl, const struct ns *ns, const struct nvme_sqe *sqe)
{
    unsigned type = CDW12_DTYPE_OF(sqe->cdw12);
    if ((type == DIRECTIVE_STREAMS && ns->streams.enabled) || (type == DIRECTIVE_PLACEMENT && ctrl->extras.fdp.enabled))
        return SC_SUCCESS;
    ctrl->error_location = 50;
    return SC_INVALID_FIELD;
}

static void forget(struct streams *streams, unsigned i)
{
    memmove(streams->open + i, streams->open + i + 1, (--streams->n - i) * sizeof(*streams->open));
}

/* A write has named a stream, which is open from now on. Without room for it, the namespace's
 * oldest one ends (Base 2.1, 8.1.8.3). */
void streams_write(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe)
{
    struct streams *streams = &ns->streams;
    uint16_t id = (uint16_t)(sqe->cdw13 >> 16);
    if (!id)
        return;
    for (unsigned i = 0; i < streams->n; i++)
        if (streams->open[i] == id)
            return;
    unsigned shared = available(ctrl), limit = streams->allocated ? streams->allocated : shared;
    if (!limit)
        return; /* an ordinary write */
    if (streams->n >= limit)
        forget(streams, 0);
    streams->open[streams->n++] = id;
}

static uint16_t identify(struct emu_ctrl *ctrl, const struct ns *ns, const struct nvme_sqe *sqe, uint64_t wanted)
{
    uint8_t page[4096] = {0};
    bool streams = ctrl->config.extras.streams, placement = ctrl->extras.fdp.enabled;
    page[0] = (uint8_t)(1 | streams << DIRECTIVE_STREAMS | placement << DIRECTIVE_PLACEMENT);
    page[32] = (uint8_t)(1 | ns->streams.enabled << DIRECTIVE_STREAMS | placement << DIRECTIVE_PLACEMENT);
    page[64] = (uint8_t)(placement << DIRECTIVE_PLACEMENT);
    return copy_to_host_padded(ctrl, sqe, page, wanted < sizeof(page) ? wanted : sizeof(page), wanted);
}

static uint16_t parameters(struct emu_ctrl *ctrl, const struct ns *ns, const struct nvme_sqe *sqe, uint64_t wanted)
{
    uint8_t page[32] = {0};
    put16(page, 0, (uint16_t)ctrl->config.extras.streams);
    put16(page, 2, (uint16_t)available(ctrl));
    put16(page, 4, (uint16_t)total(ctrl, true));
    put32(page, 16, STREAM_WRITE_NBYTES >> ns->lbads ? STREAM_WRITE_NBYTES >> ns->lbads : 1);
    put16(page, 20, 16); /* SGS */
    put16(page, 22, ns->streams.allocated);
    put16(page, 24, ns->streams.n);
    return copy_to_host_padded(ctrl, sqe, page, wanted < sizeof(page) ? wanted : sizeof(page), wanted);
}

static uint16_t status_of_streams(struct emu_ctrl *ctrl, const struct ns *ns, const struct nvme_sqe *sqe,
                                  uint64_t wanted)
{
    uint8_t page[2 + 2 * EMU_MAX_STREAMS] = {0};
    uint64_t nbytes = 2 + 2ull * ns->streams.n;
    put16(page, 0, ns->streams.n);
    memcpy(page + 2, ns->streams.open, 2u * ns->streams.n);
    return copy_to_host_padded(ctrl, sqe, page, wanted < nbytes ? wanted : nbytes, wanted);
}

static uint16_t allocate(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint32_t *result)
{
    unsigned wanted = sqe->cdw12 & 0xffff, left = available(ctrl);
    if (!wanted || ns->streams.allocated)
        return SC_INVALID_FIELD;
    if (!left)
        return SC_STREAM_ALLOCATION;
    ns->streams.allocated = (uint16_t)(wanted < left ? wanted : left);
    ns->streams.n = 0; /* those of the shared resources end */
    *result = ns->streams.allocated;
    return SC_SUCCESS;
}

static uint16_t find(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, struct ns **ns)
{
    ctrl->error_location = 44;
    return ns_find(ctrl, sqe->nsid, ns);
}

uint16_t admin_directive_receive(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    struct ns *ns;
    uint8_t operation = (uint8_t)sqe->cdw11, type = (uint8_t)(sqe->cdw11 >> 8);
    uint64_t wanted = ((uint64_t)sqe->cdw10 + 1) * 4;
    uint16_t status = find(ctrl, sqe, &ns);
    if (status)
        return status;
    if (wanted > ctrl->mdts_nbytes)
        return SC_INVALID_FIELD;
    if (type == DIRECTIVE_IDENTIFY && operation == OPERATION_PARAMETERS)
        return identify(ctrl, ns, sqe, wanted);
    if (type != DIRECTIVE_STREAMS || !ctrl->config.extras.streams)
        return SC_INVALID_FIELD;
    if (operation == OPERATION_PARAMETERS)
        return parameters(ctrl, ns, sqe, wanted);
    if (!ns->streams.enabled)
        return SC_INVALID_FIELD;
    switch (operation) {
    case OPERATION_STATUS:
        return status_of_streams(ctrl, ns, sqe, wanted);
    case OPERATION_ALLOCATE:
        return allocate(ctrl, ns, sqe, result);
    default:
        return SC_INVALID_FIELD;
    }
}

/* Streams can be enabled and disabled; Data Placement is as Flexible Data Placement is. */
static uint16_t enable(struct emu_ctrl *ctrl, struct ns *ns, uint32_t cdw12)
{
    if ((cdw12 >> 8 & 0xff) != DIRECTIVE_STREAMS || !ctrl->config.extras.streams)
        return SC_INVALID_FIELD;
    bool enabled = cdw12 & 1;
    if (!enabled)
        memset(&ns->streams, 0, sizeof(ns->streams));
    ns->streams.enabled = enabled;
    return SC_SUCCESS;
}

uint16_t admin_directive_send(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    struct ns *ns;
    uint8_t operation = (uint8_t)sqe->cdw11, type = (uint8_t)(sqe->cdw11 >> 8);
    uint16_t id = (uint16_t)(sqe->cdw11 >> 16), status = find(ctrl, sqe, &ns);
    if (status)
        return status;
    if (type == DIRECTIVE_IDENTIFY && operation == OPERATION_PARAMETERS)
        return enable(ctrl, ns, sqe->cdw12);
    if (type != DIRECTIVE_STREAMS || !ns->streams.enabled)
        return SC_INVALID_FIELD;
    switch (operation) {
    case RELEASE_IDENTIFIER:
        for (unsigned i = 0; i < ns->streams.n; i++)
            if (ns->streams.open[i] == id)
                forget(&ns->streams, i);
        return SC_SUCCESS;
    case RELEASE_RESOURCES:
        ns->streams.allocated = ns->streams.n = 0;
        return SC_SUCCESS;
    default:
        return SC_INVALID_FIELD;
    }
}
