/*
 * Operations that take their time: Format, sanitize, self-test. Each is a time at which it is over; how far it has come is a matter
 * of the clock. They go on over Controller Level Resets, as a drive's do (Base 2.1, 5.1.10, 5.1.22).
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

/* How much is done: 0 to 99 while it is under way. */
unsigned op_percent(const struct op *op, uint64_t now)
{
    if (!op->due)
        return 100;
    if (now >= op->due)
        return 99;
    return (unsigned)((now - op->started) * 100 / (op->due - op->started));
}

uint64_t ops_deadline(const struct emu_ctrl *ctrl)
{
    return ctrl->format_op.due ? ctrl->format_op.due : UINT64_MAX;
}

unsigned ops_tick(struct emu_ctrl *ctrl, uint64_t now)
{
    if (!ctrl->format_op.due || now < ctrl->format_op.due)
        return 0;
    ctrl->format_op = (struct op){0};
    format_done(ctrl);
    return 1;
}
