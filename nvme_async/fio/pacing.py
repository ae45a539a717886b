"""Delays for a job's coroutines: rates, pauses, batches, and blocks in use by another one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from nvme_async.fio.options import Options
from nvme_async.native._fio import READ, WRITE, Slot

# The longest sleep that a stop has to wait for.
_SLICE = 0.05


class Pace:
    """rate, rate_iops and thinktime of one job: when the next I/O may start."""

    def __init__(self, options: Options, stopped: Callable[[], bool]) -> None:
        self._rates, self._iops = options.rate, options.rate_iops
        self._random = random.Random(max(0, options.randseed)) if options.rate_process == "poisson" else None
        self._think, self._spin = options.thinktime, options.thinktime_spin
        self._think_blocks, self._done, self._think_until = options.thinktime_blocks, 0, 0.0
        self._stopped = stopped
        self._due = [time.monotonic()] * 3

    def steer(self) -> int:
        """The next direction of a mix: the one that is behind its rate, or will be first; -1 if
        the mix may decide. So rate_iops=500,200 gives 500 reads and 200 writes a second whatever
        the mix, as in fio.
        """
        now = time.monotonic()
        reads, writes = (self._due[i] if self._rates[i] or self._iops[i] else 0.0 for i in (READ, WRITE))
        if reads <= now and writes <= now:
            return -1
        return READ if reads <= writes else WRITE

    async def wait(self, direction: int, nbytes: int) -> bool:
        """Sleeps until an I/O of that kind is due. False if the job should stop instead."""
        cost = 0.0
        if self._rates[direction]:
            cost = nbytes / self._rates[direction]
        if self._iops[direction]:
            cost = max(cost, 1.0 / self._iops[direction])
        due = self._due[direction]
        # Due times are accumulated, not counted from now, so that a late wake-up is compensated.
        self._due[direction] = due + (cost * self._random.expovariate(1.0) if self._random else cost)
        while (wait := max(due if cost else 0.0, self._think_until) - time.monotonic()) > 0:
            if self._stopped():
                return False
            await asyncio.sleep(min(wait, _SLICE))
        return not self._stopped()

    def done(self) -> None:
        """An I/O has ended; after thinktime_blocks of them nothing starts for thinktime."""
        self._done += 1
        if self._think and self._done % self._think_blocks == 0:
            now = time.monotonic()
            self._think_until = now + self._think
            while time.monotonic() < now + self._spin:
                pass


class Gate:
    """Lets coroutines through in groups: `size` of them, or all that are left."""

    def __init__(self, size: int, members: int) -> None:
        self._size, self._members = size, members
        self._waiting: list[asyncio.Future[None]] = []

    async def arrive(self) -> None:
        if len(self._waiting) + 1 >= min(self._size, self._members):
            self._open()
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def leave(self) -> None:
        """One coroutine fewer will arrive."""
        self._members -= 1
        if self._waiting and len(self._waiting) >= min(self._size, self._members):
            self._open()

    def _open(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Claims:
    """Which intervals have an I/O in flight: a verify job excludes others from them, because the
    device keeps no order.
    """

    def __init__(self) -> None:
        self._held: dict[int, list[asyncio.Future[None]]] = {}
        self.turn: asyncio.Lock = asyncio.Lock()  # held while claiming, so that overlapping I/Os begin in their order

    async def take(self, units: range) -> None:
        held = self._held
        while True:
            blocker = next((held[unit] for unit in units if unit in held), None)
            if blocker is None:
                break
            future = asyncio.get_running_loop().create_future()
            blocker.append(future)
            await future
        waiters: list[asyncio.Future[None]] = []
        for unit in units:
            held[unit] = waiters

    def release(self, units: range) -> None:
        waiters = self._held[units.start]
        for unit in units:
            del self._held[unit]
        for future in waiters:
            if not future.done():
                future.set_result(None)


class Overlaps:
    """serialize_overlap: an I/O starts when none is in flight on its blocks. Offsets are
    multiples of `grain`.
    """

    def __init__(self, grain: int) -> None:
        self._grain, self._claims = grain, Claims()

    def units(self, slot: Slot) -> range:
        return range(slot.offset // self._grain, -(-(slot.offset + slot.nbytes) // self._grain))

    async def claim(self, slot: Slot, steer: int = -1) -> int:
        """slot.claim(steer), and its blocks for this coroutine alone until release()."""
        async with self._claims.turn:
            direction = slot.claim(steer)
            if direction >= 0:
                await self._claims.take(self.units(slot))
            return direction

    def release(self, slot: Slot) -> None:
        self._claims.release(self.units(slot))
