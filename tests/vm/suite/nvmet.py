"""The Linux kernel's NVMe/TCP target, by configfs."""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
from pathlib import Path

NVMET = Path("/sys/kernel/config/nvmet")
PORT = 4420


def sh(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=check, capture_output=True, text=True, timeout=120)


def bring_lo_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def prepare() -> str:
    """Loads the target's and the host's modules; why that is impossible, or nothing."""
    bring_lo_up()
    done = sh("modprobe", "-a", "configfs", "nvmet", "nvmet-tcp", "nvme-tcp", check=False)
    if done.returncode:
        return done.stderr.strip()
    if not NVMET.exists():
        sh("mount", "-t", "configfs", "configfs", "/sys/kernel/config")
    return ""


class Target:
    """A subsystem of the kernel's, with namespaces on block devices, on a port of lo."""

    def __init__(self, nqn: str) -> None:
        self.folder = NVMET / "subsystems" / nqn
        self.folder.mkdir()
        (self.folder / "attr_allow_any_host").write_text("1")
        self.port = NVMET / "ports/1"
        self.port.mkdir()
        for name, value in (("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", "127.0.0.1"), ("trsvcid", str(PORT))):
            (self.port / f"addr_{name}").write_text(value)
        self.link = self.port / "subsystems" / nqn

    def add(self, nsid: int, path: Path) -> None:
        folder = self.folder / "namespaces" / str(nsid)
        folder.mkdir()
        (folder / "device_path").write_text(str(path))
        (folder / "enable").write_text("1")

    def remove(self, nsid: int) -> None:
        folder = self.folder / "namespaces" / str(nsid)
        (folder / "enable").write_text("0")
        folder.rmdir()

    def up(self) -> None:
        self.link.symlink_to(self.folder)

    def down(self) -> None:
        self.link.unlink(missing_ok=True)

    def close(self) -> None:
        self.down()
        for folder in (self.folder / "namespaces").iterdir():
            self.remove(int(folder.name))
        self.port.rmdir()
        self.folder.rmdir()
