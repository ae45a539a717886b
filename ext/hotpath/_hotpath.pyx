"""The native hot path: queue pairs in DMA memory, and their awaitable.

Rings, doorbells and PRP lists are inline C (queue.h, prp.h, layout.h); here they meet Python
objects: the waiter for a command, and the buffer it fills. No policy:
nvme_async/driver/queues/loop_queue.py decides the loop, the spin limit and the timeouts.

Threads: a QueuePair belongs to one event loop's thread. Counters may be read from others.

One module in included parts, not a .pyx/.pxd pair for each class: the types of QueuePair, Request,
Batch, Geometry and NamespaceCore need each other, and extension modules whose types need each other
cannot be imported. What needs none of them is a module of its own (_placement), or C (waiting.h,
prp.h, queue.h). docs/design.md has the figures.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.long cimport PyLong_CheckExact
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import asyncio
import os
import sys
from array import array
from collections import deque

cimport cython
from nvme_async.native._mmio cimport Mmio, kick_ring
from nvme_async.native._placement cimport (FT_GLOBAL_LOCK, AddressMap, BounceCache, Mapping, Piece, export_bytes, find_mapping, ft_acquire, ft_release, give_piece, size_class,
                                           take_piece, Scatter)

from nvme_async.errors import ConfigurationError, OutOfDmaMemory

cdef extern from "common/histogram.h":
    enum: HISTOGRAM_SIZE

    struct histogram:
        uint64_t count, sum, min, max
        uint64_t *bucket

    void histogram_clear(histogram *h) nogil
    uint64_t histogram_value(unsigned index) nogil
    double histogram_deviation(const histogram *h) nogil

cdef extern from "hotpath/transport.h":
    const char *NVQ_BINDING

    struct nvq_transport:
        bint (*abandon)(nvq *q, unsigned slot) noexcept

    struct nvq_binding:
        const nvq_transport *transport
        void *link
        nvq **queue

cdef extern from "hotpath/queue.h":
    enum: NVQ_MAGIC, NVQ_LAYOUT_VERSION, NVQ_PAGE, NVQ_MAX_ENTRIES, NVQ_SUMS
    enum: NVQ_FREE, NVQ_ARMED, NVQ_DONE
    enum: NVQ_TO_HOST, NVQ_FROM_HOST, NVQ_BOUNCE, NVQ_ORPHAN, NVQ_ADOPTED, NVQ_INTERNAL, NVQ_DRIVER
    uint64_t NVQ_NO_OFFSET, NVQ_POISON

    struct nvq_sqe:
        uint8_t opcode, flags
        uint16_t cid
        uint32_t nsid, cdw2, cdw3
        uint64_t mptr, prp1, prp2
        uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15

    struct nvq_tracker:
        nvq_sqe sqe
        uint32_t state
        uint16_t cid, flags
        uint64_t position, tag, data_offset
        uint32_t data_nbytes
        uint16_t status, sum
        uint32_t dw0, dw1
        uint64_t epoch

    struct nvq_header:
        uint32_t magic, version
        uint16_t qid, vector
        uint32_t entries, n_trackers, slot_bits, n_reserved
        uint64_t sq_offset, cq_offset, trackers_offset, lists_offset
        uint32_t list_bytes, interrupts, sums
        uint64_t submitted, sq_ringing, sq_rung, reaped, cq_ringing, cq_rung, epoch
        uint64_t n_reaps, n_sq_doorbells, n_cq_doorbells, n_shadow_only, n_errors, n_orphans, n_interrupts, n_spins, n_eager, n_full
        uint64_t n_bounced, max_batch, n_missed

    struct nvq_cqe:
        uint32_t dw0, dw1
        uint16_t sqhd, sqid, cid, status

    struct nvq_strays:
        uint32_t n, n_sqid
        uint16_t cid, sqid

    struct nvq:
        nvq_sqe *sq
        nvq_cqe *cq
        nvq_tracker *trackers
        nvq_header *header
        uint16_t *done_slots
        bint silent
        uint32_t life
        const uint32_t *lent_word
        uint32_t n_free, n_done, entries, sq_tail, cq_head, n_armed, n_unrung, n_unacked, n_trackers, list_bytes
        uint16_t cq_phase, qid, slot_bits
        uint32_t *sq_doorbell
        uint32_t *cq_doorbell
        int kick_fd
        void (*kick)(int fd, const kick_ring *ring) noexcept nogil
        const kick_ring *kick_ring
        uint32_t *sq_shadow
        uint32_t *cq_shadow
        uint32_t *sq_eventidx
        uint32_t *cq_eventidx
        histogram *latency
        nvq_strays strays
        const nvq_transport *transport
        void *link

    uint64_t nvq_layout(nvq_header *h, uint32_t entries, uint32_t n_trackers, uint32_t list_entries) nogil
    int nvq_open(nvq *q, uint8_t *memory, uint64_t iova) nogil
    void nvq_close(nvq *q) nogil
    void nvq_reset(nvq *q) nogil
    void nvq_move_rings(nvq *q, nvq_sqe *sq, nvq_cqe *cq) nogil
    int nvq_take(nvq *q) nogil
    void nvq_put(nvq *q, unsigned slot) nogil
    void nvq_post(nvq *q, unsigned slot) nogil
    void nvq_orphan(nvq_tracker *t) nogil
    bint nvq_stopped(const nvq *q) nogil
    void nvq_silent(nvq *q, bint silent) nogil
    void nvq_choose_ringing(nvq *q) nogil
    void nvq_set_latency(nvq *q, histogram *latency) nogil
    bint nvq_ring_sq(nvq *q) nogil
    bint nvq_ring_cq(nvq *q) nogil
    void nvq_rang_sq(nvq *q) nogil
    void nvq_rang_cq(nvq *q) nogil
    void nvq_rang_sq_to(nvq *q, uint32_t value) nogil
    void nvq_rang_cq_to(nvq *q, uint32_t value) nogil
    void nvq_before_last_poll() nogil
    bint nvq_is_here(const nvq *q) nogil
    bint nvq_pending(const nvq *q) nogil
    bint nvq_pending_for(const nvq *q, bint due) nogil
    bint nvq_shares_polls(const nvq *q) nogil
    bint nvq_is_idle(const nvq *q) nogil
    uint32_t nvq_usable(const nvq *q) nogil
    uint64_t nvq_layout_of(nvq_header *h, uint32_t entries, uint32_t n_trackers, uint32_t list_bytes) nogil
    void nvq_disown(nvq *q, uint8_t *memory) nogil
    bint nvq_completion_at(const nvq *q, uint64_t position, nvq_cqe *copy) nogil
    unsigned nvq_reap(nvq *q, unsigned limit) nogil
    uint64_t *nvq_list(nvq *q, unsigned slot) nogil
    uint64_t nvq_list_iova(const nvq *q, unsigned slot) nogil
    uint64_t nvq_now_ns() nogil
    void nvq_relax() nogil
    int prp_build(uint64_t *prp, uint64_t iova, uint64_t nbytes, uint64_t *list, uint64_t list_iova, uint32_t list_bytes) nogil
    uint32_t prp_list_bytes(uint32_t entries) nogil

cdef extern from "hotpath/sgl.h":
    enum: NVQ_PSDT, NVQ_PSDT_SGL

    struct nvq_sgl:
        uint64_t address
        uint32_t length

    uint32_t nvq_sgl_room(uint32_t list_bytes) nogil
    nvq_sgl *nvq_sgl_at(uint64_t *list, uint32_t i) nogil
    void nvq_sgl_segment(nvq_sqe *sqe, uint64_t *list, uint64_t list_iova, uint32_t list_bytes, uint32_t n) nogil
    void nvq_sgl_block(nvq_sqe *sqe, uint64_t iova, uint32_t nbytes) nogil
    uint32_t nvq_sgl_count(const nvq_sqe *sqe) nogil
    uint32_t nvq_sgl_used(const nvq_sqe *sqe, const uint64_t *list, uint32_t list_bytes) nogil
    void nvq_sgl_metadata(nvq_sqe *sqe, uint64_t *list, uint64_t list_iova, uint32_t list_bytes, uint32_t n, uint64_t iova,
                          uint32_t nbytes) nogil

cdef extern from "hotpath/defuse.h":
    void nvd_defuse(nvq *q, unsigned slot) nogil

cdef extern from "hotpath/short.h":
    void nvs_set_mark(uint64_t mark) nogil
    void nvs_prepare(uint8_t *data, uint64_t nbytes) nogil
    uint16_t nvs_finish(uint8_t *data, uint64_t nbytes) nogil

cdef extern from "hotpath/adopt.h":
    enum: NVQ_ERROR_BYTES

    struct nvq_measure:
        uint64_t pool_iova, pool_nbytes, max_transfer
        bint sums
        uint64_t *scratch

    struct nvq_found:
        uint32_t in_flight, done, unsent
        bint skip_cqe, unrung, uncertain

    struct nvq_frozen:
        uint8_t *copy

    int nvq_check_header(const nvq_header *h, uint64_t nbytes, uint16_t qid, char *error) nogil
    int nvq_inspect(const nvq *q, const nvq_measure *m, nvq_found *found, char *error) nogil
    void nvq_adopt(nvq *q, const nvq_measure *m, const nvq_found *found) nogil
    bint nvq_has_data(const nvq_tracker *t) nogil
    int nvq_take_reserved(nvq *q) nogil
    void nvq_retire(nvq *q, unsigned slot) nogil
    bint nvq_ring_sq_surely(nvq *q) nogil
    bint nvq_cq_must_ring(const nvq *q) nogil
    bint nvq_ring_cq_surely(nvq *q) nogil
    int nvq_freeze(nvq *q, nvq_frozen *frozen) nogil
    void nvq_thaw(nvq *q, nvq_frozen *frozen) nogil

cdef extern from "device/kick.h":
    void kick_prepare()
    void kick_eventfd(int fd, const kick_ring *ring) noexcept nogil

cdef extern from "hotpath/send.h":
    void nva_request_install(object type_, void *impl)
    void nva_batch_install(object type_, void *impl)

cdef extern from "hotpath/collect.h":
    void nva_traverse_install(object type_, size_t waiters_at, size_t count_at)

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

cdef extern from "Python.h":
    int PyErr_WarnEx(object category, const char *message, Py_ssize_t stack_level) noexcept
    void PyErr_WriteUnraisable(object where) noexcept

cdef extern from "<unistd.h>" nogil:
    ssize_t c_read "read"(int fd, void *buf, size_t n)

nvs_set_mark(int.from_bytes(os.urandom(8), "little"))

include "waiting.pxi"
include "request.pxi"
include "batch.pxi"
include "stream.pxi"
include "rings.pxi"
include "waits.pxi"
include "shared_waits.pxi"
include "queue_pair.pxi"
include "sending.pxi"
include "sgl.pxi"
include "turns.pxi"
include "delivering.pxi"
include "delaying.pxi"
include "sleeping.pxi"
include "leaving.pxi"
include "starving.pxi"
include "fusing.pxi"
include "reset.pxi"
include "adopt.pxi"
include "geometry.pxi"
include "namespace.pxi"
