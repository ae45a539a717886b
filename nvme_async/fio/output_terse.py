"""fio's terse form, versions 2 to 5: one line of fields separated by semicolons for each job."""

from __future__ import annotations

from collections.abc import Sequence

from nvme_async.fio.output_json import FIO_VERSION
from nvme_async.fio.stats import DirectionStats, GroupStats, JobStats, collect_groups
from nvme_async.native._fio import Histogram

_PERCENTILE_FIELDS = 20


def render(jobs: Sequence[JobStats], version: int = 3) -> str:
    """`version`: 2 to 5, of the format."""
    groups = collect_groups(jobs)
    return "".join(_job(job, groups[job.groupid], version) + "\n" for job in jobs)


def _job(job: JobStats, group: dict[str, GroupStats], version: int) -> str:
    fields = ["2"] if version == 2 else [str(version), FIO_VERSION]
    fields += [job.name, str(job.groupid), str(job.error)]
    for name, direction in job.reported():
        if name != "trim" or version != 3:
            fields += _direction(job, direction, group[name], version)
    fields += [f"{job.user_percent:f}%", f"{job.system_percent:f}%"]
    fields += [str(job.context_switches), str(job.major_faults), str(job.minor_faults)]
    fields += [f"{share:3.1f}%" for share in job.depth_shares()]
    _, microseconds, milliseconds = job.latency_shares()
    fields += [f"{share:3.2f}%" for share in (*microseconds, *milliseconds)]
    text = ";".join(fields)
    if job.description:
        text += ("\n;" if version == 2 else ";") + job.description
    return text


def _direction(job: JobStats, stats: DirectionStats, group: GroupStats, version: int) -> list[str]:
    clat = stats.completion if job.show_clat else Histogram()
    lat = stats.latency if job.show_lat else Histogram()
    fields = [
        str(stats.nbytes >> 10),
        str(int(stats.bytes_per_second) >> 10),
        str(int(stats.ios_per_second)),
        str(stats.runtime),
    ]
    fields += _latency(stats.submission) + _latency(clat)
    shown = lat if job.lat_percentiles else clat if job.clat_percentiles else Histogram()
    values = shown.percentiles(job.percentiles) if shown.count else []
    pairs = [f"{share:f}%={value // 1000}" for share, value in zip(job.percentiles, values, strict=False)]
    fields += pairs + ["0%=0"] * (_PERCENTILE_FIELDS - len(pairs))
    fields += _latency(lat)
    bandwidth = stats.bandwidth
    share = min(100.0 * bandwidth.mean * 1024 / group.rate, 100.0) if group.rate else 0.0
    fields += [str(bandwidth.min), str(bandwidth.max), f"{share:f}%"]
    fields += [f"{bandwidth.mean:f}", f"{bandwidth.deviation:f}"]
    if version == 5:
        iops = stats.iops
        fields += [str(bandwidth.count), str(iops.min), str(iops.max), f"{iops.mean:f}", f"{iops.deviation:f}"]
        fields.append(str(iops.count))
    return fields


def _latency(latency: Histogram) -> list[str]:
    """Minimum, maximum, mean and deviation in microseconds."""
    return [
        str(latency.min // 1000),
        str(latency.max // 1000),
        f"{latency.mean / 1000:f}",
        f"{latency.deviation / 1000:f}",
    ]
