/* The telemetry log pages (Base 2.1, 5.1.12.1.8 and 5.1.12.1.9). They hold a pattern that contains
 * generation and block. */
#include <stdio.h>
#include <stdlib.h>

#include "nvme_ctrl.h"

#define BLOCK 512u
#define AREA1 2u /* last block of data area 1, 2 and 3 */
#define AREA2 5u
#define AREA3 10u

/* What the controller records when it fails. */
void telemetry_fatal(struct emu_ctrl *ctrl)
{
    struct telemetry *telemetry = &ctrl->extras.telemetry;
    if (!ctrl->config.extras.telemetry)
        return;
    telemetry->controller_generation++;
    telemetry->available = true;
}

uint8_t *telemetry_page(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes)
{
    struct telemetry *telemetry = &ctrl->extras.telemetry;
    bool host = (sqe->cdw10 & 0xff) == LOG_TELEMETRY_HOST, retain = sqe->cdw10 & 1u << 15;
    uint8_t *page = calloc(AREA3 + 1, BLOCK);
    if (!page)
        return NULL;
    *nbytes = (AREA3 + 1) * BLOCK;
    if (host && sqe->cdw10 & 1u << 8) { /* LSP: create */
        telemetry->host_generation++;
        persistent_add(ctrl, PEL_TELEMETRY, page, BLOCK);
    }
    bool empty = !host && !telemetry->available;
    uint8_t generation = host ? telemetry->host_generation : telemetry->controller_generation;
    page[0] = host ? LOG_TELEMETRY_HOST : LOG_TELEMETRY_CONTROLLER;
    put16(page, 8, empty ? 0 : AREA1);
    put16(page, 10, empty ? 0 : AREA2);
    put16(page, 12, empty ? 0 : AREA3);
    page[381] = telemetry->host_generation;
    page[382] = telemetry->available;
    page[383] = telemetry->controller_generation;
    if (!host)
        snprintf((char *)page + 384, 128, "%.127s", ctrl->message);
    for (unsigned block = 1; block <= AREA3 && !empty; block++)
        for (unsigned i = 0; i < BLOCK; i += 4)
            put32(page, block * BLOCK + i, (uint32_t)generation << 24 | block << 16 | i);
    /* Reading all of it with RAE cleared releases it. */
    uint64_t offset = (uint64_t)sqe->cdw13 << 32 | sqe->cdw12;
    if (!host && !retain && offset == 0)
        telemetry->available = false;
    return page;
}
