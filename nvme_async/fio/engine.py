"""The loops that await I/O: the plain ones, as short as possible, and the one for everything
else.

A job of iodepth N on one device is N coroutines that take I/Os from one generator and await each
separately, as an application does. All of a job runs on one event loop in one thread.
"""

from __future__ import annotations

import asyncio
import mmap
import time
import types
from collections.abc import Awaitable, Callable
from collections.abc import Generator as Steps
from typing import Any

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.fio.device import BenchController, BenchNamespace
from nvme_async.fio.options import Options
from nvme_async.fio.pacing import Gate, Overlaps, Pace
from nvme_async.fio.plan import Region, is_plain, steered, times_submission
from nvme_async.fio.verify_state import VerifyState
from nvme_async.fio.zbd import Zones
from nvme_async.native._fio import READ, TRIM, WRITE, Generator, Recorder, Slot, fill_random


@attrs.define
class Target:
    """One namespace that a job uses, and its region."""

    uri: str
    controller: BenchController
    namespace: BenchNamespace
    region: Region
    generator: Generator
    plan: int = 0
    verify: VerifyState | None = None
    overlaps: Overlaps | None = None
    zones: Zones | None = None


async def plain_reads(slot: Slot, readinto: Callable[[int, Any], Any], buffer: Any) -> None:
    for lba in slot:
        await readinto(lba, buffer)


async def plain_writes(slot: Slot, write: Callable[[int, Any], Any], data: Any) -> None:
    for lba in slot:
        await write(~lba, data)


async def plain_mix(
    slot: Slot,
    readinto: Callable[[int, Any], Any],
    buffer: Any,
    write: Callable[[int, Any], Any],
    data: Any,
) -> None:
    for lba in slot:
        if lba >= 0:
            await readinto(lba, buffer)
        else:
            await write(~lba, data)


@types.coroutine
def until_submitted(slot: Slot, call: Awaitable[Any]) -> Steps[Any, Any, Any]:
    """Awaits `call`, and records when it first suspended: then the device has its command."""
    steps = call.__await__()
    try:
        pending = next(steps)
    except StopIteration as done:
        slot.submitted()
        return done.value
    slot.submitted()
    while True:
        try:
            try:
                yield pending
            except BaseException as error:
                pending = steps.throw(error)
            else:
                pending = next(steps)
        except StopIteration as done:
            return done.value


def _reachable(controller: BenchController, nbytes: int) -> Any:
    """Memory that the device can access; page-aligned memory of the process if a transport has
    no DMA.
    """
    try:
        return controller.alloc(nbytes)
    except ConfigurationError:
        return mmap.mmap(-1, nbytes)


class Buffers:
    """Memory of one coroutine that the device can access, and views of it for each requested
    size.
    """

    def __init__(self, controller: BenchController, nbytes: int, options: Options, key: int) -> None:
        self._memory = _reachable(controller, nbytes)
        self._nbytes = nbytes
        self._views: dict[int, memoryview] = {}
        with memoryview(self._memory) as whole:
            self.fill(whole, options, key)

    @staticmethod
    def fill(view: memoryview, options: Options, key: int) -> None:
        if options.zero_buffers:
            return
        if options.buffer_pattern:
            pattern = options.buffer_pattern
            view[:] = (pattern * (len(view) // len(pattern) + 1))[: len(view)]
        else:
            fill_random(view, key % 2**64)

    def of(self, nbytes: int) -> Any:
        """The first `nbytes`; the memory itself if that is all of it, which is the cheapest."""
        return self._memory if nbytes == self._nbytes else self.view(nbytes)

    def view(self, nbytes: int) -> memoryview:
        view = self._views.get(nbytes)
        if view is None:
            view = self._views[nbytes] = memoryview(self._memory)[:nbytes]
        return view

    def free(self) -> None:
        """Frees the memory. No I/O on it may be in flight."""
        for view in self._views.values():
            view.release()
        self._views.clear()
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()
        else:
            self._memory.free()


class Engine:
    """Runs a job's I/O: `run()` until the limits of the recorder, any number of times."""

    options: Options
    recorder: Recorder
    targets: list[Target]

    def __init__(self, options: Options, recorder: Recorder, targets: list[Target], seed: int) -> None:
        self.options, self.recorder, self.targets = options, recorder, targets
        self._buffers: list[Buffers] = []
        self._slots: list[tuple[Target, Buffers]] = []
        self._writes = 0
        self._fills = seed
        self._sync_every = options.fsync or options.fdatasync
        self._fua = options.sync not in ("none", "0")
        paced = any(options.rate) or any(options.rate_iops) or options.thinktime
        self._pace = Pace(options, self.should_stop) if paced else None
        self._steered = steered(options)
        self._times_submission = times_submission(options)
        group = max(
            options.iodepth_batch_submit,
            options.iodepth_batch_complete_min,
            options.iodepth - options.iodepth_low if options.iodepth_low else 1,
        )
        self._group = min(group, options.iodepth)

    def prepare(self) -> None:
        """Allocates a buffer for each coroutine. Raises OutOfDmaMemory."""
        for index in range(self.options.iodepth):
            target = self.targets[index % len(self.targets)]
            buffers = Buffers(target.controller, target.region.largest, self.options, self._fills + index)
            self._buffers.append(buffers)
            self._slots.append((target, buffers))

    def close(self) -> None:
        while self._buffers:
            self._buffers.pop().free()

    def should_stop(self) -> bool:
        deadline = self.recorder.deadline
        return self.recorder.stopped or (deadline is not None and time.monotonic_ns() >= deadline)

    async def run(self) -> None:
        """Does the job's I/O once. Raises the first error of an I/O, after all others have
        completed.
        """
        gate = Gate(self._group, len(self._slots)) if self._group > 1 else None
        plain = is_plain(self.options)
        if self._pace is not None:
            self._pace = Pace(self.options, self.should_stop)  # due times count from here
        coroutines = []
        for target, buffers in self._slots:
            trims = self.options.rw.trim_then_write
            slot = Slot(self.recorder, target.generator, trim_then_write=trims)
            loop = self._plain(slot, target, buffers) if plain else self._any(slot, target, buffers, gate)
            coroutines.append(self._guard(slot, loop))
        await _all(coroutines)

    async def _guard(self, slot: Slot, loop: Any) -> None:
        """One failure stops the job: the others finish their current I/O, and start nothing
        more.
        """
        try:
            await loop
        except BaseException:
            slot.abandon()
            self.recorder.stop()
            raise

    def _plain(self, slot: Slot, target: Target, buffers: Buffers) -> Any:
        namespace, sizes, pattern = target.namespace, target.region.sizes, self.options.rw
        into, data = buffers.of(sizes[READ][0][0]), buffers.of(sizes[WRITE][0][0])
        if pattern.mixed:
            return plain_mix(slot, namespace.readinto, into, namespace.write, data)
        if pattern.writes:
            return plain_writes(slot, namespace.write, data)
        return plain_reads(slot, namespace.readinto, into)

    async def _any(self, slot: Slot, target: Target, buffers: Buffers, gate: Gate | None) -> None:
        namespace, verify, pace = target.namespace, target.verify, self._pace
        zones = target.zones
        claims = verify or zones or target.overlaps
        try:
            while True:
                steer = pace.steer() if pace is not None and self._steered else -1
                claimed = await claims.claim(slot, steer) if claims is not None else slot.claim(steer)
                if claimed < 0:
                    return
                if pace is not None and not await pace.wait(claimed, slot.nbytes):
                    if claims is not None:
                        claims.release(slot)
                    return
                try:
                    await self._one(slot, claimed, namespace, verify, buffers)
                    if zones is not None:
                        zones.done(slot)
                finally:
                    if claims is not None:
                        claims.release(slot)
                if verify is not None:
                    await verify.after(slot, namespace, buffers.view)
                if pace is not None:
                    pace.done()
                if claimed == WRITE and self._sync_every:
                    self._writes += 1
                    if self._writes % self._sync_every == 0:
                        await self.flush(namespace)
                if gate is not None:
                    await gate.arrive()
        finally:
            if gate is not None:
                gate.leave()

    async def _one(
        self,
        slot: Slot,
        direction: int,
        namespace: BenchNamespace,
        verify: VerifyState | None,
        buffers: Buffers,
    ) -> None:
        if direction == READ:
            slot.begin()
            await self._timed(slot, namespace.readinto(slot.lba, buffers.of(slot.nbytes)))
            slot.end()
            if verify is not None:
                await verify.check(slot, buffers.view(slot.nbytes))
        elif direction == TRIM:
            slot.begin()
            await self._timed(slot, namespace.deallocate([(slot.lba, slot.blocks)]))
            slot.end()
        else:
            if verify is not None:
                await verify.stamp(slot, buffers.view(slot.nbytes))
            elif self.options.refill_buffers:
                self._fills += 1
                Buffers.fill(buffers.view(slot.nbytes), self.options, self._fills)
            slot.begin()
            await self._timed(slot, namespace.write(slot.lba, buffers.of(slot.nbytes), fua=self._fua))
            slot.end()

    def _timed(self, slot: Slot, call: Awaitable[Any]) -> Awaitable[Any]:
        return until_submitted(slot, call) if self._times_submission else call

    async def flush(self, namespace: BenchNamespace) -> None:
        began = time.monotonic_ns()
        await namespace.flush()
        self.recorder.record_sync(time.monotonic_ns() - began)

    async def verify_pass(self, target: Target) -> None:
        """Reads back what the job wrote to `target`, with all coroutines; bad blocks are in
        target.verify.
        """
        verify = target.verify
        assert verify is not None
        pieces = verify.pieces(target.region.largest)
        if target.zones is not None:
            pieces = target.zones.split(pieces)
        coroutines = []
        for owner, buffers in self._slots:
            if owner is target:
                slot = Slot(self.recorder, target.generator)
                reading = verify.read_back(slot, target.namespace, buffers.view, pieces)
                coroutines.append(self._guard(slot, reading))
        await _all(coroutines)


async def _all(coroutines: list[Any]) -> None:
    """Awaits all, also after a failure, so that no I/O is left on a buffer; raises the first
    failure then.
    """
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
