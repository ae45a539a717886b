/* Commands to /dev/ublk-control: one after the other, each with a limit. Threads: one at a time. */
#ifndef NVME_ASYNC_UBLK_CONTROL_H
#define NVME_ASYNC_UBLK_CONTROL_H

#include <stdbool.h>

#include "kernel/ring.h"
#include "ublk_abi.h"

#define UBLK_CONTROL_BUFFER 512u

struct ublk_control {
    struct ring ring;
    int fd;
    bool stuck; /* the kernel has a command that did not come back: nothing may be freed */
    struct ublk_control_cmd cmd;
    uint8_t buffer[UBLK_CONTROL_BUFFER]; /* what addr points at, while the kernel has the command */
};

/* 0 or a negative errno. `fd` is of /dev/ublk-control and stays the caller's. */
int ublk_control_open(struct ublk_control *control, int fd);
/* Not where `stuck` is set. */
void ublk_control_close(struct ublk_control *control);
/*
 * Sends one command and waits for its result, which is returned: 0, a positive number, or a
 * negative errno; -ETIMEDOUT after `limit_ms`, and then the command stays with the kernel. The
 * first `len` bytes of `buffer` are the command's.
 */
int ublk_control_send(struct ublk_control *control, unsigned command, bool legacy, uint32_t dev_id, uint64_t data,
                      uint16_t len, int limit_ms);

#endif
