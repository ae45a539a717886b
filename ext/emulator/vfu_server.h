/*
 * The vfio-user server of one controller: turns messages into calls of ctrl.h, and is the host that
 * the controller sees.
 *
 * One client at a time. When it disconnects, for whatever reason, its mappings and eventfds are
 * dropped, and controller and configuration space return to their power-on state, so each client
 * finds the same state.
 *
 * Waking. A doorbell is a store to a shared page and wakes no thread. `wakeable` is true if the
 * client announces its doorbells: it has not been given the page (doorbells come as REGION_WRITE),
 * or it has the kick eventfd of DEVICE_GET_REGION_IO_FDS and has been seen to use it. A client that
 * uses it must write it after every doorbell store; with Doorbell Buffer Config only when EventIdx
 * requires the doorbell.
 *
 * Only the reactor's thread may call these functions; new and free also other threads, while no
 * reactor has the server.
 */
#ifndef NVME_ASYNC_EMULATOR_VFU_SERVER_H
#define NVME_ASYNC_EMULATOR_VFU_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "emulator/ctrl.h"
#include "emulator/vfu_conn.h"
#include "emulator/vfu_dma.h"
#include "emulator/vfu_irq.h"
#include "emulator/vfu_pci.h"

struct vfu_stats {
    uint64_t clients, messages, refused, interrupts;
};

struct vfu_server {
    struct emu_ctrl *ctrl;
    struct vfu_conn conn;
    struct vfu_dma dma;
    struct vfu_pci pci;
    struct vfu_irqs irqs;
    uint8_t msix_table[VFU_MSIX_PBA_OFFSET]; /* memory, see vfu_irq.h */
    struct vfu_ids ids;
    uint64_t serial;
    bool negotiated;      /* VERSION is through */
    bool write_multi;     /* the client offered write_multiple */
    bool doorbells_given; /* the client has the doorbell page's descriptor */
    bool region_given;    /* and that of the controller's own memory */
    bool kicked;          /* the kick eventfd was written since this client came */
    struct vfu_watch kick; /* the doorbells' eventfd, created for each client that requests it */
    uint64_t patience; /* ns that a message or reply may stay incomplete before the client is dropped; 0 = no limit */
    struct vfu_stats stats;
};

/* NULL with a message in err[256]. */
struct vfu_server *vfu_server_new(const struct emu_config *config, uint64_t patience_ns, char *err);
void vfu_server_free(struct vfu_server *server);

/* The reactor's epoll set, and the tags of the two eventfds in it. */
void vfu_server_watch(struct vfu_server *server, int epoll_fd, void *kick_tag, void *unmask_tag);
/* Takes fd, a new client's non-blocking socket. There must be no other client. */
void vfu_server_open(struct vfu_server *server, int fd, uint64_t now);
/* Drops the client, see above. Does nothing if there is none. */
void vfu_server_drop(struct vfu_server *server, const char *reason);
/* The socket is ready: sends, receives and handles a bounded number of messages. False when the
 * client must be dropped. */
bool vfu_server_ready(struct vfu_server *server, uint64_t now);
/* When an incomplete message or reply causes the client to be dropped, CLOCK_MONOTONIC ns;
 * UINT64_MAX = never. */
uint64_t vfu_server_deadline(const struct vfu_server *server);
static inline bool vfu_server_wakeable(const struct vfu_server *server)
{
    return !server->doorbells_given || server->kicked;
}

#endif
