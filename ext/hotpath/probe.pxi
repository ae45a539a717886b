# What tests look at: the inline C by itself.

def build_prp(uint64_t iova, uint64_t nbytes, list_buffer, uint64_t list_iova):
    """(prp1, prp2) for nbytes at iova; list entries go to list_buffer, whose device address is list_iova. ValueError: the list is too short."""
    cdef uint64_t prp[2]
    cdef uint64_t[::1] entries = list_buffer
    if prp_build(prp, iova, nbytes, &entries[0], list_iova, <uint32_t>(entries.shape[0] * 8)):
        raise ValueError("the list has no room")
    return prp[0], prp[1]


def list_bytes(uint32_t entries):
    """Bytes of list memory for up to `entries` PRP entries."""
    return prp_list_bytes(entries)


def address_of(buffer):
    """Virtual address of a buffer's first byte."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    address = <uintptr_t>view.buf
    PyBuffer_Release(&view)
    return address
