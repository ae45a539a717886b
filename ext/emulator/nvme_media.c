/*
 * Where blocks are stored: RAM (anonymous memory, filled on demand), a file (pread and pwrite; its
 * page cache is the controller's volatile write cache), or null: as SPDK's null device, no data is
 * transferred at all, reads leave the host's memory unchanged.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h> /* FALLOC_FL_*: glibc's fcntl.h has them too, musl's has not */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nvme_ctrl.h"

#define IOV_CHUNK 1024u           /* IOV_MAX */
#define DONTNEED_FROM \
    (64u << 10) /* zeroing less than this costs less than the system call and the page faults after it */

static int open_file(struct media *media, const struct emu_ns_config *config, char *err)
{
    media->fd = open(config->path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (media->fd < 0) {
        snprintf(err, 256, "%.180s: %s", config->path, strerror(errno));
        return -errno;
    }
    off_t size = lseek(media->fd, 0, SEEK_END);
    if (size < 0 || ((uint64_t)size < config->nbytes && ftruncate(media->fd, (off_t)config->nbytes))) {
        int error = errno;
        snprintf(err, 256, "%.150s: cannot be %llu bytes long: %s", config->path, (unsigned long long)config->nbytes,
                 strerror(error));
        close(media->fd);
        media->fd = -1;
        return -error;
    }
    return 0;
}

int media_open(struct media *media, const struct emu_ns_config *config, char *err)
{
    *media = (struct media){.kind = config->medium, .nbytes = config->nbytes, .fd = -1};
    switch (config->medium) {
    case EMU_MEDIUM_FILE:
        if (config->path)
            return open_file(media, config, err);
        snprintf(err, 256, "a file medium needs a path");
        return -EINVAL;
    case EMU_MEDIUM_RAM:
        media->ram =
            mmap(NULL, media->nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (media->ram == MAP_FAILED) {
            media->ram = NULL;
            snprintf(err, 256, "no memory for %llu bytes: %s", (unsigned long long)config->nbytes, strerror(errno));
            return -ENOMEM;
        }
        madvise(media->ram, media->nbytes, MADV_HUGEPAGE); /* a wish */
        return 0;
    case EMU_MEDIUM_NULL:
        return 0;
    }
    snprintf(err, 256, "unknown medium: %d", (int)config->medium);
    return -EINVAL;
}

void media_close(struct media *media)
{
    undo_free(media);
    if (media->ram)
        munmap(media->ram, media->nbytes);
    if (media->fd >= 0)
        close(media->fd);
}

int media_resize(struct media *media, uint64_t nbytes)
{
    if (media->kind == EMU_MEDIUM_RAM) {
        void *ram = mremap(media->ram, media->nbytes, nbytes, MREMAP_MAYMOVE);
        if (ram == MAP_FAILED)
            return -errno;
        media->ram = ram;
    } else if (media->kind == EMU_MEDIUM_FILE) {
        if (ftruncate(media->fd, (off_t)nbytes))
            return -errno;
    }
    media->nbytes = nbytes;
    return 0;
}

/* All of iov at that offset; 0, -errno, or -EIO at an unexpected end of the file. Uses the vector
 * up. */
static int transfer(struct media *media, uint64_t offset, struct iovec *iov, unsigned n, bool write)
{
    while (n) {
        int count = (int)(n < IOV_CHUNK ? n : IOV_CHUNK);
        ssize_t done =
            write ? pwritev(media->fd, iov, count, (off_t)offset) : preadv(media->fd, iov, count, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -EIO;
        offset += (uint64_t)done;
        while (n && (size_t)done >= iov->iov_len) {
            done -= (ssize_t)iov->iov_len;
            iov++;
            n--;
        }
        if (n) {
            iov->iov_base = (uint8_t *)iov->iov_base + done;
            iov->iov_len -= (size_t)done;
        }
    }
    return 0;
}

uint16_t media_read(struct media *media, uint64_t offset, struct iovec *iov, unsigned n)
{
    if (media->kind == EMU_MEDIUM_NULL)
        return SC_SUCCESS;
    if (media->kind == EMU_MEDIUM_FILE)
        return transfer(media, offset, iov, n, false) ? SC_READ_ERROR : SC_SUCCESS;
    const uint8_t *from = media->ram + offset;
    for (unsigned i = 0; i < n; i++) {
        memcpy(iov[i].iov_base, from, iov[i].iov_len);
        from += iov[i].iov_len;
    }
    return SC_SUCCESS;
}

uint16_t media_write(struct media *media, uint64_t offset, struct iovec *iov, unsigned n)
{
    if (media->kind == EMU_MEDIUM_NULL)
        return SC_SUCCESS;
    if (media->kind == EMU_MEDIUM_FILE) {
        int rc = transfer(media, offset, iov, n, true);
        return !rc ? SC_SUCCESS : rc == -ENOSPC || rc == -EDQUOT ? SC_CAPACITY_EXCEEDED : SC_WRITE_FAULT;
    }
    uint8_t *to = media->ram + offset;
    if (UNLIKELY(media->undo)) {
        uint64_t nbytes = 0;
        for (unsigned i = 0; i < n; i++)
            nbytes += iov[i].iov_len;
        undo_note(media, offset, nbytes);
    }
    for (unsigned i = 0; i < n; i++) {
        memcpy(to, iov[i].iov_base, iov[i].iov_len);
        to += iov[i].iov_len;
    }
    return SC_SUCCESS;
}

static int write_zeroes(struct media *media, uint64_t offset, uint64_t nbytes)
{
    static const uint8_t zeroes[65536];
    while (nbytes) {
        struct iovec iov = {(void *)zeroes, nbytes < sizeof(zeroes) ? nbytes : sizeof(zeroes)};
        uint64_t part = iov.iov_len;
        int rc = transfer(media, offset, &iov, 1, true);
        if (rc)
            return rc;
        offset += part;
        nbytes -= part;
    }
    return 0;
}

static void zero_ram(struct media *media, uint64_t offset, uint64_t nbytes)
{
    undo_note(media, offset, nbytes);
    uint64_t begin = (offset + 4095) & ~4095ull, end = (offset + nbytes) & ~4095ull;
    if (nbytes < DONTNEED_FROM || madvise(media->ram + begin, end - begin, MADV_DONTNEED)) {
        memset(media->ram + offset, 0, nbytes);
        return;
    }
    memset(media->ram + offset, 0, begin - offset);
    memset(media->ram + end, 0, offset + nbytes - end);
}

/* Reads as zeroes afterwards, always; `deallocate` also gives the space back where that can be
 * done. */
uint16_t media_zero(struct media *media, uint64_t offset, uint64_t nbytes, bool deallocate)
{
    if (media->kind == EMU_MEDIUM_NULL || !nbytes)
        return SC_SUCCESS;
    if (media->kind == EMU_MEDIUM_RAM) {
        zero_ram(media, offset, nbytes);
        return SC_SUCCESS;
    }
    int mode = FALLOC_FL_KEEP_SIZE | (deallocate ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    int rc = fallocate(media->fd, mode, (off_t)offset, (off_t)nbytes) ? -errno : 0;
    if (rc)
        rc = write_zeroes(media, offset, nbytes);
    return !rc ? SC_SUCCESS : rc == -ENOSPC || rc == -EDQUOT ? SC_CAPACITY_EXCEEDED : SC_WRITE_FAULT;
}

/* Part of a file in the bounce buffer. */
static uint16_t bounce(struct emu_ctrl *ctrl, struct media *media, uint64_t offset, size_t nbytes)
{
    struct iovec iov = {ctrl->bounce, nbytes};
    return transfer(media, offset, &iov, 1, false) ? SC_READ_ERROR : SC_SUCCESS;
}

/* The null medium holds nothing that could differ. */
uint16_t media_compare(struct emu_ctrl *ctrl, struct media *media, uint64_t offset, const struct iovec *iov, unsigned n)
{
    if (media->kind == EMU_MEDIUM_NULL)
        return SC_SUCCESS;
    for (unsigned i = 0; i < n; i++) {
        const uint8_t *host = iov[i].iov_base;
        size_t left = iov[i].iov_len;
        while (left) {
            size_t part = left;
            const uint8_t *ours = media->ram + offset;
            if (media->kind == EMU_MEDIUM_FILE) {
                part = left < BOUNCE_SIZE ? left : BOUNCE_SIZE;
                ours = ctrl->bounce;
                uint16_t status = bounce(ctrl, media, offset, part);
                if (status)
                    return status;
            }
            if (memcmp(host, ours, part))
                return SC_COMPARE_FAILURE;
            host += part;
            offset += part;
            left -= part;
        }
    }
    return SC_SUCCESS;
}

uint16_t media_verify(struct emu_ctrl *ctrl, struct media *media, uint64_t offset, uint64_t nbytes)
{
    while (media->kind == EMU_MEDIUM_FILE && nbytes) {
        size_t part = nbytes < BOUNCE_SIZE ? nbytes : BOUNCE_SIZE;
        uint16_t status = bounce(ctrl, media, offset, part);
        if (status)
            return status;
        offset += part;
        nbytes -= part;
    }
    return SC_SUCCESS;
}

/* Copies inside the medium; the ranges may overlap. */
uint16_t media_move(struct emu_ctrl *ctrl, struct media *media, uint64_t from, uint64_t to, uint64_t nbytes)
{
    if (media->kind == EMU_MEDIUM_RAM)
        undo_note(media, to, nbytes);
    if (media->kind == EMU_MEDIUM_RAM)
        memmove(media->ram + to, media->ram + from, nbytes);
    if (media->kind != EMU_MEDIUM_FILE)
        return SC_SUCCESS;
    bool backwards = to > from;
    for (uint64_t done = 0; done < nbytes;) {
        size_t part = nbytes - done < BOUNCE_SIZE ? nbytes - done : BOUNCE_SIZE;
        uint64_t at = backwards ? nbytes - done - part : done;
        uint16_t status = bounce(ctrl, media, from + at, part);
        struct iovec iov = {ctrl->bounce, part};
        if (!status)
            status = media_write(media, to + at, &iov, 1);
        if (status)
            return status;
        done += part;
    }
    return SC_SUCCESS;
}

/* The same from another medium. */
uint16_t media_copy(struct emu_ctrl *ctrl, struct media *source, uint64_t from, struct media *media, uint64_t to,
                    uint64_t nbytes)
{
    if (source == media)
        return media_move(ctrl, media, from, to, nbytes);
    for (uint64_t done = 0; done < nbytes;) {
        size_t part = nbytes - done < BOUNCE_SIZE ? nbytes - done : BOUNCE_SIZE;
        struct iovec iov = {ctrl->bounce, part};
        uint16_t status = media_read(source, from + done, &iov, 1);
        iov = (struct iovec){ctrl->bounce, part};
        if (!status)
            status = media_write(media, to + done, &iov, 1);
        if (status)
            return status;
        done += part;
    }
    return SC_SUCCESS;
}
