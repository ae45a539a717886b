"""What an emulated controller is made of, from a URI's options or the command line's."""

from __future__ import annotations

import os
import re
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

import attrs

from nvme_async.errors import ConfigurationError
from nvme_async.native._emulator import MAX_IO_QUEUES, MAX_NAMESPACES, MAX_VECTORS

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(ib)?", re.IGNORECASE)
_DEFAULT_SIZE = 1 << 30
_MAX_SIZE = 1 << 50

MEDIA = ("ram", "file", "null")
BLOCK_SIZES = (512, 4096)
MIN_MDTS, MAX_MDTS = 8192, 8 << 20
MIN_DEPTH, MAX_DEPTH = 2, 4096


def parse_size(text: str | int, name: str = "size") -> int:
    """Bytes from "4096", "128KiB", "1.5GiB", "64k", "1g": units are powers of 1024, in either case.

    Raises ConfigurationError for anything else, decimal units (kB, MB) among them.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ConfigurationError(f"{name}={text!r} is no size: give bytes, or a number with KiB, MiB, GiB or k, m, g")
    nbytes = Fraction(match[1]) * _UNITS[match[2].lower()]
    if nbytes.denominator != 1:
        raise ConfigurationError(f"{name}={text!r} is no whole number of bytes")
    return int(nbytes)


def _parse_int(text: str | int, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"{name}={text!r} is no whole number") from None


def _parse_bool(text: str | bool, name: str) -> bool:
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
        raise ConfigurationError(f"{name}={text!r} is neither on nor off") from None


def _in_range(low: int, high: int) -> Any:
    def check(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
        if not low <= value <= high:
            raise ConfigurationError(f"{attribute.name}={value}: must be {low} to {high}")

    return check


def _one_of(*choices: object) -> Any:
    def check(instance: object, attribute: attrs.Attribute[object], value: object) -> None:
        if value not in choices:
            allowed = ", ".join(str(choice) for choice in choices)
            raise ConfigurationError(f"{attribute.name}={value!r}: must be one of {allowed}")

    return check


def _ascii(limit: int) -> Any:
    def check(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
        if not value.isascii() or not value.isprintable():
            raise ConfigurationError(f"{attribute.name}={value!r}: must be printable ASCII")
        if len(value) > limit:
            raise ConfigurationError(f"{attribute.name}={value!r} has {len(value)} characters: at most {limit}")

    return check


@attrs.frozen
class Medium:
    """What one namespace stores its blocks on. nbytes is a multiple of block_size."""

    kind: str
    nbytes: int
    block_size: int
    path: str = ""


@attrs.frozen(kw_only=True)
class EmulatorConfig:
    """An emulated controller.

    Attributes:
        size: bytes of each namespace. The default is an existing file's size, otherwise 1 GiB.
        block: logical block size in bytes, 512 or 4096.
        namespaces: 1 to 16, all alike.
        medium: "ram" (sparse, lost at the end), "file", or "null" (no data is moved: writes vanish,
            reads leave memory as it was).
        path: the file of medium "file", created if need be; with several namespaces PATH.1, PATH.2,
            ….
        queues: I/O queue pairs, 1 to 64.
        depth: entries of the longest queue (CAP.MQES + 1), 2 to 4096.
        vectors: MSI-X vectors, 1 to 65; by default one for each queue pair and one for the admin
            queue.
        mdts: bytes of the longest transfer, a power of two from 8 KiB to 8 MiB.
        dbbuf: offer Doorbell Buffer Config.
        serial, model, firmware: what Identify Controller says; 20, 40 and 8 ASCII characters at
            most.
        reactor: "shared" (one thread for all such controllers of this process) or "own".
    """

    size: int = attrs.field(default=0, validator=_in_range(0, _MAX_SIZE))
    block: int = attrs.field(default=4096, validator=_one_of(*BLOCK_SIZES))
    namespaces: int = attrs.field(default=1, validator=_in_range(1, MAX_NAMESPACES))
    medium: str = attrs.field(default="ram", validator=_one_of(*MEDIA))
    path: str = ""
    queues: int = attrs.field(default=MAX_IO_QUEUES, validator=_in_range(1, MAX_IO_QUEUES))
    depth: int = attrs.field(default=1024, validator=_in_range(MIN_DEPTH, MAX_DEPTH))
    vectors: int = attrs.field(validator=_in_range(1, MAX_VECTORS))
    mdts: int = attrs.field(default=128 << 10, validator=_in_range(MIN_MDTS, MAX_MDTS))
    dbbuf: bool = True
    serial: str = attrs.field(default="NVMEASYNC0001", validator=_ascii(20))
    model: str = attrs.field(default="nvme_async emulated controller", validator=_ascii(40))
    firmware: str = attrs.field(default="1", validator=_ascii(8))
    reactor: str = attrs.field(default="shared", validator=_one_of("shared", "own"))
    # Numbers that are nobody's in the PCI ID list, so that no driver applies another device's
    # quirks.
    vendor_id: int = attrs.field(default=0x6E61, validator=_in_range(1, 0xFFFE))
    subsystem_vendor_id: int = attrs.field(default=0x6E61, validator=_in_range(0, 0xFFFF))

    @vectors.default
    def _vectors(self) -> int:
        return self.queues + 1

    def __attrs_post_init__(self) -> None:
        if self.mdts & (self.mdts - 1):
            raise ConfigurationError(f"mdts={self.mdts}: must be a power of two from {MIN_MDTS} to {MAX_MDTS}")
        if self.size % self.block:
            raise ConfigurationError(f"size={self.size}: must be a multiple of block={self.block}")
        if self.medium == "file" and not self.path:
            raise ConfigurationError("medium=file needs a path=")
        if self.medium != "file" and self.path:
            raise ConfigurationError(f"path={self.path!r} makes sense with medium=file only, not {self.medium}")

    @classmethod
    def parse(cls, options: str) -> EmulatorConfig:
        """From "size=1GiB,block=4096,…", the part of a URI after "emulated:".

        Values may be percent-encoded (%2C: a comma). ConfigurationError names the option and what
        it may be.
        """
        values: dict[str, str] = {}
        for option in options.split(",") if options else []:
            key, equals, value = option.partition("=")
            if not equals:
                raise ConfigurationError(f"emulated controller: option {option!r} is not of the form key=value")
            if key in values:
                raise ConfigurationError(f"{key} is given twice: {values[key]!r} and {value!r}")
            values[key] = unquote(value)
        return cls.from_options(values)

    @classmethod
    def from_options(cls, values: dict[str, Any]) -> EmulatorConfig:
        """From options by name, values as text or of their own type. None stands for the default."""
        parsers = {
            "size": parse_size,
            "mdts": parse_size,
            "block": parse_size,
            "namespaces": _parse_int,
            "queues": _parse_int,
            "depth": _parse_int,
            "vectors": _parse_int,
            "dbbuf": _parse_bool,
        }
        texts = ("medium", "path", "serial", "model", "firmware", "reactor")
        arguments: dict[str, Any] = {}
        for key, value in values.items():
            if key not in parsers and key not in texts:
                known = ", ".join(sorted([*parsers, *texts]))
                raise ConfigurationError(f"unknown option {key!r} of an emulated controller; there are {known}")
            if value is not None:
                arguments[key] = parsers[key](value, key) if key in parsers else value
        if arguments.get("size") == 0:
            raise ConfigurationError(f"size={values['size']!r}: a namespace needs at least one block")
        return cls(**arguments)

    @property
    def mdts_exponent(self) -> int:
        """MDTS as Identify Controller has it: a power of two over 4 KiB, where 0 would mean no
        limit.
        """
        return (self.mdts // 4096).bit_length() - 1

    def paths(self) -> list[str]:
        """The files of medium "file", by namespace."""
        if self.medium != "file":
            return []
        if self.namespaces == 1:
            return [self.path]
        return [f"{self.path}.{nsid}" for nsid in range(1, self.namespaces + 1)]

    @property
    def media(self) -> list[Medium]:
        """The namespaces' media; looks at the files' sizes where `size` was left open."""
        if self.medium != "file":
            return [Medium(self.medium, self.size or _DEFAULT_SIZE, self.block)] * self.namespaces
        return [Medium("file", self.size or self._file_size(path), self.block, path) for path in self.paths()]

    def _file_size(self, path: str) -> int:
        try:
            nbytes = os.stat(path).st_size // self.block * self.block
        except FileNotFoundError:
            return _DEFAULT_SIZE
        except OSError as error:
            raise ConfigurationError(f"path={path!r}: {error.strerror}") from None
        if nbytes == 0:
            raise ConfigurationError(f"path={path!r} is shorter than one block of {self.block} bytes; give a size=")
        return nbytes
