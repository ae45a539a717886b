/*
 * The vfio-user server of one controller: turns messages into calls of ctrl.h, and is the host that
 * the controller sees.
 *
 * One client at a time. When it goes, however it goes, its mappings and eventfds are dropped and
 * controller and configuration space return to their power-on state, so that the next finds what
 * the first did.
 *
 * Waking. A doorbell is a store to a shared page and wakes no thread. `wakeable` is true if the
 * client announces its doorbells: it has not been given the page (doorbells come as REGION_WRITE),
 * or it has the kick eventfd of DEVICE_GET_REGION_IO_FDS and has been seen to use it. Who uses it
 * promises to write it after every doorbell store, except that with Doorbell Buffer Config it need
 * only do so when EventIdx asks for the doorbell.
 *
 * All functions are for the reactor's thread, except new and free while no reactor has the server.
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
    uint16_t vendor_id, subsystem_vendor_id;
    uint64_t serial;
    bool negotiated;      /* VERSION is through */
    bool write_multi;     /* the client offered write_multiple */
    bool doorbells_given; /* the client has the doorbell page's descriptor */
    bool kicked;          /* the kick eventfd was written since this client came */
    struct vfu_watch kick; /* the doorbells' eventfd, made anew for every client that asks */
    uint64_t patience; /* ns that something may stay half done before the client is dropped; 0 = for ever */
    struct vfu_stats stats;
};

/* NULL with a message in err[256]. */
struct vfu_server *vfu_server_new(const struct emu_config *config, uint64_t patience_ns, char *err);
void vfu_server_free(struct vfu_server *server);

/* The reactor's epoll set and the tags under which it wants to hear of the two eventfds. */
void vfu_server_watch(struct vfu_server *server, int epoll_fd, void *kick_tag, void *unmask_tag);
/* A client is here; fd is taken and must be non-blocking. There must be no other. */
void vfu_server_open(struct vfu_server *server, int fd, uint64_t now);
/* The client goes: see above. Does nothing when there is none. */
void vfu_server_drop(struct vfu_server *server, const char *reason);
/* The socket is ready: sends, receives and handles a bounded number of messages. False when the
 * client must be dropped. */
bool vfu_server_ready(struct vfu_server *server, uint64_t now);
/* When something half done makes the client be dropped, CLOCK_MONOTONIC ns; UINT64_MAX = never. */
uint64_t vfu_server_deadline(const struct vfu_server *server);
static inline bool vfu_server_wakeable(const struct vfu_server *server)
{
    return !server->doorbells_given || server->kicked;
}

#endif
