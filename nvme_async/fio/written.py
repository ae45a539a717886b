"""The last write to each interval of a region."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator

_CHUNK = 4096


class Written:
    """The sequence number of the last write to each interval of a region; 0 where none was.

    start, length: the region in bytes. interval: bytes from header to header. grain: what all
    offsets, counted from start, are multiples of; it divides the interval. If intervals may start
    between others (holes of 512 bytes after blocks of 4 KiB), the grain is smaller than they are,
    and a newer one may overwrite parts of older ones: an interval counts while it is complete.

    Eight bytes per grain, in anonymous memory that the kernel allocates when it is touched.
    """

    start: int
    interval: int
    grain: int

    def __init__(self, start: int, length: int, interval: int, grain: int = 0) -> None:
        self.start, self.interval, self.grain = start, interval, grain or interval
        self._ratio = interval // self.grain
        self._units = max(1, -(-length // self.grain))
        self._memory = mmap.mmap(-1, self._units * 8)
        # An entry is sequence * ratio + the grain's place in its interval.
        self._table = memoryview(self._memory).cast("Q")
        self._chunks: set[int] = set()

    def units(self, offset: int, nbytes: int) -> range:
        """The grains of a piece of the region."""
        first = (offset - self.start) // self.grain
        return range(first, first + -(-nbytes // self.grain))

    def note(self, offset: int, nbytes: int, sequence: int) -> None:
        units, ratio = self.units(offset, nbytes // self.interval * self.interval), self._ratio
        entries = range(sequence * ratio, sequence * ratio + ratio)
        self._table[units.start : units.stop] = array("Q", entries) * (len(units) // ratio)
        self._chunks.update(range(units.start // _CHUNK, -(-units.stop // _CHUNK)))

    def forget(self, offset: int, nbytes: int) -> None:
        """These blocks have no expected contents any more."""
        units = self.units(offset, nbytes)
        last = min(units.stop, self._units)
        self._table[units.start : last] = array("Q", bytes(8 * (last - units.start)))

    def whole(self, offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
        """(offset, sequence) of each complete interval inside a piece of the region."""
        units, ratio, table = self.units(offset, nbytes), self._ratio, self._table
        unit = units.start
        last = min(units.stop, self._units) - ratio
        while unit <= last:
            entry = table[unit]
            if entry and entry % ratio == 0 and (ratio == 1 or self._intact(unit, entry)):
                yield self.start + unit * self.grain, entry // ratio
                unit += ratio
            else:
                unit += 1

    def _intact(self, unit: int, entry: int) -> bool:
        return all(self._table[unit + place] == entry + place for place in range(1, self._ratio))

    def runs(self, max_nbytes: int) -> Iterator[tuple[int, int]]:
        """(offset, bytes) of all whole intervals, in order, in pieces of at most `max_nbytes`."""
        most = max(self.interval, max_nbytes // self.interval * self.interval)
        start, nbytes, reached = 0, 0, self.start
        for chunk in sorted(self._chunks):
            begin = max(reached, self.start + chunk * _CHUNK * self.grain)
            end = self.start + min((chunk + 1) * _CHUNK + self._ratio - 1, self._units) * self.grain
            for offset, _ in self.whole(begin, end - begin):
                reached = offset + self.interval
                if nbytes and offset == start + nbytes and nbytes < most:
                    nbytes += self.interval
                    continue
                if nbytes:
                    yield start, nbytes
                start, nbytes = offset, self.interval
        if nbytes:
            yield start, nbytes

    def close(self) -> None:
        self._table.release()
        self._memory.close()
