"""Boots the guest under QEMU's software emulation (no KVM needed) and never leaves it running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from . import drives
from .channel import Asked, Channel
from .image import Image
from .packages import LabError, path

# Register writes and QEMU's complaints, but no events that occur per I/O.
TRACED = (
    "pci_nvme_mmio_cfg",
    "pci_nvme_mmio_aqattr",
    "pci_nvme_mmio_start_success",
    "pci_nvme_mmio_stopped",
    "pci_nvme_mmio_shutdown_*",
    "pci_nvme_pci_reset",
    "pci_nvme_create_*",
    "pci_nvme_del_*",
    "pci_nvme_dbbuf_config",
    "pci_nvme_err_*",
    "pci_nvme_ub_*",
    "vtd_err*",
    "vtd_dmar_fault",
)
# no_timer_check: without KVM, on a busy machine, the guest may see too few ticks while it tries its
# timer, and panic with "timer does not work through Interrupt-remapped IO-APIC".
TIMER = "no_timer_check"
KERNEL_LINE = (
    "root=/dev/nvme0n1 rootwait rw console=ttyS0 init=/init.sh intel_iommu=on iommu=pt panic=-1 quiet loglevel=4 "
    + TIMER
)
RESULT_SIZE = 64 << 20


@dataclass(frozen=True)
class Boot:
    """The results of one run of the guest, in one directory."""

    folder: Path
    seconds: float
    timed_out: bool

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    @property
    def trace(self) -> Path:
        return self.folder / "qemu-trace.log"

    @property
    def results(self) -> Path:
        """A tar archive that the guest wrote onto a raw disk."""
        return self.folder / "results.tar"

    def console_tail(self, lines: int = 60) -> str:
        if not self.console.exists():
            return "(the guest printed nothing)"
        text = self.console.read_text(errors="replace").replace("\r", "")
        return "\n".join(text.splitlines()[-lines:])


def command_line(image: Image, folder: Path, payload: Path, boot: Boot, accelerator: str) -> list[str]:
    """QEMU's arguments. The root disk is written to a temporary file, the image stays as built."""
    processor = ["-cpu", "host"] if accelerator == "kvm" else ["-cpu", "max,la57=off"]
    traced = folder / "trace-events"
    traced.write_text("\n".join(TRACED) + "\n")
    return [
        *(
            "qemu-system-x86_64",
            "-accel",
            accelerator,
            *processor,
            "-M",
            "q35,kernel-irqchip=split",
            "-m",
            "2G",
        ),
        *("-smp", "2", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nographic"),
        *("-device", "intel-iommu,intremap=on,caching-mode=on"),
        *("-kernel", str(image.kernel), "-append", KERNEL_LINE),
        *("-chardev", f"file,id=console,path={boot.console}", "-serial", "chardev:console"),
        *(
            "-chardev",
            f"socket,id=host,path={folder / 'host.sock'},server=on,wait=off",
            "-serial",
            "chardev:host",
        ),
        *("-qmp", f"unix:{folder / 'qmp.sock'},server=on,wait=off", "-monitor", "none"),
        *("-trace", f"events={traced}", "-D", str(boot.trace)),
        *("-drive", f"id=root,file={image.disk},format=raw,if=none,snapshot=on,cache=unsafe"),
        *("-device", "nvme,serial=root,drive=root"),
        *("-drive", f"id=payload,file={payload},format=raw,if=none,readonly=on"),
        *("-device", "virtio-blk-pci,drive=payload,serial=payload"),
        *("-drive", f"id=results,file={boot.results},format=raw,if=none,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=results,serial=results"),
        *drives.arguments(drives.DRIVES, folder),
    ]


def prepare(folder: Path) -> Boot:
    """The files that a run fills."""
    boot = Boot(folder, 0.0, False)
    with boot.results.open("wb") as file:
        file.truncate(RESULT_SIZE)
    boot.trace.touch()
    boot.console.touch()
    return boot


def run(image: Image, folder: Path, payload: Path, *, timeout: float, accelerator: str, verbose: bool) -> Boot:
    """Boot the lab, wait for power-off, return what it left."""
    boot = prepare(folder)
    return launch(command_line(image, folder, payload, boot, accelerator), boot, timeout=timeout, verbose=verbose)


def launch(
    command: list[str],
    boot: Boot,
    *,
    timeout: float,
    verbose: bool,
    environment: dict[str, str] | None = None,
    emulator: Asked | None = None,
) -> Boot:
    """Start QEMU, wait for power-off. QEMU never outlives the timeout or an exception.

    emulator: answers the guest's requests to emulated controllers, see channel.py.
    """
    folder = boot.folder
    errors = folder / "qemu-stderr.log"
    started = time.monotonic()
    with errors.open("wb") as stderr:
        qemu = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env={**os.environ, "PATH": path(), **(environment or {})},
        )
    # A lab that is terminated also ends its guest.
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    channel: Channel | None = None
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(boot.console, stop), daemon=True)
    try:
        channel = _connect(qemu, folder, boot, emulator)
        if verbose:
            follower.start()
        try:
            qemu.wait(timeout)
            timed_out = False
        except subprocess.TimeoutExpired:
            timed_out = True
    finally:
        signal.signal(signal.SIGTERM, previous)
        if qemu.poll() is None:
            qemu.kill()
        qemu.wait(30)
        stop.set()
        if follower.ident is not None:
            follower.join(10)
        if channel is not None:
            channel.close()
    if qemu.returncode not in (0, -signal.SIGKILL):
        raise LabError(f"QEMU ended with {qemu.returncode}: {errors.read_text(errors='replace').strip()[-2000:]}")
    return Boot(folder, time.monotonic() - started, timed_out)


def _connect(qemu: subprocess.Popen[bytes], folder: Path, boot: Boot, emulator: Asked | None) -> Channel:
    """Connect to QEMU's two sockets as soon as they exist."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return Channel(folder / "host.sock", folder / "qmp.sock", boot.trace, folder, emulator)
        except (FileNotFoundError, ConnectionError):
            pass  # not made yet, made and not listening yet, or QEMU died on its way
        if qemu.poll() is not None:
            problem = (folder / "qemu-stderr.log").read_text(errors="replace").strip()
            raise LabError(f"QEMU did not start (exit code {qemu.returncode}): {problem[-2000:]}")
        if time.monotonic() > deadline:
            raise LabError("QEMU made no sockets within 30 s")
        time.sleep(0.05)


def _follow(console: Path, stop: threading.Event) -> None:
    """Print the guest's console as it grows."""
    with console.open(errors="replace") as file:
        ended = False
        while not ended:
            ended = stop.wait(0.3)
            sys.stdout.write(file.read().replace("\r", ""))
            sys.stdout.flush()
