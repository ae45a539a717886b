"""fio's JSON, key by key as fio 3.33 writes it; json+ adds the histogram's bins."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from nvme_async.fio.stats import (
    LATENCY_LIMITS,
    MILLISECOND_LIMITS,
    DirectionStats,
    GroupStats,
    JobStats,
    collect_groups,
)
from nvme_async.native._fio import Histogram

# The version of this format. Readers use only this to know what to expect.
FIO_VERSION = "fio-3.33"

_DEPTHS = ("1", "2", "4", "8", "16", "32", ">=64")
_BATCHES = ("0", "4", "8", "16", "32", "64", ">=64")


def document(
    jobs: Sequence[JobStats], global_options: dict[str, str], when: float, *, bins: bool = False
) -> dict[str, Any]:
    """The report as plain data. `when`: seconds since the epoch."""
    groups = collect_groups(jobs)
    return {
        "fio version": FIO_VERSION,
        "timestamp": int(when),
        "timestamp_ms": int(when * 1000),
        "time": time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(when)),
        "global options": global_options,
        "jobs": [_job(job, groups[job.groupid], bins) for job in jobs],
        "disk_util": [],
    }


def render(jobs: Sequence[JobStats], global_options: dict[str, str], when: float, *, bins: bool = False) -> str:
    return json.dumps(document(jobs, global_options, when, bins=bins), indent=2) + "\n"


def _job(job: JobStats, group: dict[str, GroupStats], bins: bool) -> dict[str, Any]:
    nanoseconds, microseconds, milliseconds = job.latency_shares()
    out: dict[str, Any] = {"jobname": job.name, "groupid": job.groupid, "error": job.error}
    if job.description:
        out["desc"] = job.description
    out |= {"eta": 0, "elapsed": job.elapsed, "job options": job.options}
    for name, direction in job.reported():
        out[name] = _direction(job, direction, group[name], bins)
    out["sync"] = {"total_ios": job.issued[3], "lat_ns": _latency(job, job.sync, True, bins)}
    out |= {
        "job_runtime": job.job_runtime,
        "usr_cpu": job.user_percent,
        "sys_cpu": job.system_percent,
        "ctx": job.context_switches,
        "majf": job.major_faults,
        "minf": job.minor_faults,
        "iodepth_level": dict(zip(_DEPTHS, job.depth_shares(), strict=True)),
        "iodepth_submit": dict(zip(_BATCHES, job.submit_shares(), strict=True)),
        "iodepth_complete": dict(zip(_BATCHES, job.complete_shares(), strict=True)),
        "latency_ns": dict(zip(map(str, LATENCY_LIMITS), nanoseconds, strict=True)),
        "latency_us": dict(zip(map(str, LATENCY_LIMITS), microseconds, strict=True)),
        "latency_ms": dict(zip([*map(str, MILLISECOND_LIMITS), ">=2000"], milliseconds, strict=True)),
        "latency_depth": job.depth,
        "latency_target": 0,
        "latency_percentile": 100.0,
        "latency_window": 0,
    }
    if job.steady is not None:
        out["steadystate"] = _steady(job)
    return out


def _direction(job: JobStats, stats: DirectionStats, group: GroupStats, bins: bool) -> dict[str, Any]:
    empty = Histogram()
    bandwidth, iops = stats.bandwidth, stats.iops
    share = min(100.0 * bandwidth.mean * 1024 / group.rate, 100.0) if group.rate else 0.0
    return {
        "io_bytes": stats.nbytes,
        "io_kbytes": stats.nbytes >> 10,
        "bw_bytes": int(stats.bytes_per_second),
        "bw": int(stats.bytes_per_second) >> 10,
        "iops": stats.ios_per_second,
        "runtime": stats.runtime,
        "total_ios": stats.ios,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": _latency(job, stats.submission, job.slat_percentiles, bins),
        "clat_ns": _latency(job, stats.completion if job.show_clat else empty, job.clat_percentiles, bins),
        "lat_ns": _latency(job, stats.latency if job.show_lat else empty, job.lat_percentiles, bins),
        "bw_min": bandwidth.min,
        "bw_max": bandwidth.max,
        "bw_agg": share,
        "bw_mean": bandwidth.mean,
        "bw_dev": bandwidth.deviation,
        "bw_samples": bandwidth.count,
        "iops_min": iops.min,
        "iops_max": iops.max,
        "iops_mean": iops.mean,
        "iops_stddev": iops.deviation,
        "iops_samples": iops.count,
    }


def _latency(job: JobStats, latency: Histogram, percentiles: bool, bins: bool) -> dict[str, Any]:
    out: dict[str, Any] = {
        "min": latency.min,
        "max": latency.max,
        "mean": latency.mean,
        "stddev": latency.deviation,
        "N": latency.count,
    }
    if percentiles and latency.count:
        values = latency.percentiles(job.percentiles)
        out["percentile"] = {f"{share:f}": value for share, value in zip(job.percentiles, values, strict=True)}
        if bins:
            out["bins"] = {str(value): count for value, count in latency.bins().items()}
    return out


def _steady(job: JobStats) -> dict[str, Any]:
    steady = job.steady
    assert steady is not None
    sign = "%" if steady.percent else ""
    return {
        "ss": steady.wanted,
        "duration": steady.duration,
        "attained": int(steady.attained),
        "criterion": f"{steady.criterion:f}{sign}",
        "max_deviation": steady.deviation,
        "slope": steady.slope,
        "data": {
            "bw_mean": int(sum(steady.bandwidth) / len(steady.bandwidth)) if steady.bandwidth else 0,
            "iops_mean": int(sum(steady.iops) / len(steady.iops)) if steady.iops else 0,
            "iops": steady.iops,
            "bw": steady.bandwidth,
        },
    }
