"""Parsing and checking the options of an emulated controller: every refusal names the option and
its valid values.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import attrs

from nvme_async.errors import ConfigurationError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(ib)?", re.IGNORECASE)


def parse_size(text: str | int, name: str = "size") -> int:
    """Bytes from "4096", "128KiB", "1.5GiB", "64k", "1g": units are powers of 1024, in either case.

    Raises ConfigurationError for anything else, including decimal units (kB, MB).
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ConfigurationError(
            f"{name}={text!r} is not a size: give bytes, or a number with KiB, MiB, GiB or k, m, g"
        )
    nbytes = Fraction(match[1]) * _UNITS[match[2].lower()]
    if nbytes.denominator != 1:
        raise ConfigurationError(f"{name}={text!r} is not a whole number of bytes")
    return int(nbytes)


def parse_int(text: str | int, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"{name}={text!r} is not a whole number") from None


def parse_bool(text: str | bool, name: str) -> bool:
    if isinstance(text, bool):
        return text
    words = {
        "on": True,
        "yes": True,
        "true": True,
        "1": True,
        "off": False,
        "no": False,
        "false": False,
        "0": False,
    }
    try:
        return words[text.lower()]
    except KeyError:
        raise ConfigurationError(f"{name}={text!r} must be on or off") from None


def in_range(low: int, high: int) -> Any:
    def check(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
        if not low <= value <= high:
            raise ConfigurationError(f"{attribute.name}={value}: must be {low} to {high}")

    return check


def one_of(*choices: object) -> Any:
    def check(instance: object, attribute: attrs.Attribute[object], value: object) -> None:
        if value not in choices:
            allowed = ", ".join(str(choice) for choice in choices)
            raise ConfigurationError(f"{attribute.name}={value!r}: must be one of {allowed}")

    return check


def ascii_text(limit: int) -> Any:
    def check(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
        if not value.isascii() or not value.isprintable():
            raise ConfigurationError(f"{attribute.name}={value!r}: must be printable ASCII")
        if len(value) > limit:
            raise ConfigurationError(f"{attribute.name}={value!r} has {len(value)} characters: at most {limit}")

    return check


def parse_seconds(text: str | float, name: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ConfigurationError(f"{name}={text!r} is not a number of seconds") from None
    if not 0 <= seconds <= 3600:
        raise ConfigurationError(f"{name}={text}: must be 0 to 3600 seconds")
    return seconds


_IDS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})(?::([0-9a-f]{4}):([0-9a-f]{4}))?", re.IGNORECASE)
_NAMES = ("vendor_id", "device_id", "subsystem_vendor_id", "subsystem_id")


def parse_ids(text: str) -> dict[str, int]:
    """PCI ids by name, from "vvvv:dddd" or "vvvv:dddd:ssss:ssss"."""
    match = _IDS.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"ids={text!r}: must be vvvv:dddd or vvvv:dddd:ssss:ssss, hexadecimal")
    return {name: int(digits, 16) for name, digits in zip(_NAMES, match.groups(), strict=True) if digits}


_TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|ms|us|ns)")
_LONGEST = 10.0


def parse_time(text: str | float, name: str) -> float:
    """Seconds from "80us", "1.5ms", "0"; a float is seconds already."""
    if isinstance(text, str):
        match = _TIME.fullmatch(text.strip())
        if match is None and text.strip() != "0":
            raise ConfigurationError(f"{name}={text!r} is not a time: give a number with s, ms, us or ns")
        seconds = float(match[1]) * _TIME_UNITS[match[2]] if match else 0.0
    else:
        seconds = float(text)
    if not 0 <= seconds <= _LONGEST:
        raise ConfigurationError(f"{name}={text}: must be 0 to {_LONGEST:.0f} seconds")
    return seconds
