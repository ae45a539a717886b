"""nvme-async id-ctrl and id-ns: a controller and its namespaces, with nvme-cli's names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs
import click
import uvloop

from nvme_async.cli.fabrics import open_device
from nvme_async.cli.output import output_option
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace, PowerState

# Shown in hexadecimal, as nvme-cli does; everything else is decimal.
# fmt: off
_HEX = frozenset({
    "vid", "ssvid", "cmic", "cntlid", "ver", "rtd3r", "rtd3e", "oaes", "ctratt", "rrls", "oacs", "frmw",
    "lpa", "avscc", "apsta", "rpmbs", "hctma", "sanicap", "sqes", "cqes", "oncs", "fuses", "fna", "vwc",
    "ocfs", "sgls", "fcatt", "nsze", "ncap", "nuse", "nsfeat", "flbas", "mc", "dpc", "dps", "nmic",
    "rescap", "fpi",
})
# fmt: on
_WORKLOADS = {0: "-", 1: "1MiB 32 RW, 30s idle", 2: "80K 128KiB SW"}
_WIDTH = 10

_output = output_option(help="json has nvme-cli's keys and types.")


def _printable(value: str) -> str:
    """Text from a device, safe for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in value.split("\0", 1)[0])


def _value(name: str, value: Any) -> str:
    if name == "ieee":
        return f"{value:06x}"
    if isinstance(value, bytes):
        return value.hex()
    if name in _HEX:
        return f"{value:#x}" if value else "0"
    return _printable(str(value))


def _lines(identify: attrs.AttrsInstance, names: Iterator[str], width: int) -> Iterator[str]:
    for name in names:
        yield f"{name:<{width}}: {_value(name, getattr(identify, name))}"


def _watts(value: int, scale: int) -> str:
    """scale: 0 not reported, 1 in 0.1 mW, 2 in 10 mW."""
    if scale == 1:
        return f"{value // 10000}.{value % 10000:04}W"
    if scale == 2:
        return f"{value // 100}.{value % 100:02}W"
    return "reserved" if scale else "-"


def _power_state(index: int, state: PowerState) -> Iterator[str]:
    operational = "operational" if state.operational else "non-operational"
    indent = " " * 12
    yield (
        f"ps {index:>6} : mp:{_watts(state.mp, 1 if state.flags & 1 else 2)} {operational} "
        f"enlat:{state.enlat} exlat:{state.exlat} rrt:{state.rrt} rrl:{state.rrl}"
    )
    yield (
        f"{indent}rwt:{state.rwt} rwl:{state.rwl} idle_power:{_watts(state.idlp, state.ips >> 6)} "
        f"active_power:{_watts(state.actp, state.apws >> 6)}"
    )
    yield f"{indent}active_power_workload:{_WORKLOADS.get(state.apws & 7, 'reserved')}"


def controller_text(identify: IdentifyController) -> str:
    """`field : value` lines."""
    names = (field.name for field in attrs.fields(IdentifyController))
    lines = ["NVME Identify Controller:"]
    lines += _lines(identify, (name for name in names if name not in ("dctype", "psds", "vs")), _WIDTH)
    for index, state in enumerate(identify.power_states):
        lines += _power_state(index, state)
    return "\n".join(lines)


def namespace_text(nsid: int, identify: IdentifyNamespace) -> str:
    """`field : value` lines and the LBA formats."""
    keys = identify.to_json()  # omits what the namespace does not report
    names = (field.name for field in attrs.fields(IdentifyNamespace))
    lines = [f"NVME Identify Namespace {nsid}:"]
    lines += _lines(identify, (name for name in names if name in keys and name != "lbafs"), 8)
    for index, lbaf in enumerate(identify.supported_formats):
        in_use = " (in use)" if index == identify.lbaf_index else ""
        rp = f"{lbaf.rp:#x}" if lbaf.rp else "0"
        lines.append(f"lbaf {index:2} : ms:{lbaf.ms:<3} lbads:{lbaf.ds:<2} rp:{rp}{in_use}")
    return "\n".join(lines)


async def _identify_controller(device: str) -> IdentifyController:
    async with open_device(device) as controller:
        return controller.identify


async def _identify_namespace(device: str, nsid: int | None) -> tuple[int, IdentifyNamespace]:
    async with open_device(device) as controller:
        active = sorted(controller.namespaces)
        if nsid is None and active:
            nsid = active[0]
        if nsid is None or nsid not in active:
            wanted = "" if nsid is None else f" {nsid}"
            raise click.ClickException(f"no active namespace{wanted} on {device}; active: {active or 'none'}")
        return nsid, controller.namespaces[nsid].identify


@click.command("id-ctrl")
@click.argument("device")
@_output
def id_ctrl(device: str, output: str) -> None:
    """Show the properties of the controller DEVICE (Identify Controller)."""
    identify = uvloop.run(_identify_controller(device))
    click.echo(json.dumps(identify.to_json(), indent=2) if output == "json" else controller_text(identify))


@click.command("id-ns")
@click.argument("device")
@click.option("-n", "--namespace-id", "nsid", type=click.IntRange(min=1), help="Namespace. [default: the first]")
@_output
def id_ns(device: str, nsid: int | None, output: str) -> None:
    """Show the properties of a namespace of DEVICE (Identify Namespace)."""
    nsid, identify = uvloop.run(_identify_namespace(device, nsid))
    click.echo(json.dumps(identify.to_json(), indent=2) if output == "json" else namespace_text(nsid, identify))
