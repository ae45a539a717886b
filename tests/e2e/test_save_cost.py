"""The cost of a save, counted, not timed. Only changes are encoded, and queue pairs of other loops
need no visit to their threads, unless these are in the middle of something.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from driver_line import CREATE_CQ, block, calling, descriptors, eventually, line, results, settle

from nvme_async.driver.pcie import restored_queues, suspension
from nvme_async.emulator import FOREVER
from nvme_async.errors import HandedOver, NvmeError, QueueShutdown
from nvme_async.keepalive import restoration, restore, saving
from nvme_async.keepalive import state as saved

pytestmark = pytest.mark.alone  # measures times


class Loops:
    """Event loops in their own threads."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []
        self._threads: list[threading.Thread] = []

    def start(self, count: int, make: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> None:
        for number in range(count):
            loop = make()
            thread = threading.Thread(target=loop.run_forever, name=f"worker {number}", daemon=True)
            thread.start()
            self.loops.append(loop)
            self._threads.append(thread)

    async def on_each(self, make: Any) -> list[Any]:
        async def made() -> Any:
            return await make()  # in the loop's own thread

        futures = [asyncio.run_coroutine_threadsafe(made(), loop) for loop in self.loops]
        return await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)

    def stop(self) -> None:
        for loop, thread in zip(self.loops, self._threads, strict=True):
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()
        self.loops.clear()
        self._threads.clear()


@pytest.fixture
def loops() -> Iterator[Loops]:
    loops = Loops()
    yield loops
    loops.stop()


async def test_a_save_writes_only_changes_and_visits_no_idle_loop(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[str] = Counter()

    def count(where: Any, name: str) -> None:
        real = getattr(where, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            counted[name] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(where, name, counting)

    async with line("size=64MiB,queues=8") as drivers:
        loops.start(3)
        await drivers.namespace.write(0, block(1))
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [block(1)] * 3
        before = drivers.driver.recorder.manifest.sequence
        count(saved, "encode")
        for loop in loops.loops:
            count(loop, "call_soon_threadsafe")
        count(asyncio.get_running_loop(), "run_in_executor")
        bundle = await drivers.driver.save()
        assert counted == {}
        drivers.driver = await restore(bundle)
        bundle.close()
        # Nothing has been written for the successor yet, and nothing needs to be.
        bundle = await drivers.driver.save()
        assert counted["encode"] == 0
        drivers.driver = await restore(bundle)
        bundle.close()
        await eventually(lambda: counted["encode"])
        assert drivers.driver.recorder.manifest.sequence == before + 1
        # A change that a successor must know is written at once, and not again at the save.
        counted.clear()
        memory = drivers.driver.alloc(4096)
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [block(1)] * 3
        changes = counted["encode"]
        (await drivers.driver.save()).close()
        assert counted["encode"] <= changes + 1  # which loop has which of the predecessor's queue pairs
        memory.free()


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_the_loop_of_an_idle_queue_pair_is_visited_only_after_the_save(
    loops: Loops, monkeypatch: pytest.MonkeyPatch, make: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """It stops polling the eventfd of the interrupt, which is then closed."""
    trips: list[asyncio.AbstractEventLoop] = []

    class Trip(suspension.loops.Trip[Any]):
        def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
            if loop in loops.loops:
                trips.append(loop)
            super().__init__(loop, function)

    monkeypatch.setattr(suspension.loops, "Trip", Trip)
    loops.start(2, make)
    async with line() as drivers:
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [bytes(4096)] * 2
        before = descriptors()
        for _ in range(3):
            with await drivers.driver.save() as bundle:
                drivers.driver = await restore(bundle)
            assert await loops.on_each(lambda: drivers.namespace.read(0)) == [bytes(4096)] * 2
        assert not trips
        await eventually(lambda: descriptors() <= before)


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_an_idle_loop_takes_no_interrupt_during_a_save(
    loops: Loops, make: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """It may be the successor's, for which the eventfd stays signalled. The loop is woken once by
    it, and listens again if the save fails.
    """
    loops.start(1, make)
    (loop,) = loops.loops
    async with line() as drivers:
        driver = drivers.driver
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [bytes(4096)]
        queue = driver.queues.io[loop]
        fd, stop, woken = queue.event_fd, queue.hot.on_unwanted, 0

        def counting() -> None:
            nonlocal woken
            woken += 1
            assert stop is not None
            stop()

        queue.hot.on_unwanted = counting
        async with driver._lock:
            await saving.suspend(driver)
            os.eventfd_write(fd, 1)
            await eventually(lambda: woken)
            await loops.on_each(lambda: asyncio.sleep(0.001))  # event-loop iterations that poll
            assert woken == 1
            assert os.eventfd_read(fd) >= 1  # a late interrupt of the read may come too
            await saving.resume(driver)
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [bytes(4096)]
        os.eventfd_write(fd, 1)
        await eventually(lambda: not select.select([fd], [], [], 0)[0])


async def test_a_loop_that_ends_right_after_the_save_keeps_no_eventfd_open(loops: Loops) -> None:
    async with line() as drivers:
        before = descriptors()
        loops.start(1, uvloop.new_event_loop)
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [bytes(4096)]
        bundle = await drivers.driver.save()
        loops.stop()
        with bundle:
            drivers.driver = await restore(bundle)
        await eventually(lambda: descriptors() <= before)


async def test_a_loop_takes_its_former_queue_pair_by_one_call_and_nothing_is_written(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after a servicing the home loop is busy, and so are the others. The saved state says
    already which thread's it was.
    """
    loops.start(3)
    async with line() as drivers:
        await drivers.namespace.write(0, block(1))
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [block(1)] * 3
        qids = {loop: queue.qid for loop, queue in drivers.driver.queues.io.items()}
        with await drivers.driver.save() as bundle:
            drivers.driver = await restore(bundle)
        await settle()  # the home loop listens to those that no loop has taken
        queues, recorder = drivers.driver.queues, drivers.driver.recorder
        created: list[Any] = []
        create = queues.create

        async def counting(loop: asyncio.AbstractEventLoop, worker: str = "") -> Any:
            created.append(loop)
            return await create(loop, worker)

        monkeypatch.setattr(queues, "create", counting)
        assert recorder is not None
        written = recorder._written
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [block(1)] * 3
        assert not created
        assert {loop: queue.qid for loop, queue in queues.io.items()} == qids
        assert recorder._inputs("live") == written
        # A new one is made as before.
        monkeypatch.undo()
        loops.start(1)
        assert (await loops.on_each(lambda: drivers.namespace.read(0)))[-1] == block(1)


async def test_a_loop_whose_home_is_stuck_gets_a_spare_queue_pair_later(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restored_queues, "_AT_ONCE", 0.001)
    loops.start(1)
    async with line() as drivers:
        await drivers.namespace.write(0, block(1))
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [block(1)]
        with await drivers.driver.save() as bundle:
            drivers.driver = await restore(bundle)
        (loop,) = loops.loops
        reading = asyncio.run_coroutine_threadsafe(calling(drivers.namespace.read, 0), loop)
        threading.Event().wait(0.05)  # the home loop does nothing meanwhile
        assert await asyncio.wrap_future(reading) == block(1)
        assert drivers.driver.queues.io[loop].hot.qid


async def test_changes_noticed_only_at_the_save_are_written() -> None:
    """The recorder did not learn of a change: a save compares nevertheless."""
    async with line() as drivers:
        drivers.driver.recorder.decision = "something else"
        with await drivers.driver.save() as bundle:
            assert saved.decode(bundle.manifest).decision == "something else"
            drivers.driver = await restore(bundle)
            assert drivers.driver.decision == "something else"


async def test_a_queue_pair_whose_creation_a_save_overtakes_keeps_nothing_open(loops: Loops) -> None:
    """Its loop hears of the hand-over, and the predecessor's pool is closed."""
    loops.start(1)
    async with line() as drivers:
        created = drivers.faults.add(queue="admin", opcode=CREATE_CQ, delay=FOREVER, count=1)
        reading = asyncio.run_coroutine_threadsafe(calling(drivers.namespace.read, 0), loops.loops[0])
        await eventually(lambda: created.hits)
        memory = drivers.driver.memory
        assert memory is not None
        pool = memory.pools[0]
        with await drivers.driver.save() as bundle:
            drivers.driver = await restore(bundle)
        with pytest.raises(HandedOver):
            await asyncio.wait_for(asyncio.wrap_future(reading), 60)
        await eventually(lambda: pool.closed)
        drivers.release()


@pytest.mark.parametrize("succeeds", [False, True])
async def test_a_queue_pair_that_is_created_during_a_save_is_not_used(
    loops: Loops, monkeypatch: pytest.MonkeyPatch, succeeds: bool
) -> None:
    """The others are frozen, and a successor may be reading the rings already. It is used once the
    save has failed; after a hand-over its loop hears of that.
    """
    loops.start(1)
    async with line() as drivers:
        driver = drivers.driver
        await drivers.namespace.write(0, block(1))
        maker = driver.queues.maker
        create, created, proceed = maker.create, asyncio.Event(), asyncio.Event()

        async def slowly(queue: Any) -> None:
            await create(queue)
            created.set()
            await proceed.wait()

        monkeypatch.setattr(maker, "create", slowly)
        reading = asyncio.run_coroutine_threadsafe(calling(drivers.namespace.read, 0), loops.loops[0])
        await asyncio.wait_for(created.wait(), 60)
        assert driver.memory is not None
        pool = driver.memory.pools[0]
        async with driver._lock:
            await saving.suspend(driver)
            proceed.set()
            await settle()
            assert loops.loops[0] not in driver.queues.io
            assert not reading.done()
            if not succeeds:
                await saving.resume(driver)
                assert await asyncio.wait_for(asyncio.wrap_future(reading), 60) == block(1)
                return
            bundle = driver.bundle()
            saving.release(driver)
        with bundle:
            drivers.driver = await restore(bundle)
        with pytest.raises(HandedOver):
            await asyncio.wait_for(asyncio.wrap_future(reading), 60)
        await eventually(lambda: pool.closed)


async def test_a_save_waits_for_a_loop_that_is_adopting_its_queue_pair(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen remotely at that moment, it would be listened to afterwards."""
    loops.start(1)
    async with line() as drivers:
        queues = drivers.driver.queues
        adopt, adopting, proceed = queues.adopt, threading.Event(), threading.Event()

        def slowly(queue: Any) -> None:
            adopting.set()
            proceed.wait(60)
            adopt(queue)

        monkeypatch.setattr(queues, "adopt", slowly)
        reading = asyncio.run_coroutine_threadsafe(calling(drivers.namespace.read, 0), loops.loops[0])
        await eventually(adopting.is_set)
        save = asyncio.create_task(drivers.driver.save())
        await eventually(lambda: drivers.driver.state == "saving")
        await settle(100)
        assert not save.done()
        proceed.set()
        with await save as bundle:
            drivers.driver = await restore(bundle)
        # The loop may still read before it freezes its queue pair.
        (result,) = await results([asyncio.wrap_future(reading)])
        assert result == bytes(4096) or isinstance(result, HandedOver)


@pytest.mark.slow
async def test_saves_while_other_loops_start_end_and_send(loops: Loops) -> None:
    """Frozen remotely or by their own threads: no read returns wrong data, none is lost, none waits
    forever.
    """
    chance = random.Random(3)
    loops.start(3)
    async with line("size=64MiB,queues=8") as drivers:
        for lba in range(64):
            await drivers.namespace.write(lba, block(lba))
        counted: Counter[str] = Counter()
        stopping = False

        async def reader() -> None:
            while not stopping:
                lba = chance.randrange(64)
                try:
                    data = await drivers.namespace.read(lba)
                except (HandedOver, QueueShutdown) as error:
                    counted[type(error).__name__] += 1
                    await asyncio.sleep(0.001)
                    continue
                assert data == block(lba)
                counted["read"] += 1
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() * 0.002)

        async def several() -> None:
            await asyncio.gather(*(reader() for _ in range(2)))

        readers = [asyncio.run_coroutine_threadsafe(several(), loop) for loop in loops.loops]
        before = descriptors()
        for _ in range(60):
            await asyncio.sleep(chance.random() * 0.004)
            try:
                bundle = await drivers.driver.save()
            except NvmeError as error:
                raise AssertionError(f"a save failed: {error}") from error
            drivers.driver = await restore(bundle)
            bundle.close()
            async with asyncio.timeout(30):
                await drivers.driver.adopted.wait()
            assert all(command.status == 0 for command in drivers.driver.adopted)
        await eventually(lambda: counted["read"] > 100)  # a sanitized build is slower
        stopping = True
        for one in readers:
            await asyncio.wait_for(asyncio.wrap_future(one), 60)
        assert counted["read"] > 100
        await eventually(lambda: descriptors() <= before)
        assert drivers.since()["disables"] == 0


async def test_loops_that_are_named_get_queue_pairs_without_a_visit_to_the_home_loop(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds its queue pair at its first I/O, that of the thread of the same name."""
    monkeypatch.setattr(restoration, "_ACQUAINTANCE", 60.0)
    loops.start(3)
    async with line("size=64MiB,queues=8") as drivers:
        await drivers.namespace.write(0, block(1))
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [block(1)] * 3
        before = {loop: queue.qid for loop, queue in drivers.driver.queues.io.items()}
        visits: Counter[str] = Counter()
        with await drivers.driver.save() as bundle:
            drivers.driver = await restore(bundle, loops=loops.loops)
        assert {loop: queue.qid for loop, queue in drivers.driver.queues.io.items()} == before
        create, at_once = drivers.driver.queues.create, drivers.driver.queues._spare_at_once

        async def creating(*arguments: Any) -> Any:
            visits["create"] += 1
            return await create(*arguments)

        async def taking(*arguments: Any) -> Any:
            visits["take"] += 1
            return await at_once(*arguments)

        drivers.driver.queues.create, drivers.driver.queues._spare_at_once = creating, taking
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [block(1)] * 3
        assert not visits


async def test_a_loop_that_is_named_and_busy_gets_its_queue_pair_later(loops: Loops) -> None:
    loops.start(1)
    release = threading.Event()
    async with line("size=64MiB,queues=4") as drivers:
        await drivers.namespace.write(0, block(1))
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [block(1)]
        with await drivers.driver.save() as bundle:
            loops.loops[0].call_soon_threadsafe(release.wait, 60)
            drivers.driver = await restore(bundle, loops=loops.loops)
        assert loops.loops[0] not in drivers.driver.queues.io
        release.set()
        assert await loops.on_each(lambda: drivers.namespace.read(0)) == [block(1)]
        assert loops.loops[0] in drivers.driver.queues.io
