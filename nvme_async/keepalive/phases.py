"""How long each part of a servicing takes: of one hand-over, save or restore, and as histograms of this process.

    suspend   predecessor: no new work, what was posted is rung, every queue pair stands still
    write     predecessor: the saved state, where something has changed
    pass      from the predecessor's word to the successor's hearing it
    attach    successor: the pool, the saved state, the device
    build     successor: the objects for all that was saved; before the predecessor stands still, where both live
    verify    successor: is what was built still right; rings, trackers, the memory of each command in flight
    adopt     successor: the predecessor's commands become its own, completions that arrived meanwhile are taken
    drain     until the last of the predecessor's I/O commands has completed; new I/O waits for it
    first I/O until this process sent a command of its own, from the end of the drain on

A phase that a hand-over had before the predecessor stood still (attach and build) is not part of the pause.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("suspend", "write", "pass", "attach", "build", "verify", "adopt", "drain", "first I/O")

BUCKETS = tuple(step * 10.0**decade for decade in range(-5, 2) for step in (1, 2, 5))
"""Upper bounds in seconds: 10 µs to 50 s, three in each decade."""


class Phases:
    """Of one servicing of one controller, in seconds. On one loop."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Times what is in the block; a second block of one name adds to the first."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def record(self, *names: str) -> None:
        """These are over: they count in this process's histograms."""
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
        self.counts[sum(bound < seconds for bound in BUCKETS)] += 1
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
