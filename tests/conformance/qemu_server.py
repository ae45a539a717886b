"""QEMU's NVMe controllers behind QEMU's own vfio-user server (libvfio-user): server and
controller are independent of this project, and no guest is needed. It requires a QEMU configured
with --enable-vfio-user-server, which no distribution has; see docs/vfio.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vm"))

from lab import drives

STARTING = 20.0  # seconds until it listens


class QemuServer:
    """One QEMU process with one controller. It serves one client and ends with it."""

    def __init__(self, qemu: str, role: str, folder: Path) -> None:
        folder.mkdir()
        drive = next(drive for drive in drives.DRIVES if drive.role == role)
        self.socket = folder / "vfio-user.sock"
        self.trace = folder / "trace"
        self._errors = (folder / "stderr").open("w+b")
        server = json.dumps(
            {
                "qom-type": "x-vfio-user-server",
                "id": "server",
                "device": f"drive-{role}",
                "socket": {"type": "unix", "path": str(self.socket)},
            }
        )
        command = [qemu, "-machine", "x-remote,vfio-user=on", "-nodefaults", "-display", "none", "-monitor", "none"]
        command += ["-trace", "pci_nvme_err_*", "-trace", "pci_nvme_ub_*", "-D", str(self.trace)]
        command += [*drives.arguments((drive,), folder), "-object", server]
        self._process = subprocess.Popen(command, stderr=self._errors)
        limit = time.monotonic() + STARTING
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.end()
                raise RuntimeError(f"{qemu} doesn't serve {role}: {(folder / 'stderr').read_text()}")
            time.sleep(0.01)

    def complaints(self) -> list[str]:
        """The controller's complaints about the driver."""
        return self.trace.read_text().splitlines() if self.trace.exists() else []

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()
