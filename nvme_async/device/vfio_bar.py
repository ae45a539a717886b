"""BAR0 and configuration space of a VFIO device: mapped where the kernel allows, by system calls
elsewhere.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct

from nvme_async.device import vfio_abi as abi
from nvme_async.device.base import DeviceIds, Doorbells
from nvme_async.errors import ConfigurationError, ControllerGone, DeviceError
from nvme_async.native._mmio import Mmio
from nvme_async.spec.registers import DOORBELL_BASE

log: logging.Logger = logging.getLogger("nvme_async")

HOST_PAGE = mmap.PAGESIZE
# NVMe over PCIe Transport 1.0, 3.1: VS can't be all ones, so reading that means that no device
# answers. It can't be zero either: virtual machines read that from a missing device.
VS = 0x08
ALL_ONES = 0xFFFF_FFFF
ABSENT = (ALL_ONES, 0)

# PCI Local Bus 3.0, 6.1 and 6.2.2; MSI-X: 6.8.2
PCI_VENDOR_ID, PCI_COMMAND, PCI_REVISION_ID, PCI_SUBSYSTEM_VENDOR_ID, PCI_CAPABILITY_LIST = (
    0x00,
    0x04,
    0x08,
    0x2C,
    0x34,
)
PCI_COMMAND_MEMORY, PCI_COMMAND_MASTER, PCI_COMMAND_INTX_DISABLE = 1 << 1, 1 << 2, 1 << 10
PCI_CAP_ID_MSIX = 0x11
PCI_EXTENDED_CAPABILITIES, PCI_EXT_CAP_ID_DSN = 0x100, 0x0003
MSIX_ENTRY = 16
# As many capabilities as fit into 256 bytes: a loop in a broken chain must end.
MAX_CAPABILITIES = 48


def failed(address: str, what: str, error: OSError) -> DeviceError | ControllerGone:
    """The exception for a system call that VFIO refused."""
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return ControllerGone(f"{address} is gone ({what}: {reason})")
    return DeviceError(f"{address}: {what}: {reason}")


class Config:
    """PCI configuration space, through the device's descriptor."""

    def __init__(self, fd: int, region: abi.Region, address: str) -> None:
        self._fd, self._region, self._address = fd, region, address

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` from `offset`."""
        return region_read(self._fd, self._region, self._address, offset, nbytes)

    def write(self, offset: int, data: bytes) -> None:
        """Write, as far as VFIO allows."""
        region_write(self._fd, self._region, self._address, offset, data)

    def ids(self) -> DeviceIds:
        """Identity; ControllerGone if the device doesn't answer."""
        vendor, device = struct.unpack("<HH", self.read(PCI_VENDOR_ID, 4))
        if vendor == 0xFFFF:
            raise ControllerGone(f"{self._address} is gone: its configuration space reads all ones")
        revision, *class_code = self.read(PCI_REVISION_ID, 4)
        subsystem_vendor, subsystem = struct.unpack("<HH", self.read(PCI_SUBSYSTEM_VENDOR_ID, 4))
        return DeviceIds(
            vendor=vendor,
            device=device,
            subsystem_vendor=subsystem_vendor,
            subsystem=subsystem,
            class_code=int.from_bytes(bytes(class_code), "little"),
            revision=revision,
            serial_number=self.serial_number(),
        )

    def serial_number(self) -> int:
        """Device Serial Number (PCI Express Base 4.0, 7.9.3), or 0."""
        at = PCI_EXTENDED_CAPABILITIES
        for _ in range(MAX_CAPABILITIES):
            if not PCI_EXTENDED_CAPABILITIES <= at <= self._region.nbytes - 12:
                return 0
            (header,) = struct.unpack("<I", self.read(at, 4))
            if header & 0xFFFF == PCI_EXT_CAP_ID_DSN and header != 0xFFFF_FFFF:
                return int.from_bytes(self.read(at + 4, 8), "little")
            at = header >> 20 & ~3
        return 0

    def command(self, *, on: int = 0, off: int = 0) -> None:
        """Change bits of the command register; no write if they are already set so."""
        (command,) = struct.unpack("<H", self.read(PCI_COMMAND, 2))
        wanted = (command | on) & ~off
        if wanted != command:
            self.write(PCI_COMMAND, struct.pack("<H", wanted))

    def capability(self, wanted: int) -> int:
        """The offset of a capability, or 0."""
        at = self.read(PCI_CAPABILITY_LIST, 1)[0] & ~3
        for _ in range(MAX_CAPABILITIES):
            if at < 0x40:
                return 0
            identifier, following = self.read(at, 2)
            if identifier == wanted:
                return at
            at = following & ~3
        return 0

    def msix_pages(self, bar: int) -> list[range]:
        """Pages of a BAR with the MSI-X table or its pending bits, in order."""
        at = self.capability(PCI_CAP_ID_MSIX)
        if not at:
            return []
        control, table, pending = struct.unpack("<HII", self.read(at + 2, 10))
        vectors = (control & 0x7FF) + 1
        pages: set[int] = set()
        for place, nbytes in ((table, vectors * MSIX_ENTRY), (pending, -(-vectors // 64) * 8)):
            if place & 7 == bar:
                offset = place & ~7
                pages |= set(range(offset // HOST_PAGE * HOST_PAGE, offset + nbytes, HOST_PAGE))
        return [range(page, page + HOST_PAGE) for page in sorted(pages)]


class Bar0:
    """The registers. Owner: its VfioDevice. Any thread; close() must not race an access.

    faults: accesses of mapped registers that raised SIGBUS (in a confidential virtual machine, or
        with the function's memory disabled), or read all ones or zero where the descriptor has the
        register's value. After one, the window is no longer used; system calls replace it. Parts
        that the kernel refused to map are accessed so from the beginning.
    refused: how many of these there are.
    """

    faults: int
    refused: int

    def __init__(self, fd: int, region: abi.Region, address: str, holes: list[range], lost_fd: int = -1) -> None:
        """Map what the kernel allows, except `holes`: only the kernel writes the MSI-X table's
        pages. lost_fd: an eventfd to signal when mapped doorbells are lost; not ours.
        """
        self.faults = self.refused = 0
        self._fault = ""
        if region.nbytes <= DOORBELL_BASE:
            raise DeviceError(f"{address}: BAR0 has {region.nbytes} bytes, too few for NVMe's registers")
        self._fd, self._region, self._address = fd, region, address
        self._windows: list[tuple[int, Mmio]] = []
        self._lost: list[Mmio] = []  # kept: queue pairs may still ring there, without effect
        for area in region.areas:
            start, stop = (
                -(-area.offset // HOST_PAGE) * HOST_PAGE,
                (area.offset + area.nbytes) // HOST_PAGE * HOST_PAGE,
            )
            for hole in holes:
                if start < hole.stop and hole.start < stop:
                    self._map(start, hole.start)
                    start = hole.stop
            self._map(start, stop)
        if self._windows and self._version() and self.faults:
            # The reason that forbids this access forbids the others too, so it is checked now.
            self.close()
        for _, window in self._windows:
            window.lost_fd = lost_fd
        place = self._window(DOORBELL_BASE, 4)
        self.doorbells: Doorbells = Doorbells(None, DOORBELL_BASE)
        if place is not None:
            start, window = place
            where = (self._fd, self._region.offset + start, window.nbytes)
            self.doorbells = Doorbells(window, DOORBELL_BASE - start, window=where)

    def _map(self, start: int, stop: int) -> None:
        if start >= stop:
            return
        try:
            self._windows.append((start, Mmio(self._fd, self._region.offset + start, stop - start)))
        except OSError as error:
            self.refused += 1
            what = f"its registers {start:#x} to {stop:#x} can't be mapped"
            log.warning("%s: %s (%s); system calls are used", self._address, what, error.strerror)

    @property
    def nbytes(self) -> int:
        return self._region.nbytes

    @property
    def windows(self) -> tuple[Mmio, ...]:
        return (*(window for _, window in self._windows), *self._lost)

    @property
    def trouble(self) -> str | None:
        """What an access of mapped registers did that should not have, if there was one."""
        fault = "raised SIGBUS" if any(window.lost for window in self.windows) else self._fault
        return f"its mapped registers are no longer accessible (an access {fault})" if fault else None

    @property
    def mapped(self) -> tuple[range, ...]:
        """The parts that are mapped; the rest goes through system calls."""
        return tuple(range(start, start + window.nbytes) for start, window in self._windows)

    def _window(self, offset: int, width: int) -> tuple[int, Mmio] | None:
        if offset < 0 or offset % width or offset + width > self._region.nbytes:
            raise ConfigurationError(
                f"register {offset:#x} of {width} bytes is misaligned or outside of BAR0 ({self._region.nbytes} bytes)"
            )
        for start, window in self._windows:
            if start <= offset and offset + width <= start + window.nbytes:
                return start, window
        return None

    def read32(self, offset: int) -> int:
        """ControllerGone if the device doesn't answer."""
        value = self._read32(offset)
        if value in ABSENT and self._check_present(offset):
            return self._read32(offset)
        return value

    def read64(self, offset: int) -> int:
        """One access. ControllerGone if the device doesn't answer."""
        place = self._window(offset, 8)
        value = 0 if place is None else place[1].read64(offset - place[0])
        if place is None or self._is_lost(place):
            value = self._slow_read(offset, 8)
        if value & ALL_ONES in ABSENT and self._check_present(offset):
            return self._slow_read(offset, 8)
        return value

    def write32(self, offset: int, value: int) -> None:
        self._write(offset, value, 4)

    def write64(self, offset: int, value: int) -> None:
        """One access."""
        self._write(offset, value, 8)

    def _write(self, offset: int, value: int, width: int) -> None:
        place = self._window(offset, width)
        if place is not None:
            start, window = place
            (window.write32 if width == 4 else window.write64)(offset - start, value)
        if place is None or self._is_lost(place):
            region_write(self._fd, self._region, self._address, offset, value.to_bytes(width, "little"))

    def _read32(self, offset: int) -> int:
        place = self._window(offset, 4)
        value = 0 if place is None else place[1].read32(offset - place[0])
        return self._slow_read(offset, 4) if place is None or self._is_lost(place) else value

    def _is_lost(self, place: tuple[int, Mmio]) -> bool:
        """Did the access just made fault? Then the window is not used any more."""
        if not place[1].lost:
            return False
        self._lose(place, "raised SIGBUS")
        return True

    def _lose(self, place: tuple[int, Mmio], what: str) -> None:
        self.faults += 1
        if place not in self._windows:
            return
        self._windows.remove(place)
        self._lost.append(place[1])
        self._fault = self._fault or what
        log.warning("%s: an access of its mapped registers %s; system calls are used", self._address, what)
        if not place[1].lost and place[1].lost_fd >= 0:
            os.eventfd_write(place[1].lost_fd, 1)

    def _slow_read(self, offset: int, width: int) -> int:
        return int.from_bytes(region_read(self._fd, self._region, self._address, offset, width), "little")

    def _check_present(self, offset: int) -> bool:
        """A register read all ones or zero: is that its value, or is the device gone? True if its
        mapping has turned out to be unusable.
        """
        faults = self.faults
        version = self._version()
        if version in ABSENT:
            what = "all ones" if version else "zero"
            raise ControllerGone(f"{self._address} is gone: register {offset:#x} reads {what}, and VS too")
        return self.faults != faults

    def _version(self) -> int:
        """VS: by the descriptor too, if its mapping reads as if there were no device. If only that
        has it, the mapping isn't used any more.
        """
        version = self._read32(VS)
        place = self._window(VS, 4)
        if version not in ABSENT or place is None:
            return version
        try:
            real = self._slow_read(VS, 4)
        except (DeviceError, ControllerGone):
            return version
        if real in ABSENT or (again := self._read32(VS)) not in ABSENT:
            return again if real not in ABSENT else version  # a device that is being reset comes back
        self._lose(place, "read all ones" if version else "read zero")
        return real

    def close(self) -> None:
        """Unmap; doorbells() of this device are unusable from now on."""
        for window in self.windows:
            window.close()
        self._windows.clear()
        self._lost.clear()


def map_region(
    kernel: abi.Kernel, fd: int, address: str, config: Config, bar: int, offset: int, nbytes: int | None
) -> Mmio:
    """See Device.map_bar()."""
    try:
        region = abi.region_info(kernel, fd, bar)
        size = region.nbytes - offset if nbytes is None else nbytes
        inside = any(area.offset <= offset and offset + size <= area.offset + area.nbytes for area in region.areas)
        hit = any(hole.start < offset + size and offset < hole.stop for hole in config.msix_pages(bar))
        if size <= 0 or not inside or hit:
            raise DeviceError(f"{address}: {size:#x} bytes from {offset:#x} of BAR {bar} can't be mapped")
        return Mmio(fd, region.offset + offset, size)
    except OSError as error:
        raise failed(address, f"mapping BAR {bar}", error) from error
    except ValueError as error:
        raise DeviceError(f"{address}: mapping BAR {bar}: {error}") from error


def region_read(fd: int, region: abi.Region, address: str, offset: int, nbytes: int) -> bytes:
    """pread() of a region, all of it or an exception."""
    try:
        data = os.pread(fd, nbytes, region.offset + offset)
    except OSError as error:
        raise failed(address, f"reading region {region.index} at {offset:#x}", error) from error
    if len(data) != nbytes:
        raise DeviceError(f"{address}: region {region.index} returned {len(data)} of {nbytes} bytes at {offset:#x}")
    return data


def region_write(fd: int, region: abi.Region, address: str, offset: int, data: bytes) -> None:
    """pwrite() to a region, all of it or an exception."""
    try:
        written = os.pwrite(fd, data, region.offset + offset)
    except OSError as error:
        raise failed(address, f"writing region {region.index} at {offset:#x}", error) from error
    if written != len(data):
        raise DeviceError(f"{address}: region {region.index} accepted {written} of {len(data)} bytes at {offset:#x}")
