"""nvme-cli's JSON of Flexible Data Placement."""

from __future__ import annotations

from typing import Any

from nvme_async.cli.nvme.page import Options
from nvme_async.spec.fdp import FdpEvents, FdpEventType, FdpStatistics, RuhStatus, RuhUsage, decode_configurations


def configurations(data: bytes, options: Options) -> dict[str, Any]:
    return {
        "n": int.from_bytes(data[:2], "little"),
        "configs": [
            {
                "fdpa": one.fdpa,
                "vss": one.vss,
                "nrg": one.nrg,
                "nruh": one.nruh,
                "nnss": one.nnss,
                "runs": one.runs,
                "erutl": one.erutl,
                **({"ruhs": [{"ruht": kind} for kind in one.ruh_types]} if options.get("human") else {}),
            }
            for one in decode_configurations(data)
        ],
    }


def usage(data: bytes, options: Options) -> dict[str, Any]:
    found = RuhUsage.decode(data).attributes
    return {"nruh": len(found), "ruhus": [{"ruha": one} for one in found]}


def statistics(data: bytes, options: Options) -> dict[str, Any]:
    log = FdpStatistics.decode(data)
    return {"hbmw": log.hbmw, "mbmw": log.mbmw, "mbe": log.mbe}


def events(data: bytes, options: Options) -> dict[str, Any]:
    shown = []
    for one in FdpEvents.decode(data).events:
        entry = {
            "type": one.type,
            "fdpef": one.flags,
            "pid": one.pid,
            "timestamp": one.timestamp,
            "nsid": one.nsid,
        }
        if one.type == FdpEventType.MEDIA_REALLOCATED:
            entry["nlbam"] = one.reallocated_blocks or 0
            if one.reallocated_lba is not None:
                entry["lba"] = one.reallocated_lba
        shown.append(entry)
    return {"n": len(shown), "events": shown}


def status(data: bytes) -> dict[str, Any]:
    found = RuhStatus.decode(data)
    return {
        "nruhsd": found.nruhsd,
        "ruhss": [
            {"pid": one.pid, "ruhid": one.ruhid, "earutr": one.earutr, "ruamw": one.ruamw} for one in found.descriptors
        ],
    }
