"""NVMe/TCP's hot path: one connection as the transport of a queue pair. See link.h for how it
works, _tcp.pyi for the contract.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t, uint64_t

import os

cimport cython
from nvme_async.native._transport cimport NVQ_BINDING, nvq, nvq_binding, nvq_transport

cdef extern from "common/crc32c.h" nogil:
    void crc32c_init()
    uint32_t crc_update "crc32c"(uint32_t crc, const void *data, size_t n)
    uint32_t crc32c_software(uint32_t crc, const uint8_t *data, size_t n)

    struct crc32c_tables_t "crc32c_tables":
        bint hardware

    crc32c_tables_t crc32c_tables

cdef extern from "tcp/link.h" nogil:
    struct tcp_limits:
        uint32_t in_capsule, max_h2c, alignment
        bint header_digest, data_digest

    struct tcp_counters:
        uint64_t sends, receives, empty, polls, bytes_sent, bytes_received, pdus_sent, pdus_received
        uint64_t r2ts, in_capsule, header_digest_errors, data_digest_errors, blocked, copied, late

    struct tcp_link:
        nvq *q
        int fd
        int epoll_fd
        bint blocked, broken
        tcp_limits limits
        uint32_t n_out, n_pieces
        tcp_counters counters
        char *error

    const nvq_transport tcp_transport
    int link_init(tcp_link *link)
    void link_free(tcp_link *link)
    int link_attach(tcp_link *link, int fd, const tcp_limits *limits)
    void link_detach(tcp_link *link)
    void link_flush(tcp_link *link)

crc32c_init()


def crc32c(data, uint32_t crc=0, *, bint software=False):
    """CRC32C of `data`, going on from the digest `crc` of what came before. software: without
    the processor's instruction.
    """
    cdef Py_buffer view
    cdef uint32_t value = ~crc
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if software:
            value = crc32c_software(value, <const uint8_t *>view.buf, view.len)
        else:
            value = crc_update(value, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return <uint32_t>~value


def crc32c_in_hardware():
    """Does crc32c() use an instruction of this processor's?"""
    return crc32c_tables.hardware


@cython.no_gc_clear
cdef class Link:
    cdef tcp_link link
    cdef nvq_binding bound
    cdef object socket          # whose descriptor the link uses
    cdef readonly object binding

    def __cinit__(self):
        cdef int rc = link_init(&self.link)
        if rc:
            raise OSError(-rc, os.strerror(-rc))
        self.bound.transport = &tcp_transport
        self.bound.link = &self.link
        self.bound.queue = &self.link.q
        self.binding = PyCapsule_New(&self.bound, NVQ_BINDING, NULL)

    def __dealloc__(self):
        link_free(&self.link)

    def attach(self, socket, *, uint32_t in_capsule, uint32_t max_h2c, uint32_t alignment, bint header_digest, bint data_digest):
        cdef tcp_limits limits
        cdef int rc
        if self.link.q == NULL:
            raise ValueError("no queue pair has this link as its transport")
        if max_h2c < 4 or alignment < 4 or alignment % 4 or alignment > 128:
            raise ValueError(f"MAXH2CDATA {max_h2c}, alignment {alignment}: not what a controller may ask for")
        limits = tcp_limits(in_capsule, max_h2c, alignment, header_digest, data_digest)
        rc = link_attach(&self.link, socket.fileno(), &limits)
        if rc:
            raise OSError(-rc, os.strerror(-rc))
        self.socket = socket

    def detach(self):
        link_detach(&self.link)
        socket, self.socket = self.socket, None
        return socket

    def flush(self):
        self.link.blocked = False
        link_flush(&self.link)

    @property
    def connected(self):
        return self.link.fd >= 0

    @property
    def broken(self):
        return self.link.broken

    @property
    def room_fd(self):
        return self.link.epoll_fd

    @property
    def error(self):
        return (<bytes>self.link.error).decode(errors="replace") if self.link.broken else None

    def inspect(self):
        cdef tcp_counters *c = &self.link.counters
        return {
            "connected": self.link.fd >= 0, "error": self.error, "out": self.link.n_out, "unsent": self.link.n_pieces,
            "blocked": self.link.blocked, "in_capsule_bytes": self.link.limits.in_capsule,
            "max_h2c_bytes": self.link.limits.max_h2c, "header_digest": bool(self.link.limits.header_digest),
            "data_digest": bool(self.link.limits.data_digest),
            "sends": c.sends, "receives": c.receives, "receives_in_vain": c.empty, "polls": c.polls, "bytes_sent": c.bytes_sent, "bytes_received": c.bytes_received,
            "pdus_sent": c.pdus_sent, "pdus_received": c.pdus_received, "r2ts": c.r2ts, "in_capsule_writes": c.in_capsule,
            "header_digest_errors": c.header_digest_errors, "data_digest_errors": c.data_digest_errors,
            "times_blocked": c.blocked, "copied": c.copied, "answers_before_data_left": c.late,
        }
