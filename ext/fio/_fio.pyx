"""The benchmark's own loop in C: what comes next, what it took, and what data goes out."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

cdef extern from "fio/checksum.h":
    uint32_t _crc32c "crc32c" (uint32_t crc, const unsigned char *p, size_t n, bint software) nogil
    uint64_t _xxh64 "xxh64" (uint64_t seed, const unsigned char *p, size_t n) nogil
    uint64_t _crc64 "crc64" (const unsigned char *p, size_t n) nogil
    unsigned char _crc7 "crc7" (const unsigned char *p, size_t n) nogil
    void _fill_random "fill_random" (unsigned char *p, size_t n, uint64_t key) nogil

cdef extern from "common/histogram.h":
    enum: HISTOGRAM_SIZE
    struct histogram:
        uint64_t count, sum, min, max
        uint64_t *bucket
    void histogram_clear(histogram *h)
    uint64_t histogram_value(unsigned index)
    void histogram_add_many(histogram *h, uint64_t value, uint64_t times)
    void histogram_merge(histogram *into, const histogram *other)
    double histogram_deviation(const histogram *h)

cdef extern from "fio/generator.h":
    enum: DIRECTIONS
    enum: SPLITS
    enum: DIRECTION_READ
    enum: DIRECTION_WRITE
    enum: DIRECTION_TRIM
    enum: DIRECTION_SYNC
    enum io_order:
        ORDER_SEQUENTIAL, ORDER_PERMUTED, ORDER_UNIFORM, ORDER_ZIPF, ORDER_PARETO, ORDER_NORMAL, ORDER_ZONED
    struct io:
        uint64_t offset
        uint32_t nbytes, direction
    struct sizes:
        uint32_t min, max, step, splits
        uint32_t *nbytes
        uint64_t *below
    enum: ZONES
    struct zones:
        uint32_t count
        uint64_t *below
        uint64_t *first
        uint64_t *units
    struct strides:
        uint64_t size, range, stride, start, end
    struct generator:
        sizes *sizes
        io_order order
        bint mixed
        uint32_t direction
        int steer
        uint64_t read_below, start, length, align, units, step, passes
        int64_t skip
        zones zones
        strides strides
        uint32_t run
        uint64_t *random_below
        double parameter
    void generator_start(generator *g, uint64_t seed)
    void generator_next(generator *g, io *io)

cdef extern from "fio/recorder.h":
    enum: MAP_SIZE
    struct log_entry:
        uint64_t time, latency, slat, nbytes, ios, offset
        uint32_t direction
    struct io_log:
        bint enabled, keep_max
        uint64_t window, window_end
        log_entry *entries
        size_t count
    struct recorder:
        bint stop, measuring, timed, histograms
        uint32_t in_flight
        uint64_t now, armed, measure_from, deadline, began, limit_bytes, limit_ios, claimed_bytes, claimed_ios
        uint64_t *ios
        uint64_t *nbytes
        uint64_t *issued
        uint64_t *depths
        uint64_t *submits
        uint64_t *completes
        uint64_t submit_calls, complete_calls
        histogram *latency
        histogram *slat
        histogram *clat
        io_log log
    uint64_t now_ns()
    uint64_t recorder_clock(recorder *r)
    unsigned depth_bucket(uint32_t depth)
    unsigned batch_bucket(uint32_t n)
    bint recorder_claim(recorder *r, generator *g, io *io, uint64_t now)
    void recorder_start(recorder *r, const io *io, uint64_t now)
    int recorder_finish(recorder *r, const io *io, uint64_t started, uint64_t submitted, uint64_t now) except -1
    int log_close_window(io_log *log) except -1

READ, WRITE, TRIM, SYNC = DIRECTION_READ, DIRECTION_WRITE, DIRECTION_TRIM, DIRECTION_SYNC
ORDERS = {
    "sequential": ORDER_SEQUENTIAL, "permuted": ORDER_PERMUTED, "uniform": ORDER_UNIFORM,
    "zipf": ORDER_ZIPF, "pareto": ORDER_PARETO, "normal": ORDER_NORMAL,
    "zoned": ORDER_ZONED,
}
MAX_SPLITS, MAX_ZONES = SPLITS, ZONES

include "data.pxi"
include "histogram.pxi"
include "slot.pxi"
