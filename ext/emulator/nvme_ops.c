/*
 * Operations that take their time: Format, sanitize, self-test. Each has an end time; the clock
 * gives the progress. They continue across Controller Level Resets, as on a drive (Base 2.1,
 * 5.1.10, 5.1.22).
 */
#include "nvme_ctrl.h"

void op_start(struct op *op, uint64_t duration)
{
    op->started = now_ns();
    op->due = op->started + (duration ? duration : 1);
}

bool op_active(const struct op *op)
{
    return op->due;
}

/* Progress in units of 1/of: 0 to of - 1 while it is in progress. */
uint32_t op_parts(const struct op *op, uint64_t now, uint32_t of)
{
    if (!op->due)
        return of;
    if (now >= op->due)
        return of - 1;
    return (uint32_t)((double)(now - op->started) * of / (double)(op->due - op->started));
}

uint64_t ops_deadline(const struct emu_ctrl *ctrl)
{
    uint64_t deadline = UINT64_MAX;
    for (unsigned i = 0; i < N_OPS; i++)
        if (ctrl->ops[i].due && ctrl->ops[i].due < deadline)
            deadline = ctrl->ops[i].due;
    return deadline;
}

unsigned ops_tick(struct emu_ctrl *ctrl, uint64_t now)
{
    unsigned work = 0;
    for (unsigned i = 0; i < N_OPS; i++) {
        if (!ctrl->ops[i].due || now < ctrl->ops[i].due)
            continue;
        ctrl->ops[i] = (struct op){0};
        work++;
        if (i == OP_FORMAT)
            format_done(ctrl);
        else if (i == OP_SELF_TEST)
            self_test_end(ctrl, 0);
        else
            sanitize_done(ctrl);
    }
    return work;
}
