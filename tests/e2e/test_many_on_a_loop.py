"""Many controllers on one event loop: their interrupts come through one descriptor, and one timer
polls early for all.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import uvloop
from driving import FAST, eventually, faults
from forking import in_child

import nvme_async
from nvme_async.driver.queues import loop_waits
from nvme_async.keepalive.controller import Controller
from nvme_async.native import _hotpath

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
BLOCK = 4096
MANY = loop_waits.DIRECT + 2


def on(make: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(asyncio.wait_for(main(), 120))


def descriptors() -> list[str]:
    """What is open, without numbers."""
    gc.collect()
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
        except FileNotFoundError:
            continue
    return sorted(found)


@asynccontextmanager
async def controllers(n: int = MANY, **options: Any) -> AsyncIterator[list[Controller]]:
    async with AsyncExitStack() as stack:
        options = {**FAST, "mode": "interrupt", **options}
        yield [await stack.enter_async_context(nvme_async.open("emulated:size=1MiB", **options)) for _ in range(n)]


async def use(controller: Controller, times: int = 20) -> None:
    """By interrupts: one that doesn't come would take an early poll, which is counted."""
    namespace, data = controller.namespaces[1], os.urandom(BLOCK)
    for lba in range(times):
        await namespace.write(lba, data)
        assert await namespace.read(lba) == data


def interrupts(controller: Controller) -> int:
    return int(controller.inspect()["io_queues"][0]["interrupts"])


@pytest.mark.parametrize("make", LOOPS)
def test_all_of_them_get_their_interrupts_through_one_descriptor(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        waits = loop_waits.of(asyncio.get_running_loop())
        async with controllers() as many:
            await asyncio.gather(*(use(controller) for controller in many))
            assert waits.native.is_open
            assert all(interrupts(controller) for controller in many)
        assert not waits.native.is_open
        before = descriptors()
        async with controllers() as many:
            await asyncio.gather(*(use(controller) for controller in many))
        await eventually(lambda: descriptors() == before)

    on(make, main)


@pytest.mark.parametrize("make", LOOPS)
def test_one_is_closed_and_reset_while_the_others_work(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        async with controllers() as many:
            others = asyncio.gather(*(use(controller, 100) for controller in many[2:]))
            await use(many[0])
            await many[0].close()
            await many[1].reset()
            await use(many[1])
            async with controllers(2) as more:  # in the places of the closed one
                await asyncio.gather(*(use(controller) for controller in [*more, *many[1:]]))
            await others

    on(make, main)


@pytest.mark.parametrize("make", LOOPS)
def test_a_save_that_fails_gives_back_the_interrupts(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """While it is frozen, an interrupt may be a successor's, and is not taken."""

    async def main() -> None:
        async with controllers(keepalive=True) as many:
            await asyncio.gather(*(use(controller) for controller in many))
            queue = many[0].queues.io[asyncio.get_running_loop()]
            queue.freeze()
            os.eventfd_write(queue.event_fd, 1)
            await asyncio.gather(*(use(controller) for controller in many[1:]))
            assert os.eventfd_read(queue.event_fd) >= 1
            queue.thaw()
            queue.hot.hold(False)
            before = interrupts(many[0])
            await use(many[0])
            assert interrupts(many[0]) > before

    on(make, main)


@pytest.mark.parametrize("make", LOOPS)
def test_the_loop_ends_before_its_controllers_are_closed(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> AsyncExitStack:
        async with AsyncExitStack() as stack:
            many = await stack.enter_async_context(controllers())
            await asyncio.gather(*(use(controller) for controller in many))
            return stack.pop_all()
        raise AssertionError

    before = descriptors()
    with asyncio.Runner(loop_factory=make) as runner:
        stack = runner.run(main())
        runner.run(stack.aclose())
    for loop_of in list(loop_waits._waits.values()):
        assert not loop_of.native.is_open
    assert descriptors() == before


@pytest.mark.parametrize("make", LOOPS)
def test_a_lost_interrupt_is_found_by_the_timer_of_all(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        async with controllers(command_timeout=0) as many:
            await asyncio.gather(*(use(controller) for controller in many))
            # They sleep beside others that have interrupts, and whose early polls find nothing.
            for controller in many[1:]:
                faults(controller).add(queue="io", opcode=2, count=4, delay=0.005)
            for controller in many[:3]:
                faults(controller).add(queue="io", opcode=2, lose_interrupt=True, delay=0.002)
            await asyncio.wait_for(asyncio.gather(*(c.namespaces[1].read(0) for c in many for _ in range(4))), 60)
            await eventually(lambda: many[0].inspect()["io_queues"][0]["missed_interrupts"])

    on(make, main)


@pytest.mark.parametrize("make", LOOPS)
def test_a_forked_child_leaves_them_with_the_parent(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Parent and child have the same epoll descriptor."""

    async def main() -> None:
        async with controllers() as many:
            await asyncio.gather(*(use(controller) for controller in many))
            queues = [controller.queues.io[asyncio.get_running_loop()] for controller in many]

            def leave() -> None:
                for queue in queues:
                    queue._waits.native.remove(queue.event_fd)

            pid = in_child(leave)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0  # noqa: ASYNC222 - it ends at once
            before = [interrupts(controller) for controller in many]
            await asyncio.gather(*(use(controller) for controller in many))
            assert all(interrupts(controller) > n for controller, n in zip(many, before, strict=True))

    on(make, main)


async def test_without_another_descriptor_the_loop_reads_them_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refused(loop_waits.LoopWaits):
        def _collect(self) -> bool:
            real = self.native

            class Native:
                is_open = False

                def open(self) -> int:
                    raise OSError(errno.EMFILE, "none left")

            self.native = Native()  # type: ignore[assignment]
            try:
                return super()._collect()
            finally:
                self.native = real

    monkeypatch.setattr(loop_waits, "LoopWaits", Refused)
    async with controllers() as many:
        await asyncio.gather(*(use(controller) for controller in many))
        assert all(interrupts(controller) for controller in many)
    assert caplog.text.count("interrupts are not collected") == 1


async def test_a_closed_collection_refuses_more() -> None:
    async with controllers(1) as (one,):
        hot = one.queues.hot[asyncio.get_running_loop()]
        shared = _hotpath.SharedWaits([0.001])
        with pytest.raises(ValueError, match="SharedWaits is not open"):
            shared.add(0, hot)
        collected = shared.open()
        with pytest.raises(OSError, match="epoll_ctl"):
            shared.add(-1, hot)
        shared.take()
        shared.remove(0)
        assert shared.open() == collected
        shared.close()
        shared.close()
        assert not shared.is_open
        shared.take()


@pytest.mark.parametrize("delays", [[], [1.0] * 17])
def test_refused_delays(delays: list[float]) -> None:
    with pytest.raises(ValueError, match=f"delays has {len(delays)} values, must have 1 to 16"):
        _hotpath.SharedWaits(delays)


def test_no_spin_for_one_while_another_has_commands_in_flight() -> None:
    async def main() -> None:
        async with controllers(2, mode="adaptive") as (slow, fast):

            def spins() -> int:
                return int(fast.inspect()["io_queues"][0]["spins"])

            await slow.namespaces[1].read(0)
            await fast.namespaces[1].read(0)
            fast.queues.hot[asyncio.get_running_loop()].spin_ns = 10**10
            before = spins()
            await slow.namespaces[1].read(0)
            await fast.namespaces[1].read(0)
            assert spins() == before + 1  # nothing else to do
            faults(slow).add(queue="io", opcode=2, delay=0.02)
            pending = asyncio.ensure_future(slow.namespaces[1].read(0))
            slow_queue = slow.queues.io[asyncio.get_running_loop()]
            while not slow_queue.in_flight:
                await asyncio.sleep(0)
            await fast.namespaces[1].read(0)
            assert spins() == before + 1
            await pending

    on(uvloop.new_event_loop, main)
