"""Metadata in several places, or at odd addresses, without a copy: PSDT 10b."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from driver_line import READ, WAYS, WRITE, Way, all_handed_over, line, results
from driving import FAST, faults, pattern

import nvme_async
from nvme_async import Protect
from nvme_async.driver.protection import Check
from nvme_async.emulator.faults import FOREVER
from nvme_async.errors import ApplicationTagError

BLOCK, META = 512, 64
SIXTY_FOUR = "block=512,metadata=64"
URI = f"emulated:size=16MiB,{SIXTY_FOUR},sgl=on"


@pytest.fixture
async def controller() -> AsyncIterator[nvme_async.Controller]:
    async with nvme_async.open(URI, **FAST) as opened:
        yield opened


class Counted:
    """Commands with an SGL, copied transfers, and memory taken for data with metadata."""

    def __init__(self, controller: nvme_async.Controller) -> None:
        self._controller = controller
        self._before = self._now()

    def _now(self) -> tuple[int, int]:
        queues = self._controller.transport.queues.all()
        bounced: int = sum(queue.hot.inspect()["bounced"] for queue in queues if queue.qid)  # type: ignore[attr-defined]
        return faults(self._controller).counters()["sgl_commands"], bounced

    @property
    def since(self) -> tuple[int, int]:
        sgl, bounced = self._now()
        return sgl - self._before[0], bounced - self._before[1]


async def test_readv_fills_views_of_data_and_metadata_in_place(controller: nvme_async.Controller) -> None:
    """Records of a block, its metadata and a gap between both, as in a table."""
    ns = controller.namespaces[1]
    data, meta = pattern(6 * BLOCK, 1), pattern(6 * META, 2)
    await ns.write(0, data, metadata=bytearray(meta))
    with controller.alloc(6 * 1024) as memory:
        table = np.asarray(memory).reshape(6, 1024)
        table[:] = 0xEE
        counted = Counted(controller)
        assert await ns.readv([table[:, :BLOCK]], 0, metadata=[table[:, 600 : 600 + META]]) == 6 * BLOCK
        assert counted.since == (1, 0)
        assert table[:, :BLOCK].tobytes() == data
        assert table[:, 600 : 600 + META].tobytes() == meta
        assert (table[:, BLOCK:600] == 0xEE).all()
        assert (table[:, 600 + META :] == 0xEE).all()
        await ns.writev([table[::-1, :BLOCK]], 100 * BLOCK, metadata=[table[::-1, 600 : 600 + META]], fua=True)
        assert counted.since == (2, 0)
        back = bytearray(6 * META)
        assert await ns.read(100, 6, metadata=back) == table[::-1, :BLOCK].tobytes()
        assert back == table[::-1, 600 : 600 + META].tobytes()
        del table


async def test_a_single_odd_place_and_several_for_one_block(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    with controller.alloc(16384) as memory:
        memory[1 : 1 + BLOCK] = pattern(BLOCK, 3)
        memory[1001 : 1001 + META] = pattern(META, 4)
        counted = Counted(controller)
        await ns.write(7, memory[1 : 1 + BLOCK], metadata=memory[1001 : 1001 + META])
        await ns.compare(7, memory[1 : 1 + BLOCK], metadata=memory[1001 : 1001 + META])
        await ns.readinto(7, memory[4097 : 4097 + BLOCK], metadata=memory[5001 : 5001 + META])
        assert memory[4097 : 4097 + BLOCK] == pattern(BLOCK, 3)
        parts = [memory[8192 + 100 * at : 8192 + 100 * at + size] for at, size in enumerate((1, 2, 61))]
        await ns.readv([memory[12289 : 12289 + BLOCK]], 7 * BLOCK, metadata=parts)
        assert b"".join(parts) == bytes(memory[5001 : 5001 + META]) == pattern(META, 4)
        assert counted.since == (4, 0)
        for part in parts:
            part.release()


async def test_more_places_than_one_command_has_room_for(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    blocks = 400
    data, meta = pattern(blocks * BLOCK, 5), pattern(blocks * META, 6)
    with controller.alloc(blocks * 1024) as memory:
        table = np.asarray(memory).reshape(blocks, 1024)
        table[:, :BLOCK] = np.frombuffer(data, np.uint8).reshape(blocks, BLOCK)
        table[:, 700:764] = np.frombuffer(meta, np.uint8).reshape(blocks, META)
        counted = Counted(controller)
        await ns.writev([table[:, :BLOCK]], 0, metadata=[table[:, 700:764]])
        sgl, bounced = counted.since
        assert bounced == 0
        assert 1 < sgl < blocks
        back = bytearray(blocks * META)
        assert await ns.read(0, blocks, metadata=back) == data
        assert back == meta
        del table


@pytest.mark.parametrize("features", ["", ",sgl=byte", ",sgl=on,extended=on"])
async def test_without_such_lists_the_same_is_copied(features: str) -> None:
    async with nvme_async.open(f"emulated:size=16MiB,{SIXTY_FOUR}{features}", **FAST) as controller:
        ns = controller.namespaces[1]
        data, meta = np.frombuffer(pattern(2048, 7), np.uint8), np.frombuffer(pattern(256, 8), np.uint8)
        await ns.writev([data[::2].copy(), data[1::2].copy()], 0, metadata=[meta])
        one, two, back = np.zeros((1024, 2), np.uint8), np.zeros(1024, np.uint8), np.zeros((256, 2), np.uint8)
        await ns.readv([one[:, 0], two], 0, metadata=[back[:, 0]])
        assert one[:, 0].tobytes() + two.tobytes() == data[::2].tobytes() + data[1::2].tobytes()
        assert back[:, 0].tobytes() == meta.tobytes()
        assert not one[:, 1].any()
        assert not back[:, 1].any()


async def test_arguments(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    with pytest.raises(ValueError, match="metadata has 63 bytes, 1 blocks have 64"):
        await ns.readv([bytearray(BLOCK)], 0, metadata=[bytearray(63)])
    with pytest.raises(ValueError, match="both must be multiples of 512"):
        await ns.readv([bytearray(BLOCK)], 3, metadata=[bytearray(64)])
    with pytest.raises(ValueError, match="read-only"):
        await ns.readv([bytearray(BLOCK)], 0, metadata=[bytes(64)])
    async with nvme_async.open("emulated:size=1MiB", **FAST) as plain:
        with pytest.raises(ValueError, match="the namespace has no metadata"):
            await plain.namespaces[1].writev([bytes(4096)], 0, metadata=[bytes(64)])


async def test_the_controller_protects_what_lists_describe() -> None:
    """Reference tags go on from one command to the next; errors say which block."""
    async with nvme_async.open("emulated:size=16MiB,block=512,metadata=8,pi=1,sgl=on", **FAST) as controller:
        ns = controller.namespaces[1]
        with controller.alloc(600 * 1024) as memory:
            table = np.asarray(memory).reshape(600, 1024)
            rows = table[:, 1:513]
            rows[:] = np.frombuffer(pattern(600 * 512, 9), np.uint8).reshape(600, 512)
            counted = Counted(controller)
            await ns.writev([rows], 0, protect=Protect(app_tag=7))
            assert counted.since[1] == 0
            expected = rows.tobytes()
            rows[:] = 0
            await ns.readv([rows], 0, protect=Protect(app_tag=7))
            assert rows.tobytes() == expected
            with pytest.raises(ApplicationTagError) as caught:
                await ns.readv([rows[:4]], 10 * 512, protect=Protect(app_tag=8, checks=Check.APPLICATION_TAG))
            assert caught.value.block == 10
            del table, rows


@pytest.mark.parametrize("way", WAYS)
async def test_a_successor_finds_the_places_of_metadata_in_flight(way: Way) -> None:
    async with line(f"size=16MiB,{SIXTY_FOUR},sgl=on") as drivers:
        memory = drivers.driver.alloc(6 << 10)
        table = np.asarray(memory).reshape(6, 1024)
        table[:, 1:513] = np.frombuffer(pattern(6 * BLOCK, 10), np.uint8).reshape(6, BLOCK)
        table[:, 600:664] = np.frombuffer(pattern(6 * META, 11), np.uint8).reshape(6, META)
        drivers.delay(opcode=WRITE)
        ns = drivers.namespace
        tasks = drivers.start(
            ns.writev([table[:, 1:513]], 0, metadata=[table[:, 600:664]]),
            ns.write(100, memory[1:513], metadata=memory[600:664]),
            ns.writev([memory[1:513]], 200 * BLOCK, metadata=[memory[600:601], memory[601:664]]),
        )
        await drivers.outstanding(3)
        del table
        successor = await drivers.succeed(way)
        assert all_handed_over(await results(tasks))
        drivers.release()
        async with asyncio.timeout(30):
            await successor.adopted.wait()
        assert [adopted.error for adopted in successor.adopted] == [None] * 3
        back = bytearray(6 * META)
        assert await drivers.namespace.read(0, 6, metadata=back) == pattern(6 * BLOCK, 10)
        assert back == pattern(6 * META, 11)
        for lba in (100, 200):
            back = bytearray(META)
            assert await drivers.namespace.read(lba, 1, metadata=back) == pattern(6 * BLOCK, 10)[:BLOCK]
            assert back == pattern(6 * META, 11)[:META]


async def test_metadata_that_a_command_may_still_write_are_in_use(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    queues = controller.transport.queues
    with controller.alloc(4096) as data, controller.alloc(4096) as extra:
        rule = faults(controller).add(queue="io", opcode=READ, count=1, delay=FOREVER)
        read = asyncio.ensure_future(ns.readinto(0, data[:BLOCK], metadata=extra[1 : 1 + META]))
        while not rule.hits:
            await asyncio.sleep(0.001)
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        assert queues.uses(extra.iova + META, 1)  # type: ignore[attr-defined]
        assert not queues.uses(extra.iova + META + 1, 1)  # type: ignore[attr-defined]
        faults(controller).release()
        while queues.uses(extra.iova, 4096):  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)
