"""Which CPUs an interrupt vector of a PCI function is delivered to."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path

log: logging.Logger = logging.getLogger("nvme_async")


def interrupt_of(address: str, vector: int, root: Path = Path("/")) -> int | None:
    """The number of the interrupt that the kernel's VFIO driver requested for MSI-X vector
    `vector`; None if it has none.
    """
    name = re.compile(rf"^\s*(\d+):.*\bvfio-msix\[{vector}\]\({re.escape(address)}\)\s*$", re.MULTILINE)
    try:
        found = name.search((root / "proc/interrupts").read_text(errors="replace"))
    except OSError:
        return None
    return int(found[1]) if found else None


def steer(address: str, vector: int, cpus: Collection[int], root: Path = Path("/")) -> bool:
    """Delivers the vector's interrupt to one of `cpus`. False if that isn't possible: it
    requires root, or a /proc/irq that this user may write to. Blocks for about 100 us.
    """
    number = interrupt_of(address, vector, root)
    if number is None:
        return False
    path = root / f"proc/irq/{number}/smp_affinity_list"
    wanted = ",".join(map(str, sorted(cpus)))
    try:
        if path.read_text().strip() != wanted:
            path.write_text(wanted)
    except OSError as error:
        log.debug("%s: vector %d stays where it is: %s: %s", address, vector, path, error.strerror)
        return False
    return True
