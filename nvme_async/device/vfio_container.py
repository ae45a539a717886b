"""An IOMMU group in its own container: the address space of one VFIO device.

Each device gets its own container: so it has its own IOVA space and limits, one device's errors
can't affect another's memory, and it can be handed to a successor without the others. Only
functions of one IOMMU group must share, because the kernel opens a group once and lets it into one
container: they share through `open_group`, in one process.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path
from typing import NoReturn

from nvme_async.device import vfio_abi as abi
from nvme_async.device.patience import patiently
from nvme_async.errors import ControllerGone, DeviceError
from nvme_async.runtime import forks

# The default of the kernel's type 1 driver (its parameter dma_entry_limit).
DEFAULT_MAPPINGS = 65535
# Used if the kernel doesn't report valid ranges: the range of the narrowest common IOMMU (39 bits),
# without the window of x86's message-signalled interrupts.
DEFAULT_RANGES = (range(0xFEE0_0000), range(0xFEF0_0000, 1 << 39))
# A group is viable if all its functions are bound to one of these, or to none
# (vfio_dev_driver_allowed in the kernel; bridges don't count).
BENIGN_DRIVERS = frozenset({"vfio-pci", "pci-stub", "pcieport", "shpchp"})

_lock = threading.Lock()
_groups: dict[int, Container] = {}


def _forget_groups() -> None:
    """In a forked child: they belong to the parent, which may hold the lock."""
    global _lock
    _lock = threading.Lock()
    _groups.clear()


os.register_at_fork(after_in_child=_forget_groups)


class Container:
    """A container with one group. Owners: the devices that acquired it; the last release()
    closes it.

    Calls may come from any thread; they last as long as the kernel needs to pin or unpin the pages.
    """

    def __init__(self, kernel: abi.Kernel, container: int, group: int, number: int | None) -> None:
        self.kernel = kernel
        self.fd = container
        self.group_fd = group
        self.number = number
        self._users = 1
        self._lock = threading.Lock()
        self._mapped: dict[int, int] = {}
        try:
            info = abi.iommu_info(kernel, container)
        except OSError as error:
            raise DeviceError(f"VFIO_IOMMU_GET_INFO: {os.strerror(error.errno or 0)}") from error
        self.page_size: int = info.page_sizes & -info.page_sizes or os.sysconf("SC_PAGE_SIZE")
        self._ranges = info.iova_ranges or DEFAULT_RANGES
        self._limit = DEFAULT_MAPPINGS if info.dma_avail is None else info.dma_avail
        forks.watch(self)

    @property
    def max_mappings(self) -> int:
        """How many mappings may exist at once, including existing ones."""
        return self._limit

    @property
    def iova_ranges(self) -> tuple[range, ...]:
        """Where a mapping may be placed, in order: what the IOMMU can translate, without what is
            mapped
        already.
        """
        free = list(self._ranges)
        with self._lock:
            mapped = sorted(self._mapped.items())
        for iova, nbytes in mapped:
            cut: list[range] = []
            for window in free:
                cut += [
                    range(window.start, min(window.stop, iova)),
                    range(max(window.start, iova + nbytes), window.stop),
                ]
            free = [window for window in cut if window.start < window.stop]
        return tuple(free)

    def map(self, address: int, iova: int, nbytes: int) -> None:
        """Pin memory of this process and let the device access it at `iova`."""
        where = f"{nbytes} bytes at IOVA {iova:#x}"
        if nbytes <= 0 or (address | iova | nbytes) % self.page_size:
            raise DeviceError(
                f"can't map {where}: address, IOVA and size must be positive multiples of {self.page_size}"
            )
        if not any(window.start <= iova and iova + nbytes <= window.stop for window in self._ranges):
            valid = ", ".join(f"{window.start:#x}-{window.stop - 1:#x}" for window in self._ranges)
            raise DeviceError(f"can't map {where}: outside the ranges that the IOMMU translates ({valid})")
        with self._lock:
            try:
                abi.map_dma(self.kernel, self.fd, address=address, iova=iova, nbytes=nbytes)
            except OSError as error:
                self._map_failed(error, where, nbytes)
            self._mapped[iova] = nbytes

    def _map_failed(self, error: OSError, where: str, nbytes: int) -> NoReturn:
        reason = os.strerror(error.errno or 0)
        if error.errno == errno.ENOMEM:
            soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
            limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
            reason += f": pinning {nbytes} more bytes would exceed the limit of locked memory ({limit}; `ulimit -l`)"
        elif error.errno == errno.ENOSPC:
            reason = f"there are {len(self._mapped)} mappings, and the IOMMU driver's limit is {self._limit}"
        elif error.errno == errno.EEXIST:
            reason = "another mapping already exists"
        elif error.errno == errno.EFAULT:
            reason = "the memory is not mapped, or not writable, in this process"
        raise DeviceError(f"can't map {where}: {reason}") from error

    def adopt(self, iova: int, nbytes: int) -> None:
        """Record a mapping that a predecessor made, so that unmap() and iova_ranges know of
        it.
        """
        with self._lock:
            self._mapped[iova] = nbytes

    def unmap(self, iova: int, nbytes: int) -> None:
        """Remove a mapping; the IOMMU refuses the device from then on."""
        with self._lock:
            try:
                done = abi.unmap_dma(self.kernel, self.fd, iova=iova, nbytes=nbytes)
            except OSError as error:
                raise DeviceError(
                    f"can't unmap {nbytes} bytes at IOVA {iova:#x}: {os.strerror(error.errno or 0)}"
                ) from error
            self._mapped.pop(iova, None)
        if done != nbytes:
            raise DeviceError(f"unmapping {nbytes} bytes at IOVA {iova:#x} unmapped {done}: it was mapped differently")

    def disown(self) -> None:
        """The descriptors are closed elsewhere."""
        self._users = 0

    def forget_in_child(self) -> None:
        self._lock = threading.Lock()
        if self._users:
            self._users = 0
            os.close(self.group_fd)
            os.close(self.fd)

    def acquire(self) -> None:
        """One more user."""
        self._users += 1

    def release(self) -> None:
        """One user fewer; the last closes our descriptors of group and container. Mappings end
        when no process has them open.
        """
        with _lock:
            self._users -= 1
            if self._users:
                return
            if self.number is not None and _groups.get(self.number) is self:
                del _groups[self.number]
            os.close(self.group_fd)
            os.close(self.fd)

    @property
    def mappings(self) -> tuple[tuple[int, int], ...]:
        """(iova, nbytes) of each."""
        with self._lock:
            return tuple(sorted(self._mapped.items()))


def group_number(address: str, root: Path = Path("/")) -> int:
    """The IOMMU group of a PCI function; DeviceError if it has none, ControllerGone if there is no
    such function.
    """
    function = root / "sys/bus/pci/devices" / address
    if not function.exists():
        raise ControllerGone(f"there is no PCI function {address}")
    link = function / "iommu_group"
    if not link.exists():
        raise DeviceError(
            f"{address} has no IOMMU group: the IOMMU is off (kernel option intel_iommu=on or amd_iommu=on,"
            " and VT-d or AMD-Vi in the firmware); `nvme-async doctor` shows more"
        )
    return int(link.resolve().name)


def is_noiommu(number: int, root: Path = Path("/")) -> bool:
    """Whether VFIO made this group itself, for a function without an IOMMU (the kernel's
    "no-IOMMU mode"): its DMA can access all memory.
    """
    name = root / "sys/kernel/iommu_groups" / str(number) / "name"
    try:
        return name.read_text().strip() == "vfio-noiommu"
    except OSError:
        return (root / f"dev/vfio/noiommu-{number}").exists()


def offenders(number: int, root: Path = Path("/")) -> list[tuple[str, str]]:
    """(address, driver) of the functions that keep a group from being viable."""
    found = []
    for member in sorted((root / "sys/kernel/iommu_groups" / str(number) / "devices").iterdir()):
        driver = member.resolve() / "driver"
        if driver.exists() and (name := driver.resolve().name) not in BENIGN_DRIVERS and not name.startswith("vfio"):
            found.append((member.name, name))
    return found


def open_group(address: str, kernel: abi.Kernel, root: Path = Path("/")) -> Container:
    """The container of the function's group: a new one, or that of another device of this process
    in the same group.

    DeviceError says what is missing; it names the function whose driver keeps the group from being
    viable.
    """
    number = group_number(address, root)
    if is_noiommu(number, root):
        raise DeviceError(
            f"{address} is in VFIO's no-IOMMU mode: it could access all memory of the machine, and IOVAs"
            " would have to be physical addresses, so this driver refuses it. Turn the IOMMU on (`nvme-async doctor`"
            "shows how), or return the device to the kernel: `nvme-async unbind pci:" + address + "`"
        )
    with _lock:
        if number in _groups:
            _groups[number].acquire()
            return _groups[number]
        container = _open(address, number, kernel, root)
        _groups[number] = container
        return container


def _open(address: str, number: int, kernel: abi.Kernel, root: Path) -> Container:
    container = _open_node(kernel, root / "dev/vfio/vfio", "modprobe vfio-pci")
    group = -1
    try:
        _check_container(kernel, container)
        group = _open_node(kernel, root / f"dev/vfio/{number}", f"nvme-async bind pci:{address}", patient=True)
        if not abi.group_flags(kernel, group) & abi.VFIO_GROUP_FLAGS_VIABLE:
            others = [f"{name} (bound to {driver})" for name, driver in offenders(number, root)]
            raise DeviceError(
                f"IOMMU group {number} of {address} is not viable:"
                f" it holds {' and '.join(others) or 'another device'} too."
                " Bind that to vfio-pci as well, or unbind it from its driver"
            )
        abi.set_container(kernel, group, container)
        kernel.ioctl(container, abi.VFIO_SET_IOMMU, abi.VFIO_TYPE1v2_IOMMU)
        return Container(kernel, container, group, number)
    except BaseException as error:
        if group >= 0:
            os.close(group)
        os.close(container)
        if isinstance(error, OSError) and not isinstance(error, DeviceError):
            raise DeviceError(f"IOMMU group {number} of {address}: {os.strerror(error.errno or 0)}") from error
        raise


def _open_node(kernel: abi.Kernel, node: Path, remedy: str, *, patient: bool = False) -> int:
    def opened() -> int:
        return kernel.open(str(node))

    try:
        return patiently(f"opening {node}", opened) if patient else opened()
    except OSError as error:
        reasons = {
            errno.ENOENT: f"it does not exist; `{remedy}` creates it",
            errno.ENODEV: f"no driver behind it; `{remedy}`",
            errno.EACCES: f"this user does not own it; as root: `chown {os.geteuid()} {node}`",
            errno.EPERM: "not permitted (a group in no-IOMMU mode takes CAP_SYS_RAWIO, and isn't supported here)",
            errno.EBUSY: "another process has it open; only one process may use a group at a time",
        }
        reason = reasons.get(error.errno or 0, os.strerror(error.errno or 0))
        raise DeviceError(f"can't open {node}: {reason}") from error


def _check_container(kernel: abi.Kernel, container: int) -> None:
    version = kernel.ioctl(container, abi.VFIO_GET_API_VERSION)
    if version != abi.VFIO_API_VERSION:
        raise DeviceError(f"the kernel has VFIO version {version}; this driver needs {abi.VFIO_API_VERSION}")
    if not kernel.ioctl(container, abi.VFIO_CHECK_EXTENSION, abi.VFIO_TYPE1v2_IOMMU):
        raise DeviceError("the kernel has no type 1 v2 IOMMU for VFIO: `modprobe vfio_iommu_type1`")
