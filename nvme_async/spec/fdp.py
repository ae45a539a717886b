"""Flexible Data Placement (Base 2.1, 8.1.10): log pages, feature values, status of reclaim unit
handles.

A placement identifier names a reclaim group and one of the namespace's placement handles, each of
which refers to a reclaim unit handle of the endurance group:

    20h decode_configurations   22h FdpStatistics   I/O Management Receive  RuhStatus
    21h RuhUsage                23h FdpEvents       feature 1Dh             FdpMode
                                                    feature 1Eh             SupportedFdpEvent
"""

from __future__ import annotations

from enum import IntEnum
from typing import Self

import attrs

from nvme_async.spec._bits import BitFields, bit, bits
from nvme_async.spec._layout import Buffer, Layout, raw, uint


class RuhType(IntEnum):
    """How a reclaim unit handle keeps data apart (Base 2.1, 8.1.10.1)."""

    INITIALLY_ISOLATED = 1
    """Garbage collection may mix its data with those of other initially isolated handles."""
    PERSISTENTLY_ISOLATED = 2
    """Its data are never mixed with others."""


@attrs.frozen(kw_only=True)
class FdpConfiguration:
    """FDP configuration descriptor (log page 20h; Base 2.1, 5.1.12.1.29).

    Attributes:
        fdpa: attributes. vss: bytes of vendor specific data.
        nrg: reclaim groups. nruh: reclaim unit handles.
        maxpids: the largest number of placement identifiers, zero-based. nnss: namespaces, 0 for no
            limit.
        runs: nominal size of a reclaim unit, in bytes. erutl: estimated reclaim unit time limit, in
            seconds, 0 for none.
        ruh_types: the type of each reclaim unit handle, see RuhType.
    """

    fdpa: int = 0
    vss: int = 0
    nrg: int = 0
    nruh: int = 0
    maxpids: int = 0
    nnss: int = 0
    runs: int = 0
    erutl: int = 0
    ruh_types: tuple[int, ...] = ()

    @property
    def valid(self) -> bool:
        """The configuration can be chosen."""
        return bool(self.fdpa & 0x80)

    @property
    def group_bits(self) -> int:
        """Most significant bits of a placement identifier that are the reclaim group (RGIF)."""
        return self.fdpa & 0xF

    @property
    def uses_volatile_cache(self) -> bool:
        """The volatile write cache is used for writes with placement."""
        return bool(self.fdpa & 0x10)

    def placement(self, handle: int, group: int = 0) -> int:
        """The placement identifier of a placement handle and a reclaim group."""
        if not 0 <= group < max(1, self.nrg):
            raise ValueError(f"reclaim group {group} is not in 0..{max(1, self.nrg) - 1}")
        low = 16 - self.group_bits
        if not 0 <= handle < 1 << low:
            raise ValueError(f"placement handle {handle} is not in 0..{(1 << low) - 1}")
        return group << low | handle


_CONFIGURATION = 64
_HEADER = 16


def _configuration(entry: bytes) -> FdpConfiguration:
    nruh = int.from_bytes(entry[8:10], "little")
    room = max(0, (len(entry) - _CONFIGURATION) // 4)
    return FdpConfiguration(
        fdpa=entry[2],
        vss=entry[3],
        nrg=int.from_bytes(entry[4:8], "little"),
        nruh=nruh,
        maxpids=int.from_bytes(entry[10:12], "little"),
        nnss=int.from_bytes(entry[12:16], "little"),
        runs=int.from_bytes(entry[16:24], "little"),
        erutl=int.from_bytes(entry[24:28], "little"),
        ruh_types=tuple(entry[_CONFIGURATION + 4 * index] for index in range(min(nruh, room))),
    )


def decode_configurations(data: Buffer) -> tuple[FdpConfiguration, ...]:
    """The FDP Configurations log page (20h), as far as `data` has it whole. ValueError for less
    than its header of 16 bytes.
    """
    page = bytes(data)
    if len(page) < _HEADER:
        raise ValueError(f"the FDP configurations need {_HEADER} bytes at least, not {len(page)}")
    count = int.from_bytes(page[:2], "little") + 1
    found: list[FdpConfiguration] = []
    at = _HEADER
    while len(found) < count and at + _CONFIGURATION <= len(page):
        size = int.from_bytes(page[at : at + 2], "little")
        if size < _CONFIGURATION or at + size > len(page):
            break
        found.append(_configuration(page[at : at + size]))
        at += size
    return tuple(found)


def configurations_size(data: Buffer) -> int:
    """Bytes of the FDP Configurations log page, from its header of 16 bytes."""
    page = bytes(data[:_HEADER])
    if len(page) < _HEADER:
        raise ValueError(f"the FDP configurations need {_HEADER} bytes at least, not {len(page)}")
    return int.from_bytes(page[4:8], "little")


class RuhAttribute(IntEnum):
    """Who uses a reclaim unit handle (log page 21h)."""

    UNUSED = 0
    HOST = 1
    CONTROLLER = 2


@attrs.frozen
class RuhUsage:
    """Reclaim unit handle usage (log page 21h; Base 2.1, 5.1.12.1.30).

    Attributes:
        attributes: of each handle, see RuhAttribute.
    """

    attributes: tuple[int, ...]

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """As far as `data` has it. ValueError for less than 8 bytes."""
        page = bytes(data)
        if len(page) < 8:
            raise ValueError(f"the reclaim unit handle usage needs 8 bytes at least, not {len(page)}")
        count = min(int.from_bytes(page[:2], "little"), (len(page) - 8) // 8)
        return cls(tuple(page[8 + 8 * index] & 3 for index in range(count)))


@attrs.frozen
class FdpStatistics(Layout, size=64):
    """FDP statistics of an endurance group (log page 22h; Base 2.1, 5.1.12.1.31), in bytes."""

    hbmw: int = uint(0, 16)
    """Written by hosts, with metadata."""
    mbmw: int = uint(16, 16)
    """Written to media: mbmw / hbmw is the write amplification."""
    mbe: int = uint(32, 16)
    """Media bytes erased."""

    @property
    def write_amplification(self) -> float | None:
        """Media bytes per byte of the host; None before the first write."""
        return self.mbmw / self.hbmw if self.hbmw else None


class FdpEventType(IntEnum):
    """FDP events (Base 2.1, 5.1.12.1.32): below 80h caused by hosts, the others by the
    controller.
    """

    NOT_FULLY_WRITTEN = 0x00
    TIME_LIMIT_EXCEEDED = 0x01
    RESET_MODIFIED_HANDLES = 0x02
    INVALID_PLACEMENT_IDENTIFIER = 0x03
    MEDIA_REALLOCATED = 0x80
    HANDLE_IMPLICITLY_MODIFIED = 0x81


@attrs.frozen
class FdpEvent(Layout, size=64):
    """FDP event (log page 23h; Base 2.1, 5.1.12.1.32)."""

    type: int = uint(0, 1)
    """See FdpEventType."""
    flags: int = uint(1, 1)
    """Valid fields: bit 0 pid, bit 1 nsid, bit 2 rgid and ruhid."""
    pid: int = uint(2, 2)
    timestamp: int = uint(4, 8)
    """Milliseconds in the lower 48 bits, see features.Timestamp."""
    nsid: int = uint(12, 4)
    type_specific: bytes = raw(16, 16)
    rgid: int = uint(32, 2)
    ruhid: int = uint(34, 1)
    vs: bytes = raw(40, 24)

    @property
    def placement(self) -> int | None:
        """The placement identifier, if the event has one."""
        return self.pid if self.flags & 1 else None

    @property
    def namespace(self) -> int | None:
        """The namespace, if the event has one."""
        return self.nsid if self.flags & 2 else None

    @property
    def handle(self) -> int | None:
        """The reclaim unit handle, if the event has one."""
        return self.ruhid if self.flags & 4 else None

    @property
    def reallocated_blocks(self) -> int | None:
        """Of MEDIA_REALLOCATED: how many logical blocks were moved."""
        if self.type != FdpEventType.MEDIA_REALLOCATED:
            return None
        return int.from_bytes(self.type_specific[2:4], "little")

    @property
    def reallocated_lba(self) -> int | None:
        """Of MEDIA_REALLOCATED: one of the moved blocks, if the controller names one."""
        if self.type != FdpEventType.MEDIA_REALLOCATED or not self.type_specific[0] & 1:
            return None
        return int.from_bytes(self.type_specific[4:12], "little")


@attrs.frozen
class FdpEvents:
    """FDP events of an endurance group (log page 23h). Log specific field bit 0 chooses those of
    hosts; otherwise they are the controller's.
    """

    events: tuple[FdpEvent, ...]

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """As far as `data` has it, at most 63 events. ValueError for less than 64 bytes."""
        page = bytes(data)
        if len(page) < 64:
            raise ValueError(f"the FDP events need 64 bytes at least, not {len(page)}")
        count = min(int.from_bytes(page[:4], "little"), (len(page) - 64) // 64, 63)
        return cls(tuple(FdpEvent.decode(page[at : at + 64]) for at in range(64, 64 * (count + 1), 64)))


@attrs.frozen
class FdpMode(BitFields, width=32):
    """Feature 1Dh, completion dword 0 (Base 2.1, 5.1.25.1.20)."""

    fdpe: bool = bit(0)
    """Flexible Data Placement is enabled."""
    fdpcidx: int = bits(15, 8)
    """Index of the configuration."""


@attrs.frozen
class SupportedFdpEvent(Layout, size=2):
    """Supported FDP event descriptor (feature 1Eh; Base 2.1, 5.1.25.1.21)."""

    evt: int = uint(0, 1)
    """See FdpEventType."""
    evta: int = uint(1, 1)
    """Bit 0: enabled."""

    @property
    def enabled(self) -> bool:
        """It is logged."""
        return bool(self.evta & 1)


def decode_supported_events(data: Buffer, count: int) -> tuple[SupportedFdpEvent, ...]:
    """What Get Features 1Eh returned, `count` from completion dword 0."""
    page = bytes(data)
    most = min(count, len(page) // 2)
    return tuple(SupportedFdpEvent.decode(page[at : at + 2]) for at in range(0, 2 * most, 2))


@attrs.frozen
class RuhStatusDescriptor(Layout, size=32):
    """Status of one placement identifier's reclaim unit (Base 2.1, 7.3.1.1)."""

    pid: int = uint(0, 2)
    ruhid: int = uint(2, 2)
    earutr: int = uint(4, 4)
    """Estimated time until the reclaim unit is replaced, in seconds; 0 if not reported."""
    ruamw: int = uint(8, 8)
    """Logical blocks that can be written to the reclaim unit."""


@attrs.frozen
class RuhStatus:
    """Reclaim unit handle status of a namespace (I/O Management Receive; Base 2.1, 7.3.1.1).

    Attributes:
        nruhsd: descriptors that there are; `descriptors` may be fewer.
    """

    nruhsd: int
    descriptors: tuple[RuhStatusDescriptor, ...]

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """As far as `data` has it. ValueError for less than 16 bytes."""
        page = bytes(data)
        if len(page) < _HEADER:
            raise ValueError(f"the reclaim unit handle status needs {_HEADER} bytes at least, not {len(page)}")
        nruhsd = int.from_bytes(page[14:16], "little")
        count = min(nruhsd, (len(page) - _HEADER) // 32)
        places = range(_HEADER, _HEADER + 32 * count, 32)
        return cls(nruhsd, tuple(RuhStatusDescriptor.decode(page[at : at + 32]) for at in places))
