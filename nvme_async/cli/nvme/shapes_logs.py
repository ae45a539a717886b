"""nvme-cli's JSON of log pages."""

from __future__ import annotations

from typing import Any

from nvme_async.cli.nvme.page import Options, fields
from nvme_async.spec.lba_status import LbaStatus, LbaStatusLog
from nvme_async.spec.logs import (
    AnaLog,
    AnaState,
    CommandsSupported,
    EnduranceGroup,
    ErrorEntry,
    FirmwareSlots,
    SanitizeState,
    SanitizeStatus,
    SelfTestLog,
    SelfTestResultCode,
    SmartHealth,
    SupportedFeatures,
    SupportedLogPages,
    decode_changed_namespaces,
)
from nvme_async.spec.opcodes import AdminOpcode, NvmOpcode, ZnsOpcode
from nvme_async.spec.reservations import ReservationNotification, ReservationReport

DEVICE = "nvme0"
"""nvme-cli's key from a device's name, which doesn't exist here."""
NO_LIMIT = 0xFFFF_FFFF

_ANA = {
    AnaState.OPTIMIZED: "optimized",
    AnaState.NON_OPTIMIZED: "non-optimized",
    AnaState.INACCESSIBLE: "inaccessible",
    AnaState.PERSISTENT_LOSS: "persistent-loss",
    AnaState.CHANGE: "change",
}
_SANITIZE = {
    SanitizeState.NEVER: "NVM Subsystem has never been sanitized.",
    SanitizeState.COMPLETED: "Most Recent Sanitize Command Completed Successfully.",
    SanitizeState.IN_PROGRESS: "Sanitize in Progress.",
    SanitizeState.FAILED: "Most Recent Sanitize Command Failed.",
    SanitizeState.COMPLETED_WITHOUT_DEALLOCATION: (
        "Most Recent Sanitize Command (No-Deallocate After Sanitize) Completed Successfully."
    ),
}
_SANITIZE_STATES = (
    "Idle state",
    "Restricted Processing State",
    "Restricted Failure State",
    "Unrestricted Processing State",
    "Unrestricted Failure State",
    "Media Verification State",
    "Post-Verification Deallocation State",
)
# nvme-cli's names that are not made of ours. It has those of computational programs too.
_ADMIN_NAMES: dict[int, str] = {
    AdminOpcode.DELETE_IO_SQ: "Delete I/O Submission Queue",
    AdminOpcode.CREATE_IO_SQ: "Create I/O Submission Queue",
    AdminOpcode.DELETE_IO_CQ: "Delete I/O Completion Queue",
    AdminOpcode.CREATE_IO_CQ: "Create I/O Completion Queue",
    AdminOpcode.FIRMWARE_IMAGE_DOWNLOAD: "Firmware Image Download",
    AdminOpcode.DEVICE_SELF_TEST: "Device Self-test",
    AdminOpcode.NVME_MI_SEND: "NVMe-MI Send",
    AdminOpcode.NVME_MI_RECEIVE: "NVMe-MI Receive",
    AdminOpcode.DISCOVERY_INFORMATION_MANAGEMENT: "Discovery Information Management (DIM)",
    AdminOpcode.CLEAR_EXPORTED_NVM_RESOURCE_CONFIGURATION: "Clear Exported NVM Resource Configuration",
    AdminOpcode.CREATE_EXPORTED_NVM_SUBSYSTEM: "Create Exported NVM Subsystem",
    AdminOpcode.MANAGE_EXPORTED_NVM_SUBSYSTEM: "Manage Exported NVM Subsystem",
    AdminOpcode.FABRICS: "Fabrics Commands",
    AdminOpcode.FORMAT_NVM: "Format NVM",
    0x85: "Load Program",
    AdminOpcode.GET_LBA_STATUS: "Get LBA Status",
    0x88: "Program Activation Management",
    0x89: "Memory Range Set Management",
    AdminOpcode.ASYNC_EVENT_REQUEST: "Asynchronous Event Request",
}
# I/O commands that nvme-cli 2.13 has no name for: its key of the effects log says so.
_UNNAMED = (NvmOpcode.IO_MANAGEMENT_RECEIVE, NvmOpcode.IO_MANAGEMENT_SEND)
_WARNINGS = ("available_spare", "temp_threshold", "reliability_degraded", "ro", "vmbu_failed", "pmr_ro")


def opcode_name(opcode: int, *, admin: bool) -> str:
    """nvme-cli's name of a command."""
    if admin and opcode in _ADMIN_NAMES:
        return _ADMIN_NAMES[opcode]
    if not admin and opcode in _UNNAMED:
        return "Unknown"
    kinds: tuple[Any, ...] = (AdminOpcode,) if admin else (NvmOpcode, ZnsOpcode)
    for kind in kinds:
        if opcode in kind._value2member_map_:
            name: str = kind(opcode).name
            return name.replace("_", " ").title()
    return "Unknown"


def smart_values(log: SmartHealth) -> dict[str, Any]:
    result = fields(log)
    sensors = result.pop("temperature_sensors")
    rest = {key: result.pop(key) for key in list(result) if key.startswith("thm_")}
    result |= {f"temperature_sensor_{index}": value for index, value in enumerate(sensors, 1) if value}
    return {**result, **rest}


def smart(data: bytes, options: Options) -> dict[str, Any]:
    shown = smart_values(SmartHealth.decode(data))
    if options.get("human"):
        value = shown["critical_warning"]
        shown["critical_warning"] = {"value": value} | {name: value >> bit & 1 for bit, name in enumerate(_WARNINGS)}
    return shown


def _error(entry: ErrorEntry) -> dict[str, int]:
    return {
        "error_count": entry.error_count,
        "sqid": entry.sqid,
        "cmdid": entry.cid,
        "status_field": entry.status_field >> 1,
        "phase_tag": entry.status_field & 1,
        "parm_error_location": entry.parm_error_location,
        "lba": entry.lba,
        "nsid": entry.nsid,
        "vs": entry.vs,
        "trtype": entry.trtype,
        "cs": entry.cs,
        "trtype_spec_info": entry.trtype_spec_info,
    }


def errors(data: bytes, options: Options) -> dict[str, Any]:
    """All entries that were asked for, unused ones too."""
    entries = [ErrorEntry.decode(data[at : at + 64]) for at in range(0, len(data) - 63, 64)]
    return {"errors": [_error(entry) for entry in entries]}


def revision(raw: bytes) -> str:
    """A firmware revision as nvme-cli shows it: the number, and the text with dots for what isn't
    printable.
    """
    text = "".join(chr(byte) if 0x21 <= byte <= 0x7E else "." for byte in raw)
    return f"{int.from_bytes(raw, 'little')} ({text})"


def firmware(data: bytes, options: Options) -> dict[str, Any]:
    log = FirmwareSlots.decode(data)
    shown: dict[str, Any] = {"Active Firmware Slot (afi)": log.afi}
    for slot in range(1, 8):
        raw = data[8 * slot : 8 * slot + 8]
        if raw[0]:
            shown[f"Firmware Rev Slot {slot}"] = revision(raw)
    return {DEVICE: shown}


def self_test(data: bytes, options: Options) -> dict[str, Any]:
    log = SelfTestLog.decode(data)
    reports = []
    for result in log.results[: options.get("dst_entries", 20)]:
        report: dict[str, Any] = {"Self test result": result.dsts & 0xF}
        if result.dsts & 0xF != SelfTestResultCode.UNUSED:
            report |= {
                "Self test code": result.code,
                "Segment number": result.seg,
                "Valid Diagnostic Information": result.vdi,
                "Power on hours": result.poh,
            }
            for bit, name, value in (
                (1, "Namespace Identifier", result.nsid),
                (2, "Failing LBA", result.flba),
                (4, "Status Code Type", result.sct),
                (8, "Status Code", result.sc),
            ):
                if result.vdi & bit:
                    report[name] = value
            report["Vendor Specific"] = result.vs
        reports.append(report)
    return {
        "Current Device Self-Test Operation": log.current_operation,
        "Current Device Self-Test Completion": log.completion,
        "List of Valid Reports": reports,
    }


def _state(number: int) -> str:
    return f"({number}) {_SANITIZE_STATES[number] if number < len(_SANITIZE_STATES) else 'Reserved'}"


def sanitize(data: bytes, options: Options) -> dict[str, Any]:
    log = SanitizeStatus.decode(data)
    state = log.sstat & 7
    words = _SANITIZE[SanitizeState(state)] if state in SanitizeState._value2member_map_ else "Unknown"
    information = {"sanitize_state": _state(log.ssi & 0xF)}
    if state == SanitizeState.FAILED:
        information["failure_state"] = _state(log.ssi >> 4)
    return {
        DEVICE: {
            "sprog": log.sprog,
            "sstat": {
                "media_verification_canceled": log.sstat >> 9 & 1,
                "global_erased": int(log.global_data_erased),
                "no_cmplted_passes": log.passes_completed,
                "status": f"({state}) {words}",
            },
            "cdw10_info": log.scdw10,
            "time_over_write": log.eto,
            "time_block_erase": log.etbe,
            "time_crypto_erase": log.etce,
            "time_over_write_no_dealloc": log.etond,
            "time_block_erase_no_dealloc": log.etbend,
            "time_crypto_erase_no_dealloc": log.etcend,
            "time_post_verification_dealloc": log.etpvds,
            "sanitize_state_information": information,
        }
    }


def ana(data: bytes, options: Options) -> dict[str, Any]:
    log = AnaLog.decode(data)
    return {
        "Asymmetric Namespace Access Log for NVMe device": DEVICE,
        "chgcnt": log.chgcnt,
        "ngrps": len(log.groups),
        "ANA DESC LIST ": [
            {
                "grpid": group.grpid,
                "nnsids": len(group.nsids),
                "chgcnt": group.chgcnt,
                "state": _ANA[group.state],
                "NSIDS": [{"nsid": nsid} for nsid in group.nsids],
            }
            for group in log.groups
        ],
    }


def endurance(data: bytes, options: Options) -> dict[str, Any]:
    log = fields(EnduranceGroup.decode(data))
    names = {
        "egfeat": "endurance_group_features",
        "domainid": "domain_identifier",
        "tegcap": "total_end_grp_cap",
        "uegcap": "unalloc_end_grp_cap",
    }
    return {names.get(name, name): value for name, value in log.items()}


def changed_namespaces(data: bytes, options: Options) -> dict[str, Any]:
    return _changed(data, "Attached")


def changed_allocated_namespaces(data: bytes, options: Options) -> dict[str, Any]:
    return _changed(data, "Allocated")


def _changed(data: bytes, kind: str) -> dict[str, Any]:
    nsids = decode_changed_namespaces(data)
    head = {f"Changed {kind} Namespace List Log": DEVICE}
    if nsids is None:
        return {**head, DEVICE: {"[   1]": "more than 1024 namespaces changed"}}
    return {**head, DEVICE: {f"[{index:4}]": f"{nsid:#x}" for index, nsid in enumerate(nsids, 1)}}


def effects(data: bytes, options: Options) -> Any:
    """One page for each command set; those read are options["csis"]."""

    def section(name: str, words: tuple[int, ...], admin: bool) -> dict[str, int]:
        return {
            f"{name}_{opcode} ({opcode_name(opcode, admin=admin)})": word
            for opcode, word in enumerate(words)
            if word & 1
        }

    shown = []
    for index, csi in enumerate(options.get("csis", [options.get("csi") or 0])):
        log = CommandsSupported.decode(data[4096 * index :])
        shown.append(
            {
                "command_set_identifier": csi,
                "admin_cmd_set": section("ACS", log.acs, True),
                "io_cmd_set": section("IOCS", log.iocs, False),
            }
        )
    return shown


def supported_logs(data: bytes, options: Options) -> dict[str, Any]:
    log = SupportedLogPages.decode(data)
    return {"supported_logs": [{f"lid_{lid:#x} ": log.lids[lid]} for lid in sorted(log.supported)]}


def supported_features(data: bytes, options: Options) -> dict[str, Any]:
    log = SupportedFeatures.decode(data)
    return {"fid_support": [{f"fid_{fid}": log.fis[fid]} for fid in sorted(log.supported)]}


def lba_status_log(data: bytes, options: Options) -> dict[str, Any]:
    log = LbaStatusLog.decode(data)
    elements = [
        {
            "neid": one.nsid,
            "nlrd": NO_LIMIT if one.ranges is None else len(one.ranges),
            "ratype": one.action,
            "descs": [{"rslba": part.rslba, "rnlb": part.rnlb} for part in one.ranges or ()],
        }
        for one in log.elements
    ]
    whole = {}
    for index, one in enumerate(log.elements):
        if one.ranges is None:
            whole["Result"] = f"Number of LBA Range Descriptors (NLRD) set to {NO_LIMIT:#x} for NS element {index}"
    return {
        "lslplen": int.from_bytes(data[:4], "little"),
        "nlslne": len(log.elements),
        "estulb": log.estulb,
        "lsgc": log.lsgc,
        **whole,
        "ns_elements": elements,
    }


_CONDITIONS = {
    0: "No indication of the completion condition",
    1: "The buffer is full; more descriptors are available, or the scan did not complete",
    2: "The action is complete, and all descriptors were transferred",
}


def lba_status(data: bytes) -> dict[str, Any]:
    """nvme-cli 2.13 fails here; the keys are those that it means."""
    found = LbaStatus.decode(data)
    shown: dict[str, Any] = {
        "Number of LBA Status Descriptors (NLSD)": found.nlsd,
        "Completion Condition (CMPC)": found.cmpc,
    }
    if found.cmpc in _CONDITIONS:
        shown["cmpc-definition"] = _CONDITIONS[found.cmpc]
    for index, one in enumerate(found.descriptors):
        entry = {"DSLBA": f"{one.dslba:#018x}", "NLB": f"{one.nlb:#010x}", "status": f"{one.status:#04x}"}
        shown[f"LSD entry {index}"] = [entry]
    return shown


def reservation_notification(data: bytes, options: Options) -> dict[str, Any]:
    names = ("count", "rn_log_type", "num_logs", "NSID")
    return dict(zip(names, fields(ReservationNotification.decode(data)).values(), strict=True))


def reservation_report(data: bytes, *, extended: bool) -> dict[str, Any]:
    report = ReservationReport.decode(data, extended=extended)
    shown: dict[str, Any] = {
        "gen": report.gen,
        "rtype": int(report.rtype),
        "regctl": report.regctl,
        "ptpls": int(report.ptpls),
    }
    registrants = []
    for one in report.registrants:
        entry = fields(one)
        entry["rcsts"] = int(entry["rcsts"])
        if extended:
            entry["hostid"] = one.hostid.hex() if isinstance(one.hostid, bytes) else f"{one.hostid:032x}"
        registrants.append(entry)
    shown["regctlext" if extended else "regctls"] = registrants
    return shown
