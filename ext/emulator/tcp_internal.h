/* What tcp_target.c, tcp_conn.c, tcp_receive.c and tcp_fabrics.c share. */
#ifndef NVME_ASYNC_EMULATOR_TCP_INTERNAL_H
#define NVME_ASYNC_EMULATOR_TCP_INTERNAL_H

#include "common/crc32c.h"
#include "emulator/nvme_spec.h"
#include "emulator/reactor_internal.h"
#include "emulator/tcp_target.h"

#define TCP_RX_BYTES 65536u
#define TCP_COPY_MAX 8192u
#define TCP_BACKLOG (4u << 20) /* unsent bytes at which reading from a connection stops */
#define TCP_RECENT 4           /* connections that are received from in every turn */

enum {
    SC_CONNECT_FORMAT = 0x180 | SC_DNR,
    SC_CONNECT_BUSY = 0x181,
    SC_CONNECT_PARAMETERS = 0x182 | SC_DNR,
    SC_CONNECT_HOST = 0x184 | SC_DNR,
    SC_SGL_OFFSET = 0x016 | SC_DNR,
    SC_TRANSPORT = 0x022, /* Transient Transport Error */
};

#define FABRICS 0x7f
enum { FCTYPE_SET = 0x00, FCTYPE_CONNECT = 0x01, FCTYPE_GET = 0x04 };

enum tcp_stage { CONN_NEW, CONN_READY, CONN_LIVE, CONN_ENDING, CONN_DEAD };
enum tcp_wants { WANT_HEADER, WANT_PADDING, WANT_DATA, WANT_DIGEST, WANT_NOTHING };

/* A host's command. */
struct tcp_request {
    struct nvme_sqe sqe; /* with the host's command id */
    uint8_t *buffer;
    uint32_t nbytes;   /* by its SGL */
    uint32_t received; /* of data that it sends */
    uint32_t asked;    /* by R2Ts */
    uint32_t held;     /* pieces of its buffer that are still to be sent */
    bool used, to_host, by_r2t, wrong_digest;
    bool executing; /* the controller has it */
    bool finished;  /* completed; its buffer may still be in transmission */
};

struct tcp_output {
    const uint8_t *at; /* NULL: in the arena */
    uint32_t offset, nbytes;
    int request;
};

/* An association, which is a controller. */
struct tcp_ctrl {
    struct emu_tcp *tcp;
    struct emu_ctrl *ctrl;
    struct tcp_conn *admin;
    struct emu_watch wake;
    uint16_t cntlid;
    unsigned port; /* number of the listener that its admin connection came by */
    bool discovery, dying;
    uint8_t hostid[16];
    char hostnqn[TCP_NQN_MAX];
    unsigned n_conns;
};

struct tcp_conn {
    struct emu_watch watch; /* first: what an event refers to */
    struct emu_tcp *tcp;
    struct tcp_ctrl *ctrl;
    int fd;
    unsigned port;
    uint32_t events;
    enum tcp_stage stage;
    uint64_t give_up_at; /* of the handshake */
    bool header_digest, data_digest, success;
    uint32_t alignment; /* of data that go to the host */
    uint16_t qid;
    uint32_t in_capsule;

    /* Rings and buffers: one mapping. */
    uint8_t *memory;
    size_t memory_nbytes, buffer_nbytes;
    struct nvme_sqe *sq;
    struct nvme_cqe *cq;
    uint32_t size, sq_tail, cq_head;
    uint16_t cq_phase;
    bool rung; /* sq_tail must be rung */
    struct tcp_request *requests;
    uint16_t *free_requests;
    uint32_t n_requests, n_free, n_executing;

    /* In */
    uint8_t *rx;
    uint32_t rx_begin, rx_end;
    enum tcp_wants wants;
    uint32_t left, at, crc;
    bool digest_follows, command_follows; /* after the data: their digest; then the command is executed */
    int receiving; /* request */
    uint8_t digest[TCP_DIGEST];

    /* Out */
    uint8_t *arena;
    uint32_t arena_used, arena_size;
    struct tcp_output *output;
    uint32_t first_output, n_output, max_output;
    uint64_t unsent;
};

struct emu_tcp {
    struct emu_endpoint *endpoint;
    struct emu_ctrl *first;
    struct emu_tcp_config config;
    struct emu_tcp_stats stats;
    uint64_t patience;
    struct emu_watch listeners[TCP_MAX_PORTS];
    int listener_fds[TCP_MAX_PORTS];
    unsigned n_listeners;
    bool closed[TCP_MAX_PORTS]; /* its connections are closed as soon as they were accepted */
    uint8_t ana[TCP_MAX_PORTS][EMU_MAX_NAMESPACES + 1]; /* states of the groups; 0: as the controller starts */
    struct tcp_conn *conns[TCP_MAX_CONNECTIONS];
    unsigned n_conns;
    struct tcp_ctrl *ctrls[TCP_MAX_CONNECTIONS];
    unsigned n_ctrls;
    struct tcp_conn *recent[TCP_RECENT];
    uint16_t last_cntlid;
    uint64_t genctr;
};

/* tcp_target.c */
struct tcp_ctrl *tcp_ctrl_new(struct emu_tcp *tcp, unsigned port, bool discovery);
void tcp_ctrl_end(struct tcp_ctrl *ctrl);
void tcp_recent(struct tcp_conn *conn);

/* tcp_conn.c */
struct tcp_conn *tcp_conn_new(struct emu_tcp *tcp, int fd);
void tcp_conn_free(struct tcp_conn *conn);
/* From here on the connection is only to be freed. */
void tcp_conn_die(struct tcp_conn *conn);
/* Sends a TermReq with the reason, then ends the connection. */
void tcp_conn_terminate(struct tcp_conn *conn, enum tcp_fes fes, uint32_t fei, const void *pdu, uint32_t nbytes);
int tcp_conn_rings(struct tcp_conn *conn, uint32_t entries);
void tcp_conn_restart_rings(struct tcp_conn *conn);
void tcp_conn_flush(struct tcp_conn *conn);
void tcp_conn_watch(struct tcp_conn *conn);
void tcp_send_raw(struct tcp_conn *conn, const void *data, uint32_t nbytes);
void tcp_send_r2t(struct tcp_conn *conn, unsigned request);
void tcp_send_response(struct tcp_conn *conn, const struct nvme_cqe *cqe);
/* Sends data of the request's buffer, and the response unless SUCCESS in the data replaces it. */
void tcp_send_result(struct tcp_conn *conn, unsigned request, const struct nvme_cqe *cqe);
/* Completes a command that never went to the controller. */
void tcp_refuse(struct tcp_conn *conn, unsigned request, uint16_t status, uint64_t result);
void tcp_request_done(struct tcp_conn *conn, unsigned request);
/* Takes completions off the ring. */
unsigned tcp_conn_drain(struct tcp_conn *conn);

/* tcp_receive.c */
unsigned tcp_conn_receive(struct tcp_conn *conn);
void tcp_execute(struct tcp_conn *conn, unsigned request);

/* tcp_fabrics.c */
void tcp_fabrics(struct tcp_conn *conn, unsigned request);
/* Adapts Identify and log pages to a controller behind a fabric. */
void tcp_adorn(struct tcp_conn *conn, const struct tcp_request *request);
/* True: the command was completed here, as one of a discovery controller's. */
bool tcp_discovery(struct tcp_conn *conn, unsigned request);

#endif
