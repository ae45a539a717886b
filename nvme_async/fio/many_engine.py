"""The engine `many`: one await per batch, with `iodepth` of its commands in flight inside the
driver.

A batch is iodepth_batch_submit I/Os, or 16 times iodepth if that is not given. Latency is that of
the whole batch, for
each of its I/Os, as seen by an application that awaits the batch.
"""

from __future__ import annotations

import asyncio
from array import array
from typing import Any

from nvme_async.fio.engine import Buffers, Target
from nvme_async.fio.options import Options
from nvme_async.native._fio import READ, WRITE, Batch, Recorder

_DEFAULT_BATCHES_OF_DEPTH = 16


def batch_size(options: Options) -> int:
    given = options.iodepth_batch_submit
    return given if given > 1 else options.iodepth * _DEFAULT_BATCHES_OF_DEPTH


class ManyEngine:
    """Runs a job's I/O in batches; one coroutine for each device."""

    recorder: Recorder
    options: Options
    targets: list[Target]

    def __init__(self, options: Options, recorder: Recorder, targets: list[Target], seed: int) -> None:
        self.options, self.recorder, self.targets = options, recorder, targets
        self._seed = seed
        self._owned: list[Buffers] = []
        self._buffers: list[tuple[Buffers, Buffers]] = []

    def prepare(self) -> None:
        """Allocates two buffers of a batch for each device. Raises OutOfDmaMemory."""
        room, pattern = batch_size(self.options), self.options.rw
        for target in self.targets:
            reads, writes = target.region.sizes[READ][0][0], target.region.sizes[WRITE][0][0]
            pair = []
            for nbytes, used in ((reads, pattern.reads), (writes, pattern.writes)):
                buffers = Buffers(target.controller, nbytes * (room if used else 1), self.options, self._seed)
                self._owned.append(buffers)
                pair.append(buffers)
            self._buffers.append((pair[0], pair[1]))

    def close(self) -> None:
        self._buffers.clear()
        while self._owned:
            self._owned.pop().free()

    async def run(self) -> None:
        """Does the job's I/O once. Raises the first error, after all others have completed."""
        coroutines = [self._run(*pair) for pair in zip(self.targets, self._buffers, strict=True)]
        results = await asyncio.gather(*coroutines, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _run(self, target: Target, buffers: tuple[Buffers, Buffers]) -> None:
        options, namespace = self.options, target.namespace
        room, depth = batch_size(options), options.iodepth
        batch = Batch(self.recorder, target.generator, depth)
        reads, writes = array("Q", bytes(8 * room)), array("Q", bytes(8 * room))
        to_read, to_write = memoryview(reads), memoryview(writes)
        sizes = (target.region.sizes[READ][0][0], target.region.sizes[WRITE][0][0])
        blocks = [size // namespace.block_size for size in sizes]
        into, data = buffers
        try:
            while True:
                n_reads, n_writes = batch.fill(reads, writes)
                calls: list[Any] = []
                if n_reads:
                    memory = into.of(n_reads * sizes[0])
                    call = namespace.read_many(to_read[:n_reads], into=memory, blocks=blocks[0], depth=depth)
                    calls.append(call)
                if n_writes:
                    memory = data.of(n_writes * sizes[1])
                    call = namespace.write_many(to_write[:n_writes], memory, blocks=blocks[1], depth=depth)
                    calls.append(call)
                if not calls:
                    return
                for call in calls:
                    await call
                batch.end()
        except BaseException:
            batch.abandon()
            self.recorder.stop()
            raise
