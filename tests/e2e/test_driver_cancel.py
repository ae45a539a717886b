"""Cancelling is safe in every state: the caller ends at once; the pages stay with the controller
until it no longer uses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import numpy as np
import pytest
from driving import FAST, HASTY, eventually, faults, pattern, within

import nvme_async
from nvme_async.dma import DmaBuffer
from nvme_async.emulator import FOREVER
from nvme_async.errors import QueueShutdown
from nvme_async.keepalive.controller import Controller

MODES = ("adaptive", "interrupt", "poll", "hybrid")


def reachable(controller: Controller) -> list[tuple[int, int, int]]:
    """(first LBA of the command, start, end) of the memory that the controller may still write for
    a read.
    """
    return [
        (int.from_bytes(held.command[40:48], "little"), data.iova, data.iova + data.nbytes)
        for held in faults(controller).outstanding()
        for data in held.ranges
        if held.qid and held.opcode == 2 and data.write
    ]


class Callers:
    """Callers that are cancelled at any moment and free their memory at once, while the controller
    holds some of their commands.

    Each LBA has unique content, so a page that is handed out too early shows up as wrong data. The
    memory that the controller may still write is also compared with the memory that callers have.
    """

    LBAS = 400

    def __init__(self, controller: Controller, seed: int) -> None:
        self.controller = controller
        self.ns = controller.namespaces[1]
        self.random = random.Random(seed)
        self.owned: dict[int, tuple[DmaBuffer, int]] = {}  # by caller number: its buffer, and the LBA that it reads
        self.left: list[tuple[bytearray, bytes]] = []  # buffers of cancelled callers, and their content at that time
        self.finished = self.cancelled = self.checks = 0

    async def prepare(self) -> None:
        data = b"".join(pattern(512, lba) for lba in range(self.LBAS + 16))
        await self.ns.write(0, data)

    def contents(self, lba: int, blocks: int) -> bytes:
        return b"".join(pattern(512, at) for at in range(lba, lba + blocks))

    async def caller(self, number: int) -> None:
        draw = self.random
        lba, blocks = draw.randrange(self.LBAS), draw.choice((1, 8, 9, 16))
        kind = draw.choice(("read", "bounced", "direct", "direct", "batch"))
        if kind == "read":
            assert await self.ns.read(lba, blocks) == self.contents(lba, blocks)
        elif kind == "bounced":
            into = bytearray(512 * blocks)
            try:
                await self.ns.readinto(lba, into)
            except asyncio.CancelledError:
                # The buffer is unchanged, or the read completed before the cancellation; it must
                # stay that way.
                assert into in (bytes(len(into)), self.contents(lba, blocks))
                self.left.append((into, bytes(into)))
                raise
            assert into == self.contents(lba, blocks)
        elif kind == "batch":
            lbas = np.arange(lba, lba + blocks, dtype=np.uint64)
            result = await self.ns.read_many(lbas)
            assert result.data == self.contents(lba, blocks)
        else:
            with self.controller.alloc(512 * blocks) as buffer:
                assert bytes(buffer) == bytes(512 * blocks), "new memory is zeroed, and not written to"
                self.owned[number] = buffer, lba
                try:
                    await self.ns.readinto(lba, buffer)
                    assert bytes(buffer) == self.contents(lba, blocks)
                finally:
                    del self.owned[number]

    def check(self) -> None:
        """No memory that the controller may write for one command belongs to another command's
        caller.
        """
        self.checks += 1
        for lba, begin, end in reachable(self.controller):
            for buffer, reads in self.owned.values():
                overlap = begin < buffer.iova + buffer.nbytes and buffer.iova < end
                assert not overlap or reads == lba, f"memory of the read at {lba} belongs to the one at {reads}"

    async def run(self, callers: int, at_once: int) -> None:
        tasks: dict[asyncio.Task[None], int] = {}
        for number in range(callers):
            tasks[asyncio.ensure_future(self.caller(number))] = number
            for _ in range(self.random.randrange(3)):
                await asyncio.sleep(0)
            if self.random.random() < 0.3:
                await asyncio.sleep(self.random.random() * 0.001)
            while len(tasks) >= at_once or (tasks and self.random.random() < 0.4):
                victim = self.random.choice(list(tasks))
                victim.cancel()
                await asyncio.wait([victim])
                tasks.pop(victim)
                self.count(victim)
            for task in [task for task in tasks if task.done()]:
                tasks.pop(task)
                self.count(task)
            if number % 20 == 0:
                await asyncio.to_thread(self.check)
            if number % 50 == 49:
                await asyncio.to_thread(faults(self.controller).release)
        faults(self.controller).clear()
        await asyncio.to_thread(faults(self.controller).release)
        if tasks:
            await within(20, asyncio.wait(tasks))
        for task in tasks:
            self.count(task)

    def count(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.cancelled += 1
        else:
            task.result()
            self.finished += 1


@pytest.mark.both_loops
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("entries", [8, 64])
async def test_random_cancellation_hands_out_no_page_early(faulty: str, mode: str, entries: int) -> None:
    async with nvme_async.open(faulty, **FAST, mode=mode, queue_entries=entries) as controller:
        callers = Callers(controller, seed=entries * 10 + MODES.index(mode))
        await callers.prepare()
        # The controller holds every fifth command until it is released; others are late.
        for skip in range(2, 400, 10):
            faults(controller).add(queue="io", opcode=2, skip=skip, count=1, delay=FOREVER)
        faults(controller).add(queue="io", opcode=2, skip=1, count=100, delay=0.002)
        await callers.run(400, at_once=3 * entries)
        assert callers.cancelled > 50
        assert callers.finished > 50
        assert callers.checks >= 20
        await eventually(lambda: all(queue["outstanding"] == 0 for queue in controller.inspect()["io_queues"]))
        assert await callers.ns.read(0, callers.LBAS) == callers.contents(0, callers.LBAS)
        assert callers.left
        assert all(into == then for into, then in callers.left), "a buffer of a cancelled caller was written"
        assert controller.state == "ready"
        assert controller.inspect()["resets"] == 0


@pytest.mark.parametrize("mode", MODES)
async def test_cancellation_in_each_state_is_safe(faulty: str, mode: str) -> None:
    """Not started; started, not rung; with the controller; in line for a slot; held by a reset;
    completed but not delivered.
    """
    async with nvme_async.open(faulty, **FAST, mode=mode, queue_entries=4) as controller:
        ns = controller.namespaces[1]
        await ns.write(0, pattern(512))

        async def cancelled(task: asyncio.Future[Any]) -> None:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        # Before its first step.
        await cancelled(asyncio.ensure_future(ns.read(0)))
        # With the controller, and others in line behind it.
        queue = controller.queues.hot[asyncio.get_running_loop()]
        slots = queue.n_free
        rule = faults(controller).add(queue="io", opcode=2, delay=FOREVER)
        out = [asyncio.ensure_future(ns.read(0)) for _ in range(slots)]
        await asyncio.to_thread(rule.wait, slots)
        line = [asyncio.ensure_future(ns.read(0)) for _ in range(4)]
        await asyncio.sleep(0)
        await cancelled(line.pop(1))
        await cancelled(line.pop())
        await cancelled(out.pop(0))
        assert queue.n_outstanding == slots, "the controller has them all"
        assert len(reachable(controller)) == slots
        rule.remove()
        faults(controller).release()
        for task in (*out, *line):
            assert await within(10, task) == pattern(512)
        # Completed, the caller not yet resumed.
        task = asyncio.ensure_future(ns.read(0))
        await asyncio.sleep(0)
        while not task.done() and queue.n_outstanding:
            queue.reap()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await task == pattern(512)
        # Held, because the controller is being reset.
        faults(controller).enable_delay(ready=0.2)
        reset = asyncio.ensure_future(controller.reset())
        await eventually(lambda: controller.state == "resetting")
        waiting, gone = (asyncio.ensure_future(ns.read(0)) for _ in range(2))
        await asyncio.sleep(0)
        await cancelled(gone)
        await within(10, reset)
        assert await within(10, waiting) == pattern(512)
        assert controller.inspect()["io_queues"][0]["outstanding"] == 0


@pytest.mark.both_loops
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ["complete", "cancelled"])
async def test_a_batch_continues_when_others_free_command_ids(faulty: str, mode: str, end: str) -> None:
    """A batch with nothing in flight, because others had all command ids or waited for them."""
    async with nvme_async.open(faulty, **FAST, mode=mode, queue_entries=4) as controller:
        ns = controller.namespaces[1]
        await ns.write(0, b"".join(pattern(512, lba) for lba in range(20)))
        queue = controller.queues.hot[asyncio.get_running_loop()]
        slots = queue.n_free
        rule = faults(controller).add(queue="io", opcode=2, count=slots, delay=FOREVER)
        singles = [asyncio.ensure_future(ns.read(lba)) for lba in range(slots)]
        await asyncio.to_thread(rule.wait, slots)
        line = [asyncio.ensure_future(ns.read(lba)) for lba in range(slots, 8)]
        await asyncio.sleep(0)
        many = asyncio.ensure_future(ns.read_many(range(20)))
        for _ in range(5):
            await asyncio.sleep(0)
        if end == "cancelled":
            # All callers that were resumed, and all in line behind them, are cancelled within one
            # event-loop iteration.
            faults(controller).release()
            while queue.n_outstanding:
                queue.reap()
            for task in (*singles, *line):
                task.cancel()
            await asyncio.wait([*singles, *line])
        else:
            faults(controller).release()
            assert await within(10, asyncio.gather(*singles, *line)) == [pattern(512, lba) for lba in range(8)]
        result = await within(10, many)
        assert result.data == b"".join(pattern(512, lba) for lba in range(20))


@pytest.mark.options(**{**HASTY, "command_timeout": 30.0})
async def test_pages_of_a_cancelled_read_stay_until_the_reset(failing: Controller) -> None:
    """The completion was lost: the pages are free only once the controller may no longer write to
    them.
    """
    ns = failing.namespaces[1]
    rule = faults(failing).add(queue="io", opcode=2, delay=FOREVER)
    buffer = failing.alloc(8192)
    iova = buffer.iova
    read = asyncio.ensure_future(ns.readinto(0, buffer))
    await asyncio.to_thread(rule.wait)
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    buffer.free()
    with pytest.raises(ValueError, match="freed"):
        buffer[0:1]
    assert failing.queues.uses(iova, 8192)
    others = [failing.alloc(8192) for _ in range(20)]
    assert all(other.iova + 8192 <= iova or iova + 8192 <= other.iova for other in others)
    rule.remove()
    await failing.reset()
    # A read is resent after a reset into the same pages, although no caller waits for it.
    await eventually(lambda: not failing.queues.uses(iova, 8192))
    again = failing.alloc(8192)
    assert again.iova == iova
    for one in (again, *others):
        one.free()


async def test_a_cancelled_write_keeps_its_data_until_it_completes(failing: Controller) -> None:
    """The caller may refill the buffer after freeing it; the medium gets the original data."""
    ns = failing.namespaces[1]
    rule = faults(failing).add(queue="io", opcode=1, delay=FOREVER)
    for bounced in (True, False):
        text = pattern(4096, bounced)
        data: Any = bytearray(text) if bounced else failing.alloc(4096)
        if not bounced:
            data[0:4096] = text
        hits = rule.hits
        write = asyncio.ensure_future(ns.write(8, data))
        await asyncio.to_thread(rule.wait, hits + 1)
        write.cancel()
        await asyncio.wait([write])
        if bounced:
            data[:] = bytes(4096)
        else:
            data.free()
        with failing.alloc(4096) as other:
            other[0:4096] = b"x" * 4096
            faults(failing).release()
            await eventually(lambda: failing.inspect()["io_queues"][0]["outstanding"] == 0)
        assert await ns.read(8, 8) == text


async def test_cancelling_all_and_closing_releases_everything(failing: Controller) -> None:
    ns = failing.namespaces[1]
    rule = faults(failing).add(queue="io", opcode=2, delay=FOREVER)
    tasks = [asyncio.ensure_future(ns.read(lba, 16)) for lba in range(400)]
    await asyncio.to_thread(rule.wait, 200)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks[::2])
    failing.options = nvme_async.Options.of({**FAST, "drain_timeout": 0.1})
    await within(20, failing.close())
    for task in tasks[1::2]:
        with pytest.raises(QueueShutdown):
            await task
