# Checksums and contents of buffers. None of these holds a buffer after it returns. They let other
# threads run meanwhile: a job that verifies has them done beside its event loop.

def crc32c(data, uint32_t crc=0, *, bint software=False):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            crc = _crc32c(crc, <const unsigned char *>view.buf, view.len, software)
        return crc
    finally:
        PyBuffer_Release(&view)


def xxh64(data, uint64_t seed=0):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            seed = _xxh64(seed, <const unsigned char *>view.buf, view.len)
        return seed
    finally:
        PyBuffer_Release(&view)


def crc64(data):
    cdef Py_buffer view
    cdef uint64_t crc
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            crc = _crc64(<const unsigned char *>view.buf, view.len)
        return crc
    finally:
        PyBuffer_Release(&view)


def crc7(data):
    cdef Py_buffer view
    cdef unsigned char crc
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            crc = _crc7(<const unsigned char *>view.buf, view.len)
        return crc
    finally:
        PyBuffer_Release(&view)


def fill_random(data, uint64_t key):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_WRITABLE)
    try:
        with nogil:
            _fill_random(<unsigned char *>view.buf, view.len, key)
    finally:
        PyBuffer_Release(&view)


def clock_ns():
    return now_ns()
