"""Commands that show a page of Identify, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from nvme_async.cli.identify import controller_text, namespace_text
from nvme_async.cli.nvme import shapes_identify as shapes
from nvme_async.cli.nvme.explain import Rows
from nvme_async.cli.nvme.page import CNTID, NSID, UUID_INDEX, Options, Page, identify, read_identify
from nvme_async.cli.nvme.target import first_namespace
from nvme_async.errors import CommandError
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace
from nvme_async.spec.opcodes import NSID_ALL, Cns, Csi

_FORMATS = 64
VENDOR = (("-V", "--vendor-specific"), "vendor", bool, False, "Show the vendor specific bytes, too.")
FORMAT_INDEX = (("-i", "--lba-format-index"), "setid", int, 0, "Which LBA format.")


async def _namespace(controller: Any, options: Options) -> bytes:
    """--force also shows one that is not attached."""
    nsid = options["nsid"] = first_namespace(controller, options.get("nsid"))
    active = sorted(controller.namespaces)
    if nsid not in active and not options["force"]:
        raise click.ClickException(f"no active namespace {nsid} on {controller.uri}; active: {active or 'none'}")
    return await read_identify(controller, Cns.ALLOCATED_NAMESPACE if options["force"] else Cns.NAMESPACE, nsid)


async def _list_ns(controller: Any, options: Options) -> bytes:
    """The list starts with the given namespace, which Identify excludes."""
    allocated, csi = options.get("allocated"), options.get("csi")
    if csi is not None:
        cns = Cns.CSI_ALLOCATED_NAMESPACES if allocated else Cns.CSI_ACTIVE_NAMESPACES
    else:
        cns = Cns.ALLOCATED_NAMESPACES if allocated else Cns.ACTIVE_NAMESPACES
    return await read_identify(controller, cns, max(0, (options.get("nsid") or 1) - 1), csi=csi or 0)


async def _list_ctrl(controller: Any, options: Options) -> bytes:
    nsid = options.get("nsid")
    cns = Cns.CONTROLLERS if nsid is None else Cns.NAMESPACE_CONTROLLERS
    return await read_identify(controller, cns, nsid or 0, cntid=options.get("cntid") or 0)


async def _formats(controller: Any, nsid: int, options: Options) -> None:
    """How many LBA formats there are: the page itself doesn't say it."""
    try:
        page = IdentifyNamespace.decode(await read_identify(controller, Cns.NAMESPACE, nsid))
    except CommandError:
        return
    options["formats"] = min(page.nlbaf + page.nulbaf + 1, _FORMATS)
    options["nsfeat"] = page.nsfeat


async def _nvm_namespace(controller: Any, options: Options) -> bytes:
    nsid = first_namespace(controller, options.get("nsid"))
    await _formats(controller, nsid, options)
    return await read_identify(controller, Cns.CSI_NAMESPACE, nsid, uuid_index=options.get("uuid_index") or 0)


async def _nvm_format(controller: Any, options: Options) -> bytes:
    await _formats(controller, NSID_ALL, options)
    options["formats_only"] = True
    return await read_identify(
        controller,
        Cns.CSI_NAMESPACE_USER_DATA_FORMAT,
        cns_id=options["setid"],
        uuid_index=options.get("uuid_index") or 0,
    )


async def _zoned_namespace(controller: Any, options: Options) -> bytes:
    nsid = first_namespace(controller, options.get("nsid"))
    try:
        page = IdentifyNamespace.decode(await read_identify(controller, Cns.NAMESPACE, nsid))
        options["formats"] = page.nlbaf + 1
    except CommandError:
        pass
    return await read_identify(controller, Cns.CSI_NAMESPACE, nsid, csi=Csi.ZNS)


def _controller_text(data: bytes, options: Options, bits: Mapping[str, Rows]) -> str:
    return controller_text(IdentifyController.decode(data), bits)


def _namespace_text(data: bytes, options: Options, bits: Mapping[str, Rows]) -> str:
    return namespace_text(options["nsid"], IdentifyNamespace.decode(data), bits)


PAGES: dict[str, Page] = {
    "id-ctrl": Page(
        about="Show the properties of the controller DEVICE (Identify Controller).",
        read=identify(Cns.CONTROLLER),
        shape=shapes.controller,
        options=(VENDOR,),
        bits="id-ctrl",
        text=_controller_text,
    ),
    "id-ns": Page(
        about="Show the properties of a namespace of DEVICE (Identify Namespace).",
        read=_namespace,
        shape=shapes.namespace,
        options=(
            NSID,
            (("--force",), "force", bool, False, "Also one that is not attached."),
            (("-V", "--vendor-specific"), "vendor", bool, False, "No effect: JSON has the vendor specific bytes."),
        ),
        bits="id-ns",
        text=_namespace_text,
    ),
    "id-ns-granularity": Page(
        about="List the granularities of namespace sizes of DEVICE.",
        read=identify(Cns.NAMESPACE_GRANULARITY),
        shape=shapes.granularity,
    ),
    "id-ns-lba-format": Page(
        about="Show what DEVICE can do with one LBA format.",
        read=identify(Cns.NAMESPACE_USER_DATA_FORMAT),
        shape=shapes.lba_format,
        options=(FORMAT_INDEX, UUID_INDEX),
    ),
    "list-ns": Page(
        about="List the namespaces of the controller DEVICE: active ones, or with --all allocated ones.",
        read=_list_ns,
        shape=shapes.namespace_list,
        options=(
            (("-n", "--namespace-id"), "nsid", int, 1, "First namespace of the list."),
            (("-y", "--csi"), "csi", int, None, "Only those of an I/O command set."),
            (("-a", "--all"), "allocated", bool, False, "Also those that are not attached."),
        ),
    ),
    "list-ctrl": Page(
        about="List the controllers of the subsystem of DEVICE, or those that a namespace is attached to.",
        read=_list_ctrl,
        shape=shapes.controller_list,
        options=(CNTID, (("-n", "--namespace-id"), "nsid", int, None, "Only those that it is attached to.")),
    ),
    "ns-descs": Page(
        about="Show the identifiers of a namespace of DEVICE.",
        read=identify(Cns.NAMESPACE_DESCRIPTORS, of_namespace=True),
        shape=shapes.descriptors,
        options=(NSID,),
    ),
    "cmdset-ind-id-ns": Page(
        about="Show the properties of a namespace of DEVICE that don't depend on its command set.",
        read=identify(Cns.INDEPENDENT_NAMESPACE, of_namespace=True),
        shape=shapes.independent_namespace,
        options=(NSID,),
        bits="cmdset-ind-id-ns",
    ),
    "nvm-id-ctrl": Page(
        about="Show the limits of the NVM command set of DEVICE.",
        read=identify(Cns.CSI_CONTROLLER),
        shape=shapes.nvm_controller,
    ),
    "nvm-id-ns": Page(
        about="Show a namespace's properties in the NVM command set: storage tags and guards of its LBA formats.",
        read=_nvm_namespace,
        shape=shapes.nvm_namespace,
        options=(NSID, UUID_INDEX),
        bits="nvm-id-ns",
    ),
    "nvm-id-ns-lba-format": Page(
        about="Show the NVM command set's properties of one LBA format of DEVICE.",
        read=_nvm_format,
        shape=shapes.nvm_namespace,
        options=(FORMAT_INDEX, UUID_INDEX),
        bits="nvm-id-ns",
    ),
    "id-ns-allocated": Page(
        about="Show a namespace of DEVICE, attached or not (Identify, CNS 11h).",
        read=identify(Cns.ALLOCATED_NAMESPACE, of_namespace=True),
        shape=shapes.namespace,
        options=(NSID,),
        bits="id-ns",
    ),
    "id-iocs": Page(
        about="Show the combinations of I/O command sets of DEVICE.",
        read=identify(Cns.COMMAND_SETS),
        shape=shapes.command_sets,
        options=((("-c", "--controller-id"), "cntid", int, 0xFFFF, "Which controller."),),
    ),
    "id-nvmset": Page(
        about="List the NVM sets of DEVICE.",
        read=identify(Cns.NVM_SETS),
        shape=shapes.nvm_sets,
        options=((("-i", "--nvmset_id", "--nvmset-id"), "setid", int, 0, "First set of the list."),),
    ),
    "id-uuid": Page(about="List the UUIDs of DEVICE.", read=identify(Cns.UUIDS), shape=shapes.uuids),
    "id-domain": Page(
        about="List the domains of DEVICE.",
        read=identify(Cns.DOMAINS),
        shape=shapes.domains,
        options=((("-d", "--dom-id", "--domain-id"), "setid", int, 0, "First domain of the list."),),
    ),
    "list-endgrp": Page(
        about="List the endurance groups of DEVICE.",
        read=identify(Cns.ENDURANCE_GROUPS),
        shape=shapes.endurance_groups,
        options=((("-i", "--endgrp-id"), "setid", int, 0, "First group of the list."),),
    ),
    "primary-ctrl-caps": Page(
        about="Show what the primary controller DEVICE can give to secondary ones.",
        read=identify(Cns.PRIMARY_CONTROLLER_CAPABILITIES),
        shape=shapes.primary_capabilities,
        options=((("-c", "--cntlid", "--cntid"), "cntid", int, 0, "Controller identifier."),),
    ),
    "list-secondary": Page(
        about="List the secondary controllers of DEVICE.",
        read=identify(Cns.SECONDARY_CONTROLLERS),
        shape=shapes.secondary_controllers,
        options=(CNTID, (("-e", "--num-entries"), "entries", int, 127, "Maximum number.")),
    ),
    "zns id-ctrl": Page(
        about="Show the zoned command set's limits of the controller DEVICE.",
        read=identify(Cns.CSI_CONTROLLER, csi=Csi.ZNS),
        shape=lambda data, options: {"zasl": data[0]},
    ),
    "zns id-ns": Page(
        about="Show a namespace's properties in the zoned command set.",
        read=_zoned_namespace,
        shape=shapes.zoned_namespace,
        options=(
            NSID,
            (("--vendor-specific",), "vendor", bool, False, "No effect: see --output-format binary."),
        ),
        bits="zns id-ns",
    ),
}
