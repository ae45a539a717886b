/* Namespace Management and Namespace Attachment (Base 2.1, 5.1.21 and 5.1.20). There is one
 * controller, 0, to attach to. */
#include <stdio.h>

#include "nvme_ctrl.h"

struct ns *ns_allocated(const struct emu_ctrl *ctrl, uint32_t nsid)
{
    if (nsid - 1 >= EMU_MAX_NAMESPACES)
        return NULL;
    return ctrl->namespaces[nsid - 1] ? ctrl->namespaces[nsid - 1] : ctrl->detached[nsid - 1];
}

static void note(struct emu_ctrl *ctrl, uint32_t cdw10, const struct ns *ns)
{
    uint8_t event[48] = {0};
    put32(event, 0, cdw10);
    put64(event, 8, ns->nblocks);
    put64(event, 24, ns->nblocks);
    event[32] = (uint8_t)(ns->format | (ns->extended ? 1u << 4 : 0));
    event[33] = ns->dps;
    put32(event, 36, ns->anagrpid);
    put32(event, 44, ns->nsid);
    persistent_add(ctrl, PEL_NAMESPACE, event, sizeof(event));
}

static uint16_t create(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    uint8_t page[4096];
    uint64_t nsze, ncap;
    uint16_t status = copy_from_host(ctrl, sqe, page, sizeof(page));
    if (status)
        return status;
    memcpy(&nsze, page, 8);
    memcpy(&ncap, page + 8, 8);
    uint8_t flbas = page[26], dps = page[29];
    if ((flbas & 0xf) >= ctrl->config.n_formats || format_objection(&ctrl->config, flbas & 0xf, dps))
        return SC_FORMAT_INVALID;
    const struct emu_format *format = &ctrl->config.formats[flbas & 0xf];
    if (nsze != ncap)
        return SC_THIN_PROVISIONING;
    if (!nsze || nsze > (1ull << 46) / format->block_size)
        return nsze ? SC_NS_CAPACITY : SC_INVALID_FIELD;
    struct emu_ns_config config = {
        .nbytes = (nsze * format->block_size + 4095) & ~4095ull,
        .block_size = format->block_size,
        .metadata = format->metadata,
        .pif = format->pif,
        .dps = dps,
        .extended = flbas & 0x10,
        .medium = ctrl->config.extras.medium,
    };
    uint16_t n_handles, handles[EMU_MAX_HANDLES];
    memcpy(&n_handles, page + 392, 2); /* NPHNDLS, and the list */
    memcpy(handles, page + 512, sizeof(handles));
    if ((status = fdp_check_handles(ctrl, n_handles, handles)))
        return status;
    uint16_t set = 0, group;
    memcpy(&set, page + 100, 2); /* NVMSETID, ENDGID */
    memcpy(&group, page + 102, 2);
    if (ctrl->config.extras.capacity_management) {
        set = capacity_choose(ctrl, set, group, config.nbytes, &status);
        if (!set)
            return status;
    } else if (config.nbytes > capacity_left(ctrl)) {
        *result = 0;
        return SC_NS_CAPACITY;
    } else {
        set = 0;
    }
    uint32_t nsid = 1;
    while (nsid <= EMU_MAX_NAMESPACES && ns_allocated(ctrl, nsid))
        nsid++;
    if (nsid > EMU_MAX_NAMESPACES)
        return SC_NSID_UNAVAILABLE;
    char err[256], path[4096 + 16];
    if (ctrl->config.extras.path) {
        snprintf(path, sizeof(path), "%s.%u", ctrl->config.extras.path, nsid);
        config.path = path;
    }
    struct ns *ns = ns_new(ctrl, nsid, &config, err);
    if (!ns) {
        snprintf(ctrl->message, sizeof(ctrl->message), "%s", err);
        return SC_INTERNAL;
    }
    fdp_assign_handles(ctrl, ns, n_handles, handles);
    ns->set = set;
    ns->nblocks = nsze;
    ns->nbytes = nsze * format->block_size;
    ctrl->detached[nsid - 1] = ns;
    *result = nsid;
    note(ctrl, sqe->cdw10, ns);
    return SC_SUCCESS;
}

void ns_delete(struct emu_ctrl *ctrl, uint32_t nsid)
{
    struct ns *ns = ns_allocated(ctrl, nsid);
    bool attached = ctrl->namespaces[nsid - 1];
    note(ctrl, 1, ns);
    ns_erase(ns); /* of a file, too: what comes next under this name begins empty */
    ctrl->namespaces[nsid - 1] = ctrl->detached[nsid - 1] = NULL;
    ctrl->incarnations[nsid - 1]++;
    ns_free(ns);
    if (attached)
        ns_changed(ctrl, nsid, true);
}

uint16_t admin_ns_management(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result)
{
    uint32_t select = sqe->cdw10 & 15, csi = sqe->cdw11 >> 24;
    ctrl->error_location = 40;
    if (select > 1 || (select == 0 && (csi || sqe->nsid)))
        return SC_INVALID_FIELD;
    if (select == 0)
        return create(ctrl, sqe, result);
    if (op_active(&ctrl->ops[OP_FORMAT]))
        return SC_FORMAT_IN_PROGRESS;
    if (sqe->nsid != NSID_ALL && !ns_allocated(ctrl, sqe->nsid))
        return sqe->nsid - 1 < EMU_MAX_NAMESPACES ? SC_INVALID_FIELD : SC_INVALID_NAMESPACE;
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES; nsid++)
        if ((sqe->nsid == NSID_ALL || sqe->nsid == nsid) && ns_allocated(ctrl, nsid))
            ns_delete(ctrl, nsid);
    return SC_SUCCESS;
}

uint16_t admin_ns_attachment(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint16_t list[2048];
    uint32_t select = sqe->cdw10 & 15;
    ctrl->error_location = 40;
    if (select > 1)
        return SC_INVALID_FIELD;
    if (sqe->nsid - 1 >= EMU_MAX_NAMESPACES)
        return SC_INVALID_NAMESPACE;
    struct ns *ns = ns_allocated(ctrl, sqe->nsid);
    if (!ns)
        return SC_INVALID_FIELD;
    uint16_t status = copy_from_host(ctrl, sqe, list, sizeof(list));
    if (status)
        return status;
    if (list[0] != 1 || list[1] != 0)
        return SC_CONTROLLER_LIST;
    bool attached = ctrl->namespaces[sqe->nsid - 1];
    if (select == 0 && attached)
        return SC_NS_ATTACHED;
    if (select == 1 && !attached)
        return SC_NS_NOT_ATTACHED;
    if (select == 1 && ns->formatting)
        return SC_FORMAT_IN_PROGRESS;
    ctrl->namespaces[sqe->nsid - 1] = select ? NULL : ns;
    ctrl->detached[sqe->nsid - 1] = select ? ns : NULL;
    ns_changed(ctrl, sqe->nsid, true);
    return SC_SUCCESS;
}
