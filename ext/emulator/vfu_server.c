#define _GNU_SOURCE
#include "emulator/vfu_server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulator/vfu_message.h"

#define MESSAGES_PER_TURN 16

static void *host_dma(void *opaque, uint64_t iova, size_t nbytes, bool write)
{
    struct vfu_server *server = opaque;

    return vfu_dma_find(&server->dma, iova, nbytes, write);
}

static bool host_window(void *opaque, uint64_t iova, struct emu_window *window)
{
    struct vfu_server *server = opaque;
    const struct vfu_range *range = vfu_dma_range(&server->dma, iova);

    if (range == NULL)
        return false;
    *window = (struct emu_window){
        .iova = range->iova,
        .nbytes = range->nbytes,
        .ptr = range->base,
        .readable = range->readable,
        .writable = range->writable,
    };
    return true;
}

static void host_interrupt(void *opaque, unsigned vector)
{
    struct vfu_server *server = opaque;

    server->stats.interrupts++;
    vfu_irqs_raise(&server->irqs, vector);
}

/* A number derived from serial and model (FNV-1a), so that two controllers differ in configuration
 * space as they do in Identify. */
static uint64_t device_serial(const struct emu_config *config)
{
    const char *texts[] = {config->serial, config->model};
    uint64_t hash = 0xcbf29ce484222325;

    for (size_t i = 0; i < 2; i++) {
        for (const char *c = texts[i]; *c != '\0'; c++)
            hash = (hash ^ (uint8_t)*c) * 0x100000001b3;
        hash *= 0x100000001b3;
    }
    return hash;
}

struct vfu_server *vfu_server_new(const struct emu_config *config, uint64_t patience_ns, char *err)
{
    struct vfu_server *server = calloc(1, sizeof(*server));
    struct emu_host host = {
        .opaque = server,
        .dma = host_dma,
        .dma_window = host_window,
        .interrupt = host_interrupt,
    };

    if (server == NULL) {
        snprintf(err, 256, "out of memory");
        return NULL;
    }
    server->ids = (struct vfu_ids){
        .vendor = config->vendor_id,
        .device = config->device_id,
        .subsystem_vendor = config->subsystem_vendor_id,
        .subsystem = config->subsystem_id,
    };
    server->serial = device_serial(config);
    server->patience = patience_ns;
    vfu_conn_init(&server->conn);
    vfu_dma_init(&server->dma);
    vfu_pci_init(&server->pci, &server->ids, server->serial, config->n_vectors);
    vfu_pci_set_region(&server->pci, (uint32_t)(config->extras.cmb_nbytes | config->extras.pmr_nbytes));
    vfu_irqs_init(&server->irqs, &server->pci, config->n_vectors);
    server->kick = (struct vfu_watch){.fd = -1, .epoll_fd = -1};
    server->ctrl = emu_ctrl_new(config, &host, err);
    if (server->ctrl == NULL) {
        free(server);
        return NULL;
    }
    server->irqs.ctrl = server->ctrl;
    vfu_guard_install();
    return server;
}

void vfu_server_free(struct vfu_server *server)
{
    vfu_server_drop(server, "the controller was closed");
    emu_ctrl_free(server->ctrl);
    vfu_guard_remove();
    free(server);
}

void vfu_server_watch(struct vfu_server *server, int epoll_fd, void *kick_tag, void *unmask_tag)
{
    server->kick.epoll_fd = server->irqs.intx_unmask.epoll_fd = epoll_fd;
    server->kick.tag = kick_tag;
    server->irqs.intx_unmask.tag = unmask_tag;
}

void vfu_server_open(struct vfu_server *server, int fd, uint64_t now)
{
    vfu_conn_open(&server->conn, fd, now);
    /* The SIGBUS handler may have been replaced since the last client. */
    vfu_guard_install();
    vfu_guard_remove();
    server->stats.clients++;
}

void vfu_server_drop(struct vfu_server *server, const char *reason)
{
    if (server->conn.fd < 0)
        return;
    if (reason != NULL)
        server->conn.reason = reason;
    vfu_conn_close(&server->conn);
    vfu_guard_enter(&server->dma);
    vfu_server_reset(server);
    vfu_guard_enter(NULL);
    /* If that fails for lack of memory or descriptors, the next client shares the pages with this
     * one. */
    if (server->doorbells_given)
        (void)emu_ctrl_renew_doorbells(server->ctrl);
    if (server->region_given)
        (void)emu_ctrl_renew_region(server->ctrl);
    emu_ctrl_dma_changed(server->ctrl);
    vfu_dma_unmap_all(&server->dma);
    vfu_irqs_reset(&server->irqs);
    vfu_watch_set(&server->kick, -1);
    server->negotiated = server->write_multi = server->doorbells_given = server->region_given = server->kicked = false;
}

void vfu_server_reset(struct vfu_server *server)
{
    uint64_t region;

    (void)emu_ctrl_region(server->ctrl, &region);
    emu_ctrl_reset(server->ctrl);
    vfu_pci_init(&server->pci, &server->ids, server->serial, server->irqs.n_vectors);
    vfu_pci_set_region(&server->pci, (uint32_t)region);
    memset(server->msix_table, 0, sizeof(server->msix_table));
}

/* Handles the message in server->conn and replies. False when the connection must end. */
static bool handle(struct vfu_server *server, uint64_t now)
{
    struct vfu_conn *conn = &server->conn;
    const struct vfu_header *header = &conn->header;
    struct vfu_reply reply = {.fd = -1};
    bool open = true;
    int error;

    server->stats.messages++;
    /* A reply may stay unsent; its time limit starts with the reply. */
    conn->since = 0;
    if ((header->flags & VFU_FLAG_TYPE_MASK) != VFU_FLAG_COMMAND) {
        conn->reason = "a reply where a command was expected";
        return false;
    }
    if (!server->negotiated && header->command != VFU_VERSION) {
        conn->reason = "the first message was not VERSION";
        error = EINVAL;
        open = false;
    } else {
        error = vfu_message(server, header->size - sizeof(*header), &reply);
        if (!server->negotiated) {
            conn->reason = "VERSION was refused";
            open = false;
        }
    }
    if (error)
        server->stats.refused++;
    vfu_conn_done(conn);
    if (!(header->flags & VFU_FLAG_NO_REPLY))
        open = vfu_conn_send(conn, reply.nbytes, error, reply.fd, now) && open;
    return open;
}

bool vfu_server_ready(struct vfu_server *server, uint64_t now)
{
    if (vfu_conn_unsent(&server->conn) && !vfu_conn_flush(&server->conn))
        return false;
    for (unsigned i = 0; i < MESSAGES_PER_TURN && !vfu_conn_unsent(&server->conn); i++) {
        switch (vfu_conn_recv(&server->conn, now)) {
        case VFU_RECV_AGAIN:
            return true;
        case VFU_RECV_CLOSED:
            return false;
        case VFU_RECV_MESSAGE:
            if (!handle(server, now))
                return false;
        }
    }
    return true;
}

uint64_t vfu_server_deadline(const struct vfu_server *server)
{
    if (server->conn.fd < 0 || server->conn.since == 0 || server->patience == 0)
        return UINT64_MAX;
    return server->conn.since + server->patience;
}
