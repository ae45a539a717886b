/* Sanitize (Base 2.1, 5.1.22 and 8.1.24) and its log page: every action erases; an overwrite with
 * no deallocation leaves its pattern. */
#include "nvme_ctrl.h"

enum { EXIT_FAILURE = 1, BLOCK_ERASE = 2, OVERWRITE = 3, CRYPTO_ERASE = 4 };
enum { NEVER = 0, COMPLETED = 1, IN_PROGRESS = 2, FAILED = 3 };
#define AUSE (1u << 3)
#define OIPBP (1u << 8)
#define NDAS (1u << 9)

static uint16_t fill(struct media *media, uint32_t pattern)
{
    uint32_t words[1024];
    for (unsigned i = 0; i < 1024; i++)
        words[i] = pattern;
    for (uint64_t at = 0; at < media->nbytes; at += sizeof(words)) {
        uint64_t left = media->nbytes - at;
        struct iovec iov = {words, left < sizeof(words) ? left : sizeof(words)};
        uint16_t status = media_write(media, at, &iov, 1);
        if (status)
            return status;
    }
    undo_flush(media);
    return SC_SUCCESS;
}

void sanitize_done(struct emu_ctrl *ctrl)
{
    struct sanitize *sanitize = &ctrl->extras.sanitize;
    uint16_t status = SC_SUCCESS;
    bool pattern = (sanitize->cdw10 & 7) == OVERWRITE && sanitize->cdw10 & NDAS;
    unsigned passes = (sanitize->cdw10 >> 4 & 15) ? (sanitize->cdw10 >> 4 & 15) : 16;
    uint32_t last = sanitize->cdw10 & OIPBP && passes % 2 == 0 ? ~sanitize->cdw11 : sanitize->cdw11;
    for (uint32_t nsid = 1; nsid <= EMU_MAX_NAMESPACES && !status; nsid++) {
        struct ns *ns = ns_allocated(ctrl, nsid);
        if (!ns)
            continue;
        status = ns_erase(ns);
        if (!status && pattern)
            status = fill(&ns->media, last);
    }
    sanitize->state = status || sanitize->fails ? FAILED : COMPLETED;
    sanitize->fails = false;
    sanitize->clean = ctrl->blocks_written;
    uint16_t event[4] = {0xffff, sanitize->state};
    persistent_add(ctrl, PEL_SANITIZE_COMPLETION, event, sizeof(event));
    event_post(ctrl, EVENT_IO, IO_EVENT_SANITIZED, LOG_SANITIZE);
}

uint16_t admin_sanitize(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    struct sanitize *sanitize = &ctrl->extras.sanitize;
    uint32_t action = sqe->cdw10 & 7;
    bool restricted = sanitize->state == FAILED && !(sanitize->cdw10 & AUSE);
    ctrl->error_location = 40;
    if (sanitize->state == IN_PROGRESS)
        return SC_SANITIZE_IN_PROGRESS;
    if (action < EXIT_FAILURE || action > CRYPTO_ERASE)
        return SC_INVALID_FIELD;
    if (action == EXIT_FAILURE) {
        if (restricted)
            return SC_SANITIZE_FAILED;
        if (sanitize->state == FAILED)
            sanitize->state = NEVER;
        return SC_SUCCESS;
    }
    if (restricted && sqe->cdw10 & AUSE)
        return SC_SANITIZE_FAILED;
    if (op_active(&ctrl->ops[OP_FORMAT]))
        return SC_FORMAT_IN_PROGRESS;
    if (op_active(&ctrl->ops[OP_SELF_TEST]))
        self_test_end(ctrl, SELF_TEST_ABORTED_SANITIZE);
    sanitize->cdw10 = sqe->cdw10;
    sanitize->cdw11 = sqe->cdw11;
    sanitize->state = IN_PROGRESS;
    uint32_t event[3] = {7, sqe->cdw10, sqe->cdw11};
    persistent_add(ctrl, PEL_SANITIZE_START, event, sizeof(event));
    op_start(&ctrl->ops[OP_SANITIZE], ctrl->config.extras.sanitize_ns);
    return SC_SUCCESS;
}

void sanitize_page(const struct emu_ctrl *ctrl, uint8_t *p)
{
    const struct sanitize *sanitize = &ctrl->extras.sanitize;
    bool busy = sanitize->state == IN_PROGRESS;
    bool erased = sanitize->state == COMPLETED && sanitize->clean == ctrl->blocks_written;
    uint32_t passes = sanitize->cdw10 >> 4 & 15;
    bool overwritten = sanitize->state == COMPLETED && (sanitize->cdw10 & 7) == OVERWRITE;
    put16(p, 0, busy ? (uint16_t)op_parts(&ctrl->ops[OP_SANITIZE], now_ns(), 0xffff) : 0xffff);
    put16(p, 2, (uint16_t)(sanitize->state | (overwritten ? passes << 3 : 0) | (erased ? 1u << 8 : 0)));
    put32(p, 4, sanitize->cdw10);
    uint32_t seconds = (uint32_t)((ctrl->config.extras.sanitize_ns + 999999999) / 1000000000);
    for (unsigned at = 8; at < 32; at += 4)
        put32(p, at, seconds);
}
