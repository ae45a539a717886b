"""The kernel's block devices, files and NVMe character devices as the transport of a queue pair.
See kernel_link.h and relay.h for how it works, _kernel.pyi for the contract.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer, PyBUF_WRITABLE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_New
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

import os

cimport cython
from nvme_async.native._transport cimport NVQ_BINDING, nvq, nvq_binding, nvq_transport

cdef extern from "hotpath/layout.h":
    struct nvq_sqe:
        uint8_t opcode
        uint16_t cid
        uint32_t nsid

cdef extern from "kernel/kernel_link.h" nogil:
    enum: KL_FILE, KL_NVME_BLOCK, KL_PASSTHROUGH, KL_WORKERS
    uint32_t KL_ERRNO, URING_SETUP_IOPOLL
    unsigned long NVME_IOCTL_ID_

    struct ring:
        int fd
        uint32_t flags, unsubmitted, in_kernel
        uint64_t enters, submitted, completed

    struct kl_counters:
        uint64_t polls, ring_commands, worker_commands, short_transfers, retries, bounced, fixed, cancels, refused

    struct kl_target:
        uint32_t nsid
        int fd
        uint8_t kind, block_shift
        bint writable, direct
        uint32_t memory_align, block_bytes, metadata
        uint64_t blocks

    struct kernel_link:
        nvq *q
        ring rings[2]
        bint iopoll, poll_refused
        int event_fd
        uint32_t n_out, n_in_kernel, n_targets, n_workers, n_fixed
        kl_counters counters

    const nvq_transport kernel_transport
    int kl_init(kernel_link *link, uint32_t max_workers)
    int kl_start(kernel_link *link)
    int kl_use_ring(kernel_link *link, uint32_t entries, bint passthrough, bint iopoll)
    void kl_free(kernel_link *link)
    int kl_set_target(kernel_link *link, const kl_target *target)
    int kl_add_region(kernel_link *link, void *base, size_t nbytes, uint64_t iova)
    void kl_drop_region(kernel_link *link, const void *base)
    uint32_t kl_in_flight(kernel_link *link)
    void kl_cancel_all(kernel_link *link)
    uint16_t kl_ioctl(int fd, bint admin, const nvq_sqe *sqe, void *data, uint32_t nbytes, uint32_t timeout_ms, uint32_t *dw0,
                      uint32_t *dw1)
    int kl_direct_alignment(int fd, uint32_t *memory, uint32_t *offset)
    int ring_open(ring *r, uint32_t entries, uint32_t cq_entries, uint32_t flags)
    void ring_close(ring *r)

cdef extern from "kernel/relay.h" nogil:
    struct relay_out:
        nvq_sqe sqe
        uint8_t *copy
        uint32_t nbytes
        bint to_host

    struct relay:
        nvq *q
        int event_fd
        uint32_t n_out

    const nvq_transport relay_transport
    int relay_init(relay *r)
    int relay_start(relay *r)
    void relay_free(relay *r)
    relay_out *relay_fetch(relay *r)
    bint relay_answer(relay *r, uint16_t cid, uint16_t status, uint32_t dw0, uint32_t dw1, const void *data, uint32_t nbytes)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

KINDS = {"file": KL_FILE, "nvme-block": KL_NVME_BLOCK, "passthrough": KL_PASSTHROUGH}
MOST_WORKERS = KL_WORKERS
ERRNO = KL_ERRNO
PASSTHROUGH_FLAGS = 1 << 10 | 1 << 11


cdef int check(int rc) except -1:
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return 0


def try_ring(*, bint passthrough=False, bint iopoll=False):
    cdef ring r
    cdef int rc = ring_open(&r, 2, 4, (PASSTHROUGH_FLAGS if passthrough else 0) | (URING_SETUP_IOPOLL if iopoll else 0))
    if rc == 0:
        ring_close(&r)
    return -rc


def direct_alignment(int fd):
    cdef uint32_t memory = 0, offset = 0
    cdef int rc = kl_direct_alignment(fd, &memory, &offset)
    return None if rc < 0 else (memory, offset)


def namespace_id(int fd):
    cdef int nsid = ioctl(fd, NVME_IOCTL_ID_)
    if nsid < 0:
        raise OSError(errno, os.strerror(errno))
    return nsid


def passthrough(int fd, sqe, buffer=None, *, bint admin=True, bint to_host=False, uint32_t timeout_ms=0):
    cdef const unsigned char[::1] raw = sqe
    cdef nvq_sqe command
    cdef Py_buffer view
    cdef uint32_t dw0 = 0, dw1 = 0
    cdef uint16_t status
    cdef void *data = NULL
    cdef uint32_t nbytes = 0
    if raw.shape[0] != 64:
        raise ValueError(f"a command is 64 bytes long, not {raw.shape[0]}")
    memcpy(&command, &raw[0], 64)
    if buffer is not None:
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE if to_host else PyBUF_SIMPLE)
        data, nbytes = view.buf, <uint32_t>view.len
    try:
        with nogil:
            status = kl_ioctl(fd, admin, &command, data, nbytes, timeout_ms, &dw0, &dw1)
    finally:
        if buffer is not None:
            PyBuffer_Release(&view)
    return status, dw0, dw1


@cython.no_gc_clear
cdef class Link:
    cdef kernel_link link
    cdef nvq_binding bound
    cdef readonly object binding

    def __cinit__(self, *, uint32_t workers=4):
        cdef int rc = kl_init(&self.link, workers)
        check(rc)
        self.bound.transport = &kernel_transport
        self.bound.link = &self.link
        self.bound.queue = &self.link.q
        self.binding = PyCapsule_New(&self.bound, NVQ_BINDING, NULL)

    def __dealloc__(self):
        kl_free(&self.link)

    def close(self):
        kl_free(&self.link)

    def start(self):
        check(kl_start(&self.link))

    def use_ring(self, uint32_t entries, *, bint passthrough=False, bint iopoll=False):
        check(kl_use_ring(&self.link, entries, passthrough, iopoll))

    def set_target(self, uint32_t nsid, int fd, *, kind, uint32_t block_size, uint64_t blocks, bint writable, bint direct=False,
                   uint32_t memory_align=1, uint32_t block_bytes=0, uint32_t metadata=0):
        cdef kl_target target
        if block_size < 512 or block_size & (block_size - 1) or memory_align & (memory_align - 1) or not memory_align:
            raise ValueError(f"block_size {block_size}, memory_align {memory_align}: not powers of two")
        memset(&target, 0, sizeof(target))
        target.nsid, target.fd, target.kind = nsid, fd, KINDS[kind]
        target.block_shift = <uint8_t>(block_size.bit_length() - 1)
        target.block_bytes = block_bytes or block_size
        target.writable, target.direct, target.memory_align = writable, direct, memory_align
        target.metadata, target.blocks = metadata, blocks
        check(kl_set_target(&self.link, &target))

    def add_region(self, uintptr_t address, size_t nbytes, uint64_t iova):
        cdef int rc = kl_add_region(&self.link, <void *>address, nbytes, iova)
        check(rc)
        return bool(rc)

    def drop_region(self, uintptr_t address):
        kl_drop_region(&self.link, <void *>address)

    def in_flight(self):
        return kl_in_flight(&self.link)

    def cancel_all(self):
        kl_cancel_all(&self.link)

    @property
    def event_fd(self):
        return self.link.event_fd

    @property
    def has_ring(self):
        return self.link.rings[0].fd >= 0

    def inspect(self):
        cdef kl_counters *c = &self.link.counters
        cdef ring *r = &self.link.rings[0]
        cdef ring *other = &self.link.rings[1]
        return {
            "engine": "io_uring" if r.fd >= 0 else "threads", "iopoll": bool(self.link.iopoll and not self.link.poll_refused), "out": self.link.n_out,
            "in_kernel": self.link.n_in_kernel, "threads": self.link.n_workers, "enters": r.enters + other.enters,
            "polls": c.polls, "ring_commands": c.ring_commands, "worker_commands": c.worker_commands,
            "short_transfers": c.short_transfers, "tried_again": c.retries, "copied_for_alignment": c.bounced,
            "fixed_buffers": c.fixed, "registered": self.link.n_fixed, "cancels": c.cancels, "refused": c.refused,
        }


@cython.no_gc_clear
cdef class Relay:
    cdef relay r
    cdef nvq_binding bound
    cdef readonly object binding

    def __cinit__(self):
        check(relay_init(&self.r))
        self.bound.transport = &relay_transport
        self.bound.link = &self.r
        self.bound.queue = &self.r.q
        self.binding = PyCapsule_New(&self.bound, NVQ_BINDING, NULL)

    def __dealloc__(self):
        relay_free(&self.r)

    def close(self):
        relay_free(&self.r)

    def start(self):
        check(relay_start(&self.r))

    @property
    def event_fd(self):
        return self.r.event_fd

    @property
    def out(self):
        return self.r.n_out

    def take(self):
        cdef relay_out *out
        taken = []
        while True:
            out = relay_fetch(&self.r)
            if out == NULL:
                return taken
            data = PyBytes_FromStringAndSize(<char *>out.copy, out.nbytes) if out.copy != NULL else None
            taken.append((out.sqe.cid, PyBytes_FromStringAndSize(<char *>&out.sqe, 64), data, out.nbytes if out.to_host else 0))

    def answer(self, uint16_t cid, uint16_t status, uint32_t dw0=0, uint32_t dw1=0, data=b""):
        cdef const unsigned char[::1] raw = data
        return relay_answer(&self.r, cid, status, dw0, dw1, &raw[0] if raw.shape[0] else NULL, <uint32_t>raw.shape[0])
