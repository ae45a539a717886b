/*
 * Signalling an eventfd that a peer gave us, without ever waiting for that peer. write() blocks
 * while the counter is full and the description is not non-blocking, and the peer controls both at
 * any time. Signals from the kernel itself never block. So a ring of io_uring does it
 * (kick_ring.h). Where there is none, a read of 0 bytes is submitted as asynchronous I/O whose
 * completion signals the eventfd (io_submit(2), IOCB_FLAG_RESFD); it ends, with EINVAL, before the
 * call returns. If a sandbox has no asynchronous I/O either, poll() checks first whether write()
 * would block; that protects from a peer that has stopped, not from one that attacks in between.
 */
#ifndef NVME_ASYNC_DEVICE_KICK_H
#define NVME_ASYNC_DEVICE_KICK_H

#include "device/kick_ring.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KICK_DEPTH 64

enum kick_way {
    KICK_UNKNOWN, /* not asked for yet; in a forked child that is for good, unless it opens something itself */
    KICK_AIO,
    KICK_WRITE,
};

static aio_context_t kick_context; /* the process's; submitting needs no lock */
static enum kick_way kick_way;

static inline long kick_submit(int fd)
{
    struct iocb request = {.aio_lio_opcode = IOCB_CMD_PREAD,
                           .aio_fildes = (uint32_t)fd,
                           .aio_flags = IOCB_FLAG_RESFD,
                           .aio_resfd = (uint32_t)fd};
    struct iocb *list[] = {&request};

    return syscall(SYS_io_submit, kick_context, 1, list);
}

static void kick_in_child(void)
{
    kick_way = KICK_UNKNOWN; /* the context is the parent's memory's */
    kick_context = 0;
}

/* Finds the method that is used without a ring. Called once, and again after a fork; under the
 * GIL. */
static inline void kick_prepare(void)
{
    static int watched;
    uint64_t count;
    int fd;

    if (kick_way != KICK_UNKNOWN)
        return;
    if (!watched)
        watched = pthread_atfork(NULL, NULL, kick_in_child) == 0;
    kick_way = KICK_WRITE;
    fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return;
    if (watched && syscall(SYS_io_setup, KICK_DEPTH, &kick_context) == 0) {
        if (kick_submit(fd) == 1 && read(fd, &count, sizeof count) == sizeof count && count == 1)
            kick_way = KICK_AIO;
        else
            syscall(SYS_io_destroy, kick_context);
    }
    close(fd);
}

/* Adds 1 to an eventfd; a full one stays full. Never blocks, and keeps errno. ring: where the
 * eventfd is registered, or NULL. */
static __attribute__((noinline, cold, unused)) void kick_eventfd(int fd, const struct kick_ring *ring)
{
    const int saved = errno;

    if (ring && kick_ring_signal(ring)) {
        errno = saved;
        return;
    }
    if (kick_way == KICK_AIO) {
        /* Completions collect in the context; one call takes them all. */
        if (kick_submit(fd) < 0 && errno == EAGAIN) {
            struct io_event events[KICK_DEPTH];
            struct timespec now = {0, 0};

            while (syscall(SYS_io_getevents, kick_context, 0, KICK_DEPTH, events, &now) == KICK_DEPTH)
                ;
            kick_submit(fd);
        }
    } else if (kick_way == KICK_WRITE) {
        const uint64_t one = 1;
        struct pollfd room = {.fd = fd, .events = POLLOUT};

        if (poll(&room, 1, 0) == 1 && room.revents & POLLOUT) {
            ssize_t ignored = write(fd, &one, sizeof one);
            (void)ignored;
        }
    }
    errno = saved;
}

#endif
