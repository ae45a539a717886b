# Checksums and contents of buffers. None of these holds a buffer after it returns.

def crc32c(data, uint32_t crc=0, *, bint software=False):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return _crc32c(crc, <const unsigned char *>view.buf, view.len, software)
    finally:
        PyBuffer_Release(&view)


def xxh64(data, uint64_t seed=0):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return _xxh64(seed, <const unsigned char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def fill_random(data, uint64_t key):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_WRITABLE)
    try:
        _fill_random(<unsigned char *>view.buf, view.len, key)
    finally:
        PyBuffer_Release(&view)


def clock_ns():
    return now_ns()
