#define _GNU_SOURCE
#include "emulator/vfu_dma.h"

#include <errno.h>
#include <linux/magic.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "emulator/vfu_proto.h"

void vfu_dma_init(struct vfu_dma *dma)
{
    memset(dma, 0, sizeof(*dma));
}

/* The first range that ends after iova. */
static unsigned first_after(const struct vfu_dma *dma, uint64_t iova)
{
    unsigned low = 0, high = dma->n_ranges;

    while (low < high) {
        unsigned middle = (low + high) / 2;
        const struct vfu_range *range = &dma->ranges[middle];

        if (iova - range->iova < range->nbytes || range->iova > iova)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static int map_file(struct vfu_range *range, uint64_t offset, int fd)
{
    struct stat stat;
    struct statfs statfs;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), start, end;
    int protection = (range->readable ? PROT_READ : 0) | (range->writable ? PROT_WRITE : 0);
    void *map;

    if (fstat(fd, &stat) != 0 || fstatfs(fd, &statfs) != 0)
        return errno;
    /* A file that is too short would raise SIGBUS later. Devices have no size to check. */
    if (S_ISREG(stat.st_mode) && ((uint64_t)stat.st_size < offset || (uint64_t)stat.st_size - offset < range->nbytes))
        return EINVAL;
    if (statfs.f_type == HUGETLBFS_MAGIC)
        page = (uint64_t)statfs.f_bsize;
    if (offset > INT64_MAX - page || range->nbytes > INT64_MAX - page - offset)
        return EINVAL;
    start = offset / page * page;
    end = (offset + range->nbytes + page - 1) / page * page;
    map = mmap(NULL, end - start, protection, MAP_SHARED, fd, (off_t)start);
    if (map == MAP_FAILED)
        return errno;
    range->map = map;
    range->map_nbytes = end - start;
    range->base = (char *)map + (offset - start);
    return 0;
}

int vfu_dma_map(struct vfu_dma *dma, uint64_t iova, uint64_t nbytes, uint64_t offset, uint32_t flags, int fd)
{
    struct vfu_range range = {
        .iova = iova,
        .nbytes = nbytes,
        .readable = flags & VFIO_DMA_MAP_FLAG_READ,
        .writable = flags & VFIO_DMA_MAP_FLAG_WRITE,
    };
    unsigned at;
    int error;

    if (nbytes == 0 || iova + (nbytes - 1) < iova)
        return EINVAL;
    at = first_after(dma, iova);
    if (at < dma->n_ranges && dma->ranges[at].iova <= iova + (nbytes - 1))
        return EEXIST;
    if (dma->n_ranges == VFU_MAX_DMA_MAPS)
        return ENOSPC;
    if (dma->n_ranges == dma->capacity) {
        unsigned capacity = dma->capacity ? dma->capacity * 2 : 16;
        struct vfu_range *ranges = realloc(dma->ranges, capacity * sizeof(*ranges));

        if (ranges == NULL)
            return ENOMEM;
        dma->ranges = ranges;
        dma->capacity = capacity;
    }
    /* Without a descriptor, or without any access, the range is recorded as inaccessible. */
    if (fd >= 0 && (range.readable || range.writable)) {
        error = map_file(&range, offset, fd);
        if (error)
            return error;
    }
    memmove(&dma->ranges[at + 1], &dma->ranges[at], (dma->n_ranges - at) * sizeof(range));
    dma->ranges[at] = range;
    dma->n_ranges++;
    return 0;
}

int vfu_dma_unmap(struct vfu_dma *dma, uint64_t iova, uint64_t nbytes)
{
    unsigned at = first_after(dma, iova);

    if (at == dma->n_ranges || dma->ranges[at].iova != iova || dma->ranges[at].nbytes != nbytes)
        return ENOENT;
    if (dma->ranges[at].map != NULL)
        munmap(dma->ranges[at].map, dma->ranges[at].map_nbytes);
    dma->n_ranges--;
    memmove(&dma->ranges[at], &dma->ranges[at + 1], (dma->n_ranges - at) * sizeof(dma->ranges[0]));
    return 0;
}

void vfu_dma_unmap_all(struct vfu_dma *dma)
{
    for (unsigned i = 0; i < dma->n_ranges; i++) {
        if (dma->ranges[i].map != NULL)
            munmap(dma->ranges[i].map, dma->ranges[i].map_nbytes);
    }
    free(dma->ranges);
    vfu_dma_init(dma);
}

const struct vfu_range *vfu_dma_range(struct vfu_dma *dma, uint64_t iova)
{
    unsigned at = dma->last;

    if (at >= dma->n_ranges || iova - dma->ranges[at].iova >= dma->ranges[at].nbytes) {
        at = first_after(dma, iova);
        if (at == dma->n_ranges || iova < dma->ranges[at].iova)
            return NULL;
        dma->last = at;
    }
    return dma->ranges[at].base != NULL ? &dma->ranges[at] : NULL;
}

void *vfu_dma_find(struct vfu_dma *dma, uint64_t iova, size_t nbytes, bool write)
{
    const struct vfu_range *range = vfu_dma_range(dma, iova);

    if (range == NULL || nbytes > range->nbytes - (iova - range->iova))
        return NULL;
    if (write ? !range->writable : !range->readable)
        return NULL;
    return range->base + (iova - range->iova);
}

/*
 * SIGBUS is synchronous, so the handler runs on the thread that touched the lost page, and a
 * thread-local pointer identifies its table. initial-exec: reading it must not allocate inside a
 * signal handler.
 */
static __thread struct vfu_dma *guarded __attribute__((tls_model("initial-exec")));
static pthread_mutex_t guard_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned guard_users;
static struct sigaction guard_previous;
static __thread bool passing_on __attribute__((tls_model("initial-exec")));

void vfu_guard_enter(struct vfu_dma *dma)
{
    guarded = dma;
}

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
    struct vfu_dma *dma = guarded;
    int saved = errno;

    for (unsigned i = 0; dma != NULL && i < dma->n_ranges; i++) {
        struct vfu_range *range = &dma->ranges[i];

        if (range->map == NULL || (uintptr_t)info->si_addr - (uintptr_t)range->map >= range->map_nbytes)
            continue;
        /* The whole mapping, because a huge page can't be replaced in part. */
        if (mmap(range->map, range->map_nbytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
            break;
        dma->broken = true;
        errno = saved;
        return;
    }
    errno = saved;
    if (passing_on) {
        /* The previous handler came back here (it was installed after this one once): there is no
         * other handler. */
        sigaction(SIGBUS, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
        return;
    }
    passing_on = true;
    if (guard_previous.sa_flags & SA_SIGINFO) {
        guard_previous.sa_sigaction(signal, info, context);
    } else if (guard_previous.sa_handler != SIG_DFL && guard_previous.sa_handler != SIG_IGN) {
        guard_previous.sa_handler(signal);
    } else {
        /* There is no other handler: let the process die, as without this one. The access is
         * repeated when this returns. */
        sigaction(SIGBUS, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
    }
    passing_on = false;
}

void vfu_guard_install(void)
{
    struct sigaction current, ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    pthread_mutex_lock(&guard_lock);
    guard_users++;
    /* Read each time: another handler (faulthandler, for example) may have been installed in front
     * meanwhile. */
    sigaction(SIGBUS, NULL, &current);
    if (!(current.sa_flags & SA_SIGINFO) || current.sa_sigaction != on_sigbus) {
        guard_previous = current;
        sigaction(SIGBUS, &ours, NULL);
    }
    pthread_mutex_unlock(&guard_lock);
}

void vfu_guard_remove(void)
{
    struct sigaction current;

    pthread_mutex_lock(&guard_lock);
    if (--guard_users == 0) {
        sigaction(SIGBUS, NULL, &current);
        if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_sigbus)
            sigaction(SIGBUS, &guard_previous, NULL);
    }
    pthread_mutex_unlock(&guard_lock);
}
