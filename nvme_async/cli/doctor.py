"""nvme-async doctor: what this machine lacks for driving its NVMe controllers, and the command
that fixes it.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import attrs
import click

from nvme_async.cli.columns import indented, terminal_width
from nvme_async.cli.output import output_option
from nvme_async.cli.pci import system_of
from nvme_async.device.pci import VFIO_DRIVER, Function, System, find, text
from nvme_async.device.pci_use import openers
from nvme_async.device.vfio_container import is_noiommu, offenders
from nvme_async.dma import PAGE_SIZE
from nvme_async.driver.kernel.engine import why_no_ring
from nvme_async.driver.options import Options
from nvme_async.errors import NvmeError
from nvme_async.keepalive import config
from nvme_async.keepalive.custodian import find_custodian
from nvme_async.keepalive.sizing import Wanted

MIB = 1 << 20
HUGEPAGE = 2 * MIB
# linux/capability.h; a bit of CapEff in /proc/self/status
CAP_IPC_LOCK = 14

Level = Literal["ok", "note", "problem"]


@attrs.frozen
class Finding:
    """One finding. `fix` is a command, or an instruction if there is no command."""

    check: str
    level: Level
    message: str
    fix: str | None = None


@attrs.frozen
class Machine:
    """The examined system, and limits of the process that a test may override."""

    system: System
    pool_bytes: int
    memlock: int = attrs.field()
    uid: int = attrs.field(factory=os.geteuid)
    page_size: int = mmap.PAGESIZE
    ring: Callable[[], str] = why_no_ring  # why there is no io_uring; empty: there is

    @memlock.default
    def _limit(self) -> int:
        """The soft limit of memory that this process may lock, bytes."""
        limits = text(self.system.proc / "self/limits") or ""
        found = re.search(r"^Max locked memory\s+(\d+|unlimited)", limits, re.MULTILINE)
        return int(found[1]) if found and found[1] != "unlimited" else resource.RLIM_INFINITY


def _iommu(machine: Machine) -> Iterator[Finding]:
    system = machine.system
    groups = system.sys / "kernel/iommu_groups"
    numbers = [int(group.name) for group in groups.iterdir()] if groups.is_dir() else []
    bare = [number for number in numbers if is_noiommu(number, system.root)]
    count = len(numbers) - len(bare)
    unsafe = text(system.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode")
    if bare or unsafe in ("Y", "1"):
        groups_text = f" (groups {', '.join(map(str, sorted(bare)))})" if bare else ""
        yield Finding(
            "noiommu",
            "problem" if not count else "note",
            f"VFIO is in no-IOMMU mode{groups_text}: devices could access any memory, so the driver refuses them",
            "echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode   # and turn the IOMMU on",
        )
    if count:
        yield Finding("iommu", "ok", f"the IOMMU is on: {count} groups")
        return
    options = (text(system.proc / "cmdline") or "").split()
    if "AuthenticAMD" in (text(system.proc / "cpuinfo") or ""):
        fix = "turn on AMD-Vi (IOMMU) in the firmware setup, and remove iommu=off and amd_iommu=off if they are there"
    elif "intel_iommu=on" in options:
        fix = "turn on VT-d in the firmware setup"
    else:
        fix = (
            "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&intel_iommu=on iommu=pt /' /etc/default/grub && update-grub && reboot"
            "   # and VT-d on in the firmware setup"
        )
    yield Finding("iommu", "problem", "the IOMMU is off: nothing would restrict a device to its own memory", fix)


def _pages(machine: Machine) -> Iterator[Finding]:
    if machine.page_size == PAGE_SIZE:
        yield Finding("pages", "ok", f"memory pages have {PAGE_SIZE} bytes")
    else:
        yield Finding(
            "pages",
            "problem",
            f"memory pages have {machine.page_size} bytes; the driver needs {PAGE_SIZE}",
            "a kernel with pages of 4 KiB (on AArch64: CONFIG_ARM64_4K_PAGES)",
        )


def _modules(machine: Machine) -> Iterator[Finding]:
    system = machine.system
    for module, there in (
        ("vfio-pci", system.driver_path(VFIO_DRIVER)),
        ("vfio_iommu_type1", system.sys / "module/vfio_iommu_type1"),
    ):
        if there.is_dir():
            yield Finding("module", "ok", f"{module} is loaded")
        else:
            yield Finding(
                "module",
                "problem",
                f"the kernel module {module} is not loaded",
                f"modprobe {module} && echo {module} > /etc/modules-load.d/{module}.conf",
            )


def _container(machine: Machine) -> Iterator[Finding]:
    node = machine.system.dev / "vfio/vfio"
    code = machine.system.open_error(node, os.O_RDWR)
    if code == 0:
        yield Finding("container", "ok", "/dev/vfio/vfio can be opened")
    elif code == errno.EACCES:
        yield Finding(
            "container", "problem", "/dev/vfio/vfio can't be opened by this user", "chmod 0666 /dev/vfio/vfio"
        )
    else:
        yield Finding("container", "problem", f"/dev/vfio/vfio: {os.strerror(code)}", "modprobe vfio")


def _functions(machine: Machine) -> Iterator[Finding]:
    functions = find(machine.system)
    if not functions:
        yield Finding(
            "devices",
            "note",
            "there is no NVMe function on the PCI bus; emulated: devices work without one",
        )
        return
    ours = [function for function in functions if function.driver == VFIO_DRIVER]
    if not ours:
        yield Finding(
            "devices",
            "note",
            f"{len(functions)} NVMe functions, and none is bound to {VFIO_DRIVER}",
            f"nvme-async list; nvme-async bind {functions[-1].uri}   # one that nothing uses",
        )
    for function in ours:
        yield from _bound(machine, function)
    for function in functions:
        for quirk, reason in function.quirks.inspect().items():
            yield Finding("quirks", "ok", f"{function.uri} gets {quirk}, because of: {reason}")


def _bound(machine: Machine, function: Function) -> Iterator[Finding]:
    system = machine.system
    if function.iommu_group is None:
        yield Finding("group", "problem", f"{function.uri} has no IOMMU group", "see the check `iommu`")
        return
    node = system.dev / "vfio" / str(function.iommu_group)
    others = offenders(function.iommu_group, system.root)
    for other, driver in others:
        yield Finding(
            "group",
            "problem",
            f"{function.uri} shares IOMMU group {function.iommu_group} with {other}, which {driver} drives",
            f"echo {other} > /sys/bus/pci/devices/{other}/driver/unbind",
        )
    code = system.open_error(node, os.O_RDWR)
    if code == errno.EACCES:
        yield Finding(
            "permission",
            "problem",
            f"{node} ({function.uri}) doesn't belong to this user",
            f"chown {machine.uid} {node}   # as root, after each bind; or nvme-async bind --owner {machine.uid}",
        )
    elif code == errno.EBUSY:
        holders = ", ".join(openers(system, node)) or "another process"
        yield Finding("group", "note", f"{function.uri} is in use by {holders}")
    elif code:
        yield Finding(
            "permission",
            "problem",
            f"{node} ({function.uri}): {os.strerror(code)}",
            f"nvme-async unbind {function.uri} && nvme-async bind {function.uri}",
        )
    elif not others:
        yield Finding("group", "ok", f"{function.uri} can be opened")


def _may_lock_any(system: System) -> bool:
    """CAP_IPC_LOCK: VFIO doesn't count such a process's memory against its limit."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", text(system.proc / "self/status") or "", re.MULTILINE)
    return bool(match and int(match[1], 16) >> CAP_IPC_LOCK & 1)


def _memlock(machine: Machine) -> Iterator[Finding]:
    limit = machine.memlock
    if limit == resource.RLIM_INFINITY or _may_lock_any(machine.system):
        yield Finding("memlock", "ok", "memory for devices may be locked without limit")
    elif limit >= machine.pool_bytes:
        yield Finding(
            "memlock",
            "ok",
            f"{limit / MIB:.0f} MiB may be locked, a pool of {machine.pool_bytes / MIB:.0f} MiB needs less",
        )
    else:
        yield Finding(
            "memlock",
            "problem",
            f"a process of this user may lock {limit / MIB:.0f} MiB, and a pool has {machine.pool_bytes / MIB:.0f} MiB",
            "prlimit --memlock=unlimited --pid $$   # as root, for this shell; for good: a file in"
            " /etc/security/limits.d, or LimitMEMLOCK=infinity for a service",
        )


def _hugepages(machine: Machine) -> Iterator[Finding]:
    match = re.search(r"^HugePages_Free:\s*(\d+)", text(machine.system.proc / "meminfo") or "", re.MULTILINE)
    free, wanted = int(match[1]) if match else 0, -(-machine.pool_bytes // HUGEPAGE)
    if free >= wanted:
        yield Finding("hugepages", "ok", f"{free} huge pages are free")
    else:
        yield Finding(
            "hugepages",
            "note",
            f"{free} huge pages are free, a pool uses {wanted}; without them everything works, slightly slower",
            f"echo {wanted} > /proc/sys/vm/nr_hugepages",
        )


def _servicing(machine: Machine) -> Iterator[Finding]:
    """The decision that open() of a pci: device would make about keepalive now, including the
    command line.
    """
    try:
        custodian = find_custodian(config.command_line.keeper)
        words = None if custodian is None else custodian.words
        if custodian is not None:
            custodian.close()
    except NvmeError as error:
        yield Finding("keepalive", "problem", str(error), "nvme-async keeper --help")
        return
    decision = config.decide(holder=words, wanted=Wanted(locked=True), default_pool_pages=machine.pool_bytes // 4096)
    for warning in decision.warnings:
        variable = warning.partition(":")[0]
        yield Finding("keepalive", "problem", warning, f"unset {variable}   # or set it to a valid value")
    yield Finding("keepalive", "ok", str(decision))


def _affinity(machine: Machine) -> Iterator[Finding]:
    folder = machine.system.proc / "irq"
    if not folder.is_dir():
        return
    if machine.system.open_error(folder / "default_smp_affinity", os.O_WRONLY) == 0:
        yield Finding("affinity", "ok", "interrupts can be routed to the CPU of the loop that waits for them")
    else:
        yield Finding(
            "affinity",
            "note",
            "this user can't route interrupts to the CPU of the loop that waits for them (/proc/irq belongs to root)",
            "run as root, or set the affinities from outside; this is optional",
        )


def _ring(machine: Machine) -> Iterator[Finding]:
    """kernel: and file: devices, which need nothing of the other checks."""
    reason = machine.ring()
    if not reason:
        yield Finding("io_uring", "ok", "kernel: and file: devices go through io_uring")
        return
    fix = "sysctl kernel.io_uring_disabled=0, or allow it in the container; this is optional"
    yield Finding("io_uring", "note", f"kernel: and file: devices go through threads; {reason}", fix)


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _pages,
    _iommu,
    _modules,
    _container,
    _functions,
    _memlock,
    _hugepages,
    _servicing,
    _ring,
)


def examine(machine: Machine) -> list[Finding]:
    """All findings, in the order in which to fix them. Changes nothing."""
    return [finding for check in CHECKS for finding in check(machine)]


@click.command("doctor")
@click.option(
    "--pool",
    type=click.IntRange(min=1),
    default=Options().pool_bytes // MIB,
    show_default=True,
    metavar="MIB",
    help="Memory for devices that a process will use.",
)
@output_option()
@click.pass_context
def doctor(ctx: click.Context, pool: int, output: str) -> None:
    """Show what this machine lacks for driving its NVMe controllers, and how to fix it.

    Exit code: 1 if something stands in the way, else 0.
    """
    findings = examine(Machine(system_of(ctx), pool * MIB))
    if output == "json":
        click.echo(json.dumps([attrs.asdict(finding) for finding in findings], indent=2))
    else:
        width = terminal_width()
        for finding in findings:
            click.echo(indented(f"{finding.level:<8} ", finding.message, width))
            if finding.fix:
                click.echo(f"{'':<8} -> {finding.fix}")  # on one line, to be copied
    if any(finding.level == "problem" for finding in findings):
        sys.exit(1)
