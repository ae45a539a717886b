#!/usr/bin/env python3
"""Batches of samples for training, straight from a drive into memory that it reaches: no file
system, no copy.

    python loader.py URI [--torch]

Samples have one size and lie one after the other. Each epoch has its own order. The next batches
are read while one is used.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections import deque
from collections.abc import AsyncIterator

import numpy as np
import numpy.typing as npt

import nvme_async
from nvme_async import Controller, DmaBuffer, Namespace

Batch = npt.NDArray[np.uint8]


class Loader:
    """`async for batch in loader.epoch(seed)`: arrays of (batch, sample_bytes).

    A batch's memory is used again `ahead` batches later: copy what must be kept.
    """

    def __init__(
        self, controller: Controller, namespace: Namespace, sample_bytes: int, batch: int, ahead: int = 2
    ) -> None:
        if sample_bytes % namespace.block_size:
            raise ValueError(f"samples of {sample_bytes} bytes are not whole blocks of {namespace.block_size}")
        self._namespace = namespace
        self._blocks = sample_bytes // namespace.block_size
        self._shape = (batch, sample_bytes)
        self.samples = namespace.blocks // self._blocks
        self._buffers: list[DmaBuffer] = [controller.alloc(batch * sample_bytes) for _ in range(ahead + 1)]

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.free()

    async def _read(self, samples: npt.NDArray[np.uint64], buffer: DmaBuffer) -> Batch:
        into = np.asarray(buffer)[: self._shape[0] * self._shape[1]]
        await self._namespace.read_many(samples * np.uint64(self._blocks), into, blocks=self._blocks)
        return into.reshape(self._shape)

    async def epoch(self, seed: int) -> AsyncIterator[Batch]:
        """Each sample once, in an order of its own; what doesn't fill a batch is left out."""
        count = self._shape[0]
        order = np.random.default_rng(seed).permutation(self.samples).astype(np.uint64)
        batches = [order[at : at + count] for at in range(0, self.samples - count + 1, count)]
        free, reading = deque(self._buffers), deque[tuple[asyncio.Task[Batch], DmaBuffer]]()
        try:
            while batches or reading:
                while batches and free:
                    buffer = free.popleft()
                    reading.append((asyncio.create_task(self._read(batches.pop(0), buffer)), buffer))
                task, buffer = reading.popleft()
                yield await task
                free.append(buffer)
        finally:
            for task, _ in reading:
                task.cancel()
            await asyncio.gather(*(task for task, _ in reading), return_exceptions=True)


async def main(uri: str, as_tensors: bool) -> None:
    async with nvme_async.open(uri) as controller:
        loader = Loader(controller, controller.namespaces[1], sample_bytes=64 << 10, batch=16)
        began, nbytes = time.perf_counter(), 0
        async for batch in loader.epoch(seed=1):
            if as_tensors:
                torch = importlib.import_module("torch")  # which need not be installed otherwise
                print(torch.from_dlpack(batch).float().mean())
            nbytes += batch.nbytes
        print(f"{nbytes / 1e6 / (time.perf_counter() - began):.0f} MB/s")
        loader.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], "--torch" in sys.argv[2:]))
