"""Helpers of the manager's tests."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import time
from collections.abc import Callable

import uvloop
from open_descriptors import open_descriptors

from nvme_async.emulator import EmulatedController
from nvme_async.errors import NvmeError
from nvme_async.manager import ManagedDevice, ManagedNamespace, Manager, ManagerEvent

_numbers = itertools.count()
# libuv opens a pipe with the first loop of a process and keeps it; this is not a leak.
uvloop.new_event_loop().close()


def uri(options: str = "size=16MiB") -> str:
    """The URI of an emulated controller that no other test uses."""
    return f"emulated:{options},serial=S{os.getpid()}-{next(_numbers)}"


def emulator(manager: Manager, address: str) -> EmulatedController:
    controller = manager.device(address).controller
    assert controller is not None
    found = controller.device.emulator  # type: ignore[attr-defined]
    assert isinstance(found, EmulatedController)
    return found


def descriptors() -> list[str]:
    """The open descriptors of this process by kind, so that a difference shows what leaks."""
    gc.collect()
    return sorted(target.split(":[")[0] for target in open_descriptors())


async def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> float:
    """Waits until it holds; returns how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it didn't happen"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


async def became(device: ManagedDevice, state: str, seconds: float = 30.0) -> float:
    return await eventually(lambda: device.state == state, seconds)


class Verifier:
    """Load on a namespace, each task on its own blocks: writes, and reads back its last write.
    `done` counts rounds, `errors` collects errors.
    """

    def __init__(self, namespace: ManagedNamespace, tasks: int = 8) -> None:
        self.namespace = namespace
        self.done = 0
        self.errors: list[Exception] = []
        self._stop = False
        self._tasks = [asyncio.ensure_future(self._work(first, tasks)) for first in range(tasks)]

    async def _work(self, first: int, step: int) -> None:
        namespace = self.namespace
        size = namespace.block_size
        blocks = list(range(first, min(namespace.blocks, 64 * step), step))
        written: dict[int, bytes] = {}
        count = 0
        while not self._stop:
            for lba in blocks:
                if self._stop:
                    break
                try:
                    if lba in written:
                        found = await namespace.read(lba)
                        assert found == written[lba], f"block {lba}: {found[:16]!r} instead of {written[lba][:16]!r}"
                    count += 1
                    data = f"{lba} {count} ".encode().ljust(size, b".")
                    # Until the write is acknowledged, the block may hold either version.
                    written.pop(lba, None)
                    await namespace.write(lba, data)
                    written[lba] = data
                    self.done += 1
                except NvmeError as error:
                    self.errors.append(error)
                    await asyncio.sleep(0.01)

    async def more(self, count: int, seconds: float = 30.0) -> None:
        """Waits until that many more writes have completed."""
        wanted = self.done + count
        await eventually(lambda: self.done >= wanted or any(task.done() for task in self._tasks), seconds)
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Raises what the verification found."""
        self._stop = True
        await asyncio.gather(*self._tasks)


class Events:
    """Collects the manager's events."""

    def __init__(self, manager: Manager) -> None:
        self.seen: list[ManagerEvent] = []
        self._subscription = manager.events()
        self._task = asyncio.ensure_future(self._collect())

    async def _collect(self) -> None:
        async for event in self._subscription:
            self.seen.append(event)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.seen]

    async def wait(self, kind: str, seconds: float = 30.0) -> ManagerEvent:
        await eventually(lambda: kind in self.kinds(), seconds)
        return next(event for event in self.seen if event.kind == kind)

    async def close(self) -> None:
        self._subscription.close()
        await self._task
