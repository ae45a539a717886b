/*
 * The Host Memory Buffer (Base 2.1, 8.2.3; feature 0Dh), used as a drive without DRAM uses it: each
 * I/O command reads a page back that was written before, compares it, and writes it anew. So a host
 * that uses a page of it for something else is found out, on either side.
 */
#include <stdlib.h>

#include "nvme_ctrl.h"

#define UNIT 4096u /* of HMPRE, HMMIN, HMMINDS */
#define MAX_PAGES (1u << 20)
#define CDW11_EHM 1u
#define CDW11_MR 2u

void hmb_free(struct hmb *hmb)
{
    free(hmb->pages);
    free(hmb->stamps);
    memset(hmb, 0, sizeof(*hmb));
}

/* The content of a page: a different word at each place, for each stamp. */
static inline uint64_t word(uint64_t stamp, unsigned i)
{
    return stamp * 0x9e3779b97f4a7c15ull + i;
}

/* Is what was written last still there? A page that was never written holds anything. */
static void check(struct emu_ctrl *ctrl, uint32_t page, const uint64_t *at)
{
    uint64_t stamp = ctrl->extras.hmb.stamps[page];
    if (!stamp)
        return;
    for (unsigned i = 0; i < ctrl->page_size / 8; i++) {
        if (at[i] != word(stamp, i)) {
            ctrl->counters.host_memory_damaged++;
            return;
        }
    }
}

static void use_page(struct emu_ctrl *ctrl, uint32_t page, bool write)
{
    struct hmb *hmb = &ctrl->extras.hmb;
    uint64_t *at = dma(ctrl, hmb->pages[page], ctrl->page_size, true);
    if (!at) {
        ctrl_fatal(ctrl, "the host memory buffer is not accessible");
        return;
    }
    check(ctrl, page, at);
    if (!write)
        return;
    uint64_t stamp = hmb->stamps[page] = ++hmb->stamp;
    for (unsigned i = 0; i < ctrl->page_size / 8; i++)
        at[i] = word(stamp, i);
    ctrl->counters.host_memory_writes++;
}

void hmb_use(struct emu_ctrl *ctrl)
{
    struct hmb *hmb = &ctrl->extras.hmb;
    hmb->next = (hmb->next + 1) % hmb->n_pages;
    use_page(ctrl, hmb->next, true);
}

/* All pages: a fault handle's way to be sure. */
void hmb_use_all(struct emu_ctrl *ctrl)
{
    struct hmb *hmb = &ctrl->extras.hmb;
    for (uint32_t page = 0; hmb->enabled && page < hmb->n_pages && ctrl->running; page++)
        use_page(ctrl, page, true);
}

/* Addresses and stamps are kept: the host may return the same memory (MR). */
void hmb_reset(struct emu_ctrl *ctrl)
{
    ctrl->extras.hmb.enabled = false;
    ctrl->counters.host_memory_pages = 0;
}

static uint16_t disable(struct emu_ctrl *ctrl)
{
    struct hmb *hmb = &ctrl->extras.hmb;
    for (uint32_t page = 0; hmb->enabled && page < hmb->n_pages && ctrl->running; page++)
        use_page(ctrl, page, false);
    hmb_reset(ctrl);
    return SC_SUCCESS;
}

/* The pages of the descriptor list, at most n, as page addresses. The number of pages, or 0: the
 * list is not valid. */
static uint32_t read_list(struct emu_ctrl *ctrl, uint64_t list, uint32_t entries, uint64_t *pages, uint32_t n)
{
    uint64_t least = (uint64_t)ctrl->config.extras.hmb_entry_nbytes;
    uint32_t found = 0;
    for (uint32_t i = 0; i < entries; i++) {
        const volatile uint64_t *entry = dma(ctrl, list + 16ull * i, 16, false);
        if (!entry)
            return 0;
        uint64_t address = entry[0], count = (uint32_t)entry[1];
        if (!count || address & page_mask(ctrl) || count * ctrl->page_size < least)
            return 0;
        for (uint64_t page = 0; page < count && found < n; page++)
            pages[found++] = address + page * ctrl->page_size;
    }
    return found;
}

static bool accessible(struct emu_ctrl *ctrl, const uint64_t *pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!dma(ctrl, pages[i], ctrl->page_size, true))
            return false;
    return true;
}

uint16_t hmb_set(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    struct hmb *hmb = &ctrl->extras.hmb;
    const struct emu_extras *extras = &ctrl->config.extras;
    uint32_t n = sqe->cdw12, entries = sqe->cdw15;
    uint64_t list = sqe->cdw13 | (uint64_t)sqe->cdw14 << 32;
    if (!(sqe->cdw11 & CDW11_EHM))
        return disable(ctrl);
    if (hmb->enabled)
        return SC_COMMAND_SEQUENCE;
    if (!n || n > MAX_PAGES || (uint64_t)n * ctrl->page_size < extras->hmb_min_nbytes || list & 15 || !entries ||
        (extras->hmb_entries && entries > extras->hmb_entries))
        return SC_INVALID_FIELD;
    uint64_t *pages = calloc(n, sizeof(*pages)), *stamps = calloc(n, sizeof(*stamps));
    uint16_t status = pages && stamps ? SC_SUCCESS : SC_INTERNAL;
    if (!status && (read_list(ctrl, list, entries, pages, n) != n || !accessible(ctrl, pages, n)))
        status = SC_INVALID_FIELD;
    bool same = !status && hmb->n_pages == n && !memcmp(hmb->pages, pages, n * sizeof(*pages));
    if (!status && sqe->cdw11 & CDW11_MR) {
        if (same)
            memcpy(stamps, hmb->stamps, n * sizeof(*stamps));
        else
            status = SC_INVALID_FIELD; /* it isn't what the host had given before */
    }
    if (status) {
        free(pages);
        free(stamps);
        return status;
    }
    uint64_t stamp = hmb->stamp;
    hmb_free(hmb);
    *hmb = (struct hmb){.enabled = true,
                        .pages = pages,
                        .stamps = stamps,
                        .n_pages = n,
                        .stamp = stamp,
                        .list = list,
                        .entries = entries};
    ctrl->counters.host_memory_pages = n;
    return SC_SUCCESS;
}

uint16_t hmb_get(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, bool current, uint32_t *result)
{
    const struct hmb *hmb = &ctrl->extras.hmb;
    uint8_t page[UNIT] = {0};
    *result = current && hmb->enabled;
    if (*result) {
        put32(page, 0, hmb->n_pages);
        put64(page, 4, hmb->list);
        put32(page, 12, hmb->entries);
    }
    return copy_to_host(ctrl, sqe, page, sizeof(page));
}

void hmb_identify(const struct emu_extras *extras, uint8_t *p)
{
    put32(p, 272, (uint32_t)(extras->hmb_nbytes / UNIT));       /* HMPRE */
    put32(p, 276, (uint32_t)(extras->hmb_min_nbytes / UNIT));   /* HMMIN */
    put32(p, 332, extras->hmb_entry_nbytes / UNIT);             /* HMMINDS */
    put16(p, 336, extras->hmb_entries);                         /* HMMAXD */
}
