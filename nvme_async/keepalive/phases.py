"""The durations of the phases of servicing: of one hand-over, save or restore, and as histograms
of this process.

    suspend   predecessor: no new work, posted commands are rung, every queue pair is frozen
    write     predecessor: the saved state, if something has changed
    pass      from the predecessor's message to its receipt by the successor
    attach    successor: the pool, the saved state, the device
    build     successor: the objects for the saved state; before the standstill if both are alive
    verify    successor: checks the objects, rings, trackers, and each in-flight command's memory
    adopt     successor: adopts the predecessor's commands, reaps completions that arrived meanwhile
    drain     until the last of the predecessor's I/O commands has completed; new I/O waits for it
    first I/O until this process sent a command of its own, from the end of the drain on

A phase before the predecessor's standstill (attach and build) is not part of the pause.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("suspend", "write", "pass", "attach", "build", "verify", "adopt", "drain", "first I/O")

BUCKETS = tuple(step * 10.0**decade for decade in range(-5, 2) for step in (1, 2, 5))
"""Upper bounds in seconds: 10 µs to 50 s, three in each decade."""


class Phases:
    """The phases of one servicing of one controller, in seconds. On one loop."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measures the block; a second block with the same name adds to the first."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def record(self, *names: str) -> None:
        """These have ended: they are added to this process's histograms."""
        for name in names:
            if name in self.seconds:
                _record(self._uri, name, self.seconds[name])

    def __str__(self) -> str:
        return ", ".join(f"{name} {self.seconds[name] * 1000:.3f} ms" for name in NAMES if name in self.seconds)


class Histogram:
    """counts[i]: durations up to BUCKETS[i]; the last is of those beyond."""

    sum: float

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


_lock = threading.Lock()
_recorded: dict[tuple[str, str], Histogram] = {}


def _record(uri: str, name: str, seconds: float) -> None:
    with _lock:
        _recorded.setdefault((uri, name), Histogram()).add(seconds)


def recorded() -> dict[tuple[str, str], tuple[list[int], float]]:
    """{(uri, phase): (counts by bucket, sum of seconds)} of this process. From any thread."""
    with _lock:
        return {key: (list(histogram.counts), histogram.sum) for key, histogram in _recorded.items()}
