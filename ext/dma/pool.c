/* The pool's table and free list; see pool.h for the layout and for crash consistency. */
#include "pool.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOT_BYTES sizeof(struct pool_slot)
#define SLOTS_PER_PAGE (POOL_PAGE_SIZE / SLOT_BYTES)

static uint64_t table_pages(uint64_t data_pages)
{
    return (data_pages + SLOTS_PER_PAGE - 1) / SLOTS_PER_PAGE;
}

uint64_t pool_bytes_for(uint64_t pages)
{
    if (pages == 0 || pages > UINT64_MAX / POOL_PAGE_SIZE / 2)
        return 0;
    return (1 + table_pages(pages) + pages) * POOL_PAGE_SIZE;
}

/* The most data pages that fit beside a header and their slots. */
static uint64_t data_pages_in(uint64_t nbytes)
{
    uint64_t rest = nbytes / POOL_PAGE_SIZE;
    if (rest < 3)
        return 0;
    rest -= 1;
    return rest - (rest + SLOTS_PER_PAGE) / (SLOTS_PER_PAGE + 1);
}

bool pool_format(char *base, uint64_t nbytes, uint64_t iova, const uint8_t id[POOL_ID_BYTES], const char *name)
{
    struct pool_header *header = (struct pool_header *)base;
    uint64_t pages = data_pages_in(nbytes);

    if (pages == 0)
        return false;
    header->version = POOL_VERSION;
    header->page_size = POOL_PAGE_SIZE;
    header->nbytes = nbytes;
    header->iova = iova;
    header->table_offset = POOL_PAGE_SIZE;
    header->data_offset = (1 + table_pages(pages)) * POOL_PAGE_SIZE;
    header->data_pages = pages;
    header->slot_bytes = SLOT_BYTES;
    header->high_water = 0;
    memcpy(header->id, id, POOL_ID_BYTES);
    snprintf(header->name, sizeof header->name, "%s", name);
    __atomic_store_n(&header->magic, POOL_MAGIC, __ATOMIC_RELEASE);
    return true;
}

static bool fail(char error[256], const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool fail(char error[256], const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, 256, format, arguments);
    va_end(arguments);
    return false;
}

static bool check_header(const struct pool_header *header, uint64_t nbytes, char error[256])
{
    uint64_t magic = __atomic_load_n(&header->magic, __ATOMIC_ACQUIRE);
    uint64_t pages = data_pages_in(nbytes);

    if (magic != POOL_MAGIC)
        return fail(error, "not a pool: its magic is %#" PRIx64 ", not %#llx", magic, POOL_MAGIC);
    if (header->version != POOL_VERSION)
        return fail(error, "pool version is %u, this release reads %u", header->version, POOL_VERSION);
    if (header->nbytes != nbytes)
        return fail(error, "the pool's header gives a size of %" PRIu64 " bytes, its memory has %" PRIu64,
                    header->nbytes, nbytes);
    if (header->page_size != POOL_PAGE_SIZE || header->slot_bytes != SLOT_BYTES)
        return fail(error, "pool has pages of %u and slots of %u bytes, not %u and %zu", header->page_size,
                    header->slot_bytes, POOL_PAGE_SIZE, SLOT_BYTES);
    if (pages == 0 || header->data_pages != pages || header->table_offset != POOL_PAGE_SIZE ||
        header->data_offset != (1 + table_pages(pages)) * POOL_PAGE_SIZE)
        return fail(error,
                    "pool header places the table at %#" PRIx64 " and %" PRIu64 " data pages at %#" PRIx64
                    ", which isn't how %" PRIu64 " bytes are laid out",
                    header->table_offset, header->data_pages, header->data_offset, nbytes);
    if (header->iova % POOL_PAGE_SIZE || header->iova > UINT64_MAX - nbytes)
        return fail(error, "pool IOVA %#" PRIx64 " is misaligned or wraps around", header->iova);
    if (header->high_water > pages)
        return fail(error, "pool high-water mark %" PRIu64 " is beyond its %" PRIu64 " data pages", header->high_water,
                    pages);
    if (memchr(header->name, 0, sizeof header->name) == NULL)
        return fail(error, "pool name is not terminated");
    return true;
}

/* Checks one live slot alone; the caller checks its neighbours. */
static bool check_slot(const struct pool *pool, uint64_t page, char error[256])
{
    const struct pool_slot *slot = &pool->slots[page];

    if (slot->state != POOL_ALLOCATED && slot->state != POOL_LEAKED)
        return fail(error, "slot %" PRIu64 " has the unknown state %u", page, slot->state);
    if (slot->flags & ~POOL_FLAGS_KNOWN)
        return fail(error, "slot %" PRIu64 " has unknown flags %#x", page, slot->flags);
    if (slot->offset != pool->data_offset + page * POOL_PAGE_SIZE)
        return fail(error, "slot %" PRIu64 " says offset %#" PRIx64 ", which is not its page", page, slot->offset);
    if (slot->nbytes == 0 || pool_pages(slot->nbytes) > pool->data_pages - page)
        return fail(error, "slot %" PRIu64 " has %" PRIu64 " bytes, which ends beyond the pool", page, slot->nbytes);
    if (slot->owner[0] == 0 || memchr(slot->owner, 0, sizeof slot->owner) == NULL)
        return fail(error, "slot %" PRIu64 " has an invalid owner", page);
    return true;
}

/* Room for `n` extents, so that pool_release() never needs memory. */
static bool reserve_extents(struct pool *pool, uint64_t n)
{
    if (n > pool->extents_capacity) {
        size_t capacity = pool->extents_capacity ? pool->extents_capacity * 2 : 64;
        while (capacity < n)
            capacity *= 2;
        struct pool_extent *extents = realloc(pool->extents, capacity * sizeof *extents);
        if (extents == NULL)
            return false;
        pool->extents = extents;
        pool->extents_capacity = capacity;
    }
    return true;
}

static bool append_free(struct pool *pool, uint64_t page, uint64_t pages)
{
    if (pages == 0)
        return true;
    if (!reserve_extents(pool, pool->n_extents + 1))
        return false;
    pool->extents[pool->n_extents++] = (struct pool_extent){page, pages};
    pool->free_pages += pages;
    return true;
}

typedef uint64_t __attribute__((may_alias)) word_t;

/* `state` and `flags`, which change together. */
union state_word {
    struct {
        uint32_t state, flags;
    } part;
    uint64_t both;
};

static void store_state(struct pool_slot *slot, uint32_t state, uint32_t flags)
{
    const union state_word word = {.part = {state, flags}};
    __atomic_store_n((word_t *)slot, word.both, __ATOMIC_RELEASE);
}

static union state_word load_state(const struct pool_slot *slot)
{
    return (union state_word){.both = __atomic_load_n((const word_t *)slot, __ATOMIC_ACQUIRE)};
}

/* Killed in between, or with a mark that no check goes with: the whole table is read. */
static void store_high_water(struct pool_header *header, uint64_t high_water)
{
    __atomic_store_n(&header->high_water, high_water, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(&header->high_water_check, pool_high_water_check(high_water), __ATOMIC_RELEASE);
}

static uint64_t word_of(const void *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static bool has_sum(const struct pool_slot *slot)
{
    return memchr(slot->owner, 0, POOL_SUMMED_TEXT_BYTES) != NULL;
}

/* The checksum of everything except the state. */
static uint32_t slot_sum(const struct pool_slot *slot)
{
    uint32_t last;
    memcpy(&last, slot->owner + 24, sizeof last);
    const uint64_t words[] = {slot->offset,
                              slot->nbytes,
                              slot->tag,
                              word_of(slot->owner),
                              word_of(slot->owner + 8),
                              word_of(slot->owner + 16),
                              (uint64_t)slot->flags << 32 | last};
    uint64_t sum = 0;

    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        sum = (sum ^ words[i]) * 0x9e3779b97f4a7c15ull;
        sum ^= sum >> 32;
    }
    return (uint32_t)sum;
}

static uint32_t stored_sum(const struct pool_slot *slot)
{
    uint32_t sum;
    memcpy(&sum, slot->owner + POOL_SUMMED_TEXT_BYTES, sizeof sum);
    return sum;
}

static void store_sum(struct pool_slot *slot)
{
    uint32_t sum = slot_sum(slot);
    if (has_sum(slot))
        memcpy(slot->owner + POOL_SUMMED_TEXT_BYTES, &sum, sizeof sum);
}

bool pool_verify(const struct pool *pool, char error[256])
{
    uint64_t high_water = pool_high_water(pool);

    for (uint64_t page = 0; page < high_water; page++) {
        const struct pool_slot *slot = &pool->slots[page];
        const union state_word word = load_state(slot); /* of one moment: its process may be allocating */

        if (word.part.state == POOL_FREE) {
            if (word.part.flags != POOL_FREED && (word.part.flags || slot->offset))
                return fail(error, "slot %" PRIu64 " is free, but has the flags %#x of one in use", page,
                            word.part.flags);
        } else if (has_sum(slot) && slot_sum(slot) != stored_sum(slot)) {
            return fail(error, "slot %" PRIu64 " differs from its checksum", page);
        }
    }
    return true;
}

void pool_seal(struct pool *pool)
{
    uint64_t high_water = pool_high_water(pool);

    for (uint64_t page = 0; page < high_water; page++) {
        struct pool_slot *slot = &pool->slots[page];

        if (pool_state(pool, page) != POOL_FREE)
            store_sum(slot);
        else if (slot->offset)
            store_state(slot, POOL_FREE, POOL_FREED);
    }
    while (high_water && pool->slots[high_water - 1].offset == 0)
        high_water--;
    store_high_water(pool->header, high_water);
}

static bool read_table(struct pool *pool, char error[256])
{
    uint64_t end = 0; /* of the live slots so far */
    uint64_t high_water = pool_high_water(pool);

    for (uint64_t page = 0; page < high_water; page++) {
        if (pool_state(pool, page) == POOL_FREE)
            continue;
        if (!check_slot(pool, page, error))
            return false;
        if (page < end)
            return fail(error, "slot %" PRIu64 " overlaps the allocation before it, which ends at page %" PRIu64, page,
                        end);
        if (!append_free(pool, end, page - end))
            return fail(error, "out of memory");
        end = page + pool_pages(pool->slots[page].nbytes);
        pool->view[page] = POOL_VIEW_PENDING;
        pool->live_slots++;
    }
    if (!append_free(pool, end, pool->data_pages - end) || !reserve_extents(pool, pool->live_slots + 2))
        return fail(error, "out of memory");
    return true;
}

bool pool_open(struct pool *pool, char *base, uint64_t nbytes, char error[256])
{
    struct pool_header *header = (struct pool_header *)base;

    memset(pool, 0, sizeof *pool);
    if (!check_header(header, nbytes, error))
        return false;
    pool->base = base;
    pool->header = header;
    pool->slots = (struct pool_slot *)(base + header->table_offset);
    pool->data_offset = header->data_offset;
    pool->data_pages = header->data_pages;
    pool->iova = header->iova;
    pool->touched = pool->data_pages; /* the content of an attached pool's pages is unknown */
    pool->view = calloc(pool->data_pages, 1);
    if (pool->view == NULL)
        return fail(error, "out of memory");
    if (!read_table(pool, error)) {
        pool_fini(pool);
        return false;
    }
    return true;
}

void pool_fini(struct pool *pool)
{
    free(pool->view);
    free(pool->extents);
    memset(pool, 0, sizeof *pool);
}

static void remove_extent(struct pool *pool, size_t i)
{
    pool->n_extents--;
    memmove(&pool->extents[i], &pool->extents[i + 1], (pool->n_extents - i) * sizeof *pool->extents);
}

static void insert_extent(struct pool *pool, size_t i, struct pool_extent extent)
{
    memmove(&pool->extents[i + 1], &pool->extents[i], (pool->n_extents - i) * sizeof *pool->extents);
    pool->extents[i] = extent;
    pool->n_extents++;
}

/* Takes `pages` from the first extent that has them at the right alignment; POOL_NO_ROOM when none
 * has. */
static int64_t take_first_fit(struct pool *pool, uint64_t pages, uint64_t align)
{
    for (size_t i = 0; i < pool->n_extents; i++) {
        struct pool_extent *extent = &pool->extents[i];
        uint64_t iova = pool->iova + pool->data_offset + extent->page * POOL_PAGE_SIZE;
        uint64_t before = (-iova & (align - 1)) / POOL_PAGE_SIZE;
        if (before > extent->pages || extent->pages - before < pages)
            continue;
        uint64_t page = extent->page + before, after = extent->pages - before - pages;
        struct pool_extent rest = {page + pages, after};
        if (before) {
            extent->pages = before;
            if (after)
                insert_extent(pool, i + 1, rest);
        } else if (after) {
            *extent = rest;
        } else {
            remove_extent(pool, i);
        }
        pool->free_pages -= pages;
        return (int64_t)page;
    }
    return POOL_NO_ROOM;
}

int64_t pool_reserve(struct pool *pool, uint64_t nbytes, uint64_t align)
{
    /* n live slots leave at most n + 1 gaps between them: with this one more, and one to spare. */
    if (!reserve_extents(pool, pool->live_slots + 3))
        return POOL_NO_HEAP;
    const int64_t page = take_first_fit(pool, pool_pages(nbytes), align);
    if (page >= 0)
        pool->live_slots++;
    return page;
}

uint64_t pool_dirty_bytes(const struct pool *pool, uint64_t page, uint64_t nbytes)
{
    const uint64_t end = page + pool_pages(nbytes);
    return page >= pool->touched ? 0 : ((end < pool->touched ? end : pool->touched) - page) * POOL_PAGE_SIZE;
}

void pool_publish(struct pool *pool, uint64_t page, uint64_t nbytes, const char *owner, uint64_t tag, uint32_t flags)
{
    struct pool_slot *slot = &pool->slots[page];
    store_state(slot, POOL_FREE, POOL_FREED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    struct pool_slot filled = {
        .flags = flags, .offset = pool->data_offset + page * POOL_PAGE_SIZE, .nbytes = nbytes, .tag = tag};
    memcpy(filled.owner, owner, strnlen(owner, sizeof filled.owner - 1));
    store_sum(&filled);
    memcpy(&slot->offset, &filled.offset, sizeof filled - offsetof(struct pool_slot, offset));
    if (pool->touched < page + pool_pages(nbytes))
        pool->touched = page + pool_pages(nbytes);
    /* Readers only read below the mark: it must be raised before the slot can be seen as live. */
    if (pool_high_water(pool) <= page)
        store_high_water(pool->header, page + 1);
    store_state(slot, POOL_ALLOCATED, flags);
    pool->view[page] = POOL_VIEW_HELD;
}

/* Pages that no slot describes any more, or that none has described yet, can be had again. */
static void give_back(struct pool *pool, uint64_t page, uint64_t pages)
{
    size_t low = 0, high = pool->n_extents;

    pool->live_slots--;
    pool->free_pages += pages;

    while (low < high) { /* the first extent above the pages */
        size_t middle = (low + high) / 2;
        if (pool->extents[middle].page < page)
            low = middle + 1;
        else
            high = middle;
    }
    struct pool_extent *above = low < pool->n_extents ? &pool->extents[low] : NULL;
    struct pool_extent *below = low > 0 ? &pool->extents[low - 1] : NULL;
    bool joins_below = below && below->page + below->pages == page;
    bool joins_above = above && page + pages == above->page;
    if (joins_below && joins_above) {
        below->pages += pages + above->pages;
        remove_extent(pool, low);
    } else if (joins_below) {
        below->pages += pages;
    } else if (joins_above) {
        above->page = page;
        above->pages += pages;
    } else {
        insert_extent(pool, low, (struct pool_extent){page, pages});
    }
}

void pool_unreserve(struct pool *pool, uint64_t page, uint64_t nbytes)
{
    give_back(pool, page, pool_pages(nbytes));
}

void pool_release(struct pool *pool, uint64_t page)
{
    struct pool_slot *slot = &pool->slots[page];
    const uint64_t pages = pool_pages(slot->nbytes);

    store_state(slot, POOL_FREE, POOL_FREED);
    pool->view[page] = POOL_VIEW_NONE;
    give_back(pool, page, pages);
}

void pool_set_state(struct pool *pool, uint64_t page, uint32_t state)
{
    __atomic_store_n(&pool->slots[page].state, state, __ATOMIC_RELEASE);
}

uint64_t pool_longest_run(const struct pool *pool)
{
    uint64_t longest = 0;
    for (size_t i = 0; i < pool->n_extents; i++)
        if (pool->extents[i].pages > longest)
            longest = pool->extents[i].pages;
    return longest;
}
