"""A running job: a thread, its event loop, and its measurements."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import uvloop

from nvme_async.errors import ConfigurationError, NvmeError
from nvme_async.fio.commandline import Job
from nvme_async.fio.device import BenchController
from nvme_async.fio.engine import Engine, Target
from nvme_async.fio.logs import HistogramLog, write_logs
from nvme_async.fio.many_engine import ManyEngine
from nvme_async.fio.pacing import Overlaps
from nvme_async.fio.plan import make_generator, make_recorder, plan_number, plan_region, seed_of
from nvme_async.fio.stats import JobStats, Samples
from nvme_async.fio.verify import BadBlock
from nvme_async.fio.verify_state import VerifyFailed, VerifyState
from nvme_async.fio.zbd import Zones
from nvme_async.native._fio import READ, TRIM, WRITE, Recorder

_LETTERS = {
    "read": "R",
    "randread": "r",
    "write": "W",
    "randwrite": "w",
    "rw": "M",
    "randrw": "m",
    "trim": "D",
    "randtrim": "d",
    "trimwrite": "D",
    "randtrimwrite": "d",
}
_MAX_SHOWN = 10


class Worker:
    """A job, or one clone of it. The thread is started by start() and ends by itself; stop() makes
    it end soon.

    The main thread may call stop(), progress() and sample() at any time, and stats() when it is
    `done`.
    """

    job: Job
    verify_failures: int
    groupid: int
    clone: int
    number: int

    def __init__(
        self,
        job: Job,
        clone: int,
        number: int,
        groupid: int,
        controllers: Mapping[str, BenchController],
        log: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> None:
        options = job.options
        self.job, self.options, self.clone, self.number, self.groupid = job, options, clone, number, groupid
        self.log = log
        self.done: threading.Event = threading.Event()
        self.on_done: Callable[[], None] = lambda: None  # called in the job's thread when all is over
        self.phase: str = "P"  # of the ETA line: pending, running (by pattern), verifying, flushing, ended
        self.error: BaseException | None = None
        self.verify_failures = 0
        self.run_number = 1  # of the program's run: for headers of verify
        self.shared = False  # others may write to the blocks that this job verifies
        self.zone_writers = 1  # jobs that share the limit of open zones
        self.thread_id: int = 0
        self.began_at: float | None = None
        self.bandwidth: tuple[Samples, Samples, Samples] = (Samples(), Samples(), Samples())
        self.iops: tuple[Samples, Samples, Samples] = (Samples(), Samples(), Samples())
        self._sampled = [(0.0, (0, 0, 0)), (0.0, (0, 0, 0))]
        self._runtimes = [0, 0, 0]
        self._under_way: tuple[int, tuple[int, ...]] | None = None  # since when, and which directions
        self.histogram_log: HistogramLog | None = HistogramLog(options, self.number) if options.write_hist_log else None
        self._usage = [0.0] * 6
        self._elapsed_ms = 0
        self._thread: threading.Thread | None = None
        self.seeds: list[int] = []  # of each target
        self.targets: list[Target] = self._plan(controllers)
        limits = [target.region.limit for target in self.targets]
        self.limit_bytes: int | None = None if options.time_based else sum(limit or 0 for limit in limits)
        self.recorder: Recorder = make_recorder(options, self.limit_bytes)

    def _plan(self, controllers: Mapping[str, BenchController]) -> list[Target]:
        options = self.options
        targets = []
        for index, uri in enumerate(options.filename):
            controller = controllers[uri]
            namespace = controller.namespaces.get(options.nsid)
            if namespace is None:
                there = ", ".join(map(str, sorted(controller.namespaces))) or "none"
                raise ConfigurationError(f"job {options.name!r}: nsid={options.nsid} is not on {uri} (there: {there})")
            block = namespace.block_size
            region = plan_region(options, self.clone, namespace.nbytes, block)
            seed = seed_of(options, self.number, index)
            self.seeds.append(seed)
            generator = make_generator(options, region, seed, block)
            plan = plan_number(options, region, seed, block)
            overlaps = Overlaps(region.grain) if options.serialize_overlap else None
            targets.append(Target(uri, controller, namespace, region, generator, plan, overlaps=overlaps))
        return targets

    # -- for the main thread -----------------------------------------------------------------------

    def prepare(self) -> None:
        """What takes its time before jobs are started at the same moment. Blocks; from a thread."""

    def start(self) -> None:
        self._thread = threading.Thread(target=self._main, name=f"{self.options.name}.{self.clone}", daemon=True)
        self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """No new I/O; in-flight I/O completes first. From any thread."""
        self.recorder.stop()

    def end_phase(self) -> None:
        """Ends the I/O as if its time were up; a verify job continues with reading back. From
        any thread.
        """
        self.recorder.expire()

    @property
    def started(self) -> bool:
        return self._thread is not None

    def progress(self) -> float | None:
        """How much of the job is done, 0 to 1; None if it has not started."""
        if self.done.is_set():
            return 1.0
        if self.began_at is None:
            return None
        options, shares = self.options, [0.0]
        total = options.ramp_time + options.runtime
        if options.runtime:
            shares.append((time.monotonic() - self.began_at) / total)
        claimed_bytes, claimed_ios = self.recorder.claimed
        if self.limit_bytes:
            shares.append(claimed_bytes / self.limit_bytes / options.loops)
        if options.number_ios:
            shares.append(claimed_ios / options.number_ios / options.loops)
        return min(max(shares), 1.0)

    def sample(self, now: float) -> None:
        """Takes a bandwidth and an IOPS sample where one is due."""
        recorder = self.recorder
        if self.histogram_log is not None and recorder.measuring:
            self.histogram_log.sample(now, recorder)
        if self.options.disable_bw_measurement or not recorder.measuring or self.done.is_set():
            return
        kinds = (
            (self.options.bwavgtime, recorder.nbytes, self.bandwidth, 1024),
            (self.options.iopsavgtime, recorder.ios, self.iops, 1),
        )
        for index, (milliseconds, counts, samples, divisor) in enumerate(kinds):
            before, earlier = self._sampled[index]
            if not before:
                self._sampled[index] = (now, counts)
            elif now - before >= milliseconds / 1000:
                self._sampled[index] = (now, counts)
                for count, old, sink in zip(counts, earlier, samples, strict=True):
                    if count > old:
                        sink.add((count - old) / (now - before) / divisor)

    # -- the thread --------------------------------------------------------------------------------

    def _main(self) -> None:
        factory = uvloop.new_event_loop if self.options.loop == "uvloop" else asyncio.new_event_loop
        with self._accounted():
            self._place()
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._work())

    async def run_here(self) -> None:
        """The job, on the running loop, which belongs to it alone."""
        with self._accounted():
            self._place()
            await self._work()

    @contextlib.contextmanager
    def _accounted(self) -> Iterator[None]:
        """Around all of the job, in its thread: how it ended."""
        self.thread_id = threading.get_native_id()
        try:
            yield
        except VerifyFailed as error:
            self.error = self.error or error
        except (NvmeError, OSError, MemoryError, ValueError) as error:
            self.error = error
            self.log(f"fio: job {self.options.name!r}, number {self.number}: {type(error).__name__}: {error}")
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.phase = "_"
            self.done.set()
            self.on_done()

    def _place(self) -> None:
        """Where the thread runs, and with which priority. OSError if that is not permitted."""
        if self.options.cpus_allowed is not None:
            os.sched_setaffinity(0, self._cpus(self.options.cpus_allowed))
        if self.options.nice:
            os.setpriority(os.PRIO_PROCESS, self.thread_id, self.options.nice)

    def _cpus(self, allowed: frozenset[int]) -> set[int]:
        """cpus_allowed_policy=split gives each clone one, in turn."""
        if self.options.cpus_allowed_policy == "split":
            return {sorted(allowed)[self.clone % len(allowed)]}
        return set(allowed)

    async def _work(self) -> None:
        options = self.options
        if not await self._sleep(options.startdelay):
            return
        # The first I/O of a loop makes a queue pair, which must not be measured.
        for target in self.targets:
            await target.namespace.read(target.region.start // target.namespace.block_size, 1)
        if options.zonemode == "zbd":
            for target in self.targets:
                target.zones = await Zones.of(options, target.region, target.namespace, self.zone_writers)
        kind = ManyEngine if options.ioengine == "many" else Engine
        engine = kind(options, self.recorder, self.targets, seed_of(options, self.number))
        if options.verify != "none":
            for target in self.targets:
                target.verify = VerifyState(
                    options,
                    target.region,
                    self.number,
                    self.run_number,
                    self._on_bad,
                    lambda: self.recorder.stopped,
                    plan=target.plan,
                    shared=self.shared,
                    zones=target.zones,
                )
        try:
            engine.prepare()
            now = time.monotonic_ns()
            measure_from = now + int(options.ramp_time * 1e9)
            deadline = measure_from + int(options.runtime * 1e9) if options.runtime else None
            self.recorder.arm(measure_from=measure_from, deadline=deadline)
            self.began_at = time.monotonic()
            before = _usage()
            try:
                await self._phases(engine)
            finally:
                self._usage = [after - start for after, start in zip(_usage(), before, strict=True)]
        finally:
            engine.close()
            for target in self.targets:
                if target.verify is not None:
                    target.verify.close()

    async def _phases(self, engine: Engine | ManyEngine) -> None:
        options, recorder = self.options, self.recorder
        if options.verify_only:
            for target in self.targets:
                assert target.verify is not None
                replayed = make_recorder(options, target.region.limit)
                target.verify.replay(target.generator, replayed)
        else:
            self.phase = _LETTERS[options.rw.name]
            for _ in range(options.loops):
                recorder.renew()
                for target in self.targets:
                    if target.zones is not None:
                        target.zones.renew()
                self._under_way = (time.monotonic_ns(), (READ, WRITE, TRIM))
                try:
                    await engine.run()
                finally:
                    self._add_runtime()
            if options.end_fsync and options.rw.writes and isinstance(engine, Engine):
                self.phase = "F"
                for target in self.targets:
                    await engine.flush(target.namespace)
        verifying = options.verify != "none" and (options.do_verify or options.verify_only) and options.rw.writes
        if verifying and isinstance(engine, Engine) and not recorder.stopped:
            self.phase = "V"
            self._under_way = (time.monotonic_ns(), (READ,))
            for target in self.targets:
                await engine.verify_pass(target)
            self._add_runtime()

    def _add_runtime(self) -> None:
        self._runtimes, self._elapsed_ms = self._times_so_far()
        self._under_way = None

    def _times_so_far(self) -> tuple[list[int], int]:
        """Milliseconds of each direction and of all I/O, including I/O in flight."""
        runtimes, under_way = list(self._runtimes), self._under_way
        if under_way is None:
            return runtimes, self._elapsed_ms
        began, directions = under_way
        milliseconds = max(1, (time.monotonic_ns() - max(began, self.recorder.began or 0)) // 1_000_000)
        for direction in directions:
            if self.recorder.ios[direction]:
                runtimes[direction] += milliseconds
        return runtimes, self._elapsed_ms + milliseconds

    async def _sleep(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.recorder.stopped:
                return False
            await asyncio.sleep(min(left, 0.05))
        return True

    def _on_bad(self, bad: BadBlock) -> None:
        self.verify_failures += 1
        if self.error is None:
            self.error = VerifyFailed(str(bad))
        if self.verify_failures <= _MAX_SHOWN:
            names = " ".join(self.options.filename)
            block = self.targets[0].namespace.block_size
            self.log(
                f"verify: job {self.options.name!r}, {names}, nsid {self.options.nsid}, "
                f"lba {bad.offset // block}: {bad}"
            )
        elif self.verify_failures == _MAX_SHOWN + 1:
            self.log(f"verify: job {self.options.name!r}: further bad blocks are counted but not reported")

    def write_logs(self) -> None:
        """The log files that its options ask for, once it is done. Raises OSError."""
        options, began = self.options, self.recorder.began
        if began is not None and (options.write_bw_log or options.write_lat_log or options.write_iops_log):
            write_logs(options, self.number, began, self.recorder.log_entries())
        if self.histogram_log is not None:
            self.histogram_log.write(self.recorder)

    # -- the result --------------------------------------------------------------------------------

    def stats(self, elapsed: float) -> JobStats:
        """The job's measurements, so far if it is still running. `elapsed`: seconds since the
        program began.
        """
        options, recorder = self.options, self.recorder
        runtimes, runtime = self._times_so_far()
        stats = JobStats(options.name, self.groupid, self.thread_id, description=options.description)
        stats.options = dict(self.job.texts)
        stats.elapsed = max(1, int(elapsed) + 1)
        stats.depth = options.iodepth
        stats.percentiles, stats.clat_percentiles = options.percentile_list, options.clat_percentiles
        stats.lat_percentiles, stats.slat_percentiles = options.lat_percentiles, options.slat_percentiles
        stats.unified = options.unified_rw_reporting
        stats.show_clat, stats.show_lat = not options.disable_clat, not options.disable_lat
        stats.show_bandwidth = not options.disable_bw_measurement
        for direction, result in enumerate(stats.directions):
            result.ios, result.nbytes = recorder.ios[direction], recorder.nbytes[direction]
            result.runtime = runtimes[direction]
            result.latency = recorder.latency(direction)
            result.submission, result.after_submission = recorder.submission(direction)
            result.bandwidth, result.iops = self.bandwidth[direction], self.iops[direction]
        stats.sync = recorder.latency(3)
        stats.issued, stats.depths = list(recorder.issued), list(recorder.depths)
        submits, completes = recorder.batches
        stats.submits, stats.completes = list(submits), list(completes)
        stats.job_runtime = runtime
        stats.user_ms, stats.system_ms = self._usage[0] * 1000, self._usage[1] * 1000
        stats.context_switches = int(self._usage[2] + self._usage[3])
        stats.major_faults, stats.minor_faults = int(self._usage[4]), int(self._usage[5])
        stats.verify_failures = self.verify_failures
        stats.zone_resets = sum(target.zones.resets for target in self.targets if target.zones is not None)
        if self.error is not None:
            stats.error = _errno_of(self.error)
            stats.error_text = f"{type(self.error).__name__}: {self.error}"
        return stats


def _usage() -> list[float]:
    """User and system seconds, voluntary and other context switches, faults, of this thread."""
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return [usage.ru_utime, usage.ru_stime, usage.ru_nvcsw, usage.ru_nivcsw, usage.ru_majflt, usage.ru_minflt]


def _errno_of(error: BaseException) -> int:
    """fio's number for bad data is EILSEQ."""
    if isinstance(error, VerifyFailed):
        return errno.EILSEQ
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) and number > 0 else errno.EIO
