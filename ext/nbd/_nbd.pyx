"""One NBD connection as a source of commands. See nbd.h for how it works, _nbd.pyi for the
contract.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t, uint64_t

import os

cimport cython

cdef extern from "hotpath/layout.h" nogil:
    const uint64_t NVQ_NO_OFFSET

cdef extern from "hotpath/source.h" nogil:
    const char *NVQ_SOURCE

    struct nvq_source:
        uint32_t n_cells

cdef extern from "nbd/nbd.h" nogil:
    struct nbd_geometry:
        uint64_t nbytes
        uint32_t nsid, block_shift, zero_blocks, trim_blocks, max_nbytes
        bint read_only, structured

    struct nbd_counters:
        uint64_t requests, reads, writes, flushes, trims, zeroes, errors, bytes_read, bytes_written, receives, sends, blocked

    struct nbd:
        nvq_source source
        nbd_geometry g
        const char *why
        uint32_t n_busy
        nbd_counters counters

    int nbd_init(nbd *n, const nbd_geometry *g, int fd, uint8_t *memory, uint64_t iova, uint64_t offset, uint32_t n_cells,
                 uint32_t cell_nbytes)
    void nbd_free(nbd *n)
    void nbd_set_mark(uint64_t mark)

nbd_set_mark(int.from_bytes(os.urandom(8), "little"))


@cython.no_gc_clear
@cython.final
cdef class Connection:
    cdef nbd n
    cdef Py_buffer view
    cdef bint has_view
    cdef object socket
    cdef readonly object source

    def __cinit__(self, socket, memory, *, iova, offset, uint32_t cell_nbytes, uint64_t nbytes, uint32_t nsid, uint32_t block_size,
                  uint32_t zero_blocks, uint32_t trim_blocks, uint32_t max_nbytes, bint read_only, bint structured):
        cdef nbd_geometry g
        cdef uint32_t shift = 0
        while <uint64_t>1 << shift < block_size:
            shift += 1
        if block_size != 1 << shift or cell_nbytes % block_size or cell_nbytes < block_size or cell_nbytes & 4095:
            raise ValueError(f"cells of {cell_nbytes} bytes don't hold blocks of {block_size}")
        PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
        self.has_view = True
        cdef uint64_t count = <uint64_t>self.view.len // cell_nbytes
        if not 1 <= count <= 4096:
            raise ValueError(f"{count} cells: there may be 1 to 4096")
        if max_nbytes > count * cell_nbytes:
            raise ValueError(f"requests of {max_nbytes} bytes don't fit into {count} cells of {cell_nbytes}")
        g = nbd_geometry(nbytes, nsid, shift, zero_blocks, trim_blocks, max_nbytes, read_only, structured)
        if nbd_init(&self.n, &g, socket.fileno(), <uint8_t *>self.view.buf, iova, NVQ_NO_OFFSET if offset is None else offset,
                    <uint32_t>count, cell_nbytes):
            raise MemoryError()
        self.socket = socket
        self.source = PyCapsule_New(&self.n.source, NVQ_SOURCE, NULL)

    def __dealloc__(self):
        nbd_free(&self.n)
        if self.has_view:
            PyBuffer_Release(&self.view)

    @property
    def fd(self):
        return self.socket.fileno()

    @property
    def why(self):
        return None if self.n.why == NULL else (<bytes>self.n.why).decode()

    def inspect(self):
        cdef nbd_counters *c = &self.n.counters
        return {
            "requests": c.requests, "reads": c.reads, "writes": c.writes, "flushes": c.flushes, "trims": c.trims, "zeroes": c.zeroes,
            "errors": c.errors, "bytes_read": c.bytes_read, "bytes_written": c.bytes_written, "receives": c.receives,
            "sends": c.sends, "times_blocked": c.blocked, "in_flight": self.n.n_busy,
        }
