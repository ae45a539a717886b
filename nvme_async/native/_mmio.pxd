from nvme_async.native._forked cimport forked_mapping

cdef extern from "device/sigbus.h":
    struct sigbus_window:
        int lost_fd
        int lost

    bint sigbus_guard(sigbus_window *window, void *base, size_t nbytes, int lost_fd)
    void sigbus_forget(sigbus_window *window)

cdef extern from "device/kick_ring.h":
    struct kick_ring:
        int eventfd
        void *map

    bint kick_ring_open(kick_ring *ring, int eventfd)
    void kick_ring_close(kick_ring *ring)


cdef class Mmio:
    cdef char *base                 # NULL once closed; plain pointer for the hot path, which keeps a reference to this object
    cdef forked_mapping mapping
    cdef sigbus_window window
    cdef kick_ring kicks            # of the queue pairs that have called _kick_ring()
    cdef unsigned n_kicking
    cdef readonly size_t nbytes
    cdef Py_ssize_t n_exports       # buffers of it
    cdef readonly bint writable
    cdef const kick_ring *_kick_ring(self, int eventfd)
    cdef void _no_kick_ring(self) noexcept
    cdef char *_at(self, Py_ssize_t offset, Py_ssize_t width, bint write) except NULL
    cpdef void close(self) except *
