"""A running verify job: each block's expected sequence number, exclusive access to it, and
reading it back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from nvme_async.fio.device import BenchNamespace
from nvme_async.fio.options import Options
from nvme_async.fio.pacing import Claims
from nvme_async.fio.plan import Region
from nvme_async.fio.verify import BadBlock, Verifier
from nvme_async.fio.written import Written
from nvme_async.fio.zbd import Zones
from nvme_async.native._fio import READ, WRITE, Generator, Recorder, Slot

T = TypeVar("T")


class VerifyFailed(Exception):
    """A bad block, with verify_fatal. Internal: the job's report has it."""


class VerifyState:
    """One job's knowledge of its writes to one namespace. Belongs to the job's event loop.

    Attributes:
        bad: the bad blocks found, in order. run: a number of the program's run, see verify.py.
        on_bad: called with each as it is found. stopped: checked between two reads.
    """

    options: Options
    region: Region

    def __init__(
        self,
        options: Options,
        region: Region,
        job: int,
        run: int,
        on_bad: Callable[[BadBlock], None],
        stopped: Callable[[], bool] = lambda: False,
        *,
        plan: int = 0,
        shared: bool = False,
        zones: Zones | None = None,
    ) -> None:
        self.options, self.region, self.on_bad, self._stopped = options, region, on_bad, stopped
        writes = options.rw.writes
        own = run if writes and not options.verify_only else None
        pattern = options.verify_pattern
        ordered = options.verify_write_sequence
        self.verifier: Verifier = Verifier(
            options.verify, region.interval, own, job & 0xFFFF, pattern, plan, shared, ordered
        )
        # A job that only reads has no expectation, except that a block must be consistent.
        self.written: Written | None = (
            Written(region.start, region.length, region.interval, region.grain) if writes else None
        )
        self.bad: list[BadBlock] = []
        self._claims = Claims()
        self._zones = zones
        if zones is not None and self.written is not None:
            zones.on_reset = self.written.forget
        self._sequence = 0
        self._numbers: dict[Slot, int] = {}  # of writes that are claimed and not yet begun
        self._backlog: deque[tuple[int, int]] = deque()
        # Checksums are computed outside the loop, because I/O that completes meanwhile would appear
        # slow. With one I/O at a time nothing completes meanwhile.
        self._aside = ThreadPoolExecutor(1, f"{options.name}-verify") if options.iodepth > 1 else None

    def close(self) -> None:
        if self._aside is not None:
            self._aside.shutdown()
        if self.written is not None:
            self.written.close()

    async def _beside(self, work: Callable[..., T], *arguments: object) -> T:
        """work(*arguments) in the job's other thread; its memory stays in use until it returns,
        even if the caller is cancelled.
        """
        if self._aside is None:
            return work(*arguments)
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._aside, work, *arguments))

    # -- one I/O of the job ------------------------------------------------------------------------

    def _units(self, offset: int, nbytes: int) -> range:
        grain = self.region.grain
        first = (offset - self.region.start) // grain
        return range(first, first + -(-nbytes // grain))

    async def claim(self, slot: Slot, steer: int = -1) -> int:
        """slot.claim(steer), and its blocks for this coroutine alone until release()."""
        async with self._claims.turn:
            direction = await self._zones.claim(slot, steer) if self._zones is not None else slot.claim(steer)
            if direction >= 0:
                await self._claims.take(self._units(slot.offset, slot.nbytes))
                if direction == WRITE:
                    self._sequence += 1
                    self._numbers[slot] = self._sequence
            return direction

    def release(self, slot: Slot) -> None:
        self._claims.release(self._units(slot.offset, slot.nbytes))
        if self._zones is not None:
            self._zones.release(slot)

    async def stamp(self, slot: Slot, view: memoryview) -> None:
        """Fills the data to be written; from now on the blocks must read like this."""
        assert self.written is not None
        sequence = self._numbers.pop(slot)
        self.written.note(slot.offset, slot.nbytes, sequence)
        await self._beside(self.verifier.stamp, view, slot.offset, sequence)

    async def check(self, slot: Slot, view: memoryview) -> None:
        """Compares the data read with the expectation. Raises VerifyFailed with verify_fatal."""
        for bad in await self._beside(self.verifier.check, view, slot.offset, self.written):
            self.bad.append(bad)
            self.on_bad(bad)
            if self.options.verify_dump:
                self._dump(bad, view[bad.offset - slot.offset :][: bad.nbytes])
            if self.options.verify_fatal:
                raise VerifyFailed(str(bad))

    def _dump(self, bad: BadBlock, received: memoryview) -> None:
        """verify_dump: NAME.OFFSET.received and, where it is known, NAME.OFFSET.expected. Raises
        OSError.
        """
        stem = f"{self.options.name}.{bad.offset}"
        Path(f"{stem}.received").write_bytes(received)
        sequence = dict(self.written.whole(bad.offset, bad.nbytes)).get(bad.offset, 0) if self.written else 0
        expected = self.verifier.expected(bad.offset, sequence) if sequence else None
        if expected is not None:
            Path(f"{stem}.expected").write_bytes(expected)

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
        """(offset, bytes) of the ranges that remain to be read back."""
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
        """Reads and checks pieces until there are none. Several coroutines may share one
        iterator.
        """
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
                await self.check(slot, buffer)
            finally:
                self._claims.release(units)
            # Others would starve if each read completed at once.
            await asyncio.sleep(0)

    def replay(self, generator: Generator, recorder: Recorder) -> None:
        """verify_only: the writes that the job would have made, by running it without I/O."""
        assert self.written is not None
        slot = Slot(recorder, generator)
        for _ in range(self.options.loops):
            recorder.renew()
            while (direction := slot.claim()) >= 0:
                if direction == WRITE:
                    self._sequence += 1
                    self.written.note(slot.offset, slot.nbytes, self._sequence)
