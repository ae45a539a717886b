"""A verify job at work: which sequence number each block must have, who may touch it, and reading
it back.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator

from nvme_async.fio.device import BenchNamespace
from nvme_async.fio.options import Options
from nvme_async.fio.pacing import Claims
from nvme_async.fio.plan import Region
from nvme_async.fio.verify import BadBlock, Verifier, Written
from nvme_async.native._fio import READ, WRITE, Generator, Recorder, Slot


class VerifyFailed(Exception):
    """A bad block, with verify_fatal. Not for callers: the job's report has it."""


class VerifyState:
    """What one job knows of what it wrote to one namespace. Belongs to the job's event loop.

    Attributes:
        bad: the bad blocks found, in order.
        on_bad: called with each as it is found. stopped: asked between two reads.
    """

    def __init__(
        self,
        options: Options,
        region: Region,
        job: int,
        on_bad: Callable[[BadBlock], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.options, self.region, self.on_bad, self._stopped = options, region, on_bad, stopped
        writes = options.rw.writes
        run = int.from_bytes(os.urandom(8), "little") if writes and not options.verify_only else None
        self.verifier = Verifier(options.verify, region.interval, run, job, options.verify_pattern)
        # A job that only reads does not know what it should find, beyond that a block must agree
        # with itself.
        self.written = Written(region.start, region.length, region.interval) if writes else None
        self.bad: list[BadBlock] = []
        self._claims = Claims()
        self._sequence = 0
        self._numbers: dict[Slot, int] = {}  # of writes that are claimed and not yet begun
        self._backlog: deque[tuple[int, int]] = deque()

    def close(self) -> None:
        if self.written is not None:
            self.written.close()

    # -- one I/O of the job ------------------------------------------------------------------------

    def _units(self, offset: int, nbytes: int) -> range:
        first = (offset - self.region.start) // self.region.interval
        return range(first, first + nbytes // self.region.interval)

    async def claim(self, slot: Slot) -> int:
        """slot.claim(), and its blocks for this coroutine alone until release()."""
        async with self._claims.turn:
            direction = slot.claim()
            if direction >= 0:
                await self._claims.take(self._units(slot.offset, slot.nbytes))
                if direction == WRITE:
                    self._sequence += 1
                    self._numbers[slot] = self._sequence
            return direction

    def release(self, slot: Slot) -> None:
        self._claims.release(self._units(slot.offset, slot.nbytes))

    def stamp(self, slot: Slot, view: memoryview) -> None:
        """Fills what is about to be written; from here on the blocks must read so."""
        assert self.written is not None
        sequence = self._numbers.pop(slot)
        self.written.note(slot.offset, slot.nbytes, sequence)
        self.verifier.stamp(view, slot.offset, sequence)

    def check(self, slot: Slot, view: memoryview) -> None:
        """Holds what was read against what it should be. Raises VerifyFailed with verify_fatal."""
        for bad in self.verifier.check(view, slot.offset, self.written):
            self.bad.append(bad)
            self.on_bad(bad)
            if self.options.verify_fatal:
                raise VerifyFailed(str(bad))

    async def after(self, slot: Slot, namespace: BenchNamespace, view: Callable[[int], memoryview]) -> None:
        """verify_backlog: remembers a write, and reads some back when there are enough."""
        every = self.options.verify_backlog
        if not every or not self.options.do_verify or slot.direction != WRITE:
            return
        self._backlog.append((slot.offset, slot.nbytes))
        if len(self._backlog) < every:
            return
        batch = self.options.verify_backlog_batch or every
        pieces = [self._backlog.popleft() for _ in range(min(batch, len(self._backlog)))]
        await self.read_back(slot, namespace, view, iter(pieces))

    # -- reading back ------------------------------------------------------------------------------

    def pieces(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """(offset, bytes) of what has yet to be read back."""
        if self.options.verify_backlog:
            while self._backlog:
                yield self._backlog.popleft()
        elif self.written is not None:
            yield from self.written.runs(nbytes)

    async def read_back(
        self,
        slot: Slot,
        namespace: BenchNamespace,
        view: Callable[[int], memoryview],
        pieces: Iterator[tuple[int, int]],
    ) -> None:
        """Reads and checks pieces until there are none. Several coroutines may share one iterator."""
        for offset, nbytes in pieces:
            if self._stopped():
                return
            units = self._units(offset, nbytes)
            await self._claims.take(units)
            try:
                slot.aim(READ, offset, nbytes)
                buffer = view(nbytes)
                slot.begin()
                await namespace.readinto(slot.lba, buffer)
                slot.end()
                self.check(slot, buffer)
            finally:
                self._claims.release(units)
            # Checksums take long enough for others to starve, should each read be there at once.
            await asyncio.sleep(0)

    def replay(self, generator: Generator, recorder: Recorder) -> None:
        """verify_only: what the job would have written, by doing it without I/O."""
        assert self.written is not None
        slot = Slot(recorder, generator)
        for _ in range(self.options.loops):
            recorder.renew()
            while (direction := slot.claim()) >= 0:
                if direction == WRITE:
                    self._sequence += 1
                    self.written.note(slot.offset, slot.nbytes, self._sequence)
