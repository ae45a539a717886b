"""The disk that carries the wheel, the tests and the command into the guest: a plain tar on a
raw disk.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from .image import GUEST, TREE

# Directory in the tree → directory in the guest. Only existing ones are sent.
SENT = {
    "tests/vm/suite": "tests/vm",
    "tests/conformance": "tests/conformance",
    "tests/torture/journal.py": "tests/torture/journal.py",
    "tests/torture/victim.py": "tests/torture/victim.py",
    "tests/e2e/shared_worker.py": "tests/e2e/shared_worker.py",
    "benchmarks": "benchmarks",
    "pyproject.toml": "pyproject.toml",
}


def _clean(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in entry.name:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def make(folder: Path, wheel: Path | None, command: str, sent: Mapping[str, str] = SENT) -> Path:
    """Write the archive; the guest unpacks it into /payload and runs /payload/command.

    wheel: None if the guest doesn't get the package.
    """
    disk = folder / "payload.tar"
    with tarfile.open(disk, "w", format=tarfile.PAX_FORMAT) as archive:
        if wheel is not None:
            archive.add(wheel, wheel.name, filter=_clean)
        archive.add(GUEST, "guest", filter=_clean)
        for source, target in sent.items():
            if (TREE / source).exists():
                archive.add(TREE / source, target, filter=_clean)
        script = f"#!/bin/sh\n{command}\n".encode()
        entry = tarfile.TarInfo("command")
        entry.size, entry.mode = len(script), 0o755
        archive.addfile(entry, io.BytesIO(script))
    # A disk's size is a whole number of sectors.
    size = disk.stat().st_size
    with disk.open("r+b") as file:
        file.truncate(-(-size // 4096) * 4096)
    return disk
