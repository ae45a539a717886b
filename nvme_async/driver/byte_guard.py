"""Order among byte accesses of one process that share blocks.

A write of part of a block is a read, a change and a write (read-modify-write). NVMe has no command
for that, so two of them on one block lose a change, unless one waits for the other. The guard of a
Namespace object makes them wait. It also remembers writes that were cancelled or timed out: the
next access to their blocks waits until they can't land any more (Namespace.settled).

It knows nothing of other processes, nor of read(), write() and the other calls that take block
numbers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import attrs

# Ranges of cancelled writes that are kept apart; beyond that they are merged into one.
MAX_UNSETTLED = 64


@attrs.define(eq=False)
class _Access:
    first: int
    last: int
    alone: bool
    loop: asyncio.AbstractEventLoop
    granted: asyncio.Future[None] | None = None

    def conflicts(self, other: _Access) -> bool:
        return (self.alone or other.alone) and self.first <= other.last and other.first <= self.last


class ByteGuard:
    """The active byte accesses of one namespace. Any thread; the lock is held for list
    operations only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[_Access] = []
        self._waiting: list[_Access] = []
        self._unsettled: list[tuple[int, int]] = []

    @asynccontextmanager
    async def writing(
        self, first: int, blocks: int, *, alone: bool, settled: Callable[[int, int], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """Blocks `first` to `first + blocks - 1` are this caller's inside. alone: no other
        access to them runs meanwhile; otherwise only exclusive accesses are kept out. In the
        order of the requests. settled: waits for abandoned commands (lba, blocks).
        """
        access = _Access(first, first + blocks - 1, alone, asyncio.get_running_loop())
        await self._enter(access)
        try:
            for left in self._left_behind(access):
                await settled(left[0], left[1] - left[0] + 1)
                with self._lock, suppress(ValueError):
                    self._unsettled.remove(left)
            try:
                yield
            except BaseException:
                # Cancelled, or given up by the driver: the command may still be executed.
                self._remember(access)
                raise
        finally:
            self._leave(access)

    async def _enter(self, access: _Access) -> None:
        with self._lock:
            # Accesses left behind by a closed loop block no other access.
            self._active = [other for other in self._active if not other.loop.is_closed()]
            if not any(access.conflicts(other) for other in (*self._active, *self._waiting)):
                self._active.append(access)
                return
            access.granted = access.loop.create_future()
            self._waiting.append(access)
        try:
            await access.granted
        except BaseException:
            self._leave(access)
            raise

    def _leave(self, access: _Access) -> None:
        """Ends an access, waiting or active, and starts those that it blocked."""
        with self._lock:
            for accesses in (self._active, self._waiting):
                if access in accesses:
                    accesses.remove(access)
            ahead = list(self._active)
            for other in list(self._waiting):
                if other.loop.is_closed():
                    self._waiting.remove(other)
                    continue
                if not any(other.conflicts(one) for one in ahead):
                    self._waiting.remove(other)
                    with suppress(RuntimeError):  # its loop is being closed
                        other.loop.call_soon_threadsafe(_grant, other.granted)
                        self._active.append(other)
                ahead.append(other)

    def _left_behind(self, access: _Access) -> list[tuple[int, int]]:
        with self._lock:
            return [left for left in self._unsettled if left[0] <= access.last and access.first <= left[1]]

    def _remember(self, access: _Access) -> None:
        with self._lock:
            if (access.first, access.last) not in self._unsettled:
                self._unsettled.append((access.first, access.last))
            if len(self._unsettled) > MAX_UNSETTLED:
                hull = (min(one[0] for one in self._unsettled), max(one[1] for one in self._unsettled))
                self._unsettled = [hull]


def _grant(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
