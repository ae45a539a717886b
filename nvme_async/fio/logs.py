"""write_bw_log, write_lat_log, write_iops_log: fio's log files.

A line is `time (ms), value, direction (0 read, 1 write, 2 trim), block size, priority`, with the
offset before the
priority if log_offset is set. Values: latency in ns, bandwidth in KiB/s, IOPS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nvme_async.fio.options import Options

Entry = tuple[int, int, int, int, int, int]  # time, latency, bytes, I/Os, offset, direction


def write_logs(options: Options, number: int, began: int, entries: Sequence[Entry]) -> list[Path]:
    """Writes the files of job `number` (from 1); `began`: ns, the zero of their times. Raises
    OSError.
    """
    window = options.log_avg_msec * 1_000_000

    def seconds(entry: Entry) -> float:
        """What the entry stands for: one I/O, or a window, of which the last may be cut short."""
        if not window:
            return entry[1] / 1e9
        return ((entry[0] - began) % window or window) / 1e9

    def bandwidth(entry: Entry) -> int:
        return int(entry[2] / 1024 / seconds(entry)) if seconds(entry) else 0

    def iops(entry: Entry) -> int:
        return round(entry[3] / seconds(entry)) if window else entry[3]

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
