/*
 * When the submission doorbell is rung, if several awaiters send commands in one event-loop
 * iteration: after `at` commands, and after the last one.
 *
 * One doorbell for all is the cheapest, and right for a controller that is busy meanwhile, or so
 * slow that the time in which the host posts does not count. Between the two there is lockstep: the
 * controller is idle while the host posts, and the host waits while the controller works. It is
 * recognized by both halves at once, when the doorbell is about to be rung:
 *
 *     the controller is idle (every command that it knows is complete), and
 *     the host has waited since the last doorbell, for NVW_WAITED_LEAST / 8 to NVW_WAITED_MOST
 *     times as long as posting takes
 *
 *                 lockstep, NVW_LOCKSTEPS times more than not
 *     [at = most] ──────────────────────────────────► [at = half of what was posted, …, least]
 *                 ◄──────────────────────────────────
 *                 none, NVW_CALM times: twice as many; sooner where the host waits for long
 *
 * So it tries again from time to time whether fewer doorbells do as well.
 *
 * Time is counted in polls, not read from a clock: a poll in vain by a coroutine that waits for one
 * iteration costs about NVW_POLL_NS, posting a command about three times as much. What was measured
 * anyway (a spin, a sleep) is converted.
 */
#ifndef NVME_ASYNC_HOTPATH_RINGING_H
#define NVME_ASYNC_HOTPATH_RINGING_H

#include <stdbool.h>
#include <stdint.h>

#define NVW_POLL_NS_BITS 8   /* a poll in vain costs about 256 ns */
#define NVW_WAITED_LEAST 4u  /* eighths of a poll for each posted command: less is no wait */
#define NVW_WAITED_MOST 8u   /* polls for each posted command: the host's posting is a quarter or less of all time */
#define NVW_LOCKSTEPS 4
#define NVW_CALM 256
#define NVW_CALM_SLOW 64     /* so much of it for a doorbell after a long wait */

struct nvw_ringing {
    uint32_t at;          /* ring at once when so many are posted */
    uint32_t least, most; /* limits of `at` */
    uint32_t waited;      /* since the last doorbell, in polls */
    int32_t score;        /* above 0: lockstep, below: calm */
};

/* Rings after `most` commands at first; learns between `least` and `most`. Returns nothing. */
static inline void nvw_ringing_init(struct nvw_ringing *r, uint32_t least, uint32_t most)
{
    *r = (struct nvw_ringing){.at = most, .least = least, .most = most};
}

/* The host waited for `ns` because no completion was there. */
static inline void nvw_waited(struct nvw_ringing *r, uint64_t ns)
{
    const uint64_t polls = r->waited + (ns >> NVW_POLL_NS_BITS);
    r->waited = polls < UINT32_MAX ? (uint32_t)polls : UINT32_MAX;
}

/* The doorbell is about to be rung for `posted` commands. idle: the controller has completed all
 * that it knows of. */
static inline void nvw_ringing_learn(struct nvw_ringing *r, uint32_t posted, bool idle)
{
    const uint64_t waited = r->waited;
    const bool slow = waited > NVW_WAITED_MOST * (uint64_t)posted;
    if (posted < 2 && r->at > 1) /* one of few: says nothing about bursts */
        return;
    r->waited = 0;
    if (idle && !slow && waited * 8 >= NVW_WAITED_LEAST * (uint64_t)posted) {
        if (++r->score >= NVW_LOCKSTEPS) {
            const uint32_t half = (posted < r->at ? posted : r->at) / 2;
            r->score = 0;
            r->at = half > r->least ? half : r->least;
        }
        return;
    }
    r->score -= slow ? NVW_CALM_SLOW : 1;
    if (r->score <= -NVW_CALM) {
        r->score = 0;
        r->at = r->at < r->most / 2 ? r->at * 2 : r->most;
    }
}

#endif
