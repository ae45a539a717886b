from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from nvme_async.native._forked cimport forked_mapping

cdef extern from "device/sigbus.h":
    struct sigbus_window:
        int lost_fd

    bint sigbus_guard(sigbus_window *window, void *base, size_t nbytes, int lost_fd)
    void sigbus_forget(sigbus_window *window)

cdef extern from "dma/pool.h" nogil:
    ctypedef struct pool_header "struct pool_header":
        uint64_t iova
        uint8_t id[16]
        char name[32]

    ctypedef struct pool_slot "struct pool_slot":
        uint32_t flags
        uint64_t offset
        uint64_t nbytes
        uint64_t tag
        char owner[32]

    ctypedef struct pool_t "struct pool":
        pool_header *header
        pool_slot *slots
        uint8_t *view
        uint64_t data_offset
        uint64_t data_pages
        uint64_t free_pages
        uint64_t touched


cdef class Pool:
    cdef char *base                     # NULL once closed
    cdef readonly size_t nbytes
    cdef readonly uint64_t iova
    cdef pool_t space
    cdef forked_mapping mapping
    cdef sigbus_window window           # huge pages that a peer punches out of the file may be unavailable later
    cdef int _fd
    cdef int generation                 # of forks: a pool belongs to the process that mapped it
    cdef list deferred                  # data pages to release after resume(); None: not paused
    cdef bint is_detached               # handed to a successor, which owns the table
    cdef size_t n_exports               # of all its buffers
    cdef int n_clearing                 # threads that are writing zeroes without the GIL
    cdef readonly str name
    cdef readonly str backing
    cdef readonly str id
    cdef readonly tuple nodes           # (NUMA node, offset, bytes) of each part that prefers one
    cdef object __weakref__

    cdef int _usable(self) except -1
    cdef int _clear(self, uint64_t page, uint64_t nbytes) except -1
    cdef void _settle(self) noexcept
    cdef int64_t _page_at(self, offset) except -1
    cdef DmaBuffer _buffer(self, uint64_t page)
    # alloc() for other extension modules. `owner` at most 31 bytes of UTF-8, `align` a power of
    # two.
    cdef DmaBuffer allocate(self, size_t nbytes, str owner, uint64_t tag, size_t align, bint persistent, bint zero)


cdef class DmaBuffer:
    cdef char *data                     # NULL once the pages are returned: take an export (Py_buffer) to keep them
    cdef readonly size_t nbytes
    cdef readonly uint64_t iova
    cdef readonly size_t offset         # from the pool's start
    cdef readonly Pool pool
    cdef bint is_freed
    cdef int exports
    cdef uint64_t page
    cdef readonly bint persistent
    cdef object __weakref__

    cdef int _usable(self) except -1
    cdef bint _pool_is_ours(self) noexcept
    cdef void _return_pages(self) noexcept
