"""The size of a private pool by rule: "release" and "debug".

OpenHCL's rule: a queue pair of 256 entries takes 4 pages for the submission queue, 1 for the
completion queue and 64 for data, 69 in total; there is one queue pair per processor and drive.
"debug" is for three drives. OpenHCL's boot shim has a table of processors and memory for that; here
the size is computed from the processors that this process may use, the queue depth, and the
driver's other structures in the pool (trackers, PRP lists, the admin queue, the manifest), which
OpenHCL keeps elsewhere. It is rounded up to 2 MiB, and never more than may be locked or is
available.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import attrs

from nvme_async.dma.limits import Bound, lockable, memory_left
from nvme_async.native._dma import Pool
from nvme_async.native._hotpath import queue_memory
from nvme_async.spec.registers import PAGE

HUGE_PAGES = (2 << 20) // PAGE
DRIVES = {"release": 1, "debug": 3}
"""The number of drives of each rule."""
_ADMIN_TRANSFER = 16 * PAGE
_BESIDE = 32 + 2
"""Pages of a drive besides its queues: manifest, shadow doorbells."""


@attrs.frozen(kw_only=True)
class Wanted:
    """The requirements of a pool. locked: VFIO locks it, and RLIMIT_MEMLOCK may apply."""

    queue_entries: int = 256
    admin_entries: int = 64
    max_transfer: int = 1 << 20
    io_queues: int = 16
    locked: bool = False


@attrs.frozen
class PoolSize:
    """pages: for allocations. how: the computation, as text."""

    pages: int
    how: str


def processors(root: Path = Path("/")) -> int:
    """The processors that this process may use: by its affinity, and the quota of its control
    groups (rounded up).
    """
    count = len(os.sched_getaffinity(0))
    quota = _quota(root)
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _quota(root: Path) -> float | None:
    """Processors' worth of time that the tightest control group (version 2) grants."""
    found: list[float] = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if not line.startswith("0::"):
            continue
        top = root / "sys/fs/cgroup"
        group = top / line[3:].lstrip("/")
        while True:
            try:
                quota, period = (group / "cpu.max").read_text().split()
                if quota != "max":
                    found.append(int(quota) / int(period))
            except (OSError, ValueError):
                pass
            if group == top or group == group.parent:
                break
            group = group.parent
    return min(found, default=None)


def queue_pair_pages(entries: int) -> int:
    """OpenHCL's figure: 69 for 256 entries."""
    return -(-entries * 64 // PAGE) - (-entries * 16 // PAGE) + -(-entries // 4)


def size_pool(rule: str, wanted: Wanted, *, cpus: int | None = None) -> PoolSize:
    """By the rule of that name, of DRIVES."""
    cpus = processors() if cpus is None else cpus
    drives, pairs = DRIVES[rule], min(cpus, wanted.io_queues)
    theirs = queue_pair_pages(wanted.queue_entries)
    data = -(-wanted.queue_entries // 4)
    memory = _pages(queue_memory(wanted.queue_entries, wanted.queue_entries - 1, wanted.max_transfer))
    ours = memory + data - theirs
    admin = _pages(queue_memory(wanted.admin_entries, wanted.admin_entries - 1, _ADMIN_TRANSFER)) + _BESIDE
    needed = drives * (pairs * (theirs + ours) + admin)
    pages = -(-needed // HUGE_PAGES) * HUGE_PAGES
    how = (
        f"{rule}: {drives} drive{'s' if drives > 1 else ''} x ({pairs} queue pair{'s' if pairs > 1 else ''} x "
        f"({theirs} + {ours} pages) + {admin}) = {needed}, rounded up to 2 MiB"
    )
    bounds = [memory_left(), lockable() if wanted.locked else None]
    for bound in bounds:
        if bound is not None and Pool.size_for(pages * PAGE) > bound.nbytes:
            pages = _fitting(bound)
            how += f", cut down to {pages} pages: {bound.reason}"
    return PoolSize(pages, how)


def _fitting(bound: Bound) -> int:
    """The largest number of pages of a pool that, with its table, is within the bound: 2 MiB
    units, or less below that.
    """
    pages = bound.nbytes // PAGE
    while pages and Pool.size_for(pages * PAGE) > bound.nbytes:
        pages -= max(1, (Pool.size_for(pages * PAGE) - bound.nbytes) // PAGE)
    return pages - pages % HUGE_PAGES if pages > HUGE_PAGES else pages


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE)
