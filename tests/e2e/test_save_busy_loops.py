"""A controller is saved while its other loops are busy: from then on this process writes nothing to
rings and trackers, and rings no doorbell, whatever those loops still do.
"""

from __future__ import annotations

import asyncio
import ctypes
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from driver_line import block, eventually, line, settle

from nvme_async.driver.pcie import suspension
from nvme_async.emulator import FOREVER
from nvme_async.errors import HandedOver
from nvme_async.keepalive import restore, saving

BLOCKS = 64


@pytest.fixture
def threads() -> Iterator[Callable[..., list[asyncio.AbstractEventLoop]]]:
    """Starts event loops in their own threads."""
    running: list[tuple[asyncio.AbstractEventLoop, threading.Thread]] = []

    def start(count: int, make: Callable[[], asyncio.AbstractEventLoop]) -> list[asyncio.AbstractEventLoop]:
        for number in range(count):
            loop = make()
            thread = threading.Thread(target=loop.run_forever, name=f"busy {number}", daemon=True)
            thread.start()
            running.append((loop, thread))
        return [loop for loop, _ in running]

    yield start
    for loop, thread in running:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def there(loop: asyncio.AbstractEventLoop, coroutine: Any) -> Any:
    return await asyncio.wait_for(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop)), 60)


class Load:
    """Readers, writers and cancelled readers of blocks whose content is known, on one loop."""

    def __init__(self, drivers: Any, seed: int) -> None:
        self._drivers = drivers
        self._chance = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self.stopping = False
        self.wrong: list[Any] = []
        self.done = 0

    async def _one(self) -> None:
        buffer = bytearray(4096)
        while not self.stopping:
            namespace, lba = self._drivers.namespace, self._chance.randrange(BLOCKS)
            try:
                match self._chance.randrange(4):
                    case 0:
                        await namespace.write(lba, block(lba))
                    case 1:
                        async with asyncio.timeout(self._chance.random() * 0.001):
                            await namespace.read(lba)
                    case _:
                        await namespace.readinto(lba, buffer)
                        if buffer != block(lba):
                            self.wrong.append(lba)
            except TimeoutError:
                pass
            except HandedOver:
                await asyncio.sleep(0.001)
            self.done += 1

    async def start(self, depth: int) -> None:
        self._tasks = [asyncio.create_task(self._one()) for _ in range(depth)]

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self._tasks)


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_nothing_is_written_and_no_doorbell_rung_after_a_save_of_busy_loops(threads: Any, make: Any) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads are interrupted at any place
    try:
        async with line("size=64MiB,queues=4,dbbuf=off") as drivers:
            for lba in range(BLOCKS):
                await drivers.namespace.write(lba, block(lba))
            drivers.faults.trace()
            loops = threads(2, make)
            loads = [Load(drivers, seed) for seed in range(2)]
            for loop, load in zip(loops, loads, strict=True):
                await there(loop, load.start(6))
            await eventually(lambda: all(load.done > 20 for load in loads))
            for number in range(12):
                await asyncio.sleep(number * 0.0001)
                driver = drivers.driver
                async with driver._lock:
                    await saving.suspend(driver)
                    queues = [queue.hot for queue in driver.queues.io_queues()]
                    before = [images(driver, hot) for hot in queues]
                    for loop in loops:  # iterations of the busy loops
                        await there(loop, settle(5))
                    assert [images(driver, hot) for hot in queues] == before
                    due = {key: value for image in before for key, value in doorbells_due(image).items()}
                    await eventually(lambda due=due: rung(drivers, due) == due)  # the controller polls them
                    for loop in loops:
                        await there(loop, settle(5))
                    assert rung(drivers, due) == due
                    if number % 2:
                        await saving.resume(driver)
                        continue
                    bundle = driver.bundle()
                    saving.release(driver)
                with bundle:
                    drivers.driver = await restore(bundle)
                await asyncio.wait_for(drivers.driver.adopted.wait(), 60)
                assert all(command.status == 0 for command in drivers.driver.adopted)
            count = [load.done for load in loads]
            await eventually(lambda: all(load.done > old for load, old in zip(loads, count, strict=True)))
            for loop, load in zip(loops, loads, strict=True):
                await there(loop, load.stop())
                assert not load.wrong
            assert drivers.since()["disables"] == 0
    finally:
        sys.setswitchinterval(interval)


def images(driver: Any, hot: Any) -> tuple[bytes, ...]:
    """Of a queue pair's memory: header and submission ring, trackers and lists; not the completion
    ring, which is the controller's.
    """
    pool = driver.memory.pools[0]
    offset = next(slot.offset for slot in pool.slots() if slot.owner == f"queue {hot.qid}")

    def at(begin: int, nbytes: int) -> bytes:
        return ctypes.string_at(pool.address + offset + begin, nbytes)

    header = at(0, 64)
    (entries,) = struct.unpack_from("<I", header, 12)
    submissions, _, trackers = struct.unpack_from("<QQQ", header, 24)
    return at(0, 4096), at(submissions, 64 * entries), at(trackers, 128 * (entries - 1))


def doorbells_due(image: tuple[bytes, ...]) -> dict[tuple[int, bool], int]:
    """{(queue id, completion queue?): value} after all that was posted, and reaped, is rung."""
    header = image[0]
    (qid,), (entries,) = struct.unpack_from("<H", header, 8), struct.unpack_from("<I", header, 12)
    (submitted,), (reaped,) = struct.unpack_from("<Q", header, 128), struct.unpack_from("<Q", header, 152)
    return {(qid, False): submitted % entries, (qid, True): reaped % entries}


def rung(drivers: Any, due: dict[tuple[int, bool], int]) -> dict[tuple[int, bool], int]:
    """The same, as the controller has them; without a record, as they must be."""
    return due | {key: one.new for one in drivers.faults.doorbells() if (key := (one.qid, one.is_cq)) in due}


async def test_a_busy_loop_that_is_asleep_is_not_visited_by_a_save(
    threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands are in flight, and its thread is in the middle of nothing."""
    trips: list[asyncio.AbstractEventLoop] = []

    class Trip(suspension.loops.Trip[Any]):
        def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
            trips.append(loop)
            super().__init__(loop, function)

    (loop,) = threads(1, uvloop.new_event_loop)
    async with line() as drivers:
        await drivers.namespace.write(5, block(5))

        async def read(lba: int) -> Any:
            return await drivers.namespace.read(lba)

        assert await there(loop, read(5)) == block(5)
        drivers.delay(FOREVER)
        reading = asyncio.run_coroutine_threadsafe(read(5), loop)
        await drivers.outstanding(1)
        driver = drivers.driver
        await there(loop, settle(3))
        async with driver._lock:
            monkeypatch.setattr(suspension.loops, "Trip", Trip)
            await saving.suspend(driver)
            assert loop not in trips
            monkeypatch.undo()
            await saving.resume(driver)
        drivers.release()
        assert await asyncio.wait_for(asyncio.wrap_future(reading), 60) == block(5)
