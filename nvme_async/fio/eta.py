"""The line on the terminal while jobs run, as fio has it:

Jobs: 1 (f=1): [r(1)][24.8%][r=20.5MiB/s][r=5250 IOPS][eta 00m:31s]
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from nvme_async.fio.units import format_number, format_time

Totals = tuple[int, int, int]


def run_string(letters: Sequence[str]) -> str:
    """`r(2),w(1)`: the jobs' states, with counts of equal neighbours."""
    groups = ((letter, len(list(group))) for letter, group in itertools.groupby(letters))
    return ",".join(f"{letter}({count})" for letter, count in groups)


def eta_line(
    letters: Sequence[str],
    devices: int,
    share: float | None,
    eta: float | None,
    rates: Sequence[float],
    iops: Sequence[float],
) -> str:
    """rates in bytes/s, iops, for reads, writes, trims; share 0 to 1; eta in seconds. None: not
    known.
    """
    running = sum(letter not in "_P" for letter in letters)
    parts = [f"Jobs: {running} (f={devices}): [{run_string(letters)}]"]
    parts.append(f"[{100 * share:3.1f}%]" if share is not None else "[-.-%]")
    directions = [index for index in range(3) if rates[index] or iops[index]]
    if directions:
        shown = ",".join(f"{'rwt'[i]}={format_number(rates[i], binary=True, unit='B/s')}" for i in directions)
        parts.append(f"[{shown}]")
        shown = ",".join(f"{'rwt'[i]}={format_number(iops[i])}" for i in directions)
        parts.append(f"[{shown} IOPS]")
    parts.append(f"[eta {format_time(eta) if eta is not None else '--'}]")
    return "".join(parts)


class EtaLine:
    """Draws the line over itself on a terminal. when: "auto" (a terminal only), "always", "never".

    every: seconds between two. newline: a separate line every so many seconds; 0: never.
    """

    def __init__(
        self, when: str = "auto", stream: TextIO | None = None, *, newline: float = 0.0, every: float = 1.0
    ) -> None:
        self._stream = stream or sys.stderr
        self.enabled: bool = when == "always" or (when == "auto" and self._stream.isatty())
        self.every = every
        self._width = 0
        self._newline, self._kept = newline, time.monotonic()

    def show(self, line: str) -> None:
        if not self.enabled:
            return
        print(f"\r{line:<{self._width}}", end="", file=self._stream, flush=True)
        self._width = len(line)
        if self._newline and time.monotonic() - self._kept >= self._newline:
            print(file=self._stream, flush=True)
            self._width, self._kept = 0, time.monotonic()

    def clear(self) -> None:
        """Before other output."""
        if self.enabled and self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=self._stream, flush=True)
            self._width = 0
