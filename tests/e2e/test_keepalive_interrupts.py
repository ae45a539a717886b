"""Interrupts that arrive while a controller is frozen between two drivers belong to the driver that
continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import AsyncIterator

import pytest
from driving import FAST, LoopThread, eventually, faults, within

import nvme_async
from nvme_async.emulator import FOREVER, Rule
from nvme_async.keepalive import saving
from nvme_async.keepalive.controller import Controller
from nvme_async.spec.opcodes import NvmOpcode


def signalled(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


async def complete(controller: Controller, rule: Rule) -> None:
    """The held commands complete; every loop has time to consume the interrupt, if it would."""
    emulator = faults(controller)
    before = emulator.counters()["interrupts"]
    rule.remove()
    emulator.release()
    await eventually(lambda: emulator.counters()["interrupts"] > before)
    await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def standing_still(controller: Controller) -> AsyncIterator[None]:
    """Between "go" and "taken" of a hand-over that then fails."""
    async with controller._lock:
        await saving.suspend(controller)
        try:
            yield
        finally:
            await saving.resume(controller)


@pytest.mark.parametrize("mode", ["interrupt", "adaptive"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["home", "another-loop"])
async def test_a_frozen_driver_does_not_consume_interrupts(mode: str, elsewhere: bool) -> None:
    """It would consume the only signal of a completion that its successor has not seen yet."""
    with LoopThread() as thread:
        async with nvme_async.open("emulated:size=16MiB,block=512", keepalive=True, mode=mode, **FAST) as controller:
            namespace = controller.namespaces[1]

            async def read() -> bytes:
                return await namespace.read(5)

            await namespace.write(5, b"5" * 512)
            rule = faults(controller).add(queue="io", opcode=int(NvmOpcode.READ), delay=FOREVER)
            reading = asyncio.ensure_future(thread.submit(read()) if elsewhere else read())
            await eventually(lambda: rule.hits)
            queue = controller.queues.io[thread.loop if elsewhere else controller.loop]

            async with standing_still(controller):
                await complete(controller, rule)
                assert signalled(queue.event_fd), "the frozen driver has taken the interrupt"
                assert not reading.done()
            assert await within(2, reading) == b"5" * 512, "the driver that continues has it"
            assert await within(2, read()) == b"5" * 512
            assert await within(2, asyncio.ensure_future(thread.submit(read()))) == b"5" * 512


async def test_a_frozen_driver_does_not_consume_interrupts_of_a_shared_vector() -> None:
    """One vector for all queues: the home loop consumes its interrupts and passes them on."""
    with LoopThread() as thread:
        async with nvme_async.open(
            "emulated:size=16MiB,block=512,vectors=1", keepalive=True, mode="interrupt", **FAST
        ) as controller:
            namespace = controller.namespaces[1]

            async def read() -> bytes:
                return await namespace.read(5)

            await within(2, asyncio.ensure_future(thread.submit(read())))
            rule = faults(controller).add(queue="io", opcode=int(NvmOpcode.READ), delay=FOREVER)
            reading = asyncio.ensure_future(thread.submit(read()))
            await eventually(lambda: rule.hits)
            [fd] = controller.queues.maker.event_fds
            async with standing_still(controller):
                await complete(controller, rule)
                assert signalled(fd), "the frozen driver has taken the interrupt"
            assert len(await within(2, reading)) == 512
            assert len(await within(2, read())) == 512
