"""Feature values (Base 5.27.1, NVM 4.1.3), typed.

A 32-bit class is both command dword 11 of Set Features and completion dword 0 of Get Features (or
one of these where a docstring says so):

    NumberOfQueues.of(8, 8).to_int()            → cdw11
    NumberOfQueues.from_int(completion.dw0)

Layouts are the data structures that go with the feature.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Iterable
from enum import IntEnum

import attrs

from nvme_async.spec._bits import BitFields, bit, bits
from nvme_async.spec._layout import Buffer, Layout, uint

_KELVIN = 273


@attrs.frozen
class FeatureCapabilities(BitFields, width=32):
    """Completion dword 0 of Get Features with SEL 3 (Base 5.15)."""

    saveable: bool = bit(0)
    namespace_specific: bool = bit(1)
    changeable: bool = bit(2)


@attrs.frozen
class Arbitration(BitFields, width=32):
    """Feature 01h (Base 5.27.1.1). Weights are zero-based."""

    ab: int = bits(2, 0)
    """Arbitration burst: 2 ** ab commands, 7 for no limit."""
    lpw: int = bits(15, 8)
    mpw: int = bits(23, 16)
    hpw: int = bits(31, 24)


@attrs.frozen
class PowerManagement(BitFields, width=32):
    """Feature 02h (Base 5.27.1.2)."""

    ps: int = bits(4, 0)
    """Power state."""
    wh: int = bits(7, 5)
    """Workload hint."""


@attrs.frozen
class TemperatureThreshold(BitFields, width=32):
    """Feature 04h (Base 5.27.1.3)."""

    tmpth: int = bits(15, 0)
    """Threshold in kelvins."""
    tmpsel: int = bits(19, 16)
    """0 composite, 1..8 a sensor, 15 all (to set only)."""
    thsel: int = bits(21, 20)
    """0 over, 1 under."""

    @property
    def celsius(self) -> int:
        """The threshold."""
        return self.tmpth - _KELVIN


@attrs.frozen
class ErrorRecovery(BitFields, width=32):
    """Feature 05h (NVM 4.1.3)."""

    tler: int = bits(15, 0)
    """Time limited error recovery in units of 100 ms, 0 for no limit."""
    dulbe: bool = bit(16)
    """Reads of deallocated or unwritten blocks fail."""


@attrs.frozen
class VolatileWriteCache(BitFields, width=32):
    """Feature 06h (Base 5.27.1.4)."""

    wce: bool = bit(0)
    """Enabled."""


@attrs.frozen
class NumberOfQueues(BitFields, width=32):
    """Feature 07h (Base 5.27.1.5): the requested numbers, and in the completion the allocated
    ones.

    Zero-based.
    """

    nsq: int = bits(15, 0)
    """Number of I/O submission queues: NSQR or NSQA."""
    ncq: int = bits(31, 16)
    """Number of I/O completion queues: NCQR or NCQA."""

    @classmethod
    def of(cls, submission_queues: int, completion_queues: int) -> NumberOfQueues:
        """A request for so many of each, 1..65535."""
        for count in (submission_queues, completion_queues):
            if not 1 <= count <= 65535:
                raise ValueError(f"{count} I/O queues are not in 1..65535")
        return cls(nsq=submission_queues - 1, ncq=completion_queues - 1)

    @property
    def submission_queues(self) -> int:
        """How many, not zero-based."""
        return self.nsq + 1

    @property
    def completion_queues(self) -> int:
        """How many, not zero-based."""
        return self.ncq + 1


@attrs.frozen
class InterruptCoalescing(BitFields, width=32):
    """Feature 08h (Base 5.27.1.6)."""

    thr: int = bits(7, 0)
    """Aggregation threshold in completions, zero-based."""
    time: int = bits(15, 8)
    """Aggregation time in units of 100 µs, 0 for none."""

    @property
    def microseconds(self) -> int:
        """Aggregation time."""
        return self.time * 100


@attrs.frozen
class InterruptVectorConfiguration(BitFields, width=32):
    """Feature 09h (Base 5.27.1.7)."""

    iv: int = bits(15, 0)
    cd: bool = bit(16)
    """No coalescing for this vector."""


@attrs.frozen
class WriteAtomicity(BitFields, width=32):
    """Feature 0Ah (NVM 4.1.3)."""

    dn: bool = bit(0)
    """AWUN and NAWUN need not be honoured, AWUPF and NAWUPF only."""


@attrs.frozen
class AsyncEventConfiguration(BitFields, width=32):
    """Feature 0Bh (Base 5.27.1.8): which asynchronous events are sent."""

    smart: int = bits(7, 0)
    """Critical warnings, as in SmartHealth."""
    nan: bool = bit(8)
    """Namespace attribute notices."""
    fan: bool = bit(9)
    """Firmware activation notices."""
    tln: bool = bit(10)
    """Telemetry log notices."""
    ana: bool = bit(11)
    """Asymmetric namespace access change notices."""
    plea: bool = bit(12)
    """Predictable latency event aggregate log change notices."""
    lbas: bool = bit(13)
    """LBA status information notices."""
    ege: bool = bit(14)
    """Endurance group event aggregate log change notices."""
    nnss: bool = bit(15)
    """Normal NVM subsystem shutdown notices."""
    zdc: bool = bit(27)
    """Zone descriptor changed notices."""
    dlc: bool = bit(31)
    """Discovery log change notices."""


@attrs.frozen
class AutonomousPowerStateTransition(BitFields, width=32):
    """Feature 0Ch (Base 5.27.1.9); the data structure is `power_state_transitions`."""

    apste: bool = bit(0)
    """Enabled."""


@attrs.frozen
class PowerStateTransition(BitFields, width=64):
    """One entry of the autonomous power state transition data structure (Base 5.27.1.9)."""

    itps: int = bits(7, 3)
    """Power state to go to."""
    itpt: int = bits(31, 8)
    """After so many idle milliseconds; 0: not at all."""


def power_state_transitions(entries: Iterable[PowerStateTransition]) -> bytes:
    """256 bytes: one entry per power state from 0 on, at most 32."""
    values = [entry.to_int() for entry in entries]
    if len(values) > 32:
        raise ValueError(f"{len(values)} power states; the limit is 32")
    return struct.pack(f"<{len(values)}Q", *values).ljust(256, b"\0")


def decode_power_state_transitions(data: Buffer) -> tuple[PowerStateTransition, ...]:
    """The 32 entries. Raises ValueError for less than 256 bytes."""
    if len(data) < 256:
        raise ValueError(f"the power state transitions need 256 bytes, not {len(data)}")
    return tuple(PowerStateTransition.from_int(value) for value in struct.unpack_from("<32Q", bytes(data)))


@attrs.frozen
class HostMemoryBuffer(BitFields, width=32):
    """Feature 0Dh, command dword 11 (Base 5.27.1.10).

    Dwords 12 to 15: size, list address (two), list entries.
    """

    ehm: bool = bit(0)
    """Enable."""
    mr: bool = bit(1)
    """Memory return: the buffer is as it was when it was last disabled."""


@attrs.frozen
class HostMemoryDescriptor(Layout, size=16):
    """Host memory buffer descriptor entry (Base 5.27.1.10)."""

    badd: int = uint(0, 8)
    """Address of a part of the buffer, memory page aligned."""
    bsize: int = uint(8, 4)
    """Memory pages (CC.MPS)."""


@attrs.frozen
class HostMemoryBufferAttributes(Layout, size=4096):
    """What Get Features 0Dh returns (Base 5.27.1.10). Sizes in memory pages."""

    hsize: int = uint(0, 4)
    hmdlal: int = uint(4, 4)
    hmdlau: int = uint(8, 4)
    hmdlec: int = uint(12, 4)


class TimestampOrigin(IntEnum):
    """Since when a timestamp counts (Base 5.27.1.11)."""

    CONTROLLER_RESET = 0
    SET_FEATURES = 1


@attrs.frozen
class Timestamp(Layout, size=8):
    """Feature 0Eh, the data structure (Base 5.27.1.11)."""

    timestamp: int = uint(0, 6)
    """Milliseconds since 1970-01-01 UTC if the host has set it, else since a reset."""
    attributes: int = uint(6, 1)
    """Bit 0: the clock may have stood still. Bits 3:1: origin. Zero when set."""

    @property
    def origin(self) -> TimestampOrigin:
        """Since when it counts. Raises ValueError for reserved values."""
        return TimestampOrigin(self.attributes >> 1 & 7)

    @classmethod
    def of(cls, time: datetime.datetime) -> Timestamp:
        """For Set Features. `time` must be timezone-aware."""
        if time.tzinfo is None:
            raise ValueError(f"{time} has no time zone")
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return cls(timestamp=(time - epoch) // datetime.timedelta(milliseconds=1))

    @property
    def time(self) -> datetime.datetime:
        """The time in UTC; only correct with origin SET_FEATURES."""
        return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=self.timestamp)


@attrs.frozen
class KeepAliveTimer(BitFields, width=32):
    """Feature 0Fh (Base 5.27.1.12)."""

    kato: int = bits(31, 0)
    """Milliseconds, rounded up by the controller to its granularity; 0 for no timer."""


@attrs.frozen
class ThermalManagement(BitFields, width=32):
    """Feature 10h, host controlled thermal management (Base 5.27.1.13). Kelvins, 0 for none."""

    tmt2: int = bits(15, 0)
    tmt1: int = bits(31, 16)


@attrs.frozen
class NonOperationalPowerState(BitFields, width=32):
    """Feature 11h (Base 5.27.1.14)."""

    noppme: bool = bit(0)
    """Background work may exceed the power of a non-operational state."""


@attrs.frozen
class ReadRecoveryLevel(BitFields, width=32):
    """Feature 12h, command dword 12 (Base 5.27.1.15); command dword 11 is the NVM set's
    identifier.
    """

    rrl: int = bits(3, 0)


@attrs.frozen
class LbaStatusInterval(BitFields, width=32):
    """Feature 15h (NVM 4.1.3), in units of 100 ms."""

    lsiri: int = bits(15, 0)
    lsipi: int = bits(31, 16)


@attrs.frozen
class HostBehavior(Layout, size=512):
    """Feature 16h, the data structure (Base 5.27.1.18). Each is 0 or 1."""

    acre: int = uint(0, 1)
    """Advanced command retry: the host honours a completion's command retry delay."""
    etdas: int = uint(1, 1)
    """Extended telemetry data area 4 supported."""
    lbafee: int = uint(2, 1)
    """LBA format extension enable: formats with extended protection information can be used."""
    hdisns: int = uint(3, 1)
    """Host dispersed namespace support."""
    cdfe: int = uint(4, 2)
    """Copy descriptor formats enable: bit 2 format 2, bit 3 format 3."""


@attrs.frozen
class SanitizeConfiguration(BitFields, width=32):
    """Feature 17h (Base 5.27.1.19)."""

    nodrm: bool = bit(0)
    """No-deallocate with NODAS unsupported: a warning instead of an error."""


@attrs.frozen
class EnduranceGroupEvents(BitFields, width=32):
    """Feature 18h (Base 5.27.1.20)."""

    endgid: int = bits(15, 0)
    egcw: int = bits(23, 16)
    """Critical warnings that cause an event."""


@attrs.frozen
class CommandSetProfile(BitFields, width=32):
    """Feature 19h (Base 5.27.1.21)."""

    iocsci: int = bits(8, 0)
    """Index into the combinations of `identify.CommandSets`."""


@attrs.frozen
class SoftwareProgressMarker(BitFields, width=32):
    """Feature 80h (Base 5.27.1)."""

    pbslc: int = bits(7, 0)
    """Pre-boot software load count."""


@attrs.frozen
class ReservationNotificationMask(BitFields, width=32):
    """Feature 82h (Base 5.27.1). True: not notified."""

    regpre: bool = bit(1)
    resrel: bool = bit(2)
    respre: bool = bit(3)


@attrs.frozen
class ReservationPersistence(BitFields, width=32):
    """Feature 83h (Base 5.27.1)."""

    ptpl: bool = bit(0)
    """Reservations and registrations persist through power loss."""


class WriteProtection(IntEnum):
    """States of namespace write protection (Base 5.27.1)."""

    NONE = 0
    PROTECTED = 1
    UNTIL_POWER_CYCLE = 2
    PERMANENT = 3


@attrs.frozen
class NamespaceWriteProtection(BitFields, width=32):
    """Feature 84h (Base 5.27.1)."""

    wps: int = bits(2, 0)

    @property
    def state(self) -> WriteProtection:
        """Raises ValueError for reserved states."""
        return WriteProtection(self.wps)
