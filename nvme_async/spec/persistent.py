"""The Persistent Event log page (LID 0Dh; Base 2.1, 5.1.12.1.14) and its events."""

from __future__ import annotations

import struct
from enum import IntEnum

import attrs

from nvme_async.spec._layout import Buffer, Layout, raw, text, uint

_EVENT_HEADER = 24


class PersistentEventType(IntEnum):
    """Event types."""

    SMART_SNAPSHOT = 0x01
    FIRMWARE_COMMIT = 0x02
    TIMESTAMP_CHANGE = 0x03
    POWER_ON_OR_RESET = 0x04
    NVM_SUBSYSTEM_HARDWARE_ERROR = 0x05
    CHANGE_NAMESPACE = 0x06
    FORMAT_START = 0x07
    FORMAT_COMPLETION = 0x08
    SANITIZE_START = 0x09
    SANITIZE_COMPLETION = 0x0A
    SET_FEATURE = 0x0B
    TELEMETRY_CREATED = 0x0C
    THERMAL_EXCURSION = 0x0D
    SANITIZE_MEDIA_VERIFICATION = 0x0E
    VENDOR_SPECIFIC = 0xDE
    TCG = 0xDF


@attrs.frozen
class PersistentEventHeader(Layout, size=512):
    """Header of the page."""

    lid: int = uint(0, 1)
    tnev: int = uint(4, 4)
    """Events in the page."""
    tll: int = uint(8, 8)
    """Bytes of the page."""
    rv: int = uint(16, 1)
    lhl: int = uint(18, 2)
    """Bytes of the header beyond the first 20."""
    ts: int = uint(20, 8)
    poh: int = uint(28, 16)
    pcc: int = uint(44, 8)
    vid: int = uint(52, 2)
    ssvid: int = uint(54, 2)
    sn: str = text(56, 20)
    mn: str = text(76, 40)
    subnqn: str = text(116, 256, pad="\0")
    gen_number: int = uint(372, 2)
    rci: int = uint(374, 4)
    seb: bytes = raw(480, 32)
    """Supported events bitmap."""

    @property
    def supported(self) -> frozenset[int]:
        """Types of the events that the controller records."""
        bitmap = int.from_bytes(self.seb, "little")
        return frozenset(number for number in range(256) if bitmap >> number & 1)


@attrs.frozen
class PersistentEvent:
    """One event.

    Attributes:
        type: see PersistentEventType; others are kept as numbers.
        revision: of the event's data.
        cntlid: the controller that recorded it.
        timestamp: milliseconds, as of feature 0Eh, when it did.
        vendor: vendor specific information.
        data: the event's data, which depend on the type.
        header_length, additional: EHL (without its first three bytes) and EHAI.
        port: the port that the event belongs to, with bits 1:0 of `additional`.
    """

    type: int
    revision: int
    cntlid: int
    timestamp: int
    vendor: bytes
    data: bytes
    header_length: int = 21
    additional: int = 0
    port: int = 0

    @property
    def name(self) -> str:
        """The event's name in words."""
        if self.type in PersistentEventType._value2member_map_:
            return PersistentEventType(self.type).name.replace("_", " ").capitalize()
        return f"event {self.type:#04x}"


@attrs.frozen
class PersistentEventLog:
    """The whole page: header, and the events, the latest first."""

    header: PersistentEventHeader
    events: tuple[PersistentEvent, ...]

    @staticmethod
    def length(head: Buffer) -> int:
        """Bytes of the page, from its first 512. ValueError for what is no such page."""
        header = PersistentEventHeader.decode(bytes(head)[:512])
        if header.lid != 0x0D or header.tll < 512:
            raise ValueError(f"not a persistent event log page: identifier {header.lid:#04x}, length {header.tll}")
        return header.tll

    @classmethod
    def decode(cls, data: Buffer, *, whole: bool = True) -> PersistentEventLog:
        """ValueError if the page is cut off; without `whole` the events that are complete."""
        page = bytes(data)
        header = PersistentEventHeader.decode(page[:512])
        at = 20 + header.lhl if header.lhl else 512
        events = []
        for index in range(header.tnev):
            if at + _EVENT_HEADER > len(page):
                if not whole:
                    break
                raise ValueError(f"event {index} of {header.tnev} extends beyond the page's {len(page)} bytes")
            kind, revision, ehl, ehai, cntlid, timestamp, port = struct.unpack_from("<BBBBHQH", page, at)
            vsil, length = struct.unpack_from("<HH", page, at + 20)
            begin = at + 3 + ehl
            if vsil > length or begin + length > len(page):
                if not whole:
                    break
                raise ValueError(f"event {index} of {header.tnev} extends beyond the page's {len(page)} bytes")
            body = page[begin : begin + length]
            vendor, rest = body[:vsil], body[vsil:]
            events.append(PersistentEvent(kind, revision, cntlid, timestamp, vendor, rest, ehl, ehai, port))
            at = begin + length
        return cls(header, tuple(events))
