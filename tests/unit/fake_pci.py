"""A machine's sysfs, procfs and devices in a directory, and a System that reacts to writes as
the kernel does.
"""

from __future__ import annotations

import errno
from pathlib import Path

from nvme_async.device.pci import System
from nvme_async.errors import DeviceError


class FakeSystem(System):
    """Drivers bind and unbind when their attributes are written. Every write is kept in `writes`.

    `exclusive` names nodes that another process has open with O_EXCL, `denied` those that this user
    may not open.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes: list[tuple[str, str]] = []
        self.exclusive: set[str] = set()
        self.denied: set[str] = set()
        self.loadable = {"vfio-pci"}
        self.picky: set[str] = set()  # drivers that refuse every function
        for folder in (
            "sys/bus/pci/devices",
            "sys/bus/pci/drivers",
            "sys/class/block",
            "proc/self",
            "dev/vfio",
        ):
            (root / folder).mkdir(parents=True)
        (root / "proc/self/mountinfo").write_text("")
        limits = "Max locked memory         {0}             {0}             bytes"
        (root / "proc/self/limits").write_text(limits.format(64 << 20))
        (root / "dev/vfio/vfio").write_text("")

    # Building

    def add_driver(self, name: str) -> None:
        (self.driver_path(name)).mkdir(parents=True)

    def add_function(self, address: str, group: int | None, driver: str | None = "nvme", **attributes: str) -> Path:
        """An NVMe function unless `attributes` say otherwise."""
        real = self.root / "sys/devices/pci0000:00" / address
        real.mkdir(parents=True)
        values = {
            "class": "0x010802",
            "vendor": "0x1b36",
            "device": "0x0010",
            "revision": "0x02",
            "numa_node": "-1",
        }
        values |= {"subsystem_vendor": "0x1af4", "subsystem_device": "0x1100", "driver_override": "(null)"}
        for name, value in (values | attributes).items():
            (real / name).write_text(value + "\n")
        self.function_path(address).symlink_to(real)
        if group is not None:
            members = self.root / "sys/kernel/iommu_groups" / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(real)
            (real / "iommu_group").symlink_to(members.parent)
        if driver:
            self._attach(address, driver)
        return real

    def add_controller(self, address: str, name: str, model: str = "QEMU NVMe Ctrl", serial: str = "plain") -> Path:
        path = self.function_path(address).resolve() / "nvme" / name
        path.mkdir(parents=True)
        for attribute, value in (
            ("model", model),
            ("serial", serial),
            ("firmware_rev", "7.2.22"),
            ("address", address),
        ):
            (path / attribute).write_text(value.ljust(20) + "\n")
        return path

    def add_disk(self, parent: Path, name: str, numbers: str, hidden: bool = False) -> Path:
        """A namespace's block device below a controller or a subsystem."""
        path = parent / name
        (path / "holders").mkdir(parents=True)
        (path / "dev").write_text(numbers + "\n")
        (path / "hidden").write_text("1\n" if hidden else "0\n")
        (path / "device").symlink_to(parent)
        self._publish(path)
        return path

    def add_partition(self, disk: Path, name: str, numbers: str) -> Path:
        path = disk / name
        (path / "holders").mkdir(parents=True)
        (path / "dev").write_text(numbers + "\n")
        (path / "partition").write_text("1\n")
        self._publish(path)
        return path

    def add_virtual(self, name: str, numbers: str, below: Path, **attributes: str) -> Path:
        """dm-0 or md0, which holds the block device `below`."""
        path = self.root / "sys/devices/virtual/block" / name
        (path / "holders").mkdir(parents=True)
        (path / "dev").write_text(numbers + "\n")
        for attribute, value in attributes.items():
            target = path / attribute.replace("__", "/")
            target.parent.mkdir(exist_ok=True)
            target.write_text(value + "\n")
        self._publish(path)
        (below / "holders" / name).symlink_to(path)
        return path

    def mount(self, numbers: str, target: str, source: str, kind: str = "ext4", process: str = "self") -> None:
        path = self.root / "proc" / process / "mountinfo"
        path.parent.mkdir(exist_ok=True)
        before = path.read_text() if path.exists() else ""
        path.write_text(before + f"36 35 {numbers} / {target} rw,noatime master:1 - {kind} {source} rw\n")

    def _publish(self, path: Path) -> None:
        (self.root / "sys/class/block" / path.name).symlink_to(path)
        (self.root / "dev" / path.name).write_text("")

    # What the kernel does

    def _attach(self, address: str, driver: str) -> None:
        if not self.driver_path(driver).is_dir():
            self.add_driver(driver)
        real = self.function_path(address).resolve()
        (real / "driver").symlink_to(self.driver_path(driver))
        if driver == "vfio-pci" and (real / "iommu_group").exists():
            (self.root / "dev/vfio" / (real / "iommu_group").resolve().name).write_text("")

    def write(self, path: Path, text: str, timeout: float = 30) -> None:
        self.writes.append((str(path.relative_to(self.root)), text))
        if path.name == "unbind":
            (self.function_path(text).resolve() / "driver").unlink()
        elif path.name == "drivers_probe":
            real = self.function_path(text).resolve()
            wanted = (real / "driver_override").read_text().strip().replace("(null)", "") or "nvme"
            if wanted not in self.picky and self.driver_path(wanted).is_dir():
                self._attach(text, wanted)
        elif path.name == "driver_override":
            path.write_text(text if text.strip() else "(null)\n")
        else:
            raise DeviceError(f"nothing to write at {path}")

    def modprobe(self, module: str) -> str:
        if module not in self.loadable:
            return f"modprobe: FATAL: Module {module} not found."
        self.add_driver(module)
        return ""

    def open_error(self, node: Path, flags: int) -> int:
        if node.name in self.denied:
            return errno.EACCES
        if node.name in self.exclusive:
            return errno.EBUSY
        return 0 if node.exists() else errno.ENOENT
