"""Zoned namespaces: identify data, zone descriptors and reports, the changed zone list (ZNS
1.1).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import attrs

from nvme_async.spec._identify_controller import IdentifyControllerZns
from nvme_async.spec._layout import Buffer, Layout, raw, structs, uint

__all__ = [
    "ChangedZones",
    "IdentifyControllerZns",
    "IdentifyNamespaceZns",
    "ZnsLbaFormat",
    "ZoneAttribute",
    "ZoneDescriptor",
    "ZoneReport",
    "ZoneState",
]


class ZoneState(IntEnum):
    """Zone states (ZNS 2.1.1)."""

    EMPTY = 0x1
    IMPLICITLY_OPENED = 0x2
    EXPLICITLY_OPENED = 0x3
    CLOSED = 0x4
    READ_ONLY = 0xD
    FULL = 0xE
    OFFLINE = 0xF


class ZoneAttribute(IntFlag):
    """Zone attributes (ZNS 3.4.2.2)."""

    FINISHED_BY_CONTROLLER = 1 << 0
    FINISH_RECOMMENDED = 1 << 1
    RESET_RECOMMENDED = 1 << 2
    RANDOM_WRITE_AREA_VALID = 1 << 3
    DESCRIPTOR_EXTENSION_VALID = 1 << 7


@attrs.frozen
class ZnsLbaFormat(Layout, size=16):
    """LBA format extension (ZNS 4.1.5.1)."""

    zsze: int = uint(0, 8)
    """Zone size in logical blocks."""
    zdes: int = uint(8, 1)
    """Zone descriptor extension size in units of 64 bytes, 0 for none."""


@attrs.frozen
class IdentifyNamespaceZns(Layout, size=4096):
    """Identify Namespace of the zoned namespace command set (CNS 05h, CSI 02h; ZNS 4.1.5.1)."""

    zoc: int = uint(0, 2)
    ozcs: int = uint(2, 2)
    mar: int = uint(4, 4)
    mor: int = uint(8, 4)
    rrl: int = uint(12, 4)
    frl: int = uint(16, 4)
    rrl1: int = uint(20, 4)
    rrl2: int = uint(24, 4)
    rrl3: int = uint(28, 4)
    frl1: int = uint(32, 4)
    frl2: int = uint(36, 4)
    frl3: int = uint(40, 4)
    numzrwa: int = uint(44, 4)
    zrwafg: int = uint(48, 2)
    zrwasz: int = uint(50, 2)
    zrwacap: int = uint(52, 1)
    lbafe: tuple[ZnsLbaFormat, ...] = structs(2816, ZnsLbaFormat, 64)
    vs: bytes = raw(3840, 256)

    def zone_size(self, lbaf_index: int) -> int:
        """Logical blocks from one zone's start to the next. `lbaf_index`: of Identify Namespace."""
        return self.lbafe[lbaf_index].zsze

    @property
    def max_active_zones(self) -> int | None:
        """None for no limit."""
        return None if self.mar == 0xFFFF_FFFF else self.mar + 1

    @property
    def max_open_zones(self) -> int | None:
        """None for no limit."""
        return None if self.mor == 0xFFFF_FFFF else self.mor + 1

    @property
    def read_across_zones(self) -> bool:
        """A read may cross a zone's end."""
        return bool(self.ozcs & 1)


@attrs.frozen
class ZoneDescriptor(Layout, size=64):
    """Zone descriptor (ZNS 3.4.2.2). Sizes and addresses in logical blocks."""

    zt: int = uint(0, 1)
    """Zone type, 2: sequential write required."""
    zs: int = uint(1, 1)
    """Zone state in bits 7:4."""
    za: int = uint(2, 1)
    """Zone attributes, see ZoneAttribute."""
    zai: int = uint(3, 1)
    """Which of the recommended limits applies: reset in bits 3:2, finish in bits 1:0."""
    zcap: int = uint(8, 8)
    """Blocks of the zone that can be written; the rest up to the zone size are not there."""
    zslba: int = uint(16, 8)
    wp: int = uint(24, 8)
    """Write pointer; of no meaning in a zone that is full, read only or offline."""

    @property
    def state(self) -> ZoneState:
        """Zone state. Raises ValueError for reserved states."""
        return ZoneState(self.zs >> 4)

    @property
    def attributes(self) -> ZoneAttribute:
        """Zone attributes."""
        return ZoneAttribute(self.za)


@attrs.frozen
class ZoneReport:
    """A zone report, with or without zone descriptor extensions (ZNS 3.4.2.2).

    Attributes:
        nzones: zones that match, or with `partial` those that the buffer has room for.
        zones: descriptors in the buffer.
        extensions: for an extended report, each zone's descriptor extension; else empty.
    """

    nzones: int
    zones: tuple[ZoneDescriptor, ...]
    extensions: tuple[bytes, ...] = ()

    @classmethod
    def decode(cls, data: Buffer, extension_size: int = 0) -> ZoneReport:
        """From the buffer of Zone Management Receive.

        extension_size: bytes (ZDES * 64) in an extended report.
        """
        if len(data) < 64:
            raise ValueError(f"a zone report needs 64 bytes, not {len(data)}")
        page = bytes(data)
        nzones = int.from_bytes(page[:8], "little")
        step = ZoneDescriptor.SIZE + extension_size
        starts = [64 + step * index for index in range(min(nzones, (len(page) - 64) // step))]
        return cls(
            nzones=nzones,
            zones=tuple(ZoneDescriptor.decode(page[at : at + 64]) for at in starts),
            extensions=tuple(page[at + 64 : at + step] for at in starts) if extension_size else (),
        )


@attrs.frozen
class ChangedZones:
    """Changed zone list log page (LID BFh, ZNS 4.1).

    Attributes:
        zslbas: where the changed zones start; None if there are more than the page can name (511).
    """

    zslbas: tuple[int, ...] | None

    @classmethod
    def decode(cls, data: Buffer) -> ChangedZones:
        """From 4096 bytes."""
        page = bytes(data)
        count = int.from_bytes(page[:2], "little")
        if count == 0xFFFF:
            return cls(None)
        count = min(count, (len(page) - 8) // 8)
        return cls(tuple(int.from_bytes(page[at : at + 8], "little") for at in range(8, 8 + 8 * count, 8)))
