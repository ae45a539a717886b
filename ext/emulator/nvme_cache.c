/*
 * A volatile write cache over a RAM medium. The medium has what a host reads; here is what the
 * pages held that have been written since the last flush, and what they hold again after a power
 * loss. A full cache writes itself back, as a drive's does.
 */
#include <errno.h>
#include <stdlib.h>

#include "nvme_ctrl.h"

#define PAGE 4096u
#define SLOTS 32768u        /* a power of two */
#define MAX_PAGES (SLOTS / 2) /* 64 MiB */

struct undo {
    uint64_t keys[SLOTS]; /* page number + 1; 0: free */
    uint8_t *pages[SLOTS];
    uint32_t n;
};

int undo_new(struct media *media)
{
    media->undo = calloc(1, sizeof(*media->undo));
    return media->undo ? 0 : -ENOMEM;
}

void undo_flush(struct media *media)
{
    struct undo *undo = media->undo;
    for (unsigned i = 0; undo && undo->n && i < SLOTS; i++) {
        if (!undo->keys[i])
            continue;
        free(undo->pages[i]);
        undo->keys[i] = 0;
        undo->n--;
    }
}

void undo_free(struct media *media)
{
    if (!media->undo)
        return;
    undo_flush(media);
    free(media->undo);
    media->undo = NULL;
}

/* The slot of a page, or the free one where it would be. */
static uint32_t slot_of(const struct undo *undo, uint64_t page)
{
    uint32_t i = (uint32_t)((page * 0x9e3779b97f4a7c15ull) >> 40) & (SLOTS - 1);
    while (undo->keys[i] && undo->keys[i] != page + 1)
        i = (i + 1) & (SLOTS - 1);
    return i;
}

static size_t page_nbytes(const struct media *media, uint64_t page)
{
    uint64_t left = media->nbytes - page * PAGE;
    return left < PAGE ? (size_t)left : PAGE;
}

/* Before a write: keeps what is there. Without room or memory the cache is written back first, or
 * the write is durable at once. */
void undo_note(struct media *media, uint64_t offset, uint64_t nbytes)
{
    struct undo *undo = media->undo;
    if (!undo || media->write_through || !nbytes)
        return;
    uint64_t first = offset / PAGE, last = (offset + nbytes - 1) / PAGE;
    if (undo->n + (last - first + 1) > MAX_PAGES)
        undo_flush(media);
    if (last - first + 1 > MAX_PAGES)
        return;
    for (uint64_t page = first; page <= last; page++) {
        uint32_t i = slot_of(undo, page);
        if (undo->keys[i] || !(undo->pages[i] = malloc(PAGE)))
            continue;
        memcpy(undo->pages[i], media->ram + page * PAGE, page_nbytes(media, page));
        undo->keys[i] = page + 1;
        undo->n++;
    }
}

/* After a write that is to be durable (FUA, or a cache that is off): it alone, not what else its
 * pages hold. */
void undo_commit(struct media *media, uint64_t offset, uint64_t nbytes)
{
    struct undo *undo = media->undo;
    for (uint64_t at = offset, end = offset + nbytes; undo && at < end;) {
        uint64_t page = at / PAGE, stop = (page + 1) * PAGE < end ? (page + 1) * PAGE : end;
        uint32_t i = slot_of(undo, page);
        if (undo->keys[i])
            memcpy(undo->pages[i] + at % PAGE, media->ram + at, stop - at);
        at = stop;
    }
}

/* The power fails: each block is what it was at the last flush, or what was written since, as the
 * outage has it. */
void undo_restore(struct media *media, const struct outage *outage, uint32_t nsid, unsigned lbads)
{
    struct undo *undo = media->undo;
    size_t block = lbads < 12 ? (size_t)1 << lbads : PAGE;
    for (unsigned i = 0; undo && i < SLOTS; i++) {
        uint64_t at = undo->keys[i] ? (undo->keys[i] - 1) * PAGE : media->nbytes;
        size_t nbytes = at < media->nbytes ? page_nbytes(media, undo->keys[i] - 1) : 0;
        for (size_t done = 0; done < nbytes; done += block)
            if (!outage_keeps(outage, nsid, (at + done) >> lbads, 0))
                memcpy(media->ram + at + done, undo->pages[i] + done, block < nbytes - done ? block : nbytes - done);
    }
    undo_flush(media);
}
