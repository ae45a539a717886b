"""Worker threads: each runs one event loop, to which controllers belong and on which plain
threads' coroutines run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvloop

from nvme_async.driver.schemes import parse_uri
from nvme_async.errors import ConfigurationError, QueueShutdown
from nvme_async.runtime import forks

log: logging.Logger = logging.getLogger("nvme_async")
T = TypeVar("T")

EventLoop = Literal["uvloop", "asyncio"]
Pin = Literal["numa"] | Sequence[Sequence[int]] | None

# Register accesses of vfio-user devices are calls in threads. They are made on demand, and a slow
# device must not block the others.
REGISTER_THREADS = 64

CANCEL_SECONDS = 2.0
"""Limit for the tasks of a loop to end after they were cancelled, when the loop is to end."""


class Worker:
    """One thread and its loop. Owned by Workers.

    Threads: submit() and inspect() may be called from any; start() and stop() from the manager's
        side, one after another.
    """

    def __init__(self, name: str, event_loop: EventLoop, cpus: frozenset[int] | None) -> None:
        self.name = name
        self.cpus = cpus
        self.devices = 0  # number of devices here; Workers' lock guards it
        self.loop: asyncio.AbstractEventLoop = (
            uvloop.new_event_loop() if event_loop == "uvloop" else asyncio.new_event_loop()
        )
        self._executor = concurrent.futures.ThreadPoolExecutor(REGISTER_THREADS, thread_name_prefix=f"{name} registers")
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _main(self) -> None:
        if self.cpus:
            try:
                os.sched_setaffinity(0, self.cpus)
            except OSError as error:
                log.warning("worker %s can't be pinned to CPUs %s: %s", self.name, sorted(self.cpus), error)
        asyncio.set_event_loop(self.loop)
        self.loop.set_default_executor(self._executor)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._cancel_all())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self.loop.close()

    async def _cancel_all(self) -> None:
        """Cancelled tasks may still release a controller. Those that refuse to end are
        abandoned.
        """
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self.loop.is_closed()

    @property
    def current(self) -> bool:
        """Is this the thread of the caller?"""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Runs a coroutine on this worker's loop. QueueShutdown if its thread has ended, or is not
        this process's.
        """
        if not self.alive:
            coroutine.close()
            raise QueueShutdown(f"worker {self.name} has ended, or {forks.PARENTS}")
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def call(self, make: Callable[[], Awaitable[T]]) -> T:
        """Awaits make() on this worker's loop, from any loop. Cancelling the caller cancels it."""

        async def run() -> T:
            return await make()

        if asyncio.get_running_loop() is self.loop:
            return await make()
        return await asyncio.wrap_future(self.submit(run()))

    def stop(self) -> None:
        """Asks the loop to end."""
        if self.alive:
            self.loop.call_soon_threadsafe(self.loop.stop)

    def join(self, seconds: float) -> bool:
        """Waits for the thread; False if it hasn't ended in time: something on it doesn't give
        way.
        """
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def inspect(self) -> dict[str, Any]:
        cpu = 0.0
        if self._thread.is_alive() and self._thread.ident is not None:
            cpu = time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))
        return {
            "name": self.name,
            "thread": self._thread.native_id,
            "event_loop": type(self.loop).__module__.partition(".")[0],
            "cpus": sorted(self.cpus) if self.cpus else None,
            "devices": self.devices,
            "cpu_seconds": round(cpu, 6),
        }


def _cpulist(text: str) -> frozenset[int]:
    """ "0-3,8" → {0, 1, 2, 3, 8}: sysfs's notation."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def numa_nodes(root: Path = Path("/sys")) -> dict[int, frozenset[int]]:
    """{node: its CPUs} that this process may run on; empty on a system without NUMA."""
    allowed = os.sched_getaffinity(0)
    nodes = {}
    for path in sorted(root.glob("devices/system/node/node[0-9]*")):
        cpus = _cpulist((path / "cpulist").read_text()) & allowed
        if cpus:
            nodes[int(path.name.removeprefix("node"))] = cpus
    return nodes


def numa_node_of(uri: str, root: Path = Path("/sys")) -> int | None:
    """The node that a PCI function is near to; None for other devices and where the system doesn't
    say.
    """
    scheme, rest = parse_uri(uri)
    if scheme != "pci":
        return None
    try:
        node = int((root / "bus/pci/devices" / rest / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


class Workers:
    """The manager's threads, started when the first device (or coroutine) needs them.

    A device goes to the worker with the fewest devices, among those on its NUMA node where workers
    are pinned so.
    """

    def __init__(self, count: int | None, event_loop: EventLoop, pin: Pin) -> None:
        if event_loop not in ("uvloop", "asyncio"):
            raise ConfigurationError(f"event_loop is {event_loop!r}, not one of uvloop, asyncio")
        if count is not None and not 1 <= count <= 256:
            raise ConfigurationError(f"workers is {count}, must be 1 to 256")
        self._event_loop = event_loop
        self._lock = threading.Lock()
        self._nodes: dict[int, frozenset[int]] = numa_nodes() if pin == "numa" else {}
        self._cpus = self._plan(count, pin)
        self._workers: list[Worker | None] = [None] * len(self._cpus)
        self._devices = [0] * len(self._cpus)
        self._turn = 0

    def _plan(self, count: int | None, pin: Pin) -> list[frozenset[int] | None]:
        """CPUs of each worker. By default four workers, or as many as there are CPUs if those are
        fewer: the GIL makes more pointless.
        """
        if pin is None:
            return [None] * (count or min(4, len(os.sched_getaffinity(0))))
        if pin == "numa":
            nodes = list(self._nodes.values()) or [frozenset(os.sched_getaffinity(0))]
            return [nodes[i % len(nodes)] for i in range(count or len(nodes))]
        if isinstance(pin, str):
            raise ConfigurationError(f"pin is {pin!r}, not None, 'numa' or a list of CPU numbers for each worker")
        plan: list[frozenset[int] | None] = [frozenset(cpus) for cpus in pin]
        if not plan or (count is not None and count != len(plan)):
            raise ConfigurationError(f"pin names CPUs for {len(plan)} workers, but workers is {count}")
        return plan

    def _ensure(self, index: int) -> Worker:
        """Under the lock. What is submitted before the thread's loop runs, waits there."""
        worker = self._workers[index]
        if worker is None:
            worker = Worker(f"nvme-worker-{index}", self._event_loop, self._cpus[index])
            worker.start()
            self._workers[index] = worker
        return worker

    def place(self, uri: str) -> Worker:
        """The worker for a device that is loaded; leave() gives the place back."""
        node = numa_node_of(uri) if self._nodes else None
        near = self._nodes.get(node) if node is not None else None
        with self._lock:
            candidates = [i for i, cpus in enumerate(self._cpus) if near is None or cpus == near] or range(
                len(self._cpus)
            )
            index = min(candidates, key=lambda i: self._devices[i])
            worker = self._ensure(index)
            self._devices[index] += 1
            worker.devices += 1
            return worker

    def leave(self, worker: Worker) -> None:
        with self._lock:
            self._devices[self._workers.index(worker)] -= 1
            worker.devices -= 1

    def any(self) -> Worker:
        """One after the other, for what belongs to no device."""
        with self._lock:
            index = self._turn % len(self._cpus)
            self._turn += 1
            return self._ensure(index)

    def running(self) -> list[Worker]:
        with self._lock:
            return [worker for worker in self._workers if worker is not None]

    def stop(self, seconds: float) -> None:
        """Ends all threads, waiting no longer than `seconds` for them together. Not from one of
        them.
        """
        workers = self.running()
        for worker in workers:
            worker.stop()
        limit = time.monotonic() + seconds
        for worker in workers:
            if not worker.join(max(0.0, limit - time.monotonic())):
                log.error("worker thread %s does not end: its event loop is blocked", worker.name)

    def inspect(self) -> list[dict[str, Any]]:
        return [worker.inspect() for worker in self.running()]
