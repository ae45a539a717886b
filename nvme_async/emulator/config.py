"""The configuration of an emulated controller, from a URI's options or the command line's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import attrs

from nvme_async.emulator.extras import PARSERS as EXTRAS
from nvme_async.emulator.extras import Extras
from nvme_async.emulator.formats import GUARDS, LbaFormat, format_names, parse_formats
from nvme_async.emulator.parsing import (
    ascii_text,
    in_range,
    one_of,
    parse_bool,
    parse_ids,
    parse_int,
    parse_seconds,
    parse_size,
)
from nvme_async.errors import ConfigurationError
from nvme_async.native._emulator import MAX_IO_QUEUES, MAX_NAMESPACES, MAX_VECTORS

_DEFAULT_SIZE = 1 << 30
_MAX_SIZE = 1 << 50

MEDIA = ("ram", "file", "null")
BLOCK_SIZES = (512, 4096)
MIN_MDTS, MAX_MDTS = 8192, 8 << 20
MIN_DEPTH, MAX_DEPTH = 2, 4096
MODERATIONS = ("none", "adaptive")
AGGREGATION_UNIT_US = 100

_PARSERS: dict[str, Callable[[Any, str], Any]] = {
    "size": parse_size,
    "mdts": parse_size,
    "block": parse_size,
    "namespaces": parse_int,
    "queues": parse_int,
    "depth": parse_int,
    "vectors": parse_int,
    "dbbuf": parse_bool,
    "aggregation_threshold": parse_int,
    "aggregation_time": parse_int,
    "formats": parse_formats,
    "metadata": parse_int,
    "guard": parse_int,
    "extended": parse_bool,
    "pi": parse_int,
    "pi_first": parse_bool,
    "format_time": parse_seconds,
    "effects": parse_bool,
}
IDS = "ids"
_TEXTS = ("moderation", "medium", "path", "serial", "model", "firmware", "reactor")


@attrs.frozen
class Medium:
    """The medium of one namespace, and its block format. nbytes is a multiple of block_size.

    metadata: bytes of metadata of each block.
    extended: it is at the end of each block, not in a separate buffer.
    pi: type of protection information, 0 for none; pi_first: in the first bytes of the metadata.
        guard: bits of its guard, 16, 32 or 64.
    """

    kind: str
    nbytes: int
    block_size: int
    path: str = ""
    metadata: int = 0
    extended: bool = False
    pi: int = 0
    pi_first: bool = False
    guard: int = 16

    @property
    def pif(self) -> int:
        """Protection Information Format, as in the Extended LBA Format."""
        return GUARDS.index(self.guard)

    @property
    def dps(self) -> int:
        """End-to-end Data Protection Type Settings, as in Identify Namespace."""
        return self.pi | self.pi_first << 3 if self.pi else 0


@attrs.frozen(kw_only=True)
class EmulatorConfig:
    """An emulated controller.

    Attributes:
        size: bytes of each namespace. The default is an existing file's size, otherwise 1 GiB.
        block: logical block size in bytes, 512 or 4096.
        namespaces: 1 to 16, all identical.
        medium: "ram" (sparse, lost at the end), "file", or "null" (no data is transferred: writes
            are dropped, reads leave memory unchanged).
        path: the file of medium "file", created if necessary; with several namespaces PATH.1,
            PATH.2, ….
        queues: I/O queue pairs, 1 to 64.
        depth: entries of the longest queue (CAP.MQES + 1), 2 to 4096.
        vectors: MSI-X vectors, 1 to 65; by default one for each queue pair and one for the admin
            queue.
        mdts: bytes of the longest transfer, a power of two from 8 KiB to 8 MiB.
        dbbuf: offer Doorbell Buffer Config.
        formats: the LBA formats that Format NVM can choose from, as "512/4096/4096+8/4096+16g64":
            bytes of data, of metadata, bits of the guard if not 16.
        metadata, guard: of the namespaces' initial format, with `block`.
        extended: metadata at the end of each block (on) or in a separate buffer (off).
        pi: protection information of type 1, 2 or 3; 0: none. pi_first: in the first bytes of the
            metadata.
        format_time: seconds that Format NVM takes; it reports progress meanwhile.
        effects: offer the Commands Supported and Effects log page.
        moderation: "none" (each turn that posts completions raises their vector) or "adaptive", as
            SPDK's vfio-user target does: an interrupt only if the host has stopped reaping
            completions, and none for a queue tail at which one was sent already.
        aggregation_threshold, aggregation_time: Interrupt Coalescing (feature 08h) after a reset:
            entries that an interrupt of an I/O queue waits for, 1 to 256, and for how long, in
            microseconds, a multiple of 100 up to 25500. By default it doesn't wait. The host may
            change it by Set Features, and exempt a vector by feature 09h.
        extras: features beyond a plain drive's; their options are listed in Extras.
        vendor_id, device_id, subsystem_vendor_id, subsystem_id: of the PCI function; as an option
            "ids=vvvv:dddd" or "ids=vvvv:dddd:ssss:ssss", hexadecimal.
        serial, model, firmware: of Identify Controller; 20, 40 and 8 ASCII characters at
            most.
        reactor: "shared" (one thread for all such controllers of this process) or "own".
    """

    size: int = attrs.field(default=0, validator=in_range(0, _MAX_SIZE))
    block: int = attrs.field(default=4096, validator=one_of(*BLOCK_SIZES))
    namespaces: int = attrs.field(default=1, validator=in_range(1, MAX_NAMESPACES))
    medium: str = attrs.field(default="ram", validator=one_of(*MEDIA))
    path: str = ""
    queues: int = attrs.field(default=MAX_IO_QUEUES, validator=in_range(1, MAX_IO_QUEUES))
    depth: int = attrs.field(default=1024, validator=in_range(MIN_DEPTH, MAX_DEPTH))
    vectors: int = attrs.field(validator=in_range(1, MAX_VECTORS))
    mdts: int = attrs.field(default=128 << 10, validator=in_range(MIN_MDTS, MAX_MDTS))
    dbbuf: bool = True
    metadata: int = attrs.field(default=0, validator=in_range(0, 128))
    guard: int = attrs.field(default=16, validator=one_of(*GUARDS))
    extended: bool = False
    pi: int = attrs.field(default=0, validator=in_range(0, 3))
    pi_first: bool = False
    formats: tuple[LbaFormat, ...] = attrs.field(converter=tuple)
    format_time: float = 0.0
    effects: bool = True
    moderation: str = attrs.field(default="none", validator=one_of(*MODERATIONS))
    aggregation_threshold: int = attrs.field(default=1, validator=in_range(1, 256))
    aggregation_time: int = attrs.field(default=0, validator=in_range(0, 255 * AGGREGATION_UNIT_US))
    extras: Extras = attrs.field(factory=Extras)
    serial: str = attrs.field(default="NVMEASYNC0001", validator=ascii_text(20))
    model: str = attrs.field(default="nvme_async emulated controller", validator=ascii_text(40))
    firmware: str = attrs.field(default="1", validator=ascii_text(8))
    reactor: str = attrs.field(default="shared", validator=one_of("shared", "own"))
    # Numbers that are unassigned in the PCI ID list, so that no driver applies another device's
    # quirks.
    vendor_id: int = attrs.field(default=0x6E61, validator=in_range(1, 0xFFFE))
    device_id: int = attrs.field(default=1, validator=in_range(0, 0xFFFF))
    subsystem_vendor_id: int = attrs.field(default=0x6E61, validator=in_range(0, 0xFFFF))
    subsystem_id: int = attrs.field(default=1, validator=in_range(0, 0xFFFF))

    @vectors.default
    def _vectors(self) -> int:
        return self.queues + 1

    @formats.default
    def _formats(self) -> tuple[LbaFormat, ...]:
        """512 and 4096 bytes, which every drive has, and the namespaces' initial format."""
        if self.block not in BLOCK_SIZES:
            return ()  # the validator of `block` refuses it
        plain = (LbaFormat(512), LbaFormat(4096))
        first = LbaFormat(self.block, self.metadata, self.guard)
        return plain if first in plain else (*plain, first)

    def __attrs_post_init__(self) -> None:
        if self.extras.zoned and (self.size or _DEFAULT_SIZE) % self.extras.zone_size:
            raise ConfigurationError(f"size={self.size}: must be a multiple of zone_size={self.extras.zone_size}")
        used = self.size * self.namespaces
        if self.extras.capacity and used > self.extras.capacity:
            raise ConfigurationError(f"capacity={self.extras.capacity}: the namespaces take {used} bytes already")
        if self.size % self.block:
            raise ConfigurationError(f"size={self.size}: must be a multiple of block={self.block}")
        first = LbaFormat(self.block, self.metadata, self.guard)
        if not any(first.same_blocks(one) for one in self.formats):
            raise ConfigurationError(
                f"formats={format_names(self.formats)!r} has no {first}, which block= and metadata= require"
            )
        if self.pi and self.metadata < first.pi_bytes:
            raise ConfigurationError(f"pi={self.pi} needs metadata={first.pi_bytes} or more, not {self.metadata}")
        if self.extended and not self.metadata:
            raise ConfigurationError("extended=on needs metadata=")
        if self.mdts & (self.mdts - 1):
            raise ConfigurationError(f"mdts={self.mdts}: must be a power of two from {MIN_MDTS} to {MAX_MDTS}")
        if self.aggregation_time % AGGREGATION_UNIT_US:
            raise ConfigurationError(
                f"aggregation_time={self.aggregation_time}: must be a multiple of {AGGREGATION_UNIT_US} microseconds"
            )
        if self.medium == "file" and not self.path:
            raise ConfigurationError("medium=file needs path=")
        if self.medium != "file" and self.path:
            raise ConfigurationError(f"path={self.path!r} needs medium=file, not {self.medium}")

    @classmethod
    def parse(cls, options: str) -> EmulatorConfig:
        """From "size=1GiB,block=4096,…", the part of a URI after "emulated:".

        Values may be percent-encoded (%2C: a comma). ConfigurationError names the option and its
        valid values.
        """
        return cls.from_options(cls.split(options))

    @staticmethod
    def split(options: str) -> dict[str, str]:
        """Options by name; ConfigurationError for malformed or repeated ones."""
        values: dict[str, str] = {}
        for option in options.split(",") if options else []:
            key, equals, value = option.partition("=")
            if not equals:
                raise ConfigurationError(f"emulated controller: option {option!r} is not of the form key=value")
            if key in values:
                raise ConfigurationError(f"{key} is given twice: {values[key]!r} and {value!r}")
            values[key] = unquote(value)
        return values

    @classmethod
    def from_options(cls, values: dict[str, Any]) -> EmulatorConfig:
        """From options by name, values as text or of their own type. None stands for the
        default.
        """
        arguments: dict[str, Any] = {}
        extras: dict[str, Any] = {}
        for key, value in values.items():
            if key == IDS:
                if value is not None:
                    arguments |= parse_ids(value)
                continue
            if key in EXTRAS:
                if value is not None:
                    extras[key] = EXTRAS[key](value, key)
                continue
            if key not in _PARSERS and key not in _TEXTS:
                known = ", ".join(sorted([*_PARSERS, *_TEXTS, *EXTRAS, IDS]))
                raise ConfigurationError(f"unknown option {key!r} of an emulated controller; known are {known}")
            if value is not None:
                arguments[key] = _PARSERS[key](value, key) if key in _PARSERS else value
        if arguments.get("size") == 0:
            raise ConfigurationError(f"size={values['size']!r}: must be at least one block")
        return cls(**arguments, extras=Extras(**extras))

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
        """The namespaces' media; uses the files' sizes if `size` is not given."""
        if self.medium != "file":
            return [self._medium(self.size or _DEFAULT_SIZE)] * self.namespaces
        return [self._medium(self.size or self._file_size(path), path) for path in self.paths()]

    def _medium(self, nbytes: int, path: str = "") -> Medium:
        return Medium(
            self.medium,
            nbytes,
            self.block,
            path,
            metadata=self.metadata,
            extended=self.extended,
            pi=self.pi,
            pi_first=self.pi_first,
            guard=self.guard,
        )

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
