"""Abandoned writes: they may land later, and settled() waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from driving import HASTY, faults

import nvme_async
from nvme_async.driver.namespace import Namespace
from nvme_async.errors import CommandTimeout
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands

LATE = 0.3  # seconds that the controller takes for a command that a test abandons
SOON = 0.15  # calls that don't wait for it have ended by then


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    async with nvme_async.open("emulated:size=16MiB,namespaces=2") as opened:
        await opened.namespaces[1].read(0)
        yield opened


async def leave(call: Awaitable[Any]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, 0.01)


async def took(call: Awaitable[Any]) -> float:
    begin = time.monotonic()
    await call
    return time.monotonic() - begin


def block(namespace: Namespace, fill: bytes) -> bytes:
    return fill * namespace.block_size


async def test_a_cancelled_write_may_land_over_a_newer_one(controller: Controller) -> None:
    """The case that the docstrings warn of, and that settled() handles."""
    namespace = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=1, count=1, delay=LATE)
    await leave(namespace.write(0, block(namespace, b"A")))
    await namespace.write(0, block(namespace, b"B"))
    assert await namespace.read(0) == block(namespace, b"B")
    await namespace.settled(0, 1)
    assert await namespace.read(0) == block(namespace, b"A")


@pytest.mark.parametrize("mode", ["adaptive", "interrupt", "poll"])
async def test_after_settled_a_newer_write_stays(mode: Any) -> None:
    async with nvme_async.open("emulated:size=16MiB", mode=mode) as controller:
        namespace = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=1, count=1, delay=LATE, lose_interrupt=True)
        await leave(namespace.write(0, block(namespace, b"A")))
        await namespace.settled(0, 1)
        assert controller.inspect()["io_queues"][0]["outstanding"] == 0
        await namespace.write(0, block(namespace, b"B"))
        await asyncio.sleep(LATE)
        assert await namespace.read(0) == block(namespace, b"B")


LEFT: dict[str, tuple[int, Callable[[Namespace], Awaitable[Any]], bool]] = {
    "a write of these blocks": (1, lambda ns: ns.write(6, block(ns, b"A") * 4), True),
    "a write of others": (1, lambda ns: ns.write(2, block(ns, b"A") * 4), False),
    "write zeroes": (8, lambda ns: ns.write_zeroes(9, 4), True),
    "write uncorrectable": (4, lambda ns: ns.write_uncorrectable(0, 9), True),
    "a deallocation": (9, lambda ns: ns.deallocate(500, 1), True),
    "a copy": (0x19, lambda ns: ns.copy([(100, 1)], 500), True),
    "a read": (2, lambda ns: ns.read(8), False),
    "a flush": (0, lambda ns: ns.flush(), False),
    "a batch": (1, lambda ns: ns.write_many([7, 8, 9], block(ns, b"A") * 3), True),
    "a batch elsewhere": (1, lambda ns: ns.write_many([6, 7, 30], block(ns, b"A") * 3), False),
}


@pytest.mark.parametrize("left", LEFT)
async def test_settled_waits_for_overlapping_abandoned_writes(controller: Controller, left: str) -> None:
    """settled(8, 2), with such a command abandoned."""
    namespace = controller.namespaces[1]
    opcode, call, waits = LEFT[left]
    faults(controller).add(queue="io", opcode=opcode, delay=LATE)
    await leave(call(namespace))
    faults(controller).clear()
    other = controller.namespaces[2]
    assert await took(other.settled()) < SOON
    seconds = await took(namespace.settled(8, 2))
    assert (seconds > SOON) is waits
    await namespace.settled()
    assert controller.inspect()["io_queues"][0]["outstanding"] == 0 or not waits


async def test_settled_does_not_wait_for_awaited_commands(controller: Controller) -> None:
    namespace = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=1, count=1, delay=LATE)
    task = asyncio.create_task(namespace.write(0, block(namespace, b"A")))
    await asyncio.sleep(0.01)
    assert await took(namespace.settled(0, 1)) < SOON
    await task


async def test_settled_includes_commands_of_other_loops(controller: Controller) -> None:
    """Commands of a running loop, and of one that has ended."""
    namespace = controller.namespaces[1]

    async def elsewhere(stay: float) -> None:
        await namespace.read(0)
        faults(controller).add(queue="io", opcode=1, count=1, delay=LATE)
        await leave(namespace.write(0, block(namespace, b"A")))
        await asyncio.sleep(stay)

    running = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere(2 * LATE)))
    await asyncio.sleep(SOON)
    assert await took(namespace.settled(0, 1)) > 0.05
    await running
    await asyncio.to_thread(asyncio.run, elsewhere(0.0))
    assert await took(namespace.settled(0, 1)) > 0.05
    await namespace.write(0, block(namespace, b"B"))
    await asyncio.sleep(LATE)
    assert await namespace.read(0) == block(namespace, b"B")


async def test_a_timed_out_command_is_gone_after_the_reset() -> None:
    async with nvme_async.open("emulated:size=16MiB", **HASTY) as controller:
        namespace = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=1, drop=True)
        with pytest.raises(CommandTimeout):
            await namespace.write(0, block(namespace, b"A"))
        faults(controller).clear()
        await asyncio.wait_for(namespace.settled(0, 1), 10)
        await namespace.write(0, block(namespace, b"B"))
        assert await namespace.read(0) == block(namespace, b"B")


async def test_closing_ends_the_wait(controller: Controller) -> None:
    namespace = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=1, count=1, delay=60)
    await leave(namespace.write(0, block(namespace, b"A")))
    waiting = asyncio.create_task(namespace.settled(0, 1))
    await asyncio.sleep(0.01)
    await controller.reset()
    await asyncio.wait_for(waiting, 2)
    waiting = asyncio.create_task(namespace.settled(0, 1))
    await asyncio.wait_for(waiting, 2)


async def test_cancelling_the_wait_leaves_nothing(controller: Controller) -> None:
    namespace = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=1, count=1, delay=LATE)
    await leave(namespace.write(0, block(namespace, b"A")))
    await leave(namespace.settled(0, 1))
    await namespace.settled(0, 1)
    await namespace.submit(commands.flush(1))


@pytest.mark.parametrize(("lba", "blocks"), [(-1, 1), (0, -1), (1 << 64, 1)])
async def test_invalid_ranges_are_refused(controller: Controller, lba: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="no range of blocks"):
        await controller.namespaces[1].settled(lba, blocks)
