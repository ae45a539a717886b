"""fio's report for people, line by line as fio 3.33 prints it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from nvme_async.fio.options import Options
from nvme_async.fio.stats import (
    LATENCY_LIMITS,
    MILLISECOND_LIMITS,
    DirectionStats,
    GroupStats,
    JobStats,
    collect_groups,
)
from nvme_async.fio.units import format_number, format_rate, format_size
from nvme_async.native._fio import Histogram

_DEPTHS = ("1", "2", "4", "8", "16", "32", ">=64")
_BATCHES = ("0", "4", "8", "16", "32", "64", ">=64")


def job_banner(options: Options, groupid: int) -> str:
    """`name: (g=0): rw=randread, bs=(R) 4096B-4096B, …, ioengine=await, iodepth=32`"""
    sizes = []
    for letter, table in zip("RWT", options.bssplit or options.bsrange or options.bs, strict=True):
        low, high = min(size for size, _ in table), max(size for size, _ in table)
        sizes.append(f"({letter}) {format_size(low)[0]}-{format_size(high)[0]}")
    return (
        f"{options.name}: (g={groupid}): rw={options.rw.name}, bs={', '.join(sizes)}, "
        f"ioengine={options.ioengine}, iodepth={options.iodepth}"
    )


def starting_line(threads: int, processes: int = 0) -> str:
    """As in fio: "Starting 1 thread and 2 processes"."""
    parts = [f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []
    parts += [f"{processes} process{'es' if processes > 1 else ''}"] if processes else []
    return f"Starting {' and '.join(parts)}"


def render(jobs: Sequence[JobStats], when: float) -> str:
    """The whole report. `when`: seconds since the epoch."""
    groups = collect_groups(jobs)
    lines = [""]
    for job in jobs:
        lines += _job(job, groups[job.groupid], when)
    for groupid, group in groups.items():
        lines += ["", f"Run status group {groupid} (all jobs):"]
        lines += [_group_line(name.upper(), total) for name, total in group.items() if total.max_runtime]
    return "\n".join(lines) + "\n"


def _job(job: JobStats, group: dict[str, GroupStats], when: float) -> list[str]:
    error = f"{job.error:2d}" + (f" ({job.error_text})" if job.error else "")
    stamp = time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(when))
    lines = [f"{job.name}: (groupid={job.groupid}, jobs={job.members}): err={error}: pid={job.pid}: {stamp}"]
    if job.description:
        lines.append(f"  Description  : [{job.description}]")
    for name, direction in job.reported():
        lines += _direction(job, name, direction, group[name])
    for unit, limits, shares in zip(
        ("nsec", "usec", "msec"),
        (LATENCY_LIMITS, LATENCY_LIMITS, MILLISECOND_LIMITS),
        job.latency_shares(),
        strict=True,
    ):
        lines += _latency_shares(unit, limits, shares)
    if job.sync.count:
        lines.append("  fsync/fdatasync/sync_file_range:")
        lines.append(f"    {_latency_line('sync', job.sync)}")
        lines += _percentiles("sync", job.sync, job.percentiles)
    lines.append(
        f"  cpu          : usr={job.user_percent:3.2f}%, sys={job.system_percent:3.2f}%, "
        f"ctx={job.context_switches}, majf={job.major_faults}, minf={job.minor_faults}"
    )
    lines.append(f"  IO depths    : {_distribution(_DEPTHS, job.depth_shares())}")
    lines.append(f"     submit    : {_distribution(_BATCHES, job.submit_shares())}")
    lines.append(f"     complete  : {_distribution(_BATCHES, job.complete_shares())}")
    total_ios = ",".join(str(count) for count in job.issued)
    lines.append(f"     issued rwts: total={total_ios} short=0,0,0,0 dropped=0,0,0,0")
    lines.append(f"     latency   : target=0, window=0, percentile=100.00%, depth={job.depth}")
    if job.steady is not None:
        lines.append(_steady_line(job))
    if job.verify_failures:
        lines.append(f"     verify    : {job.verify_failures} bad blocks")
    return lines


def _direction(job: JobStats, name: str, stats: DirectionStats, group: GroupStats) -> list[str]:
    if not stats.runtime:
        return []
    bandwidth, decimal = format_rate(stats.bytes_per_second)
    zones = f"; {job.zone_resets} zone resets" if name == "write" else ""
    lines = [
        f"  {name}: IOPS={format_number(stats.ios_per_second)}, BW={bandwidth} ({decimal})"
        f"({format_size(stats.nbytes)[0]}/{stats.runtime}msec){zones}"
    ]
    if stats.latency.count:
        # One await covers submission and completion: unless submission is timed separately, there
        # is no slat, and lat is clat.
        if stats.submission.count:
            lines.append(f"    {_latency_line('slat', stats.submission)}")
        if job.show_clat:
            lines.append(f"    {_latency_line('clat', stats.completion)}")
        if job.show_lat:
            lines.append(f"    {_latency_line(' lat', stats.latency)}")
        if stats.submission.count and job.slat_percentiles:
            lines += _percentiles("slat", stats.submission, job.percentiles)
        if job.show_clat and job.clat_percentiles:
            lines += _percentiles("clat", stats.completion, job.percentiles)
        if job.show_lat and job.lat_percentiles:
            lines += _percentiles(" lat", stats.latency, job.percentiles)
    if job.show_bandwidth and stats.bandwidth.count:
        lines += _samples(stats, group)
    return lines


def _latency_line(label: str, latency: Histogram) -> str:
    unit, scale = "nsec", 1
    if latency.min > 2_000_000 and latency.max > 99_999_999 and latency.deviation > 1_000_000.0:
        unit, scale = "msec", 1_000_000
    elif latency.min > 2000 and latency.max > 99_999 and latency.deviation > 1000.0:
        unit, scale = "usec", 1000
    low, high = format_number(latency.min // scale), format_number(latency.max // scale)
    # fio uses five columns for small numbers, and as many as needed for larger ones.
    mean, deviation = latency.mean / scale, latency.deviation / scale
    return f"{label} ({unit}): min={low}, max={high}, avg={mean:5.02f}, stdev={deviation:5.02f}"


def _percentiles(label: str, latency: Histogram, wanted: Sequence[float]) -> list[str]:
    values = latency.percentiles(wanted)
    if not values:
        return []
    unit, scale = "nsec", 1
    if values[0] > 2_000_000 and values[-1] > 99_999_999:
        unit, scale = "msec", 1_000_000
    elif values[0] > 2000 and values[-1] > 99_999:
        unit, scale = "usec", 1000
    scaled = [-(-value // scale) for value in values]
    width = max(5, len(str(values[-1] // scale)))
    precision = 2
    per_line = (80 - 7) // (precision + 10 + width)
    lines = [f"    {label} percentiles ({unit}):"]
    entries = [
        f" {share:{precision + 3}.{precision}f}th=[{value:{width}d}]"
        for share, value in zip(wanted, scaled, strict=True)
    ]
    for start in range(0, len(entries), per_line):
        more = "," if start + per_line < len(entries) else ""
        lines.append("     |" + ",".join(entries[start : start + per_line]) + more)
    return lines


def _samples(stats: DirectionStats, group: GroupStats) -> list[str]:
    bandwidth, iops = stats.bandwidth, stats.iops
    share = min(100.0 * bandwidth.mean * 1024 / group.rate, 100.0) if group.rate else 100.0
    unit, scale = ("MiB", 1024) if bandwidth.mean > 1024 * 1024 else ("KiB", 1)
    return [
        f"   bw (  {unit}/s): min={bandwidth.min // scale:5d}, max={bandwidth.max // scale:5d}, "
        f"per={share:3.2f}%, avg={bandwidth.mean / scale:5.02f}, stdev={bandwidth.deviation / scale:5.02f}, "
        f"samples={bandwidth.count}",
        f"   iops        : min={iops.min:5d}, max={iops.max:5d}, avg={iops.mean:5.02f}, "
        f"stdev={iops.deviation:5.02f}, samples={iops.count}",
    ]


def _latency_shares(unit: str, limits: Sequence[int], shares: Sequence[float]) -> list[str]:
    names = [f"{limit}=" for limit in limits]
    if len(shares) > len(limits):
        names.append(f">={limits[-1]}=")
    shown = [f"{name}{share:3.2f}%" for name, share in zip(names, shares, strict=True) if share > 0.0]
    return [f"  lat ({unit})   : {', '.join(shown[start : start + 5])}" for start in range(0, len(shown), 5)]


def _distribution(names: Sequence[str], shares: Sequence[float]) -> str:
    return ", ".join(f"{name}={share:3.1f}%" for name, share in zip(names, shares, strict=True))


def _group_line(label: str, group: GroupStats) -> str:
    total, low, high = (format_rate(rate) for rate in (group.rate, group.min_rate, group.max_rate))
    binary, decimal = format_size(group.nbytes)
    return (
        f"{label:>7}: bw={total[0]} ({total[1]}), {low[0]}-{high[0]} ({low[1]}-{high[1]}), "
        f"io={binary} ({decimal}), run={group.min_runtime}-{group.max_runtime}msec"
    )


def _steady_line(job: JobStats) -> str:
    steady = job.steady
    assert steady is not None
    mean_bandwidth = sum(steady.bandwidth) / len(steady.bandwidth) if steady.bandwidth else 0.0
    mean_iops = sum(steady.iops) / len(steady.iops) if steady.iops else 0.0
    binary, decimal = format_rate(mean_bandwidth)
    metric = "bw" if steady.wanted.startswith("bw") else "iops"
    kind = "slope" if "_slope" in steady.wanted else "mean dev"
    if not math.isfinite(steady.criterion):
        steady.criterion = 0.0
    return (
        f"  steadystate  : attained={'yes' if steady.attained else 'no'}, bw={binary} ({decimal}), "
        f"iops={format_number(mean_iops)}, "
        f"{metric} {kind}={steady.criterion:.3f}{'%' if steady.percent else ''}"
    )
