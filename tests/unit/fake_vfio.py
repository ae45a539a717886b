"""A kernel that answers VFIO's calls from memory: descriptors are memfds, so that mmap, pread and
pwrite are real.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from pathlib import Path

from fake_pci import FakeSystem

from nvme_async.device import vfio_abi as abi
from nvme_async.device.vfio import VfioDevice

DRIVE = "0000:00:05.0"
IOVA = 0x1_0000_0000
COMMAND = 0x04
BAR0_NBYTES = 0x4000
CONFIG_OFFSET = 0x10000
MSIX_CAPABILITY = 0x40


class FakeKernel(abi.Kernel):
    """One IOMMU group with one function, whose BAR0 lies at offset 0 of its descriptor."""

    def __init__(self) -> None:
        self.version = abi.VFIO_API_VERSION
        self.extensions = {abi.VFIO_TYPE1v2_IOMMU}
        self.open_errors: dict[str, int] = {}
        self.viable = True
        self.device_flags = abi.VFIO_DEVICE_FLAGS_PCI | abi.VFIO_DEVICE_FLAGS_RESET
        self.bar0_flags = (
            abi.VFIO_REGION_INFO_FLAG_READ | abi.VFIO_REGION_INFO_FLAG_WRITE | abi.VFIO_REGION_INFO_FLAG_MMAP
        )
        self.sparse: list[tuple[int, int]] | None = None
        self.bar0_nbytes = BAR0_NBYTES
        self.vectors = 8
        self.free_vectors = 8
        self.ranges: list[tuple[int, int]] | None = [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1)]
        self.dma_avail: int | None = 100
        self.map_error = 0
        self.device_error = 0
        self.calls: list[int] = []
        self.mapped: dict[int, tuple[int, int]] = {}
        self.irqs: dict[int, list[int]] = {}
        self.resets = 0
        self.opened: dict[str, int] = {}
        self.device = os.memfd_create("device")
        os.ftruncate(self.device, CONFIG_OFFSET + 0x1000)
        self.write_config(0, struct.pack("<HHHHB3sxxxx", 0x1B36, 0x0010, 0, 0x10, 2, b"\x02\x08\x01"))
        self.write_config(0x2C, struct.pack("<HH", 0x1AF4, 0x1100))
        self.write_config(0x34, bytes([MSIX_CAPABILITY]))
        self.set_msix(table=0x2000, pending=0x3000)
        self.write_bar0(0x08, 0x0001_0400)

    def close(self) -> None:
        os.close(self.device)

    def write_config(self, offset: int, data: bytes) -> None:
        os.pwrite(self.device, data, CONFIG_OFFSET + offset)

    def config(self, offset: int, nbytes: int) -> bytes:
        return os.pread(self.device, nbytes, CONFIG_OFFSET + offset)

    def set_msix(self, *, table: int, pending: int) -> None:
        capability = struct.pack("<BBHII", 0x11, 0, self.vectors - 1, table, pending)
        self.write_config(MSIX_CAPABILITY, capability)

    def write_bar0(self, offset: int, value: int) -> None:
        os.pwrite(self.device, value.to_bytes(4, "little"), offset)

    def bar0(self, offset: int) -> int:
        return int.from_bytes(os.pread(self.device, 4, offset), "little")

    # The two calls

    def open(self, path: str) -> int:
        name = Path(path).name
        if name in self.open_errors:
            raise OSError(self.open_errors[name], os.strerror(self.open_errors[name]))
        self.opened[name] = os.memfd_create(name)
        return self.opened[name]

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        self.calls.append(request)
        if isinstance(argument, int):
            return self._simple(request, argument)
        if request == abi.VFIO_GROUP_GET_DEVICE_FD:
            if self.device_error:
                raise OSError(self.device_error, os.strerror(self.device_error))
            return os.dup(self.device)
        answers = {
            abi.VFIO_GROUP_GET_STATUS: self._status,
            abi.VFIO_GROUP_SET_CONTAINER: lambda _: None,
            abi.VFIO_DEVICE_GET_INFO: self._info,
            abi.VFIO_DEVICE_GET_REGION_INFO: self._region,
            abi.VFIO_DEVICE_GET_IRQ_INFO: self._irq,
            abi.VFIO_DEVICE_SET_IRQS: self._set_irqs,
            abi.VFIO_IOMMU_MAP_DMA: self._map,
            abi.VFIO_IOMMU_UNMAP_DMA: self._unmap,
        }
        if request == abi.VFIO_IOMMU_GET_INFO:
            self._iommu(argument)
            return 0
        return answers[request](argument) or 0

    def _simple(self, request: int, argument: int) -> int:
        if request == abi.VFIO_GET_API_VERSION:
            return self.version
        if request == abi.VFIO_CHECK_EXTENSION:
            return int(argument in self.extensions)
        if request == abi.VFIO_DEVICE_RESET:
            self.resets += 1
        return 0

    def _status(self, data: bytearray) -> None:
        struct.pack_into("=II", data, 0, 8, abi.VFIO_GROUP_FLAGS_VIABLE if self.viable else 0)

    def _info(self, data: bytearray) -> None:
        struct.pack_into("=IIIII", data, 0, 20, self.device_flags, 9, 5, 0)

    def _region(self, data: bytearray) -> None:
        argsz, _, index = struct.unpack_from("=III", data)
        flags = abi.VFIO_REGION_INFO_FLAG_READ | abi.VFIO_REGION_INFO_FLAG_WRITE
        if index != abi.VFIO_PCI_BAR0_REGION_INDEX:
            struct.pack_into("=IIIIQQ", data, 0, 32, flags, index, 0, 0x1000, CONFIG_OFFSET)
            return
        chain = b""
        flags = self.bar0_flags
        if self.sparse is not None:
            flags |= abi.VFIO_REGION_INFO_FLAG_CAPS
            areas = b"".join(struct.pack("=QQ", *area) for area in self.sparse)
            # The chain has the kernel's order: an unrelated capability comes first.
            chain = struct.pack("=HHI", abi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1, 40)
            chain += struct.pack("=HHIII", abi.VFIO_REGION_INFO_CAP_SPARSE_MMAP, 1, 0, len(self.sparse), 0) + areas
        needed = 32 + len(chain)
        offset = 32 if chain and argsz >= needed else 0
        struct.pack_into("=IIIIQQ", data, 0, needed, flags, index, offset, self.bar0_nbytes, 0)
        if offset:
            data[32:needed] = chain

    def _irq(self, data: bytearray) -> None:
        _, _, index, _ = struct.unpack_from("=IIII", data)
        counts = {abi.VFIO_PCI_MSIX_IRQ_INDEX: self.vectors, abi.VFIO_PCI_REQ_IRQ_INDEX: 1}
        struct.pack_into("=IIII", data, 0, 16, abi.VFIO_IRQ_INFO_EVENTFD, index, counts.get(index, 0))

    def _set_irqs(self, data: bytearray) -> int:
        _, flags, index, start, count = struct.unpack_from("=IIIII", data)
        if flags & abi.VFIO_IRQ_SET_DATA_NONE:
            self.irqs.pop(index, None)
            return 0
        fds = list(struct.unpack_from(f"={count}i", data, 20))
        enabled = self.irqs.get(index)
        if enabled is None and index == abi.VFIO_PCI_MSIX_IRQ_INDEX and count > self.free_vectors:
            return self.free_vectors
        if enabled is not None and start + count > len(enabled):
            raise OSError(errno.EINVAL, "Invalid argument")
        vectors = enabled or [-1] * count
        vectors[start : start + count] = fds
        self.irqs[index] = vectors
        return 0

    def _iommu(self, data: bytearray) -> None:
        (argsz,) = struct.unpack_from("=I", data)
        chain = b""
        if self.dma_avail is not None:
            following = 24 + 16 if self.ranges is not None else 0
            chain += struct.pack("=HHIII", abi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, following, self.dma_avail, 0)
        if self.ranges is not None:
            chain += struct.pack("=HHIII", abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, 0, len(self.ranges), 0)
            chain += b"".join(struct.pack("=QQ", *pair) for pair in self.ranges)
        needed = 24 + len(chain)
        flags = abi.VFIO_IOMMU_INFO_PGSIZES | (abi.VFIO_IOMMU_INFO_CAPS if chain else 0)
        offset = 24 if chain and argsz >= needed else 0
        struct.pack_into("=IIQI", data, 0, needed, flags, 0x4020_1000, offset)
        if offset:
            data[24:needed] = chain

    def _map(self, data: bytearray) -> None:
        if self.map_error:
            raise OSError(self.map_error, os.strerror(self.map_error))
        _, flags, address, iova, nbytes = struct.unpack("=IIQQQ", data)
        assert flags == abi.VFIO_DMA_MAP_FLAG_READ | abi.VFIO_DMA_MAP_FLAG_WRITE
        self.mapped[iova] = (address, nbytes)

    def _unmap(self, data: bytearray) -> None:
        _, _, iova, _ = struct.unpack("=IIQQ", data)
        struct.pack_into("=Q", data, 16, self.mapped.pop(iova, (0, 0))[1])


def opened(kernel: FakeKernel, machine: FakeSystem) -> VfioDevice:
    return VfioDevice(DRIVE, kernel=kernel, root=machine.root)


def wait_for_closing() -> None:
    """A missing device is closed by a thread."""
    for thread in threading.enumerate():
        if thread.name == f"close pci:{DRIVE}":
            thread.join(10)
