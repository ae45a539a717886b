"""All jobs of a run: opens controllers, runs phases one after another, starts, watches, stops
and collects threads.

Everything here happens on the main thread's event loop, which is also the controllers' home loop.
Jobs have their own threads; they are asked to stop, never cancelled, so that no I/O is lost in
flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs

from nvme_async.driver.options import mode_of
from nvme_async.errors import ConfigurationError
from nvme_async.fio import processes
from nvme_async.fio.commandline import Job
from nvme_async.fio.device import BenchController
from nvme_async.fio.eta import EtaLine, eta_line
from nvme_async.fio.logs import AggregateLog
from nvme_async.fio.stats import JobStats, merge_groups
from nvme_async.fio.steadystate import SteadyStateWatch
from nvme_async.fio.worker import Worker
from nvme_async.runtime.signals import handled

_TICK = 0.1

Opener = Callable[..., contextlib.AbstractAsyncContextManager[BenchController]]


@attrs.define
class Outcome:
    """The results of a run. `interrupted`: by a signal; then the results cover the work done
    until then.
    """

    stats: list[JobStats]
    interrupted: bool

    @property
    def failed(self) -> bool:
        return any(job.error or job.verify_failures for job in self.stats)


def open_device(uri: str, mode: str, **options: Any) -> contextlib.AbstractAsyncContextManager[BenchController]:
    """The driver's own open(); an empty mode keeps the driver's default. Several devices are
    opened by a manager instead.
    """
    import nvme_async

    return nvme_async.open(uri, mode=mode_of(mode), **options) if mode else nvme_async.open(uri, **options)


def group_ids(jobs: Sequence[Job]) -> list[int]:
    """A new reporting group starts with stonewall or new_group."""
    ids: list[int] = []
    for index, job in enumerate(jobs):
        fresh = index > 0 and (job.options.stonewall or job.options.new_group)
        ids.append((ids[-1] if ids else 0) + fresh)
    return ids


def phases_of(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that run at the same time, in order."""
    phases: list[list[Job]] = [[]]
    for job in jobs:
        if job.options.stonewall and phases[-1]:
            phases.append([])
        phases[-1].append(job)
    return phases


def wants_processes(phase: Sequence[Job]) -> list[Job]:
    """Which of the jobs that run at the same time are to be processes. One that is alone shares
    its interpreter with nothing, and stays in this one.
    """
    return [job for job in phase if not job.options.thread] if thread_count(phase) > 1 else []


def thread_count(jobs: Sequence[Job]) -> int:
    return sum(job.options.numjobs for job in jobs)


class Run:
    """One run of jobs. `await run()` once. log: receives lines for people while it runs. status:
    gets the results so far every `status_interval` seconds.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        opener: Opener = open_device,
        eta: EtaLine | None = None,
        log: Callable[[str], None] = print,
        status: Callable[[list[JobStats]], None] | None = None,
        status_interval: float = 0.0,
        aggregate: AggregateLog | None = None,
        debug: Collection[str] = (),
    ) -> None:
        self._jobs, self._opener, self._eta = jobs, opener, eta or EtaLine("never")
        self._log_line = log
        self._status, self._status_interval, self._status_shown = status, status_interval, time.monotonic()
        self._showing: asyncio.Task[None] | None = None
        self._aggregate, self._debug = aggregate, debug
        self._began = time.monotonic()
        self._workers: list[Worker] = []
        self._finished: dict[Worker, float] = {}
        self._watches: dict[int, SteadyStateWatch] = {}
        self._stopping = False
        self._interrupted = False
        self._uris: dict[str, str] = {}
        self._eta_shown = 0.0
        self._eta_totals: tuple[float, list[int], list[int]] = (0.0, [0] * 3, [0] * 3)

    async def run(self) -> Outcome:
        """Raises ConfigurationError for jobs that don't fit their device, and NvmeError if it can't
        be opened.
        """
        async with contextlib.AsyncExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                stack.enter_context(handled(self._on_signal))
            controllers = await self._open(stack)
            phases = self._make_workers(controllers, await self._lend(stack, controllers))
            try:
                for workers in phases:
                    if self._stopping:
                        break
                    await self._phase(workers)
                await self._stop_all()
                self._eta.clear()
                # In a thread: a job process may wait for this loop, to give its lease back.
                await asyncio.to_thread(self._write_logs)
                return Outcome(self._collect(), self._interrupted)
            finally:
                await self._stop_all()
                if self._uris:
                    await asyncio.to_thread(processes.end_all, self._workers)

    def stop(self) -> None:
        """Ends all jobs as if their time were up."""
        self._stopping = True
        for worker in self._workers:
            worker.stop()

    def _on_signal(self, number: int) -> None:
        self._eta.clear()
        self._log(f"fio: terminating on signal {number}")
        self._interrupted = True
        # A second one is not handled here.
        with contextlib.suppress(ValueError):
            asyncio.get_running_loop().remove_signal_handler(number)
        self.stop()

    def _log(self, line: str) -> None:
        self._eta.clear()
        self._log_line(line)

    def _log_error(self, line: str) -> None:
        """A job's bad blocks: on stderr with any report format, as in fio."""
        self._eta.clear()
        print(line, file=sys.stderr, flush=True)

    # -- making ------------------------------------------------------------------------------------

    async def _open(self, stack: contextlib.AsyncExitStack) -> dict[str, BenchController]:
        modes: dict[str, str] = {}
        for job in self._jobs:
            for uri in job.options.filename:
                if modes.setdefault(uri, job.options.mode) != job.options.mode:
                    raise ConfigurationError(f"job {job.name!r}: {uri} is used by another job with a different mode")
        # A queue pair for each job process, one for this process's own loop, one for its jobs.
        most = max(self._processes().values(), default=0)
        # Sharing needs the doorbell registers; Doorbell Buffer Config would cost a reset first.
        options = {"io_queues": max(16, most + 2), "shadow_doorbells": False} if most else {}
        if len(modes) > 1 and self._opener is open_device:
            from nvme_async.fio.managed import open_managed

            return await stack.enter_async_context(open_managed(modes, **options))
        controllers = {}
        for uri, mode in modes.items():
            if self._opener is open_device:
                controllers[uri] = await stack.enter_async_context(open_device(uri, mode, **options))
            else:
                controllers[uri] = await stack.enter_async_context(self._opener(uri, mode))
        return controllers

    def _processes(self) -> dict[str, int]:
        """{device: how many job processes use it at the same time}."""
        most: dict[str, int] = {}
        for phase in phases_of(self._jobs):
            here: dict[str, int] = {}
            for job in wants_processes(phase):
                for uri in job.options.filename:
                    here[uri] = here.get(uri, 0) + job.options.numjobs
            most |= {uri: max(count, most.get(uri, 0)) for uri, count in here.items()}
        return most

    async def _lend(
        self, stack: contextlib.AsyncExitStack, controllers: Mapping[str, BenchController]
    ) -> dict[str, str]:
        """{device: what job processes open for it}."""
        wanted = self._processes() if self._opener is open_device else {}
        if wanted:
            self._uris = await processes.lend(stack, controllers, wanted)
            if missing := [uri for uri in wanted if uri not in self._uris]:
                self._log(f"fio: {' '.join(missing)} can't be shared with that many processes: its jobs run as threads")
        return self._uris

    def _make_workers(self, controllers: Mapping[str, BenchController], uris: Mapping[str, str]) -> list[list[Worker]]:
        phases: list[list[Worker]] = [[]]
        run_number = int.from_bytes(os.urandom(8), "little") | 1
        apart = [job for phase in phases_of(self._jobs) for job in wants_processes(phase)]
        for job, groupid in zip(self._jobs, group_ids(self._jobs), strict=True):
            if job.options.stonewall and phases[-1]:
                phases.append([])
            as_process = any(job is one for one in apart) and all(uri in uris for uri in job.options.filename)
            for clone in range(job.options.numjobs):
                arguments = (job, clone, len(self._workers) + 1, groupid, controllers, self._log_error)
                worker = processes.ProcessWorker(*arguments, uris=uris) if as_process else Worker(*arguments)
                worker.run_number = run_number
                self._workers.append(worker)
                if "random" in self._debug:
                    self._log(f"random   {worker.number} FIO_RAND_NR_OFFS={len(worker.seeds)}")
                    for index, seed in enumerate(worker.seeds):
                        self._log(f"random   {worker.number} rand_seeds[{index}]={seed}")
                phases[-1].append(worker)
        _check_waits(self._workers)
        for workers in phases:
            _mark_shared(workers, self._log)
            _share_zones(workers)
        return phases

    # -- a phase -----------------------------------------------------------------------------------

    async def _phase(self, workers: list[Worker]) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(ended.set)

        for worker in workers:
            wanted = worker.options.steadystate
            if wanted is not None and id(worker.job) not in self._watches:
                watch = SteadyStateWatch(
                    wanted,
                    worker.options.steadystate_duration,
                    worker.options.steadystate_ramp_time,
                    worker.options.steadystate_check_interval,
                )
                self._watches[id(worker.job)] = watch
            worker.on_done = wake
        # Threads of their own: they wait for processes, and the owner answers those in the
        # loop's threads.
        loop = asyncio.get_running_loop()
        threads = ThreadPoolExecutor(len(workers), "fio-prepare")
        try:
            await asyncio.gather(*(loop.run_in_executor(threads, worker.prepare) for worker in workers))
        finally:
            threads.shutdown(wait=False)
        self._start_due(workers)
        running = list(workers)
        tick = min([_TICK, *(worker.histogram_log.every / 2 for worker in workers if worker.histogram_log)])
        while running:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), tick)
            ended.clear()
            now = time.monotonic()
            for worker in [worker for worker in running if worker.done.is_set()]:
                running.remove(worker)
                self._end(worker, now)
            self._start_due(running)
            if self._stopping:
                running = [worker for worker in running if worker.started]
            for worker in running:
                worker.sample(now)
            self._watch_steady_states(running, now)
            self._show_eta(now, workers)
            self._show_status(now)
            if self._aggregate is not None:
                self._aggregate.sample(now - self._began, [worker.recorder.nbytes for worker in self._workers])
        if self._showing is not None:
            await self._showing

    def _start_due(self, workers: Sequence[Worker]) -> None:
        """Starts jobs that wait for nothing any more (wait_for)."""
        for worker in workers:
            if worker.started or self._stopping:
                continue
            awaited = worker.options.wait_for
            if all(other.done.is_set() for other in self._workers if other.options.name == awaited):
                worker.start()

    def _show_status(self, now: float) -> None:
        """In a thread: a job process that is asked may be waiting for this loop, and the output
        may be a pipe that is full. One at a time: intervals that are too short are skipped.
        """
        status = self._status
        if status is None or now - self._status_shown < self._status_interval:
            return
        if self._showing is not None:
            if not self._showing.done():
                return
            self._showing.result()
        self._status_shown = now
        self._eta.clear()
        self._showing = asyncio.create_task(asyncio.to_thread(lambda: status(self._collect(now))))

    def _end(self, worker: Worker, now: float) -> None:
        worker.join()
        self._finished[worker] = now - self._began
        options = worker.options
        if options.exitall or (options.exitall_on_error and worker.error is not None):
            self.stop()

    def _watch_steady_states(self, running: list[Worker], now: float) -> None:
        for key, watch in self._watches.items():
            clones = [worker for worker in running if id(worker.job) == key and worker.recorder.measuring]
            if not clones or watch.result.attained:
                continue
            ios = sum(sum(worker.recorder.ios) for worker in clones)
            nbytes = sum(sum(worker.recorder.nbytes) for worker in clones)
            if watch.feed(now, ios, nbytes):
                for worker in clones:
                    worker.end_phase()

    async def _stop_all(self) -> None:
        """After an internal failure: no thread may outlive the controllers."""
        started = [worker for worker in self._workers if worker.started]
        for worker in started:
            worker.stop()
        for worker in started:
            while not worker.done.is_set():
                await asyncio.sleep(0.01)
            worker.join()
            self._finished.setdefault(worker, time.monotonic() - self._began)

    # -- what is shown -----------------------------------------------------------------------------

    def _show_eta(self, now: float, workers: list[Worker]) -> None:
        if not self._eta.enabled or now - self._eta_shown < self._eta.every:
            return
        before, old_bytes, old_ios = self._eta_totals
        nbytes = [sum(worker.recorder.nbytes[i] for worker in self._workers) for i in range(3)]
        ios = [sum(worker.recorder.ios[i] for worker in self._workers) for i in range(3)]
        elapsed = now - (before or self._began)
        self._eta_totals, self._eta_shown = (now, nbytes, ios), now
        if not before:
            return
        share, eta = self._outlook(now)
        line = eta_line(
            [worker.phase for worker in self._workers],
            len({uri for worker in workers for uri in worker.options.filename}),
            share,
            eta,
            [(new - old) / elapsed for new, old in zip(nbytes, old_bytes, strict=True)],
            [(new - old) / elapsed for new, old in zip(ios, old_ios, strict=True)],
        )
        self._eta.show(line)

    def _outlook(self, now: float) -> tuple[float | None, float | None]:
        """The share of the work done, and the remaining seconds. Jobs limited only by an amount
        are known when they run.
        """
        left, waiting = 0.0, 0.0
        for worker in self._workers:
            done = worker.progress()
            if done is None:
                waiting += worker.options.runtime + worker.options.ramp_time
            elif done <= 0.0:
                return None, None
            elif done < 1.0 and worker.began_at is not None:
                left = max(left, (now - worker.began_at) * (1.0 - done) / done)
        left += waiting
        elapsed = now - self._began
        return elapsed / (elapsed + left), left

    # -- the end -----------------------------------------------------------------------------------

    def _write_logs(self) -> None:
        for worker in self._finished:
            worker.write_logs()
        if self._aggregate is not None:
            self._aggregate.write()

    def _collect(self, now: float | None = None) -> list[JobStats]:
        """Results of ended jobs; `now`: of running ones too."""
        results = []
        for worker in self._workers:
            ended = self._finished.get(worker, None if now is None or not worker.started else now - self._began)
            if ended is None:
                continue
            stats = worker.stats(ended)
            watch = self._watches.get(id(worker.job))
            if watch is not None and worker.clone == 0:
                stats.steady = watch.result
            results.append((stats, worker.options.group_reporting))
        return merge_groups(results)


def _check_waits(workers: Sequence[Worker]) -> None:
    """wait_for names an earlier job; a circle, or an unknown name, would never start."""
    names: list[str] = []
    for worker in workers:
        awaited = worker.options.wait_for
        if awaited and awaited not in names:
            before = ", ".join(dict.fromkeys(names)) or "none"
            raise ConfigurationError(
                f"job {worker.options.name!r}: wait_for={awaited}: no such job before it ({before})"
            )
        names.append(worker.options.name)


def _mark_shared(workers: Sequence[Worker], log: Callable[[str], None]) -> None:
    """Blocks that another job writes at the same time count as good for a verifying job; as in
    fio, one warning says that concurrent writes may mix in one block.
    """
    for worker in workers:
        if worker.options.verify == "none" or not worker.options.rw.writes:
            continue
        others = [other for other in workers if other is not worker and _overlap(worker, other)]
        if others and not any(other.shared for other in workers):
            log(
                f"fio: job {worker.options.name!r} verifies a region that job {others[0].options.name!r} writes to at "
                "the same time: what both write at once can seem damaged (size with offset or offset_increment, or "
                "stonewall, keep them apart)"
            )
        worker.shared = bool(others)


def _share_zones(workers: Sequence[Worker]) -> None:
    """Jobs of zonemode=zbd that run at the same time share the limit of open zones, and no zones:
    each knows the write pointers by its own writes. Raises ConfigurationError.
    """
    writing = [one for one in workers if one.options.zonemode == "zbd" and one.options.rw.writes]
    for worker in writing:
        worker.zone_writers = len(writing)
        other = next((one for one in writing if one is not worker and _overlap(worker, one)), None)
        if other is not None:
            raise ConfigurationError(
                f"jobs {worker.options.name!r} and {other.options.name!r} write the same zones at the same time: size "
                "with offset or offset_increment, or stonewall, keep them apart (zonemode=zbd)"
            )


def _overlap(worker: Worker, writer: Worker) -> bool:
    writes = writer.options.rw.writes or writer.options.rw.trims
    if not writes or writer.options.nsid != worker.options.nsid:
        return False
    return any(
        mine.uri == theirs.uri
        and mine.region.start < theirs.region.start + theirs.region.length
        and theirs.region.start < mine.region.start + mine.region.length
        for mine in worker.targets
        for theirs in writer.targets
    )
