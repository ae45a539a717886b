/*
 * Register windows whose memory is lost while the process uses it: a vfio-user peer truncates the
 * file behind its doorbells, or the kernel refuses an access to a PCI function (its memory is
 * disabled, or the virtual machine may not access it this way). The access raises SIGBUS, which by
 * default ends the process. Here a handler replaces the window with zeroes, marks the window as
 * lost and signals an eventfd; the access is then repeated and finds the zeroes. Other SIGBUS go to
 * the previous handler.
 *
 * Windows are added and removed under the GIL. The handler may run in any thread, at any time.
 */
#ifndef NVME_ASYNC_DEVICE_SIGBUS_H
#define NVME_ASYNC_DEVICE_SIGBUS_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct sigbus_window {
    char *base;
    size_t nbytes;
    int lost_fd; /* an eventfd, non-blocking; -1 = none */
    int lost;
};

#define SIGBUS_WINDOWS 512
static struct sigbus_window *sigbus_windows[SIGBUS_WINDOWS];
static struct sigaction sigbus_previous; /* what was installed when this one was put in front the last time */
static struct sigaction
    sigbus_first;    /* and when it was put there for the first time: that one knows nothing of this one */
static __thread int sigbus_passing_on __attribute__((tls_model("initial-exec")));

static bool sigbus_replace(uintptr_t address)
{
    for (int i = 0; i < SIGBUS_WINDOWS; i++) {
        struct sigbus_window *window = __atomic_load_n(&sigbus_windows[i], __ATOMIC_ACQUIRE);
        const uint64_t one = 1;
        int fd;

        if (window == NULL || address - (uintptr_t)window->base >= window->nbytes)
            continue;
        if (mmap(window->base, window->nbytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
            return false;
        __atomic_store_n(&window->lost, 1, __ATOMIC_RELEASE);
        fd = __atomic_load_n(&window->lost_fd, __ATOMIC_ACQUIRE);
        if (fd >= 0) {
            ssize_t ignored = write(fd, &one, sizeof one);
            (void)ignored;
        }
        return true;
    }
    return false;
}

static void sigbus_pass(const struct sigaction *to, int signal, siginfo_t *info, void *context)
{
    if (to->sa_flags & SA_SIGINFO)
        to->sa_sigaction(signal, info, context);
    else if (to->sa_handler != SIG_DFL && to->sa_handler != SIG_IGN)
        to->sa_handler(signal);
    else /* nothing else handles it: die of it, as without this handler. The access is repeated when this returns. */
        sigaction(SIGBUS, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
}

static void sigbus_handle(int signal, siginfo_t *info, void *context)
{
    const int saved = errno;
    const bool replaced = sigbus_replace((uintptr_t)info->si_addr);

    errno = saved;
    if (replaced)
        return;
    /* The previous one comes back here if it was installed after this one once. */
    if (sigbus_passing_on++ == 0)
        sigbus_pass(&sigbus_previous, signal, info, context);
    else if (sigbus_passing_on == 2)
        sigbus_pass(&sigbus_first, signal, info, context);
    else
        sigaction(SIGBUS, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
    sigbus_passing_on--;
}

/* Puts the handler in front, unless it is there: others (faulthandler, the emulated controller)
 * come and go as well. It stays until the process ends, because a later handler may pass signals on
 * to it. */
static void sigbus_install(void)
{
    static bool once;
    struct sigaction current, ours = {.sa_sigaction = sigbus_handle, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    sigaction(SIGBUS, NULL, &current);
    if (current.sa_flags & SA_SIGINFO && current.sa_sigaction == sigbus_handle)
        return;
    sigbus_previous = current;
    if (!once)
        sigbus_first = current;
    once = true;
    sigaction(SIGBUS, &ours, NULL);
}

/* False: there are too many windows, and this one stays unguarded. */
static bool sigbus_guard(struct sigbus_window *window, void *base, size_t nbytes, int lost_fd)
{
    *window = (struct sigbus_window){.base = base, .nbytes = nbytes, .lost_fd = lost_fd};
    for (int i = 0; i < SIGBUS_WINDOWS; i++) {
        if (sigbus_windows[i] == NULL) {
            __atomic_store_n(&sigbus_windows[i], window, __ATOMIC_RELEASE);
            sigbus_install();
            return true;
        }
    }
    return false;
}

/* Called before its memory is unmapped. Does nothing for an unguarded one. */
static void sigbus_forget(struct sigbus_window *window)
{
    for (int i = 0; i < SIGBUS_WINDOWS; i++)
        if (sigbus_windows[i] == window)
            __atomic_store_n(&sigbus_windows[i], NULL, __ATOMIC_RELEASE);
}

#endif
