"""Data that PRPs can't describe, without a copy: readv() and writev() of scattered buffers, and
unaligned ones, by Scatter Gather Lists; with copies where the controller has none.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
from collections.abc import AsyncIterator

import numpy as np
import pytest
from driver_line import READ, WAYS, WRITE, Way, all_handed_over, line, results
from driving import FAST, faults, pattern, within

import nvme_async
from nvme_async.emulator.faults import FOREVER
from nvme_async.errors import CommandError, ConfigurationError, RestoreRefused
from nvme_async.keepalive import restore
from nvme_async.native._hotpath import scatter_room, scattered
from nvme_async.native._placement import Scatter
from nvme_async.spec import commands

BLOCK = 512
ADDRESS = "emulated:size=16MiB,block=512,sgl=byte"


@pytest.fixture
async def controller() -> AsyncIterator[nvme_async.Controller]:
    async with nvme_async.open(ADDRESS, **FAST) as opened:
        yield opened


def counted(controller: nvme_async.Controller) -> tuple[int, int]:
    """(commands with an SGL, transfers that were copied) so far."""
    queues = controller.transport.queues.all()
    bounced: int = sum(queue.hot.inspect()["bounced"] for queue in queues if queue.qid)  # type: ignore[attr-defined]
    return faults(controller).counters()["sgl_commands"], bounced


async def test_a_numpy_view_is_filled_in_place(controller: nvme_async.Controller) -> None:
    """A column of a matrix: 64 places of 64 bytes."""
    ns = controller.namespaces[1]
    data = pattern(8 * BLOCK, 1)
    await ns.write(0, data)
    with controller.alloc(64 * 256) as memory:
        matrix = np.asarray(memory).reshape(64, 256)
        column = matrix[:, 100:164]
        before = counted(controller)
        assert await ns.readv([column], 0) == 8 * BLOCK
        sgl, bounced = (now - then for now, then in zip(counted(controller), before, strict=True))
        assert column.tobytes() == data
        assert not matrix[:, :100].any()
        assert not matrix[:, 164:].any()
        assert sgl >= 1
        assert bounced == 0
        column[:] = column[::-1].copy()
        await ns.writev([column], 100 * BLOCK, fua=True)
        assert counted(controller)[1] == before[1]  # nothing was copied
        assert await ns.read(100, 8) == column.tobytes()
        del matrix, column


async def test_an_odd_address_is_no_reason_to_copy(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    data = pattern(16 * BLOCK, 2)
    with controller.alloc(32 << 10) as memory:
        for odd in (1, 2, 3, 4095):
            place = memory[odd : odd + 16 * BLOCK]
            place[:] = data
            before = counted(controller)
            await ns.write(odd, place)
            place[:] = bytes(16 * BLOCK)
            await ns.readinto(odd, place)
            await ns.compare(odd, place)
            sgl, bounced = (now - then for now, then in zip(counted(controller), before, strict=True))
            assert place == data
            assert (sgl, bounced) == (3, 0)
            place.release()


async def test_registered_memory_and_buffers_of_any_length(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    data = pattern(4 * BLOCK, 3)
    with controller.alloc(4096) as first, controller.alloc(4096) as second:
        parts = [first[7:8], second[:1000], first[100 : 100 + 1047]]
        for part, at in zip(parts, (0, 1, 1001), strict=True):
            part[:] = data[at : at + len(part)]
        before = counted(controller)
        assert await ns.writev(parts, 0) == 4 * BLOCK
        for part in parts:
            part[:] = bytes(len(part))
        assert await ns.readv(parts, 0) == 4 * BLOCK
        sgl, bounced = (now - then for now, then in zip(counted(controller), before, strict=True))
        assert b"".join(parts) == data
        assert (sgl, bounced) == (2, 0)
        for part in parts:
            part.release()


async def test_more_places_than_a_command_has_room_for(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    blocks = 1024
    data = pattern(blocks * BLOCK, 4)
    await ns.write(0, data)
    with await controller.buffer(2 * blocks * BLOCK) as memory:
        rows = np.asarray(memory).reshape(blocks, 2 * BLOCK)[:, 5 : 5 + BLOCK]
        before = counted(controller)
        assert await ns.readv([rows], 0) == blocks * BLOCK
        sgl, bounced = (now - then for now, then in zip(counted(controller), before, strict=True))
        assert rows.tobytes() == data
        assert bounced == 0
        assert 1 < sgl < blocks
        # More places within one block than there is room for: copied.
        bytes_apart = np.asarray(memory)[::2][: 8 * BLOCK]
        assert await ns.readv([bytes_apart], 0) == 8 * BLOCK
        assert bytes_apart.tobytes() == data[: 8 * BLOCK]
        assert await ns.writev([bytes_apart], 4096 * BLOCK) == 8 * BLOCK
        assert await ns.read(4096, 8) == data[: 8 * BLOCK]
        del rows, bytes_apart


@pytest.mark.parametrize(
    ("uri", "sgl"),
    [
        ("emulated:size=16MiB,block=512", 0),
        ("emulated:size=16MiB,block=512,sgl=dword", 1),
        ("emulated:size=16MiB,block=512,sgl=on,metadata=8,formats=512/512+8", 0),
    ],
)
async def test_where_they_are_not_offered_none_is_sent(uri: str, sgl: int) -> None:
    async with nvme_async.open(uri, **FAST) as controller:
        ns = controller.namespaces[1]
        data = pattern(4 * BLOCK, 5)
        await ns.write(0, data)
        with controller.alloc(16 << 10) as memory:
            table = np.asarray(memory).reshape(16, 1024)
            odd = table[:, 1 : 1 + 128]
            assert await ns.readv([odd], 0) == 4 * BLOCK
            assert odd.tobytes() == data
            assert await ns.writev([odd], 64 * BLOCK) == 4 * BLOCK
            assert await ns.read(64, 4) == data
            await ns.readinto(0, memory[1 : 1 + 4 * BLOCK])
            assert memory[1 : 1 + 4 * BLOCK] == data
            assert faults(controller).counters()["sgl_commands"] == 0
            even = table[:, 4 : 4 + 128]
            assert await ns.readv([even], 0) == 4 * BLOCK
            assert even.tobytes() == data
            assert bool(faults(controller).counters()["sgl_commands"]) == bool(sgl)
            del table, odd, even


async def test_memory_that_the_device_does_not_reach_and_parts_of_blocks(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    data = pattern(4 * BLOCK, 6)
    table = np.zeros((16, 300), dtype=np.uint8)
    view = table[:, 3:131]
    view[:] = np.frombuffer(data, dtype=np.uint8).reshape(16, 128)
    assert await ns.writev([view], 3 * BLOCK) == 4 * BLOCK
    table[:] = 0
    assert await ns.readv([view], 3 * BLOCK) == 4 * BLOCK
    assert view.tobytes() == data
    assert await ns.writev([view], 100) == 4 * BLOCK
    table[:] = 0
    assert await ns.readv([view[:, ::-1]], 100) == 4 * BLOCK
    assert view[:, ::-1].tobytes() == data
    assert faults(controller).counters()["sgl_commands"] == 0
    table.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        await ns.readv([table[:, 3:131]], 0)


async def test_a_cancelled_read_keeps_its_places_until_it_is_over(controller: nvme_async.Controller) -> None:
    """They belong to the command: freeing the buffer doesn't hand its pages out again."""
    ns = controller.namespaces[1]
    data = pattern(16 * BLOCK, 7)
    await ns.write(0, data)
    memory = controller.alloc(64 << 10)
    rows = np.asarray(memory).reshape(64, 1024)[:, 1 : 1 + 128]
    faults(controller).add(queue="io", opcode=READ, count=1, delay=FOREVER)
    read = asyncio.ensure_future(ns.readv([rows], 0))
    while not faults(controller).outstanding():
        await asyncio.sleep(0.001)
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    assert len(faults(controller).outstanding()) == 1
    del rows
    memory.free()
    others = [controller.alloc(64 << 10) for _ in range(8)]
    assert all(other.iova != memory.iova for other in others)
    for other in others:
        other[:] = bytes([0xA5]) * len(other)
    faults(controller).release()
    await within(10, _idle(controller))
    assert all(bytes(other) == bytes([0xA5]) * len(other) for other in others)
    for other in others:
        other.free()


async def _idle(controller: nvme_async.Controller) -> None:
    while faults(controller).outstanding():
        await asyncio.sleep(0.001)


async def test_a_reset_sends_scattered_reads_again(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    data = pattern(8 * BLOCK, 8)
    await ns.write(0, data)
    with controller.alloc(64 << 10) as memory:
        rows = np.asarray(memory).reshape(64, 1024)[:32, 1 : 1 + 128]
        odd = memory[60 * 1024 + 1 : 60 * 1024 + 1 + 4 * BLOCK]
        rule = faults(controller).add(queue="io", opcode=READ, count=2, discard=True)
        reads = asyncio.gather(ns.readv([rows], 0), ns.readinto(4, odd[:BLOCK]))
        while rule.hits < 2:
            await asyncio.sleep(0.001)
        await controller.reset()
        await within(10, reads)
        assert rows.tobytes() == data
        assert odd[:BLOCK] == data[4 * BLOCK : 5 * BLOCK]
        del rows
        odd.release()


async def test_an_error_of_the_controller_is_the_callers(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    with controller.alloc(64 << 10) as memory:
        rows = np.asarray(memory).reshape(64, 1024)[:32, 1 : 1 + 128]
        faults(controller).add(queue="io", opcode=READ, count=1, fail=0x281)
        with pytest.raises(CommandError) as failure:
            await ns.readv([rows], 0)
        assert (failure.value.sct, failure.value.sc) == (2, 0x81)
        del rows


async def test_what_the_controller_wants_sent_again_keeps_its_places() -> None:
    async with nvme_async.open(f"{ADDRESS},retry_delays=100ms", **FAST) as controller:
        ns = controller.namespaces[1]
        data = pattern(8 * BLOCK, 11)
        with controller.alloc(64 << 10) as memory:
            rows = np.asarray(memory).reshape(64, 1024)[:32, 1 : 1 + 128]
            rows[:] = np.frombuffer(data, dtype=np.uint8).reshape(32, 128)
            for opcode in (WRITE, READ):
                faults(controller).add(queue="io", opcode=opcode, count=1, fail=0x21, crd=1)
            await within(30, ns.writev([rows], 0))
            rows[:] = 0
            await within(30, ns.readv([rows], 0))
            assert rows.tobytes() == data
            del rows


async def test_a_registration_that_ends_before_the_command_is_sent(controller: nvme_async.Controller) -> None:
    """Nothing is sent to addresses that were unmapped."""
    ns = controller.namespaces[1]
    await ns.read(0)
    queue = controller.transport.queues.all()[1]
    with controller.alloc(4096) as memory:
        scatter = Scatter([memory[1:101], memory[200 : 200 + 412]], writable=True)
        assert scatter_room(queue.hot, scatter) > 2  # type: ignore[attr-defined]
        request = scattered(queue.hot, commands.read(1, 0, 1).pack(), scatter, to_host=True)  # type: ignore[attr-defined]
        address_map = controller.transport.memory.address_map  # type: ignore[attr-defined]
        pool = controller.transport.memory.pools[0]  # type: ignore[attr-defined]
        address_map.remove(pool.address)
        try:
            with pytest.raises(ConfigurationError, match="no longer reaches"):
                await request
        finally:
            address_map.add(pool.address, pool.nbytes, pool.iova, True)
        del scatter, request


@pytest.mark.parametrize("way", WAYS)
async def test_scattered_commands_that_a_takeover_overtakes(way: Way) -> None:
    """The successor finds their places by their lists, and keeps them until the commands end."""
    async with line("size=16MiB,block=512,sgl=byte") as drivers:
        namespace = drivers.namespace
        memory = drivers.driver.alloc(64 << 10, tag=77)
        table = np.asarray(memory).reshape(64, 1024)
        table[:] = 0
        source = table[:8, 1:129]
        source[:] = np.frombuffer(pattern(1024, 9), dtype=np.uint8).reshape(8, 128)
        expected = source.tobytes()
        drivers.delay(opcode=WRITE)
        odd = memory[40 << 10 | 3 : (40 << 10 | 3) + BLOCK]
        odd[:] = pattern(BLOCK, 10)
        tasks = drivers.start(namespace.writev([source], 10 * BLOCK), namespace.write(20, odd))
        await drivers.outstanding(2)
        successor = await drivers.succeed(way)
        assert all_handed_over(await results(tasks))
        del table, source, odd
        assert sorted(one.lba for one in successor.adopted) == [10, 20]
        drivers.release()
        async with asyncio.timeout(30):
            await successor.adopted.wait()
        assert await drivers.namespace.read(10, 2) == expected
        assert await drivers.namespace.read(20) == pattern(BLOCK, 10)


async def test_a_damaged_list_is_noticed() -> None:
    """A descriptor names memory that the command may change: nothing else says which that is."""
    async with line("size=16MiB,block=512,sgl=byte") as drivers:
        memory = drivers.driver.alloc(8192, tag=77)
        source = np.asarray(memory).reshape(8, 1024)[:, 1:65]
        drivers.delay(opcode=WRITE)
        tasks = drivers.start(drivers.namespace.writev([source], 0))
        await drivers.outstanding(1)
        with await drivers.driver.save() as bundle:
            assert all_handed_over(await results(tasks))
            with mmap.mmap(bundle.descriptors["pool"], 0) as pool:
                at = pool.find(struct.pack("<QI", memory.iova + 1024 + 1, 64))
                assert at > 0
                pool[at + 1] ^= 0x10
                with pytest.raises(RestoreRefused, match="an SGL, that do not point to its data"):
                    await restore(bundle)
                pool[at + 1] ^= 0x10
            drivers.past.append(drivers.driver)
            drivers.driver = await restore(bundle)
        drivers.release()
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
        del source
