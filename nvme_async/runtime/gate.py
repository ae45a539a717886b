"""Waiting, from any event loop, for something that another loop reports, such as a device that
comes back.
"""

from __future__ import annotations

import asyncio
import threading


def wake(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    def wake() -> None:
        if not future.done():
            future.set_result(None)

    try:
        loop.call_soon_threadsafe(wake)
    except RuntimeError:
        pass  # the loop has ended, and its waiters with it


class Gate:
    """Wakes all waiters on all loops. Its lock is held for set operations only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    def enter(self) -> asyncio.Future[None]:
        """A future of the running loop that the next wake() ends. Check the condition after this
        call and before awaiting the future; call leave() afterwards.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            self._waiters[future] = loop
        return future

    def leave(self, future: asyncio.Future[None]) -> None:
        with self._lock:
            self._waiters.pop(future, None)

    def wake(self) -> None:
        with self._lock:
            waiters, self._waiters = self._waiters, {}
        for future, loop in waiters.items():
            wake(loop, future)

    @property
    def waiting(self) -> int:
        return len(self._waiters)
