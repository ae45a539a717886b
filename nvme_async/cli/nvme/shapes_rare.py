"""nvme-cli's JSON of log pages that few controllers have."""

from __future__ import annotations

from typing import Any

from nvme_async.cli.nvme.page import Options, fields
from nvme_async.spec.rare_logs import (
    BootPartitionHeader,
    CapacityConfiguration,
    DispersedNamespace,
    EyeOpening,
    GroupConfiguration,
    ManagementCommands,
    MediaUnits,
    PredictableLatency,
    RotationalMedia,
    decode_capacity_configurations,
    decode_event_aggregate,
    decode_eye_lanes,
    decode_management_addresses,
    decode_reachability_associations,
    decode_reachability_groups,
)

_AGENTS = {1: "NVM subsystem management agent", 2: "fabric interface manager"}


def predictable_latency(data: bytes, options: Options) -> dict[str, Any]:
    names = (
        "status",
        "event_type",
        "dtwin_reads_typical",
        "dtwin_writes_typical",
        "dtwin_time_maximum",
        "ndwin_time_minimum_high",
        "ndwin_time_minimum_low",
        "dtwin_reads_estimate",
        "dtwin_writes_estimate",
        "dtwin_time_estimate",
    )
    values = fields(PredictableLatency.decode(data)).values()
    return {"nvmset_id": options["lsi"], **dict(zip(names, values, strict=True))}


def event_aggregate(data: bytes, options: Options) -> dict[str, Any]:
    number, entries = decode_event_aggregate(data)
    return {"num_entries_avail": number, "list_of_entries": [{"entry": entry} for entry in entries]}


def boot_partition(data: bytes, options: Options) -> dict[str, Any]:
    header = BootPartitionHeader.decode(data)
    return {"count": header.lid, "abpid": header.active, "bpsz": header.bpinfo & 0x7FFF}


def eye_opening(data: bytes, options: Options) -> dict[str, Any]:
    header = EyeOpening.decode(data)
    shown = fields(header)
    del shown["odp"]
    lanes = decode_eye_lanes(header, data)
    if lanes:
        shown["descs"] = [
            {"lid" if name == "mstatus" else name: value for name, value in fields(one).items()} for one, _ in lanes
        ]
    for lane, eye in lanes:
        if eye:
            rows = [eye[at : at + lane.ncols].decode("latin-1") for at in range(0, len(eye), lane.ncols)]
            shown["printable_eye"] = "".join(f"{row}\n" for row in rows)
    return shown


def media_units(data: bytes, options: Options) -> dict[str, Any]:
    page = fields(MediaUnits.decode(data))
    units = page.pop("units")
    return {**page, "mus_list": [fields(unit) for unit in units]}


def _group(group: GroupConfiguration) -> dict[str, Any]:
    return {
        "endgid": group.endgid,
        "cap_adj_factor": group.cap_adj_factor,
        "tegcap": group.tegcap,
        "segcap": group.segcap,
        "egsets": len(group.nvmsetids),
        "egchans": len(group.channels),
        "Channel Descriptor": [
            {
                "chanid": channel,
                "chmus": len(units),
                "Media Descriptor": [{"chanid": unit, "chmus": level} for unit, level in units],
            }
            for channel, units in group.channels
        ],
        "NVM Set IDs": [{"nvmsetid": one} for one in group.nvmsetids],
    }


def _configuration(one: CapacityConfiguration) -> dict[str, Any]:
    return {
        "cap_config_id": one.cap_config_id,
        "domainid": one.domainid,
        "egcn": len(one.groups),
        "Endurance Descriptor": [_group(group) for group in one.groups],
    }


def capacity_configurations(data: bytes, options: Options) -> dict[str, Any]:
    found = decode_capacity_configurations(data)
    return {"sccn": len(found), "Capacity Descriptor": [_configuration(one) for one in found]}


def management_addresses(data: bytes, options: Options) -> dict[str, Any]:
    shown: dict[str, Any] = {
        f"descriptor: {index}": {f"type: {one.mat}": {"definition": _AGENTS[one.mat]}, "address": one.address}
        for index, one in enumerate(decode_management_addresses(data))
        if one.mat in _AGENTS
    }
    return shown or {"list": "All management address descriptors reserved"}


def rotational_media(data: bytes, options: Options) -> dict[str, Any]:
    return fields(RotationalMedia.decode(data))


def reachability_groups(data: bytes, options: Options) -> dict[str, Any]:
    """nvme-cli repeats the key "nnid" for each namespace; here they are a list."""
    change, groups = decode_reachability_groups(data)
    shown: dict[str, Any] = {"chngc": change, "nrgd": len(groups)}
    for one in groups:
        shown[f"rgid: {one.rgid}"] = {"nnid": len(one.nsids), "chngc": one.chngc, "nsids": list(one.nsids)}
    return shown


def reachability_associations(data: bytes, options: Options) -> dict[str, Any]:
    """nvme-cli repeats the key "rgid" for each group; here they are a list."""
    change, found = decode_reachability_associations(data)
    shown: dict[str, Any] = {"chngc": change, "nrad": len(found)}
    for one in found:
        shown[f"rasid: {one.rasid}"] = {
            "nrid": len(one.rgids),
            "chngc": one.chngc,
            "rac": one.rac,
            "rgids": list(one.rgids),
        }
    return shown


def dispersed_namespace(data: bytes, options: Options) -> dict[str, Any]:
    page = DispersedNamespace.decode(data)
    names = {f"participating_nss {index}": name for index, name in enumerate(page.subsystems)}
    return {"genctr": page.genctr, "numpsub": page.numpsub, **names}


def management_commands(data: bytes, options: Options) -> dict[str, Any]:
    page = ManagementCommands.decode(data)
    return {"mi_command_support": [{f"mi_cmd_{opcode}": page.mis[opcode]} for opcode in sorted(page.supported)]}
