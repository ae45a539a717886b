"""How much more memory this process may have for devices: what the machine, the process's control
groups and the limit of locked memory leave.

A memfd's pages are charged when they are first touched; at that point the kernel doesn't refuse, it
kills. So the needed memory is compared with what is left before a pool is made.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import attrs

CAP_IPC_LOCK = 14
"""linux/capability.h; a bit of CapEff in /proc/self/status."""
_UNLIMITED = 1 << 62
"""Control groups of version 1 report "no limit" as a number of about this size."""


@attrs.frozen
class Bound:
    """`nbytes` are allowed, and the name of the limit."""

    nbytes: int
    reason: str


def memory_left(root: Path = Path("/")) -> Bound | None:
    """The bytes that can be touched before the kernel has to reclaim memory, by the tightest of
    the machine and the control groups of this process; None if unknown.
    """
    bounds = [*_machine(root), *_groups(root)]
    return min(bounds, key=lambda bound: bound.nbytes, default=None)


def memory_size(root: Path = Path("/")) -> int | None:
    """The maximum memory of this process: the machine's, or the smallest limit of its control
    groups.
    """
    sizes = [_meminfo(root).get("MemTotal", _UNLIMITED)]
    sizes += [limit for _, limit, _ in _limited_groups(root)]
    size = min(sizes)
    return size if size < _UNLIMITED else None


def huge_pages_left(root: Path = Path("/")) -> int:
    """Bytes of huge pages of the default size that are free and not reserved."""
    found = re.findall(r"^HugePages_(Free|Rsvd):\s+(\d+)$", _text(root / "proc/meminfo"), re.MULTILINE)
    pages = {name: int(value) for name, value in found}
    return max(0, pages.get("Free", 0) - pages.get("Rsvd", 0)) * _meminfo(root).get("Hugepagesize", 0)


def lockable(root: Path = Path("/")) -> Bound | None:
    """The additional bytes that this process may lock; None: any number.

    VFIO locks the memory that a device can access, and counts it against RLIMIT_MEMLOCK unless the
    process has CAP_IPC_LOCK.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    status = _text(root / "proc/self/status")
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    if limit == resource.RLIM_INFINITY or (capabilities and int(capabilities[1], 16) >> CAP_IPC_LOCK & 1):
        return None
    locked = re.search(r"^VmLck:\s*(\d+) kB", status, re.MULTILINE)
    used = int(locked[1]) << 10 if locked else 0
    return Bound(
        max(0, limit - used),
        f"this process may lock {limit} bytes of memory (`ulimit -l`) and has locked {used}",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _meminfo(root: Path) -> dict[str, int]:
    lines = re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(value) << 10 for name, value in lines}


def _machine(root: Path) -> Iterator[Bound]:
    available = _meminfo(root).get("MemAvailable")
    if available is not None:
        yield Bound(available, f"the machine has {available} bytes of memory available")


def _groups(root: Path) -> Iterator[Bound]:
    for group, limit, used in _limited_groups(root):
        left = max(0, limit - used)
        yield Bound(left, f"the control group {group} is limited to {limit} bytes of memory and has {left} left")


def _limited_groups(root: Path) -> Iterator[tuple[Path, int, int]]:
    """(group, limit, bytes in use that can't be dropped) of the process's memory control groups and
    those above them that have a limit.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # In a container the path may be the host's, of which only the end, or nothing, is visible.
        group = top / path.lstrip("/")
        while True:
            limit, used = (_text(group / name).strip() for name in names)
            if limit.isdigit() and used.isdigit() and int(limit) < _UNLIMITED:
                yield group, int(limit), max(0, int(used) - _droppable(group))
            if group == top:
                break
            group = group.parent


def _droppable(group: Path) -> int:
    """The page cache of a control group, which can be reclaimed."""
    found = dict(re.findall(r"^(\w+) (\d+)", _text(group / "memory.stat"), re.MULTILINE))
    return sum(int(found.get(name, 0)) for name in ("active_file", "inactive_file"))
