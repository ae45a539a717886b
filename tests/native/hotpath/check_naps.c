/*
 * Lone commands that are slept for, in virtual time. Not part of any extension;
 * tests/unit/test_napping.py builds and runs it.
 *
 *   check_naps hybrid|adaptive DEVICE JITTER WAKE_UP DELAYED
 *
 * DEVICE + 0 … JITTER: nanoseconds that each command takes. WAKE_UP: from a timer or an
 * interrupt to the thread, and up to a quarter more. DELAYED: of 1000 wake-ups so many take up to
 * 4 ms more, as on a machine whose processors are busy.
 *
 * Prints, of 10 000 commands after as many for learning: the median of how late their completions
 * are seen, naps, nanoseconds of polling, and polls in vain, the last three in all; the learnt
 * time of a command and of waking up, and the longest spin that follows from it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hotpath/waiting.h"

#define COMMANDS 10000
#define BETWEEN_NS 2000 /* from one command's completion to the next one */
#define POSTING_NS 1000

static uint64_t state = 1;

static uint64_t random_below(uint64_t most)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return most ? (state >> 33) % most : 0;
}

struct totals {
    uint64_t naps, polled_ns, vain;
};

/* A nap has ended at `now`. When the completion is seen by polling; 0 = not so. */
static uint64_t poll_after(struct nvw_nap *nap, uint64_t now, uint64_t due, uint64_t done, struct totals *totals)
{
    totals->naps++;
    if (done <= now) {
        nvw_nap_learn(nap, now - (now - due) / 2 - nap->posted_ns, false);
        return now;
    }
    if (nap->probe)
        return 0;
    const uint64_t over = nvw_nap_over(nap, now);
    if (done <= over) {
        totals->polled_ns += done - now;
        nvw_nap_learn(nap, done - nap->posted_ns, false);
        return done;
    }
    totals->polled_ns += over > now ? over - now : 0;
    totals->vain++;
    return 0;
}

static int by_size(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    const bool probes_only = !strcmp(argv[1], "adaptive");
    const uint64_t device = strtoull(argv[2], NULL, 10), jitter = strtoull(argv[3], NULL, 10);
    const uint64_t wake_up = strtoull(argv[4], NULL, 10), delayed = strtoull(argv[5], NULL, 10);
    static uint64_t late[COMMANDS];
    struct nvw_waiting w;
    struct totals totals = {0};
    uint64_t now = 1000000;

    nvw_init(&w, 256);
    w.spin_ns = 20000;
    w.spin_learnt = true;
    for (int i = -COMMANDS; i < COMMANDS; i++) {
        const uint64_t done = now + device + random_below(jitter);
        uint64_t wake = wake_up + random_below(wake_up / 4), seen = 0;
        if (random_below(1000) < delayed)
            wake += random_below(4000000);
        if (!i)
            totals = (struct totals){0};
        nvw_is_out(&w, (uint64_t)(i + COMMANDS), now);
        const uint64_t due = nvw_nap_due(&w.nap, now + POSTING_NS, probes_only);
        if (due && due < done) {
            nvw_nap_woken(&w.nap, wake);
            seen = poll_after(&w.nap, due + wake, due, done, &totals);
        }
        if (!seen) {
            seen = done + wake;
            nvw_nap_learn(&w.nap, seen - w.nap.posted_ns, true);
        }
        if (i >= 0)
            late[i] = seen - done;
        now = seen + BETWEEN_NS;
    }
    qsort(late, COMMANDS, sizeof(late[0]), by_size);
    printf("%llu %llu %llu %llu %llu %llu %llu\n", (unsigned long long)late[COMMANDS / 2],
           (unsigned long long)totals.naps, (unsigned long long)totals.polled_ns, (unsigned long long)totals.vain,
           (unsigned long long)w.nap.mean_ns, (unsigned long long)w.nap.wake_ns,
           (unsigned long long)nvw_spin_limit(&w));
    return 0;
}
