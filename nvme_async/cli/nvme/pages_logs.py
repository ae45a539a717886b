"""Commands that show a log page, one row each."""

from __future__ import annotations

from typing import Any

import click

from nvme_async.cli.nvme import shapes_logs as shapes
from nvme_async.cli.nvme.page import NSID, NSID_OR_ALL, RAE, Options, Page, log
from nvme_async.cli.nvme.target import capabilities, first_namespace
from nvme_async.driver.management.logs import read_log
from nvme_async.spec.logs import SelfTestLog
from nvme_async.spec.opcodes import Csi, LogPage
from nvme_async.spec.zns import ChangedZones

_EFFECTS = 4096


async def _ana(controller: Any, options: Options) -> bytes:
    identify = controller.identify
    groups = identify.nanagrpid or 1
    nbytes = 16 + 32 * groups + (0 if options.get("lsp") else 4 * max(identify.mnan, identify.nn))
    return await read_log(
        controller, LogPage.ANA, (min(nbytes, 1 << 20) + 3) & ~3, lsp=int(options.get("lsp") or 0), rae=True
    )


async def _errors(controller: Any, options: Options) -> bytes:
    """No more entries than the log has: what a controller sends after them means nothing."""
    entries = min(int(options["entries"]), controller.identify.error_log_entries)
    return await read_log(controller, LogPage.ERROR_INFORMATION, 64 * entries, rae=True)


async def _effects(controller: Any, options: Options) -> bytes:
    """One page, or without --csi one for each command set that the controller announces."""
    csi = options.get("csi")
    if csi is None:
        cap = await capabilities(controller)
        csis = [Csi.NVM] if cap.css & 1 else []
        if cap.css & 0x40:
            csis.append(Csi.ZNS)
    else:
        csis = [csi]
    options["csis"] = [int(one) for one in csis]
    pages = [await read_log(controller, LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, _EFFECTS, csi=one) for one in csis]
    return b"".join(pages)


async def _changed_zones(controller: Any, options: Options) -> bytes:
    nsid = first_namespace(controller, options.get("nsid"))
    return await read_log(controller, LogPage.CHANGED_ZONES, 4096, nsid=nsid, rae=bool(options.get("rae")))


def _zones(data: bytes, options: Options) -> dict[str, Any]:
    found = ChangedZones.decode(data)
    if found.zslbas is None:
        return {"Result": "Too many zones have changed to fit into the log. Use report zones for changes."}
    return {"nrzid": len(found.zslbas)} | {f"zid {index:03}": zslba for index, zslba in enumerate(found.zslbas)}


PAGES: dict[str, Page] = {
    "smart-log": Page(
        about="Show the SMART / health information of DEVICE.",
        read=log(LogPage.SMART_HEALTH, 512),
        shape=shapes.smart,
        options=(NSID_OR_ALL,),
        bits="smart-log",
    ),
    "error-log": Page(
        about="Show the last errors of DEVICE.",
        read=_errors,
        shape=shapes.errors,
        options=((("-e", "--log-entries"), "entries", click.IntRange(1), 64, "Number of entries."),),
    ),
    "fw-log": Page(
        about="Show the firmware slots of DEVICE.",
        read=log(LogPage.FIRMWARE_SLOT, 512),
        shape=shapes.firmware,
    ),
    "effects-log": Page(
        about="Show which commands DEVICE has, and what they do.",
        read=_effects,
        shape=shapes.effects,
        options=((("-c", "--csi"), "csi", int, None, "Of one I/O command set.  [default: all]"),),
        bits="effects-log",
    ),
    "supported-log-pages": Page(
        about="Show which log pages DEVICE has.",
        read=log(LogPage.SUPPORTED_LOG_PAGES, 1024),
        shape=shapes.supported_logs,
    ),
    "fid-support-effects-log": Page(
        about="Show which features DEVICE has.",
        read=log(LogPage.FEATURES_SUPPORTED_AND_EFFECTS, 1024),
        shape=shapes.supported_features,
    ),
    "self-test-log": Page(
        about="Show the self-test of DEVICE that runs, and the results of the last 20.",
        read=log(LogPage.DEVICE_SELF_TEST, SelfTestLog.SIZE),
        shape=shapes.self_test,
        options=((("-e", "--dst-entries"), "dst_entries", int, 20, "Maximum number of results."),),
    ),
    "endurance-log": Page(
        about="Show an endurance group of DEVICE.",
        read=log(LogPage.ENDURANCE_GROUP, 512),
        shape=shapes.endurance,
        options=((("-g", "--group-id"), "lsi", int, 1, "Which group."),),
    ),
    "ana-log": Page(
        about="Show the ANA groups of DEVICE and their states.",
        read=_ana,
        shape=shapes.ana,
        options=((("-g", "--groups"), "lsp", bool, False, "Without the namespaces of each group."),),
    ),
    "sanitize-log": Page(
        about="Show how far a sanitize of DEVICE is, or how the last one ended.",
        read=log(LogPage.SANITIZE_STATUS, 512),
        shape=shapes.sanitize,
        options=(RAE,),
    ),
    "changed-ns-list-log": Page(
        about="Show which namespaces of DEVICE have changed since the list was read last.",
        read=log(LogPage.CHANGED_NAMESPACES, 4096),
        shape=shapes.changed_namespaces,
        options=(RAE,),
    ),
    "changed-alloc-ns-list-log": Page(
        about="Show which allocated namespaces of DEVICE have changed since the list was read last.",
        read=log(LogPage.CHANGED_ALLOCATED_NAMESPACES, 4096),
        shape=shapes.changed_allocated_namespaces,
        options=(RAE,),
    ),
    "lba-status-log": Page(
        about="Show where DEVICE may have blocks that can't be read.",
        read=log(LogPage.LBA_STATUS, 4096),
        shape=shapes.lba_status_log,
        options=(RAE,),
    ),
    "resv-notif-log": Page(
        about="Show the latest reservation notification of DEVICE.",
        read=log(LogPage.RESERVATION_NOTIFICATION, 64),
        shape=shapes.reservation_notification,
    ),
    "zns changed-zone-list": Page(
        about="Show which zones a namespace of DEVICE has changed by itself.",
        read=_changed_zones,
        shape=_zones,
        options=(NSID, RAE),
    ),
}
