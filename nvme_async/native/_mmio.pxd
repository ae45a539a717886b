from nvme_async.native._forked cimport forked_mapping


cdef class Mmio:
    cdef char *base                 # NULL once closed; plain pointer for the hot path, which keeps a reference to this object
    cdef forked_mapping mapping
    cdef readonly size_t nbytes
    cdef readonly bint writable
    cdef char *_at(self, Py_ssize_t offset, Py_ssize_t width, bint write) except NULL
    cpdef void close(self) except *
