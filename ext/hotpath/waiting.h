/*
 * How the completion of a command is waited for: the policy, and the learned state, of one queue
 * pair.
 *
 *     posted ──► [spin]  within the spin budget ── answered ──► done at once, if there is eager
 *                   │                                           credit left, else one event-loop
 *                   │ no budget, or over                        iteration later
 *                   ▼
 *                [yield] up to NVW_YIELDS iterations, ───────── answered ──► done; yield score + 1
 *                   │    if the yield score is above 0,
 *                   │    or as a probe (1 of 64)
 *                   │ in vain: yield score - 16
 *                   ▼
 *                [last poll] acknowledge, poll once more ────── answered ──► done
 *                   │
 *                   ▼
 *                [asleep] on a Future ── interrupt ──► done
 *                                     ── the end of a nap (napping.h), and a poll ──► done
 *                                     ── early poll (1, 4, 16 … ms; at once and for NVW_POLLED_NS,
 *                                        if interrupts have come late or not at all of late) ──►
 *                                        done
 *
 * In poll mode a callback polls on each iteration instead of [asleep]; in interrupt mode only [last
 * poll] and [asleep] are left. A batch has one await for many commands: it pumps (spin, within a
 * budget of its own), and sleeps when nothing comes.
 *
 * It is in C, not in Python, because every command uses it; the values that a user may choose are
 * Options (mode, spin_us), the others are constants here. Nothing here touches rings or objects:
 * functions say what to do, waiting.pxi and request.pxi do it.
 *
 * Threads: the queue pair's, as everything of it.
 */
#ifndef NVME_ASYNC_HOTPATH_WAITING_H
#define NVME_ASYNC_HOTPATH_WAITING_H

#include "napping.h"
#include "ringing.h"

enum nvw_mode {
    NVW_POLL = 0,      /* completions are polled for on each event-loop iteration */
    NVW_INTERRUPT = 1, /* only when the vector's eventfd says so */
    NVW_ADAPTIVE = 2,  /* both: a bounded spin and a few iterations, else the eventfd */
    NVW_HYBRID = 3,    /* as adaptive, but lone commands that are slept for nap (napping.h) */
};

#define NVW_EAGER_IN_A_ROW 32u /* completions without suspending, before other tasks of the loop get their turn */
#define NVW_EAGER_NS_BITS 12   /* a spin counts as one more for each 4096 ns: 131 us in a row at most, and one spin */
#define NVW_RING_LEAST 1u /* commands for one doorbell, where controller and host are in lockstep (ringing.h) */
#define NVW_RING_MOST 64u /* and elsewhere, within one iteration */
#define NVW_SHARED 8u /* polls by all waiters in one iteration, where a poll is a system call */
#define NVW_YIELDS 6           /* iterations that a command waits for without a Future */
#define NVW_MAX_SCORE 64
#define NVW_PROBE_MASK 63u     /* what isn't worth it is tried once in 64 times all the same */
#define NVW_DISTRUST \
    4 /* so many more sleeps ended by early polls than by interrupts: it is polled at the beginning of a sleep */
#define NVW_MAX_DISTRUST 8
#define NVW_POLLED_NS 2000000 /* for so long, and then the early polls are left */

/*
 * A spin budget: how long to spin for a completion before doing something else. Learnt: twice what
 * it took of late until one came, and no more than limit_ns. Where that was never enough there is
 * no spin at all, but for a probe; a probe that finds something is followed by a spin, so that a
 * few long waits don't make it sleep for hundreds of short ones.
 */
struct nvw_budget {
    uint64_t limit_ns;
    uint64_t gap_ns; /* of recent waits; for a spin in vain its caller says what to count it as */
    uint32_t asked;
};

/* Nanoseconds; 0: don't spin. Called before each spin. */
static inline uint64_t nvw_budget_ns(struct nvw_budget *b)
{
    if (b->gap_ns > b->limit_ns)
        return ++b->asked & NVW_PROBE_MASK ? 0 : b->limit_ns;
    const uint64_t enough = 2 * b->gap_ns + 2000;
    return enough < b->limit_ns ? enough : b->limit_ns;
}

/* Called after each spin, with what it took. */
static inline void nvw_budget_learn(struct nvw_budget *b, uint64_t ns)
{
    if (ns <= b->limit_ns && b->gap_ns > b->limit_ns)
        b->gap_ns = b->limit_ns;
    b->gap_ns = (b->gap_ns * 7 + ns) >> 3;
}

/* Called instead if nothing came within `bound`. Most waits that are longer than a short bound are
 * not much longer; one that is longer than the limit is no reason to stop at once. */
static inline void nvw_budget_in_vain(struct nvw_budget *b, uint64_t bound)
{
    const uint64_t ns = 4 * bound;
    nvw_budget_learn(b, ns < 2 * b->limit_ns ? ns : 2 * b->limit_ns);
}

struct nvw_waiting {
    /* Chosen from outside. */
    int mode; /* enum nvw_mode */
    uint64_t spin_ns; /* longest spin; 0 = one poll */
    bool spin_learnt; /* it is longer where a sleep costs more than that */
    uint32_t reap_limit; /* completions handled in one go, before other tasks of the loop get their turn */
    uint32_t ack_limit; /* CQEs taken before the CQ doorbell is rung while nothing sleeps */

    /* Bursts: several awaiters get their results in one iteration, and each is likely to send its
     * next command. The last one rings for all. */
    uint32_t due; /* results that are here, and whose awaiters have not come for them yet */
    bool burst_over; /* the last of those has come, and nothing was rung since */
    struct nvw_ringing ringing; /* whether it is rung earlier, too */

    uint32_t unpolled; /* waiters that have left it to others, since one of them has polled */

    /* Turns for other tasks of the loop. */
    uint32_t eager; /* credit: completions without suspending that are left */
    uint64_t pumped_ns; /* for so long batches have pumped without a turn for others */

    /* Yield score: above 0, recent commands completed within a few iterations. */
    int yield_score;
    uint32_t yields_asked;

    struct nvw_budget lone; /* for the answer to a lone command */
    struct nvw_budget next; /* for the next of several, where iterations are too short to wait for one */
    struct nvw_budget batch; /* for the next of a batch */
    struct nvw_nap nap; /* of a lone command */

    /* Callbacks that the loop will call. */
    bool flush_planned; /* rings for what is posted, and acknowledges */
    bool poll_planned;

    /* Sleeps. */
    bool guarded; /* early polls go on, until nothing is out */
    bool patient; /* the last early poll found nothing: the next one is further off than for a sleep that begins */
    bool suspicious; /* the last early poll found completions, and no interrupt has come since */
    uint64_t guarded_reaped; /* header.reaped at the last early poll */
    uint32_t distrust; /* + 1 for each sleep that an early poll ended, - 1 for each interrupt that found completions */
    uint32_t distrusted; /* sleeps that began with distrust */
    uint64_t polled_until; /* a sleep's first time, in which it is polled for; 0 = not */
    uint64_t asleep_ns; /* when the last sleep began; 0 = it has ended, or is not measured */
    uint64_t asleep_at; /* header.submitted + header.reaped then */
};

/* The state of a new queue pair with that many entries. */
static inline void nvw_init(struct nvw_waiting *w, uint32_t entries)
{
    *w = (struct nvw_waiting){
        .mode = NVW_ADAPTIVE,
        .reap_limit = 256,
        .ack_limit = entries >= 16 ? entries / 8 : 1,
        .eager = NVW_EAGER_IN_A_ROW,
        .yield_score = NVW_MAX_SCORE / 2,
    };
    nvw_ringing_init(&w->ringing, NVW_RING_LEAST, NVW_RING_MOST);
}

/* The longest spin for a completion. */
static inline uint64_t nvw_spin_limit(const struct nvw_waiting *w)
{
    const uint64_t worth = nvw_worth_polling_ns(&w->nap);
    return w->spin_learnt && worth > w->spin_ns ? worth : w->spin_ns;
}

/* Is it known that spinning for a lone command is in vain? */
static inline bool nvw_is_slow(const struct nvw_waiting *w)
{
    return w->nap.wake_ns && w->nap.mean_ns > nvw_spin_limit(w) + nvw_spin_limit(w) / 2;
}

/* A lone command was posted at posted_ns, and is not answered yet. `at`: header.submitted. */
static inline void nvw_is_out(struct nvw_waiting *w, uint64_t at, uint64_t posted_ns)
{
    w->nap.posted_ns = posted_ns;
    w->nap.at = at;
}

/* A completion is here at once after a spin of spun_ns. May its awaiter go on without suspending?
 * Otherwise it has to let others have their turn first, and the credit is new then. */
static inline bool nvw_eager(struct nvw_waiting *w, uint64_t spun_ns)
{
    if (!w->eager) {
        w->eager = NVW_EAGER_IN_A_ROW;
        return false;
    }
    const uint64_t cost = 1 + (spun_ns >> NVW_EAGER_NS_BITS);
    w->eager = cost < w->eager ? w->eager - (uint32_t)cost : 0;
    return true;
}

/* A command is out and not answered: for how many iterations may it wait without a Future? */
static inline unsigned nvw_yields(struct nvw_waiting *w)
{
    return ++w->yields_asked, w->yield_score || !(w->yields_asked & NVW_PROBE_MASK) ? NVW_YIELDS : 0;
}

/* One of `out` waiters has its turn. Should it poll for all, if they share polls (transport.h)? */
static inline bool nvw_polls(struct nvw_waiting *w, uint32_t out)
{
    if (++w->unpolled * NVW_SHARED < out)
        return false;
    w->unpolled = 0;
    return true;
}

/* All of them went by in vain. */
static inline void nvw_yielded_in_vain(struct nvw_waiting *w)
{
    w->yield_score = w->yield_score > 16 ? w->yield_score - 16 : 0;
}

/* An awaiter has come for its result; yielding: after iterations, and before they were over. */
static inline void nvw_came(struct nvw_waiting *w, bool yielding)
{
    if (yielding && w->yield_score < NVW_MAX_SCORE)
        w->yield_score++;
    if (w->due) {
        w->due--;
        w->burst_over = w->due == 0;
    }
}

/* A sleep begins, at now_ns, in adaptive mode and where interrupts are distrusted. Is it polled for
 * at first? Not for a probe: should an interrupts end such ones, they are trusted again. */
static inline bool nvw_poll_first(struct nvw_waiting *w, uint64_t now_ns)
{
    if (!(++w->distrusted & NVW_PROBE_MASK))
        return false;
    w->polled_until = now_ns + NVW_POLLED_NS;
    return true;
}

/* Everything that was posted has been rung for, and its last waiter goes to sleep. `at`:
 * header.submitted + header.reaped, both of which only grow. */
static inline void nvw_falls_asleep(struct nvw_waiting *w, uint64_t at, uint64_t now_ns)
{
    w->asleep_ns = now_ns;
    w->asleep_at = at;
}

/* Completions have ended a sleep, in which nothing was posted or reaped. */
static inline void nvw_slept(struct nvw_waiting *w, uint64_t ns)
{
    nvw_waited(&w->ringing, ns);
}

/* A sleep ended, by an early poll that no interrupt preceded. */
static inline void nvw_missed(struct nvw_waiting *w)
{
    w->suspicious = true;
    w->distrust += w->distrust < NVW_MAX_DISTRUST;
}

/* An interrupt came, and found completions. */
static inline void nvw_interrupted(struct nvw_waiting *w)
{
    w->distrust -= w->distrust > 0;
}

#endif
