cdef extern from "forked.h" nogil:
    ctypedef struct forked_mapping "struct forked_mapping":
        pass

    int forked_watch()
    void forked_add(forked_mapping *mapping, void *base, size_t nbytes, int fd)
    void forked_remove(forked_mapping *mapping)


cdef class Mmio:
    cdef char *base                 # NULL once closed; plain pointer for the hot path, which keeps a reference to this object
    cdef forked_mapping mapping
    cdef readonly size_t nbytes
    cdef readonly bint writable
    cdef char *_at(self, Py_ssize_t offset, Py_ssize_t width, bint write) except NULL
    cpdef void close(self) except *
