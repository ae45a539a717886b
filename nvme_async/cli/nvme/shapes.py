"""nvme-cli's JSON for pages whose keys are not the specification's field names."""

from __future__ import annotations

from typing import Any

from nvme_async.cli.nvme.output import plain
from nvme_async.spec.identify import NamespaceDescriptors
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
)
from nvme_async.spec.opcodes import LogPage
from nvme_async.spec.persistent import PersistentEventLog
from nvme_async.spec.tcg import Discovery0

DEVICE = "nvme0"
"""nvme-cli's key from a device's name, which doesn't exist here."""

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


def smart(log: SmartHealth) -> dict[str, Any]:
    result = plain(log)
    sensors = result.pop("temperature_sensors")
    rest = {key: result.pop(key) for key in list(result) if key.startswith("thm_")}
    result |= {f"temperature_sensor_{index}": value for index, value in enumerate(sensors, 1) if value}
    return {**result, **rest}


def _error(entry: ErrorEntry) -> dict[str, int]:
    return {
        "error_count": entry.error_count,
        "sqid": entry.sqid,
        "cmdid": entry.cid,
        "status_field": entry.status,
        "phase_tag": entry.status_field & 1,
        "parm_error_location": entry.parm_error_location,
        "lba": entry.lba,
        "nsid": entry.nsid,
        "vs": entry.vs,
        "trtype": entry.trtype,
        "cs": entry.cs,
        "trtype_spec_info": entry.trtype_spec_info,
    }


def errors(entries: tuple[ErrorEntry, ...]) -> dict[str, Any]:
    return {"errors": [_error(entry) for entry in entries]}


def firmware(log: FirmwareSlots) -> dict[str, Any]:
    shown: dict[str, Any] = {"Active Firmware Slot (afi)": log.afi}
    for slot, revision in enumerate(log.frs, 1):
        if revision.revision.strip("\0 "):
            number = int.from_bytes(revision.encode(), "little")
            text = revision.revision.ljust(8, ".")
            shown[f"Firmware Rev Slot {slot}"] = f"{number} ({text})"
    return {DEVICE: shown}


def self_test(log: SelfTestLog) -> dict[str, Any]:
    reports = []
    for result in log.results:
        report: dict[str, Any] = {"Self test result": result.dsts & 0xF}
        if result.dsts & 0xF != SelfTestResultCode.UNUSED:
            report["Self test code"] = result.code
            if result.dsts & 0xF == SelfTestResultCode.FAILED_SEGMENT:
                report["Segment number"] = result.seg
            report["Valid Diagnostic Information"] = result.vdi
            report["Power on hours"] = result.poh
            if result.vdi & 1:
                report["Namespace Identifier"] = result.nsid
            if result.vdi & 2:
                report["Failing LBA"] = result.flba
            if result.vdi & 4:
                report["Status Code Type"] = result.sct
            if result.vdi & 8:
                report["Status Code"] = result.sc
            report["Vendor Specific"] = result.vs
        reports.append(report)
    return {
        "Current Device Self-Test Operation": log.current_operation,
        "Current Device Self-Test Completion": log.completion,
        "List of Valid Reports": reports,
    }


def sanitize(log: SanitizeStatus) -> dict[str, Any]:
    state = log.sstat & 7
    words = _SANITIZE[SanitizeState(state)] if state in SanitizeState._value2member_map_ else "Reserved"
    return {
        DEVICE: {
            "sprog": log.sprog,
            "sstat": {
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
        }
    }


def ana(log: AnaLog) -> dict[str, Any]:
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


def endurance(log: EnduranceGroup) -> dict[str, Any]:
    shown: dict[str, Any] = plain(log)
    for name in ("domainid", "tegcap", "uegcap"):  # which nvme-cli omits
        del shown[name]
    return shown


def changed_namespaces(nsids: tuple[int, ...] | None) -> dict[str, Any]:
    listed = ["more than 1024 ns changed"] if nsids is None else list(nsids)
    return {
        "Changed Namespace List Log": DEVICE,
        DEVICE: {f"[{index:4}]": f"{nsid:#x}" if isinstance(nsid, int) else nsid for index, nsid in enumerate(listed)},
    }


def effects(log: CommandsSupported) -> dict[str, Any]:
    def section(name: str, words: tuple[int, ...]) -> dict[str, int]:
        return {f"{name}_{opcode}": word for opcode, word in enumerate(words) if word}

    return {
        "command_set": 0,
        "effects": {"admin_cmd_set": section("ACS", log.acs), "io_cmd_set": section("IOCS", log.iocs)},
    }


def supported_logs(log: SupportedLogPages) -> dict[str, Any]:
    shown = []
    for lid in sorted(log.supported):
        name = LogPage(lid).name.replace("_", " ").title() if lid in LogPage._value2member_map_ else "Unknown"
        shown.append({f"lid_{lid:#x}": log.lids[lid], "name": name})
    return {"supported_logs": shown}


def supported_features(log: SupportedFeatures) -> dict[str, Any]:
    return {"fid_support": [{f"fid_{fid}": log.fis[fid]} for fid in sorted(log.supported)]}


def descriptors(found: NamespaceDescriptors, data: bytes) -> dict[str, Any]:
    """In the page's order, with their places."""
    names = {1: "eui64", 2: "nguid", 3: "uuid", 4: "csi"}
    shown: list[dict[str, Any]] = []
    at = 0
    while at + 4 <= len(data) and data[at + 1]:
        kind, length = data[at], data[at + 1]
        value = data[at + 4 : at + 4 + length]
        entry: dict[str, Any] = {"loc": at, "nidt": kind, "nidl": length, "type": names.get(kind, "unknown")}
        if kind == 3:
            text = value.hex()
            entry["uuid"] = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
        elif kind == 4:
            entry["csi"] = str(value[0])
        elif kind in names:
            entry[names[kind]] = value.hex()
        shown.append(entry)
        at += 4 + length
    return {"ns-descs": shown}


def persistent(log: PersistentEventLog) -> dict[str, Any]:
    header = plain(log.header)
    header["seb"] = sorted(log.header.supported)
    return {
        **header,
        "list_of_event_entries": [
            {
                "event_number": index,
                "event_type": event.name,
                "event_type_rev": event.revision,
                "cntlid": event.cntlid,
                "event_time_stamp": event.timestamp,
                "vs_info_len": len(event.vendor),
                "event_len": len(event.vendor) + len(event.data),
                "data": event.data.hex(),
            }
            for index, event in enumerate(log.events)
        ],
    }


def discovery(found: Discovery0) -> dict[str, Any]:
    return {
        "revision": found.revision,
        "locking_enabled": found.locking_enabled,
        "locked": found.locked,
        "features": [
            {"code": feature.code, "name": feature.name, "version": feature.version, "data": feature.data.hex()}
            for feature in found.features
        ],
    }
