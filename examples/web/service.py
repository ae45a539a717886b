"""A web service with N worker processes on one drive; a worker may die, and the owner may be
replaced, meanwhile.

    python examples/web/service.py --device emulated:size=1GiB,block=4096 --workers 4 --port 8080
    curl -X PUT --data-binary hello localhost:8080/blocks/7
    curl localhost:8080/blocks/7

    kill -HUP PID     replaces the owner by a new process (an upgrade): no worker pauses
    kill -KILL …      a worker: the others go on, and there is a new one

This process starts the others and does no I/O: a keeper, the owner (`nvme-async share`), and the
workers (worker.py), which accept connections from one socket. An emulated: device lives in its
owner, so with one of those SIGHUP does nothing; `nvme-async emulate` serves one that stays.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

PATIENCE = 30.0
COMMAND = [sys.executable, "-m", "nvme_async"]


async def start(arguments: list[str], word: str, fds: tuple[int, ...] = ()) -> Process:
    """A process, once it has said a line with that word."""
    process = await asyncio.create_subprocess_exec(*arguments, stdin=DEVNULL, stdout=PIPE, pass_fds=fds)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        line = await process.stdout.readline()
    if word not in line.decode():
        raise RuntimeError(f"{' '.join(arguments)} ended instead of being {word}")
    return process


async def end(process: Process, number: signal.Signals = signal.SIGTERM) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
    async with asyncio.timeout(PATIENCE):
        await process.wait()


class Service:
    """The processes. A keeper is needed where the device outlives its owner."""

    def __init__(self, device: str, workers: int, folder: Path, listening: socket.socket) -> None:
        self._device, self._workers, self._listening = device, workers, listening
        self._kept = not device.startswith("emulated:")
        self._keeper, self._share = folder / "keeper.sock", folder / "share.sock"
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, ended: asyncio.Event, upgrade: asyncio.Event) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if self._kept:
                keeper = await asyncio.create_subprocess_exec(*COMMAND, "keeper", "--socket", str(self._keeper))
                stack.push_async_callback(end, keeper)
                while not self._keeper.exists():
                    await asyncio.sleep(0.01)
            owner = await self._owner()
            try:
                first = await asyncio.gather(*(self._worker() for _ in range(self._workers)))
                self._tasks = [asyncio.create_task(self._keep_up(worker)) for worker in first]
                print(f"serving on http://localhost:{self._listening.getsockname()[1]}", flush=True)
                while not ended.is_set():
                    waits = [asyncio.create_task(event.wait()) for event in (ended, upgrade)]
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    for wait in waits:
                        wait.cancel()
                    if upgrade.is_set() and not ended.is_set() and self._kept:
                        # With a keeper, SIGTERM leaves controller and workers to the next owner.
                        await end(owner)
                        owner = await self._owner()
                        print(f"owner is process {owner.pid}", flush=True)
                    upgrade.clear()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await end(owner, signal.SIGINT)

    async def _owner(self) -> Process:
        keeper = ["--keeper", str(self._keeper)] if self._kept else []
        command = [*COMMAND, *keeper, "share", self._device, "--socket", str(self._share)]
        return await start([*command, "--workers", str(2 * self._workers)], "shared at")

    async def _worker(self) -> Process:
        fd = self._listening.fileno()
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), "--share", str(self._share)]
        return await start([*command, "--listen", str(fd)], "ready", (fd,))

    async def _keep_up(self, worker: Process) -> None:
        """There is always this worker, or one in its place."""
        try:
            while True:
                await worker.wait()
                worker = await self._worker()
        finally:
            await end(worker)


async def main(options: argparse.Namespace) -> None:
    loop, ended, upgrade = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, upgrade.set)
    with (
        tempfile.TemporaryDirectory(prefix="web-") as folder,
        socket.create_server((options.host, options.port), backlog=1024) as listening,
    ):
        await Service(options.device, options.workers, Path(folder), listening).run(ended, upgrade)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", required=True, help="URI of the drive, whose first blocks this service uses")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    asyncio.run(main(parser.parse_args()))
