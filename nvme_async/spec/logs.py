"""Log pages (Base 5.16.1, NVM 4.1.4), decoded from the buffer of Get Log Page.

00h SupportedLogPages           06h     SelfTestLog         12h SupportedFeatures
01h decode_error_log            07h 08h TelemetryHeader     80h reservations.ReservationNotification
02h SmartHealth                 09h     EnduranceGroup      81h SanitizeStatus
03h FirmwareSlots               0Ch     AnaLog              BFh zns.ChangedZones
04h decode_changed_namespaces   0Eh     lba_status.LbaStatusLog
05h CommandsSupported
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

import attrs

from nvme_async.spec._bits import BitFields, bit, bits
from nvme_async.spec._identify_lists import decode_namespace_list
from nvme_async.spec._layout import Buffer, Layout, structs, text, uint, uints

DATA_UNIT = 512_000
"""Bytes of a data unit: thousands of 512 bytes, rounded up (Base 5.16.1.3)."""

_KELVIN = 273


def _indices(words: tuple[int, ...]) -> frozenset[int]:
    """Where bit 0, "supported", is set."""
    return frozenset(index for index, word in enumerate(words) if word & 1)


@attrs.frozen
class SupportedLogPages(Layout, size=1024):
    """Supported log pages (LID 00h; Base 5.16.1.1)."""

    lids: tuple[int, ...] = uints(0, 4, 256)
    """Per log page: bit 0 supported, bit 1 an offset may be an index, bits 31:16 specific."""

    @property
    def supported(self) -> frozenset[int]:
        """Identifiers of the supported log pages."""
        return _indices(self.lids)


@attrs.frozen
class ErrorEntry(Layout, size=64):
    """Error information log entry (LID 01h; Base 5.16.1.2)."""

    error_count: int = uint(0, 8)
    """Identifies the error over the controller's lifetime; 0 for an unused entry."""
    sqid: int = uint(8, 2)
    """FFFFh if the error belongs to no command, as cid then."""
    cid: int = uint(10, 2)
    status_field: int = uint(12, 2)
    """The completion's status in bits 15:1, its phase tag in bit 0."""
    parm_error_location: int = uint(14, 2)
    """Byte of the command in bits 7:0, bit in 10:8; FFFFh if it belongs to none."""
    lba: int = uint(16, 8)
    nsid: int = uint(24, 4)
    vs: int = uint(28, 1)
    trtype: int = uint(29, 1)
    cs: int = uint(32, 8)
    """Command specific information."""
    trtype_spec_info: int = uint(40, 2)

    @property
    def status(self) -> int:
        """The 15-bit status field, as in Completion."""
        return self.status_field >> 1


def decode_error_log(data: Buffer) -> tuple[ErrorEntry, ...]:
    """The entries in use, the latest first."""
    page = bytes(data)
    entries = (ErrorEntry.decode(page[at : at + 64]) for at in range(0, len(page) - 63, 64))
    return tuple(entry for entry in entries if entry.error_count)


class CriticalWarning(IntFlag):
    """SMART critical warnings (Base 5.16.1.3)."""

    SPARE_BELOW_THRESHOLD = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY_DEGRADED = 1 << 2
    READ_ONLY = 1 << 3
    VOLATILE_MEMORY_BACKUP_FAILED = 1 << 4
    PMR_READ_ONLY = 1 << 5


@attrs.frozen
class SmartHealth(Layout, size=512):
    """SMART / health information (LID 02h; Base 5.16.1.3). Temperatures in kelvins, 0 for no
    sensor.
    """

    critical_warning: int = uint(0, 1)
    temperature: int = uint(1, 2)
    avail_spare: int = uint(3, 1)
    """Percent, as the next two."""
    spare_thresh: int = uint(4, 1)
    percent_used: int = uint(5, 1)
    """Percentage used of the lifetime that the vendor estimates; may exceed 100, up to 255."""
    endurance_grp_critical_warning_summary: int = uint(6, 1)
    data_units_read: int = uint(32, 16)
    data_units_written: int = uint(48, 16)
    host_read_commands: int = uint(64, 16)
    host_write_commands: int = uint(80, 16)
    controller_busy_time: int = uint(96, 16)
    """Minutes."""
    power_cycles: int = uint(112, 16)
    power_on_hours: int = uint(128, 16)
    unsafe_shutdowns: int = uint(144, 16)
    media_errors: int = uint(160, 16)
    num_err_log_entries: int = uint(176, 16)
    warning_temp_time: int = uint(192, 4)
    """Minutes above WCTEMP."""
    critical_comp_time: int = uint(196, 4)
    """Minutes above CCTEMP."""
    temperature_sensors: tuple[int, ...] = uints(200, 2, 8)
    thm_temp1_trans_count: int = uint(216, 4)
    thm_temp2_trans_count: int = uint(220, 4)
    thm_temp1_total_time: int = uint(224, 4)
    """Seconds."""
    thm_temp2_total_time: int = uint(228, 4)
    """Seconds."""

    @property
    def warnings(self) -> CriticalWarning:
        """Critical warnings."""
        return CriticalWarning(self.critical_warning)

    @property
    def temperature_celsius(self) -> int:
        """Composite temperature."""
        return self.temperature - _KELVIN

    @property
    def bytes_read(self) -> int:
        """What the host has read, rounded up to data units."""
        return self.data_units_read * DATA_UNIT

    @property
    def bytes_written(self) -> int:
        """What the host has written, rounded up to data units."""
        return self.data_units_written * DATA_UNIT


@attrs.frozen
class FirmwareRevision(Layout, size=8):
    """Firmware revision in a slot."""

    revision: str = text(0, 8)


@attrs.frozen
class FirmwareSlots(Layout, size=512):
    """Firmware slot information (LID 03h; Base 5.16.1.4)."""

    afi: int = uint(0, 1)
    """Active slot in bits 2:0; the slot to be activated at the next reset in bits 6:4, 0 for none.
    """
    frs: tuple[FirmwareRevision, ...] = structs(8, FirmwareRevision, 7)

    @property
    def active_slot(self) -> int:
        """1..7."""
        return self.afi & 7

    @property
    def next_slot(self) -> int | None:
        """The slot that the next controller level reset activates, None if that is not known."""
        return self.afi >> 4 & 7 or None

    @property
    def revisions(self) -> dict[int, str]:
        """Slot → firmware revision, slots in use only."""
        names = {slot: frs.revision.strip("\0 ") for slot, frs in enumerate(self.frs, 1)}
        return {slot: name for slot, name in names.items() if name}


def decode_changed_namespaces(data: Buffer) -> tuple[int, ...] | None:
    """Changed namespace list (LID 04h; Base 5.16.1.5). None: more than 1024 changed, so check
    all.
    """
    nsids = decode_namespace_list(data)
    return None if nsids[:1] == (0xFFFF_FFFF,) else nsids


@attrs.frozen
class CommandEffects(BitFields, width=32):
    """Command supported and effects data structure (Base 5.16.1.6)."""

    csupp: bool = bit(0)
    """Supported."""
    lbcc: bool = bit(1)
    """May change logical block contents."""
    ncc: bool = bit(2)
    """May change namespace capabilities."""
    nic: bool = bit(3)
    """May change the inventory of namespaces."""
    ccc: bool = bit(4)
    """May change controller capabilities."""
    cse: int = bits(18, 16)
    """Submission: 1 no other command for the namespace outstanding, 2 none for any namespace."""
    uss: bool = bit(19)
    """A UUID can be selected."""
    csp: int = bits(31, 20)
    """Scope."""


@attrs.frozen
class CommandsSupported(Layout, size=4096):
    """Commands supported and effects (LID 05h; Base 5.16.1.6), one dword per opcode."""

    acs: tuple[int, ...] = uints(0, 4, 256)
    iocs: tuple[int, ...] = uints(1024, 4, 256)

    @property
    def admin_opcodes(self) -> frozenset[int]:
        """The supported admin commands."""
        return _indices(self.acs)

    @property
    def io_opcodes(self) -> frozenset[int]:
        """The supported I/O commands of the requested command set."""
        return _indices(self.iocs)

    def admin(self, opcode: int) -> CommandEffects:
        """The effects of an admin command."""
        return CommandEffects.from_int(self.acs[opcode])

    def io(self, opcode: int) -> CommandEffects:
        """The effects of an I/O command."""
        return CommandEffects.from_int(self.iocs[opcode])


@attrs.frozen
class SupportedFeatures(Layout, size=1024):
    """Feature identifiers supported and effects (LID 12h; Base 5.16.1.18)."""

    fis: tuple[int, ...] = uints(0, 4, 256)

    @property
    def supported(self) -> frozenset[int]:
        """Identifiers of the supported features."""
        return _indices(self.fis)


class SelfTestResultCode(IntEnum):
    """How a device self-test ended (Base 5.16.1.7)."""

    PASSED = 0x0
    ABORTED_BY_COMMAND = 0x1
    ABORTED_BY_RESET = 0x2
    ABORTED_NAMESPACE_REMOVED = 0x3
    ABORTED_BY_FORMAT = 0x4
    FATAL_ERROR = 0x5
    FAILED_SEGMENT_UNKNOWN = 0x6
    FAILED_SEGMENT = 0x7
    ABORTED_UNKNOWN = 0x8
    ABORTED_BY_SANITIZE = 0x9
    UNUSED = 0xF


@attrs.frozen
class SelfTestResult(Layout, size=28):
    """Self-test result data structure (Base 5.16.1.7)."""

    dsts: int = uint(0, 1)
    """Self-test code in bits 7:4, result in bits 3:0."""
    seg: int = uint(1, 1)
    vdi: int = uint(2, 1)
    """Which of the following are valid: bit 0 nsid, 1 flba, 2 sct, 3 sc."""
    poh: int = uint(4, 8)
    nsid: int = uint(12, 4)
    flba: int = uint(16, 8)
    sct: int = uint(24, 1)
    sc: int = uint(25, 1)
    vs: int = uint(26, 2)

    @property
    def code(self) -> int:
        """Which self-test, see `opcodes.SelfTest`."""
        return self.dsts >> 4

    @property
    def result(self) -> SelfTestResultCode:
        """How it ended. Raises ValueError for reserved codes."""
        return SelfTestResultCode(self.dsts & 0xF)


@attrs.frozen
class SelfTestLog(Layout, size=564):
    """Device self-test (LID 06h; Base 5.16.1.7)."""

    current_operation: int = uint(0, 1)
    """Bits 3:0: 0 none in progress, else as `opcodes.SelfTest`."""
    completion: int = uint(1, 1)
    """Percent in bits 6:0."""
    results: tuple[SelfTestResult, ...] = structs(4, SelfTestResult, 20)
    """The latest first; unused ones have result UNUSED."""

    @property
    def in_progress(self) -> bool:
        """A self-test is running."""
        return bool(self.current_operation & 0xF)

    @property
    def valid_results(self) -> tuple[SelfTestResult, ...]:
        """The results that there are, the latest first."""
        return tuple(result for result in self.results if result.dsts & 0xF != SelfTestResultCode.UNUSED)


@attrs.frozen
class TelemetryHeader(Layout, size=512):
    """Header of the telemetry log pages (LID 07h, 08h; Base 5.16.1.8, 5.16.1.9). Blocks have 512
    bytes.
    """

    lid: int = uint(0, 1)
    ieee: int = uint(5, 3)
    dalb1: int = uint(8, 2)
    """Last block of data area 1; the areas begin after the header and contain each other."""
    dalb2: int = uint(10, 2)
    dalb3: int = uint(12, 2)
    dalb4: int = uint(16, 4)
    hostdgn: int = uint(381, 1)
    """Host-initiated data generation number (LID 07h only)."""
    ctrlavail: int = uint(382, 1)
    """Controller-initiated data are available."""
    ctrldgn: int = uint(383, 1)
    reason: str = text(384, 128, pad="\0")

    def area_bytes(self, area: int) -> int:
        """Bytes from the header's start to the end of data area 1..4."""
        last = {1: self.dalb1, 2: self.dalb2, 3: self.dalb3, 4: self.dalb4}
        if area not in last:
            raise ValueError(f"telemetry data area {area} is not in 1..4")
        return 512 * (1 + last[area])


@attrs.frozen
class EnduranceGroup(Layout, size=512):
    """Endurance group information (LID 09h; Base 5.16.1.10). Units are 1,000,000,000 bytes, rounded
    up.
    """

    critical_warning: int = uint(0, 1)
    egfeat: int = uint(1, 1)
    """Endurance group features."""
    avl_spare: int = uint(3, 1)
    avl_spare_threshold: int = uint(4, 1)
    percent_used: int = uint(5, 1)
    domainid: int = uint(6, 2)
    endurance_estimate: int = uint(32, 16)
    data_units_read: int = uint(48, 16)
    data_units_written: int = uint(64, 16)
    media_units_written: int = uint(80, 16)
    host_read_cmds: int = uint(96, 16)
    host_write_cmds: int = uint(112, 16)
    media_data_integrity_err: int = uint(128, 16)
    num_err_info_log_entries: int = uint(144, 16)
    tegcap: int = uint(160, 16)
    """Total capacity in bytes, as the next."""
    uegcap: int = uint(176, 16)


class AnaState(IntEnum):
    """Asymmetric namespace access states (Base 8.1)."""

    OPTIMIZED = 0x1
    NON_OPTIMIZED = 0x2
    INACCESSIBLE = 0x3
    PERSISTENT_LOSS = 0x4
    CHANGE = 0xF


@attrs.frozen
class AnaGroup:
    """ANA group descriptor (Base 5.16.1.13). nsids: empty if the log was asked for groups only
    (RGO).
    """

    grpid: int
    chgcnt: int
    state: AnaState
    nsids: tuple[int, ...]


@attrs.frozen
class AnaLog:
    """Asymmetric namespace access (LID 0Ch; Base 5.16.1.13)."""

    chgcnt: int
    groups: tuple[AnaGroup, ...]

    @classmethod
    def decode(cls, data: Buffer) -> AnaLog:
        """Raises ValueError if the page is cut off in the middle of a group, or a state is
        reserved.
        """
        page = bytes(data)
        try:
            chgcnt, ngrps = struct.unpack_from("<QH", page)
            groups = []
            at = 16
            for _ in range(ngrps):
                grpid, nnsids, group_chgcnt, state = struct.unpack_from("<IIQB", page, at)
                nsids = struct.unpack_from(f"<{nnsids}I", page, at + 32)
                groups.append(AnaGroup(grpid, group_chgcnt, AnaState(state & 0xF), nsids))
                at += 32 + 4 * nnsids
        except struct.error as error:
            raise ValueError(f"ANA log page extends beyond its {len(page)} bytes: {error}") from None
        return cls(chgcnt, tuple(groups))


class SanitizeState(IntEnum):
    """Sanitize status, bits 2:0 (Base 5.16.1.25)."""

    NEVER = 0
    COMPLETED = 1
    IN_PROGRESS = 2
    FAILED = 3
    COMPLETED_WITHOUT_DEALLOCATION = 4


@attrs.frozen
class SanitizeStatus(Layout, size=512):
    """Sanitize status (LID 81h; Base 5.16.1.25). Estimated times in seconds, FFFFFFFFh for none."""

    sprog: int = uint(0, 2)
    """Progress in units of 1/65536."""
    sstat: int = uint(2, 2)
    scdw10: int = uint(4, 4)
    """Command dword 10 of the sanitize operation."""
    eto: int = uint(8, 4)
    etbe: int = uint(12, 4)
    etce: int = uint(16, 4)
    etond: int = uint(20, 4)
    etbend: int = uint(24, 4)
    etcend: int = uint(28, 4)
    etpvds: int = uint(32, 4)
    """Deallocation after media verification."""
    ssi: int = uint(36, 1)
    """State of the sanitize operation in bits 3:0, the state in which it failed in bits 7:4."""

    @property
    def state(self) -> SanitizeState:
        """Where the last operation stands. Raises ValueError for reserved states."""
        return SanitizeState(self.sstat & 7)

    @property
    def progress(self) -> float:
        """Of an operation in progress, 0.0..1.0; 1.0 if there is none."""
        return 1.0 if self.sprog == 0xFFFF else self.sprog / 65536

    @property
    def passes_completed(self) -> int:
        """Overwrite passes done."""
        return self.sstat >> 3 & 0x1F

    @property
    def global_data_erased(self) -> bool:
        """Nothing was written since the media were made or sanitized."""
        return bool(self.sstat >> 8 & 1)
