/* Device Self-test (Base 2.1, 5.1.5) and its log page (5.1.12.1.7). */
#include "nvme_ctrl.h"

enum { STC_SHORT = 1, STC_EXTENDED = 2, STC_ABORT = 15 };

/* Ends the self-test in progress, with that result. */
void self_test_end(struct emu_ctrl *ctrl, uint8_t result)
{
    struct self_test *test = &ctrl->extras.self_test;
    uint8_t *at = test->results[0];
    memmove(test->results[1], test->results[0], sizeof(test->results) - sizeof(test->results[0]));
    memset(at, 0, sizeof(test->results[0]));
    at[0] = (uint8_t)(test->code << 4 | result);
    put64(at, 4, (now_ns() - ctrl->power_on_at) / 3600000000000ull);
    if (test->nsid) {
        at[2] = 1; /* the NSID is valid */
        put32(at, 12, test->nsid);
    }
    test->n += test->n < 20;
    ctrl->ops[OP_SELF_TEST] = (struct op){0};
    test->code = 0;
}

uint16_t admin_self_test(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe)
{
    struct self_test *test = &ctrl->extras.self_test;
    uint8_t code = sqe->cdw10 & 15;
    ctrl->error_location = 40;
    if (code == STC_ABORT) {
        if (op_active(&ctrl->ops[OP_SELF_TEST]))
            self_test_end(ctrl, SELF_TEST_ABORTED);
        return SC_SUCCESS;
    }
    if (code != STC_SHORT && code != STC_EXTENDED)
        return SC_INVALID_FIELD;
    if (op_active(&ctrl->ops[OP_SELF_TEST]))
        return SC_SELF_TEST_IN_PROGRESS;
    if (sqe->nsid && sqe->nsid != NSID_ALL) {
        struct ns *ns;
        uint16_t status = ns_find(ctrl, sqe->nsid, &ns);
        if (status)
            return status;
    }
    test->code = code;
    test->nsid = sqe->nsid;
    op_start(&ctrl->ops[OP_SELF_TEST], ctrl->config.extras.self_test_ns << (code == STC_EXTENDED));
    return SC_SUCCESS;
}

void self_test_page(const struct emu_ctrl *ctrl, uint8_t *p)
{
    const struct self_test *test = &ctrl->extras.self_test;
    p[0] = test->code;
    p[1] = test->code ? (uint8_t)op_parts(&ctrl->ops[OP_SELF_TEST], now_ns(), 100) : 0;
    memcpy(p + 4, test->results, sizeof(test->results));
    for (unsigned i = test->n; i < 20; i++)
        p[4 + 28 * i] = 0xf; /* not used */
}
