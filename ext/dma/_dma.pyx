"""Pool and DmaBuffer: the Python interface of pool.c. nvme_async/native/_dma.pyi documents the
classes, pool.h the layout of the memory.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES
from cpython.exc cimport PyErr_SetFromErrno
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close, usleep

from nvme_async.native._forked cimport forked_add, forked_generation, forked_remove, forked_watch

import fcntl
import os
from typing import NamedTuple

from nvme_async.errors import InvalidSavedState, OutOfDmaMemory

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_mbind

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *address, size_t nbytes, int advice)

cdef enum:
    MPOL_PREFERRED = 1
    MADV_POPULATE_WRITE = 23

cdef extern from "dma/pool.h" nogil:
    enum:
        POOL_PAGE_SIZE
        POOL_TEXT_BYTES
        POOL_NO_ROOM
        POOL_FREE
        POOL_ALLOCATED
        POOL_LEAKED
        POOL_FLAG_PERSISTENT
        POOL_VIEW_NONE
        POOL_VIEW_HELD
        POOL_VIEW_PENDING

    uint64_t pool_bytes_for(uint64_t pages)
    bint pool_format(char *base, uint64_t nbytes, uint64_t iova, const uint8_t *id, const char *name)
    bint pool_open(pool_t *space, char *base, uint64_t nbytes, char *error)
    bint pool_verify(pool_t *space, char *error)
    void pool_seal(pool_t *space)
    void pool_fini(pool_t *space)
    int64_t pool_reserve(pool_t *space, uint64_t nbytes, uint64_t align)
    void pool_publish(pool_t *space, uint64_t page, uint64_t nbytes, const char *owner, uint64_t tag, uint32_t flags)
    void pool_unreserve(pool_t *space, uint64_t page, uint64_t nbytes)
    uint64_t pool_dirty_bytes(const pool_t *space, uint64_t page, uint64_t nbytes)
    void pool_release(pool_t *space, uint64_t page)
    void pool_set_state(pool_t *space, uint64_t page, uint32_t state)
    uint32_t pool_state(pool_t *space, uint64_t page)
    uint64_t pool_high_water(pool_t *space)
    uint64_t pool_longest_run(pool_t *space)
    uint64_t pool_pages(uint64_t nbytes)

PAGE_SIZE = POOL_PAGE_SIZE
MAX_TEXT_BYTES = POOL_TEXT_BYTES - 1

cdef char *BYTES_FORMAT = "B"
cdef size_t HUGE_PAGE = 2 << 20
cdef uint64_t CLEAR_AT_ONCE = 1 << 20     # a memset of some 100 us
cdef uint64_t MAX_NBYTES = 1 << 46
cdef uint64_t LAST_IOVA = 0xFFFFFFFFFFFFFFFF

if forked_watch() != 0:
    raise MemoryError("pthread_atfork failed")


class Slot(NamedTuple):
    offset: int
    nbytes: int
    owner: str
    tag: int
    state: str
    persistent: bool


cdef bytes _text(str text, str what):
    """Text for a field of the pool: 1 to 31 bytes of UTF-8 without NUL."""
    cdef bytes encoded = text.encode()
    if not 0 < len(encoded) < POOL_TEXT_BYTES or b"\0" in encoded:
        raise ValueError(f"{what} {text!r} must have 1 to {POOL_TEXT_BYTES - 1} bytes of UTF-8 and no NUL")
    return encoded


include "memory.pxi"


@cython.final
cdef class Pool:
    """Pool(nbytes, *, iova, name="pool", hugepages="auto", nodes=())"""

    page_size = POOL_PAGE_SIZE

    def __cinit__(self):
        self._fd = -1
        self.generation = forked_generation

    def __init__(self, nbytes, *, iova, str name="pool", str hugepages="auto", nodes=()):
        cdef bytes c_name = _text(name, "pool name")
        cdef bytes c_id = os.urandom(16)
        if self.base != NULL:
            raise TypeError("a pool can be initialized only once")
        if not 3 * PAGE_SIZE <= nbytes <= MAX_NBYTES:
            raise ValueError(f"a pool of {nbytes} bytes: must be from {3 * PAGE_SIZE} (header, table, one page) to {MAX_NBYTES}")
        if iova < 0 or iova % PAGE_SIZE or iova + nbytes + HUGE_PAGE > LAST_IOVA:
            raise ValueError(f"pool IOVA {iova:#x} must be a multiple of {PAGE_SIZE} with {nbytes} bytes above it")
        fd, size = _new_memory(nbytes, name, hugepages)
        # From here on the object owns the descriptor: __dealloc__ closes it whatever fails.
        self._fd = fd
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._adopt(size)
        self.nodes = _spread(<size_t>self.base, size, nodes)
        if not pool_format(self.base, size, iova, c_id, c_name):
            raise ValueError(f"a pool of {size} bytes has no room for a page")
        self._open()
        self.space.touched = 0

    @staticmethod
    def attach(int fd, *, expect_iova=None):
        cdef Pool self = Pool.__new__(Pool)
        self.nodes = ()
        size = os.fstat(fd).st_size
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            raise InvalidSavedState(f"descriptor {fd} is not a pool: it isn't a memfd") from None
        if not seals & fcntl.F_SEAL_SHRINK:
            raise InvalidSavedState(f"descriptor {fd} is not a pool: it isn't sealed against shrinking")
        if size < 3 * PAGE_SIZE:
            raise InvalidSavedState(f"descriptor {fd} is not a pool: it has only {size} bytes")
        try:
            self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError as error:
            raise OutOfDmaMemory(f"no descriptor for a pool of {size} bytes: {error.strerror}") from error
        self._adopt(size)
        self._open()
        if expect_iova is not None and self.iova != expect_iova:
            raise InvalidSavedState(f"pool {self.name!r} is at IOVA {self.iova:#x}, not at {expect_iova:#x}")
        return self

    @staticmethod
    def size_for(nbytes):
        if nbytes <= 0 or nbytes % PAGE_SIZE:
            raise ValueError(f"{nbytes} bytes is not a positive multiple of {PAGE_SIZE}")
        if nbytes > MAX_NBYTES:
            raise OutOfDmaMemory(f"{nbytes} bytes: the limit of a pool is {MAX_NBYTES}")
        return pool_bytes_for(nbytes // PAGE_SIZE)

    def _adopt(self, size_t nbytes):
        """Maps the descriptor."""
        try:
            self.base = <char *><size_t>_map(self._fd, nbytes)
        except OSError as error:
            raise OutOfDmaMemory(f"a pool of {nbytes} bytes can't be mapped: {error.strerror}") from error
        self.nbytes = nbytes
        forked_add(&self.mapping, self.base, nbytes, self._fd)
        # A hugetlb file's preferred block is its page.
        self.backing = "memfd"
        if os.fstat(self._fd).st_blksize == HUGE_PAGE:
            self.backing = "hugetlb-2MiB"
            sigbus_guard(&self.window, self.base, nbytes, -1)

    def _open(self):
        """Reads header and table."""
        cdef char error[256]
        cdef bytes name
        if not pool_open(&self.space, self.base, self.nbytes, error):
            raise InvalidSavedState((<bytes>error).decode(errors="replace"))
        name = self.space.header.name
        self.name = name.decode(errors="replace")
        self.iova = self.space.header.iova
        self.id = (<bytes>self.space.header.id[:16]).hex()

    def __dealloc__(self):
        # Every buffer holds a reference to its pool, so there are none left.
        sigbus_forget(&self.window)
        forked_remove(&self.mapping)
        if self.base != NULL:
            pool_fini(&self.space)
            munmap(self.base, self.nbytes)
        if self._fd >= 0:
            close(self._fd)

    cdef int _usable(self) except -1:
        if self.is_detached:
            raise ValueError("the pool was handed to a successor")
        if self.base == NULL:
            raise ValueError("the pool is closed")
        if self.generation != forked_generation:
            raise ValueError("the pool belongs to the process that forked this one")
        return 0

    @property
    def fd(self):
        return self._fd

    @property
    def address(self):
        self._usable()
        return <size_t>self.base

    @property
    def data_offset(self):
        self._usable()
        return self.space.data_offset

    @property
    def free_bytes(self):
        self._usable()
        return self.space.free_pages * POOL_PAGE_SIZE

    @property
    def used_bytes(self):
        self._usable()
        return (self.space.data_pages - self.space.free_pages) * POOL_PAGE_SIZE

    @property
    def closed(self):
        return self.base == NULL

    @cython.critical_section
    def alloc(self, nbytes, *, str owner, uint64_t tag=0, align=POOL_PAGE_SIZE, bint persistent=False, bint zero=True):
        if nbytes <= 0:
            raise ValueError(f"cannot allocate {nbytes} bytes")
        if align <= 0 or align & (align - 1) or align > 1 << 46:
            raise ValueError(f"alignment {align} is not a power of two (up to 2^46)")
        if nbytes > self.nbytes:
            self._usable()
            raise OutOfDmaMemory(f"pool {self.name!r} of {self.nbytes} bytes cannot hold {nbytes} bytes for {owner!r}")
        return self.allocate(nbytes, owner, tag, align, persistent, zero)

    cdef DmaBuffer allocate(self, size_t nbytes, str owner, uint64_t tag, size_t align, bint persistent, bint zero):
        cdef bytes c_owner = _text(owner, "owner")
        cdef uint32_t flags = POOL_FLAG_PERSISTENT if persistent else 0
        cdef int64_t page
        self._usable()
        if self.deferred is not None:
            raise OutOfDmaMemory(f"pool {self.name!r} is being handed to a successor")
        if align < POOL_PAGE_SIZE:
            align = POOL_PAGE_SIZE
        page = pool_reserve(&self.space, nbytes, align)
        if page == POOL_NO_ROOM:
            raise OutOfDmaMemory(
                f"pool {self.name!r} has no run of {nbytes} bytes aligned to {align} for {owner!r}: {self.free_bytes} bytes are "
                f"free, {pool_longest_run(&self.space) * POOL_PAGE_SIZE} in the longest run"
            )
        if page < 0:
            raise MemoryError
        if zero:
            self._clear(page, nbytes)
        pool_publish(&self.space, page, nbytes, c_owner, tag, flags)
        return self._buffer(page)

    cdef int _clear(self, uint64_t page, uint64_t nbytes) except -1:
        """Zeroes reserved pages that were used before; unreserves them and raises if the pool is
        handed over meanwhile.
        """
        cdef char *at = self.base + self.space.data_offset + page * POOL_PAGE_SIZE
        cdef uint64_t left = pool_dirty_bytes(&self.space, page, nbytes)
        cdef size_t n
        if left <= CLEAR_AT_ONCE:
            memset(at, 0, left)
            return 0
        self.n_exports += 1      # keeps the mapping
        self.n_clearing += 1
        while left and self.deferred is None and not self.is_detached:
            n = min(left, CLEAR_AT_ONCE)
            with nogil:
                memset(at, 0, n)
            at += n
            left -= n
        if left:
            pool_unreserve(&self.space, page, nbytes)
        self.n_clearing -= 1
        self.n_exports -= 1
        if left:
            self._usable()
            raise OutOfDmaMemory(f"pool {self.name!r} is being handed to a successor")
        return 0

    cdef void _settle(self) noexcept:
        """Waits for the threads that are in _clear(): each stops after a part once the pool is
        paused or detached.
        """
        while self.n_clearing:
            with nogil:
                usleep(50)

    cdef DmaBuffer _buffer(self, uint64_t page):
        """The object for the live slot at `page`, which becomes held."""
        cdef DmaBuffer buffer = DmaBuffer.__new__(DmaBuffer)
        cdef pool_slot *slot = &self.space.slots[page]
        self.space.view[page] = POOL_VIEW_HELD
        buffer.page = page
        buffer.nbytes = slot.nbytes
        buffer.offset = slot.offset
        buffer.iova = self.iova + slot.offset
        buffer.data = self.base + slot.offset
        buffer.persistent = slot.flags & POOL_FLAG_PERSISTENT
        buffer.pool = self
        buffer.is_freed = False
        return buffer

    cdef int64_t _page_at(self, offset) except -1:
        """The data page of the unheld live slot at `offset`."""
        cdef uint64_t page
        self._usable()
        if not self.space.data_offset <= offset < self.nbytes or offset % POOL_PAGE_SIZE:
            raise ValueError(f"no allocation can begin at {offset:#x} in a pool of {self.nbytes:#x} bytes")
        page = (offset - self.space.data_offset) // POOL_PAGE_SIZE
        if page >= self.space.data_pages or pool_state(&self.space, page) == POOL_FREE:
            raise ValueError(f"no allocation begins at {offset:#x}")
        if self.space.view[page] == POOL_VIEW_HELD:
            raise ValueError(f"the allocation at {offset:#x} is held by a DmaBuffer of this process")
        return page

    @cython.critical_section
    def claim(self, offset):
        cdef uint64_t page = self._page_at(offset)
        if pool_state(&self.space, page) == POOL_LEAKED:
            pool_set_state(&self.space, page, POOL_ALLOCATED)
        return self._buffer(page)

    @cython.critical_section
    def mark_leaked(self, offset):
        cdef uint64_t page = self._page_at(offset)
        pool_set_state(&self.space, page, POOL_LEAKED)
        self.space.view[page] = POOL_VIEW_NONE

    @cython.critical_section
    def reclaim(self, offset):
        pool_release(&self.space, self._page_at(offset))

    @cython.critical_section
    def slots(self):
        cdef uint64_t page = 0
        cdef pool_slot *slot
        cdef bytes owner
        self._usable()
        found = []
        while page < pool_high_water(&self.space):
            if pool_state(&self.space, page) == POOL_FREE:
                page += 1
                continue
            slot = &self.space.slots[page]
            owner = slot.owner
            if pool_state(&self.space, page) == POOL_LEAKED:
                state = "leaked"
            elif self.space.view[page] == POOL_VIEW_PENDING:
                state = "pending-restore"
            else:
                state = "allocated"
            persistent = bool(slot.flags & POOL_FLAG_PERSISTENT)
            found.append(Slot(slot.offset, slot.nbytes, owner.decode(errors="replace"), slot.tag, state, persistent))
            page += pool_pages(slot.nbytes)
        return found

    @cython.critical_section
    def inspect(self):
        self._usable()
        return {
            "name": self.name,
            "id": self.id,
            "nbytes": self.nbytes,
            "iova": self.iova,
            "backing": self.backing,
            "nodes": [{"node": node, "offset": offset, "nbytes": nbytes} for node, offset, nbytes in self.nodes],
            "free_bytes": self.free_bytes,
            "used_bytes": self.used_bytes,
            "longest_free_run": pool_longest_run(&self.space) * POOL_PAGE_SIZE,
            "exports": self.n_exports,
            "slots": [slot._asdict() for slot in self.slots()],
        }

    @cython.critical_section
    def refresh(self):
        cdef char error[256]
        cdef pool_t fresh
        cdef uint64_t page
        self._usable()
        if not pool_open(&fresh, self.base, self.nbytes, error):
            raise InvalidSavedState((<bytes>error).decode(errors="replace"))
        for page in range(self.space.data_pages):
            if self.space.view[page] != POOL_VIEW_HELD:
                continue
            if fresh.view[page] != POOL_VIEW_PENDING:
                pool_fini(&fresh)
                raise InvalidSavedState(f"pool {self.name!r}: the allocation of data page {page} is gone, but this process holds it")
            fresh.view[page] = POOL_VIEW_HELD
        pool_fini(&self.space)
        self.space = fresh

    @cython.critical_section
    def populate(self, slots):
        self._usable()
        for slot in slots:
            if not (0 <= slot.offset < self.nbytes and slot.nbytes <= self.nbytes - slot.offset):
                raise ValueError(f"{slot.nbytes} bytes at {slot.offset:#x} are outside a pool of {self.nbytes:#x} bytes")
            if madvise(self.base + <size_t>slot.offset, slot.nbytes, MADV_POPULATE_WRITE):
                return

    @cython.critical_section
    def verify(self):
        cdef char error[256]
        self._usable()
        if not pool_verify(&self.space, error):
            raise InvalidSavedState(f"pool {self.name!r} is damaged: {(<bytes>error).decode(errors='replace')}")

    @cython.critical_section
    def seal(self):
        self._usable()
        pool_seal(&self.space)

    @cython.critical_section
    def pause(self):
        self._usable()
        if self.deferred is None:
            self.deferred = []
        self._settle()

    @cython.critical_section
    def resume(self):
        self._usable()
        pages, self.deferred = self.deferred or (), None
        for page in pages:
            pool_release(&self.space, page)

    @cython.critical_section
    def detach(self):
        self._usable()
        self.is_detached = True
        self._settle()
        self.deferred = None

    @property
    def detached(self):
        return self.is_detached

    @cython.critical_section
    def close(self):
        """Unmaps; see the stub for what stays."""
        if self.base == NULL:
            return
        if self.generation == forked_generation and self.n_exports:
            raise BufferError(f"pool {self.name!r} has {self.n_exports} exported buffers")
        sigbus_forget(&self.window)
        forked_remove(&self.mapping)
        munmap(self.base, self.nbytes)
        self.base = NULL
        pool_fini(&self.space)
        close(self._fd)
        self._fd = -1

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    def __repr__(self):
        if self.base == NULL:
            return f"<Pool {self.name!r}, closed>"
        return (
            f"<Pool {self.name!r} of {self.nbytes} bytes at IOVA {self.iova:#x} on {self.backing}, "
            f"{self.space.free_pages * POOL_PAGE_SIZE} free>"
        )


include "buffer.pxi"
