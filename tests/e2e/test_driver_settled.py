"""Abandoned writes: they may land later, and settled() waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
from driving import HASTY, eventually, faults, within

import nvme_async
from nvme_async.driver.namespace import Namespace
from nvme_async.emulator import FOREVER
from nvme_async.errors import CommandTimeout
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    async with nvme_async.open("emulated:size=16MiB,namespaces=2") as opened:
        await opened.namespaces[1].read(0)
        yield opened


async def leave(call: Awaitable[Any]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, 0.01)


async def waits(call: Coroutine[Any, Any, None], controller: Controller) -> None:
    """The call ends when the controller no longer has commands that it holds, and not before."""
    task = asyncio.create_task(call)
    await eventually(lambda: held(controller))
    await asyncio.wait([task], timeout=0.03)
    assert not task.done()
    faults(controller).release()
    await within(10, task)
    await nothing_lands_later(controller)


async def nothing_lands_later(controller: Controller) -> None:
    await eventually(lambda: not held(controller))


def held(controller: Controller) -> list[Any]:
    """The I/O commands that the controller holds."""
    return [one for one in faults(controller).outstanding() if one.qid]


def block(namespace: Namespace, fill: bytes) -> bytes:
    return fill * namespace.block_size


async def test_a_cancelled_write_may_land_over_a_newer_one(controller: Controller) -> None:
    """The case that the docstrings warn of, and that settled() handles."""
    namespace = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=1, count=1, delay=FOREVER)
    await leave(namespace.write(0, block(namespace, b"A")))
    await eventually(lambda: held(controller))
    await namespace.write(0, block(namespace, b"B"))
    assert await namespace.read(0) == block(namespace, b"B")
    await waits(namespace.settled(0, 1), controller)
    assert await namespace.read(0) == block(namespace, b"A")


@pytest.mark.parametrize("mode", ["adaptive", "interrupt", "poll"])
async def test_after_settled_a_newer_write_stays(mode: Any) -> None:
    async with nvme_async.open("emulated:size=16MiB", mode=mode) as controller:
        namespace = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=1, count=1, delay=FOREVER, lose_interrupt=True)
        await leave(namespace.write(0, block(namespace, b"A")))
        await waits(namespace.settled(0, 1), controller)
        assert controller.inspect()["io_queues"][0]["outstanding"] == 0
        await namespace.write(0, block(namespace, b"B"))
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
    opcode, call, overlaps = LEFT[left]
    faults(controller).add(queue="io", opcode=opcode, delay=FOREVER)
    await leave(call(namespace))
    await eventually(lambda: held(controller))
    faults(controller).clear()
    await within(10, controller.namespaces[2].settled())
    if overlaps:
        await waits(namespace.settled(8, 2), controller)
    else:
        await within(10, namespace.settled(8, 2))
        faults(controller).release()
    await within(10, namespace.settled())
    assert controller.inspect()["io_queues"][0]["outstanding"] == 0 or not overlaps


async def test_settled_does_not_wait_for_awaited_commands(controller: Controller) -> None:
    namespace = controller.namespaces[1]
    rule = faults(controller).add(queue="io", opcode=1, count=1, delay=FOREVER)
    task = asyncio.create_task(namespace.write(0, block(namespace, b"A")))
    await eventually(lambda: rule.hits)
    await within(10, namespace.settled(0, 1))
    assert not task.done()
    faults(controller).release()
    await task


async def test_settled_includes_commands_of_other_loops(controller: Controller) -> None:
    """Commands of a running loop, and of one that has ended."""
    namespace = controller.namespaces[1]

    left, go = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        await namespace.read(0)
        faults(controller).add(queue="io", opcode=1, count=1, delay=FOREVER)
        await leave(namespace.write(0, block(namespace, b"A")))
        left.set()
        await asyncio.to_thread(go.wait, 60)

    running = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
    await asyncio.to_thread(left.wait, 30)
    await waits(namespace.settled(0, 1), controller)
    go.set()
    await running
    await asyncio.to_thread(asyncio.run, elsewhere())
    await waits(namespace.settled(0, 1), controller)
    await namespace.write(0, block(namespace, b"B"))
    assert await namespace.read(0) == block(namespace, b"B")


async def test_a_timed_out_command_is_gone_after_the_reset() -> None:
    async with nvme_async.open("emulated:size=16MiB", **HASTY) as controller:
        namespace = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=1, drop=True)
        with pytest.raises(CommandTimeout):
            await namespace.write(0, block(namespace, b"A"))
        faults(controller).clear()
        await within(10, namespace.settled(0, 1))
        await namespace.write(0, block(namespace, b"B"))
        assert await namespace.read(0) == block(namespace, b"B")


async def test_closing_ends_the_wait(controller: Controller) -> None:
    namespace = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=1, count=1, delay=60)
    await leave(namespace.write(0, block(namespace, b"A")))
    waiting = asyncio.create_task(namespace.settled(0, 1))
    await asyncio.sleep(0.01)
    await controller.reset()
    await within(2, waiting)
    await within(2, namespace.settled(0, 1))


async def test_cancelling_the_wait_leaves_nothing(controller: Controller) -> None:
    namespace = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=1, count=1, delay=FOREVER)
    await leave(namespace.write(0, block(namespace, b"A")))
    await leave(namespace.settled(0, 1))
    await waits(namespace.settled(0, 1), controller)
    await namespace.submit(commands.flush(1))


@pytest.mark.parametrize(("lba", "blocks"), [(-1, 1), (0, -1), (1 << 64, 1)])
async def test_invalid_ranges_are_refused(controller: Controller, lba: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="not a valid range of blocks"):
        await controller.namespaces[1].settled(lba, blocks)
