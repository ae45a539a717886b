"""Shared by the keepalive tests: one emulated controller, and successive drivers of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from open_descriptors import open_descriptors

import nvme_async
from nvme_async.driver.lifecycle import State
from nvme_async.emulator import EmulatedController
from nvme_async.errors import HandedOver
from nvme_async.keepalive import Bundle, restore
from nvme_async.native import _hotpath

READ, WRITE, FLUSH = 0x02, 0x01, 0x00
CREATE_CQ, CREATE_SQ, DELETE_CQ, DELETE_SQ = 0x05, 0x01, 0x04, 0x00
IDENTIFY, GET_LOG_PAGE, AER, SET_FEATURES = 0x06, 0x02, 0x0C, 0x09

Way = Literal["save", "handover", "death"]
WAYS: tuple[Way, ...] = ("save", "handover", "death")
_numbers = itertools.count()


def block(number: int, nbytes: int = 4096) -> bytes:
    """Content that differs from block to block."""
    return (b"%016d" % number * (nbytes // 16))[:nbytes]


def descriptors() -> int:
    gc.collect()
    return len(open_descriptors())


async def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> float:
    """Waits until it holds; returns how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it didn't happen"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


async def settle(passes: int = 10) -> None:
    for _ in range(passes):
        await asyncio.sleep(0)


def die(controller: nvme_async.Controller) -> Bundle:
    """What SIGKILL leaves of a driver: its descriptors, held by another process, and the pool's
    present content.

    Its Python objects are disarmed, so that none reaches the pool or the controller. Call it on the
    controller's home loop.
    """
    bundle = controller.bundle()
    controller.lifecycle._enter(State.HANDED_OVER)
    controller.recorder = None
    dead, unsent = HandedOver("killed", sent=True), HandedOver("killed")
    for namespace in controller.namespaces.values():
        namespace._set_gone(unsent)
    controller.transport.watch(None)
    controller.adopted.on_drained = None
    assert controller.memory is not None
    controller.memory.detach()
    for queue in controller.queues.all():
        if queue.loop is controller.loop:
            queue.stop_listening()
        else:
            queue.loop.call_soon_threadsafe(queue.stop_listening)
        _hotpath.hand_over(queue.hot, dead, unsent)
    controller.queues.forget_all()
    controller.device.detach()
    controller.queues.maker.close_vectors()
    return bundle


class Line:
    """Drivers of one controller, one after the other, in this process.

    driver: the current one. emulator: the controller. faults: its faults handle.
    """

    def __init__(self, driver: nvme_async.Controller) -> None:
        self.driver = driver
        self.emulator: EmulatedController = driver.device.emulator  # type: ignore[attr-defined]
        self.faults = self.emulator.faults
        self.past: list[nvme_async.Controller] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self._baseline = self.faults.counters()

    @property
    def namespace(self) -> nvme_async.Namespace:
        return self.driver.namespaces[1]

    def start(self, *operations: Any) -> list[asyncio.Task[Any]]:
        """Background I/O; its results are collected at the end."""
        tasks = [asyncio.ensure_future(operation) for operation in operations]
        self.tasks += tasks
        return tasks

    def delay(self, seconds: float = float("inf"), *, opcode: int | None = None, **match: Any) -> Any:
        """I/O commands take this long from now on; without a value, until release()."""
        return self.faults.add(queue="io", opcode=opcode, delay=seconds, **match)

    def release(self) -> None:
        """Held commands continue, and later ones aren't held."""
        self.faults.clear()
        self.faults.release()

    async def listening(self) -> None:
        """Waits until the controller has the driver's event request, and no other command of the
        driver's own.
        """
        await eventually(lambda: self.driver.queues.admin.hot.n_outstanding == 1)

    async def outstanding(self, count: int) -> None:
        """Waits until the controller holds that many commands."""
        await eventually(lambda: len(self.faults.outstanding()) >= count)

    async def succeed(self, way: Way = "save", **options: Any) -> nvme_async.Controller:
        """The next driver takes over."""
        before = self.driver
        if way == "handover":
            ours, theirs = socket.socketpair()
            async with before.handover(ours) as offer:
                self.driver = await nvme_async.take_over(theirs, **options)
                await offer
        else:
            bundle = await before.save() if way == "save" else die(before)
            with bundle:
                self.driver = await restore(bundle, **options)
        self.past.append(before)
        return self.driver

    def since(self) -> dict[str, Any]:
        """The controller's counts since the last call, or since the first driver was ready."""
        now, before = self.faults.counters(), self._baseline
        self._baseline = now
        difference: dict[str, Any] = {}
        for name, value in now.items():
            if isinstance(value, dict):
                kinds = {opcode: count - before[name].get(opcode, 0) for opcode, count in value.items()}
                difference[name] = {opcode: count for opcode, count in kinds.items() if count}
            else:
                difference[name] = value - before[name]
        return difference

    async def close(self) -> None:
        if not self.emulator.closed:
            self.release()
        await self.driver.close()
        for controller in self.past:
            await controller.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def line(emulated: str = "size=64MiB", **options: Any) -> AsyncIterator[Line]:
    """A controller with its first driver."""
    uri = f"emulated:{emulated}"
    if "serial=" not in emulated:
        uri += f",serial=K{os.getpid()}-{next(_numbers)}"
    drivers = Line(
        await nvme_async.open(uri, **({"keepalive": True, "pool_bytes": 16 << 20, "command_timeout": 30.0} | options))
    )
    try:
        await drivers.listening()
        await eventually(lambda: drivers.faults.counters()["admin"].get(AER))
        drivers.since()
        yield drivers
    finally:
        await drivers.close()


async def calling(function: Callable[..., Any], *arguments: Any) -> Any:
    """Awaits function(…), called where this coroutine runs: a request belongs to the loop that
    makes it.
    """
    return await function(*arguments)


async def results(tasks: Iterable[asyncio.Future[Any]]) -> list[Any]:
    """The results of all, including exceptions."""
    async with asyncio.timeout(30):
        return await asyncio.gather(*tasks, return_exceptions=True)


def all_handed_over(outcomes: list[Any]) -> bool:
    return all(isinstance(outcome, HandedOver) for outcome in outcomes)


def socket_path(tmp_path: Path) -> str:
    """Short enough for a Unix socket."""
    path = f"/tmp/nvme-async-{os.getpid()}-{next(_numbers)}.sock"
    assert not os.path.exists(path)
    return path
