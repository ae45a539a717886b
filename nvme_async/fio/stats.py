"""The measurements of one job or of a group, in fio's units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from nvme_async.native._fio import Histogram

DIRECTIONS = ("read", "write", "trim")

# fio's latency buckets: upper limits in each unit. The last one of the milliseconds is open.
LATENCY_LIMITS = (2, 4, 10, 20, 50, 100, 250, 500, 750, 1000)
MILLISECOND_LIMITS = (*LATENCY_LIMITS, 2000)


@attrs.define
class Samples:
    """Mean, deviation and extremes of a series without keeping its values (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    min: int = 0
    max: int = 0

    def add(self, value: float) -> None:
        whole = int(value)
        self.min = whole if self.count == 0 else min(self.min, whole)
        self.max = max(self.max, whole)
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        self.squares += delta * (value - self.mean)

    def merge(self, other: Samples) -> None:
        """Adds a concurrent series: the means are summed, as for the rates of two jobs."""
        if not other.count:
            return
        self.min = other.min if self.count == 0 else min(self.min, other.min)
        self.max = max(self.max, other.max)
        self.mean += other.mean
        self.squares += other.squares
        self.count += other.count

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


@attrs.define
class DirectionStats:
    """Reads, writes or trims. `runtime` in ms, `bandwidth` sampled in KiB/s."""

    ios: int = 0
    nbytes: int = 0
    runtime: int = 0
    latency: Histogram = attrs.Factory(Histogram)  # all of an I/O
    submission: Histogram = attrs.Factory(Histogram)  # empty where it is not timed
    after_submission: Histogram = attrs.Factory(Histogram)  # the rest of it
    bandwidth: Samples = attrs.Factory(Samples)
    iops: Samples = attrs.Factory(Samples)

    @property
    def completion(self) -> Histogram:
        """clat: all of an I/O if submission is not timed separately."""
        return self.after_submission if self.after_submission.count else self.latency

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes * 1000 / self.runtime if self.runtime else 0.0

    @property
    def ios_per_second(self) -> float:
        return self.ios * 1000 / self.runtime if self.runtime else 0.0

    def merge(self, other: DirectionStats) -> None:
        self.ios += other.ios
        self.nbytes += other.nbytes
        self.runtime = max(self.runtime, other.runtime)
        for mine, theirs in (
            (self.latency, other.latency),
            (self.submission, other.submission),
            (self.after_submission, other.after_submission),
        ):
            mine.merge(theirs)
        self.bandwidth.merge(other.bandwidth)
        self.iops.merge(other.iops)


@attrs.define
class SteadyStateResult:
    """The result of steadystate=. Values of the last window, one per second."""

    wanted: str
    duration: int
    attained: bool = False
    criterion: float = 0.0
    percent: bool = False
    slope: float = 0.0
    deviation: float = 0.0
    iops: list[int] = attrs.Factory(list)
    bandwidth: list[int] = attrs.Factory(list)


@attrs.define
class JobStats:
    """The result of one job, or of several merged."""

    name: str
    groupid: int
    pid: int
    description: str = ""
    members: int = 1
    error: int = 0
    error_text: str = ""
    options: dict[str, str] = attrs.Factory(dict)
    directions: tuple[DirectionStats, DirectionStats, DirectionStats] = attrs.Factory(
        lambda: (DirectionStats(), DirectionStats(), DirectionStats())
    )
    sync: Histogram = attrs.Factory(Histogram)
    issued: list[int] = attrs.Factory(lambda: [0] * 4)
    depths: list[int] = attrs.Factory(lambda: [0] * 7)
    submits: list[int] = attrs.Factory(lambda: [0] * 7)
    completes: list[int] = attrs.Factory(lambda: [0] * 7)
    elapsed: int = 0  # s since the program began
    job_runtime: int = 0  # ms, summed over members
    user_ms: float = 0.0
    system_ms: float = 0.0
    context_switches: int = 0
    major_faults: int = 0
    minor_faults: int = 0
    depth: int = 1
    percentiles: tuple[float, ...] = ()
    clat_percentiles: bool = True
    lat_percentiles: bool = False
    slat_percentiles: bool = False
    unified: str = "none"
    show_clat: bool = True
    show_lat: bool = True
    show_bandwidth: bool = True
    verify_failures: int = 0
    zone_resets: int = 0
    steady: SteadyStateResult | None = None

    def merge(self, other: JobStats) -> None:
        """Adds another job of the group. Its name and options are not kept."""
        self.members += other.members
        if not self.error:
            self.error, self.error_text = other.error, other.error_text
        for mine, theirs in zip(self.directions, other.directions, strict=True):
            mine.merge(theirs)
        self.sync.merge(other.sync)
        for name in ("issued", "depths", "submits", "completes"):
            sums = [a + b for a, b in zip(getattr(self, name), getattr(other, name), strict=True)]
            setattr(self, name, sums)
        self.elapsed = max(self.elapsed, other.elapsed)
        for name in (
            "job_runtime",
            "user_ms",
            "system_ms",
            "context_switches",
            "major_faults",
            "minor_faults",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.verify_failures += other.verify_failures
        self.zone_resets += other.zone_resets
        self.steady = self.steady or other.steady

    def reported(self) -> list[tuple[str, DirectionStats]]:
        """The reported directions by name: reads, writes and trims, or all of them as one
        (unified_rw_reporting), or both.
        """
        shown = list(zip(DIRECTIONS, self.directions, strict=True))
        if self.unified == "none":
            return shown
        mixed = DirectionStats()
        for direction in self.directions:
            mixed.merge(direction)
        return [("mixed", mixed)] if self.unified == "mixed" else [*shown, ("mixed", mixed)]

    @property
    def user_percent(self) -> float:
        return 100.0 * self.user_ms / self.job_runtime if self.job_runtime else 0.0

    @property
    def system_percent(self) -> float:
        return 100.0 * self.system_ms / self.job_runtime if self.job_runtime else 0.0

    @property
    def total_ios(self) -> int:
        return sum(direction.ios for direction in self.directions)

    def depth_shares(self) -> list[float]:
        return shares(self.depths, sum(self.issued[:3]), 0.1)

    def submit_shares(self) -> list[float]:
        return shares(self.submits, sum(self.submits), 0.1)

    def complete_shares(self) -> list[float]:
        return shares(self.completes, sum(self.completes), 0.1)

    def latency_shares(self) -> tuple[list[float], list[float], list[float]]:
        """Percent of I/Os by latency: ns, us and ms, in LATENCY_LIMITS and MILLISECOND_LIMITS plus
        one.
        """
        nanoseconds, microseconds = [0] * len(LATENCY_LIMITS), [0] * len(LATENCY_LIMITS)
        milliseconds = [0] * (len(MILLISECOND_LIMITS) + 1)
        for direction in self.directions:
            for value, count in direction.latency.bins().items():
                if value < 1000:
                    nanoseconds[_bucket(value, LATENCY_LIMITS)] += count
                elif value < 1_000_000:
                    microseconds[_bucket(value // 1000, LATENCY_LIMITS)] += count
                else:
                    milliseconds[_bucket(value // 1_000_000, MILLISECOND_LIMITS)] += count
        total = sum(nanoseconds) + sum(microseconds) + sum(milliseconds)
        return (
            shares(nanoseconds, total, 0.01),
            shares(microseconds, total, 0.01),
            shares(milliseconds, total, 0.01),
        )


def _bucket(value: int, limits: Sequence[int]) -> int:
    return next((index for index, limit in enumerate(limits) if value < limit), len(limits))


def shares(counts: Iterable[int], total: int, least: float) -> list[float]:
    """Percentages; non-zero ones are at least `least`."""
    return [max(100.0 * count / total, least) if count and total else 0.0 for count in counts]


@attrs.define
class GroupStats:
    """One direction of a run status group: totals, slowest and fastest job. Rates in bytes/s, times
    in ms.
    """

    nbytes: int = 0
    min_rate: float = math.inf
    max_rate: float = 0.0
    min_runtime: int = 0
    max_runtime: int = 0

    def add(self, stats: DirectionStats) -> None:
        if not stats.runtime:
            return
        self.nbytes += stats.nbytes
        self.min_rate = min(self.min_rate, stats.bytes_per_second)
        self.max_rate = max(self.max_rate, stats.bytes_per_second)
        self.min_runtime = min(self.min_runtime or stats.runtime, stats.runtime)
        self.max_runtime = max(self.max_runtime, stats.runtime)

    @property
    def rate(self) -> float:
        """All bytes over the longest time."""
        return self.nbytes * 1000 / self.max_runtime if self.max_runtime else 0.0


def collect_groups(jobs: Iterable[JobStats]) -> dict[int, dict[str, GroupStats]]:
    """Run status groups by id, a GroupStats for each direction that is reported, by its name."""
    groups: dict[int, dict[str, GroupStats]] = {}
    for job in jobs:
        group = groups.setdefault(job.groupid, {})
        for name, direction in job.reported():
            group.setdefault(name, GroupStats()).add(direction)
    return groups


def merge_groups(jobs: Iterable[tuple[JobStats, bool]]) -> list[JobStats]:
    """The reported results: jobs with group_reporting join the previous result, if it is of the
    same group.
    """
    merged: list[JobStats] = []
    for job, group_reporting in jobs:
        if merged and group_reporting and merged[-1].groupid == job.groupid:
            merged[-1].merge(job)
        else:
            merged.append(job)
    return merged
