"""Parsers of option values: from the text to the value, or a ConfigurationError that lists the
valid values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

from nvme_async.device import schemes
from nvme_async.errors import ConfigurationError
from nvme_async.fio.units import parse_size, parse_time
from nvme_async.native._fio import MAX_ZONES

T = TypeVar("T")

# One value per direction: reads, writes, trims.
PerDirection = tuple[T, T, T]


@attrs.frozen
class Percent:
    """A size given as a share of the device: `offset=25%`."""

    share: float

    def of(self, nbytes: int, granularity: int) -> int:
        return int(nbytes * self.share / 100.0) // granularity * granularity


Extent = int | Percent


@attrs.frozen
class Pattern:
    """rw=: directions, order, and the number after a colon.

    `sequence`: `randread:8` means eight I/Os in sequence at each random place; `read:4k` a hole of
    4 KiB after each I/O; `read:-8k` back by so much after each, from the end.
    """

    name: str
    reads: bool = False
    writes: bool = False
    trims: bool = False
    random: bool = False
    sequence: int = 0

    @property
    def mixed(self) -> bool:
        return self.reads and self.writes

    @property
    def trim_then_write(self) -> bool:
        return self.trims and self.writes


PATTERNS = {
    pattern.name: pattern
    for pattern in (
        Pattern("read", reads=True),
        Pattern("write", writes=True),
        Pattern("trim", trims=True),
        Pattern("randread", reads=True, random=True),
        Pattern("randwrite", writes=True, random=True),
        Pattern("randtrim", trims=True, random=True),
        Pattern("rw", reads=True, writes=True),
        Pattern("randrw", reads=True, writes=True, random=True),
        Pattern("trimwrite", writes=True, trims=True),
        Pattern("randtrimwrite", writes=True, trims=True, random=True),
    )
}


@attrs.frozen
class Distribution:
    """random_distribution=: `parameter` is zipf's theta, pareto's h, normal's deviation in
    percent.
    """

    name: str = "random"
    parameter: float = 0.0
    zones: tuple[tuple[float, float], ...] = ()  # zoned: shares of the I/Os, and of the region, of 1
    extents: tuple[tuple[float, int], ...] = ()  # zoned_abs: shares of the I/Os, and bytes


@attrs.frozen
class SteadyState:
    """steadystate=: `iops:5%` or `bw_slope:0.1%`; `limit` is a percentage of the mean, or
    absolute.
    """

    metric: str
    slope: bool
    limit: float
    percent: bool

    @property
    def threshold(self) -> str:
        """As in fio's --debug=parse."""
        if self.percent:
            return f"threshold to {self.limit:f}%"
        return f"IOPS threshold to {self.limit:f}" if self.metric == "iops" else f"BW threshold to {self.limit:.0f}"

    def __str__(self) -> str:
        return f"{self.metric}{'_slope' if self.slope else ''}:{self.limit:f}{'%' if self.percent else ''}"


def integer(low: int = 0, high: int = 2**63 - 1) -> Callable[[str], int]:
    """An integer within limits; a size suffix is accepted, as in fio (`number_ios=1k`)."""

    def parse(text: str) -> int:
        try:
            value = -parse_size(text[1:]) if text.startswith("-") else parse_size(text)
        except ConfigurationError:
            raise ConfigurationError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise ConfigurationError(f"{value} is out of range ({low} to {high})")
        return value

    return parse


def boolean(text: str) -> bool:
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ConfigurationError(f"{text!r} is neither 1 nor 0")


def seconds(unit: str = "s") -> Callable[[str], float]:
    return lambda text: parse_time(text, unit)


def text_value(text: str) -> str:
    return text


def choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ConfigurationError(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return parse


def extent(text: str) -> Extent:
    if not text.endswith("%"):
        return parse_size(text)
    share = number(0.0, 100.0)(text.rstrip("%"))  # templates write 100%%
    return Percent(share)


def number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ConfigurationError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise ConfigurationError(f"{text} is out of range ({low:g} to {high:g})")
        return value

    return parse


def _spread(text: str, parse: Callable[[str], T], default: T) -> PerDirection[T]:
    """`a`, `a,b` or `a,b,c`. The last one applies to the following ones; an empty one keeps the
    default.
    """
    parts = text.split(",")
    if len(parts) > 3:
        raise ConfigurationError(f"{text!r} has more than three values (for reads, writes, trims)")
    values = [parse(part) if part else default for part in parts]
    values += [values[-1]] * (3 - len(values))
    return values[0], values[1], values[2]


def per_direction(parse: Callable[[str], T], default: T) -> Callable[[str], PerDirection[T]]:
    return lambda text: _spread(text, parse, default)


Sizes = Sequence[tuple[int, float | None]]


def block_size(text: str) -> Sizes:
    size = parse_size(text)
    if not 0 < size < 1 << 31:
        raise ConfigurationError(f"block size {text!r} is out of range (1 byte to 2 GiB)")
    return ((size, 1.0),)


def block_sizes(text: str) -> PerDirection[Sizes]:
    """bs=: `4k`, `4k,8k,16k`; fio accepts `4k-512k` for `4k,512k`."""
    return _spread(text.replace("-", ","), block_size, ((4096, 1.0),))


def block_range(text: str) -> Sizes:
    """`4k-16k`: two sizes without a share mean all sizes between them."""
    low, separator, high = text.replace(":", "-").partition("-")
    (first, _), (last, _) = (*block_size(low), *block_size(high if separator else low))
    if first > last:
        raise ConfigurationError(f"{text!r}: the lower end is above the upper end")
    return ((first, None), (last, None)) if first != last else ((first, 1.0),)


def block_split(text: str) -> Sizes:
    """`4k/60:64k/40`; entries without a share divide what is left."""
    entries: list[tuple[int, float | None]] = []
    for part in text.split(":"):
        size, _, share = part.partition("/")
        entries.append((block_size(size)[0][0], number(0, 100)(share) if share else None))
    total = sum(share for _, share in entries if share is not None)
    missing = sum(share is None for _, share in entries)
    if total > 100.0 or (not missing and abs(total - 100.0) > 0.01):
        raise ConfigurationError(f"{text!r}: the shares add up to {total:g} %, not to 100 %")
    rest = (100.0 - total) / missing if missing else 0.0
    return tuple((size, (rest if share is None else share) / 100.0) for size, share in entries)


def pattern(text: str) -> Pattern:
    name, separator, modifier = text.partition(":")
    name = {"readwrite": "rw", "randreadwrite": "randrw"}.get(name, name)
    if name not in PATTERNS:
        raise ConfigurationError(f"{name!r} is not one of {', '.join(PATTERNS)}")
    found = PATTERNS[name]
    if not separator:
        return found
    sequence = -parse_size(modifier[1:]) if modifier.startswith("-") else parse_size(modifier)
    if found.random and sequence < 1:
        raise ConfigurationError(f"{text!r}: the number of I/Os must be 1 or more")
    return attrs.evolve(found, sequence=sequence)


def distribution(text: str) -> Distribution:
    name, _, parameter = text.partition(":")
    limits = {"zipf": (1.1, 0.01, 10.0), "pareto": (0.2, 0.01, 0.99), "normal": (10.0, 0.01, 100.0)}
    if name == "random":
        return Distribution()
    if name in ("zoned", "zoned_abs"):
        return _zones(text, name, parameter)
    if name not in limits:
        raise ConfigurationError(f"{name!r} is not one of random, zipf, pareto, normal, zoned, zoned_abs")
    default, low, high = limits[name]
    return Distribution(name, number(low, high)(parameter.rstrip("%")) if parameter else default)


def _zones(text: str, name: str, parameter: str) -> Distribution:
    """`zoned:50/5:30/15:20/` sends half of the I/Os to the first 5 % of the region, and the last
    fifth of them to the rest; `zoned_abs:60/10g:40/20g` uses bytes. One list for all directions.
    """
    if "," in parameter:
        raise ConfigurationError(f"{text!r}: separate lists for reads and writes are not supported")
    shares: list[float] = []
    sizes: list[str] = []
    for part in parameter.split(":"):
        share, _, size = part.partition("/")
        shares.append(number(0, 100)(share.rstrip("%")))
        sizes.append(size.rstrip("%"))
    if len(shares) > MAX_ZONES:
        raise ConfigurationError(f"{len(shares)} zones; the limit is {MAX_ZONES}")
    if abs(sum(shares) - 100.0) > 0.01:
        raise ConfigurationError(f"{text!r}: the shares of the I/Os add up to {sum(shares):g} %, not to 100 %")
    if name == "zoned_abs":
        extents = tuple((share / 100, parse_size(size)) for share, size in zip(shares, sizes, strict=True))
        return Distribution(name, extents=extents)
    parts = [number(0, 100)(size) if size else None for size in sizes]
    given = sum(part for part in parts if part is not None)
    if given > 100.01:
        raise ConfigurationError(f"{text!r}: the parts of the region add up to {given:g} %")
    rest = (100.0 - given) / max(1, parts.count(None))
    zones = tuple(
        (share / 100, (rest if part is None else part) / 100) for share, part in zip(shares, parts, strict=True)
    )
    return Distribution("zoned", zones=zones)


def percentiles(text: str) -> tuple[float, ...]:
    values = tuple(sorted(number(0.0, 100.0)(part) for part in re.split("[:,]", text)))
    if len(values) > 20:
        raise ConfigurationError(f"{len(values)} percentiles; the limit is 20")
    return values


def steady_state(text: str) -> SteadyState:
    name, separator, limit = text.partition(":")
    metric, _, slope = name.partition("_")
    if not separator or metric not in ("iops", "bw") or slope not in ("", "slope"):
        raise ConfigurationError(f"{text!r} is not iops:N, iops_slope:N, bw:N or bw_slope:N (or N%)")
    if limit.endswith("%"):
        return SteadyState(metric, bool(slope), number(0, 100)(limit[:-1]), True)
    return SteadyState(metric, bool(slope), float(parse_size(limit)), False)


def byte_pattern(text: str) -> bytes:
    """`0xdeadbeef` (bytes in that order), `"text"`, a number, `'file'` for its content, or
    several of these one after another.
    """
    out = bytearray()
    rest = text.strip()
    while rest:
        if match := re.match(r"0x([0-9a-fA-F]+)", rest):
            digits = match.group(1)
            out += bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)
        elif match := re.match(r'"([^"]*)"', rest):
            out += match.group(1).encode()
        elif match := re.match(r"'([^']+)'", rest):
            out += _contents(match.group(1))
        elif match := re.match(r"-?[0-9]+?(?=0x|[^0-9]|$)", rest):
            value = int(match.group(0))
            out += (value & (1 << 8 * max(1, (value.bit_length() + 7) // 8)) - 1).to_bytes(
                max(1, (value.bit_length() + 7) // 8), "little"
            )
        else:
            raise ConfigurationError(f"{text!r} is not a pattern (0x… bytes, \"text\", 'file', or a number)")
        rest = rest[match.end() :]
    if not 0 < len(out) <= 64 << 10:
        raise ConfigurationError(f"a pattern has 1 byte to 64 KiB, {text!r} has {len(out)}")
    return bytes(out)


def _contents(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"pattern file {name!r}: {error.strerror}") from None


def cpus(text: str) -> frozenset[int]:
    """`0`, `0-3`, `0,2,4-5`."""
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part.strip())
        if match is None:
            raise ConfigurationError(f"{text!r} is not a list of CPUs (0,2,4-7)")
        first = int(match.group(1))
        chosen.update(range(first, int(match.group(2) or first) + 1))
    return frozenset(chosen)


def cpu_mask(text: str) -> frozenset[int]:
    """`3`, `0xff`: a bit for each CPU."""
    mask = parse_size(text)
    if not mask:
        raise ConfigurationError(f"{text!r} leaves no CPU")
    return frozenset(cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1)


def unified(text: str) -> str:
    """none, mixed or both; fio's older 0, 1 and 2 as well."""
    return choice("none", "mixed", "both")({"0": "none", "1": "mixed", "2": "both"}.get(text, text))


def numa_cpus(text: str) -> frozenset[int]:
    """numa_cpu_nodes: the CPUs of nodes 0,2-3; `all` leaves all of them."""
    if text == "all":
        return frozenset(os.sched_getaffinity(0))
    chosen: set[int] = set()
    for node in cpus(text):
        try:
            listed = Path(f"/sys/devices/system/node/node{node}/cpulist").read_text().strip()
        except OSError:
            raise ConfigurationError(f"{text!r}: this machine has no NUMA node {node}") from None
        chosen |= cpus(listed) if listed else set()
    return frozenset(chosen)


_BETWEEN_URIS = re.compile(rf"\||(?<!\\):(?=(?:{'|'.join(map(re.escape, schemes()))}):)")


def filenames(text: str) -> tuple[str, ...]:
    r"""Device URIs, separated by `|`, or as in fio by `:` if the next starts with its scheme.

    `\:` is a colon and separates nothing.
    """
    names = tuple(part.strip().replace("\\:", ":") for part in _BETWEEN_URIS.split(text))
    if not all(names):
        raise ConfigurationError(f"{text!r} has an empty device URI")
    return names
