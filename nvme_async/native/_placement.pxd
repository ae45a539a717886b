from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint64_t, uintptr_t


cdef struct Mapping:
    uintptr_t begin
    uintptr_t end
    uint64_t iova
    bint is_pool     # then offsets into it mean something to a successor


# Nothing where the interpreter has a global lock.
cdef extern from "common/free_threading.h":
    ctypedef struct ft_lock:
        pass

    void ft_acquire(ft_lock *lock) noexcept
    void ft_release(ft_lock *lock) noexcept
    const bint FT_GLOBAL_LOCK


cdef class AddressMap:
    cdef ft_lock lock            # held as long as what find_mapping() found is used
    cdef Mapping *mappings
    cdef int n
    cdef int capacity


cdef inline Mapping *find_mapping(AddressMap addresses, const void *data, size_t nbytes) noexcept:
    """NULL: the device does not reach all of it."""
    cdef uintptr_t address = <uintptr_t>data
    cdef int i
    for i in range(addresses.n):
        if addresses.mappings[i].begin <= address and address + nbytes <= addresses.mappings[i].end:
            return &addresses.mappings[i]
    return NULL


cdef struct Run:
    char *data
    uint64_t iova        # by the last locate()
    size_t nbytes        # 1 to 2**32 - 1


cdef class Scatter:
    cdef Py_buffer *views
    cdef Py_ssize_t n_views
    cdef Scatter parent          # whose buffers these are
    cdef public Scatter metadata      # of the same command's blocks, or None
    cdef Run *runs
    cdef readonly size_t n_runs
    cdef size_t capacity
    cdef readonly size_t nbytes

    cdef int add_run(self, char *data, size_t nbytes) except -1
    cdef int add_view(self, Py_buffer *view) except -1
    cdef bint locate(self, AddressMap addresses, unsigned mask) except -1
    cdef bint touches(self, uint64_t iova, uint64_t nbytes) noexcept
    cdef size_t n_entries(self) noexcept
    cdef size_t runs_of(self, size_t i, size_t at, size_t nbytes) noexcept


cdef enum:
    N_CLASSES = 13   # 4 KiB … 16 MiB

cdef struct Piece:
    char *data
    uint64_t iova
    uint64_t offset      # in the pool

cdef struct PieceStack:
    Piece *pieces
    int n
    int total            # pieces of this class that exist, free or taken
    int capacity


cdef class BounceCache:
    cdef PieceStack stacks[N_CLASSES]
    cdef object alloc
    cdef list chunks             # (chunk, class, address)
    cdef readonly int n_taken
    cdef bint refilling          # a chunk is being requested: other threads run meanwhile

    cdef int reserve(self, int k, int count) except -1
    cdef object chunk_of(self, uint64_t nbytes, int k)
    cdef bint refill(self, int k) except? False
    cdef bint refill_now(self, int k) except? False
    cdef bint trim(self) except? False


cdef inline int size_class(uint64_t nbytes) noexcept:
    cdef int k = 0
    while (<uint64_t>4096 << k) < nbytes:
        k += 1
    return k


cdef inline bint take_piece(BounceCache cache, int k, Piece *piece) except? False:
    """False: there is none now; see starve() in ext/hotpath."""
    cdef PieceStack *stack
    if k >= N_CLASSES:
        raise ValueError(f"a bounced transfer of {<uint64_t>4096 << k} bytes is over the limit of 16 MiB")
    stack = &cache.stacks[k]
    if stack.n == 0 and not cache.refill(k):
        return False
    stack.n -= 1
    piece[0] = stack.pieces[stack.n]
    cache.n_taken += 1
    return True


cdef inline void give_piece(BounceCache cache, int k, Piece piece) noexcept:
    # reserve() made the room.
    cdef PieceStack *stack = &cache.stacks[k]
    stack.pieces[stack.n] = piece
    stack.n += 1
    cache.n_taken -= 1


# Exports memory as its bytes in C order. ValueError says what is wrong with a buffer that can't be
# had so.
cdef int export_bytes(buffer, Py_buffer *view, bint writable) except -1
