"""nvme-async list, bind and unbind: the NVMe functions of this machine and their drivers."""

from __future__ import annotations

import json
import pwd
from typing import Any

import attrs
import click

from nvme_async.cli.columns import Column, indented, terminal_width
from nvme_async.cli.columns import table as columns_table
from nvme_async.cli.nvme.listing import devices, managed
from nvme_async.cli.nvme.listing import rows as rows_of
from nvme_async.cli.nvme.output import lines as text_lines
from nvme_async.cli.nvme.target import ATTACH
from nvme_async.cli.output import output_option
from nvme_async.device import parse_uri
from nvme_async.device.pci import VFIO_DRIVER, Function, System, find
from nvme_async.device.pci_bind import Outcome
from nvme_async.device.pci_bind import bind as bind_function
from nvme_async.device.pci_bind import unbind as unbind_function
from nvme_async.device.pci_use import Use, uses

_COLUMNS = (
    Column("ADDRESS", right=False),
    Column("IDS", 2, right=False),
    Column("MODEL", right=False, elastic=True),
    Column("SERIAL", 1, right=False),
    Column("DRIVER", right=False),
    Column("GROUP", 3),
    Column("NUMA", 4),
    Column("QUIRKS", 5, right=False),
    Column("IN USE", right=False),
)


def _address(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """DEVICE as a pci: URI; a bare address is accepted too."""
    uri = value if value.lower().startswith("pci:") else f"pci:{value}"
    try:
        return parse_uri(uri)[1]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _uid(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if value.isdigit():
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except KeyError:
        raise click.BadParameter(f"unknown user {value!r}") from None


def system_of(ctx: click.Context) -> System:
    """The machine, or a test's replacement."""
    return ctx.obj if isinstance(ctx.obj, System) else System()


def kernel_uris(system: System, function: Function) -> list[str]:
    """Its URIs while the kernel drives it: each namespace, by its character device if there is
    one, and the controller.
    """
    if function.controller is None:
        return []
    found = []
    for disk in function.disks:
        generic = f"ng{disk.removeprefix('nvme')}"
        node = generic if (system.sys / "class/nvme-generic" / generic).exists() else disk
        found.append(f"kernel:/dev/{node}")
    return [*found, f"kernel:{function.controller}"]


def ways(system: System, function: Function) -> str:
    """How to open it, for people."""
    if function.driver == VFIO_DRIVER:
        return function.uri
    kernel = kernel_uris(system, function)
    bound = f"{function.uri} once it is bound to {VFIO_DRIVER}"
    return f"{' or '.join(kernel)}; {bound}" if kernel else bound


def to_json(system: System, function: Function, in_use: list[Use]) -> dict[str, Any]:
    """One function as `list -o json` shows it; numbers of PCI are hexadecimal strings as in
    lspci.
    """
    data = attrs.asdict(function)
    for name in ("vendor", "device", "subsystem_vendor", "subsystem_device"):
        data[name] = f"{data[name]:04x}"
    data["class_code"] = f"{function.class_code:06x}"
    return {
        "uri": function.uri,
        "kernel_uris": kernel_uris(system, function),
        **data,
        "quirks": function.quirks.inspect(),
        "in_use": [attrs.asdict(use) for use in in_use],
    }


def table(rows: list[tuple[Function, list[Use]]], width: int | None = None) -> str:
    """Aligned columns, one line per function, further uses on separate lines. If that is wider
    than the terminal, all uses are printed below their function, and columns are dropped.
    """
    cells = [
        (
            function.address,
            f"{function.vendor:04x}:{function.device:04x}",
            function.model or "-",
            function.serial or "-",
            function.driver or "-",
            "-" if function.iommu_group is None else str(function.iommu_group),
            "-" if function.numa_node is None else str(function.numa_node),
            ",".join(function.quirks.inspect()) or "-",
            str(in_use[0]) if in_use else "-",
        )
        for function, in_use in rows
    ]
    header, *lines = columns_table(_COLUMNS, cells)
    below = [[str(use) for use in in_use[1:]] for _, in_use in rows]
    place = header.index("IN USE")
    if width is not None and max(map(len, [header, *lines])) > width:
        brief = [(*row[:-1], "yes" if in_use else "-") for row, (_, in_use) in zip(cells, rows, strict=True)]
        header, *lines = columns_table(_COLUMNS, brief, width)
        below = [[str(use) for use in in_use] for _, in_use in rows]
        place = 4
    out = [header]
    for line, more in zip(lines, below, strict=True):
        out += [line, *(indented(" " * place, reason, width) for reason in more)]
    return "\n".join(out)


@click.command("list")
@output_option()
@click.option("-v", "--verbose", is_flag=True, help="With --attach: subsystems, controllers and namespaces.")
@click.pass_context
def list_devices(ctx: click.Context, output: str, verbose: bool) -> None:
    """Show every NVMe function of this machine: its driver, its uses, and the URIs to open
    it. With --attach: the namespaces of the manager there, as nvme-cli lists them.
    """
    attach = ctx.find_root().meta.get(ATTACH)
    if attach:
        found = managed(attach)
        if output == "json":
            click.echo(json.dumps(devices(found, verbose=verbose), indent=2))
        else:
            click.echo("\n".join(text_lines(devices(found, verbose=True)) if verbose else rows_of(found)))
        return
    system = system_of(ctx)
    rows = [(function, uses(system, function)) for function in find(system)]
    if output == "json":
        click.echo(json.dumps([to_json(system, *row) for row in rows], indent=2))
    elif rows:
        click.echo(table(rows, terminal_width()))
        click.echo("\nTo open them:")
        for function, _ in rows:
            click.echo(f"  {ways(system, function)}")
    else:
        click.echo("There is no NVMe function on this machine's PCI bus.")


def _report(system: System, outcome: Outcome, output: str) -> None:
    function = outcome.function
    if output == "json":
        data = {
            **to_json(system, function, []),
            "before": outcome.before,
            "changed": outcome.changed,
            "broken": [attrs.asdict(use) for use in outcome.broken],
            "hints": list(outcome.hints),
        }
        click.echo(json.dumps(data, indent=2))
        return
    if outcome.changed:
        click.echo(f"{function.uri}: {outcome.before or 'no driver'} -> {function.driver}")
    else:
        click.echo(f"{function.uri} is bound to {function.driver} already")
    for use in outcome.broken:
        click.echo(f"  broke: {use}", err=True)
    for hint in outcome.hints:
        click.echo(f"  note: {hint}", err=True)


@click.command("bind")
@click.argument("device", callback=_address)
@click.option("--force", is_flag=True, help="Bind it even if it is in use; lists what breaks.")
@click.option("--owner", metavar="USER", callback=_uid, help="User who may open it without being root.")
@output_option()
@click.pass_context
def bind(ctx: click.Context, device: str, force: bool, owner: int | None, output: str) -> None:
    """Take DEVICE (pci:0000:01:00.0) from the kernel's driver and bind it to vfio-pci. Needs root.

    Refuses while one of its namespaces is mounted, used as swap, held by device-mapper, md or a
    file system, or opened exclusively. `unbind` returns it to its previous driver.
    """
    _report(system_of(ctx), bind_function(system_of(ctx), device, force=force, owner=owner), output)


@click.command("unbind")
@click.argument("device", callback=_address)
@output_option()
@click.pass_context
def unbind(ctx: click.Context, device: str, output: str) -> None:
    """Return DEVICE (pci:0000:01:00.0) to the kernel driver that `bind` took it from. Needs
    root.
    """
    _report(system_of(ctx), unbind_function(system_of(ctx), device), output)
