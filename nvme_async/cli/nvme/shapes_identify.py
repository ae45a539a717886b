"""nvme-cli's JSON of Identify pages."""

from __future__ import annotations

from typing import Any

from nvme_async.cli.nvme.page import Options, fields
from nvme_async.spec import _nvme_cli
from nvme_async.spec.identify import (
    CommandSets,
    IdentifyController,
    IdentifyControllerNvm,
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    IdentifyNamespaceNvm,
    NamespaceGranularityList,
    PrimaryControllerCapabilities,
    decode_controller_list,
    decode_domains,
    decode_endurance_groups,
    decode_namespace_list,
    decode_nvm_sets,
    decode_secondary_controllers,
)
from nvme_async.spec.zns import IdentifyNamespaceZns

_COMMAND_SETS = (
    ("Computational Programs Namespace Command Set", 4),
    ("Subsystem Local Memory Command Set", 3),
    ("Zoned Namespace Command Set", 2),
    ("Key Value Command Set", 1),
    ("NVM Command Set", 0),
)
_IDENTIFIERS = {1: ("eui64", 8), 2: ("nguid", 16), 3: ("uuid", 16), 4: ("csi", 1)}
_UUIDS = 127


def controller(data: bytes, options: Options) -> dict[str, Any]:
    page = IdentifyController.decode(data)
    return {**page.to_json(), **({"vs": _nvme_cli.ascii_rows(page.vs)} if options.get("vendor") else {})}


def namespace(data: bytes, options: Options) -> dict[str, Any]:
    return IdentifyNamespace.decode(data).to_json()


def lba_format(data: bytes, options: Options) -> dict[str, Any]:
    return _nvme_cli.namespace(IdentifyNamespace.decode(data), formats_only=True)


def independent_namespace(data: bytes, options: Options) -> dict[str, Any]:
    return fields(IdentifyNamespaceIndependent.decode(data))


def nvm_controller(data: bytes, options: Options) -> dict[str, Any]:
    page = fields(IdentifyControllerNvm.decode(data))
    if options.get("human") or options.get("verbose"):
        aocs = page["aocs"]
        explained = {"[15:1]: Reserved": aocs >> 1} if aocs >> 1 else {}
        explained["[0:0]: Reporting Allocated LBA Supported"] = aocs & 1
        tail = {name: page.pop(name) for name in ("ver", "lbamqf")}
        return {**page, **explained, **tail}
    return page


def nvm_namespace(data: bytes, options: Options) -> dict[str, Any]:
    """Of as many formats as the namespace has: options["formats"]."""
    page = IdentifyNamespaceNvm.decode(data)
    shown: dict[str, Any] = {} if options.get("formats_only") else {"lbstm": page.lbstm}
    shown |= {"pic": page.pic, "pifa": page.pifa}
    shown["elbafs"] = [
        {"sts": word & 0x7F, "pif": word >> 7 & 3, "qpif": word >> 9 & 0xF}
        for word in page.elbafs[: options.get("formats", len(page.elbafs))]
    ]
    if options.get("nsfeat", 0) & 0x20:
        shown["npdgl"] = page.npdgl
    return shown | {name: getattr(page, name) for name in ("nprg", "npra", "nors", "npdal", "lbapss", "tlbaag")}


def zoned_namespace(data: bytes, options: Options) -> dict[str, Any]:
    page = fields(IdentifyNamespaceZns.decode(data))
    formats = [{"zsze": one.zsze, "zdes": one.zdes} for one in page.pop("lbafe")]
    page.pop("vs", None)
    return {**page, "lbafe": formats[: options.get("formats", len(formats))]}


def descriptors(data: bytes, options: Options) -> dict[str, Any]:
    """In the page's order, with their places."""
    shown: list[dict[str, Any]] = []
    at = 0
    while at + 4 <= len(data) and data[at + 1]:
        kind, length = data[at], data[at + 1]
        if kind in _IDENTIFIERS:
            name, size = _IDENTIFIERS[kind]
            value = data[at + 4 : at + 4 + size]
            text = value.hex()
            if kind == 3:
                text = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
            elif kind == 4:
                text = f"{value[0]:#x}" if value and value[0] else "0"
            shown.append({"loc": at, "nidt": kind, "nidl": length, "Type": name, name: text})
        at += 4 + length
    return {"ns-descs": shown} if shown else {}


def namespace_list(data: bytes, options: Options) -> dict[str, Any]:
    return {"nsid_list": [{"nsid": nsid} for nsid in decode_namespace_list(data)]}


def controller_list(data: bytes, options: Options) -> dict[str, Any]:
    found = decode_controller_list(data)
    return {"num_ctrl": len(found), "ctrl_list": [{"ctrl_id": one} for one in found]}


def command_sets(data: bytes, options: Options) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for index, word in enumerate(CommandSets.decode(data).iocsc):
        if word:
            shown[f"I/O Command Set Combination[{index}]"] = word
            shown[f"IOCSC{index}"] = {
                name: "Selected" if word >> bit & 1 else "Not selected" for name, bit in _COMMAND_SETS
            }
    return shown


def nvm_sets(data: bytes, options: Options) -> dict[str, Any]:
    names = (
        "nvmset_id",
        "endurance_group_id",
        "random_4k_read_typical",
        "optimal_write_size",
        "total_nvmset_cap",
        "unalloc_nvmset_cap",
    )
    sets = [dict(zip(names, fields(one).values(), strict=True)) for one in decode_nvm_sets(data)]
    return {"nid": data[0], "NVMSet": sets}


def uuids(data: bytes, options: Options) -> dict[str, Any]:
    """The list ends with a zero UUID."""
    shown = []
    for at in range(32, min(len(data), 32 * (_UUIDS + 1)) - 31, 32):
        text = data[at + 16 : at + 32].hex()
        if not int(text, 16):
            break
        text = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
        shown.append({"association": data[at] & 3, "uuid": text})
    return {"UUID-list": shown}


def domains(data: bytes, options: Options) -> dict[str, Any]:
    names = ("dom_id", "dom_cap", "unalloc_dom_cap", "max_egrp_dom_cap")
    shown = [dict(zip(names, fields(one).values(), strict=True)) for one in decode_domains(data)]
    return {"num_dom_entries": len(shown), "domain_list": shown}


def endurance_groups(data: bytes, options: Options) -> dict[str, Any]:
    found = decode_endurance_groups(data)
    return {"num_endgrp_id": len(found), "endgrp_list": [{"endgrp_id": one} for one in found]}


def primary_capabilities(data: bytes, options: Options) -> dict[str, Any]:
    return fields(PrimaryControllerCapabilities.decode(data))


def secondary_controllers(data: bytes, options: Options) -> dict[str, Any]:
    found = decode_secondary_controllers(data)[: options.get("entries") or None]
    return {
        "num": len(found),
        "secondary-controllers": [
            {
                "secondary-controller-identifier": one.scid,
                "primary-controller-identifier": one.pcid,
                "secondary-controller-state": one.scs,
                "virtual-function-number": one.vfn,
                "num-virtual-queues": one.nvq,
                "num-virtual-interrupts": one.nvi,
            }
            for one in found
        ],
    }


def granularity(data: bytes, options: Options) -> dict[str, Any]:
    page = NamespaceGranularityList.decode(data)
    return {
        "attributes": int.from_bytes(data[:4], "little"),
        "num-descriptors": data[4],
        "namespace-granularity-list": [
            {"namespace-size-granularity": one.nszegran, "namespace-capacity-granularity": one.ncapgran}
            for one in page.descriptors
        ],
    }
