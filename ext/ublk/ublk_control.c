/* Commands to /dev/ublk-control. See ublk_control.h. */
#include "ublk_control.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>

int ublk_control_open(struct ublk_control *control, int fd)
{
    memset(control, 0, sizeof *control);
    control->fd = fd;
    return ring_open(&control->ring, 4, 8, URING_SETUP_SQE128);
}

void ublk_control_close(struct ublk_control *control)
{
    ring_close(&control->ring);
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int ublk_control_send(struct ublk_control *control, unsigned command, bool legacy, uint32_t dev_id, uint64_t data,
                      uint16_t len, int limit_ms)
{
    const int64_t end = now_ms() + limit_ms;
    if (control->stuck)
        return -ETIMEDOUT;
    struct uring_sqe *sqe = ring_entry(&control->ring);
    if (!sqe)
        return -EBUSY;
    control->cmd = (struct ublk_control_cmd){
        .dev_id = dev_id,
        .queue_id = 0xffff,
        .len = len,
        .addr = len ? (uint64_t)(uintptr_t)control->buffer : 0,
        .data = data,
    };
    sqe->opcode = URING_OP_URING_CMD;
    sqe->fd = control->fd;
    sqe->off = legacy ? command : ublk_control_number(command);
    memcpy(&sqe->addr3, &control->cmd, sizeof control->cmd);
    control->stuck = true;
    const int sent = ring_submit(&control->ring);
    if (sent)
        return sent; /* it may be sent later: nothing more is sent with this ring */
    for (;;) {
        ring_progress(&control->ring);
        const struct uring_cqe *cqe = ring_peek(&control->ring);
        if (cqe) {
            const int result = cqe->res;
            ring_seen(&control->ring);
            control->stuck = false;
            return result;
        }
        const int64_t left = end - now_ms();
        if (left <= 0)
            return -ETIMEDOUT;
        struct pollfd ready = {.fd = control->ring.fd, .events = POLLIN};
        /* In steps: a completion may need this thread's own time (task work). */
        (void)poll(&ready, 1, left < 50 ? (int)left : 50);
    }
}
