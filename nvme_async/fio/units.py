"""Numbers as fio reads and prints them."""

from __future__ import annotations

import re

from nvme_async.errors import ConfigurationError
from nvme_async.fio.expressions import evaluate

_POWERS: dict[str, int] = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?|0x[0-9a-f]+)\s*([kmgtp]?)(?:i?b|i)?", re.IGNORECASE)
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)
_SECONDS = {
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "msec": 1e-3,
    "us": 1e-6,
    "usec": 1e-6,
    "ns": 1e-9,
    "nsec": 1e-9,
}


def _computed(text: str) -> str:
    """(4*1024): arithmetic in parentheses is computed, as in fio."""
    text = text.strip()
    return evaluate(text) if text.startswith("(") else text


def parse_size(text: str) -> int:
    """Bytes from `4096`, `4k`, `1.5m`, `1GiB`, `0x1000`. k, m, g, t, p are powers of 1024."""
    text = _computed(text)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{text!r} is not a size (a number, and k, m, g, t or p for powers of 1024)")
    number, suffix = match.groups()
    if number.lower().startswith("0x"):
        return int(number, 16)
    scale: int = 1024 ** _POWERS[suffix.lower()]
    return int(float(number) * scale) if "." in number else int(number) * scale


def parse_time(text: str, unit: str = "s") -> float:
    """Seconds from `10`, `10s`, `5m`, `250ms`, `100us`; a number without a unit counts in
    `unit`.
    """
    text = _computed(text)
    match = _TIME.fullmatch(text)
    scale = _SECONDS.get(match.group(2).lower() or unit) if match else None
    if match is None or scale is None:
        raise ConfigurationError(f"{text!r} is not a time (a number, and d, h, m, s, ms, us or ns)")
    return float(match.group(1)) * scale


def format_number(value: float, digits: int = 4, *, binary: bool = False, unit: str = "") -> str:
    """`value` in at most `digits` characters and a prefix, as fio does: 1999, 71.9k, 12.5Gi.

    Digits after the point come from the remainder of the last division; without room for one the
    number is rounded.
    """
    thousand = 1024 if binary else 1000
    prefixes = ("", "Ki", "Mi", "Gi", "Ti", "Pi") if binary else ("", "k", "M", "G", "T", "P")
    number, rest, index = int(value), -1, 0
    while len(str(number)) > digits and index < len(prefixes) - 1:
        number, rest = divmod(number, thousand)
        index += 1
    room = digits - len(str(number))
    if rest < 0 or room <= 1:
        if rest >= thousand // 2:
            number += 1
        return f"{number}{prefixes[index]}{unit}"
    fraction = f"{rest / thousand:.{room - 1}f}"
    if fraction.startswith("1"):  # .996 in two digits is 1.00: it belongs to the whole number
        number, fraction = number + 1, f"{0:.{room - 1}f}"
    return f"{number}.{fraction[2:]}{prefixes[index]}{unit}"


def format_rate(bytes_per_second: float) -> tuple[str, str]:
    """Bandwidth as fio prints it, in powers of 1024 and of 1000: ("12.5GiB/s", "13.4GB/s")."""
    return (
        format_number(bytes_per_second, binary=True, unit="B/s"),
        format_number(bytes_per_second, unit="B/s"),
    )


def format_size(nbytes: int) -> tuple[str, str]:
    """A size in powers of 1024 and of 1000: ("153MiB", "161MB")."""
    return format_number(nbytes, binary=True, unit="B"), format_number(nbytes, unit="B")


def format_time(seconds: float) -> str:
    """A duration as in the ETA line: 00m:31s, 01h:00m:05s, 2d:03h:00m:00s."""
    total = round(seconds)
    days, total = divmod(total, 86400)
    hours, total = divmod(total, 3600)
    minutes, total = divmod(total, 60)
    text = f"{minutes:02d}m:{total:02d}s"
    if days or hours:
        text = f"{hours:02d}h:{text}"
    return f"{days}d:{text}" if days else text
