"""Event loops with a load of reads, for benchmarks/keepalive.py."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
from typing import Any

import uvloop

import nvme_async
from nvme_async.errors import HandedOver

BLOCK = 4096
WAIT = 60.0
"""Limit in seconds for any command to a process."""


class Loop:
    """An event loop, in a new thread unless a loop is given, with a load on the controller that
    the process has.
    """

    def __init__(self, number: int, depth: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._depth = depth
        self._lbas = itertools.cycle(random.Random(number).sample(range(4096), 1024))
        self.first = self.last = 0
        self.done = 0
        self._tasks: list[asyncio.Task[None]] = []
        if loop is not None:
            self.loop = loop
            return
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=f"load {number}", daemon=True)
        self._thread.start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        self.loop = uvloop.new_event_loop()
        self.loop.call_soon(ready.set)
        self.loop.run_forever()

    async def _reader(self, namespace: nvme_async.Namespace, buffer: memoryview) -> None:
        blocks = max(1, BLOCK // namespace.block_size)
        read, clock = namespace.readinto, time.monotonic_ns
        with contextlib.suppress(HandedOver, nvme_async.QueueShutdown, asyncio.CancelledError):
            for lba in self._lbas:
                await read(lba * blocks, buffer)
                self.last = clock()
                if not self.first:
                    self.first = self.last
                self.done += 1

    def _begin(self, namespace: nvme_async.Namespace, buffers: list[memoryview]) -> None:
        self._tasks = [self.loop.create_task(self._reader(namespace, buffer)) for buffer in buffers]

    def start_here(self, namespace: nvme_async.Namespace, buffers: list[memoryview]) -> None:
        """start() on the loop itself: at once."""
        self.first = self.last = self.done = 0
        self._begin(namespace, buffers)

    def start(self, namespace: nvme_async.Namespace, buffers: list[memoryview]) -> None:
        """Waits until no earlier load is running."""
        self.first = self.last = self.done = 0
        self.loop.call_soon_threadsafe(self._begin, namespace, buffers)

    async def _end(self) -> None:
        await asyncio.gather(*self._tasks)
        self._tasks = []

    async def ended(self) -> None:
        """Waits until every reader has noticed that the controller was handed over. On any
        loop.
        """
        async with asyncio.timeout(WAIT):
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._end(), self.loop))

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT)
