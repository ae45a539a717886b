"""-H: bit fields in words, as rows (high bit, low bit, name) per field. A name that ends with "?"
is said to be supported or not, one that ends with "!" enabled or disabled.
"""

from __future__ import annotations

from collections.abc import Mapping

Rows = tuple[tuple[int, int, str], ...]


def _flags(*names: str) -> Rows:
    """Rows for single bits from bit 0 on; an empty name is reserved."""
    return tuple((bit, bit, name) for bit, name in enumerate(names) if name)


_CONTROLLER: dict[str, Rows] = {
    "cmic": _flags(
        "Several NVM subsystem ports?", "Several controllers?", "SR-IOV virtual function?", "ANA reporting?"
    ),
    "oaes": (
        (8, 8, "Namespace Attribute Changed event?"),
        (9, 9, "Firmware Activation event?"),
        (11, 11, "ANA Change event?"),
        (12, 12, "Predictable Latency Event Aggregate event?"),
        (13, 13, "LBA Status Information event?"),
        (14, 14, "Endurance Group Event Aggregate event?"),
        (15, 15, "Normal NVM Subsystem Shutdown event?"),
        (16, 16, "Temperature Threshold Hysteresis Recovery event?"),
        (17, 17, "Reachability Groups Change event?"),
        (19, 19, "Allocated Namespace Attribute event?"),
        (27, 27, "Zone Descriptor Changed event?"),
        (31, 31, "Discovery Log Page Change event?"),
    ),
    "ctratt": _flags(
        "128-bit Host Identifier?",
        "Non-operational power state permissive mode?",
        "NVM sets?",
        "Read recovery levels?",
        "Endurance groups?",
        "Predictable latency mode?",
        "Traffic based keep alive?",
        "Namespace granularity?",
        "SQ associations?",
        "UUID list?",
        "Multi-domain subsystem?",
        "Fixed capacity management?",
        "Variable capacity management?",
        "Delete endurance group?",
        "Delete NVM set?",
        "Extended LBA formats?",
        "MDTS and size limits exclude metadata?",
        "HMB restrict non-operational power state access?",
        "Reservations and host identifier interaction?",
        "Flexible data placement?",
    ),
    "bpcap": ((1, 0, "Boot partition write protection"), (2, 2, "RPMB boot partition write protection?")),
    "crcap": _flags("Command retry: reported?", "Cancel?"),
    "nvmsr": _flags("Part of an NVMe storage device", "Part of an NVMe enclosure"),
    "vwci": ((6, 0, "VPD writes remaining"), (7, 7, "VPD writes remaining is valid")),
    "mec": _flags("SMBus management endpoint?", "PCIe management endpoint?"),
    "oacs": _flags(
        "Security Send and Receive?",
        "Format NVM?",
        "Firmware Commit and Image Download?",
        "Namespace Management and Attachment?",
        "Device Self-test?",
        "Directives?",
        "NVMe-MI Send and Receive?",
        "Virtualization Management?",
        "Doorbell Buffer Config?",
        "Get LBA Status?",
        "Command and feature lockdown?",
        "Host managed live migration?",
    ),
    "frmw": (
        (0, 0, "First firmware slot is read only"),
        (3, 1, "Firmware slots"),
        (4, 4, "Firmware activation without reset?"),
        (5, 5, "Overlapping ranges are detected?"),
    ),
    "lpa": _flags(
        "SMART / health log of each namespace?",
        "Commands Supported and Effects log?",
        "Extended data for Get Log Page?",
        "Telemetry logs?",
        "Persistent event log?",
        "Supported log pages log?",
        "Data area 4 of telemetry?",
    ),
    "avscc": _flags("Vendor specific admin commands use the standard format"),
    "apsta": _flags("Autonomous power state transitions?"),
    "rpmbs": (
        (31, 24, "Access size"),
        (23, 16, "Total size"),
        (5, 3, "Authentication method"),
        (2, 0, "RPMB units"),
    ),
    "dsto": _flags("One device self-test per NVM subsystem"),
    "hctma": _flags("Host controlled thermal management?"),
    "sanicap": (
        (0, 0, "Crypto erase sanitize?"),
        (1, 1, "Block erase sanitize?"),
        (2, 2, "Overwrite sanitize?"),
        (3, 3, "Verification of the media?"),
        (29, 29, "No-Deallocate After Sanitize is inhibited"),
        (31, 30, "Media are modified after sanitize: 1 no, 2 yes"),
    ),
    "anacap": _flags(
        "ANA optimized state?",
        "ANA non-optimized state?",
        "ANA inaccessible state?",
        "ANA persistent loss state?",
        "ANA change state?",
        "",
        "ANA group of a namespace never changes while attached",
        "ANA group identifier in Namespace Management?",
    ),
    "kpioc": _flags("Key per I/O?", "Key per I/O in all namespaces"),
    "sqes": ((7, 4, "Maximum size of a submission queue entry, 2^n"), (3, 0, "Required size, 2^n")),
    "cqes": ((7, 4, "Maximum size of a completion queue entry, 2^n"), (3, 0, "Required size, 2^n")),
    "oncs": _flags(
        "Compare?",
        "Write Uncorrectable?",
        "Dataset Management?",
        "Write Zeroes?",
        "Save and select of features?",
        "Reservations?",
        "Timestamp?",
        "Verify?",
        "Copy?",
        "Single atomicity of Copy?",
        "All fast Copy?",
        "Deallocation with Write Zeroes?",
        "Namespace Zeroes?",
    ),
    "fuses": _flags("Fused Compare and Write?"),
    "fna": _flags(
        "Format applies to all namespaces",
        "Secure erase applies to all namespaces",
        "Crypto erase with Format?",
        "Format with NSID FFFFFFFFh is not supported",
    ),
    "vwc": (
        (2, 1, "Flush with NSID FFFFFFFFh: 2 not supported, 3 supported"),
        (0, 0, "Volatile write cache is present"),
    ),
    "icsvscc": _flags("Vendor specific NVM commands use the standard format"),
    "nwpc": _flags("Write protection?", "Write protection until power cycle?", "Permanent write protection?"),
    "ocfs": _flags(*(f"Copy descriptor format {number}h?" for number in range(5))),
    "sgls": (
        (1, 0, "SGLs: 0 not supported, 1 without alignment, 2 dword aligned"),
        (2, 2, "Keyed data block descriptor?"),
        (15, 8, "SGL descriptor threshold"),
        (16, 16, "Bit bucket descriptor?"),
        (17, 17, "Byte aligned metadata buffer?"),
        (18, 18, "SGL longer than the transfer?"),
        (19, 19, "MPTR with SGL descriptor?"),
        (20, 20, "Offsets in SGL addresses?"),
        (21, 21, "Transport SGL data block?"),
    ),
    "trattr": _flags("Track host memory changes?", "Track user data changes?", "Memory range length limit"),
    "fcatt": _flags("Static controller model"),
    "ofcs": _flags("Disconnect?"),
}
_INDEPENDENT: dict[str, Rows] = {
    "nmic": _flags("Shared by several controllers", "Dispersed"),
    "rescap": _flags(
        "Persist through power loss?",
        "Write exclusive?",
        "Exclusive access?",
        "Write exclusive, registrants only?",
        "Exclusive access, registrants only?",
        "Write exclusive, all registrants?",
        "Exclusive access, all registrants?",
        "Ignore existing key as in NVMe 1.3 or later",
    ),
    "fpi": ((7, 7, "Format progress indicator?"), (6, 0, "Percentage that is left")),
    "nsattr": _flags("Write protected"),
    "kpios": _flags("Key per I/O!", "Key per I/O?"),
}
EXPLANATIONS: dict[str, dict[str, Rows]] = {
    "id-ctrl": _CONTROLLER,
    "id-ns": {
        "nsfeat": (
            (0, 0, "Thin provisioning?"),
            (1, 1, "Atomicity values of the namespace"),
            (2, 2, "Error for deallocated blocks?"),
            (3, 3, "NGUID and EUI64 are never reused"),
            (5, 4, "Preferred granularities of writes and deallocation"),
            (6, 6, "Multiple atomicity mode?"),
        ),
        "flbas": (
            (6, 5, "Most significant bits of the LBA format"),
            (4, 4, "Metadata at the end of each block"),
            (3, 0, "LBA format in use"),
        ),
        "mc": _flags("Metadata at the end of each block?", "Metadata in a separate buffer?"),
        "dpc": _flags("Protection type 1?", "Protection type 2?", "Protection type 3?", "First bytes?", "Last bytes?"),
        "dps": ((3, 3, "Protection information is the first of the metadata"), (2, 0, "Protection type in use")),
        "dlfeat": (
            (2, 0, "Deallocated blocks read as: 1 zeroes, 2 ones"),
            (3, 3, "Deallocation with Write Zeroes?"),
            (4, 4, "Guard of deallocated blocks is the CRC of the data"),
        ),
        "kpiodaag": (),
        **_INDEPENDENT,
    },
    "cmdset-ind-id-ns": {
        "nsfeat": ((3, 3, "NGUID and EUI64 are never reused"), (4, 4, "Rotational media")),
        "nstat": _flags("Ready"),
        **_INDEPENDENT,
    },
    "nvm-id-ns": {
        "pic": _flags(
            "16-bit guard with storage tag masks?", "16-bit guard with storage tag?", "Read-only storage tag mask"
        ),
        "pifa": ((2, 0, "Storage tag masking level"),),
    },
    "zns id-ns": {
        "zoc": _flags("Variable zone capacity", "Zone active excursions"),
        "ozcs": _flags("Reads across zones?", "Zone random write area?"),
        "zrwacap": _flags("Explicit flush of the zone random write area?"),
    },
    "smart-log": {
        "critical_warning": _flags(
            "Available spare is below the threshold",
            "Temperature is beyond a threshold",
            "Reliability is degraded",
            "Media are read only",
            "Volatile memory backup has failed",
            "Persistent memory region is read only",
        ),
    },
    "effects-log": {},
}
EFFECTS: Rows = (
    (1, 1, "Changes logical blocks"),
    (2, 2, "Changes namespace capabilities"),
    (3, 3, "Changes the namespace inventory"),
    (4, 4, "Changes controller capabilities"),
    (18, 16, "Submission: 1 no other command for the namespace, 2 none at all"),
    (19, 19, "Takes a UUID index"),
)


def _words(name: str, value: int) -> str:
    if name.endswith("?"):
        return f"{name[:-1]}: {'Supported' if value else 'Not Supported'}"
    if name.endswith("!"):
        return f"{name[:-1]}: {'Enabled' if value else 'Disabled'}"
    return name


def bit_lines(rows: Rows, value: int, indent: str = "  ") -> list[str]:
    """A value's fields, the highest first."""
    shown = []
    for high, low, name in sorted(rows, reverse=True):
        field = value >> low & (1 << high - low + 1) - 1
        shown.append(f"{indent}[{high}:{low}] : {field:#x}\t{_words(name, field)}")
    return shown


def explanations(kind: str) -> Mapping[str, Rows]:
    """Of a page's fields, by name."""
    return EXPLANATIONS.get(kind, {})
