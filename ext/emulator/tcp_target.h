/*
 * NVMe/TCP on top of the emulated controller: its subsystem, and a discovery service, for any
 * number of hosts.
 *
 * Every association has a controller of its own (emu_ctrl_new_sibling): Connect on an admin queue
 * makes it, the end of that connection ends it. A connection acts as the driver of its queue pair:
 * its rings are in its own memory, capsules become entries, completions become responses, and PRPs
 * describe its data buffers. So commands, faults and held completions behave as behind vfio-user.
 * Connect, Property Get and Set, the discovery log and a fabric's additions to Identify are in
 * tcp_fabrics.c.
 *
 * Only the reactor's thread may call these functions. Hosts are not trusted: lengths, offsets and
 * ids are checked before use.
 */
#ifndef NVME_ASYNC_EMULATOR_TCP_TARGET_H
#define NVME_ASYNC_EMULATOR_TCP_TARGET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/nvme_tcp.h"
#include "emulator/ctrl.h"

#define TCP_NQN_MAX 224
#define TCP_DISCOVERY_NQN "nqn.2014-08.org.nvmexpress.discovery"
#define TCP_MAX_CONNECTIONS 1024
#define TCP_MAX_PORTS 16
#define TCP_MAX_REFERRALS 8
#define TCP_ADMIN_IN_CAPSULE 8192u

struct emu_endpoint;
struct emu_tcp;
struct tcp_conn;

struct emu_tcp_referral {
    char traddr[256], trsvcid[32];
};

struct emu_tcp_config {
    char nqn[256]; /* less than TCP_NQN_MAX long */
    uint32_t in_capsule;  /* bytes of write data in a capsule of an I/O queue */
    uint32_t max_h2c;     /* MAXH2CDATA */
    uint32_t r2t_bytes;   /* most that one R2T requests; 0 = all of a command's data */
    uint32_t c2h_bytes;   /* most that one C2HData carries; 0 = all of a command's data */
    uint8_t cpda;         /* alignment required of hosts, in dwords, zero-based */
    bool no_header_digest, no_data_digest; /* refused, whatever the host requests */
    bool always_success;  /* C2HData with SUCCESS also for hosts with SQ flow control */
    unsigned n_referrals;
    struct emu_tcp_referral referrals[TCP_MAX_REFERRALS];
    bool tls; /* the connections come from a relay: the log has the addresses that it listens on */
    struct emu_tcp_referral fronts[TCP_MAX_PORTS];
};

struct emu_tcp_stats {
    uint64_t connections, associations, refused, commands, header_digest_errors, data_digest_errors, protocol_errors,
        keep_alive_timeouts;
    unsigned open_connections, controllers;
};

/* NULL: out of memory. `first` is the endpoint's controller. */
struct emu_tcp *emu_tcp_new(struct emu_endpoint *endpoint, struct emu_ctrl *first, const struct emu_tcp_config *config,
                            uint64_t patience);
/* Every connection is closed. */
void emu_tcp_free(struct emu_tcp *tcp);
/* Takes a non-blocking listening socket. 0 or an errno. */
int emu_tcp_listen(struct emu_tcp *tcp, int fd);
/* One bounded turn; returns the work done. */
unsigned emu_tcp_poll(struct emu_tcp *tcp);
/* When there is work without an event; UINT64_MAX = never. */
uint64_t emu_tcp_deadline(const struct emu_tcp *tcp);
void emu_tcp_stats(const struct emu_tcp *tcp, struct emu_tcp_stats *stats);
/* Cuts every connection. */
void emu_tcp_drop(struct emu_tcp *tcp, const char *reason);
/* Cuts the connections of one port (its number in the order of emu_tcp_listen()), and closes new
 * ones until it is opened again. 0 or an errno. */
int emu_tcp_port(struct emu_tcp *tcp, unsigned port, bool open);
/* Sets the state of an ANA group as hosts of one port see it, now and later. 0 or an errno. */
int emu_tcp_ana(struct emu_tcp *tcp, unsigned port, uint32_t group, uint8_t state);
/* An event of the reactor's. */
void emu_tcp_accept(struct emu_tcp *tcp, void *watch);
void emu_tcp_event(void *watch, uint32_t events);

#endif
