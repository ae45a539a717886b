"""The other side of a queue pair in simple, slow Python: a controller's view of ring memory and
doorbells.

Written from the specification, independently of ext/emulator, so that the two can't share an error.
"""

from __future__ import annotations

import asyncio
import os
import struct

from nvme_async.dma import Pool
from nvme_async.driver.completions import error_from
from nvme_async.native._hotpath import MODES, QueuePair, queue_memory
from nvme_async.native._mmio import Mmio
from nvme_async.native._placement import AddressMap, BounceCache
from nvme_async.spec import commands

PAGE = 4096


def flush():
    return commands.flush(1).pack()


async def started(*requests):
    """Tasks that have sent their command."""
    tasks = [asyncio.create_task(request) for request in requests]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


class RingController:
    """One queue pair with the controller's view of it. Doorbells are an Mmio page, as with a real
    device.
    """

    def __init__(
        self,
        loop,
        *,
        entries=8,
        n_trackers=None,
        max_transfer=1 << 20,
        qid=1,
        mode="interrupt",
        pool_bytes=8 << 20,
        n_reserved=0,
        spare_entries=0,
    ):
        self.pool = Pool(pool_bytes, iova=0x1_0000_0000, name="test", hugepages="never")
        self.address_map = AddressMap()
        self.address_map.add(self.pool.address, self.pool.nbytes, self.pool.iova, True)
        self.bounce = BounceCache(lambda nbytes, tag: self.pool.alloc(nbytes, owner="bounce", tag=tag))
        n_trackers = entries - 1 if n_trackers is None else n_trackers
        self.memory = self.pool.alloc(queue_memory(entries, n_trackers, max_transfer, spare_entries), owner="queue")
        self.strays = []
        self.qp = QueuePair(
            self.memory,
            qid=qid,
            entries=entries,
            n_trackers=n_trackers,
            n_reserved=n_reserved,
            max_transfer=max_transfer,
            spare_entries=spare_entries,
            address_map=self.address_map,
            bounce=self.bounce,
            create_future=loop.create_future,
            call_soon=loop.call_soon,
            command_error=error_from,
            on_stray=lambda *stray: self.strays.append(stray),
        )
        self.qp.mode = MODES[mode]
        fd = os.memfd_create("doorbells")
        os.ftruncate(fd, PAGE)
        self.doorbells = Mmio(fd, 0, PAGE)
        os.close(fd)
        self.qp.set_doorbells(self.doorbells, 0, 4)
        self.qid, self.entries = qid, entries
        self.sq_offset = self.qp.sq_iova - self.pool.iova
        self.cq_offset = self.qp.cq_iova - self.pool.iova
        self.sq_head = self.cq_tail = 0
        self.phase = 1
        self.view = memoryview(self.memory)
        self.base = self.memory.offset

    def read(self, iova, nbytes):
        import ctypes

        return ctypes.string_at(self.pool.address + iova - self.pool.iova, nbytes)

    def write(self, iova, data):
        import ctypes

        ctypes.memmove(self.pool.address + iova - self.pool.iova, bytes(data), len(data))

    def fetch(self):
        """Commands up to the tail that was rung."""
        tail = self.doorbells.read32(0)
        found = []
        while self.sq_head != tail:
            found.append(self.read(self.qp.sq_iova + 64 * self.sq_head, 64))
            self.sq_head = (self.sq_head + 1) % self.entries
        return found

    def walk(self, sqe, nbytes):
        """[(iova, length)] of a command's data, as 4.1.1 says to read PRPs."""
        prp1, prp2 = struct.unpack_from("<QQ", sqe, 24)
        first = min(nbytes, PAGE - prp1 % PAGE)
        pieces = [(prp1, first)]
        left = nbytes - first
        if left == 0:
            return pieces
        if left <= PAGE:
            return [*pieces, (prp2, left)]
        at = prp2
        while left:
            entry = struct.unpack("<Q", self.read(at, 8))[0]
            if (at + 8) % PAGE == 0 and left > PAGE:
                at = entry
                continue
            assert entry % PAGE == 0, hex(entry)
            pieces.append((entry, min(PAGE, left)))
            left -= pieces[-1][1]
            at += 8
        return pieces

    def data(self, sqe, nbytes):
        return b"".join(self.read(*piece) for piece in self.walk(sqe, nbytes))

    def fill(self, sqe, data):
        at = 0
        for iova, length in self.walk(sqe, len(data)):
            self.write(iova, data[at : at + length])
            at += length

    def entry(self, cid, status=0, dw0=0, sqid=None, phase=None):
        """The next completion queue entry."""
        return struct.pack(
            "<IIHHHH",
            dw0,
            0,
            self.sq_head,
            self.qid if sqid is None else sqid,
            cid,
            status << 1 | (self.phase if phase is None else phase),
        )

    def post(self, cid, status=0, dw0=0, sqid=None, phase=None):
        """One completion queue entry."""
        entry = self.entry(cid, status, dw0, sqid, phase)
        self.write(self.qp.cq_iova + 16 * self.cq_tail, entry)
        self.cq_tail += 1
        if self.cq_tail == self.entries:
            self.cq_tail, self.phase = 0, self.phase ^ 1

    @staticmethod
    def cid(sqe):
        return struct.unpack_from("<H", sqe, 2)[0]

    def close(self):
        self.view.release()
        self.qp.fail_waiters(RuntimeError("closed"))
        self.qp.release_all()
        self.qp.close()
        self.bounce.close()
        self.memory.free()
        self.doorbells.close()
        self.pool.close()
