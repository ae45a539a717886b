# ext/forked.h. There is no module of that name: each module that includes it has its own list.
cdef extern from "forked.h" nogil:
    ctypedef struct forked_mapping "struct forked_mapping":
        pass

    int forked_generation
    int forked_watch()
    void forked_add(forked_mapping *mapping, void *base, size_t nbytes, int fd)
    void forked_remove(forked_mapping *mapping)
