"""A job in a process of its own: `python -m nvme_async.fio.job_process FD`, started by
processes.py.

FD is a connected socket: a Plan comes first, then orders; what happens goes the other way, as
Messages. The process takes a lease on each of its devices, and does its I/O without asking anyone.
It ends when the other end does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import uvloop

import nvme_async
from nvme_async.errors import NvmeError
from nvme_async.fio.device import BenchController
from nvme_async.fio.job_messages import Message, Plan, Progress
from nvme_async.fio.worker import Worker

TICK = 0.1


class JobProcess:
    """On the loop that does the I/O."""

    def __init__(self, connection: Connection, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan
        self._worker: Worker | None = None
        self._go = asyncio.Event()
        self._ended = asyncio.Event()
        self._early_stop = False

    async def run(self) -> None:
        """Until the other end needs it no more."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._connection.fileno(), self._order)
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    controllers = await self._open(stack)
                    plan = self._plan
                    worker = Worker(plan.job, plan.clone, plan.number, plan.groupid, controllers, self._log)
                except (NvmeError, OSError, MemoryError, ValueError) as error:
                    self._send(Message("done", f"{type(error).__name__}: {error}", number=_number(error)))
                else:
                    await self._work(worker)
            await self._ended.wait()
        finally:
            loop.remove_reader(self._connection.fileno())

    async def _open(self, stack: contextlib.AsyncExitStack) -> Mapping[str, BenchController]:
        options: dict[str, Any] = {"io_queues": self._plan.io_queues}
        if self._plan.job.options.mode:
            options["mode"] = self._plan.job.options.mode
        return {
            device: await stack.enter_async_context(nvme_async.open(uri, **options))
            for device, uri in self._plan.uris.items()
        }

    async def _work(self, worker: Worker) -> None:
        worker.run_number, worker.shared = self._plan.run_number, self._plan.shared
        self._worker = worker
        self._send(Message("ready"))
        await self._go.wait()
        if self._ended.is_set():
            return
        if self._early_stop:
            worker.stop()
        watching = asyncio.ensure_future(self._watch(worker))
        try:
            await worker.run_here()
        finally:
            watching.cancel()
            failed = worker.error
            text = f"{type(failed).__name__}: {failed}" if failed is not None else ""
            self._send(Message("done", text, Progress.of(worker), worker.stats(0.0), _number(failed)))

    async def _watch(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        tick = min(TICK, worker.histogram_log.every / 2) if worker.histogram_log else TICK
        while True:
            await asyncio.sleep(tick)
            worker.sample(loop.time())
            self._send(Message("progress", progress=Progress.of(worker)))

    def _log(self, line: str) -> None:
        self._send(Message("log", line))

    def _send(self, message: Message) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def _order(self) -> None:
        """ "go", "stop", "expire", "stats", "logs" or "end"."""
        try:
            order = self._connection.recv()
        except (EOFError, OSError):
            # The owner of the devices is gone, so no process is left to report to.
            os._exit(1)
        worker = self._worker
        if order == "go":
            self._go.set()
        elif order == "stop":
            self._early_stop = True
            if worker is not None:
                worker.stop()
        elif order == "expire" and worker is not None:
            worker.end_phase()
        elif order == "stats" and worker is not None:
            self._send(Message("stats", progress=Progress.of(worker), stats=worker.stats(0.0)))
        elif order == "logs" and worker is not None:
            self._send(Message("logged", _failure_of(worker)))
        elif order == "end":
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            if worker is not None:
                worker.stop()
            self._ended.set()
            self._go.set()


def _failure_of(worker: Worker) -> str:
    try:
        worker.write_logs()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _number(error: BaseException | None) -> int:
    if error is None:
        return 0
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) and number > 0 else errno.EIO


def main() -> None:
    # A terminal's Ctrl-C reaches all; the first process says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(int(sys.argv[1])) as connection:
        try:
            plan: Plan = connection.recv()
        except EOFError:
            return
        factory = uvloop.new_event_loop if plan.job.options.loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(JobProcess(connection, plan).run())


if __name__ == "__main__":
    main()
