"""examples/vm_disk on this machine: a guest whose disk is an NBD export of ours, which is upgraded
and killed meanwhile.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from .image import TREE
from .newqemu import NewQemu
from .packages import path

TOOLS = {"busybox-static": None}
TIMEOUT = 400.0
ROUNDS = 4


def run(qemu: NewQemu, kernel: Path, kept: Path) -> list[str]:
    """Return what went wrong. The output is left in `kept`."""
    log = kept / "vm-disk.log"
    command = [
        *(sys.executable, str(TREE / "examples/vm_disk/run.py"), "--kernel", str(kernel), "--busybox", "/bin/busybox"),
        *("--rounds", str(ROUNDS), "--qemu", shlex.join(qemu.command)),
    ]
    environment = {**os.environ, **qemu.environment, "PATH": path()}
    with log.open("w") as output:
        try:
            status = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=TIMEOUT, env=environment, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return [f"vm-disk: not over after {TIMEOUT:.0f} s:\n{log.read_text()[-3000:]}"]
    text = log.read_text(errors="replace")
    served = text.count("served again after")
    if status or served != ROUNDS or "guest: ended, good" not in text:
        return [f"vm-disk: status {status}:\n{text[-3000:]}"]
    print(f"interop: a guest worked on while the driver under its disk was upgraded and killed {ROUNDS} times")
    return []
