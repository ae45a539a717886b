"""nvme-async selftest: does this driver work with this drive? A report to paste into an issue."""

from __future__ import annotations

import json
import platform
import sys

import attrs
import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from nvme_async._version import __version__
from nvme_async.cli.output import output_option
from nvme_async.cli.pci import system_of
from nvme_async.cli.selftest_checks import Selftest
from nvme_async.device.pci import Function, System, function_at
from nvme_async.device.pci_use import uses
from nvme_async.errors import DeviceError

_WORDS = {"ok": "ok     ", "failed": "FAILED ", "skipped": "skipped"}


def _range(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """FIRST-LAST, both blocks included."""
    if value is None:
        return None
    first, dash, last = value.partition("-")
    try:
        found = int(first, 0), int(last, 0)
    except ValueError:
        found = (1, 0)
    if not dash or not 0 <= found[0] <= found[1]:
        raise click.BadParameter(f"{value!r} is not a range of blocks, such as 1000-1999")
    return found


def free_function(system: System, device: str) -> Function | None:
    """The PCI function of `device`, None for other transports. DeviceError while anything uses it,
    or the kernel's driver has it.
    """
    scheme, _, address = device.partition(":")
    if scheme.lower() != "pci":
        return None
    function = function_at(system, address)
    found = uses(system, function)
    if found:
        raise DeviceError(f"{device} is in use, so it was not tested: {'; '.join(map(str, found))}")
    if function.driver != "vfio-pci":
        raise DeviceError(f"{device} is bound to {function.driver or 'no driver'}; run nvme-async bind {device} first")
    return function


def _about(device: str, function: Function | None) -> dict[str, str]:
    about = {
        "device": device,
        "nvme_async": f"{__version__}, Python {platform.python_version()}",
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    if function is not None:
        ids = f"{function.vendor:04x}:{function.device:04x}"
        subsystem = f"{function.subsystem_vendor:04x}:{function.subsystem_device:04x}"
        group = "none" if function.iommu_group is None else str(function.iommu_group)
        about["pci"] = f"{ids} subsystem {subsystem} revision {function.revision:02x}, IOMMU group {group}"
    return about


def _text(test: Selftest) -> str:
    width = max(len(check.name) for check in test.checks)
    failed = sum(check.state == "failed" for check in test.checks)
    return "\n".join(
        [
            *(f"{name:<12}{value}" for name, value in test.about.items()),
            "",
            *(f"{_WORDS[check.state]}  {check.name:<{width}}  {check.detail}" for check in test.checks),
            "",
            f"{failed} of {len(test.checks)} steps failed." if failed else "The drive passed.",
        ]
    )


@click.command()
@click.argument("device")
@click.option(
    "--write-to",
    metavar="FIRST-LAST",
    callback=_range,
    help="Also write these blocks of the first namespace, read them back, and put back what was there.",
)
@click.option(
    "--step-limit", default=60.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds for each step."
)
@output_option()
@click.pass_context
def selftest(ctx: click.Context, device: str, write_to: tuple[int, int] | None, step_limit: float, output: str) -> None:
    """Check a drive with this driver. It reads only, unless --write-to says otherwise.

    Bring-up, Identify against what sysfs said, reads at several depths and sizes, reset, a
    hand-over to itself, interrupts, shutdown: each step has a time limit, and all together take
    some seconds. A drive that is mounted, opened or bound to the kernel's driver is refused. Please
    paste the report of a drive that isn't listed yet into an issue, whether it passed or not.
    """
    function = free_function(system_of(ctx), device)
    test = Selftest(device, step_limit, write_to, function)
    test.about |= _about(device, function)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    terminal = Console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=len(test.steps))
        test.progress = lambda number, name: progress.update(task, completed=number, description=name)
        uvloop.run(test.run())
    if output == "json":
        checks = [attrs.asdict(check) for check in test.checks]
        click.echo(json.dumps({"about": test.about, "passed": not test.failed, "checks": checks}, indent=2))
    else:
        click.echo(_text(test))
    if test.failed:
        ctx.exit(1)
