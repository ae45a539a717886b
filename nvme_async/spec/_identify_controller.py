"""Identify Controller (Base 5.17.2.1; NVM 4.1.5.3 and ZNS 4.1.5.2 for those of I/O command
sets).
"""

from __future__ import annotations

import uuid
from enum import IntFlag
from typing import Any

import attrs

from nvme_async.spec import _nvme_cli
from nvme_async.spec._layout import Layout, guid, raw, structs, text, uint
from nvme_async.spec._power_state import PowerState
from nvme_async.spec.registers import Vs


class Oacs(IntFlag):
    """Optional admin commands that the controller supports."""

    SECURITY = 1 << 0
    FORMAT_NVM = 1 << 1
    FIRMWARE = 1 << 2
    NAMESPACE_MANAGEMENT = 1 << 3
    DEVICE_SELF_TEST = 1 << 4
    DIRECTIVES = 1 << 5
    NVME_MI = 1 << 6
    VIRTUALIZATION_MANAGEMENT = 1 << 7
    DOORBELL_BUFFER_CONFIG = 1 << 8
    GET_LBA_STATUS = 1 << 9
    LOCKDOWN = 1 << 10
    HOST_MANAGED_LIVE_MIGRATION = 1 << 11


class Oncs(IntFlag):
    """Optional NVM commands that the controller supports."""

    COMPARE = 1 << 0
    WRITE_UNCORRECTABLE = 1 << 1
    DATASET_MANAGEMENT = 1 << 2
    WRITE_ZEROES = 1 << 3
    SAVE_SELECT = 1 << 4
    RESERVATIONS = 1 << 5
    TIMESTAMP = 1 << 6
    VERIFY = 1 << 7
    COPY = 1 << 8
    COPY_SINGLE_ATOMICITY = 1 << 9
    ALL_FAST_COPY = 1 << 10
    WRITE_ZEROES_DEALLOCATE = 1 << 11
    NAMESPACE_ZEROES = 1 << 12


class Fuses(IntFlag):
    """Fused operations that the controller supports."""

    COMPARE_AND_WRITE = 1 << 0


class Sgls(IntFlag):
    """SGL support (bits that are flags; bits 1:0 say whether, and how data blocks are aligned)."""

    KEYED_DATA_BLOCK = 1 << 2
    BIT_BUCKET = 1 << 16
    METADATA_BYTE_ALIGNED = 1 << 17
    LONGER_THAN_TRANSFER = 1 << 18
    METADATA_SGL = 1 << 19
    OFFSET = 1 << 20
    TRANSPORT_DATA_BLOCK = 1 << 21


class Oaes(IntFlag):
    """Optional asynchronous events that the controller supports."""

    NAMESPACE_ATTRIBUTE = 1 << 8
    FIRMWARE_ACTIVATION = 1 << 9
    ASYMMETRIC_NAMESPACE_ACCESS_CHANGE = 1 << 11
    PREDICTABLE_LATENCY_EVENT_AGGREGATE = 1 << 12
    LBA_STATUS_INFORMATION = 1 << 13
    ENDURANCE_GROUP_EVENT_AGGREGATE = 1 << 14
    NORMAL_NVM_SUBSYSTEM_SHUTDOWN = 1 << 15
    TEMPERATURE_THRESHOLD_HYSTERESIS = 1 << 16
    REACHABILITY_GROUPS_CHANGE = 1 << 17
    ALLOCATED_NAMESPACE_ATTRIBUTE = 1 << 19
    ZONE_DESCRIPTOR_CHANGED = 1 << 27
    DISCOVERY_LOG_CHANGE = 1 << 31


class Lpa(IntFlag):
    """Log page attributes."""

    SMART_PER_NAMESPACE = 1 << 0
    COMMANDS_SUPPORTED_AND_EFFECTS = 1 << 1
    EXTENDED_DATA = 1 << 2
    TELEMETRY = 1 << 3
    PERSISTENT_EVENT = 1 << 4
    SUPPORTED_LOG_PAGES = 1 << 5
    TELEMETRY_AREA_4 = 1 << 6


class Ctratt(IntFlag):
    """Controller attributes."""

    HOST_ID_128 = 1 << 0
    NON_OPERATIONAL_POWER_PERMISSIVE = 1 << 1
    NVM_SETS = 1 << 2
    READ_RECOVERY_LEVELS = 1 << 3
    ENDURANCE_GROUPS = 1 << 4
    PREDICTABLE_LATENCY = 1 << 5
    TRAFFIC_BASED_KEEP_ALIVE = 1 << 6
    NAMESPACE_GRANULARITY = 1 << 7
    SQ_ASSOCIATIONS = 1 << 8
    UUID_LIST = 1 << 9
    MULTI_DOMAIN = 1 << 10
    FIXED_CAPACITY = 1 << 11
    VARIABLE_CAPACITY = 1 << 12
    DELETE_ENDURANCE_GROUP = 1 << 13
    DELETE_NVM_SET = 1 << 14
    EXTENDED_LBA_FORMATS = 1 << 15
    MDTS_WITHOUT_METADATA = 1 << 16
    HMB_NOT_IN_NON_OPERATIONAL_STATES = 1 << 17
    RESERVATIONS_AND_HOST_IDENTIFIER_INTERACTION = 1 << 18
    FLEXIBLE_DATA_PLACEMENT = 1 << 19


@attrs.frozen
class IdentifyController(Layout, size=4096):
    """Identify Controller data structure (CNS 01h)."""

    vid: int = uint(0, 2)
    ssvid: int = uint(2, 2)
    sn: str = text(4, 20)
    mn: str = text(24, 40)
    fr: str = text(64, 8)
    rab: int = uint(72, 1)
    ieee: int = uint(73, 3)
    cmic: int = uint(76, 1)
    mdts: int = uint(77, 1)
    cntlid: int = uint(78, 2)
    ver: int = uint(80, 4)
    rtd3r: int = uint(84, 4)
    rtd3e: int = uint(88, 4)
    oaes: int = uint(92, 4)
    ctratt: int = uint(96, 4)
    rrls: int = uint(100, 2)
    bpcap: int = uint(102, 1)
    nssl: int = uint(104, 4)
    plsi: int = uint(110, 1)
    cntrltype: int = uint(111, 1)
    fguid: uuid.UUID = guid(112)  # noqa: RUF009
    crdt1: int = uint(128, 2)
    crdt2: int = uint(130, 2)
    crdt3: int = uint(132, 2)
    crcap: int = uint(134, 1)
    nvmsr: int = uint(253, 1)
    vwci: int = uint(254, 1)
    mec: int = uint(255, 1)
    oacs: int = uint(256, 2)
    acl: int = uint(258, 1)
    aerl: int = uint(259, 1)
    frmw: int = uint(260, 1)
    lpa: int = uint(261, 1)
    elpe: int = uint(262, 1)
    npss: int = uint(263, 1)
    avscc: int = uint(264, 1)
    apsta: int = uint(265, 1)
    wctemp: int = uint(266, 2)
    cctemp: int = uint(268, 2)
    mtfa: int = uint(270, 2)
    hmpre: int = uint(272, 4)
    hmmin: int = uint(276, 4)
    tnvmcap: int = uint(280, 16)
    unvmcap: int = uint(296, 16)
    rpmbs: int = uint(312, 4)
    edstt: int = uint(316, 2)
    dsto: int = uint(318, 1)
    fwug: int = uint(319, 1)
    kas: int = uint(320, 2)
    hctma: int = uint(322, 2)
    mntmt: int = uint(324, 2)
    mxtmt: int = uint(326, 2)
    sanicap: int = uint(328, 4)
    hmminds: int = uint(332, 4)
    hmmaxd: int = uint(336, 2)
    nsetidmax: int = uint(338, 2)
    endgidmax: int = uint(340, 2)
    anatt: int = uint(342, 1)
    anacap: int = uint(343, 1)
    anagrpmax: int = uint(344, 4)
    nanagrpid: int = uint(348, 4)
    pels: int = uint(352, 4)
    domainid: int = uint(356, 2)
    kpioc: int = uint(358, 1)
    mptfawr: int = uint(360, 2)
    megcap: int = uint(368, 16)
    tmpthha: int = uint(384, 1)
    cqt: int = uint(386, 2)
    sqes: int = uint(512, 1)
    cqes: int = uint(513, 1)
    maxcmd: int = uint(514, 2)
    nn: int = uint(516, 4)
    oncs: int = uint(520, 2)
    fuses: int = uint(522, 2)
    fna: int = uint(524, 1)
    vwc: int = uint(525, 1)
    awun: int = uint(526, 2)
    awupf: int = uint(528, 2)
    icsvscc: int = uint(530, 1)
    nwpc: int = uint(531, 1)
    acwu: int = uint(532, 2)
    ocfs: int = uint(534, 2)
    sgls: int = uint(536, 4)
    mnan: int = uint(540, 4)
    maxdna: int = uint(544, 16)
    maxcna: int = uint(560, 4)
    oaqd: int = uint(564, 4)
    rhiri: int = uint(568, 1)
    hirt: int = uint(569, 1)
    cmmrtd: int = uint(570, 2)
    nmmrtd: int = uint(572, 2)
    minmrtg: int = uint(574, 1)
    maxmrtg: int = uint(575, 1)
    trattr: int = uint(576, 1)
    mcudmq: int = uint(578, 2)
    mnsudmq: int = uint(580, 2)
    mcmr: int = uint(582, 2)
    nmcmr: int = uint(584, 2)
    mcdqpc: int = uint(586, 2)
    subnqn: str = text(768, 256, pad="\0")
    ioccsz: int = uint(1792, 4)
    iorcsz: int = uint(1796, 4)
    icdoff: int = uint(1800, 2)
    fcatt: int = uint(1802, 1)
    msdbd: int = uint(1803, 1)
    ofcs: int = uint(1804, 2)
    dctype: int = uint(1806, 1)
    psds: tuple[PowerState, ...] = structs(2048, PowerState, 32)
    vs: bytes = raw(3072, 1024)

    @property
    def version(self) -> Vs:
        """The specification that the controller complies with."""
        return Vs.from_int(self.ver)

    def max_transfer_size(self, min_page_size: int = 4096) -> int | None:
        """Bytes that one command may transfer, None for no limit. `min_page_size`: CAP.MPSMIN in
        bytes.
        """
        return min_page_size << self.mdts if self.mdts else None

    @property
    def sq_entry_size(self) -> int:
        """Bytes of the smallest submission queue entry (required by CC.IOSQES)."""
        return 1 << (self.sqes & 0xF)

    @property
    def cq_entry_size(self) -> int:
        """Bytes of the smallest completion queue entry (required by CC.IOCQES)."""
        return 1 << (self.cqes & 0xF)

    @property
    def max_async_events(self) -> int:
        """Asynchronous Event Requests that may be outstanding."""
        return self.aerl + 1

    @property
    def max_aborts(self) -> int:
        """Abort commands that may be outstanding."""
        return self.acl + 1

    @property
    def error_log_entries(self) -> int:
        """Entries of the Error Information log page."""
        return self.elpe + 1

    @property
    def power_states(self) -> tuple[PowerState, ...]:
        """The power states that exist."""
        return self.psds[: (self.npss & 0x1F) + 1]

    @property
    def keep_alive_granularity_seconds(self) -> float:
        """Unit of the keep alive timer; 0 if there is none."""
        return self.kas * 0.1

    @property
    def volatile_write_cache(self) -> bool:
        """There is a volatile write cache, so a completed write may need a flush to be on the
        media.
        """
        return bool(self.vwc & 1)

    @property
    def flush_all_namespaces(self) -> bool:
        """Flush takes the broadcast namespace identifier."""
        return self.vwc >> 1 & 3 == 3

    @property
    def admin_commands(self) -> Oacs:
        """Optional admin commands; test with `Oacs.FORMAT_NVM in ctrl.admin_commands`."""
        return Oacs(self.oacs)

    @property
    def nvm_commands(self) -> Oncs:
        """Optional NVM commands."""
        return Oncs(self.oncs)

    @property
    def async_events(self) -> Oaes:
        """Optional asynchronous events."""
        return Oaes(self.oaes)

    @property
    def log_page_attributes(self) -> Lpa:
        """Attributes of log pages."""
        return Lpa(self.lpa)

    @property
    def attributes(self) -> Ctratt:
        """Controller attributes."""
        return Ctratt(self.ctratt)

    @property
    def fused_operations(self) -> Fuses:
        """Fused operations."""
        return Fuses(self.fuses)

    @property
    def sgl_support(self) -> Sgls:
        """Flags of SGL support; `sgls & 3` says whether SGLs are supported at all."""
        return Sgls(self.sgls & ~3 & 0x3F_0004)

    @property
    def copy_formats(self) -> frozenset[int]:
        """The Copy descriptor formats, see CopyFormat."""
        return frozenset(number for number in range(16) if self.ocfs >> number & 1)

    @property
    def max_fused_blocks(self) -> int:
        """Logical blocks of a fused compare and write, unless the namespace has its own limit."""
        return self.acwu + 1

    def retry_delay_seconds(self, crd: int) -> float:
        """How long to wait before a retry, for a completion's command retry delay index (0..3)."""
        return (0, self.crdt1, self.crdt2, self.crdt3)[crd] * 0.1

    def to_json(self) -> dict[str, Any]:
        """The same keys, values and types as `nvme id-ctrl -o json` of nvme-cli 2.3."""
        return _nvme_cli.controller(self)


@attrs.frozen
class IdentifyControllerNvm(Layout, size=4096):
    """Identify Controller of the NVM command set (CNS 06h, CSI 00h; NVM 4.1.5.3)."""

    vsl: int = uint(0, 1)
    """Verify size limit: 2 ** vsl minimum pages, 0 for none."""
    wzsl: int = uint(1, 1)
    """Write Zeroes size limit, in the same unit."""
    wusl: int = uint(2, 1)
    """Write Uncorrectable size limit, in the same unit."""
    dmrl: int = uint(3, 1)
    """Dataset Management ranges limit, 0 for none."""
    dmrsl: int = uint(4, 4)
    """Dataset Management: logical blocks in one range, 0 for no limit."""
    dmsl: int = uint(8, 8)
    """Dataset Management: logical blocks in one command, 0 for no limit."""
    kpiocap: int = uint(16, 1)
    """Key per I/O capabilities."""
    wzdsl: int = uint(17, 1)
    """Write Zeroes with deallocate: size limit in the same unit as wzsl, 0 for none."""
    aocs: int = uint(18, 2)
    """Admin optional command support."""
    ver: int = uint(20, 4)
    """Version of the NVM command set."""
    lbamqf: int = uint(24, 1)
    """Format of the LBA migration queue."""

    def max_write_zeroes_size(self, min_page_size: int = 4096) -> int | None:
        """Bytes that one Write Zeroes may cover, None for no limit. `min_page_size`: CAP.MPSMIN in
        bytes.
        """
        return min_page_size << self.wzsl if self.wzsl else None

    def max_verify_size(self, min_page_size: int = 4096) -> int | None:
        """Bytes that one Verify may cover, None for no limit. `min_page_size`: CAP.MPSMIN in
        bytes.
        """
        return min_page_size << self.vsl if self.vsl else None

    def max_write_uncorrectable_size(self, min_page_size: int = 4096) -> int | None:
        """Bytes that one Write Uncorrectable may cover, None for no limit.

        `min_page_size`: CAP.MPSMIN in bytes.
        """
        return min_page_size << self.wusl if self.wusl else None


@attrs.frozen
class IdentifyControllerZns(Layout, size=4096):
    """Identify Controller of the zoned namespace command set (CNS 06h, CSI 02h; ZNS 4.1.5.2)."""

    zasl: int = uint(0, 1)
    """Zone append size limit: 2 ** zasl minimum pages, 0 for MDTS."""

    def max_append_size(self, min_page_size: int = 4096) -> int | None:
        """Bytes that one Zone Append may transfer, None if MDTS is the limit.

        `min_page_size`: CAP.MPSMIN in bytes.
        """
        return min_page_size << self.zasl if self.zasl else None


@attrs.frozen
class PrimaryControllerCapabilities(Layout, size=4096):
    """Primary controller capabilities (CNS 14h; Base 5.17.2): resources for its secondary
    controllers.
    """

    cntlid: int = uint(0, 2)
    portid: int = uint(2, 2)
    crt: int = uint(4, 1)
    vqfrt: int = uint(32, 4)
    vqrfa: int = uint(36, 4)
    vqrfap: int = uint(40, 2)
    vqprt: int = uint(42, 2)
    vqfrsm: int = uint(44, 2)
    vqgran: int = uint(46, 2)
    vifrt: int = uint(64, 4)
    virfa: int = uint(68, 4)
    virfap: int = uint(72, 2)
    viprt: int = uint(74, 2)
    vifrsm: int = uint(76, 2)
    vigran: int = uint(78, 2)


@attrs.frozen
class SecondaryController(Layout, size=32):
    """Secondary controller entry (Base 5.17.2)."""

    scid: int = uint(0, 2)
    pcid: int = uint(2, 2)
    scs: int = uint(4, 1)
    vfn: int = uint(8, 2)
    nvq: int = uint(10, 2)
    nvi: int = uint(12, 2)

    @property
    def online(self) -> bool:
        """The secondary controller is online."""
        return bool(self.scs & 1)
