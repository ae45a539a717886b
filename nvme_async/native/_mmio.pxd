from nvme_async.native._forked cimport forked_mapping

cdef extern from "device/sigbus.h":
    struct sigbus_window:
        int lost_fd
        int lost

    bint sigbus_guard(sigbus_window *window, void *base, size_t nbytes, int lost_fd)
    void sigbus_forget(sigbus_window *window)


cdef class Mmio:
    cdef char *base                 # NULL once closed; plain pointer for the hot path, which keeps a reference to this object
    cdef forked_mapping mapping
    cdef sigbus_window window
    cdef readonly size_t nbytes
    cdef readonly bint writable
    cdef char *_at(self, Py_ssize_t offset, Py_ssize_t width, bint write) except NULL
    cpdef void close(self) except *
