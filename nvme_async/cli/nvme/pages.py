"""Pages that are read and shown: Identify pages and log pages, one row each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from nvme_async.cli.nvme import shapes
from nvme_async.cli.nvme.output import plain
from nvme_async.cli.nvme.target import first_namespace
from nvme_async.driver.management.logs import read_log
from nvme_async.spec import commands
from nvme_async.spec.identify import (
    CommandSets,
    IdentifyControllerNvm,
    IdentifyControllerZns,
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    IdentifyNamespaceNvm,
    NamespaceDescriptors,
    PrimaryControllerCapabilities,
    decode_controller_list,
    decode_domains,
    decode_endurance_groups,
    decode_namespace_list,
    decode_nvm_sets,
    decode_secondary_controllers,
    decode_uuid_list,
)
from nvme_async.spec.lba_status import LbaStatusLog
from nvme_async.spec.logs import (
    AnaLog,
    CommandsSupported,
    EnduranceGroup,
    FirmwareSlots,
    SanitizeStatus,
    SelfTestLog,
    SmartHealth,
    SupportedFeatures,
    SupportedLogPages,
    decode_changed_namespaces,
    decode_error_log,
)
from nvme_async.spec.opcodes import NSID_ALL, Cns, Csi, LogPage
from nvme_async.spec.reservations import ReservationNotification
from nvme_async.spec.zns import ChangedZones, IdentifyNamespaceZns

Read = Callable[[Any, dict[str, Any]], Awaitable[bytes]]


@attrs.frozen(kw_only=True)
class Page:
    """A command that reads one page.

    Attributes:
        about: the first line of its help.
        read: gets the bytes from a controller, with the options.
        decode: decodes them.
        shape: nvme-cli's JSON of the result; None: the fields by their names.
        options: (flags, name, type, default, help) in addition to the common ones.
    """

    about: str
    read: Read
    decode: Callable[[bytes], Any]
    shape: Callable[..., Any] | None = None
    options: tuple[tuple[tuple[str, ...], str, type, Any, str], ...] = ()


NSID = (("-n", "--namespace-id"), "nsid", int, None, "Namespace.  [default: the first]")
NSID_OR_ALL = (("-n", "--namespace-id"), "nsid", int, NSID_ALL, "Namespace.  [default: the controller]")
CNTID = (("-c", "--cntid"), "cntid", int, 0, "First controller identifier of the list.")


def identify(cns: int, *, csi: int = 0, of_namespace: bool = False) -> Read:
    async def read(controller: Any, options: dict[str, Any]) -> bytes:
        nsid = first_namespace(controller, options.get("nsid")) if of_namespace else options.get("nsid") or 0
        completion = await controller.admin(
            commands.identify(
                options.get("cns", cns),
                nsid,
                options.get("cntid") or 0,
                options.get("csi", csi) or 0,
                options.get("setid") or 0,
                options.get("uuid_index") or 0,
            )
        )
        data: bytes = completion.data
        return data

    return read


def log(lid: int, nbytes: int, **fixed: int) -> Read:
    async def read(controller: Any, options: dict[str, Any]) -> bytes:
        length = nbytes * (options.get("entries") or 1)
        chosen = {
            "nsid": options.get("nsid", NSID_ALL),
            "lsi": options.get("lsi") or 0,
            "lsp": options.get("lsp") or 0,
            "csi": options.get("csi") or 0,
            "rae": bool(options.get("rae", True)),
            **fixed,
        }
        return await read_log(controller, lid, length, **chosen)

    return read


async def _list_ns(controller: Any, options: dict[str, Any]) -> bytes:
    """The list starts with the given namespace, which Identify excludes."""
    allocated, csi = options.get("allocated"), options.get("csi")
    if csi is not None:
        cns = Cns.CSI_ALLOCATED_NAMESPACES if allocated else Cns.CSI_ACTIVE_NAMESPACES
    else:
        cns = Cns.ALLOCATED_NAMESPACES if allocated else Cns.ACTIVE_NAMESPACES
    completion = await controller.admin(commands.identify(cns, max(0, (options.get("nsid") or 1) - 1), csi=csi or 0))
    data: bytes = completion.data
    return data


async def _list_ctrl(controller: Any, options: dict[str, Any]) -> bytes:
    nsid = options.get("nsid")
    cns = Cns.CONTROLLERS if nsid is None else Cns.NAMESPACE_CONTROLLERS
    completion = await controller.admin(commands.identify(cns, nsid or 0, options.get("cntid") or 0))
    data: bytes = completion.data
    return data


async def _ana(controller: Any, options: dict[str, Any]) -> bytes:
    identify = controller.identify
    groups = identify.nanagrpid or 1
    nbytes = 16 + 32 * groups + (0 if options.get("lsp") else 4 * max(identify.mnan, identify.nn))
    return await read_log(
        controller, LogPage.ANA, (min(nbytes, 1 << 20) + 3) & ~3, lsp=options.get("lsp") or 0, rae=True
    )


async def _changed_zones(controller: Any, options: dict[str, Any]) -> bytes:
    nsid = first_namespace(controller, options.get("nsid"))
    return await read_log(controller, LogPage.CHANGED_ZONES, 4096, nsid=nsid, rae=bool(options.get("rae")))


def _elbafs(page: IdentifyNamespaceNvm) -> dict[str, Any]:
    shown = [{"sts": word & 0x7F, "pif": word >> 7 & 3} for word in page.elbafs]
    while len(shown) > 1 and not any(shown[-1].values()):
        shown.pop()
    return {"lbstm": page.lbstm, "pic": page.pic, "elbafs": shown}


def _without(*names: str) -> Callable[[Any], dict[str, Any]]:
    """The fields by their names, but for those that nvme-cli 2.13 doesn't print."""
    return lambda page: {name: value for name, value in plain(page).items() if name not in names}


PAGES: dict[str, Page] = {
    # -- Identify ----------------------------------------------------------------------------------
    "list-ns": Page(
        about="List the namespaces of the controller DEVICE: active ones, or with --all allocated ones.",
        read=_list_ns,
        decode=decode_namespace_list,
        shape=lambda nsids: {"nsid_list": [{"nsid": nsid} for nsid in nsids]},
        options=(
            (("-n", "--namespace-id"), "nsid", int, 1, "First namespace of the list."),
            (("-y", "--csi"), "csi", int, None, "Only those of an I/O command set."),
            (("-a", "--all"), "allocated", bool, False, "Also those that are not attached."),
        ),
    ),
    "list-ctrl": Page(
        about="List the controllers of the subsystem of DEVICE, or those that a namespace is attached to.",
        read=_list_ctrl,
        decode=decode_controller_list,
        shape=lambda ids: {"num_ctrl": len(ids), "ctrl_list": [{"ctrl_id": one} for one in ids]},
        options=(CNTID, (("-n", "--namespace-id"), "nsid", int, None, "Only those that it is attached to.")),
    ),
    "ns-descs": Page(
        about="Show the identifiers of a namespace of DEVICE.",
        read=identify(Cns.NAMESPACE_DESCRIPTORS, of_namespace=True),
        decode=NamespaceDescriptors.decode,
        shape=shapes.descriptors,
        options=(NSID,),
    ),
    "cmdset-ind-id-ns": Page(
        about="Show what a namespace of DEVICE is like, whatever its command set.",
        read=identify(Cns.INDEPENDENT_NAMESPACE, of_namespace=True),
        decode=IdentifyNamespaceIndependent.decode,
        shape=_without("kpios", "maxkt", "rgrpid"),
        options=(NSID,),
    ),
    "nvm-id-ctrl": Page(
        about="Show the limits of the NVM command set of DEVICE.",
        read=identify(Cns.CSI_CONTROLLER),
        decode=IdentifyControllerNvm.decode,
        shape=_without("kpiocap", "wzdsl", "aocs", "ver", "lbamqf"),
    ),
    "nvm-id-ns": Page(
        about="Show what the NVM command set says of a namespace: storage tags and guards of its LBA formats.",
        read=identify(Cns.CSI_NAMESPACE, of_namespace=True),
        decode=IdentifyNamespaceNvm.decode,
        shape=_elbafs,
        options=(NSID, (("-U", "--uuid-index"), "uuid_index", int, 0, "UUID index.")),
    ),
    "id-ns-allocated": Page(
        about="Show a namespace of DEVICE, attached or not (Identify, CNS 11h).",
        read=identify(Cns.ALLOCATED_NAMESPACE, of_namespace=True),
        decode=IdentifyNamespace.decode,
        shape=lambda page: page.to_json(),
        options=(NSID,),
    ),
    "id-iocs": Page(
        about="Show the combinations of I/O command sets of DEVICE.",
        read=identify(Cns.COMMAND_SETS),
        decode=CommandSets.decode,
        shape=lambda page: {f"iocsc[{index}]": word for index, word in enumerate(page.iocsc) if word},
        options=((("-c", "--controller-id"), "cntid", int, 0xFFFF, "Which controller."),),
    ),
    "id-nvmset": Page(
        about="List the NVM sets of DEVICE.",
        read=identify(Cns.NVM_SETS),
        decode=decode_nvm_sets,
        options=((("-i", "--nvmset-id"), "setid", int, 0, "First set of the list."),),
    ),
    "id-uuid": Page(about="List the UUIDs of DEVICE.", read=identify(Cns.UUIDS), decode=decode_uuid_list),
    "id-domain": Page(
        about="List the domains of DEVICE.",
        read=identify(Cns.DOMAINS),
        decode=decode_domains,
        options=((("-d", "--domain-id"), "setid", int, 0, "First domain of the list."),),
    ),
    "list-endgrp": Page(
        about="List the endurance groups of DEVICE.",
        read=identify(Cns.ENDURANCE_GROUPS),
        decode=decode_endurance_groups,
        shape=lambda ids: {"num_endgrp_id": len(ids), "endgrp_list": [{"endgrp_id": one} for one in ids]},
        options=((("-i", "--endgrp-id"), "setid", int, 0, "First group of the list."),),
    ),
    "primary-ctrl-caps": Page(
        about="Show what the primary controller DEVICE can give to secondary ones.",
        read=identify(Cns.PRIMARY_CONTROLLER_CAPABILITIES),
        decode=PrimaryControllerCapabilities.decode,
        options=(CNTID,),
    ),
    "list-secondary": Page(
        about="List the secondary controllers of DEVICE.",
        read=identify(Cns.SECONDARY_CONTROLLERS),
        decode=decode_secondary_controllers,
        options=(CNTID,),
    ),
    # -- log pages ---------------------------------------------------------------------------------
    "smart-log": Page(
        about="Show the SMART / health information of DEVICE.",
        read=log(LogPage.SMART_HEALTH, 512),
        decode=SmartHealth.decode,
        shape=shapes.smart,
        options=(NSID_OR_ALL,),
    ),
    "error-log": Page(
        about="Show the last errors of DEVICE.",
        read=log(LogPage.ERROR_INFORMATION, 64),
        decode=decode_error_log,
        shape=shapes.errors,
        options=((("-e", "--log-entries"), "entries", int, 64, "Number of entries."),),
    ),
    "fw-log": Page(
        about="Show the firmware slots of DEVICE.",
        read=log(LogPage.FIRMWARE_SLOT, 512),
        decode=FirmwareSlots.decode,
        shape=shapes.firmware,
    ),
    "effects-log": Page(
        about="Show which commands DEVICE has, and what they do.",
        read=log(LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 4096),
        decode=CommandsSupported.decode,
        shape=shapes.effects,
        options=((("-c", "--csi"), "csi", int, 0, "Of which I/O command set."),),
    ),
    "supported-log-pages": Page(
        about="Show which log pages DEVICE has.",
        read=log(LogPage.SUPPORTED_LOG_PAGES, 1024),
        decode=SupportedLogPages.decode,
        shape=shapes.supported_logs,
    ),
    "fid-support-effects-log": Page(
        about="Show which features DEVICE has.",
        read=log(LogPage.FEATURES_SUPPORTED_AND_EFFECTS, 1024),
        decode=SupportedFeatures.decode,
        shape=shapes.supported_features,
    ),
    "self-test-log": Page(
        about="Show the self-test of DEVICE that runs, and the results of the last 20.",
        read=log(LogPage.DEVICE_SELF_TEST, SelfTestLog.SIZE),
        decode=SelfTestLog.decode,
        shape=shapes.self_test,
    ),
    "endurance-log": Page(
        about="Show an endurance group of DEVICE.",
        read=log(LogPage.ENDURANCE_GROUP, 512),
        decode=EnduranceGroup.decode,
        shape=shapes.endurance,
        options=((("-g", "--group-id"), "lsi", int, 1, "Which group."),),
    ),
    "ana-log": Page(
        about="Show the ANA groups of DEVICE and their states.",
        read=_ana,
        decode=AnaLog.decode,
        shape=shapes.ana,
        options=((("-g", "--groups"), "lsp", bool, False, "Without the namespaces of each group."),),
    ),
    "sanitize-log": Page(
        about="Show how far a sanitize of DEVICE is, or how the last one ended.",
        read=log(LogPage.SANITIZE_STATUS, 512),
        decode=SanitizeStatus.decode,
        shape=shapes.sanitize,
        options=((("-r", "--rae"), "rae", bool, False, "Retain the asynchronous event."),),
    ),
    "changed-ns-list-log": Page(
        about="Show which namespaces of DEVICE have changed since the list was read last.",
        read=log(LogPage.CHANGED_NAMESPACES, 4096),
        decode=decode_changed_namespaces,
        shape=shapes.changed_namespaces,
        options=((("-r", "--rae"), "rae", bool, False, "Retain the asynchronous event."),),
    ),
    "lba-status-log": Page(
        about="Show where DEVICE may have blocks that can't be read.",
        read=log(LogPage.LBA_STATUS, 4096),
        decode=LbaStatusLog.decode,
        options=((("-r", "--rae"), "rae", bool, False, "Retain the asynchronous event."),),
    ),
    "resv-notif-log": Page(
        about="Show the latest reservation notification of DEVICE.",
        read=log(LogPage.RESERVATION_NOTIFICATION, 64),
        decode=ReservationNotification.decode,
    ),
    # -- zoned namespaces --------------------------------------------------------------------------
    "zns id-ctrl": Page(
        about="Show what the zoned command set says of the controller DEVICE.",
        read=identify(Cns.CSI_CONTROLLER, csi=Csi.ZNS),
        decode=IdentifyControllerZns.decode,
    ),
    "zns id-ns": Page(
        about="Show what the zoned command set says of a namespace of DEVICE.",
        read=identify(Cns.CSI_NAMESPACE, csi=Csi.ZNS, of_namespace=True),
        decode=IdentifyNamespaceZns.decode,
        options=(NSID,),
    ),
    "zns changed-zone-list": Page(
        about="Show which zones a namespace of DEVICE has changed by itself.",
        read=_changed_zones,
        decode=ChangedZones.decode,
        options=(NSID, (("-r", "--rae"), "rae", bool, False, "Retain the asynchronous event.")),
    ),
}
