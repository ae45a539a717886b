/*
 * Naps: a lone command is slept for until shortly before its completion is expected, and then
 * polled for. So the thread wakes up while the controller still works, and not after it.
 *
 *     posted ──────────── asleep ─────────────► timer ─ wakes up ─► [poll] ── answered ──► done
 *        │                                                              in vain: sleep on
 *        └─ expected: mean of recent commands, less their deviation, less what waking up takes
 *
 * The interrupt stays as it is and ends the sleep if it comes first. In hybrid mode each lone
 * command naps whose time is steady. In adaptive mode a nap is only a probe, which measures what
 * waking up takes: from that follows for how long polling is cheaper than a sleep.
 *
 * Mean and deviation are learnt as for the retransmission timer of TCP (RFC 6298).
 *
 * Nothing here reads a clock or touches rings: times are CLOCK_MONOTONIC nanoseconds, given by
 * napping.pxi. Threads: the queue pair's.
 */
#ifndef NVME_ASYNC_HOTPATH_NAPPING_H
#define NVME_ASYNC_HOTPATH_NAPPING_H

#include <stdbool.h>
#include <stdint.h>

#define NVW_NAP_PROBE_MASK 63u /* one nap of so many ends early, and measures */
#define NVW_NAP_LEAST 4000u    /* a shorter one isn't worth its timer */
#define NVW_NAP_SLACK 1000u    /* longer than the deviations explain it is polled for so much */
#define NVW_NAP_DEV_MOST 25000u /* a time that varies by more is not steady */
#define NVW_NAP_POLL_MOST 100000u /* longest poll after a nap */
#define NVW_WORTH_MOST 50000u /* longest time for which polling is worth it */

struct nvw_nap {
    uint64_t mean_ns;   /* from posting a lone command to its completion; 0 = unknown */
    uint64_t dev_ns;    /* mean deviation from that */
    uint64_t wake_ns;   /* from the end of a timer to the first instruction in the thread; 0 = unknown */
    uint64_t posted_ns; /* when the lone command was posted that is waited for */
    uint64_t at;        /* header.submitted then */
    uint64_t due_ns;    /* when the timer ends; 0 = no nap */
    bool probe;         /* it ends early, to measure */
    uint32_t asked;
    uint64_t taken;     /* naps that ended before the command */
};

/* The completion of a lone command has come `ns` after it was posted. slept: by an interrupt, so
 * waking up is a part of it. */
static inline void nvw_nap_learn(struct nvw_nap *nap, uint64_t ns, bool slept)
{
    if (slept)
        ns -= nap->wake_ns < ns / 2 ? nap->wake_ns : ns / 2;
    if (!nap->mean_ns) {
        nap->mean_ns = ns ? ns : 1;
        nap->dev_ns = ns / 2;
        return;
    }
    /* A thread that had to wait for its processor says little about the controller. */
    const uint64_t most = nap->mean_ns + nap->mean_ns / 4 + NVW_NAP_SLACK;
    if (ns > most)
        ns = most;
    const uint64_t off = ns > nap->mean_ns ? ns - nap->mean_ns : nap->mean_ns - ns;
    nap->dev_ns = (nap->dev_ns * 3 + off) >> 2;
    nap->mean_ns = (nap->mean_ns * 7 + ns + 7) >> 3;
}

/* A timer has woken the thread, late_ns after its end. What counts is how long that takes at least,
 * more or less: the rest is time in which others had the processor. */
static inline void nvw_nap_woken(struct nvw_nap *nap, uint64_t late_ns)
{
    if (!nap->wake_ns || late_ns < nap->wake_ns) {
        nap->wake_ns = nap->wake_ns ? (nap->wake_ns + late_ns + 1) / 2 : late_ns + 1;
        return;
    }
    const uint64_t most = nap->wake_ns + nap->wake_ns / 2;
    nap->wake_ns += ((late_ns < most ? late_ns : most) - nap->wake_ns) / 16;
}

/* For so long polling costs no more than a sleep: the time that a sleep adds, and as much again
 * for the processor time that it takes. 0 = unknown. */
static inline uint64_t nvw_worth_polling_ns(const struct nvw_nap *nap)
{
    return 2 * nap->wake_ns < NVW_WORTH_MOST ? 2 * nap->wake_ns : NVW_WORTH_MOST;
}

/* Until when it is polled after a nap that ended at now_ns. */
static inline uint64_t nvw_nap_over(const struct nvw_nap *nap, uint64_t now_ns)
{
    const uint64_t over = nap->posted_ns + nap->mean_ns + 2 * nap->dev_ns + NVW_NAP_SLACK;
    return over < now_ns + NVW_NAP_POLL_MOST ? over : now_ns + NVW_NAP_POLL_MOST;
}

/*
 * The lone command is going to be slept for, now. When is the thread to be woken? 0: by the
 * interrupt alone. probes_only: in adaptive mode.
 *
 * No nap where it would be polled for longer than it is slept for: such commands are polled for
 * from the beginning, if that is worth it.
 */
static inline uint64_t nvw_nap_due(struct nvw_nap *nap, uint64_t now_ns, bool probes_only)
{
    nap->due_ns = 0;
    if (!nap->mean_ns)
        return 0;
    nap->probe = !(nap->asked++ & NVW_NAP_PROBE_MASK) || !nap->wake_ns;
    const uint64_t early = nap->probe ? nap->mean_ns / 4 * 3 : nap->dev_ns + nap->wake_ns + NVW_NAP_SLACK;
    if (!nap->probe && (probes_only || nap->dev_ns > NVW_NAP_DEV_MOST || early > nap->mean_ns / 2))
        return 0;
    if (nap->posted_ns + nap->mean_ns - early < now_ns + NVW_NAP_LEAST)
        return 0;
    return nap->due_ns = nap->posted_ns + nap->mean_ns - early;
}

#endif
