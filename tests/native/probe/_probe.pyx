"""What tests and benchmarks measure native code with. No part of the product: tests/probing.py
builds it.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

import os

cimport cython
from nvme_async.native._mmio cimport Mmio

from nvme_async.dma import Pool
from nvme_async.native._hotpath import MODES, NamespaceCore, QueuePair, queue_memory
from nvme_async.native._placement import AddressMap, BounceCache
from nvme_async.runtime.loop_internals import ready_callbacks, shows_thread

cdef extern from "<unistd.h>" nogil:
    ssize_t c_write "write"(int fd, const void *buf, size_t n)

cdef extern from "hotpath/prp.h":
    int prp_build(uint64_t *prp, uint64_t iova, uint64_t nbytes, uint64_t *list, uint64_t list_iova, uint32_t list_bytes) nogil
    uint32_t prp_list_bytes(uint32_t entries) nogil

cdef extern from "hotpath/layout.h":
    struct nvq_sqe:
        uint16_t cid
        uint64_t prp1

    struct nvq_cqe:
        uint32_t dw0, dw1
        uint16_t sqhd, sqid, cid, status


cdef extern from "hotpath/waiting.h":
    ctypedef struct nvw_budget "struct nvw_budget":
        uint64_t limit_ns

    uint64_t nvw_budget_ns(nvw_budget *budget)
    void nvw_budget_learn(nvw_budget *budget, uint64_t ns)
    void nvw_budget_in_vain(nvw_budget *budget, uint64_t bound)


def spin_bounds(uint64_t limit_ns, waits):
    """How long it is spun for before each of these waits (nanoseconds), by a spin budget with
    that limit.
    """
    cdef nvw_budget budget
    cdef uint64_t bound, wait
    memset(&budget, 0, sizeof(budget))
    budget.limit_ns = limit_ns
    bounds = []
    for wait in waits:
        bound = nvw_budget_ns(&budget)
        bounds.append(bound)
        if bound and wait <= bound:
            nvw_budget_learn(&budget, wait)
        elif bound:
            nvw_budget_in_vain(&budget, bound)
    return bounds


def build_prp(uint64_t iova, uint64_t nbytes, list_buffer, uint64_t list_iova):
    """(prp1, prp2) for nbytes at iova; list entries go to list_buffer, whose device address is
    list_iova. ValueError: the list is too short.
    """
    cdef uint64_t prp[2]
    cdef uint64_t[::1] entries = list_buffer
    if prp_build(prp, iova, nbytes, &entries[0], list_iova, <uint32_t>(entries.shape[0] * 8)):
        raise ValueError("the list has no room")
    return prp[0], prp[1]


def list_bytes(uint32_t entries):
    """Bytes of list memory for up to `entries` PRP entries."""
    return prp_list_bytes(entries)


@cython.final
cdef class FutureMill:
    """What an event loop itself costs: plain futures, handed out by get() and resolved from C
    once in each iteration. For benchmarks/ceiling.py.
    """

    cdef object create_future, call_soon, callback
    cdef list pending
    cdef bint planned
    cdef readonly uint64_t resolved

    def __init__(self, loop):
        self.create_future = loop.create_future
        self.call_soon = loop.call_soon
        self.callback = self.resolve
        self.pending = []

    def get(self):
        """A new future, done after the next event-loop iteration."""
        future = self.create_future()
        self.pending.append(future)
        if not self.planned:
            self.planned = True
            self.call_soon(self.callback)
        return future

    def resolve(self):
        pending, self.pending = self.pending, []
        self.planned = False
        for future in pending:
            if not future.done():
                future.set_result(None)
        self.resolved += len(pending)


@cython.final
cdef class LoopBack:
    """A namespace whose controller is a few lines of C on the same thread: it answers what was
    rung, once in each event-loop iteration. For counting what the host's side of an awaited I/O
    costs (benchmarks/cost.py).

    event_fd: it answers by interrupt instead, one iteration after each doorbell: the eventfd is
    written, and the ring is not polled.
    """

    cdef object loop, pool, page, callback, more
    cdef readonly object qp, namespace
    cdef readonly object buffer      # 4096 bytes that the device reaches
    cdef int event_fd
    cdef uint32_t *doorbells
    cdef uint32_t sq_head, cq_tail
    cdef uint16_t phase
    cdef uint64_t address, iova      # of the pool
    cdef nvq_sqe *sq
    cdef nvq_cqe *cq
    cdef bint closed

    def __init__(self, loop, *, int event_fd=-1):
        self.loop = loop
        self.event_fd = event_fd
        self.pool = Pool(8 << 20, iova=1 << 32, name="loop back", hugepages="never")
        self.address, self.iova = self.pool.address, self.pool.iova
        pool = self.pool
        bounce = BounceCache(lambda nbytes, tag: pool.alloc(nbytes, owner="bounce", tag=tag))
        memory = pool.alloc(queue_memory(256, 254, 1 << 20), owner="queue")
        address_map = AddressMap()
        address_map.add(self.address, self.pool.nbytes, self.iova, True)
        self.buffer = pool.alloc(4096, owner="data")
        self.qp = QueuePair(memory, qid=1, entries=256, n_trackers=254, max_transfer=1 << 20, address_map=address_map, bounce=bounce,
                            create_future=loop.create_future, call_soon=loop.call_soon, command_error=None, on_stray=None,
                            ready=ready_callbacks(loop))
        self.qp.bind(loop, shows_thread(loop))
        fd = os.memfd_create("doorbells")
        os.ftruncate(fd, 4096)
        self.page = Mmio(fd, 0, 4096)
        os.close(fd)
        if event_fd < 0:
            self.qp.set_doorbells(self.page, 0, 4)
        else:
            self.qp.mode = MODES["interrupt"]
            self.qp.set_event_fd(event_fd)
            self.qp.set_doorbells(None, 0, 0, write32=self.rung, sq_register=0, cq_register=4)
        self.doorbells = <uint32_t *>(<Mmio>self.page)._at(0, 4, True)
        self.sq = <nvq_sqe *><uintptr_t>(self.address + <uint64_t>self.qp.sq_iova - self.iova)
        self.cq = <nvq_cqe *><uintptr_t>(self.address + <uint64_t>self.qp.cq_iova - self.iova)
        self.phase = 1
        self.namespace = NamespaceCore()
        self.namespace._configure(1, 1 << 20, 4096, 256, {loop: self.qp})
        self.more = self.qp.more
        self.callback = self.answer
        if event_fd < 0:
            loop.call_soon(self.callback)

    @property
    def read(self):
        """The namespace's."""
        return self.namespace.read

    @property
    def readinto(self):
        """The namespace's."""
        return self.namespace.readinto

    def rung(self, uint32_t offset, uint32_t value):
        """A doorbell that is not mapped."""
        self.doorbells[offset >> 2] = value
        if offset == 0:
            self.loop.call_soon(self.callback)

    def answer(self):
        cdef nvq_cqe *cqe
        cdef char *data
        cdef uint64_t one = 1
        if self.closed:
            return
        while self.sq_head != self.doorbells[0]:
            cqe = &self.cq[self.cq_tail]
            cqe.dw0 = cqe.dw1 = 0
            # Moves data where reads have their marks (short.h); a whole page would count as the
            # host's instructions.
            data = <char *><uintptr_t>(self.address + self.sq[self.sq_head].prp1 - self.iova)
            memset(data + 504, 0, 8)
            memset(data + 4088, 0, 8)
            cqe.sqhd = <uint16_t>self.sq_head
            cqe.sqid = 1
            cqe.cid = self.sq[self.sq_head].cid
            cqe.status = self.phase
            self.sq_head = (self.sq_head + 1) & 255
            self.cq_tail = (self.cq_tail + 1) & 255
            if self.cq_tail == 0:
                self.phase ^= 1
        if self.event_fd >= 0:
            if c_write(self.event_fd, &one, sizeof(one)) != sizeof(one):
                raise OSError("the eventfd was not written")
            return
        self.more()
        self.loop.call_soon(self.callback)

    def close(self):
        self.closed = True
        self.qp.release_all()
        self.qp.close()
        self.buffer.free()
