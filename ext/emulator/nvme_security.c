/*
 * Security Send and Receive (Base 2.1, 5.1.23 and 5.1.24), only discovery: the list of protocols
 * (SPC-4, protocol 00h) and TCG Storage level 0 discovery of an Opal drive without an owner (TCG
 * Storage Core 2.01, 3.3.6).
 */
#include "nvme_ctrl.h"

static void be16(uint8_t *p, unsigned at, uint16_t value)
{
    put16(p, at, __builtin_bswap16(value));
}

static void be32(uint8_t *p, unsigned at, uint32_t value)
{
    put32(p, at, __builtin_bswap32(value));
}

static unsigned feature(uint8_t *p, unsigned at, uint16_t code, uint8_t version, uint8_t length)
{
    be16(p, at, code);
    p[at + 2] = (uint8_t)(version << 4);
    p[at + 3] = length;
    return at + 4 + length;
}

static unsigned discovery(const struct emu_ctrl *ctrl, uint8_t *p)
{
    const struct ns *ns = ctrl->namespaces[0];
    be32(p, 4, 1); /* revision */
    unsigned at = 48, begin = at;
    at = feature(p, at, 0x0001, 1, 12); /* TPer */
    p[begin + 4] = 1u << 4 | 1;         /* streaming, sync */
    begin = at;
    at = feature(p, at, 0x0002, 1, 12); /* locking */
    p[begin + 4] = 1u << 3 | 1;         /* media encryption; supported, not enabled */
    begin = at;
    at = feature(p, at, 0x0003, 1, 28); /* geometry */
    be32(p, begin + 12, ns ? 1u << ns->lbads : 512);
    be32(p, begin + 20, 1);
    begin = at;
    at = feature(p, at, 0x0203, 1, 16); /* Opal SSC 2 */
    be16(p, begin + 4, 0x07fe);         /* base ComID, one of them */
    be16(p, begin + 6, 1);
    be16(p, begin + 9, 4); /* locking admins */
    be16(p, begin + 11, 8);
    be32(p, 0, at - 4);
    return at;
}

uint16_t admin_security(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    uint8_t page[512] = {0}, protocol = (uint8_t)(sqe->cdw10 >> 24);
    uint16_t specific = (uint16_t)(sqe->cdw10 >> 8);
    uint64_t nbytes = sqe->cdw11;
    unsigned length;
    ctrl->error_location = 40;
    if (nbytes > ctrl->mdts_nbytes)
        return SC_INVALID_FIELD;
    if (sqe->opcode == ADMIN_SECURITY_SEND) {
        unsigned n;
        if (protocol != 1 || specific != 0x07fe)
            return SC_INVALID_FIELD;
        return nbytes ? prp_map(ctrl, sqe, nbytes, false, &n) : SC_SUCCESS; /* a session without responses */
    }
    if (protocol == 0 && specific == 0) {
        page[7] = 2; /* two protocols: this, and TCG's */
        page[9] = 1;
        length = 10;
    } else if (protocol == 0 && specific == 1) {
        length = 4; /* no certificate */
    } else if (protocol == 1 && specific == 1) {
        length = discovery(ctrl, page);
    } else if (protocol == 1 && specific == 0x07fe) {
        length = 56; /* a ComPacket without contents: nothing is due */
        be16(page, 4, 0x07fe);
    } else {
        return SC_INVALID_FIELD;
    }
    if (!nbytes)
        return SC_SUCCESS;
    return copy_to_host_padded(ctrl, sqe, page, length < nbytes ? length : nbytes, nbytes);
}
