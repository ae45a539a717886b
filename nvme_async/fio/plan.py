"""From a job's options and a namespace's size to what the loop runs on: region, order, sizes,
limits, seeds.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.fio.options import Options
from nvme_async.fio.parsers import Extent, Percent, PerDirection, Sizes
from nvme_async.native._fio import READ, TRIM, WRITE, Generator, Recorder


@attrs.frozen
class Region:
    """What one job does to one namespace. Bytes; `limit` is None for a job that only time ends."""

    start: int
    length: int
    limit: int | None
    sizes: PerDirection[Sizes]
    align: int
    interval: int  # between verify headers; 0 without verify

    @property
    def largest(self) -> int:
        return max(max(size for size, _ in table) for table in self.sizes)


def block_sizes(options: Options) -> PerDirection[Sizes]:
    return options.bssplit or options.bsrange or options.bs


def used_directions(options: Options) -> list[int]:
    pattern = options.rw
    flags = ((READ, pattern.reads), (WRITE, pattern.writes), (TRIM, pattern.trims))
    return [direction for direction, used in flags if used]


def plan_region(options: Options, clone: int, nbytes: int, block: int) -> Region:
    """The region of clone number `clone` (from 0) on a namespace of `nbytes` with blocks of `block`
    bytes.

    Raises ConfigurationError naming the option which does not fit.
    """

    def resolve(extent: Extent) -> int:
        return extent.of(nbytes, block) if isinstance(extent, Percent) else extent

    def aligned(name: str, value: int) -> int:
        if value % block:
            raise ConfigurationError(f"job {options.name!r}: {name}={value} is no multiple of the block size, {block}")
        return value

    start = aligned("offset", resolve(options.offset)) + clone * aligned(
        "offset_increment", resolve(options.offset_increment)
    )
    if start >= nbytes:
        raise ConfigurationError(f"job {options.name!r}: offset {start} is not inside the namespace of {nbytes} bytes")
    size = resolve(options.size)
    if isinstance(options.size, Percent):
        size = min(size, nbytes - start)
    if start + size > nbytes:
        raise ConfigurationError(
            f"job {options.name!r}: offset {start} and size {size} reach beyond the namespace of {nbytes} bytes"
        )
    # Directions that are not used must not constrain the others.
    used = used_directions(options)
    given = block_sizes(options)
    tables = [given[direction if direction in used else used[0]] for direction in range(3)]
    for table in tables:
        for bs, _ in table:
            aligned("bs", bs)
    smallest = min(min(bs for bs, _ in table) for table in tables)
    largest = max(max(bs for bs, _ in table) for table in tables)
    if size < largest:
        raise ConfigurationError(f"job {options.name!r}: size {size} is less than one block of {largest} bytes")
    align = aligned("blockalign", options.blockalign) or smallest
    limit: int | None = None
    if not options.time_based:
        limit = options.io_size or size // smallest * smallest
        limit *= 2 if options.rw.trim_then_write else 1
    interval = _interval(options, tables, align) if options.verify != "none" else 0
    return Region(start, size, limit, (tables[0], tables[1], tables[2]), align, interval)


def _interval(options: Options, tables: Sequence[Sizes], align: int) -> int:
    from nvme_async.fio.verify import header_size

    smallest = min(min(bs for bs, _ in table) for table in tables)
    interval = options.verify_interval or smallest
    if interval <= header_size(options.verify):
        raise ConfigurationError(
            f"job {options.name!r}: verify_interval={interval} has no room for contents behind a "
            f"header of {header_size(options.verify)} bytes"
        )
    if align % interval or any(bs % interval for table in tables for bs, _ in table):
        raise ConfigurationError(
            f"job {options.name!r}: with verify, block sizes and blockalign must be multiples of {interval} bytes "
            "(the smallest, or verify_interval)"
        )
    return interval


def seed_of(options: Options, clone: int) -> int:
    """The same for the same job in each run (randrepeat), different for its clones."""
    if not options.randrepeat:
        return int.from_bytes(os.urandom(8), "little")
    return (options.randseed * 0x9E3779B97F4A7C15 + zlib.crc32(options.name.encode()) + (clone << 32)) % 2**64


def make_generator(options: Options, region: Region, seed: int, block: int) -> Generator:
    pattern, distribution = options.rw, options.random_distribution
    order, parameter = "sequential", 0.0
    if pattern.random:
        order = {"random": "uniform" if options.norandommap else "permuted"}.get(distribution.name, distribution.name)
        parameter = distribution.parameter
    if order == "pareto":  # a share h of the blocks gets 1 - h of the I/O
        import math

        parameter = math.log(parameter) / math.log(1.0 - parameter)
    if order == "normal":
        parameter = max(1.0, region.length // region.align * parameter / 100.0)
    direction = TRIM if pattern.trims else WRITE if pattern.writes else READ
    try:
        return Generator(
            seed=seed,
            start=region.start,
            length=region.length,
            block_size=block,
            sizes=region.sizes,
            order=order,
            parameter=parameter,
            direction=direction,
            read_share=options.rwmixread / 100.0 if pattern.mixed else None,
            align=region.align,
            skip=0 if pattern.random else pattern.sequence,
            run=max(1, pattern.sequence) if pattern.random else 1,
        )
    except ValueError as error:
        raise ConfigurationError(f"job {options.name!r}: {error}") from None


def make_recorder(options: Options, limit: int | None) -> Recorder:
    logs = bool(options.write_bw_log or options.write_lat_log or options.write_iops_log)
    histograms = not (options.disable_clat and options.disable_lat)
    return Recorder(
        timed=histograms or logs,
        histograms=histograms,
        limit_bytes=limit,
        limit_ios=options.number_ios or None,
        log=logs,
        log_window_ns=options.log_avg_msec * 1_000_000,
        log_max=options.log_max_value,
    )


def is_plain(options: Options) -> bool:
    """Whether nothing is to be done for an I/O but the I/O: then the loop is the shortest there is."""
    return not (
        options.rw.trims
        or options.verify != "none"
        or any(options.rate)
        or any(options.rate_iops)
        or options.thinktime
        or options.fsync
        or options.fdatasync
        or options.sync not in ("none", "0")
        or options.refill_buffers
        or options.iodepth_batch_submit > 1
        or options.iodepth_batch_complete_min > 1
        or options.iodepth_low
        or any(len(block_sizes(options)[direction]) > 1 for direction in used_directions(options))
    )
