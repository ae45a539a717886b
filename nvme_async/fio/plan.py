"""From a job's options and a namespace's size to the loop's parameters: region, order, sizes,
limits, seeds.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.fio.options import Options
from nvme_async.fio.parsers import Extent, Percent, PerDirection, Sizes
from nvme_async.fio.verify import header_size
from nvme_async.native._fio import READ, TRIM, WRITE, Generator, Recorder

_SEED = 0x89  # of jobs that give none


@attrs.frozen
class Region:
    """The plan of one job for one namespace. Bytes; `limit` is None for a job that only time
    ends.
    """

    start: int
    length: int
    limit: int | None
    sizes: PerDirection[Sizes]
    align: int
    interval: int  # between verify headers; 0 without verify
    grain: int  # with verify: what all offsets from start are multiples of

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

    Raises ConfigurationError naming the option that does not fit.
    """

    def resolve(extent: Extent) -> int:
        return extent.of(nbytes, block) if isinstance(extent, Percent) else extent

    def aligned(name: str, value: int) -> int:
        if value % block:
            raise ConfigurationError(
                f"job {options.name!r}: {name}={value} is not a multiple of the block size, {block}"
            )
        return value

    if options.filesize:
        nbytes = min(nbytes, aligned("filesize", options.filesize))
    start = aligned("offset", resolve(options.offset)) + clone * aligned(
        "offset_increment", resolve(options.offset_increment)
    )
    if start >= nbytes:
        raise ConfigurationError(f"job {options.name!r}: offset {start} is not inside the namespace of {nbytes} bytes")
    # As in fio: several devices share a size given as a number, and a size is cut to the device.
    size = resolve(options.size) or nbytes
    if not isinstance(options.size, Percent) and len(options.filename) > 1:
        size = size // len(options.filename) // block * block
    there = (nbytes - start) // block * block
    size = there if options.fill_device and options.rw.writes else min(size, there)
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
    skip = options.rw.sequence if not options.rw.random else 0
    if skip % block:
        raise ConfigurationError(
            f"job {options.name!r}: rw={options.rw.name}:{skip}: a hole of {skip} bytes is not a multiple of the block "
            f"size, {block}"
        )
    limit: int | None = None
    if not options.time_based:
        io_size = options.io_size
        if isinstance(io_size, Percent):
            io_size = io_size.of(size, smallest)
        elif len(options.filename) > 1:
            io_size //= len(options.filename)
        limit = io_size or size // smallest * smallest
        limit *= 2 if options.rw.trim_then_write else 1
    interval = grain = 0
    if options.verify != "none":
        interval = _interval(options, tables)
        # Writes start only at such offsets, and cover whole intervals.
        grain = math.gcd(interval, align if options.rw.random else 0, abs(skip))
    elif options.serialize_overlap:
        grain = block
    return Region(start, size, limit, (tables[0], tables[1], tables[2]), align, interval, grain)


def _interval(options: Options, tables: Sequence[Sizes]) -> int:
    """verify_interval, which divides all sizes of the relevant direction, as in fio."""
    direction = WRITE if options.rw.writes else READ
    sizes = [size for size, _ in tables[direction]]
    interval = options.verify_interval
    if not interval or any(size % interval for size in sizes):
        interval = math.gcd(*sizes)
    if interval <= header_size(options.verify):
        raise ConfigurationError(
            f"job {options.name!r}: verify_interval={interval} leaves no room for data after a "
            f"header of {header_size(options.verify)} bytes"
        )
    return interval


def seed_of(options: Options, number: int, target: int = 0) -> int:
    """The same for the same place of a job among all jobs in each run (randrepeat, or an
    explicit randseed), regardless of its name; different for its clones and for each of its
    devices.

    number: of the job, from 1, its clones counted.
    """
    given = options.randseed >= 0
    if not options.randrepeat and not given:
        return int.from_bytes(os.urandom(8), "little")
    return ((options.randseed if given else _SEED) * 0x9E3779B97F4A7C15 + (number << 32) + (target << 16)) % 2**64


def plan_number(options: Options, region: Region, seed: int, block: int) -> int:
    """One number for everything that determines a job's n-th write and its place."""
    if steered(options):
        return int.from_bytes(os.urandom(8), "little")  # rates decide, which no other run repeats
    ruling = attrs.astuple(region, recurse=False)[:5], seed, block, options.rw, options.random_distribution
    limits = options.number_ios, options.loops, options.rwmixread, every_block_once(options), options.percentage_random
    strides = options.zonemode, options.zonesize, options.zonerange, options.zoneskip
    digest = hashlib.blake2b(repr((ruling, limits, strides)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def steered(options: Options) -> bool:
    """Whether rates decide between reads and writes, not the mix."""
    return options.rw.mixed and (any(options.rate[:2]) or any(options.rate_iops[:2]))


def every_block_once(options: Options) -> bool:
    """Whether a random order visits no block twice before it has visited all."""
    return not options.norandommap or options.random_generator == "lfsr"


def make_generator(options: Options, region: Region, seed: int, block: int) -> Generator:
    pattern, distribution = options.rw, options.random_distribution
    order, parameter = "sequential", 0.0
    if pattern.random:
        order = {"random": "permuted" if every_block_once(options) else "uniform"}.get(
            distribution.name, distribution.name
        )
        parameter = distribution.parameter
    if order == "pareto":  # a share h of the blocks gets 1 - h of the I/O
        parameter = math.log(parameter) / math.log(1.0 - parameter)
    if order == "normal":
        parameter = max(1.0, region.length // region.align * parameter / 100.0)
    zones = distribution.zones
    if order == "zoned_abs":
        order = "zoned"
        zones = tuple((share, nbytes / region.length) for share, nbytes in distribution.extents)
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
            step=math.lcm(region.interval or block, block),
            zones=zones,
            strides=_strides(options, region, block),
            random_shares=[share / 100.0 for share in options.percentage_random],
        )
    except ValueError as error:
        raise ConfigurationError(f"job {options.name!r}: {error}") from None


def _strides(options: Options, region: Region, block: int) -> tuple[int, int, int] | None:
    """zonemode=strided: bytes of I/O in each zone, of a zone, and from zone to zone."""
    if options.zonemode != "strided":
        return None
    reach = min(options.zonerange or options.zonesize, region.length)
    for name, value in (("zonerange", reach), ("zoneskip", options.zoneskip)):
        if value % block:
            raise ConfigurationError(
                f"job {options.name!r}: {name}={value} is not a multiple of the block size, {block}"
            )
    if reach < region.largest:
        raise ConfigurationError(
            f"job {options.name!r}: zonerange={reach} is less than a block of {region.largest} bytes"
        )
    return options.zonesize, reach, reach + options.zoneskip


def make_recorder(options: Options, limit: int | None) -> Recorder:
    logs = bool(options.write_bw_log or options.write_lat_log or options.write_iops_log)
    histograms = not (options.disable_clat and options.disable_lat) or bool(options.write_hist_log)
    return Recorder(
        timed=histograms or logs,
        histograms=histograms,
        limit_bytes=limit,
        limit_ios=options.number_ios or None,
        log=logs,
        log_window_ns=options.log_avg_msec * 1_000_000,
        log_max=options.log_max_value,
    )


def times_submission(options: Options) -> bool:
    """Whether the submission part of an await is measured separately."""
    return bool(options.slat_percentiles or options.write_lat_log) and not options.disable_slat


def is_plain(options: Options) -> bool:
    """Whether an I/O needs no additional work: then the shortest loop is used."""
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
        or options.serialize_overlap
        or times_submission(options)
        or options.iodepth_batch_submit > 1
        or options.iodepth_batch_complete_min > 1
        or options.iodepth_low
        or options.zonemode == "zbd"
        or any(len(block_sizes(options)[direction]) > 1 for direction in used_directions(options))
    )
