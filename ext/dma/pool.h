/*
 * The pool: memory that a device may access, and a table of the owners of its pages, inside the
 * same memory.
 *
 *   offset 0              struct pool_header, one page
 *   table_offset          struct pool_slot[data_pages]: slot i describes the allocation that begins
 *                         at data page i
 *   data_offset           data pages
 *
 * Crash consistency. A process may be killed at any instruction, and a successor maps the same
 * memory. Everything that it relies on is in the slots' `state` words; each changes by ONE atomic
 * store:
 *   publish   the pages are zeroed and the slot's other fields written with plain stores
 *             while its state is FREE, so that a reader ignores them; then `state` becomes
 *             ALLOCATED with a release store, so that a reader of ALLOCATED (acquire) sees the
 *             fields and the zeroes.
 *             `high_water` is raised, with a release store, before the slot is published.
 *   free      `state` becomes FREE with a release store; the fields stay and mean nothing.
 *   persist   `flags` never change while the slot is live.
 *
 * Damage. pool_verify() detects a damaged table: a live slot has a checksum; `state` and `flags`
 * are one store, and the flags of a free slot are POOL_FREED, so that a live slot that lost its
 * state and a free one that gained one are both detected; high_water has its own check value, and
 * if they differ the whole table is read. Releases before 0.2 wrote none of these: pool_seal()
 * makes their tables verifiable. The header is immutable except for `high_water`; its magic is
 * stored last (release), so that a half-made pool isn't valid. Free space is derived from the live
 * slots, never stored. A killed process's stores are not lost (the memory is shared and coherent):
 * the release order matters to a reader that runs at the same time, and to the compiler.
 *
 * One process allocates at a time. Within it the caller serialises every function here (Python's
 * global lock; these functions neither call Python nor release it). A child made by fork() must not
 * allocate.
 */
#ifndef NVME_ASYNC_DMA_POOL_H
#define NVME_ASYNC_DMA_POOL_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POOL_PAGE_SIZE 4096u
#define POOL_MAGIC 0x4c4f4f50454d564eull /* "NVMEPOOL", little endian */
#define POOL_VERSION 1u
#define POOL_TEXT_BYTES 32 /* owner and pool name: UTF-8, NUL-padded, at least one NUL */
#define POOL_ID_BYTES 16

/* Stored states. PENDING_RESTORE is one process's view of an ALLOCATED slot that it hasn't claimed
 * yet, and is never stored: mapping a pool to inspect it must not change it. */
enum pool_state {
    POOL_FREE = 0,
    POOL_ALLOCATED = 1,
    POOL_PENDING_RESTORE = 2,
    POOL_LEAKED = 3, /* not claimed at a restore; a controller might still write to it, so its pages aren't reused */
};

#define POOL_FLAG_PERSISTENT \
    1u /* outlives the Python object that stands for it; only an explicit free returns its pages */
#define POOL_FLAGS_KNOWN POOL_FLAG_PERSISTENT
#define POOL_FREED \
    0x45455246u /* "FREE": flags of a slot that was freed, or is being filled. A slot never used is zero */
/* An owner so long leaves no room for the slot's checksum. */
#define POOL_SUMMED_TEXT_BYTES 28

struct pool_header {
    uint64_t magic; /* stored last */
    uint32_t version;
    uint32_t page_size;
    uint64_t nbytes; /* of the whole pool, this header included: what is mapped for DMA, at iova */
    uint64_t iova;
    uint64_t table_offset;
    uint64_t data_offset;
    uint64_t data_pages;
    uint32_t slot_bytes;
    uint32_t reserved;
    uint64_t
        high_water; /* no slot at or above this index was ever published: a bound for readers, not a count. Only grows */
    uint8_t id[POOL_ID_BYTES]; /* random: identifies this pool */
    char name[POOL_TEXT_BYTES];
    uint64_t high_water_check; /* pool_high_water_check(high_water) */
};

struct pool_slot {
    uint32_t state; /* enum pool_state */
    uint32_t flags;
    uint64_t
        offset; /* of the allocation from the pool's beginning: data_offset + index * page_size; redundant, checked by readers */
    uint64_t nbytes; /* as asked for; it owns this many bytes rounded up to pages */
    uint64_t tag; /* the owner's own */
    char owner[POOL_TEXT_BYTES]; /* of the last four bytes a checksum, if it is shorter than POOL_SUMMED_TEXT_BYTES */
};

static_assert(sizeof(struct pool_slot) == 64, "a slot is one cache line");
static_assert(offsetof(struct pool_slot, state) == 0 && offsetof(struct pool_slot, flags) == 4, "slot layout");
static_assert(offsetof(struct pool_slot, offset) == 8 && offsetof(struct pool_slot, nbytes) == 16, "slot layout");
static_assert(offsetof(struct pool_slot, tag) == 24 && offsetof(struct pool_slot, owner) == 32, "slot layout");
static_assert(sizeof(struct pool_header) == 128, "header layout");
static_assert(offsetof(struct pool_header, version) == 8 && offsetof(struct pool_header, page_size) == 12,
              "header layout");
static_assert(offsetof(struct pool_header, nbytes) == 16 && offsetof(struct pool_header, iova) == 24, "header layout");
static_assert(offsetof(struct pool_header, table_offset) == 32 && offsetof(struct pool_header, data_offset) == 40,
              "header layout");
static_assert(offsetof(struct pool_header, data_pages) == 48 && offsetof(struct pool_header, slot_bytes) == 56,
              "header layout");
static_assert(offsetof(struct pool_header, high_water) == 64 && offsetof(struct pool_header, id) == 72,
              "header layout");
static_assert(offsetof(struct pool_header, name) == 88 && offsetof(struct pool_header, high_water_check) == 120,
              "header layout");

/* What this process knows of the allocation that begins at a data page. */
enum pool_view {
    POOL_VIEW_NONE = 0, /* free; or live and persistent, its object gone: can be claimed */
    POOL_VIEW_HELD = 1, /* an object stands for it */
    POOL_VIEW_PENDING = 2, /* found by pool_open(), not claimed yet */
};

struct pool_extent {
    uint64_t page, pages;
};

/* A process's handle. The free extents are sorted by page and never touch one another. */
struct pool {
    char *base;
    struct pool_header *header;
    struct pool_slot *slots;
    uint64_t data_offset, data_pages, iova;
    uint64_t free_pages, live_slots; /* reserved ones included */
    uint64_t touched; /* data pages from here on were never handed out since the memory was made */
    uint8_t *view; /* enum pool_view by data page */
    struct pool_extent *extents;
    size_t n_extents, extents_capacity;
};

/* Bytes of a pool with room for exactly `pages` data pages; 0 when it can't be represented. */
uint64_t pool_bytes_for(uint64_t pages);

/* Writes header and empty table into zeroed memory. False when nbytes has no room for a single data
 * page. */
bool pool_format(char *base, uint64_t nbytes, uint64_t iova, const uint8_t id[POOL_ID_BYTES], const char *name);

/* Checks header and table, and derives the free extents. Changes nothing in the pool. On failure a
 * message in error[256]; on success `pool` is owned by the caller and ends with pool_fini(). */
bool pool_open(struct pool *pool, char *base, uint64_t nbytes, char error[256]);
void pool_fini(struct pool *pool);

/* Is the table whole? Only for a pool that is written by releases which seal theirs. False, and a
 * message in error[256]. Changes nothing. */
bool pool_verify(const struct pool *pool, char error[256]);

/* Makes a table that another release wrote, and that is known to be right, into one that
 * pool_verify() accepts. */
void pool_seal(struct pool *pool);

enum { POOL_NO_ROOM = -1, POOL_NO_HEAP = -2 };
/* An allocation has three steps, so that a long zeroing can run without Python's global lock:
 *   reserve   first fit: the data page at which `nbytes` can begin, or one of the above. `align` is
 *             a power of two >= POOL_PAGE_SIZE, and applies to the IOVA. The pages leave the free
 *             list, and a killed process has not allocated them;
 *   (zero)    the caller clears the pages, or only the first pool_dirty_bytes() of them;
 *   publish   the slot becomes ALLOCATED. unreserve() instead gives the pages back. */
int64_t pool_reserve(struct pool *pool, uint64_t nbytes, uint64_t align);
void pool_publish(struct pool *pool, uint64_t page, uint64_t nbytes, const char *owner, uint64_t tag, uint32_t flags);
void pool_unreserve(struct pool *pool, uint64_t page, uint64_t nbytes);

/* How many of `nbytes` from `page` on may hold what an earlier allocation left; the rest was never
 * handed out and is zero, as a new memfd's pages are. */
uint64_t pool_dirty_bytes(const struct pool *pool, uint64_t page, uint64_t nbytes);

/* The allocation that begins at `page` ends and its pages can be had again. Cannot fail. */
void pool_release(struct pool *pool, uint64_t page);

/* Changes a live slot's state to ALLOCATED or LEAKED. */
void pool_set_state(struct pool *pool, uint64_t page, uint32_t state);

/* The stored state (acquire: the slot's other fields may be read after it). */
static inline uint32_t pool_state(const struct pool *pool, uint64_t page)
{
    return __atomic_load_n(&pool->slots[page].state, __ATOMIC_ACQUIRE);
}

/* As far from one another as two values of high_water can be. */
static inline uint64_t pool_high_water_check(uint64_t high_water)
{
    return high_water * 0x9e3779b97f4a7c15ull;
}

/* No slot at or above this index is live. Another process that allocates raises it. */
static inline uint64_t pool_high_water(const struct pool *pool)
{
    uint64_t high_water = __atomic_load_n(&pool->header->high_water, __ATOMIC_ACQUIRE);
    return pool->header->high_water_check == pool_high_water_check(high_water) ? high_water : pool->data_pages;
}

uint64_t pool_longest_run(const struct pool *pool); /* pages */

static inline uint64_t pool_pages(uint64_t nbytes)
{
    return nbytes / POOL_PAGE_SIZE + (nbytes % POOL_PAGE_SIZE != 0);
}

#endif
