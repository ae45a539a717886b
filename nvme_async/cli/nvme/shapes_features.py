"""nvme-cli's JSON of feature values."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

from nvme_async.spec.opcodes import Feature

_NAMES = {
    Feature.WRITE_ATOMICITY: "Write Atomicity Normal",
    Feature.ASYNC_EVENT_CONFIGURATION: "Async Event Configuration",
    Feature.NON_OPERATIONAL_POWER_STATE: "Non-Operational Power State Config",
    Feature.PREDICTABLE_LATENCY_MODE: "Predictable Latency Mode Config",
    Feature.PREDICTABLE_LATENCY_WINDOW: "Predictable Latency Mode Window",
    Feature.SANITIZE_CONFIGURATION: "Sanitize",
    Feature.ENDURANCE_GROUP_EVENTS: "Endurance Event Group Configuration",
    Feature.COMMAND_SET_PROFILE: "I/O Command Set Profile",
    Feature.LBA_RANGE_TYPE: "LBA Range Type",
    Feature.LBA_STATUS_INTERVAL: "LBA Status Interval",
    Feature.POWER_LOSS_SIGNALING: "Power Loss Signaling Config",
    Feature.FLEXIBLE_DATA_PLACEMENT: "Flexible Direct Placement",
    Feature.FDP_EVENTS: "Flexible Direct Placement Events",
    Feature.NUMBER_OF_QUEUES: "Number of Queues",
    Feature.SOFTWARE_PROGRESS_MARKER: "Software Progress",
    Feature.NAMESPACE_WRITE_PROTECTION: "Namespace Write Protect",
    Feature.BOOT_PARTITION_WRITE_PROTECTION: "Boot Partition Write Protection Config",
}
SELECTIONS = ("Current", "Default", "Saved", "Supported capabilities")
_HINTS = ("No Workload", "Extended Idle Period with a Burst of Random Writes", "Heavy Sequential Writes")
_RANGE_TYPES = ("Reserved", "Filesystem", "RAID", "Cache", "Page / Swap file")
_PROTECTION = (
    "No Write Protect",
    "Write Protect",
    "Write Protect Until Power Cycle",
    "Permanent Write Protect",
)
_SIGNALING = ("not enabled", "enabled with Emergency Power Fail", "enabled with Forced Quiescence")
FDP_EVENTS = {
    0x00: "Reclaim Unit Not Fully Written",
    0x01: "Reclaim Unit Active Time Limit Exceeded",
    0x02: "Controller Level Reset Modified Reclaim Unit Handles",
    0x03: "Invalid Placement Identifier",
    0x80: "Media Reallocated",
    0x81: "Implicitly Modified Reclaim Unit Handle",
}
_EVENTS = (
    ("Discovery Log Page Change Notices", 31),
    ("Host Discovery Log Page Change Notification", 30),
    ("AVE Discovery Log Page Change Notification", 29),
    ("Pull Model DDC Request Log Page Change Notification", 28),
    ("Zone Descriptor Changed Notices", 27),
    ("Reachability Group", 17),
    ("Reachability Association", 18),
    ("Normal NVM Subsystem Shutdown", 15),
    ("Endurance Group Event Aggregate Log Change Notices", 14),
    ("LBA Status Information Notices", 13),
    ("Predictable Latency Event Aggregate Log Change Notices", 12),
    ("Asymmetric Namespace Access Change Notices", 11),
    ("Telemetry Log Notices", 10),
    ("Firmware Activation Notices", 9),
    ("Namespace Attribute Notices", 8),
)

Fields = dict[str, Any]
Explain = Callable[[int, bytes], Fields]


def feature_name(fid: int) -> str:
    """nvme-cli's name of a feature."""
    if fid not in Feature._value2member_map_:
        return "Unknown"
    feature = Feature(fid)
    return _NAMES.get(feature) or feature.name.replace("_", " ").title()


def _of(words: tuple[str, ...], index: int) -> str:
    return words[index] if index < len(words) else "Reserved"


def _enabled(value: int) -> str:
    return "Enabled" if value & 1 else "Disabled"


def _true(value: int) -> str:
    return "True" if value & 1 else "False"


def _celsius(kelvin: int) -> str:
    return f"{kelvin - 273} Celsius"


def _arbitration(value: int, data: bytes) -> Fields:
    return {
        "High Priority Weight (HPW)": (value >> 24 & 0xFF) + 1,
        "Medium Priority Weight (MPW)": (value >> 16 & 0xFF) + 1,
        "Low Priority Weight (LPW)": (value >> 8 & 0xFF) + 1,
        "Arbitration Burst (AB)": "No limit" if value & 7 == 7 else str(1 << (value & 7)),
    }


def _power(value: int, data: bytes) -> Fields:
    hint = value >> 5 & 7
    return {"Workload Hint (WH)": hint, "WH description": _of(_HINTS, hint), "Power State (PS)": value & 0x1F}


def _ranges(value: int, data: bytes) -> Fields:
    count = value & 0x3F
    shown = []
    for index in range(min(count + 1, len(data) // 64)):
        kind, attributes = data[64 * index], data[64 * index + 1]
        first, blocks = struct.unpack_from("<QQ", data, 64 * index + 16)
        words = _RANGE_TYPES[kind] if kind < len(_RANGE_TYPES) else "Reserved" if kind < 0x80 else "Vendor Specific"
        shown.append(
            {
                "LBA range": index,
                "type": f"{kind:#x}" if kind else "0",
                "type description": words,
                "attributes": f"{attributes:#x}" if attributes else "0",
                "attribute[0]": f"LBA range {'may' if attributes & 1 else 'should not'} be overwritten",
                "attribute[1]": f"LBA range should be {'hidden' if attributes & 2 else 'visible'} from the OS/EFI/BIOS",
                "slba": f"{first:#x}" if first else "0",
                "nlb": f"{blocks:#x}" if blocks else "0",
                "guid": data[64 * index + 32 : 64 * index + 48].hex(),
            }
        )
    return {"Number of LBA Ranges (NUM)": count + 1, **({"LBA Ranges": shown} if data else {})}


def _threshold(value: int, data: bytes) -> Fields:
    hysteresis, kind, sensor, kelvin = value >> 22 & 7, value >> 20 & 3, value >> 16 & 0xF, value & 0xFFFF
    sensors = ("Composite Temperature", *(f"Temperature Sensor {number}" for number in range(1, 9)))
    return {
        "Temperature Threshold Hysteresis (TMPTHH)": _celsius(hysteresis),
        "TMPTHH kelvin": f"{hysteresis} K",
        "Threshold Type Select (THSEL)": kind,
        "THSEL description": _of(("Over Temperature Threshold", "Under Temperature Threshold"), kind),
        "Threshold Temperature Select (TMPSEL)": sensor,
        "TMPSEL description": _of(sensors, sensor),
        "Temperature Threshold (TMPTH)": _celsius(kelvin),
        "TMPTH kelvin": f"{kelvin} K",
    }


def _recovery(value: int, data: bytes) -> Fields:
    return {
        "Deallocated or Unwritten Logical Block Error Enable (DULBE)": _enabled(value >> 16),
        "Time Limited Error Recovery (TLER)": f"{(value & 0xFFFF) * 100} ms",
    }


def _queues(value: int, data: bytes) -> Fields:
    return {
        "Number of IO Completion Queues Allocated (NCQA)": (value >> 16) + 1,
        "Number of IO Submission Queues Allocated (NSQA)": (value & 0xFFFF) + 1,
    }


def _coalescing(value: int, data: bytes) -> Fields:
    return {
        "Aggregation Time (TIME)": f"{(value >> 8 & 0xFF) * 100} usec",
        "Aggregation Threshold (THR)": (value & 0xFF) + 1,
    }


def _vector(value: int, data: bytes) -> Fields:
    return {"Coalescing Disable (CD)": _true(value >> 16), "Interrupt Vector (IV)": value & 0xFFFF}


def _async_events(value: int, data: bytes) -> Fields:
    words = ("Do not send async event", "Send async event")
    shown: Fields = {name: words[value >> bit & 1] for name, bit in _EVENTS}
    shown["SMART / Health Critical Warnings"] = words[bool(value & 0xFF)]
    return shown


def _transitions(value: int, data: bytes) -> Fields:
    shown: Fields = {"Autonomous Power State Transition Enable (APSTE)": _enabled(value)}
    if data:
        shown["Auto PST Entries"] = [
            {
                "entry": f"{index:2}",
                "Idle Time Prior to Transition (ITPT)": f"{entry >> 8 & 0xFFFFFF} ms",
                "Idle Transition Power State (ITPS)": entry >> 3 & 0x1F,
            }
            for index, entry in enumerate(struct.unpack_from("<32Q", data.ljust(256, b"\0")))
        ]
    return shown


def _host_memory(value: int, data: bytes) -> Fields:
    shown: Fields = {
        "Enable Host Memory (EHM)": _enabled(value),
        "Host Memory Non-operational Access Restriction Enable (HMNARE)": _true(value >> 2),
        "Host Memory Non-operational Access Restricted (HMNAR)": _true(value >> 3),
    }
    if data:
        size, low, high, entries = struct.unpack_from("<IIII", data.ljust(16, b"\0"))
        shown |= {
            "Host Memory Descriptor List Entry Count (HMDLEC)": entries,
            "Host Memory Descriptor List Address (HMDLAU)": f"{high:#x}",
            "Host Memory Descriptor List Address (HMDLAL)": f"{low:#x}",
            "Host Memory Buffer Size (HSIZE)": size,
        }
    return shown


def _timestamp(value: int, data: bytes) -> Fields:
    if not data:
        return {}
    stamp, attributes = int.from_bytes(data[:6], "little"), data[6]
    origin = (
        "initialized with a Timestamp value using a Set Features command."
        if attributes & 2
        else "initialized to 0h by a Controller Level Reset."
    )
    counted = (
        "The controller may have stopped counting during vendor specific intervals after the Timestamp value was "
        "initialized."
        if attributes & 1
        else "The controller counted time in milliseconds continuously since the Timestamp value was initialized."
    )
    return {
        "timestamp": stamp,
        "timestamp string": time.strftime("%c %Z", time.localtime(stamp / 1000)),
        "timestamp origin": f"The Timestamp field was {origin}",
        "synch": counted,
    }


def _thermal(value: int, data: bytes) -> Fields:
    first, second = value >> 16, value & 0xFFFF
    return {
        "Thermal Management Temperature 1 (TMT1)": f"{first} K",
        "TMT1 celsius": _celsius(first),
        "Thermal Management Temperature 2": f"{second} K",
        "TMT2 celsius": _celsius(second),
    }


def _latency(value: int, data: bytes) -> Fields:
    shown: Fields = {"Predictable Latency Window Enabled": _true(value)}
    if data:
        page = data.ljust(56, b"\0")
        shown["Enable Event"] = f"{int.from_bytes(page[:2], 'little'):04x}"
        names = ("DTWIN Reads Threshold", "DTWIN Writes Threshold", "DTWIN Time Threshold")
        shown |= dict(zip(names, struct.unpack_from("<QQQ", page, 32), strict=True))
    return shown


def _window(value: int, data: bytes) -> Fields:
    names = {1: "Deterministic Window (DTWIN)", 2: "Non-deterministic Window (NDWIN)"}
    return {"Window Select": names.get(value & 7, "Reserved")}


def _behavior(value: int, data: bytes) -> Fields:
    if not data:
        return {}
    page = data.ljust(6, b"\0")
    formats = page[4]
    return {
        "Host Behavior Support": _true(page[0]),
        "Advanced Command Retry Enable (ACRE)": _true(bool(page[0])),
        "Extended Telemetry Data Area 4 Supported (ETDAS)": _true(bool(page[1])),
        "LBA Format Extension Enable (LBAFEE)": _true(bool(page[2])),
        "Host Dispersed Namespace Support (HDISNS)": _enabled(bool(page[3])),
        **{f"Copy Descriptor Format {bit}h Enable (CDF{bit}E)": _true(formats >> bit) for bit in (2, 3, 4)},
    }


def _host_identifier(value: int, data: bytes) -> Fields:
    return {"Host Identifier (HOSTID)": int.from_bytes(data[:8], "little")} if data else {}


def _reservation_mask(value: int, data: bytes) -> Fields:
    return {
        "Mask Reservation Preempted Notification (RESPRE)": _true(value >> 3),
        "Mask Reservation Released Notification (RESREL)": _true(value >> 2),
        "Mask Registration Preempted Notification (REGPRE)": _true(value >> 1),
    }


def _placement(value: int, data: bytes) -> Fields:
    return {
        "Flexible Direct Placement Enable (FDPE)": "Yes" if value & 1 else "No",
        "Flexible Direct Placement Configuration Index": value >> 8 & 0xF,
    }


def _placement_events(value: int, data: bytes) -> Fields:
    return {
        FDP_EVENTS.get(data[2 * index], "Unknown"): "Enabled" if data[2 * index + 1] & 1 else "Not enabled"
        for index in range(min(value, len(data) // 2))
    }


def _one(name: str, show: Callable[[int], Any]) -> Explain:
    return lambda value, data: {name: show(value)}


_EXPLAIN: dict[int, Explain] = {
    Feature.ARBITRATION: _arbitration,
    Feature.POWER_MANAGEMENT: _power,
    Feature.LBA_RANGE_TYPE: _ranges,
    Feature.TEMPERATURE_THRESHOLD: _threshold,
    Feature.ERROR_RECOVERY: _recovery,
    Feature.VOLATILE_WRITE_CACHE: _one("Volatile Write Cache Enable (WCE)", _enabled),
    Feature.NUMBER_OF_QUEUES: _queues,
    Feature.INTERRUPT_COALESCING: _coalescing,
    Feature.INTERRUPT_VECTOR_CONFIGURATION: _vector,
    Feature.WRITE_ATOMICITY: _one("Disable Normal (DN)", _true),
    Feature.ASYNC_EVENT_CONFIGURATION: _async_events,
    Feature.AUTONOMOUS_POWER_STATE_TRANSITION: _transitions,
    Feature.HOST_MEMORY_BUFFER: _host_memory,
    Feature.TIMESTAMP: _timestamp,
    Feature.KEEP_ALIVE_TIMER: _one("Keep Alive Timeout (KATO) in milliseconds", int),
    Feature.HOST_CONTROLLED_THERMAL_MANAGEMENT: _thermal,
    Feature.NON_OPERATIONAL_POWER_STATE: _one("Non-Operational Power State Permissive Mode Enable (NOPPME)", _true),
    Feature.READ_RECOVERY_LEVEL: _one("Read Recovery Level (RRL)", lambda value: value & 0xF),
    Feature.PREDICTABLE_LATENCY_MODE: _latency,
    Feature.PREDICTABLE_LATENCY_WINDOW: _window,
    Feature.LBA_STATUS_INTERVAL: lambda value, data: {
        "LBA Status Information Poll Interval (LSIPI)": value >> 16,
        "LBA Status Information Report Interval (LSIRI)": value & 0xFFFF,
    },
    Feature.HOST_BEHAVIOR: _behavior,
    Feature.SANITIZE_CONFIGURATION: _one("No-Deallocate Response Mode (NODRM)", lambda value: value & 1),
    Feature.ENDURANCE_GROUP_EVENTS: lambda value, data: {
        "Endurance Group Identifier (ENDGID)": value & 0xFFFF,
        "Endurance Group Critical Warnings": value >> 16 & 0xFF,
    },
    Feature.COMMAND_SET_PROFILE: _one("I/O Command Set Profile", _true),
    Feature.SPINUP_CONTROL: _one("Spinup control feature Enabled", _true),
    Feature.POWER_LOSS_SIGNALING: _one("Power Loss Signaling Mode (PLSM)", lambda value: _of(_SIGNALING, value & 3)),
    Feature.SOFTWARE_PROGRESS_MARKER: _one("Pre-boot Software Load Count (PBSLC)", lambda value: value & 0xFF),
    Feature.HOST_IDENTIFIER: _host_identifier,
    Feature.RESERVATION_NOTIFICATION_MASK: _reservation_mask,
    Feature.RESERVATION_PERSISTENCE: _one("Persist Through Power Loss (PTPL)", _true),
    Feature.NAMESPACE_WRITE_PROTECTION: _one("Namespace Write Protect", lambda value: _of(_PROTECTION, value)),
    Feature.FLEXIBLE_DATA_PLACEMENT: _placement,
    Feature.FDP_EVENTS: _placement_events,
}


def explained(fid: int, value: int, data: bytes) -> Fields:
    """The fields of a feature's value, by nvme-cli's names; empty where it has none."""
    explain = _EXPLAIN.get(fid)
    return explain(value, data) if explain is not None else {}


def _hex(value: int, width: int) -> str:
    return f"0x{value:0{width}x}" if value else "0" * (width + 2)


def feature(fid: int, select: int, value: int, data: bytes) -> dict[str, Any]:
    """`nvme get-feature -o json`."""
    shown: dict[str, Any] = {
        f"feature: {_hex(fid, 2)}": [
            {"name": feature_name(fid), SELECTIONS[select]: f"0x{value:08x}" if value else "00000000"}
        ]
    }
    if select == 3:
        bits = ("saveable", "per-namespace", "changeable")
        shown[f"Feature: {_hex(fid, 2)}: select"] = [name for bit, name in enumerate(bits) if value >> bit & 1]
    else:
        shown[f"Feature: {_hex(fid, 2)}"] = [explained(fid, value, data)]
    return shown
