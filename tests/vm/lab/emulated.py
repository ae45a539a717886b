"""Our emulated controllers as processes of the host, each for one `vfio-user-pci` of the guest.

A controller's role is its serial number, by which the tests inside find it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .image import TREE
from .packages import LabError

START_TIMEOUT = 20.0


@dataclass(frozen=True)
class Role:
    """Options of `nvme-async emulate`; {folder} is the run's directory."""

    name: str
    options: str


ROLES = (
    Role("ram-4k", "--size 256MiB --block 4096"),
    Role("ram-512", "--size 256MiB --block 512 --mdts 1MiB --no-dbbuf"),
    Role("file-4k", "--path {folder}/file-4k.raw --size 512MiB --block 4096 --no-dbbuf"),
    Role("file-512", "--path {folder}/file-512.raw --size 256MiB --block 512 --mdts 8KiB"),
    Role("null", "--medium null --size 1GiB --block 4096"),
    # Two processors share one queue pair, and one vector serves everything.
    Role("one-queue", "--size 64MiB --block 512 --queues 1 --vectors 1 --depth 64 --namespaces 2"),
    # For tests that change namespaces.
    Role("changing", "--size 64MiB --block 4096 --mdts 256KiB"),
)


class Emulator:
    """One process and the connection to its control socket."""

    def __init__(self, role: Role, folder: Path) -> None:
        self.name = role.name
        self.socket = folder / f"{role.name}.sock"
        control = folder / f"{role.name}.control"
        self.log = folder / f"emulator-{role.name}.log"
        program = "from nvme_async.cli.main import main; main()"
        options = role.options.format(folder=folder).split()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", program, "emulate", "--socket", str(self.socket)),
                    *("--control", str(control), "--serial", role.name, *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": f"{TREE}:{os.environ.get('PYTHONPATH', '')}"},
            )
        self._control: socket.socket | None = None
        try:
            self._wait(control)
        except BaseException:
            self.close()
            raise

    def _wait(self, control: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while "ready on" not in self.log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"emulator {self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        self._control = socket.socket(socket.AF_UNIX)
        self._control.settimeout(30)
        self._control.connect(str(control))
        self._lines = self._control.makefile("rb")

    def call(self, op: str, arguments: dict[str, Any]) -> Any:
        """An operation of the control socket (nvme_async/emulator/control.py)."""
        if op == "cpu":
            return self.cpu_seconds()
        assert self._control is not None
        self._control.sendall(json.dumps({"op": op, "args": arguments}).encode() + b"\n")
        answer = json.loads(self._lines.readline())
        if not answer["ok"]:
            raise ValueError(answer["error"])
        return answer["result"]

    def cpu_seconds(self) -> float:
        """Processor time of the process so far, user and system."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> int:
        """End the process; its exit code, -9 if it had to be killed."""
        if self._control is not None:
            self._control.close()
        self._process.terminate()
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(10)


@contextmanager
def running(folder: Path, roles: tuple[Role, ...] = ROLES) -> Iterator[dict[str, Emulator]]:
    """All controllers, by role."""
    with ExitStack() as stack:
        emulators: dict[str, Emulator] = {}
        for role in roles:
            emulators[role.name] = Emulator(role, folder)
            stack.callback(emulators[role.name].close)
        yield emulators
