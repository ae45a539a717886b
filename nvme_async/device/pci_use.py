"""The uses of a drive: the reasons not to take it from the kernel."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

from nvme_async.device.pci import Function, System, text

# Device mapper on md on partition is deep already; a loop in a broken tree must end.
_MAX_DEPTH = 16


@attrs.frozen
class Use:
    """One use: `device` is a node such as /dev/nvme0n1p2, `what` a predicate such as "is mounted at
    /".
    """

    device: str
    what: str

    def __str__(self) -> str:
        return f"{self.device} {self.what}"


@attrs.frozen
class _Mount:
    device: str  # major:minor
    source: str
    target: str
    kind: str


def _unescape(field: str) -> str:
    """proc(5): space, tab, newline and backslash are octal in mountinfo and swaps."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _mounts(system: System) -> list[_Mount]:
    """The mounts of all mount namespaces that this process may read: a container's count too."""
    seen: set[str] = set()
    result: dict[tuple[str, str, str], _Mount] = {}
    processes = sorted(entry for entry in system.proc.glob("[0-9]*"))
    for process in [system.proc / "self", *processes]:
        try:
            namespace = os.readlink(process / "ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
        except OSError:
            pass  # gone, not accessible, or a tree without it: its mountinfo may still be readable
        try:
            lines = (process / "mountinfo").read_text(errors="surrogateescape").splitlines()
        except OSError:
            continue
        for line in lines:
            mount = _mount(line)
            if mount is not None:
                result.setdefault((mount.device, mount.source, mount.target), mount)
    return list(result.values())


def _mount(line: str) -> _Mount | None:
    left, dash, right = line.partition(" - ")
    fields, rest = left.split(), right.split()
    if not dash or len(fields) < 5 or len(rest) < 2:
        return None
    return _Mount(fields[2], _unescape(rest[1]), _unescape(fields[4]), rest[0])


def _swaps(system: System) -> list[str]:
    """The names of the block devices that are used as swap."""
    lines = (text(system.proc / "swaps") or "").splitlines()[1:]
    return [(system.root / _unescape(line.split()[0]).lstrip("/")).resolve().name for line in lines if line.split()]


class _Inspector:
    def __init__(self, system: System) -> None:
        self._system = system
        self._mounts = _mounts(system)
        self._swaps = _swaps(system)

    def partitions(self, disk: str) -> list[str]:
        folder = (self._system.sys / "class/block" / disk).resolve()
        return sorted(entry.parent.name for entry in folder.glob("*/partition"))

    def uses(self, name: str, depth: int = 0) -> Iterator[str]:
        """The uses of one block device, without its partitions."""
        block = self._system.sys / "class/block" / name
        device = text(block / "dev")
        for mount in self._mounts:
            # Some file systems (btrfs) have their own device numbers: they are identified by their
            # source.
            source = (
                (self._system.root / mount.source.lstrip("/")).resolve() if mount.source.startswith("/dev/") else None
            )
            if mount.device == device or (mount.device.startswith("0:") and source and source.name == name):
                yield f"is mounted at {mount.target} ({mount.kind})"
        if name in self._swaps:
            yield "is used as swap"
        for holder in sorted((block / "holders").glob("*")):
            above = list(self.uses(holder.name, depth + 1)) if depth < _MAX_DEPTH else []
            yield f"is held by {self._holder(holder.name)}{', which ' + ' and '.join(above) if above else ''}"

    def _holder(self, name: str) -> str:
        block = self._system.sys / "class/block" / name
        mapped = text(block / "dm/name")
        if mapped:
            return f"device-mapper {name} ({mapped})"
        level = text(block / "md/level")
        return f"md array {name} ({level})" if level else name

    def exclusive(self, name: str) -> bool:
        """Whether it is open with O_EXCL, as by a mount, mkfs or another driver. False if this
        process may not check.
        """
        return self._system.open_error(self._system.dev / name, os.O_RDONLY | os.O_EXCL) == errno.EBUSY


def uses(system: System, function: Function) -> list[Use]:
    """Everything that would break if the function were taken from the kernel's driver; empty if
    nothing would.

    An ordinary user sees less: exclusive use, and mounts in other namespaces, are then unknown.
    """
    inspector = _Inspector(system)
    return [use for disk in function.disks for use in _uses_of(inspector, disk)]


def uses_of_block(system: System, name: str) -> list[Use]:
    """The same for one block device by its kernel name (nvme0n1, nvme0n1p2, loop0), with its
    partitions.
    """
    return _uses_of(_Inspector(system), name)


def _uses_of(inspector: _Inspector, disk: str) -> list[Use]:
    found: list[Use] = []
    for name in [disk, *inspector.partitions(disk)]:
        reasons = list(inspector.uses(name))
        if not reasons and name != disk and inspector.exclusive(name):
            reasons.append("is opened exclusively by another process")
        found += [Use(f"/dev/{name}", reason) for reason in reasons]
    # A disk counts as open if one of its partitions is: check the disk itself only if they are
    # free.
    if not found and inspector.exclusive(disk):
        found.append(Use(f"/dev/{disk}", "is opened exclusively by another process"))
    return found


def openers(system: System, node: Path) -> list[str]:
    """Processes that have a node open, as "name (pid)"; only those that this process may
    inspect.
    """
    found = []
    for process in sorted(system.proc.glob("[0-9]*"), key=lambda entry: int(entry.name)):
        try:
            descriptors = list((process / "fd").iterdir())
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target == str(node):
                found.append(f"{text(process / 'comm') or 'process'} ({process.name})")
                break
    return found
