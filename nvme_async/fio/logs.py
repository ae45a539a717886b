"""write_bw_log, write_lat_log, write_iops_log, write_hist_log, --bandwidth-log: fio's log files.

A line is `time (ms), value, direction (0 read, 1 write, 2 trim), block size, priority`, with the
offset before the
priority if log_offset is set. Values: latency in ns, bandwidth in KiB/s, IOPS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nvme_async.fio.options import Options
from nvme_async.native._fio import Recorder

Entry = tuple[int, int, int, int, int, int, int]  # time, latency, slat, bytes, I/Os, offset, direction


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
        return int(entry[3] / 1024 / seconds(entry)) if seconds(entry) else 0

    def iops(entry: Entry) -> int:
        return round(entry[4] / seconds(entry)) if window else entry[4]

    def latency(entry: Entry) -> int:
        return entry[1]

    def completion(entry: Entry) -> int:
        return entry[1] - entry[2]

    def submission(entry: Entry) -> int:
        return entry[2]

    kinds: list[tuple[str, str, Callable[[Entry], int] | None]] = [
        (options.write_bw_log, "bw", bandwidth),
        (options.write_iops_log, "iops", iops),
        (options.write_lat_log, "lat", latency),
        (options.write_lat_log, "clat", completion),
        (options.write_lat_log, "slat", None if options.disable_slat else submission),
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
    moment, _, _, nbytes, _, offset, direction = entry
    windowed = bool(options.log_avg_msec)
    fields = [
        (moment - began) // 1_000_000 + (_epoch(began) if options.log_unix_epoch else 0),
        value,
        direction,
        0 if windowed else nbytes,
    ]
    if options.log_offset:
        fields.append(0 if windowed else offset)
    fields.append(0)
    return ", ".join(map(str, fields)) + "\n"


def _epoch(began: int) -> int:
    """A moment of CLOCK_MONOTONIC (ns) as milliseconds since 1970."""
    return (time.time_ns() - time.monotonic_ns() + began) // 1_000_000


class HistogramLog:
    """write_hist_log: how many I/Os fell into each bucket since the line before.

    A line is `time (ms), direction, block size, bucket, bucket, …`: 1856 of them, or the sums of
    2^log_hist_coarseness neighbours.
    """

    def __init__(self, options: Options, number: int) -> None:
        milliseconds = options.log_hist_msec or options.log_avg_msec or 1000
        self.every: float = milliseconds / 1000
        self._coarseness = options.log_hist_coarseness
        self._sizes = [min(size for size, _ in table) for table in options.bssplit or options.bsrange or options.bs]
        name = f"{options.write_hist_log}_clat_hist"
        self._path = Path(f"{name}.{number}.log" if options.per_job_logs else f"{name}.log")
        self._append = not options.per_job_logs and number > 1
        self._unix = options.log_unix_epoch
        self._last: tuple[float, list[list[int]]] = (0.0, [[], [], []])
        self._lines: list[str] = []

    def sample(self, now: float, recorder: Recorder) -> None:
        """A line for each direction, if one is due. `now`: time.monotonic()."""
        if not self._last[0]:
            self._last = ((recorder.began or 0) / 1e9, self._last[1])
        if now - self._last[0] >= self.every:
            self._add(now, recorder)

    def _add(self, now: float, recorder: Recorder) -> None:
        began = recorder.began or 0
        milliseconds = int((now - began / 1e9) * 1000) + (_epoch(began) if self._unix else 0)
        counts = [self._joined(recorder.latency(direction).counts()) for direction in range(3)]
        for direction, (new, old) in enumerate(zip(counts, self._last[1], strict=True)):
            fresh = [a - b for a, b in zip(new, old, strict=True)] if old else new
            if any(fresh):
                self._lines.append(", ".join(map(str, (milliseconds, direction, self._sizes[direction], *fresh))))
        self._last = (now, counts)

    def _joined(self, counts: list[int]) -> list[int]:
        step = 1 << self._coarseness
        return [sum(counts[at : at + step]) for at in range(0, len(counts), step)]

    def write(self, recorder: Recorder) -> None:
        """The file, with what came since the last line. Raises OSError."""
        if recorder.began is not None:
            self._add(time.monotonic(), recorder)
        with self._path.open("a" if self._append else "w") as file:
            file.writelines(line + "\n" for line in self._lines)


class AggregateLog:
    """--bandwidth-log: what all jobs together do each second, in KiB/s, a file for each
    direction.
    """

    def __init__(self, folder: str = "") -> None:
        self._folder = Path(folder)
        self._last: tuple[float, list[int]] = (0.0, [0, 0, 0])
        self._lines: tuple[list[str], list[str], list[str]] = ([], [], [])

    def sample(self, elapsed: float, nbytes: Sequence[tuple[int, int, int]]) -> None:
        """`elapsed`: seconds since the program began; nbytes: of each job."""
        before, old = self._last
        if elapsed - before < 1.0:
            return
        totals = [sum(job[direction] for job in nbytes) for direction in range(3)]
        for direction, (new, earlier) in enumerate(zip(totals, old, strict=True)):
            rate = int(max(0, new - earlier) / 1024 / (elapsed - before))  # a ramp's end forgets
            if new:
                self._lines[direction].append(f"{int(elapsed * 1000)}, {rate}, {direction}, 0, 0")
        self._last = (elapsed, totals)

    def write(self) -> None:
        """agg-read_bw.log and its kin. Raises OSError."""
        for name, lines in zip(("read", "write", "trim"), self._lines, strict=True):
            (self._folder / f"agg-{name}_bw.log").write_text("".join(line + "\n" for line in lines))
