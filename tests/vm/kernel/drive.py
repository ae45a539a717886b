"""One emulated controller as the guest's kernel shows it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import Host, block_device

ROLES = ("ram-4k", "ram-512", "file-4k", "file-512", "null", "one-queue", "changing")
KEEPS_DATA = tuple(role for role in ROLES if role != "null")
ON_FILES = ("file-4k", "file-512")
WITH_DBBUF = ("ram-4k", "file-512", "null", "one-queue", "changing")
DBBUF, FLUSH, WRITE, WRITE_ZEROES, DSM = 0x7C, 0x00, 0x01, 0x08, 0x09


def sh(*command: str | Path, timeout: float = 60, check: bool = True) -> str:
    """Run a program; return its output. On failure the test fails with all of the output."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, errors="replace", timeout=timeout, check=False
    )
    if check:
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def json_of(*command: str | Path) -> Any:
    done = subprocess.run([*map(str, command), "-o", "json"], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def until(condition: Callable[[], object], what: str, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.05)


@dataclass(frozen=True)
class Drive:
    host: Host
    role: str
    sysfs: Path  # /sys/class/nvme/nvmeN

    @property
    def controller(self) -> Path:
        return Path("/dev") / self.sysfs.name

    @property
    def address(self) -> str:
        return (self.sysfs / "address").read_text().strip()

    @property
    def state(self) -> str:
        return (self.sysfs / "state").read_text().strip()

    def node(self, nsid: int = 1) -> Path:
        return block_device(self.address, nsid)

    def nbytes(self, nsid: int = 1) -> int:
        return int((Path("/sys/block") / self.node(nsid).name / "size").read_text()) * 512

    def queue(self, name: str, nsid: int = 1) -> int:
        return int((Path("/sys/block") / self.node(nsid).name / "queue" / name).read_text())

    def ask(self, op: str, **arguments: Any) -> Any:
        """The emulator's control socket, which the driver under test can't reach."""
        return self.host.ask(emulator=self.role, op=op, args=arguments)

    def counter(self, table: str, opcode: int) -> int:
        return int(self.ask("counters")[table].get(str(opcode), 0))


def find(host: Host, role: str) -> Drive:
    """The controller with that serial number, once the kernel reports it live."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for entry in Path("/sys/class/nvme").iterdir():
            try:
                if (entry / "serial").read_text().strip() == role and (entry / "state").read_text().strip() == "live":
                    return Drive(host, role, entry)
            except OSError:
                continue  # it vanished meanwhile
        time.sleep(0.05)
    raise AssertionError(f"the kernel shows no live controller {role}")
