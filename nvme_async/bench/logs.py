"""write_bw_log, write_lat_log, write_iops_log: fio's log files.

A line is `time (ms), value, direction (0 read, 1 write, 2 trim), block size, priority`, with the offset before the
priority if log_offset is set. Values: latency in ns, bandwidth in KiB/s, IOPS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nvme_async.bench.options import Options

Entry = tuple[int, int, int, int, int, int]  # time, latency, bytes, I/Os, offset, direction


def write_logs(options: Options, number: int, began: int, entries: Sequence[Entry]) -> list[Path]:
    """Writes the files of job `number` (from 1); `began`: ns, the zero of their times. Raises OSError."""
    window = options.log_avg_msec

    def bandwidth(entry: Entry) -> int:
        milliseconds = window or entry[1] / 1e6
        return int(entry[2] * 1000 / 1024 / milliseconds) if milliseconds else 0

    def iops(entry: Entry) -> int:
        return entry[3] * 1000 // window if window else entry[3]

    def latency(entry: Entry) -> int:
        return entry[1]

    kinds: list[tuple[str, str, Callable[[Entry], int] | None]] = [
        (options.write_bw_log, "bw", bandwidth),
        (options.write_iops_log, "iops", iops),
        (options.write_lat_log, "lat", latency),
        (options.write_lat_log, "clat", latency),
        (options.write_lat_log, "slat", None),  # submission has no latency of its own in an await
    ]
    written = []
    for prefix, kind, value in kinds:
        if not prefix:
            continue
        path = Path(f"{prefix}_{kind}.{number}.log" if options.per_job_logs else f"{prefix}_{kind}.log")
        append = not options.per_job_logs and number > 1
        with path.open("a" if append else "w") as file:
            if value is not None:
                file.writelines(_line(options, began, entry, value(entry)) for entry in entries)
        written.append(path)
    return written


def _line(options: Options, began: int, entry: Entry, value: int) -> str:
    time, _, nbytes, _, offset, direction = entry
    windowed = bool(options.log_avg_msec)
    fields = [(time - began) // 1_000_000, value, direction, 0 if windowed else nbytes]
    if options.log_offset:
        fields.append(0 if windowed else offset)
    fields.append(0)
    return ", ".join(map(str, fields)) + "\n"
