"""list-subsys, and what the manager at --attach has, as nvme-cli lists it."""

from __future__ import annotations

from typing import Any

import click
import uvloop

from nvme_async.cli.nvme.build import command
from nvme_async.cli.nvme.output import show
from nvme_async.cli.nvme.target import ATTACH, RemoteController, run
from nvme_async.errors import ControllerError
from nvme_async.manager.control import ControlClient

_ROW = ("NameSpace", "DevicePath", "ModelNumber", "SerialNumber", "PhysicalSize", "SectorSize", "Firmware")


def _transport(uri: str) -> str:
    return "tcp" if uri.startswith("tcp:") else "pcie"


def _namespace(nsid: int, identify: Any) -> dict[str, Any]:
    size = identify.block_size
    return {
        "NSID": nsid,
        "UsedBytes": identify.nuse * size,
        "MaximumLBA": identify.nsze,
        "PhysicalSize": identify.nsze * size,
        "SectorSize": size,
    }


def _facts(controller: Any) -> dict[str, Any]:
    """What the listings show of a controller."""
    identify = controller.identify
    return {
        "uri": controller.uri,
        "nqn": identify.subnqn,
        "cntlid": identify.cntlid,
        "sn": identify.sn.ljust(20),
        "mn": identify.mn.ljust(40),
        "fr": identify.fr.ljust(8),
        "type": {1: "nvm", 2: "discovery"}.get(identify.cntrltype, "nvm"),
        "namespaces": [_namespace(nsid, one.identify) for nsid, one in sorted(controller.namespaces.items())],
    }


async def _of(controller: Any) -> dict[str, Any]:
    return _facts(controller)


async def _of_manager(client: ControlClient) -> list[dict[str, Any]]:
    """Of each device that the manager has ready."""
    found = []
    for uri in client.call("inspect")["devices"]:
        remote = RemoteController(client, uri)
        try:
            await remote.start()
        except (RuntimeError, ControllerError):
            continue  # it isn't ready
        found.append(_facts(remote))
    return found


def managed(attach: str) -> list[dict[str, Any]]:
    """Facts of all devices of the manager there."""
    with ControlClient(attach) as client:
        result: list[dict[str, Any]] = uvloop.run(_of_manager(client))
    return result


def devices(found: list[dict[str, Any]], *, verbose: bool) -> dict[str, Any]:
    """`nvme list -o json`: a row for each namespace, or with verbose a tree."""
    if not verbose:
        return {
            "Devices": [
                {
                    "NameSpace": one["NSID"],
                    "DevicePath": facts["uri"],
                    "GenericPath": facts["uri"],
                    "Firmware": facts["fr"],
                    "ModelNumber": facts["mn"].rstrip(),
                    "SerialNumber": facts["sn"].rstrip(),
                    **{name: one[name] for name in ("UsedBytes", "MaximumLBA", "PhysicalSize", "SectorSize")},
                }
                for facts in found
                for one in facts["namespaces"]
            ]
        }
    subsystems = [
        {
            "Subsystem": f"nvme-subsys{index}",
            "SubsystemNQN": facts["nqn"],
            "Controllers": [
                {
                    "Controller": facts["uri"],
                    "Cntlid": str(facts["cntlid"]),
                    "SerialNumber": facts["sn"].rstrip(),
                    "ModelNumber": facts["mn"].rstrip(),
                    "Firmware": facts["fr"],
                    "Transport": _transport(facts["uri"]),
                    "Address": facts["uri"].partition(":")[2],
                    "Namespaces": facts["namespaces"],
                    "Paths": [],
                }
            ],
            "Namespaces": [],
        }
        for index, facts in enumerate(found)
    ]
    return {"Devices": [{"Subsystems": subsystems}]}


def rows(found: list[dict[str, Any]]) -> list[str]:
    """A line for each namespace."""
    listed = devices(found, verbose=False)["Devices"]
    shown: list[tuple[str, ...]] = [_ROW, *(tuple(str(one[name]) for name in _ROW) for one in listed)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(_ROW))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]


@command("list-subsys", (("-v", "--verbose"), "verbose", bool, False, "With model, firmware and type."), output=True)
def list_subsys(device: str | None, verbose: bool, output: str, human: bool) -> None:
    """Show the NVM subsystem of DEVICE, or those of the manager at --attach."""
    attach = click.get_current_context().find_root().meta.get(ATTACH)
    found = managed(attach) if attach and device is None else [run(device, _of)]
    subsystems = []
    for index, facts in enumerate(found):
        details = {
            "Model": facts["mn"].rstrip(),
            "Firmware": facts["fr"].rstrip(),
            "IOPolicy": "none",
            "Type": facts["type"],
        }
        path = {
            "Name": facts["uri"],
            "Transport": _transport(facts["uri"]),
            "Address": facts["uri"].partition(":")[2],
            "State": "live",
        }
        subsystems.append(
            {
                "Name": f"nvme-subsys{index}",
                "NQN": facts["nqn"],
                **(details if verbose else {}),
                "Paths": [path],
            }
        )

    def text() -> str:
        lines = []
        for one in subsystems:
            lines += [f"{one['Name']} - NQN={one['NQN']}", "\\"]
            lines += [f" +- {path['Name']} {path['Transport']} {path['State']}" for path in one["Paths"]]
        return "\n".join(lines)

    show(output, None, [{"Subsystems": subsystems}], text=text)
