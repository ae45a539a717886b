"""nvme-cli's JSON of the persistent event log.

Two faults of nvme-cli 2.13 are not imitated: it crashes on a Power-on or Reset event, and shows
each event that isn't supported with the text of the one before.
"""

from __future__ import annotations

import struct
from typing import Any

from nvme_async.cli.nvme.page import fields
from nvme_async.cli.nvme.shapes_features import explained, feature_name
from nvme_async.cli.nvme.shapes_logs import revision, smart_values
from nvme_async.spec._nvme_cli import ascii_rows, c_string
from nvme_async.spec.logs import SmartHealth
from nvme_async.spec.persistent import PersistentEvent, PersistentEventLog, PersistentEventType

_NAMES = {
    0x01: "SMART/Health Log Snapshot Event",
    0x02: "Firmware Commit Event",
    0x03: "Timestamp Change Event",
    0x04: "Power-on or Reset Event",
    0x05: "NVM Subsystem Hardware Error Event",
    0x06: "Change Namespace Event",
    0x07: "Format NVM Start Event",
    0x08: "Format NVM Completion Event",
    0x09: "Sanitize Start Event",
    0x0A: "Sanitize Completion Event",
    0x0B: "Set Feature Event",
    0x0C: "Set Telemetry CRT Event",
    0x0D: "Thermal Excursion Event",
    0x0E: "Sanitize Media Verification Event",
    0xDE: "Vendor Specific Event",
    0xDF: "TCG Defined Event",
}
# Struct format and keys of the events that are a row of numbers.
_PLAIN: dict[int, tuple[str, tuple[str, ...]]] = {
    PersistentEventType.TIMESTAMP_CHANGE: ("QQ", ("prev_ts", "ml_secs_since_reset")),
    PersistentEventType.NVM_SUBSYSTEM_HARDWARE_ERROR: ("H", ("nss_hw_err_code",)),
    PersistentEventType.CHANGE_NAMESPACE: (
        "I4xQ8xQBBBxIH2xI",
        ("nsmgt_cdw10", "nsze", "nscap", "flbas", "dps", "nmic", "ana_grp_id", "nvmset_id", "nsid"),
    ),
    PersistentEventType.FORMAT_START: ("IB3xI", ("nsid", "fna", "format_nvm_cdw10")),
    PersistentEventType.FORMAT_COMPLETION: (
        "IBBHI",
        ("nsid", "smallest_fpi", "format_nvm_status", "compln_info", "status_field"),
    ),
    PersistentEventType.SANITIZE_START: ("III", ("SANICAP", "sani_cdw10", "sani_cdw11")),
    PersistentEventType.SANITIZE_COMPLETION: ("HHH", ("sani_prog", "sani_status", "cmpln_info")),
    PersistentEventType.THERMAL_EXCURSION: ("BB", ("over_temp", "threshold")),
}
_HEADER_NAMES = {
    "lid": "log_id",
    "tnev": "total_num_of_events",
    "tll": "total_log_len",
    "rv": "log_revision",
    "lhl": "log_header_len",
    "ts": "timestamp",
    "poh": "power_on_hours",
    "pcc": "power_cycle_count",
    "vid": "pci_vid",
    "ssvid": "pci_ssvid",
}
_RESET = struct.Struct("<HBB12xIQQ")


def event_name(kind: int) -> str:
    """nvme-cli's name of an event type."""
    return f"{_NAMES.get(kind, 'Reserved Event')}({kind:#x})"


def _power_on(data: bytes) -> dict[str, Any]:
    shown: dict[str, Any] = {"fw_rev": revision(data[:8])}
    names = ("ctrl_id", "fw_act", "op_in_prog", "ctrl_power_cycle", "power_on_ml_secs", "ctrl_time_stamp")
    controllers = [
        dict(zip(names, _RESET.unpack_from(data, at), strict=True))
        for at in range(8, len(data) - _RESET.size + 1, _RESET.size)
    ]
    return shown | (controllers[0] if len(controllers) == 1 else {"controllers": controllers})


def _set_feature(data: bytes) -> dict[str, Any]:
    layout, cdw10, cdw11 = struct.unpack_from("<III", data.ljust(12, b"\0"))
    fid = cdw10 & 0xFF
    shown: dict[str, Any] = {"feature": f"0x{fid:02x}", "name": feature_name(fid), "value": f"0x{cdw11:08x}"}
    memory = data[4 + 4 * (layout & 7) :][: layout >> 16]
    return shown | (explained(fid, cdw11, memory) if memory else {})


def _body(event: PersistentEvent) -> dict[str, Any]:
    data = event.data
    try:
        if event.type in _PLAIN:
            form, names = _PLAIN[event.type]
            return dict(zip(names, struct.unpack_from("<" + form, data), strict=True))
        if event.type == PersistentEventType.SMART_SNAPSHOT:
            return smart_values(SmartHealth.decode(data))
        if event.type == PersistentEventType.FIRMWARE_COMMIT:
            names = ("fw_commit_action", "fw_slot", "sct_fw", "sc_fw", "vu_assign_fw_commit_rc")
            more = dict(zip(names, struct.unpack_from("<BBBBH", data, 16), strict=True))
            return {"old_fw_rev": revision(data[:8]), "new_fw_rev": revision(data[8:16]), **more}
    except (struct.error, ValueError):
        return {"data": data.hex()}  # shorter than its type says
    if event.type == PersistentEventType.POWER_ON_OR_RESET:
        return _power_on(data)
    if event.type == PersistentEventType.SET_FEATURE:
        return _set_feature(data)
    if event.type == PersistentEventType.TELEMETRY_CREATED:
        return {"create": ascii_rows(data[:512])}
    return {}


def persistent(log: PersistentEventLog) -> dict[str, Any]:
    header = log.header
    shown: dict[str, Any] = {}
    for name, value in fields(header).items():
        if name == "seb":
            continue
        if name in ("sn", "mn"):
            value = c_string(value.ljust(20 if name == "sn" else 40))
        shown[_HEADER_NAMES.get(name, name)] = c_string(value) if name == "subnqn" else value
    for kind in sorted(header.supported):
        shown[f"bitmap_{kind:x}"] = f"Support {event_name(kind)}"
    entries = []
    for number, event in enumerate(log.events):
        entries.append(
            {
                "event_number": number,
                "event_type": event_name(event.type),
                "event_type_rev": event.revision,
                "event_header_len": event.header_length,
                "event_header_additional_info": event.additional,
                "ctrl_id": event.cntlid,
                "event_time_stamp": event.timestamp,
                "port_id": event.port,
                "vu_info_len": len(event.vendor),
                "event_len": len(event.vendor) + len(event.data),
                **_body(event),
            }
        )
    shown["list_of_event_entries"] = entries
    return shown
