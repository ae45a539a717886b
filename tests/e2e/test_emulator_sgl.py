"""Scatter Gather Lists as the emulated controller reads them: what the specification allows, and
the status for everything else.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from driving import FAST, faults, pattern

import nvme_async
from nvme_async.dma import DmaBuffer
from nvme_async.errors import CommandError
from nvme_async.native._hotpath import QueuePair
from nvme_async.spec import commands

BLOCK = 512
DATA, BUCKET, SEGMENT, LAST, KEYED = 0x00, 0x10, 0x20, 0x30, 0x40


def descriptor(kind: int, address: int, nbytes: int) -> bytes:
    return struct.pack("<QI3xB", address, nbytes, kind)


class Drive:
    """A controller, and a buffer for its commands' data and lists."""

    def __init__(self, controller: nvme_async.Controller, memory: DmaBuffer) -> None:
        self.controller, self.memory = controller, memory
        self.iova = memory.iova
        self.ns = controller.namespaces[1]

    @property
    def hot(self) -> QueuePair:
        return self.controller.transport.queues.all()[1].hot  # type: ignore[attr-defined,no-any-return]

    async def send(self, command: commands.Command, root: bytes, *, psdt: int = 1, mptr: int = 0) -> None:
        sqe = bytearray(command.pack())
        sqe[1] |= psdt << 6
        sqe[16:24] = mptr.to_bytes(8, "little")
        sqe[24:40] = root
        await self.hot.request(bytes(sqe))

    async def read(self, lba: int, blocks: int, root: bytes, **options: Any) -> None:
        await self.send(commands.read(1, lba, blocks), root, **options)

    async def write(self, lba: int, blocks: int, root: bytes, **options: Any) -> None:
        await self.send(commands.write(1, lba, blocks), root, **options)


async def _drive(options: str) -> AsyncIterator[Drive]:
    async with nvme_async.open(f"emulated:size=16MiB,block=512,{options}", **FAST) as controller:
        await controller.namespaces[1].read(0)  # so that this loop has its queue pair
        with controller.alloc(64 << 10) as memory:
            yield Drive(controller, memory)


@pytest.fixture
async def drive(request: pytest.FixtureRequest) -> AsyncIterator[Drive]:
    async for one in _drive(getattr(request, "param", "sgl=on")):
        yield one


async def test_what_is_not_offered_is_refused() -> None:
    async for plain in _drive("depth=64"):
        assert plain.controller.identify.sgls == 0
        with pytest.raises(CommandError) as failure:
            await plain.read(0, 1, descriptor(DATA, plain.iova, BLOCK))
        assert failure.value.sc == 0x02


async def test_blocks_segments_and_chains(drive: Drive) -> None:
    assert drive.controller.identify.sgls & 3 == 1
    blocks = pattern(8 * BLOCK, 1)
    await drive.ns.write(0, blocks)
    # One block, at an odd byte.
    await drive.read(0, 8, descriptor(DATA, drive.iova + 1, 8 * BLOCK))
    assert drive.memory[1 : 1 + 8 * BLOCK] == blocks
    # Three segments; descriptors of all lengths, empty ones too.
    lists, data = drive.iova + (32 << 10), drive.iova + (16 << 10)
    sizes = [1, 0, 510, 1, 0, 1024, 7, 2 * BLOCK, 505]
    sizes.append(8 * BLOCK - sum(sizes))
    entries, at, expected = [], 0, bytearray(16 << 10)
    done = 0
    for size in sizes:
        entries.append(descriptor(DATA, data + at, size))
        expected[at : at + size] = blocks[done : done + size]
        at, done = at + size + 13, done + size
    first, second, third = lists, lists + 0x100, lists + 0x208
    drive.memory[32 << 10 : (32 << 10) + 64] = b"".join(entries[:3]) + descriptor(SEGMENT, second, 80)
    drive.memory[(32 << 10) + 0x100 : (32 << 10) + 0x150] = b"".join(entries[3:7]) + descriptor(LAST, third, 48)
    drive.memory[(32 << 10) + 0x208 : (32 << 10) + 0x238] = b"".join(entries[7:])
    await drive.read(0, 8, descriptor(SEGMENT, first, 64))
    assert bytes(drive.memory[16 << 10 : 32 << 10]) == bytes(expected)
    await drive.write(100, 8, descriptor(SEGMENT, first, 64))
    assert await drive.ns.read(100, 8) == blocks
    assert faults(drive.controller).counters()["sgl_commands"] == 3


async def test_a_bit_bucket_takes_what_nobody_wants(drive: Drive) -> None:
    blocks = pattern(4 * BLOCK, 2)
    await drive.ns.write(0, blocks)
    at = 32 << 10
    parts = (BUCKET, 0, 100), (DATA, drive.iova, 50), (BUCKET, 0, 4 * BLOCK - 150)
    drive.memory[at : at + 48] = b"".join(descriptor(*part) for part in parts)
    await drive.read(0, 4, descriptor(LAST, drive.iova + at, 48))
    assert drive.memory[:50] == blocks[100:150]
    assert drive.memory[50 : 4 * BLOCK] == bytes(4 * BLOCK - 50)
    # It sends nothing, whatever its length.
    drive.memory[: 4 * BLOCK] = blocks
    parts = (BUCKET, 0, 12345), (DATA, drive.iova, 4 * BLOCK), (BUCKET, 0, 5)
    drive.memory[at : at + 48] = b"".join(descriptor(*part) for part in parts)
    await drive.write(50, 4, descriptor(LAST, drive.iova + at, 48))
    assert await drive.ns.read(50, 4) == blocks


SEGMENT_INVALID, NUMBER, LENGTH, TYPE, TRANSFER = 0x0D, 0x0E, 0x0F, 0x11, 0x04


@pytest.mark.parametrize(
    ("root", "entries", "status"),
    [
        ((DATA, 0, BLOCK - 1), [], LENGTH),
        ((DATA, 0, BLOCK + 1), [], LENGTH),
        ((DATA, 1 << 60, BLOCK), [], TRANSFER),
        ((KEYED, 0, BLOCK), [], TYPE),
        ((0x50, 0, BLOCK), [], TYPE),
        ((DATA | 1, 0, BLOCK), [], TYPE),  # an offset
        ((LAST, "list", 0), [], SEGMENT_INVALID),
        ((LAST, "list", 17), [], SEGMENT_INVALID),
        ((LAST, "odd list", 16), [], SEGMENT_INVALID),
        ((LAST, 1 << 60, 16), [], TRANSFER),
        ((SEGMENT, "list", 16), [(DATA, 0, BLOCK)], SEGMENT_INVALID),  # leads nowhere
        ((LAST, "list", 16), [(LAST, 0, 16)], SEGMENT_INVALID),
        ((LAST, "list", 32), [(DATA, 0, 100), (SEGMENT, 0, 16)], SEGMENT_INVALID),
        ((SEGMENT, "list", 32), [(LAST, 0, 16), (DATA, 0, BLOCK)], NUMBER),
        ((LAST, "list", 32), [(DATA, 0, 100), (DATA, 0, 100)], LENGTH),
        ((LAST, "list", 32), [(DATA, 0, BLOCK), (DATA, 0, 1)], LENGTH),
        ((LAST, "list", 16), [(KEYED, 0, BLOCK)], TYPE),
        ((SEGMENT, "list", 16), [(SEGMENT, "list", 16)], NUMBER),  # for ever
    ],
)
async def test_every_mistake_has_its_status(drive: Drive, root: Any, entries: Any, status: int) -> None:
    at = 32 << 10
    places = {"list": drive.iova + at, "odd list": drive.iova + at + 4}

    def real(kind: int, address: int | str, nbytes: int) -> bytes:
        where = places[address] if isinstance(address, str) else address or drive.iova
        return descriptor(kind, where, nbytes)

    drive.memory[at : at + 16 * len(entries)] = b"".join(real(*entry) for entry in entries)
    with pytest.raises(CommandError) as failure:
        await drive.write(0, 1, real(*root))
    assert (failure.value.sct, failure.value.sc) == (0, status)
    assert await drive.ns.read(0) == bytes(BLOCK)


@pytest.mark.parametrize("drive", ["sgl=dword/longer"], indirect=True)
async def test_dwords_and_longer_lists(drive: Drive) -> None:
    assert drive.controller.identify.sgls == 2 | 1 << 18
    blocks = pattern(2 * BLOCK, 3)
    await drive.ns.write(0, blocks)
    await drive.read(0, 2, descriptor(DATA, drive.iova + 4, 3 * BLOCK))
    assert drive.memory[4 : 4 + 2 * BLOCK] == blocks
    assert drive.memory[4 + 2 * BLOCK : 4 + 3 * BLOCK] == bytes(BLOCK)
    for address, nbytes in ((1, 2 * BLOCK), (0, 2 * BLOCK + 2)):
        with pytest.raises(CommandError) as failure:
            await drive.read(0, 2, descriptor(DATA, drive.iova + address, nbytes))
        assert failure.value.sc == 0x1E
    with pytest.raises(CommandError) as failure:
        await drive.read(0, 1, descriptor(BUCKET, 0, BLOCK))
    assert failure.value.sc == TYPE


META = "sgl=byte/metadata,metadata=8,formats=512/512+8"


@pytest.mark.parametrize("drive", [META], indirect=True)
async def test_metadata_by_a_list_of_its_own(drive: Drive) -> None:
    data, tags = pattern(4 * BLOCK, 4), pattern(32, 5)
    await drive.ns.write(0, data, metadata=tags)
    at, meta = 32 << 10, 33 << 10
    parts = (DATA, drive.iova + 8192, 5), (DATA, drive.iova + 9001, 27)
    drive.memory[meta : meta + 32] = b"".join(descriptor(*part) for part in parts)
    drive.memory[at : at + 16] = descriptor(LAST, drive.iova + meta, 32)
    root = descriptor(DATA, drive.iova + 3, 4 * BLOCK)
    await drive.read(0, 4, root, psdt=2, mptr=drive.iova + at)
    assert drive.memory[3 : 3 + 4 * BLOCK] == data
    assert bytes(drive.memory[8192:8197]) + bytes(drive.memory[9001:9028]) == tags
    await drive.write(8, 4, root, psdt=2, mptr=drive.iova + at)
    place = bytearray(32)
    assert await drive.ns.read(8, 4, metadata=place) == data
    assert bytes(place) == tags
    # One contiguous piece, at an odd byte.
    await drive.read(0, 4, root, mptr=drive.iova + 10001)
    assert drive.memory[10001:10033] == tags
    drive.memory[at : at + 16] = descriptor(DATA, drive.iova, 31)
    with pytest.raises(CommandError) as failure:
        await drive.read(0, 4, root, psdt=2, mptr=drive.iova + at)
    assert failure.value.sc == 0x10  # Metadata SGL Length Invalid
    with pytest.raises(CommandError) as failure:
        await drive.read(0, 4, root, psdt=2, mptr=drive.iova + at + 4)
    assert failure.value.sc == SEGMENT_INVALID
    with pytest.raises(CommandError) as failure:
        await drive.read(0, 4, root, psdt=3)
    assert failure.value.sc == 0x02
