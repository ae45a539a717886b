"""Where a command's data lie: user memory that the device reaches (AddressMap), or pool pages in
between (BounceCache).

The declarations, and what is inlined into each I/O, are in nvme_async/native/_placement.pxd; typed
in _placement.pyi.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
)
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from nvme_async.errors import OutOfDmaMemory

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


cdef int export_bytes(buffer, Py_buffer *view, bint writable) except -1:
    """Exports memory as bytes in C order. ValueError explains why a buffer can't be exported
    so.
    """
    try:
        PyObject_GetBuffer(buffer, view, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0))
        return 0
    except (BufferError, ValueError):
        flags = memoryview(buffer)
        if writable and flags.readonly:
            raise ValueError(f"the {type(buffer).__name__} is read-only, and data were to be read into it") from None
        if not flags.c_contiguous:
            raise ValueError(f"the {type(buffer).__name__} of shape {flags.shape} with strides {flags.strides} is not C-contiguous: "
                             "its bytes don't follow one another") from None
        raise


cdef class ByteView:
    """Any C-contiguous buffer as plain bytes, for memoryview() to slice: memoryview.cast()
    refuses formats that it doesn't know.
    """

    cdef Py_buffer view
    cdef bint has_view

    def __cinit__(self, buffer, bint writable):
        export_bytes(buffer, &self.view, writable)
        self.has_view = True

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)

    def __getbuffer__(self, Py_buffer *target, int flags):
        PyBuffer_FillInfo(target, self, self.view.buf, self.view.len, self.view.readonly, flags)


def byte_view(buffer, *, bint writable=False):
    """A memoryview of the buffer's bytes, whatever its items are. ValueError for one that isn't
    C-contiguous, or not writable.
    """
    return memoryview(ByteView(buffer, writable))


cdef class AddressMap:
    """The memory of this process that the device can access, with its IOVA. One per controller,
    few entries.

    Owned and changed by the controller's own thread; looked up by its queue pairs.
    """

    def __dealloc__(self):
        free(self.mappings)

    def add(self, uintptr_t address, size_t nbytes, uint64_t iova, bint is_pool=False):
        """`nbytes` at virtual `address` are contiguous at `iova` from now on."""
        cdef Mapping *grown
        ft_acquire(&self.lock)
        try:
            if self.n == self.capacity:
                grown = <Mapping *>realloc(self.mappings, (self.capacity + 16) * sizeof(Mapping))
                if grown == NULL:
                    raise MemoryError()
                self.mappings = grown
                self.capacity += 16
            self.mappings[self.n] = Mapping(address, address + nbytes, iova, is_pool)
            self.n += 1
        finally:
            ft_release(&self.lock)

    def remove(self, uintptr_t address):
        """Removes the entry that starts at `address`. KeyError if there is none."""
        cdef int i
        cdef bint found = False
        ft_acquire(&self.lock)
        for i in range(self.n):
            if self.mappings[i].begin == address:
                self.n -= 1
                self.mappings[i] = self.mappings[self.n]
                found = True
                break
        ft_release(&self.lock)
        if not found:
            raise KeyError(f"no mapping begins at {address:#x}")

    def lookup(self, buffer):
        """IOVA of `buffer`, or None if the device can't access all of it."""
        cdef Py_buffer view
        cdef Mapping *mapping
        cdef uint64_t iova = 0
        cdef bint found
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            ft_acquire(&self.lock)
            mapping = find_mapping(self, view.buf, view.len)
            found = mapping != NULL
            if found:
                iova = mapping.iova + (<uintptr_t>view.buf - mapping.begin)
            ft_release(&self.lock)
            return iova if found else None
        finally:
            PyBuffer_Release(&view)

    def __len__(self):
        return self.n


include "scatter.pxi"


cdef class BounceCache:
    """Pool pages for data that the device can't access in place: free lists by power-of-two
    size, filled from the pool in chunks.

    `alloc(nbytes, tag)` gets a chunk from the pool as a DmaBuffer, without waiting for memory to
    grow: None or OutOfDmaMemory if there is none now. The tag is the size class, so that a
    successor can cut the chunk up the same way. A piece is owned by one command until that
    completes. Chunks are freed when the cache is closed, and completely free ones when the pool has
    nothing else left. Same thread as its queue pair.
    """

    def __init__(self, alloc):
        self.alloc = alloc
        self.chunks = []

    def __dealloc__(self):
        cdef int k
        for k in range(N_CLASSES):
            free(self.stacks[k].pieces)

    cdef int reserve(self, int k, int count) except -1:
        """Room for `count` more pieces, so that give() can't fail."""
        cdef PieceStack *stack = &self.stacks[k]
        cdef Piece *grown
        if stack.total + count > stack.capacity:
            grown = <Piece *>realloc(stack.pieces, (stack.total + count) * sizeof(Piece))
            if grown == NULL:
                raise MemoryError()
            stack.pieces = grown
            stack.capacity = stack.total + count
        stack.total += count
        return 0

    cdef object chunk_of(self, uint64_t nbytes, int k):
        try:
            return self.alloc(nbytes, k)
        except OutOfDmaMemory:
            return None

    cdef bint refill(self, int k) except? False:
        """False: the pool has no room, and no idle pieces of other sizes can make any."""
        cdef bint outer = self.refilling
        self.refilling = True
        try:
            return self.refill_now(k)
        finally:
            self.refilling = outer

    cdef bint refill_now(self, int k) except? False:
        cdef uint64_t size = <uint64_t>4096 << k
        # Small ones by the dozen, large ones one at a time.
        cdef int count = <int>max(1, min(64, (256 * 1024) // size))
        chunk = self.chunk_of(size * count, k)
        if chunk is None and count > 1:
            count = 1
            chunk = self.chunk_of(size, k)
        if chunk is None and self.trim():
            chunk = self.chunk_of(size, k)
        if chunk is None:
            return False
        self.add_chunk(chunk, k, count)
        return True

    cdef bint trim(self) except? False:
        """Returns chunks without used pieces to the pool; False if there is none."""
        cdef uintptr_t begin, end
        cdef PieceStack *stack
        cdef int k, i, n
        kept = []
        for chunk, k, begin in self.chunks:
            end = begin + <size_t>chunk.nbytes
            stack = &self.stacks[k]
            n = 0
            for i in range(stack.n):
                n += begin <= <uintptr_t>stack.pieces[i].data < end
            if n << (12 + k) != chunk.nbytes:
                kept.append((chunk, k, begin))
                continue
            n = 0
            for i in range(stack.n):
                if not begin <= <uintptr_t>stack.pieces[i].data < end:
                    stack.pieces[n] = stack.pieces[i]
                    n += 1
            stack.total -= stack.n - n
            stack.n = n
            chunk.free()
        freed = len(kept) < len(self.chunks)
        self.chunks = kept
        return freed

    def add_chunk(self, chunk, int k, int count, taken=()):
        """Cuts `chunk` into `count` pieces of class `k`; those at the pool offsets in `taken`
        stay with their commands.
        """
        cdef Py_buffer view
        cdef uint64_t size = <uint64_t>4096 << k
        cdef int i
        cdef Piece piece
        self.reserve(k, count)
        PyObject_GetBuffer(chunk, &view, PyBUF_SIMPLE)
        piece.data = <char *>view.buf
        PyBuffer_Release(&view)
        piece.iova = chunk.iova
        piece.offset = chunk.offset
        self.chunks.append((chunk, k, <uintptr_t>piece.data))
        for i in range(count - 1, -1, -1):
            self.n_taken += 1
            if piece.offset + i * size not in taken:
                give_piece(self, k, Piece(piece.data + i * size, piece.iova + i * size, piece.offset + i * size))

    def close(self):
        """Gives the chunks back to the pool. Only when no command owns a piece: after the queue
        was deleted or the controller reset.
        """
        cdef int k
        if self.n_taken:
            raise RuntimeError(f"{self.n_taken} pieces still belong to commands")
        for k in range(N_CLASSES):
            self.stacks[k].n = self.stacks[k].total = 0
        for chunk, _, _ in self.chunks:
            chunk.free()
        self.chunks.clear()

    @property
    def nbytes(self):
        """Pool memory held, in bytes."""
        return sum([chunk.nbytes for chunk, _, _ in self.chunks])


def address_of(buffer):
    """Virtual address of a buffer's first byte."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    address = <uintptr_t>view.buf
    PyBuffer_Release(&view)
    return address


cdef class HostMemory:
    """Zeroed, page-aligned memory of this process that no device reaches: for the rings of a
    queue pair with a transport. `iova` is its address. A writable buffer; freed when nothing
    refers to it any more.
    """

    cdef uint8_t *base
    cdef readonly size_t nbytes

    def __cinit__(self, size_t nbytes):
        nbytes = (nbytes + 4095) // 4096 * 4096
        self.base = <uint8_t *>aligned_alloc(4096, nbytes)
        if self.base == NULL:
            raise MemoryError(f"no memory for {nbytes} bytes")
        memset(self.base, 0, nbytes)
        self.nbytes = nbytes

    def __dealloc__(self):
        free(self.base)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.base, self.nbytes, 0, flags)

    @property
    def iova(self):
        return <uintptr_t>self.base
