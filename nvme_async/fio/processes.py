"""Jobs as processes, as in fio: this process owns the devices and lends each job queue pairs
(nvme_async.sharing).

What a job process does is in job_process.py. Here is its other end, which looks like a Worker to
the run.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from nvme_async.errors import ConfigurationError
from nvme_async.fio.device import BenchController
from nvme_async.fio.job_messages import Message, Plan, Progress
from nvme_async.fio.stats import JobStats
from nvme_async.fio.worker import Worker

_POOL_BYTES = 4 << 30
"""That one job may have mapped; what it uses is what it allocates."""
_PATIENCE = 10.0
"""Seconds for a process to answer, or to end, before it is killed."""
_ANSWERS = {"stats": "stats", "logs": "logged"}
"""Which message answers which question."""


class JobFailed(OSError):
    """What failed in the process, with fio's number for it."""

    def __str__(self) -> str:
        return str(self.args[1])


class RemoteRecorder:
    """What the run reads of a worker's recorder, as of the last Progress."""

    ios: tuple[int, int, int] = (0, 0, 0)
    nbytes: tuple[int, int, int] = (0, 0, 0)
    claimed: tuple[int, int] = (0, 0)
    measuring = False
    stopped = False
    began: int | None = None

    def take(self, progress: Progress) -> None:
        for name in ("ios", "nbytes", "claimed", "measuring", "stopped", "began"):
            setattr(self, name, getattr(progress, name))


class ProcessWorker(Worker):
    """One job in a process of its own. prepare() before start(); end() lets go of it, whatever
    its state.

    uris: {device as jobs name it: what the process opens}.
    """

    def __init__(self, *arguments: Any, uris: Mapping[str, str]) -> None:
        super().__init__(*arguments)
        self._uris = {device: uris[device] for device in self.options.filename}
        self.recorder: Any = RemoteRecorder()
        self.histogram_log = None  # the process has it
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready = threading.Event()
        self._started = False
        self._answers: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._last: JobStats | None = None

    def prepare(self) -> None:
        """Starts the process, and waits until it has its devices open, or has failed. Blocks."""
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join(entry for entry in sys.path if entry)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nvme_async.fio.job_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
            )
        self._connection = Connection(ours.detach())
        self.thread_id = self._process.pid
        self._thread = threading.Thread(target=self._listen, name=f"{self.options.name}.{self.clone}", daemon=True)
        self._thread.start()
        plan = Plan(self.job, self.clone, self.number, self.groupid, self.run_number, self.shared, self._uris)
        self._order(plan)
        self._ready.wait()

    # -- as of a Worker ----------------------------------------------------------------------------

    def start(self) -> None:
        self._started = True
        self._order("go")

    @property
    def started(self) -> bool:
        return self._started

    def stop(self) -> None:
        self._order("stop")

    def end_phase(self) -> None:
        self._order("expire")

    def join(self) -> None:
        """Its process is left until end(): it gives its lease back, for which this process has
        to answer.
        """

    def sample(self, now: float) -> None:
        """The process takes its own."""

    def stats(self, elapsed: float) -> JobStats:
        if not self.done.is_set():
            self._ask("stats")
        stats = self._last
        if stats is None:
            # It was killed, or failed before it began: what is known is how far it was.
            stats = JobStats(self.options.name, self.groupid, self.thread_id, description=self.options.description)
            stats.options, stats.depth = dict(self.job.texts), self.options.iodepth
            stats.percentiles = self.options.percentile_list
            for direction, result in enumerate(stats.directions):
                result.ios, result.nbytes = self.recorder.ios[direction], self.recorder.nbytes[direction]
        stats.elapsed = max(1, int(elapsed) + 1)
        if self.error is not None and not stats.error:
            stats.error, stats.error_text = getattr(self.error, "errno", 0) or 1, str(self.error)
        return stats

    def write_logs(self) -> None:
        answer = self._ask("logs")
        if answer is not None and answer.text:
            raise OSError(f"job {self.options.name!r}: {answer.text}")

    def end(self) -> None:
        """The process ends, or is killed. Blocks for a short time."""
        process, connection = self._process, self._connection
        if process is None or connection is None:
            return
        self._order("end")
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._thread is not None:
            self._thread.join()
        connection.close()

    # -- the connection ----------------------------------------------------------------------------

    def _order(self, what: Any) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(what)

    def _ask(self, what: str) -> Message | None:
        """The answer, or None: the process has ended, or took too long. Not on the owner's loop,
        for which the process may be waiting.
        """
        self._order(what)
        limit = time.monotonic() + _PATIENCE
        while self._alive and (left := limit - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=left)
                if answer is None or answer.what == _ANSWERS[what]:
                    return answer  # another answer is that of an earlier question, and late
        return None

    @property
    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _listen(self) -> None:
        """In a thread of its own, until the process ends."""
        connection, process = self._connection, self._process
        assert connection is not None
        assert process is not None
        try:
            while True:
                self._take(connection.recv())
        except (EOFError, OSError):
            pass
        except Exception:
            process.kill()
            raise
        finally:
            self._ended()

    def _ended(self) -> None:
        process = self._process
        assert process is not None
        process.wait()
        if not self.done.is_set():
            how = f"got signal={-process.returncode}" if process.returncode < 0 else f"exited with {process.returncode}"
            self.log(f"fio: pid={process.pid}, {how}")
            self._finish(JobFailed(5, f"the job's process {how}"))
        self._answers.put(None)

    def _take(self, message: Message) -> None:
        if message.progress is not None:
            self.recorder.take(message.progress)
            self.phase, self.began_at = message.progress.phase, message.progress.began_at
        if message.stats is not None:
            self._last = message.stats
            self.verify_failures = message.stats.verify_failures
        if message.what == "log":
            self.log(message.text)
        elif message.what == "ready":
            self._ready.set()
        elif message.what == "done":
            if message.stats is None:
                self.log(f"fio: job {self.options.name!r}, number {self.number}: {message.text}")
            self._finish(JobFailed(message.number, message.text) if message.text else None)
        elif message.what in ("stats", "logged"):
            self._answers.put(message)

    def _finish(self, error: BaseException | None) -> None:
        self.error = error
        self.phase = "_"
        self.done.set()
        self._ready.set()
        self.on_done()


async def lend(
    stack: contextlib.AsyncExitStack, controllers: Mapping[str, BenchController], jobs: Mapping[str, int]
) -> dict[str, str]:
    """Shares devices with job processes until the stack is left. jobs: {device: how many at the
    same time}.

    {device: URI for the processes}, of those that can be shared and have queue pairs enough; jobs
    of the others are threads.
    """
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nvme-async-fio-"))
    uris: dict[str, str] = {}
    for index, (device, most) in enumerate(jobs.items()):
        if device.startswith("shared:"):
            uris[device] = device
            continue
        controller: Any = controllers[device]
        left = controller.inspect().get("io_queue_limit", 0) - 1 if hasattr(controller, "share") else 0
        if left < most:
            continue
        with contextlib.suppress(ConfigurationError):
            share = controller.share(f"{folder}/{index}", workers=most, pool_bytes=_POOL_BYTES, entries=4096)
            await stack.enter_async_context(share)
            uris[device] = f"shared:{share.path}"
    return uris


def end_all(workers: Sequence[Worker]) -> None:
    """Lets go of all processes. Blocks; from a thread."""
    for worker in workers:
        if isinstance(worker, ProcessWorker):
            worker.end()
