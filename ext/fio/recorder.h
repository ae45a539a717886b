/*
 * What a job did: counts, latencies and queue depths; and when it must stop. One per job, touched
 * by one thread only; others may read single counters.
 *
 * All of this happens once or twice for each I/O, so it is plain stores and no call.
 */
#ifndef NVME_ASYNC_BENCH_RECORDER_H
#define NVME_ASYNC_BENCH_RECORDER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include "generator.h"
#include "common/histogram.h"

enum { MAP_SIZE = 7, CLOCK_EVERY = 32 };

struct log_entry {
    uint64_t time, latency, slat, nbytes, ios, offset; /* latencies: of the I/O, or the window's mean or maximum, ns */
    uint32_t direction;
};

struct io_log {
    bool enabled, keep_max;
    uint64_t window; /* ns; 0: an entry for each I/O */
    uint64_t window_end;
    struct log_entry open[DIRECTIONS]; /* sums of the window that is not over */
    struct log_entry *entries;
    size_t count, capacity;
};

struct recorder {
    bool stop, measuring, timed, histograms;
    uint32_t ticks, in_flight;
    uint64_t now; /* the last clock reading */
    uint64_t armed, measure_from, deadline; /* ns on CLOCK_MONOTONIC */
    uint64_t began; /* the first I/O, or the end of the ramp */
    uint64_t limit_bytes, limit_ios, claimed_bytes, claimed_ios;
    uint64_t ios[DIRECTIONS], nbytes[DIRECTIONS], issued[DIRECTIONS + 1];
    uint64_t depths[MAP_SIZE], submits[MAP_SIZE], completes[MAP_SIZE], submit_calls, complete_calls;
    struct histogram latency[DIRECTIONS + 1]; /* the last is that of flushes */
    struct histogram slat[DIRECTIONS], clat[DIRECTIONS]; /* its two parts, where submission is timed */
    struct io_log log;
};

static inline uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A clock reading when latencies are wanted; otherwise one in CLOCK_EVERY calls, for the time
 * limit. */
static inline uint64_t recorder_clock(struct recorder *r)
{
    if (r->timed || r->ticks++ % CLOCK_EVERY == 0)
        r->now = now_ns();
    return r->now;
}

/* fio's buckets of a queue depth: 1, 2-3, 4-7, … and 64 and more. */
static inline unsigned depth_bucket(uint32_t depth)
{
    unsigned bucket = 31 - __builtin_clz(depth | 1);

    return bucket < MAP_SIZE ? bucket : MAP_SIZE - 1;
}

/* fio's buckets of how many came in one call: none, 1-4, 5-8, 9-16, … and beyond 64. */
static inline unsigned batch_bucket(uint32_t n)
{
    unsigned bucket;

    if (n <= 4)
        return n ? 1 : 0;
    bucket = 31 - __builtin_clz(n - 1);
    return bucket < MAP_SIZE ? bucket : MAP_SIZE - 1;
}

/* May another I/O be started? Takes it from the budget. */
static inline bool recorder_claim(struct recorder *r, struct generator *g, struct io *io, uint64_t now)
{
    if (r->stop || now >= r->deadline || r->claimed_bytes >= r->limit_bytes || r->claimed_ios >= r->limit_ios)
        return false;
    generator_next(g, io);
    r->claimed_bytes += io->nbytes;
    r->claimed_ios++;
    return true;
}

/* Both return 0, or -1 when there is no memory for the log. */
static int log_append(struct io_log *log, const struct log_entry *entry)
{
    if (log->count == log->capacity) {
        size_t capacity = log->capacity ? log->capacity * 2 : 4096;
        struct log_entry *entries = realloc(log->entries, capacity * sizeof *entries);

        if (!entries)
            return -1;
        log->entries = entries;
        log->capacity = capacity;
    }
    log->entries[log->count++] = *entry;
    return 0;
}

static int log_close_window(struct io_log *log)
{
    for (int d = 0; d < DIRECTIONS; d++) {
        struct log_entry *open = &log->open[d];

        if (open->ios) {
            open->time = log->window_end;
            open->direction = d;
            if (!log->keep_max) {
                open->latency /= open->ios;
                open->slat /= open->ios;
            }
            if (log_append(log, open))
                return -1;
        }
        memset(open, 0, sizeof *open);
    }
    return 0;
}

static int log_add(struct io_log *log, const struct io *io, uint64_t latency, uint64_t slat, uint64_t now)
{
    struct log_entry *open = &log->open[io->direction];

    if (!log->window) {
        struct log_entry entry = {now, latency, slat, io->nbytes, 1, io->offset, io->direction};

        return log_append(log, &entry);
    }
    if (now >= log->window_end) {
        if (log_close_window(log))
            return -1;
        log->window_end += ((now - log->window_end) / log->window + 1) * log->window;
    }
    if (!log->keep_max) {
        open->latency += latency;
        open->slat += slat;
    } else {
        open->latency = latency > open->latency ? latency : open->latency;
        open->slat = slat > open->slat ? slat : open->slat;
    }
    open->nbytes += io->nbytes;
    open->ios++;
    return 0;
}

/*
 * The first I/O, or the first one after the ramp. What the ramp did is forgotten only now: a job
 * that ends in its ramp reports it all, as fio does.
 */
static void recorder_measure(struct recorder *r, uint64_t now)
{
    r->measuring = now >= r->measure_from;
    if (r->began && !r->measuring)
        return;
    r->began = r->measuring && r->measure_from > r->armed ? r->measure_from : now;
    r->log.window_end = r->began + r->log.window;
    r->log.count = 0;
    memset(r->log.open, 0, sizeof r->log.open);
    memset(r->ios, 0, sizeof r->ios);
    memset(r->nbytes, 0, sizeof r->nbytes);
    memset(r->issued, 0, sizeof r->issued);
    memset(r->depths, 0, sizeof r->depths);
    memset(r->submits, 0, sizeof r->submits);
    memset(r->completes, 0, sizeof r->completes);
    r->submit_calls = r->complete_calls = 0;
    for (int d = 0; d < DIRECTIONS + 1; d++)
        histogram_clear(&r->latency[d]);
    for (int d = 0; d < DIRECTIONS; d++) {
        histogram_clear(&r->slat[d]);
        histogram_clear(&r->clat[d]);
    }
}

static inline void recorder_start(struct recorder *r, const struct io *io, uint64_t now)
{
    if (__builtin_expect(!r->measuring, 0))
        recorder_measure(r, now);
    r->in_flight++;
    r->issued[io->direction]++;
    r->depths[depth_bucket(r->in_flight)]++;
}

/* An I/O of `r` that came back well, `now`, having been started at `started`; `submitted`: 0 where
 * that is not timed. */
static inline int recorder_finish(struct recorder *r, const struct io *io, uint64_t started, uint64_t submitted,
                                  uint64_t now)
{
    uint64_t slat = submitted ? submitted - started : 0;

    r->in_flight--;
    r->ios[io->direction]++;
    r->nbytes[io->direction] += io->nbytes;
    if (r->timed) {
        if (r->histograms)
            histogram_add_many(&r->latency[io->direction], now - started, 1);
        if (submitted) {
            histogram_add_many(&r->slat[io->direction], slat, 1);
            histogram_add_many(&r->clat[io->direction], now - submitted, 1);
        }
        if (r->log.enabled)
            return log_add(&r->log, io, now - started, slat, now);
    }
    return 0;
}

#endif
