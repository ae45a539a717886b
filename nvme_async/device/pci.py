"""NVMe functions on the PCI bus, as sysfs shows them.

Everything here takes a System, whose root tests replace by a directory. pci_use.py finds the uses
of a drive; pci_bind.py takes one from the kernel and returns it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

from nvme_async.device.base import DeviceIds
from nvme_async.device.quirks import Quirks, quirks_of
from nvme_async.errors import ControllerGone, DeviceError

# PCI Code and ID Assignment 1.11: mass storage, non-volatile memory controller (of any programming
# interface).
NVM_SUBCLASS = 0x0108
VFIO_DRIVER = "vfio-pci"

# Some writes to sysfs last until a driver releases the device, and can't be interrupted: a separate
# process waits for them.
_WRITER = """
import os, sys
try:
    os.write(os.open(sys.argv[1], os.O_WRONLY), sys.argv[2].encode())
except OSError as error:
    sys.exit(error.errno)
"""


@attrs.frozen
class Record:
    """What bind() remembers about a function, until unbind() or the next boot."""

    driver: str | None
    driver_override: str = ""
    model: str | None = None
    serial: str | None = None
    firmware: str | None = None


@attrs.frozen
class Function:
    """One NVMe function.

    Attributes:
        address: as in 0000:01:00.0. uri: what nvme_async.open() takes.
        driver: the kernel driver bound to it, "vfio-pci" if it is ours to take.
        iommu_group, numa_node: None where there is none.
        controller: the kernel's name while its own driver is bound (nvme0). disks: its block
            devices
        (nvme0n1). model, serial, firmware: from the kernel's driver, or remembered from when it was
        bound.
    """

    address: str
    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int
    revision: int
    driver: str | None
    iommu_group: int | None
    numa_node: int | None
    controller: str | None
    disks: tuple[str, ...]
    model: str | None
    serial: str | None
    firmware: str | None

    @property
    def uri(self) -> str:
        return f"pci:{self.address}"

    @property
    def quirks(self) -> Quirks:
        """The function's quirks, unless an option of open() overrides them."""
        ids = DeviceIds(
            vendor=self.vendor,
            device=self.device,
            subsystem_vendor=self.subsystem_vendor,
            subsystem=self.subsystem_device,
            class_code=self.class_code,
            revision=self.revision,
        )
        return quirks_of(ids, model=self.model or "", firmware=self.firmware or "")


class System:
    """The machine's sysfs, procfs, devices and /run below a root. Nothing is cached."""

    def __init__(self, root: Path | str = "/") -> None:
        self.root: Path = Path(root)
        self.sys: Path = self.root / "sys"
        self.proc: Path = self.root / "proc"
        self.dev: Path = self.root / "dev"
        self.records: Path = self.root / "run/nvme-async/pci"

    def function_path(self, address: str) -> Path:
        return self.sys / "bus/pci/devices" / address

    def driver_path(self, driver: str) -> Path:
        return self.sys / "bus/pci/drivers" / driver

    def open_error(self, node: Path, flags: int) -> int:
        """0 if the node can be opened (it is closed again), otherwise the errno."""
        try:
            os.close(os.open(node, flags | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            return error.errno or 0
        return 0

    def write(self, path: Path, text: str, timeout: float = 30) -> None:
        """Write a sysfs attribute; DeviceError if the kernel refuses, or isn't done within
        `timeout` seconds.

        In the latter case the kernel continues by itself.
        """
        try:
            code = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _WRITER, str(path), text],
                timeout=timeout,
                stdin=subprocess.DEVNULL,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise DeviceError(f"writing {text.strip()!r} to {path} has not finished within {timeout:.0f} s") from None
        if code:
            raise DeviceError(f"the kernel refused {text.strip()!r} in {path}: {os.strerror(code)}")

    def modprobe(self, module: str) -> str:
        """Load a module; returns the error, or an empty string."""
        try:
            done = subprocess.run(["modprobe", module], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return done.stderr.strip() if done.returncode else ""

    def record(self, address: str) -> Record | None:
        """What bind() remembered, if anything."""
        try:
            data: dict[str, Any] = json.loads((self.records / address).read_text())
            return Record(**data)
        except (OSError, ValueError, TypeError):
            return None

    def remember(self, address: str, record: Record) -> None:
        self.records.mkdir(parents=True, exist_ok=True)
        (self.records / address).write_text(json.dumps(attrs.asdict(record)))

    def forget(self, address: str) -> None:
        (self.records / address).unlink(missing_ok=True)


def text(path: Path) -> str | None:
    """A sysfs attribute without its newline; None if it isn't there or empty."""
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def number(path: Path, base: int = 16) -> int:
    """A sysfs attribute as a number; 0 if there is none."""
    return int(text(path) or "0", base)


def driver_of(system: System, address: str) -> str | None:
    """The driver that is bound to a function."""
    link = system.function_path(address) / "driver"
    return link.resolve().name if link.exists() else None


def _disks(system: System, controller: Path) -> tuple[str, ...]:
    """The block devices of a controller; with native multipath they belong to its subsystem."""
    found = []
    for block in (system.sys / "class/block").glob("nvme*"):
        if (block / "partition").exists() or text(block / "hidden") == "1":
            continue
        parent = (block / "device").resolve()
        if controller.resolve() in (parent, (parent / controller.name).resolve()):
            found.append(block.name)
    return tuple(sorted(found))


def _function(system: System, path: Path) -> Function:
    controllers = sorted((path / "nvme").glob("nvme*"))
    controller = controllers[0] if controllers else None
    record = system.record(path.name) or Record(None)
    group = path / "iommu_group"
    numa_node = number(path / "numa_node", 10) if (path / "numa_node").exists() else -1

    def known(attribute: str, remembered: str | None) -> str | None:
        return text(controller / attribute) if controller else remembered

    return Function(
        address=path.name,
        vendor=number(path / "vendor"),
        device=number(path / "device"),
        subsystem_vendor=number(path / "subsystem_vendor"),
        subsystem_device=number(path / "subsystem_device"),
        class_code=number(path / "class"),
        revision=number(path / "revision"),
        driver=driver_of(system, path.name),
        iommu_group=int(group.resolve().name) if group.exists() else None,
        numa_node=numa_node if numa_node >= 0 else None,
        controller=controller.name if controller else None,
        disks=_disks(system, controller) if controller else (),
        model=known("model", record.model),
        serial=known("serial", record.serial),
        firmware=known("firmware_rev", record.firmware),
    )


def find(system: System | None = None) -> list[Function]:
    """Every NVMe function of the machine, by address."""
    system = system or System()
    devices = system.sys / "bus/pci/devices"
    if not devices.is_dir():
        return []
    return [
        _function(system, path)
        for path in sorted(devices.iterdir(), key=lambda entry: entry.name)
        if number(path / "class") >> 8 == NVM_SUBCLASS
    ]


def function_at(system: System, address: str) -> Function:
    """The NVMe function at an address; ControllerGone if nothing is there, DeviceError if it is
    something else.
    """
    path = system.function_path(address)
    if not path.exists():
        raise ControllerGone(f"there is no PCI function {address}")
    class_code = number(path / "class")
    if class_code >> 8 != NVM_SUBCLASS:
        raise DeviceError(f"{address} is not an NVMe controller: its class is {class_code:06x}, not 0108xx")
    return _function(system, path)
