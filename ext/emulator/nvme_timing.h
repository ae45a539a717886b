/*
 * How long commands take: a queueing model of a flash drive. Included by nvme_ctrl.h.
 *
 *     arrival ──► [link: one command at a time, ──► [channels: each works on one ──► completion
 *                  nbytes / bandwidth]               command, latency + 0 … jitter]
 *
 * Both queues are first come, first served, and the channel that is free first takes the next
 * command. So the drive completes channels / (latency + jitter / 2) commands a second at most, and
 * moves `bandwidth` bytes a second at most. A read's data really pass the link last; the order
 * changes neither the rates nor the time that one command takes, and so the times are known at
 * arrival.
 *
 * Read, Write, Compare, Zone Append, Verify and Write Zeroes take that time if they succeed; the
 * last two occupy a channel only. All others complete at once, and so do commands that a fault rule
 * applies to. The command is executed when it arrives: only its completion is late.
 */
#ifndef NVME_ASYNC_EMULATOR_NVME_TIMING_H
#define NVME_ASYNC_EMULATOR_NVME_TIMING_H

/* When each becomes free: CLOCK_MONOTONIC nanoseconds. */
struct timing {
    uint64_t link;
    uint64_t channels[EMU_MAX_CHANNELS];
    uint64_t random; /* state of the jitter: the same sequence in each run */
};

/* When a command that arrives at `now` and moves nbytes will be complete. */
uint64_t timing_completion(struct timing *timing, const struct emu_timing *model, uint64_t now, uint64_t nbytes);

/* A command has succeeded: true if its completion is held back until its time. */
bool timing_hold(struct emu_ctrl *ctrl, struct sq *sq, const struct nvme_sqe *sqe, uint32_t result);

#endif
