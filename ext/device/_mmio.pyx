"""A mapped window of a BAR, or of the page that stands for one, with volatile accesses of
exactly one width.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport uint32_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.stat cimport S_ISREG, fstat, struct_stat
from posix.types cimport off_t

from nvme_async.native._forked cimport forked_add, forked_remove, forked_watch

cdef extern from "common/mmio.h":
    uint32_t mmio_load32(const char *address) nogil
    uint64_t mmio_load64(const char *address) nogil
    void mmio_store32(char *address, uint32_t value) nogil
    void mmio_store64(char *address, uint64_t value) nogil

cdef extern from "<sys/vfs.h>" nogil:
    cdef struct struct_statfs "statfs":
        long f_type
    int c_fstatfs "fstatfs"(int fd, struct_statfs *info)

cdef size_t PAGE = 4096

if forked_watch() != 0:
    raise MemoryError("pthread_atfork failed")


def file_system(int fd):
    """The magic number of the file system that `fd` is in (statfs(2))."""
    cdef struct_statfs info
    if c_fstatfs(fd, &info) != 0:
        PyErr_SetFromErrno(OSError)
    return info.f_type & 0xffffffff


@cython.final
cdef class Mmio:
    """Mmio(fd, file_offset, nbytes, *, writable=True, lost_fd=-1)"""

    def __cinit__(self, int fd, file_offset, nbytes, *, bint writable=True, int lost_fd=-1):
        cdef struct_stat info
        cdef void *mapping
        cdef size_t length
        if not 0 < nbytes <= 1 << 46:
            raise ValueError(f"cannot map a window of {nbytes} bytes")
        if file_offset < 0 or file_offset % PAGE:
            raise ValueError(f"window offset {file_offset:#x} is not a multiple of {PAGE}")
        if fstat(fd, &info) != 0:
            PyErr_SetFromErrno(OSError)
        # fstat doesn't know a device's size; for a file it does, and touching pages beyond its end
        # would be a SIGBUS.
        if S_ISREG(info.st_mode) and file_offset + nbytes > info.st_size:
            raise ValueError(f"window {file_offset:#x}+{nbytes:#x} ends beyond its file of {info.st_size:#x} bytes")
        length = nbytes
        mapping = mmap(NULL, length, PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED, fd, <off_t>file_offset)
        if mapping == MAP_FAILED:
            PyErr_SetFromErrno(OSError)
        self.base = <char *>mapping
        self.nbytes = length
        forked_add(&self.mapping, mapping, length, -1)
        sigbus_guard(&self.window, mapping, length, lost_fd)
        self.writable = writable

    def __dealloc__(self):
        sigbus_forget(&self.window)
        forked_remove(&self.mapping)
        if self.base != NULL:
            munmap(self.base, self.nbytes)
        kick_ring_close(&self.kicks)

    @cython.critical_section
    cdef const kick_ring *_kick_ring(self, int eventfd):
        """A ring that signals the eventfd which belongs to this window's doorbells, until
        _no_kick_ring() is called as often. NULL: the system has none, or the window has another
        eventfd.
        """
        if self.kicks.map == NULL and not kick_ring_open(&self.kicks, eventfd):
            return NULL
        if self.kicks.eventfd != eventfd:
            return NULL
        self.n_kicking += 1
        return &self.kicks

    @cython.critical_section
    cdef void _no_kick_ring(self) noexcept:
        """A queue pair doesn't use the ring any more. The last one closes it: a closed controller
        keeps no descriptor.
        """
        self.n_kicking -= 1
        if self.n_kicking == 0:
            kick_ring_close(&self.kicks)

    cdef char *_at(self, Py_ssize_t offset, Py_ssize_t width, bint write) except NULL:
        if self.base == NULL:
            raise ValueError("the register window is closed")
        if offset < 0 or offset > <Py_ssize_t>self.nbytes - width:
            raise ValueError(f"{width * 8}-bit access at {offset:#x} is outside a window of {self.nbytes:#x} bytes")
        if offset % width:
            raise ValueError(f"{width * 8}-bit access at {offset:#x} is not aligned")
        if write and not self.writable:
            raise ValueError("the register window is mapped read-only")
        return self.base + offset

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.base == NULL:
            raise ValueError("the register window is closed")
        PyBuffer_FillInfo(view, self, self.base, self.nbytes, not self.writable, flags)
        self.n_exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.n_exports -= 1

    @property
    def closed(self):
        return self.base == NULL

    @property
    def lost(self):
        return bool(self.window.lost)

    @property
    def lost_fd(self):
        return self.window.lost_fd

    @lost_fd.setter
    def lost_fd(self, int fd):
        self.window.lost_fd = fd

    def read32(self, Py_ssize_t offset):
        return mmio_load32(self._at(offset, 4, False))

    def read64(self, Py_ssize_t offset):
        return mmio_load64(self._at(offset, 8, False))

    def write32(self, Py_ssize_t offset, uint32_t value):
        mmio_store32(self._at(offset, 4, True), value)

    def write64(self, Py_ssize_t offset, uint64_t value):
        mmio_store64(self._at(offset, 8, True), value)

    cpdef void close(self) except *:
        """Unmaps. Safe to call twice; later accesses raise ValueError. BufferError while buffers of
        it exist: then it is unmapped with the last reference.
        """
        cdef char *base = self.base
        if self.n_exports:
            raise BufferError(f"{self.n_exports} buffers of the window are in use")
        if base != NULL:
            self.base = NULL
            sigbus_forget(&self.window)
            forked_remove(&self.mapping)
            munmap(base, self.nbytes)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    def __repr__(self):
        return f"<Mmio {self.nbytes:#x} bytes{', closed' if self.base == NULL else ''}>"
