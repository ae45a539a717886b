"""A controller in memory with the driver's interface, and faults on request, for the benchmark's
own tests.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from nvme_async.errors import UnrecoveredReadError


class Memory(bytearray):
    """The result of alloc(): counts itself in its controller."""

    def free(self):
        self.owner.live -= 1


class MemoryNamespace:
    """Blocks in a bytearray. Every I/O suspends once, so that other tasks run in between.

    lose_writes: LBAs whose writes are acknowledged and dropped. fail_reads: LBAs that can't be
        read. misdirect: writes
    to the key's LBA go to the value's instead. delay: seconds each I/O takes.
    """

    def __init__(self, nbytes=1 << 20, block_size=512):
        self.data = bytearray(nbytes)
        self.nbytes, self.block_size = nbytes, block_size
        self.calls = Counter()
        self.lose_writes, self.fail_reads, self.misdirect = set(), set(), {}
        self.delay = 0.0
        self.in_flight = self.most_in_flight = 0
        self.history = []

    async def _io(self, kind, lba, blocks):
        assert lba >= 0
        assert (lba + blocks) * self.block_size <= self.nbytes
        self.calls[kind] += 1
        self.history.append((kind, lba, blocks))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.in_flight -= 1

    async def read(self, lba, blocks):
        await self._io("first", lba, blocks)
        at = lba * self.block_size
        return bytes(self.data[at : at + blocks * self.block_size])

    async def readinto(self, lba, buffer):
        with memoryview(buffer) as view:
            await self._io("read", lba, len(view) // self.block_size)
            if lba in self.fail_reads:
                raise UnrecoveredReadError(
                    2, 0x81, nsid=1, lba=lba, blocks=1, text="Unrecovered Read Error", command="Read"
                )
            at = lba * self.block_size
            view[:] = self.data[at : at + len(view)]
            return len(view)

    async def write(self, lba, data, *, fua=False):
        with memoryview(data) as view:
            await self._io("fua" if fua else "write", lba, len(view) // self.block_size)
            if lba in self.lose_writes:
                return
            at = self.misdirect.get(lba, lba) * self.block_size
            self.data[at : at + len(view)] = view

    async def flush(self):
        await self._io("flush", 0, 0)

    async def deallocate(self, ranges):
        for lba, blocks in ranges:
            await self._io("trim", lba, blocks)
            at = lba * self.block_size
            self.data[at : at + blocks * self.block_size] = bytes(blocks * self.block_size)

    async def read_many(self, lbas, *, into, blocks, depth):
        with memoryview(into) as view:
            size = blocks * self.block_size
            assert len(view) == len(lbas) * size
            for index, lba in enumerate(lbas):
                self.calls["read"] += 1
                view[index * size : (index + 1) * size] = self.data[lba * self.block_size :][:size]
        await asyncio.sleep(0)

    async def write_many(self, lbas, data, *, blocks, depth):
        with memoryview(data) as view:
            size = blocks * self.block_size
            assert len(view) == len(lbas) * size
            for index, lba in enumerate(lbas):
                self.calls["write"] += 1
                at = lba * self.block_size
                self.data[at : at + size] = view[index * size : (index + 1) * size]
        await asyncio.sleep(0)


class MemoryController:
    def __init__(self, namespace=None):
        self.namespaces = {1: namespace or MemoryNamespace()}
        self.live = 0

    def alloc(self, nbytes):
        memory = Memory(nbytes)
        memory.owner = self
        self.live += 1
        return memory

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        assert self.live == 0, "memory of the device was not given back"
