"""The benchmark's own loop in C: the next I/O, its time, and its data.

Objects here belong to one thread, that of the job. Single counters of a Recorder may be read from
others. Offsets and sizes are bytes, times ns of CLOCK_MONOTONIC. Directions: 0 read, 1 write, 2
trim, 3 flush.
"""

from array import array
from collections.abc import Sequence
from typing import Self, final

from typing_extensions import Buffer

READ: int
WRITE: int
TRIM: int
SYNC: int
ORDERS: dict[str, int]
MAX_SPLITS: int
MAX_ZONES: int

def crc32c(data: Buffer, crc: int = 0, *, software: bool = False) -> int:
    """CRC-32C; `crc` continues an earlier one. `software`: without the processor's instruction."""

def xxh64(data: Buffer, seed: int = 0) -> int:
    """XXH64 of `data`."""

def crc64(data: Buffer) -> int:
    """CRC-64/XZ of `data`."""

def crc7(data: Buffer) -> int:
    """CRC-7/MMC of `data`."""

def fill_random(data: Buffer, key: int) -> None:
    """Overwrites `data` with pseudo-random bytes, the same for the same key."""

def clock_ns() -> int:
    """The clock of all times here."""

@final
class Histogram:
    """Latencies in fio's 29 groups of 64 buckets; sum and deviation are exact, percentiles
    within 1 %.
    """

    def __init__(self) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def min(self) -> int: ...
    @property
    def max(self) -> int: ...
    @property
    def mean(self) -> float: ...
    @property
    def deviation(self) -> float:
        """Sample standard deviation."""
    def add(self, value: int, times: int = 1) -> None: ...
    def merge(self, other: Histogram) -> None: ...
    def __reduce__(self) -> tuple[type[Histogram], tuple[()], bytes]:
        """For pickle, between processes of one build: the struct's bytes."""
    def __setstate__(self, state: bytes) -> None:
        """ValueError for another number of bytes."""
    def bins(self) -> dict[int, int]:
        """The buckets that are not empty, by the value that stands for each."""
    def counts(self) -> list[int]:
        """All 29 x 64 buckets in their order, empty ones too."""
    def percentiles(self, wanted: Sequence[float]) -> list[int]:
        """The value below or at which so many percent lie; `wanted` ascending."""

@final
class Generator:
    """Which I/O is next. The same arguments give the same sequence.

    sizes: for reads, writes and trims each, a table of (bytes, share of 1), or two entries with
        share None for all multiples of the first up to the second. order: sequential, permuted
        (each place once before any twice), uniform, zipf, pareto, normal, zoned (`zones`: shares of
        the I/Os and of the places, of 1). read_share: of 1, for a mix; else all I/O goes in
        `direction`. skip: a hole behind each I/O; negative: backwards, from the end.
    run: so many I/Os in sequence at each random place. step: an I/O that the end of the region cuts
        is a multiple of this many bytes (block_size). random_shares: of 1, for each direction: how
        many of a random order's I/Os are random; the others follow the one before. strides: bytes
        of I/O in a zone, of a zone, and from zone to zone.

    Raises ValueError when sizes, start or align are no multiples of block_size, or the region is
    too small.
    """

    shift: int
    def __init__(
        self,
        *,
        seed: int,
        start: int,
        length: int,
        block_size: int,
        sizes: Sequence[Sequence[tuple[int, float | None]]],
        order: str = "sequential",
        parameter: float = 0.0,
        direction: int = 0,
        read_share: float | None = None,
        align: int = 0,
        skip: int = 0,
        run: int = 1,
        step: int = 0,
        random_shares: Sequence[float] | None = None,
        zones: Sequence[tuple[float, float]] = (),
        strides: tuple[int, int, int] | None = None,
    ) -> None: ...
    @property
    def units(self) -> int:
        """How many offsets an I/O can start at."""
    def next(self) -> tuple[int, int, int]:
        """Direction, offset, bytes."""
    def restart(self, seed: int) -> None: ...

@final
class Recorder:
    """A job's records, and its limits: I/Os are issued until limit_bytes, limit_ios, a deadline
    or stop().

    timed: read the clock for each I/O; otherwise for one in 32. log: keep an entry for each I/O, or
    one for each direction and `log_window_ns`.
    """

    def __new__(
        cls,
        *,
        timed: bool = True,
        histograms: bool = True,
        limit_bytes: int | None = None,
        limit_ios: int | None = None,
        log: bool = False,
        log_window_ns: int = 0,
        log_max: bool = False,
    ) -> Self: ...
    def arm(self, *, measure_from: int = 0, deadline: int | None = None) -> None:
        """Sets the times: recording begins anew at the first, nothing is started from the second
        on.
        """
    def stop(self) -> None:
        """Issues no more I/O. From any thread."""
    def expire(self) -> None:
        """The deadline is now. From any thread."""
    def renew(self) -> None:
        """Gives the whole budget again (loops)."""
    @property
    def stopped(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def began(self) -> int | None:
        """The first I/O; once the ramp is over, the end of the ramp."""
    @property
    def measuring(self) -> bool:
        """Whether what is recorded now will be reported. What was recorded before the ramp's end
        is forgotten then.
        """
    @property
    def deadline(self) -> int | None: ...
    @property
    def claimed(self) -> tuple[int, int]:
        """Bytes and I/Os issued from the budget."""
    @property
    def ios(self) -> tuple[int, int, int]: ...
    @property
    def nbytes(self) -> tuple[int, int, int]: ...
    @property
    def issued(self) -> tuple[int, int, int, int]: ...
    @property
    def depths(self) -> tuple[int, ...]:
        """I/Os by the depth they were issued at: 1, 2-3, 4-7, 8-15, 16-31, 32-63, more."""
    @property
    def batches(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Calls that submitted, and that completed, 0, 1-4, 5-8, 9-16, 17-32, 33-64, more I/Os."""
    def latency(self, direction: int) -> Histogram:
        """A copy of the histogram."""
    def submission(self, direction: int) -> tuple[Histogram, Histogram]:
        """Copies of the latencies of submission, and of what came after, of I/Os whose
        submission was timed.
        """
    def record_sync(self, ns: int) -> None: ...
    def log_entries(self) -> list[tuple[int, int, int, int, int, int, int]]:
        """(time, latency, submission's part of it, bytes, I/Os, offset, direction) in order of
        time.
        """

@final
class Slot:
    """One I/O at a time. As an iterator it is the loop of a plain job: each step ends the
    previous I/O and begins the next; it yields the LBA of a read, and the complement (~lba) of a
    write or trim.

    Other jobs use claim() or aim(), then begin() and end() or abandon() around the I/O.
    retrim: each trim is followed by a write of the same blocks.
    """

    retrim: bool
    def __new__(cls, recorder: Recorder, generator: Generator, *, trim_then_write: bool = False) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> int: ...
    def claim(self, direction: int = -1) -> int:
        """Takes the next I/O and gives its direction; -1 when there is none to be done.
        `direction`: what an I/O of a mix must be, where that is not to be drawn.
        """
    def aim(self, direction: int, offset: int, nbytes: int) -> None:
        """Sets the I/O by hand, outside of the budget."""
    def begin(self) -> None: ...
    def submitted(self) -> None:
        """The I/O is on its way: submission ends and completion begins."""
    def end(self) -> None: ...
    def abandon(self) -> None:
        """The I/O failed: it is not counted."""
    @property
    def direction(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def lba(self) -> int: ...
    @property
    def blocks(self) -> int: ...

@final
class Batch:
    """Many I/Os for one await. The latency of the whole is recorded for each of them."""

    def __new__(cls, recorder: Recorder, generator: Generator, depth: int) -> Self: ...
    def fill(self, reads: array[int], writes: array[int]) -> tuple[int, int]:
        """Fills arrays of type Q with LBAs, up to the size of the shorter; returns how many of
        each.
        """
    def end(self) -> None: ...
    def abandon(self) -> None: ...
