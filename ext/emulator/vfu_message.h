/* What each vfio-user command does. Used by vfu_server.c only. */
#ifndef NVME_ASYNC_EMULATOR_VFU_MESSAGE_H
#define NVME_ASYNC_EMULATOR_VFU_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

struct vfu_server;

struct vfu_reply {
    size_t nbytes; /* of payload in the buffer from vfu_conn_reply() */
    int fd;        /* sent with the reply, borrowed; -1 = none */
};

/* The command in server->conn, with nbytes of payload. 0, or the errno to answer. */
int vfu_message(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply);

/* Controller, configuration space and MSI-X table as at power-on; mappings and eventfds stay. */
void vfu_server_reset(struct vfu_server *server);

#endif
