"""A queue pair whose process ends, and the successor that adopts its commands."""

from __future__ import annotations

import asyncio
import struct

from ring_controller import RingController
from tracker_sum import tracker_sum

from nvme_async.dma import Pool
from nvme_async.driver.completions import error_from
from nvme_async.native import _hotpath
from nvme_async.native._hotpath import QueuePair
from nvme_async.native._placement import AddressMap, BounceCache
from nvme_async.spec import commands

POSITIONS = {"submitted": 128, "sq_ringing": 136, "sq_rung": 144, "reaped": 152, "cq_ringing": 160, "cq_rung": 168}
FLUSH = commands.flush(1).pack()


class Successor(RingController):
    """Takes the queue pair of `old` from its pool. The controller's side (doorbells, heads) is the
    same controller's.
    """

    def __init__(self, old: RingController, loop) -> None:
        self.__dict__.update(
            {name: getattr(old, name) for name in ("doorbells", "qid", "entries", "sq_head", "cq_tail", "phase")}
        )
        self.old = old
        self.pool = Pool.attach(old.pool.fd)
        self.address_map = AddressMap()
        self.address_map.add(self.pool.address, self.pool.nbytes, self.pool.iova, True)
        self.bounce = BounceCache(lambda nbytes, tag: self.pool.alloc(nbytes, owner="bounce", tag=tag))
        self.memory = self.pool.claim(old.memory.offset)
        facts = _hotpath.check_queue(self.memory, old.qid)
        self.strays = []
        self.qp = QueuePair(
            self.memory,
            **facts,
            max_transfer=old.qp.max_transfer,
            address_map=self.address_map,
            bounce=self.bounce,
            create_future=loop.create_future,
            call_soon=loop.call_soon,
            command_error=error_from,
            on_stray=lambda *stray: self.strays.append(stray),
            attach=True,
        )
        self.qp.mode = 1
        self.qp.set_doorbells(self.doorbells, 0, 4)
        self.found = _hotpath.verify_queue(self.qp)
        for slot in self.pool.slots():
            if slot.owner == "bounce":
                count = slot.nbytes // (4096 << slot.tag)
                self.bounce.add_chunk(self.pool.claim(slot.offset), slot.tag, count, set(self.found["bounce"]))
        self.finished = []
        self.view = memoryview(self.memory)

    def adopt(self):
        commands, _, self.events = _hotpath.adopt(self.qp, _hotpath.AdoptedCommand, self.finished.append, FLUSH)
        self.qp.hold(False)
        return commands

    def close(self):
        super().close()
        self.old.view.release()


class Scene:
    """A ring and its successors."""

    def __init__(self, **options) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks: list[asyncio.Task] = []
        self.ring = RingController(self.loop, **({"entries": 8, "max_transfer": 65536} | options))
        self.successor: Successor | None = None

    async def send(self, *requests):
        for request in requests:
            self.tasks.append(asyncio.ensure_future(request))
        for _ in range(4):
            await asyncio.sleep(0)

    def read(self, lba=0, nbytes=4096, tag=0):
        return self.ring.qp.request(
            commands.read(1, lba, max(1, nbytes // 512)).pack(), read_nbytes=nbytes, to_host=True, tag=tag
        )

    def write(self, lba, data, tag=0):
        return self.ring.qp.request(commands.write(1, lba, len(data) // 512).pack(), data, tag=tag)

    def poke(self, **positions):
        for name, value in positions.items():
            struct.pack_into("<Q", self.ring.view, POSITIONS[name], value)

    def position(self, name):
        view = self.successor.view if self.successor else self.ring.view
        return struct.unpack_from("<Q", view, POSITIONS[name])[0]

    def tracker(self, slot):
        return struct.unpack_from("<QQQQII", self.ring.view, 24)[2] + slot * 128

    def state(self, slot, value=None):
        at = self.tracker(slot) + 64
        if value is not None:
            struct.pack_into("<I", self.ring.view, at, value)
        return struct.unpack_from("<I", self.ring.view, at)[0]

    def seal(self, slot):
        """Corrects the tracker's checksum after a change."""
        at = self.tracker(slot)
        struct.pack_into("<H", self.ring.view, at + 102, tracker_sum(bytes(self.ring.view[at : at + 128])))

    def kill(self):
        """The owner is dead. (Its objects stay, because the test's process continues; they no
        longer touch the pool.)
        """
        self.ring.pool.detach()
        self.successor = Successor(self.ring, self.loop)
        return self.successor

    async def close(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.successor is not None:
            self.successor.close()
        if self.ring.pool.detached:
            _hotpath.hand_over(self.ring.qp, RuntimeError("killed"), RuntimeError("killed"))
        else:
            self.ring.close()


def payload(byte):
    return bytes([byte]) * 4096
