"""The completion queue entry (Base 3.3.3.2), and the event that an Asynchronous Event Request
reports.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import attrs

from nvme_async.spec.status import StatusCode, status_code, status_text

_CQE = struct.Struct("<IIHHHH")
CQE_SIZE = 16
assert _CQE.size == CQE_SIZE


@attrs.frozen
class Completion:
    """One completion.

    Attributes:
        dw0, dw1: the command-specific result.
        sqhd, sqid: how far the controller has consumed which submission queue.
        cid: the command's identifier.
        status: the 15-bit status field, DW3 bits 31:17 (the phase tag is not part of it).
        phase: the phase tag, DW3 bit 16.
        data: the command's returned data, if the driver collected it; not part of the entry.
    """

    dw0: int = 0
    dw1: int = 0
    sqhd: int = 0
    sqid: int = 0
    cid: int = 0
    status: int = 0
    phase: bool = False
    data: bytes | None = attrs.field(default=None, repr=False)

    @property
    def sc(self) -> int:
        """Status code."""
        return self.status & 0xFF

    @property
    def sct(self) -> int:
        """Status code type."""
        return self.status >> 8 & 0x7

    @property
    def crd(self) -> int:
        """Command retry delay: 0 at once, 1..3 after the time in CRDT1..3 of Identify
        Controller.
        """
        return self.status >> 11 & 0x3

    @property
    def more(self) -> bool:
        """The Error Information log page has more information."""
        return bool(self.status >> 13 & 1)

    @property
    def dnr(self) -> bool:
        """Do not retry: the same command would fail again."""
        return bool(self.status >> 14 & 1)

    @property
    def ok(self) -> bool:
        """Successful completion."""
        return self.status & 0x7FF == 0

    @property
    def result(self) -> int:
        """Dwords 0 and 1 as one 64-bit number (Zone Append's LBA, for example)."""
        return self.dw1 << 32 | self.dw0

    @property
    def code(self) -> StatusCode | None:
        """The status as an enumeration member of `status`, None if it has no name."""
        return status_code(self.sct, self.sc)

    @property
    def text(self) -> str:
        """The status in words."""
        return status_text(self.sct, self.sc)

    def pack(self) -> bytes:
        """The 16 bytes of the completion queue entry."""
        return _CQE.pack(self.dw0, self.dw1, self.sqhd, self.sqid, self.cid, self.status << 1 | self.phase)

    @classmethod
    def unpack(cls, entry: bytes | bytearray | memoryview) -> Completion:
        """From the 16 bytes of an entry."""
        if len(entry) != CQE_SIZE:
            raise ValueError(f"a completion queue entry has {CQE_SIZE} bytes, not {len(entry)}")
        dw0, dw1, sqhd, sqid, cid, status = _CQE.unpack(entry)
        return cls(dw0, dw1, sqhd, sqid, cid, status >> 1, bool(status & 1))


class AsyncEventType(IntEnum):
    """Asynchronous event types (Base 5.2.1)."""

    ERROR = 0
    SMART_HEALTH = 1
    NOTICE = 2
    IMMEDIATE = 3
    COMMAND_SET = 6
    VENDOR = 7


class ErrorEvent(IntEnum):
    """Asynchronous event information of type ERROR."""

    WRITE_TO_INVALID_DOORBELL = 0x00
    INVALID_DOORBELL_VALUE = 0x01
    DIAGNOSTIC_FAILURE = 0x02
    PERSISTENT_INTERNAL_ERROR = 0x03
    TRANSIENT_INTERNAL_ERROR = 0x04
    FIRMWARE_IMAGE_LOAD_ERROR = 0x05


class SmartEvent(IntEnum):
    """Asynchronous event information of type SMART_HEALTH."""

    RELIABILITY = 0x00
    TEMPERATURE_THRESHOLD = 0x01
    SPARE_BELOW_THRESHOLD = 0x02


class NoticeEvent(IntEnum):
    """Asynchronous event information of type NOTICE."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0x00
    FIRMWARE_ACTIVATION_STARTING = 0x01
    TELEMETRY_LOG_CHANGED = 0x02
    ASYMMETRIC_NAMESPACE_ACCESS_CHANGE = 0x03
    PREDICTABLE_LATENCY_EVENT_AGGREGATE_CHANGE = 0x04
    LBA_STATUS_INFORMATION_ALERT = 0x05
    ENDURANCE_GROUP_EVENT_AGGREGATE_CHANGE = 0x06
    ZONE_DESCRIPTOR_CHANGED = 0xEF
    DISCOVERY_LOG_CHANGED = 0xF0


class ImmediateEvent(IntEnum):
    """Asynchronous event information of type IMMEDIATE."""

    NORMAL_NVM_SUBSYSTEM_SHUTDOWN = 0x00


class CommandSetEvent(IntEnum):
    """Asynchronous event information of type COMMAND_SET."""

    RESERVATION_LOG_AVAILABLE = 0x00
    SANITIZE_COMPLETED = 0x01
    SANITIZE_COMPLETED_WITH_UNEXPECTED_DEALLOCATION = 0x02


_INFORMATION: dict[int, type[IntEnum]] = {
    AsyncEventType.ERROR: ErrorEvent,
    AsyncEventType.SMART_HEALTH: SmartEvent,
    AsyncEventType.NOTICE: NoticeEvent,
    AsyncEventType.IMMEDIATE: ImmediateEvent,
    AsyncEventType.COMMAND_SET: CommandSetEvent,
}


@attrs.frozen
class AsyncEvent:
    """The result of an Asynchronous Event Request (Base 5.2.1).

    Attributes:
        type, info: asynchronous event type and information, numbers as they came.
        lid: the log page to read, which also clears the event (unless read with RAE).
        parameter: event specific parameter, completion dword 1 (an endurance group's identifier,
            for
        example).
    """

    type: int
    info: int
    lid: int
    parameter: int = 0

    @classmethod
    def from_dw0(cls, dw0: int, dw1: int = 0) -> AsyncEvent:
        """From a completion's dwords."""
        return cls(type=dw0 & 0x7, info=dw0 >> 8 & 0xFF, lid=dw0 >> 16 & 0xFF, parameter=dw1)

    def to_dw0(self) -> int:
        """Completion dword 0."""
        return self.type | self.info << 8 | self.lid << 16

    @property
    def name(self) -> str:
        """The event in words; numbers if it is reserved or vendor specific."""
        information = _INFORMATION.get(self.type)
        if information is not None and self.info in information._value2member_map_:
            return information(self.info).name.lower().replace("_", " ")
        return f"asynchronous event type {self.type:#x} information {self.info:#04x}"
