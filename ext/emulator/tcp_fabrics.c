/*
 * Fabrics commands (Base 2.0, 6): Connect, Property Get and Set; what Identify says of a controller
 * behind a fabric; and the discovery controller with its log page 70h.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <arpa/inet.h>

#include "emulator/tcp_internal.h"

#define LOG_DISCOVERY 0x70
#define LOG_ENTRY 1024u
#define ENTRY_NVM 2
#define ENTRY_CURRENT_DISCOVERY 3
#define ENTRY_REFERRAL 1

/* Result of a Connect that is refused for a parameter: its offset, in the data if IATTR is set
 * (Base 2.0, 6.3). */
#define BAD_SQE(offset) ((uint32_t)(offset))
#define BAD_DATA(offset) ((uint32_t)(offset) | 1u << 16)

/* -- Connect
 * ------------------------------------------------------------------------------------- */

struct connect {
    uint16_t recfmt, qid, sqsize;
    uint8_t cattr;
    uint32_t kato;
    uint8_t hostid[16];
    uint16_t cntlid;
    char subnqn[256], hostnqn[256];
};

static void take_connect(const struct tcp_request *request, struct connect *c)
{
    const struct nvme_sqe *sqe = &request->sqe;
    c->recfmt = (uint16_t)sqe->cdw10;
    c->qid = (uint16_t)(sqe->cdw10 >> 16);
    c->sqsize = (uint16_t)sqe->cdw11;
    c->cattr = (uint8_t)(sqe->cdw11 >> 16);
    c->kato = sqe->cdw12;
    memcpy(c->hostid, request->buffer, 16);
    memcpy(&c->cntlid, request->buffer + 16, 2);
    memcpy(c->subnqn, request->buffer + 256, 256);
    memcpy(c->hostnqn, request->buffer + 512, 256);
}

static struct tcp_ctrl *find_ctrl(struct emu_tcp *tcp, uint16_t cntlid)
{
    for (unsigned i = 0; i < tcp->n_ctrls; i++)
        if (tcp->ctrls[i]->cntlid == cntlid && !tcp->ctrls[i]->dying)
            return tcp->ctrls[i];
    return NULL;
}

static uint16_t check_common(struct tcp_conn *conn, const struct tcp_request *request, const struct connect *c,
                             uint32_t *result)
{
    const struct emu_config *config = emu_ctrl_config(conn->tcp->first);
    const uint32_t most = (uint16_t)emu_ctrl_read(conn->tcp->first, REG_CAP, 4);
    *result = 0;
    if (conn->stage != CONN_READY)
        return SC_COMMAND_SEQUENCE;
    if (request->nbytes != 1024)
        return SC_SGL_LENGTH;
    if (c->recfmt)
        return SC_CONNECT_FORMAT;
    *result = BAD_SQE(44);
    if (!c->sqsize || (c->qid && c->sqsize > most))
        return SC_CONNECT_PARAMETERS;
    *result = BAD_SQE(42);
    if (c->qid > config->n_io_queues)
        return SC_CONNECT_PARAMETERS;
    *result = BAD_DATA(512);
    if (strnlen(c->hostnqn, 256) >= TCP_NQN_MAX) /* SPDK's perf sends empty ones, and every host is accepted */
        return SC_CONNECT_PARAMETERS;
    *result = BAD_DATA(256);
    if (strnlen(c->subnqn, 256) == 256 ||
        (strcmp(c->subnqn, TCP_DISCOVERY_NQN) && strcmp(c->subnqn, conn->tcp->config.nqn)))
        return SC_CONNECT_PARAMETERS;
    return SC_SUCCESS;
}

static uint16_t connect_admin(struct tcp_conn *conn, const struct connect *c, uint32_t *result)
{
    const bool discovery = !strcmp(c->subnqn, TCP_DISCOVERY_NQN);
    *result = BAD_DATA(16);
    if (c->cntlid != 0xffff) /* the dynamic controller model */
        return SC_CONNECT_PARAMETERS;
    *result = 0;
    struct tcp_ctrl *ctrl = tcp_ctrl_new(conn->tcp, conn->port, discovery);
    if (!ctrl)
        return SC_CONNECT_BUSY;
    memcpy(ctrl->hostid, c->hostid, 16);
    memcpy(ctrl->hostnqn, c->hostnqn, sizeof(ctrl->hostnqn));
    ctrl->admin = conn;
    conn->ctrl = ctrl;
    ctrl->n_conns++;
    *result = ctrl->cntlid;
    return SC_SUCCESS;
}

static uint16_t connect_io(struct tcp_conn *conn, const struct connect *c, uint32_t *result)
{
    struct tcp_ctrl *ctrl = find_ctrl(conn->tcp, c->cntlid);
    *result = BAD_DATA(16);
    if (!ctrl || ctrl->discovery)
        return SC_CONNECT_PARAMETERS;
    *result = BAD_DATA(512);
    if (strcmp(ctrl->hostnqn, c->hostnqn))
        return SC_CONNECT_PARAMETERS;
    *result = BAD_DATA(0);
    if (memcmp(ctrl->hostid, c->hostid, 16))
        return SC_CONNECT_PARAMETERS;
    *result = 0;
    if (!emu_ctrl_running(ctrl->ctrl))
        return SC_COMMAND_SEQUENCE;
    for (unsigned i = 0; i < conn->tcp->n_conns; i++)
        if (conn->tcp->conns[i]->ctrl == ctrl && conn->tcp->conns[i]->qid == c->qid &&
            conn->tcp->conns[i]->stage != CONN_DEAD)
            return SC_COMMAND_SEQUENCE; /* connected already */
    conn->ctrl = ctrl;
    conn->qid = c->qid;
    conn->in_capsule = conn->tcp->config.in_capsule;
    ctrl->n_conns++;
    *result = ctrl->cntlid;
    return SC_SUCCESS;
}

static void on_connect(struct tcp_conn *conn, unsigned index)
{
    struct connect c;
    uint32_t result;
    take_connect(&conn->requests[index], &c);
    uint16_t status = check_common(conn, &conn->requests[index], &c, &result);
    if (!status)
        status = c.qid ? connect_io(conn, &c, &result) : connect_admin(conn, &c, &result);
    tcp_refuse(conn, index, status, result);
    if (status) {
        conn->tcp->stats.refused++;
        return;
    }
    /* The handshake's ring is no longer in use. */
    const bool no_flow_control = c.cattr & 4;
    conn->success = no_flow_control || conn->tcp->config.always_success;
    if (tcp_conn_rings(conn, (uint32_t)c.sqsize + 1)) {
        tcp_conn_die(conn);
        return;
    }
    conn->stage = CONN_LIVE;
    conn->give_up_at = UINT64_MAX;
    if (!conn->qid) {
        emu_ctrl_keep_alive(conn->ctrl->ctrl, c.kato);
    } else if (emu_ctrl_add_queue(conn->ctrl->ctrl, conn->qid, (uint64_t)(uintptr_t)conn->sq,
                                  (uint64_t)(uintptr_t)conn->cq, conn->size)) {
        tcp_conn_die(conn);
    }
}

/* -- properties
 * ---------------------------------------------------------------------------------- */

static uint32_t property_width(uint32_t offset)
{
    switch (offset) {
    case REG_CAP:
        return 8;
    case REG_VS:
    case REG_CC:
    case REG_CSTS:
    case REG_CRTO:
        return 4;
    default:
        return 0;
    }
}

static void get_property(struct tcp_conn *conn, unsigned index)
{
    const struct nvme_sqe *sqe = &conn->requests[index].sqe;
    const uint32_t width = sqe->cdw10 & 7 ? 8 : 4;
    uint64_t value = 0;
    if ((sqe->cdw10 & 7) > 1 || property_width(sqe->cdw11) != width) {
        tcp_refuse(conn, index, SC_INVALID_FIELD, 0);
        return;
    }
    value = emu_ctrl_read(conn->ctrl->ctrl, sqe->cdw11, width);
    if (sqe->cdw11 == REG_CAP)
        value &= ~(15ull << 52); /* MPSMAX: data are not in pages of the host */
    tcp_refuse(conn, index, SC_SUCCESS, value);
}

static void set_property(struct tcp_conn *conn, unsigned index)
{
    const struct nvme_sqe sqe = conn->requests[index].sqe;
    struct tcp_ctrl *ctrl = conn->ctrl;
    if ((sqe.cdw10 & 7) != 0 || sqe.cdw11 != REG_CC) {
        tcp_refuse(conn, index, SC_INVALID_FIELD, 0);
        return;
    }
    const bool enabled = emu_ctrl_read(ctrl->ctrl, REG_CC, 4) & CC_EN, enable = sqe.cdw12 & CC_EN;
    if (enable != enabled)
        tcp_conn_restart_rings(conn);
    if (enable && !enabled) {
        const uint32_t size = conn->size - 1 < 4095 ? conn->size - 1 : 4095;
        const uint32_t kato = emu_ctrl_kato(ctrl->ctrl);
        emu_ctrl_write(ctrl->ctrl, REG_AQA, 4, size | size << 16);
        emu_ctrl_write(ctrl->ctrl, REG_ASQ, 8, (uint64_t)(uintptr_t)conn->sq);
        emu_ctrl_write(ctrl->ctrl, REG_ACQ, 8, (uint64_t)(uintptr_t)conn->cq);
        emu_ctrl_write(ctrl->ctrl, REG_CC, 4, sqe.cdw12 & ~(15u << 7));
        emu_ctrl_set_host(ctrl->ctrl, ctrl->hostid);
        emu_ctrl_keep_alive(ctrl->ctrl, kato);
    } else {
        const uint32_t kato = emu_ctrl_kato(ctrl->ctrl);
        emu_ctrl_write(ctrl->ctrl, REG_CC, 4, sqe.cdw12 & ~(15u << 7));
        if (enabled && !enable)
            emu_ctrl_keep_alive(ctrl->ctrl, kato);
    }
    if (enabled && !enable)
        for (unsigned i = 0; i < conn->tcp->n_conns; i++)
            if (conn->tcp->conns[i]->ctrl == ctrl && conn->tcp->conns[i] != conn)
                tcp_conn_die(conn->tcp->conns[i]); /* a reset deletes the I/O queues (3.7.2) */
    tcp_refuse(conn, index, SC_SUCCESS, 0);
}

void tcp_fabrics(struct tcp_conn *conn, unsigned index)
{
    switch ((uint8_t)conn->requests[index].sqe.nsid) {
    case FCTYPE_CONNECT:
        on_connect(conn, index);
        return;
    case FCTYPE_GET:
    case FCTYPE_SET:
        if (conn->stage != CONN_LIVE || conn->qid) {
            tcp_refuse(conn, index, conn->qid ? SC_INVALID_OPCODE : SC_COMMAND_SEQUENCE, 0);
            return;
        }
        if ((uint8_t)conn->requests[index].sqe.nsid == FCTYPE_GET)
            get_property(conn, index);
        else
            set_property(conn, index);
        return;
    default:
        tcp_refuse(conn, index, SC_INVALID_OPCODE, 0);
    }
}

/* -- Identify
 * ------------------------------------------------------------------------------------ */

static void put16(uint8_t *p, unsigned at, uint16_t value)
{
    memcpy(p + at, &value, 2);
}

static void put32(uint8_t *p, unsigned at, uint32_t value)
{
    memcpy(p + at, &value, 4);
}

static void adorn_controller(const struct tcp_conn *conn, uint8_t *p)
{
    const struct tcp_ctrl *ctrl = conn->ctrl;
    const struct emu_tcp_config *config = &conn->tcp->config;
    uint16_t oacs;
    uint32_t ctratt;
    memcpy(&oacs, p + 256, 2);
    memcpy(&ctratt, p + 96, 4);
    p[76] |= 1u << 1; /* CMIC: the subsystem may have several controllers */
    put16(p, 78, ctrl->cntlid);
    put16(p, 256, oacs & ~(1u << 8 | 1u << 3)); /* no Doorbell Buffer Config, no Namespace Management */
    put16(p, 320, 1);                           /* KAS: 100 ms */
    put16(p, 514, (uint16_t)((emu_ctrl_read(conn->tcp->first, REG_CAP, 4) & 0xffff) + 1)); /* MAXCMD */
    put32(p, 536,
          1u << 0 | 1u << 20); /* SGLS: in NVM commands too; the address of a data block is an offset in the capsule */
    memset(p + 768, 0, 256);
    snprintf((char *)p + 768, 256, "%s", ctrl->discovery ? TCP_DISCOVERY_NQN : config->nqn);
    put32(p, 1792, (64 + config->in_capsule) / 16); /* IOCCSZ */
    put32(p, 1796, 1); /* IORCSZ: 16 bytes */
    put16(p, 1800, 0); /* ICDOFF */
    p[1802] = 0; /* FCATT: the dynamic controller model */
    p[1803] = 1; /* MSDBD */
    if (!ctrl->discovery)
        return;
    p[111] = 2; /* CNTRLTYPE: discovery controller */
    put32(p, 92, 1u << 31); /* OAES: changes of the discovery log */
    put16(p, 256, 0); /* OACS */
    put32(p, 516, 0); /* NN */
    put16(p, 520, 0); /* ONCS */
    put32(p, 540, 0);
    p[512] = p[513] = 0;
    put32(p, 1792, 0);
    put32(p, 1796, 0);
    p[261] = 1u << 2; /* LPA: extended offsets */
}

void tcp_adorn(struct tcp_conn *conn, const struct tcp_request *request)
{
    if (conn->qid || request->sqe.opcode != ADMIN_IDENTIFY || request->nbytes != 4096)
        return;
    switch (request->sqe.cdw10 & 0xff) {
    case 0x01:
        adorn_controller(conn, request->buffer);
        return;
    case 0x00:
    case 0x11:
        if (emu_ctrl_has_namespace(conn->ctrl->ctrl, request->sqe.nsid))
            request->buffer[30] |= 1; /* NMIC: shared by controllers */
        return;
    case 0x08:
        if (emu_ctrl_has_namespace(conn->ctrl->ctrl, request->sqe.nsid))
            request->buffer[1] |= 1;
        return;
    }
}

/* -- discovery
 * ----------------------------------------------------------------------------------- */

static void put_text(uint8_t *p, size_t nbytes, const char *text)
{
    memcpy(p, text, strnlen(text, nbytes - 1));
}

static uint8_t address_of(const struct sockaddr_storage *address, char *traddr, char *trsvcid)
{
    if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const void *)address;
        snprintf(trsvcid, 32, "%u", ntohs(in6->sin6_port));
        if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
            inet_ntop(AF_INET, in6->sin6_addr.s6_addr + 12, traddr, 256);
            return 1;
        }
        inet_ntop(AF_INET6, &in6->sin6_addr, traddr, 256);
        return 2;
    }
    const struct sockaddr_in *in = (const void *)address;
    inet_ntop(AF_INET, &in->sin_addr, traddr, 256);
    snprintf(trsvcid, 32, "%u", ntohs(in->sin_port));
    return 1;
}

static void put_entry(uint8_t *p, uint8_t adrfam, uint8_t subtype, uint16_t port, const char *nqn, const char *traddr,
                      const char *trsvcid, bool tls)
{
    p[0] = 3; /* TRTYPE: TCP */
    p[1] = adrfam;
    p[2] = subtype;
    p[3] = 1u << 2 | (tls ? 1 : 2); /* TREQ: secure channel required or not; SQ flow control may be disabled */
    put16(p, 4, port);
    put16(p, 6, 0xffff); /* CNTLID: dynamic */
    put16(p, 8, 32); /* ASQSZ */
    put_text(p + 32, 32, trsvcid);
    put_text(p + 256, 256, nqn);
    put_text(p + 512, 256, traddr);
    p[768] = tls ? 2 : 0; /* TSAS: SECTYPE, TLS 1.3 */
}

/* The address that the relay of a port listens on. */
static uint8_t front_of(const struct emu_tcp *tcp, unsigned port, char *traddr, char *trsvcid)
{
    const struct emu_tcp_referral *front = &tcp->config.fronts[port];
    snprintf(traddr, 256, "%s", front->traddr);
    snprintf(trsvcid, 32, "%s", front->trsvcid);
    return strchr(traddr, ':') ? 2 : 1;
}

/* The page as this connection's host sees it: a port on a wildcard address is reported with the
 * address that the host connected to. */
static uint32_t discovery_log(struct tcp_conn *conn, uint8_t *page)
{
    const struct emu_tcp *tcp = conn->tcp;
    struct sockaddr_storage here = {0};
    socklen_t length = sizeof(here);
    char traddr[256], trsvcid[32], mine[256], my_port[32];
    uint32_t n = 0;
    const bool tls = tcp->config.tls;
    uint8_t family;
    if (tls) {
        family = front_of(tcp, conn->port, mine, my_port);
    } else {
        getsockname(conn->fd, (struct sockaddr *)&here, &length);
        family = address_of(&here, mine, my_port);
    }
    put_entry(page + LOG_ENTRY * ++n, family, ENTRY_CURRENT_DISCOVERY, 1, TCP_DISCOVERY_NQN, mine, my_port, tls);
    for (unsigned i = 0; i < tcp->n_listeners; i++) {
        struct sockaddr_storage there = {0};
        length = sizeof(there);
        uint8_t adrfam;
        if (tls) {
            adrfam = front_of(tcp, i, traddr, trsvcid);
        } else {
            getsockname(tcp->listener_fds[i], (struct sockaddr *)&there, &length);
            adrfam = address_of(&there, traddr, trsvcid);
        }
        if (!strcmp(traddr, "0.0.0.0") || !strcmp(traddr, "::")) {
            adrfam = family;
            snprintf(traddr, sizeof(traddr), "%s", mine);
        }
        put_entry(page + LOG_ENTRY * ++n, adrfam, ENTRY_NVM, (uint16_t)(i + 1), tcp->config.nqn, traddr, trsvcid, tls);
    }
    for (unsigned i = 0; i < tcp->config.n_referrals; i++) {
        const struct emu_tcp_referral *referral = &tcp->config.referrals[i];
        put_entry(page + LOG_ENTRY * ++n, strchr(referral->traddr, ':') ? 2 : 1, ENTRY_REFERRAL, 0, TCP_DISCOVERY_NQN,
                  referral->traddr, referral->trsvcid, false);
    }
    const uint64_t records = n;
    memcpy(page, &tcp->genctr, 8);
    memcpy(page + 8, &records, 8);
    return LOG_ENTRY * (n + 1);
}

static void get_discovery_log(struct tcp_conn *conn, unsigned index)
{
    static uint8_t page[LOG_ENTRY * (2 + TCP_MAX_PORTS + TCP_MAX_REFERRALS)]; /* the reactor's thread alone */
    struct tcp_request *request = &conn->requests[index];
    const struct nvme_sqe *sqe = &request->sqe;
    const uint64_t nbytes = (((uint64_t)(sqe->cdw11 & 0xffff) << 16 | sqe->cdw10 >> 16) + 1) * 4;
    const uint64_t offset = (uint64_t)sqe->cdw13 << 32 | sqe->cdw12;
    memset(page, 0, sizeof(page));
    const uint32_t length = discovery_log(conn, page);
    if (nbytes != request->nbytes || offset & 3 || offset > length) {
        tcp_refuse(conn, index, nbytes != request->nbytes ? SC_SGL_LENGTH : SC_INVALID_FIELD, 0);
        return;
    }
    const uint64_t valid = length - offset < nbytes ? length - offset : nbytes;
    memcpy(request->buffer, page + offset, valid);
    memset(request->buffer + valid, 0, nbytes - valid);
    const struct nvme_cqe cqe = {.cid = sqe->cid};
    tcp_send_result(conn, index, &cqe);
}

bool tcp_discovery(struct tcp_conn *conn, unsigned index)
{
    const struct nvme_sqe *sqe = &conn->requests[index].sqe;
    switch (sqe->opcode) {
    case ADMIN_KEEP_ALIVE:
    case ADMIN_ASYNC_EVENT:
    case ADMIN_SET_FEATURES:
    case ADMIN_GET_FEATURES:
    case ADMIN_ABORT:
        return false;
    case ADMIN_IDENTIFY:
        if ((sqe->cdw10 & 0xff) == 0x01)
            return false;
        tcp_refuse(conn, index, SC_INVALID_FIELD, 0);
        return true;
    case ADMIN_GET_LOG_PAGE:
        if ((sqe->cdw10 & 0xff) == LOG_DISCOVERY)
            get_discovery_log(conn, index);
        else
            tcp_refuse(conn, index, SC_LOG_PAGE_INVALID, 0);
        return true;
    default:
        tcp_refuse(conn, index, SC_INVALID_OPCODE, 0);
        return true;
    }
}
