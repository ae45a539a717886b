/*
 * An eventfd that the reactor listens to on the server's behalf. Leaving the epoll set and closing
 * belong together: the peer has a copy, so a descriptor that is only closed would stay in the set,
 * with a stale tag.
 */
#ifndef NVME_ASYNC_EMULATOR_VFU_WATCH_H
#define NVME_ASYNC_EMULATOR_VFU_WATCH_H

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

struct vfu_watch {
    int fd;       /* -1 = none */
    int epoll_fd; /* -1 = no reactor yet */
    void *tag;
};

/* Takes fd (-1 = none) in place of the previous one. Edge-triggered, so that it need not be read. 0
 * or an errno; then the caller still owns fd and nothing is watched. */
static inline int vfu_watch_set(struct vfu_watch *watch, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = watch->tag};

    if (watch->fd >= 0) {
        epoll_ctl(watch->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
        close(watch->fd);
        watch->fd = -1;
    }
    if (fd >= 0 && epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return errno;
    watch->fd = fd;
    return 0;
}

#endif
