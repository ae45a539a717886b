"""ublk: commands to /dev/ublk-control, and one queue of a device as a source of commands. See
ublk_control.h and ublk_queue.h for how they work, _ublk.pyi for the contract.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import os

cimport cython

cdef extern from "hotpath/layout.h" nogil:
    const uint64_t NVQ_NO_OFFSET

cdef extern from "hotpath/source.h" nogil:
    const char *NVQ_SOURCE

    struct nvq_source:
        uint32_t n_cells

    uint32_t nvq_source_out(const nvq_source *source)

cdef extern from "kernel/ring.h" nogil:
    struct ring:
        int fd
        uint64_t enters, submitted, completed

cdef extern from "ublk/ublk_abi.h" nogil:
    struct ublk_device_info:
        uint16_t nr_hw_queues, queue_depth, state
        uint32_t max_io_buf_bytes, dev_id
        int32_t ublksrv_pid
        uint64_t flags, ublksrv_flags
        uint32_t owner_uid, owner_gid

    struct ublk_basic:
        uint32_t attrs
        uint8_t logical_bs_shift, physical_bs_shift, io_opt_shift, io_min_shift
        uint32_t max_sectors, chunk_sectors
        uint64_t dev_sectors

    struct ublk_discard:
        uint32_t granularity, max_sectors, max_write_zeroes_sectors
        uint16_t max_segments

    struct ublk_parameters:
        uint32_t len, types
        ublk_basic basic
        ublk_discard discard

    enum: UBLK_PARAM_BASIC, UBLK_PARAM_DISCARD

cdef extern from "ublk/ublk_control.h" nogil:
    enum: UBLK_CONTROL_BUFFER

    struct ublk_control:
        bint stuck
        uint8_t *buffer

    int ublk_control_open(ublk_control *control, int fd)
    void ublk_control_close(ublk_control *control)
    int ublk_control_send(ublk_control *control, unsigned command, bint legacy, uint32_t dev_id, uint64_t data, uint16_t len,
                          int limit_ms)

cdef extern from "ublk/ublk_queue.h" nogil:
    struct ublk_geometry:
        uint64_t nbytes
        uint32_t nsid, block_shift, zero_blocks, discard_blocks, cell_nbytes
        bint read_only, legacy

    struct ublk_counters:
        uint64_t requests, reads, writes, flushes, discards, zeroes, errors, bytes_read, bytes_written, refetched

    struct ublk_queue:
        nvq_source source
        ring ring
        bint fetching, leaving, aborted
        const char *why
        int why_errno
        uint32_t n_active
        ublk_counters counters

    int ublk_queue_init(ublk_queue *u, const ublk_geometry *g, int fd, uint16_t number, uint8_t *memory, uint64_t iova,
                        uint64_t offset, uint32_t n_tags)
    void ublk_queue_resize(ublk_queue *u, uint64_t nbytes)
    void ublk_queue_close(ublk_queue *u)
    void ublk_queue_free(ublk_queue *u)
    void ublk_queue_forget(ublk_queue *u)
    void ublk_set_mark(uint64_t mark)
    int ublk_error_of(uint16_t status)

ublk_set_mark(int.from_bytes(os.urandom(8), "little"))


def error_of(uint16_t status):
    return -ublk_error_of(status)


def device_info(*, uint16_t queues, uint16_t depth, uint32_t max_io_bytes, uint32_t device, int32_t pid, uint64_t flags, uint64_t mark):
    cdef ublk_device_info info
    memset(&info, 0, sizeof(info))
    info.nr_hw_queues, info.queue_depth, info.max_io_buf_bytes = queues, depth, max_io_bytes
    info.dev_id, info.ublksrv_pid, info.flags, info.ublksrv_flags = device, pid, flags, mark
    return (<uint8_t *>&info)[: sizeof(info)]


def parse_device_info(bytes data):
    cdef ublk_device_info info
    if len(data) != sizeof(info):
        raise ValueError(f"{len(data)} bytes, not the {sizeof(info)} of a device's information")
    memcpy(&info, <const char *>data, sizeof(info))
    return {
        "queues": info.nr_hw_queues, "depth": info.queue_depth, "state": info.state, "max_io_bytes": info.max_io_buf_bytes,
        "device": info.dev_id, "pid": info.ublksrv_pid, "flags": info.flags, "mark": info.ublksrv_flags,
    }


def parameters(*, uint32_t attributes, uint8_t block_shift, uint8_t physical_shift, uint8_t optimal_shift, uint32_t max_sectors,
               uint64_t sectors, uint32_t discard_granularity, uint32_t discard_sectors, uint32_t zero_sectors):
    cdef ublk_parameters p
    memset(&p, 0, sizeof(p))
    p.len, p.types = sizeof(p), UBLK_PARAM_BASIC
    p.basic.attrs, p.basic.max_sectors, p.basic.dev_sectors = attributes, max_sectors, sectors
    p.basic.logical_bs_shift, p.basic.physical_bs_shift = block_shift, physical_shift
    p.basic.io_min_shift, p.basic.io_opt_shift = physical_shift, optimal_shift
    if discard_sectors or zero_sectors:
        p.types |= UBLK_PARAM_DISCARD
        p.discard.granularity, p.discard.max_sectors = discard_granularity, discard_sectors
        p.discard.max_write_zeroes_sectors, p.discard.max_segments = zero_sectors, 1
    return (<uint8_t *>&p)[: sizeof(p)]


@cython.no_gc_clear
@cython.final
cdef class Control:
    cdef ublk_control *control
    cdef object file

    def __cinit__(self, file):
        self.control = <ublk_control *>calloc(1, sizeof(ublk_control))
        if self.control == NULL:
            raise MemoryError()
        cdef int result = ublk_control_open(self.control, file.fileno())
        if result:
            free(self.control)
            self.control = NULL
            raise OSError(-result, os.strerror(-result), "io_uring")
        self.file = file

    def __dealloc__(self):
        if self.control != NULL and not self.control.stuck:  # otherwise the kernel may still write to it
            ublk_control_close(self.control)
            free(self.control)

    def send(self, unsigned command, uint32_t device, *, uint64_t data=0, bytes buffer=b"", bint legacy=False, int limit_ms=10_000):
        cdef int result
        cdef uint16_t length
        if len(buffer) > UBLK_CONTROL_BUFFER:
            raise ValueError(f"a buffer of {len(buffer)} bytes is over {UBLK_CONTROL_BUFFER}")
        if self.control.stuck:
            raise TimeoutError("an earlier command has not come back")
        length = <uint16_t>len(buffer)
        memcpy(self.control.buffer, <const char *>buffer, length)
        with nogil:
            result = ublk_control_send(self.control, command, legacy, device, data, length, limit_ms)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return self.control.buffer[:length]


@cython.no_gc_clear
@cython.final
cdef class Queue:
    cdef ublk_queue u
    cdef Py_buffer view
    cdef bint has_view
    cdef readonly object source

    def __cinit__(self, int fd, memory, *, uint16_t number, iova, offset, uint32_t depth, uint32_t cell_nbytes, uint64_t nbytes,
                  uint32_t nsid, uint32_t block_size, uint32_t zero_blocks, uint32_t discard_blocks, bint read_only, bint legacy):
        cdef ublk_geometry g
        cdef uint32_t shift = 0
        self.u.ring.fd = -1
        while <uint64_t>1 << shift < block_size:
            shift += 1
        if block_size != 1 << shift or cell_nbytes % block_size or cell_nbytes < block_size or cell_nbytes & 4095:
            raise ValueError(f"buffers of {cell_nbytes} bytes don't hold blocks of {block_size}")
        if not 1 <= depth <= 4096:
            raise ValueError(f"a depth of {depth} is outside of 1 to 4096")
        PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
        self.has_view = True
        if <uint64_t>self.view.len < <uint64_t>depth * cell_nbytes:
            raise ValueError(f"{self.view.len} bytes don't hold {depth} buffers of {cell_nbytes}")
        g = ublk_geometry(nbytes, nsid, shift, zero_blocks, discard_blocks, cell_nbytes, read_only, legacy)
        cdef int result = ublk_queue_init(&self.u, &g, fd, number, <uint8_t *>self.view.buf, iova,
                                          NVQ_NO_OFFSET if offset is None else offset, depth)
        if result:
            raise OSError(-result, os.strerror(-result))
        self.source = PyCapsule_New(&self.u.source, NVQ_SOURCE, NULL)

    def __dealloc__(self):
        ublk_queue_free(&self.u)
        if self.has_view:
            PyBuffer_Release(&self.view)

    @property
    def fd(self):
        return self.u.ring.fd

    @property
    def fetching(self):
        return self.u.fetching

    @property
    def aborted(self):
        return self.u.aborted

    @property
    def why(self):
        if self.u.why == NULL:
            return None
        return f"{(<bytes>self.u.why).decode()}: {os.strerror(self.u.why_errno)}"

    def leave(self):
        self.u.leaving = True

    def resize(self, uint64_t nbytes):
        ublk_queue_resize(&self.u, nbytes)

    def close(self):
        ublk_queue_close(&self.u)
        if self.has_view and nvq_source_out(&self.u.source) == 0:  # otherwise the controller may still write there
            self.has_view = False
            PyBuffer_Release(&self.view)

    def forget(self):
        ublk_queue_forget(&self.u)

    def inspect(self):
        cdef ublk_counters *c = &self.u.counters
        return {
            "requests": c.requests, "reads": c.reads, "writes": c.writes, "flushes": c.flushes, "discards": c.discards,
            "zeroes": c.zeroes, "errors": c.errors, "bytes_read": c.bytes_read, "bytes_written": c.bytes_written,
            "delayed_answers": c.refetched, "in_flight": self.u.n_active, "system_calls": self.u.ring.enters,
        }
