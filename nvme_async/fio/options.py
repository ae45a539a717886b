# ruff: noqa: RUF009  (an attrs field is made by a call)
"""Every job option: one field of `Options` gives its name, type, default, parser and help.

Options of fio that this program lacks are in `known.py`, so that they can be refused by name.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.fio import engine_names
from nvme_async.fio import parsers as p
from nvme_async.fio.known import ACCEPTED, KNOWN_TO_FIO
from nvme_async.fio.units import parse_size
from nvme_async.fio.verify import VERIFY_KINDS


def option(
    default: Any,
    parse: Callable[[str], Any],
    help: str,
    *aliases: str,
    bare: str | None = None,
    default_text: str = "",
) -> Any:
    """A field of Options. `bare`: the meaning of the name alone."""
    metadata = {"parse": parse, "help": help, "aliases": aliases, "bare": bare, "default": default_text}
    return attrs.field(default=default, metadata=metadata)


def flag(help: str, *aliases: str, default: bool = False) -> Any:
    return option(default, p.boolean, help, *aliases, bare="1")


@attrs.define
class Options:
    """The options of one job, parsed. Times are seconds, sizes bytes."""

    # what and where
    name: str = option("", p.text_value, "name of the job; on the command line it begins one")
    description: str = option("", p.text_value, "text shown with the results")
    filename: tuple[str, ...] = option((), p.filenames, "device URI, or several separated by | (or : before a scheme)")
    nsid: int = option(1, p.integer(1, 0xFFFFFFFE), "namespace")
    ioengine: str = option(
        "await", engine_names.engine, "await: one await for one I/O; many: one for a batch; kernel engines: as await"
    )
    loop: str = option("uvloop", p.choice("uvloop", "asyncio"), "event loop of the job")
    mode: str = option(
        "", p.choice("adaptive", "interrupt", "poll", "hybrid"), "how the driver waits (its own default: adaptive)"
    )
    rw: p.Pattern = option(p.PATTERNS["read"], p.pattern, ", ".join(p.PATTERNS), "readwrite", default_text="read")
    bs: p.PerDirection[p.Sizes] = option(
        (((4096, 1.0),),) * 3,
        p.block_sizes,
        "block size, or one each for reads,writes,trims",
        "blocksize",
        default_text="4k",
    )
    bsrange: p.PerDirection[p.Sizes] | None = option(
        None,
        p.per_direction(p.block_range, ((4096, 1.0),)),
        "block sizes from-to, evenly spread",
        "blocksize_range",
    )
    bssplit: p.PerDirection[p.Sizes] | None = option(
        None, p.per_direction(p.block_split, ((4096, 1.0),)), "block sizes and their shares: 4k/60:64k/40"
    )
    blockalign: int = option(0, parse_size, "alignment of random offsets (the smallest block size)", "ba")
    size: p.Extent = option(p.Percent(100.0), p.extent, "region to work on, and how much to transfer (the device)")
    io_size: p.Extent = option(0, p.extent, "how much to transfer, if not `size`", "io_limit")
    filesize: int = option(0, parse_size, "largest part of each device to use (all of it)")
    offset: p.Extent = option(0, p.extent, "start of the region", "fileoffset")
    offset_increment: p.Extent = option(0, p.extent, "added to offset for each further clone of numjobs")
    fill_device: bool = flag("write to the end of the device, whatever size says", "fill_fs")
    number_ios: int = option(0, p.integer(), "at most this many I/Os")
    loops: int = option(1, p.integer(1), "repetitions of the whole job")

    # depth and threads
    iodepth: int = option(1, p.integer(1, 65535), "I/Os in flight: so many coroutines")
    iodepth_batch_submit: int = option(
        1, p.integer(0, 65535), "I/Os submitted together (many: the size of a batch)", "iodepth_batch"
    )
    iodepth_batch_complete_min: int = option(
        1, p.integer(0, 65535), "continue after that many completions", "iodepth_batch_complete"
    )
    iodepth_batch_complete_max: int = option(
        0, p.integer(0, 65535), "checked against the minimum; the loop takes what there is"
    )
    iodepth_low: int = option(0, p.integer(0, 65535), "the depth falls to this before it is filled again")
    numjobs: int = option(1, p.integer(1, 1024), "clones, each with an event loop and queue pair of its own")
    thread: bool = flag("jobs that run beside others are threads of one process, not each a process")
    cpus_allowed: frozenset[int] | None = option(None, p.cpus, "CPUs of the job: 0,2-3")
    cpumask: frozenset[int] | None = option(None, p.cpu_mask, "the same as a mask")
    numa_cpu_nodes: frozenset[int] | None = option(None, p.numa_cpus, "the CPUs of these nodes: 0,2-3")
    cpus_allowed_policy: str = option("shared", p.choice("shared", "split"), "split: one of them for each clone")
    nice: int = option(0, p.integer(-20, 19), "nice value of the job")

    # time and order
    runtime: float = option(0.0, p.seconds(), "time limit", "timeout")
    time_based: bool = flag("repeat the region until runtime is over")
    ramp_time: float = option(0.0, p.seconds(), "run this long before measuring")
    startdelay: float = option(0.0, p.seconds(), "delay of the start")
    wait_for: str = option("", p.text_value, "begin when the job of that name has finished, with all its clones")
    stonewall: bool = flag("begin when all previous jobs have finished", "wait_for_previous")
    new_group: bool = flag("begin a new reporting group")
    exitall: bool = flag("stop all jobs when this one ends")
    exitall_on_error: bool = flag("stop all jobs when this one fails")
    rate: p.PerDirection[int] = option((0, 0, 0), p.per_direction(parse_size, 0), "bytes a second, at most")
    rate_iops: p.PerDirection[int] = option((0, 0, 0), p.per_direction(p.integer(), 0), "I/Os a second, at most")
    rate_process: str = option("linear", p.choice("linear", "poisson"), "linear or poisson arrivals")
    thinktime: float = option(0.0, p.seconds("us"), "pause after thinktime_blocks I/Os")
    thinktime_spin: float = option(0.0, p.seconds("us"), "the part of thinktime spent computing")
    thinktime_blocks: int = option(1, p.integer(1), "I/Os between pauses")

    # mix and randomness
    rwmixread: int = option(50, p.integer(0, 100), "percent of reads in a mix")
    rwmixwrite: int = option(-1, p.integer(0, 100), "percent of writes in a mix")
    percentage_random: p.PerDirection[int] = option(
        (100, 100, 100), p.per_direction(p.integer(0, 100), 100), "percent of a random job's I/Os that are random"
    )
    norandommap: bool = flag("random blocks may repeat before all have been used once")
    random_generator: str = option(
        "tausworthe",
        p.choice("tausworthe", "lfsr", "tausworthe64"),
        "lfsr: each block once, with norandommap too; the others: the same",
    )
    randrepeat: bool = flag("same random numbers in each run", "allrandrepeat", default=True)
    randseed: int = option(-1, p.integer(0, 2**64 - 1), "seed of the random numbers")
    random_distribution: p.Distribution = option(
        p.Distribution(),
        p.distribution,
        "random, zipf:theta, pareto:h, normal:percent, zoned:50/5:30/15:20/",
    )

    serialize_overlap: bool = flag("an I/O waits for those in flight on the same blocks")
    zonemode: str = option(
        "none",
        p.choice("none", "strided", "zbd"),
        "strided: zonesize of I/O, then zoneskip further; zbd: a zoned namespace, written at write pointers",
    )
    zonesize: int = option(0, parse_size, "bytes of I/O in each zone", "zone_size")
    zonerange: int = option(0, parse_size, "bytes of a zone (zonesize)", "zone_range")
    zoneskip: int = option(0, parse_size, "bytes between zones", "zone_skip")
    max_open_zones: int = option(0, p.integer(), "zbd: zones that all jobs write at the same time (the device's limit)")
    job_max_open_zones: int = option(0, p.integer(), "zbd: zones that one job writes at the same time")
    read_beyond_wp: bool = flag("zbd: read anywhere, not only what was written")

    # durability
    fsync: int = option(0, p.integer(), "writes between flushes")
    fdatasync: int = option(0, p.integer(), "the same: NVMe has one flush")
    end_fsync: bool = flag("flush at the end", "fsync_on_close")
    sync: str = option("none", p.choice("none", "0", "1", "sync", "dsync"), "1, sync, dsync: Force Unit Access")

    # data
    buffer_pattern: bytes = option(b"", p.byte_pattern, "what to write: 0x… bytes, text in quotes, a number")
    zero_buffers: bool = flag("write zeroes")
    refill_buffers: bool = flag("new random data for each write")
    verify: str = option(
        "none",
        p.choice("none", "0", *VERIFY_KINDS, "crc32c-intel"),
        "write blocks that prove themselves, and read them back",
    )
    do_verify: bool = flag("read back after writing", default=True)
    verify_interval: int = option(0, parse_size, "bytes between headers (the smallest block size)", "header_interval")
    verify_pattern: bytes = option(b"", p.byte_pattern, "contents of blocks")
    verify_fatal: bool = flag("stop at the first bad block")
    verify_backlog: int = option(0, p.integer(), "writes between read-backs; default: at the end")
    verify_backlog_batch: int = option(0, p.integer(), "blocks read back at a time")
    verify_only: bool = flag("write nothing: check what an earlier run of this job wrote")
    verify_write_sequence: bool = flag("check the order of writes too", default=True)
    verify_dump: bool = flag("write bad blocks, as read and as expected, to files in the current folder")

    # reporting
    steadystate: p.SteadyState | None = option(None, p.steady_state, "stop when iops:5% or bw_slope:1% holds", "ss")
    steadystate_duration: float = option(0.0, p.seconds(), "duration for which it must hold", "ss_dur")
    steadystate_check_interval: float = option(1.0, p.seconds(), "seconds from value to value", "ss_interval")
    steadystate_ramp_time: float = option(0.0, p.seconds(), "time at the start that is ignored", "ss_ramp")
    unified_rw_reporting: str = option(
        "none", p.unified, "mixed: one result for reads, writes and trims; both: that one, too"
    )
    group_reporting: bool = flag("one result for all jobs of a group")
    percentile_list: tuple[float, ...] = option(
        (
            1.0,
            5.0,
            10.0,
            20.0,
            30.0,
            40.0,
            50.0,
            60.0,
            70.0,
            80.0,
            90.0,
            95.0,
            99.0,
            99.5,
            99.9,
            99.95,
            99.99,
        ),
        p.percentiles,
        "percentiles to report, 20 at most, separated by :",
        default_text="1:5:10:20:…:99.99",
    )
    clat_percentiles: bool = flag("report percentiles of completion latency", default=True)
    lat_percentiles: bool = flag("report percentiles of total latency")
    slat_percentiles: bool = flag("measure and report submission latency: until an await first suspends")
    disable_lat: bool = flag("no total latency")
    disable_clat: bool = flag("no completion latency")
    disable_slat: bool = flag("no submission latency (measured for slat_percentiles and write_lat_log only)")
    disable_bw_measurement: bool = flag("no bandwidth samples", "disable_bw")
    gtod_reduce: bool = flag("all four of these: the clock is read for one I/O in 32")
    write_bw_log: str = option("", p.text_value, "write NAME_bw.N.log", bare="$jobname")
    write_lat_log: str = option("", p.text_value, "write NAME_lat.N.log, _clat and _slat", bare="$jobname")
    write_iops_log: str = option("", p.text_value, "write NAME_iops.N.log", bare="$jobname")
    write_hist_log: str = option("", p.text_value, "write NAME_clat_hist.N.log", bare="$jobname")
    log_hist_msec: int = option(0, p.integer(), "milliseconds between its lines (log_avg_msec)")
    log_hist_coarseness: int = option(0, p.integer(0, 6), "join 2^N of its buckets")
    log_unix_epoch: bool = flag("times of log files since 1970, not since the job's begin", "log_alternate_epoch")
    log_avg_msec: int = option(0, p.integer(), "average log entries over this many milliseconds (0: every I/O)")
    log_max_value: bool = flag("log the maximum of that time, not the mean")
    log_offset: bool = flag("log offsets")
    per_job_logs: bool = flag("log files with the job's number", default=True)
    bwavgtime: int = option(500, p.integer(1), "milliseconds between bandwidth samples")
    iopsavgtime: int = option(500, p.integer(1), "milliseconds between IOPS samples")

    asked_engine: str = ""  # the ioengine as it was written
    asked_zonemode: str | None = None

    def place_logs(self, folder: str) -> None:
        """Log files go to `folder`, unless they have their own path."""
        for log in _LOGS:
            if name := getattr(self, log):
                setattr(self, log, os.path.join(folder, name))


_LOGS = ("write_bw_log", "write_lat_log", "write_iops_log", "write_hist_log")


_FIELDS = {field.name: field for field in attrs.fields(Options) if field.metadata}
_NAMES = {alias: name for name, field in _FIELDS.items() for alias in (name, *field.metadata["aliases"])}


def canonical(name: str, others: Iterable[str] = ()) -> str:
    """The name of an option from any of its spellings, or an error that says whether fio has it,
    and names the nearest one; `others` are candidates too.
    """
    if name in _NAMES:
        return _NAMES[name]
    if name in ACCEPTED:
        return name
    if name in KNOWN_TO_FIO:
        raise ConfigurationError(f"fio's option {name!r} is not supported here")
    near = difflib.get_close_matches(name, [*_NAMES, *ACCEPTED, *KNOWN_TO_FIO, *others], 1, 0.7)
    raise ConfigurationError(f"unknown option {name!r}" + (f". Did you mean {near[0]}?" if near else ""))


def bare_text(name: str) -> str | None:
    """The option's meaning without a value; None if it needs one."""
    known = canonical(name)
    if known in ACCEPTED:
        return "1"
    bare: str | None = _FIELDS[known].metadata["bare"]
    return bare


def resolve(texts: dict[str, str]) -> Options:
    """Options from canonical names and their texts. Raises ConfigurationError naming option and
    value.
    """
    values: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            if name in ACCEPTED:
                ACCEPTED[name].check(text)
            else:
                values[name] = _FIELDS[name].metadata["parse"](text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}={text}: {error}") from None
    options = Options(**values, asked_engine=texts.get("ioengine", ""), asked_zonemode=texts.get("zonemode"))
    _check(options)
    return options


def _check(options: Options) -> None:
    """Checks combinations of options, and sets those that follow from others."""

    def refuse(condition: object, message: str) -> None:
        if condition:
            raise ConfigurationError(message)

    if options.rwmixwrite >= 0:
        options.rwmixread = 100 - options.rwmixwrite
    if options.asked_engine in engine_names.ONE_AT_A_TIME:
        options.iodepth = 1
    for log in _LOGS:
        setattr(options, log, getattr(options, log).replace("$jobname", options.name))
    options.cpus_allowed = options.cpus_allowed or options.cpumask or options.numa_cpu_nodes
    if options.gtod_reduce:
        options.disable_lat = options.disable_clat = options.disable_slat = True
        options.disable_bw_measurement = True
    options.verify = {"0": "none", "crc32c-intel": "crc32c"}.get(options.verify, options.verify)
    pattern = options.rw
    refuse(not options.filename, "no device: --filename=<device URI> is missing (for example emulated:size=1GiB)")
    if options.zonesize and options.asked_zonemode is None:
        options.zonemode = "strided"  # as it was before fio had a zonemode
    refuse(options.zonemode == "strided" and not options.zonesize, "zonemode=strided needs zonesize")
    if options.zonemode == "zbd":
        refuse(pattern.trims, f"zonemode=zbd does not support rw={pattern.name}")
        refuse(options.ioengine == "many", "zonemode=zbd does not support ioengine=many")
        refuse(options.verify_only, "zonemode=zbd does not support verify_only: where a job wrote is not recorded")
    if not options.runtime:
        options.time_based = False  # fio ignores it, too
    refuse(options.steadystate and not options.steadystate_duration, "steadystate needs steadystate_duration")
    refuse(options.steadystate_check_interval < 0.1, "steadystate_check_interval is less than 0.1 s")
    refuse(options.iodepth_low > options.iodepth, f"iodepth_low={options.iodepth_low} is above iodepth")
    refuse(
        0 < options.iodepth_batch_complete_max < options.iodepth_batch_complete_min,
        f"iodepth_batch_complete_max={options.iodepth_batch_complete_max} is below the minimum",
    )
    refuse(
        len(options.filename) > options.iodepth,
        f"iodepth={options.iodepth} is less than the number of filenames ({len(options.filename)})",
    )
    refuse(options.thinktime_spin > options.thinktime, "thinktime_spin is longer than thinktime")
    if options.verify != "none":
        refuse(pattern.trims, f"verify does not support rw={pattern.name}")
        without = options.verify in ("pattern", "pattern_hdr") and not options.verify_pattern
        refuse(without, f"verify={options.verify} needs verify_pattern")
        several = options.verify_only and len(options.filename) > 1
        refuse(several, "verify_only needs a single device: the distribution over several is not recorded")
        endless = options.verify_only and options.time_based
        refuse(endless, "verify_only does not support time_based: how much was written is not recorded")
        refuse(options.verify_only and not options.randrepeat, "verify_only needs randrepeat=1")
    refuse(options.verify_only and options.verify == "none", "verify_only needs verify")
    if options.ioengine == "many":
        simple = all(len(sizes) == 1 for sizes in options.bs) and not (options.bsrange or options.bssplit)
        refuse(not simple, "ioengine=many needs one block size per direction")
        refuse(pattern.trims, f"ioengine=many does not support rw={pattern.name}")
        refuse(options.verify != "none", "ioengine=many does not support verify")
        paced = any(options.rate) or any(options.rate_iops) or options.thinktime
        refuse(paced, "ioengine=many does not support rate or thinktime")
        refuse(options.fsync or options.fdatasync, "ioengine=many does not support fsync")
        refuse(options.sync not in ("none", "0"), "ioengine=many does not support sync")
        refuse(options.serialize_overlap, "ioengine=many does not support serialize_overlap")


def describe(name: str) -> tuple[str, tuple[str, ...], str, str | None]:
    """Help, aliases, default and meaning when bare, of an option by its canonical name."""
    field = _FIELDS[name]
    plain = field.default if isinstance(field.default, str | int | float) else ""
    default = field.metadata["default"] or (int(plain) if isinstance(plain, bool) else plain)
    shown = "" if default in ("", 0, -1) else str(default)
    return field.metadata["help"], field.metadata["aliases"], shown, field.metadata["bare"]


def help_lines() -> list[str]:
    """One line per option: name, aliases, meaning, default."""
    lines = []
    for name in _FIELDS:
        text, aliases, default, _ = describe(name)
        shown = f" [{default}]" if default else ""
        lines.append(f"  {', '.join([name, *aliases]):<32}  {text}{shown}")
    return lines
