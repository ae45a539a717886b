"""Helpers of the tests of sharing: an owner in this process, workers as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from driving import eventually, faults, pattern

import nvme_async
from nvme_async.errors import NvmeError
from nvme_async.sharing import Share

WORKER = Path(__file__).with_name("shared_worker.py")
FAST: dict[str, Any] = {"command_timeout": 20.0, "admin_timeout": 10.0, "abort_timeout": 2.0, "pool_bytes": 4 << 20}


@asynccontextmanager
async def owner(
    path: Path, uri: str = "emulated:size=64MiB,block=4096", options: dict[str, Any] | None = None, **policy: Any
) -> AsyncIterator[tuple[nvme_async.Controller, Share]]:
    async with (
        nvme_async.open(uri, **{**FAST, **(options or {})}) as controller,
        controller.share(path, **policy) as share,
    ):
        yield controller, share


def worker(share: Share, **options: object) -> nvme_async._open.Opening:
    return nvme_async.open(f"shared:{share.path}", **{**FAST, **options})  # type: ignore[arg-type]


async def stuck(own: nvme_async.Controller, commands: int) -> None:
    """The controller has that many, which it executes at faults(own).release()."""
    await eventually(lambda: len(faults(own).outstanding()) == commands)


async def keep_writing(
    namespace: nvme_async.Namespace, lba: int, written: dict[int, int], until: type[NvmeError]
) -> None:
    """Versions of one block, until this worker is refused. Each write is acknowledged, and then
    noted, before the next one is sent.
    """
    version = written.get(lba, 0)
    while True:
        version += 1
        try:
            await namespace.write(lba, pattern(namespace.block_size, version))
        except until:
            return
        written[lba] = version


async def hand_over(controller: nvme_async.Controller, path: Path, **options: object) -> nvme_async.Controller:
    async with controller.handover(path) as offer:
        successor = await nvme_async.take_over(path, **{**FAST, **options})  # type: ignore[arg-type]
        await offer
    assert offer.taken
    return successor


def quiet(own: nvme_async.Controller, before: dict[str, int]) -> bool:
    after = faults(own).counters()
    return all(after[name] == before[name] for name in ("resets", "invalid_doorbells"))


class Worker:
    """A process that runs shared_worker.py."""

    def __init__(self, process: asyncio.subprocess.Process, seed: int) -> None:
        self.process = process
        self.seed = seed

    @classmethod
    async def start(cls, path: Path, seed: int, *options: str) -> Worker:
        """Waits until it has started its I/O."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(WORKER), str(path), str(seed), "pool_bytes=4194304", *options,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        worker = cls(process, seed)
        assert await worker.line() == "ready"
        return worker

    @property
    def pid(self) -> int:
        return self.process.pid

    async def line(self, seconds: float = 60.0) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            return (await self.process.stdout.readline()).decode().strip()

    async def progress(self) -> int:
        """The next number of rounds that it prints; earlier output is skipped."""
        assert self.process.stdout is not None
        self.process.stdout._buffer.clear()  # type: ignore[attr-defined]
        await self.line()  # possibly half a line
        return int(await self.line())

    async def stop(self) -> tuple[int, float, int]:
        """(verified rounds, longest gap in milliseconds, resets), after its clean end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        async with asyncio.timeout(60.0):
            text = (await self.process.stdout.read()).decode()
            code = await self.process.wait()
        assert code == 0, text
        assert "wrong" not in text
        words = text.split()
        at = words.index("done")
        return int(words[at + 1]), float(words[at + 2]), int(words[words.index("resets") + 1])

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.process.wait()
