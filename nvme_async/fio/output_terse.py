"""fio's terse form, version 3: one line of fields separated by semicolons for each job."""

from __future__ import annotations

from collections.abc import Sequence

from nvme_async.fio.output_json import FIO_VERSION
from nvme_async.fio.stats import DirectionStats, GroupStats, JobStats, collect_groups
from nvme_async.native._fio import Histogram

_PERCENTILE_FIELDS = 20


def render(jobs: Sequence[JobStats]) -> str:
    groups = collect_groups(jobs)
    return "".join(_job(job, groups[job.groupid]) + "\n" for job in jobs)


def _job(job: JobStats, group: list[GroupStats]) -> str:
    fields = ["3", FIO_VERSION, job.name, str(job.groupid), str(job.error)]
    for direction, total in zip(job.directions[:2], group[:2], strict=True):
        fields += _direction(job, direction, total)
    fields += [f"{job.user_percent:f}%", f"{job.system_percent:f}%"]
    fields += [str(job.context_switches), str(job.major_faults), str(job.minor_faults)]
    fields += [f"{share:3.1f}%" for share in job.depth_shares()]
    _, microseconds, milliseconds = job.latency_shares()
    fields += [f"{share:3.2f}%" for share in (*microseconds, *milliseconds)]
    if job.description:
        fields.append(job.description)
    return ";".join(fields)


def _direction(job: JobStats, stats: DirectionStats, group: GroupStats) -> list[str]:
    clat = stats.latency if job.show_clat else Histogram()
    lat = stats.latency if job.show_lat else Histogram()
    fields = [
        str(stats.nbytes >> 10),
        str(int(stats.bytes_per_second) >> 10),
        str(int(stats.ios_per_second)),
        str(stats.runtime),
    ]
    fields += _latency(Histogram()) + _latency(clat)
    values = clat.percentiles(job.percentiles)
    pairs = [f"{share:f}%={value // 1000}" for share, value in zip(job.percentiles, values, strict=True)]
    fields += pairs + ["0%=0"] * (_PERCENTILE_FIELDS - len(pairs))
    fields += _latency(lat)
    bandwidth = stats.bandwidth
    share = min(100.0 * bandwidth.mean * 1024 / group.rate, 100.0) if group.rate else 0.0
    fields += [str(bandwidth.min), str(bandwidth.max), f"{share:f}%"]
    return [*fields, f"{bandwidth.mean:f}", f"{bandwidth.deviation:f}"]


def _latency(latency: Histogram) -> list[str]:
    """Minimum, maximum, mean and deviation in microseconds."""
    return [
        str(latency.min // 1000),
        str(latency.max // 1000),
        f"{latency.mean / 1000:f}",
        f"{latency.deviation / 1000:f}",
    ]
