"""The definitions of linux/vfio.h under their own names: request numbers, flags, structures,
capability chains.

Structures are packed and unpacked with `struct`, since each is read or written once per call, in
native byte order as the kernel's are.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

VFIO_API_VERSION: Final = 0

# VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU
VFIO_TYPE1_IOMMU: Final = 1
VFIO_TYPE1v2_IOMMU: Final = 3

VFIO_TYPE: Final = ord(";")
VFIO_BASE: Final = 100


def _IO(type_: int, number: int) -> int:
    """asm-generic/ioctl.h: a request without direction or size; VFIO uses no others."""
    return type_ << 8 | number


VFIO_GET_API_VERSION: Final = _IO(VFIO_TYPE, VFIO_BASE + 0)
VFIO_CHECK_EXTENSION: Final = _IO(VFIO_TYPE, VFIO_BASE + 1)
VFIO_SET_IOMMU: Final = _IO(VFIO_TYPE, VFIO_BASE + 2)
VFIO_GROUP_GET_STATUS: Final = _IO(VFIO_TYPE, VFIO_BASE + 3)
VFIO_GROUP_SET_CONTAINER: Final = _IO(VFIO_TYPE, VFIO_BASE + 4)
VFIO_GROUP_GET_DEVICE_FD: Final = _IO(VFIO_TYPE, VFIO_BASE + 6)
VFIO_DEVICE_GET_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 7)
VFIO_DEVICE_GET_REGION_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 8)
VFIO_DEVICE_GET_IRQ_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 9)
VFIO_DEVICE_SET_IRQS: Final = _IO(VFIO_TYPE, VFIO_BASE + 10)
VFIO_DEVICE_RESET: Final = _IO(VFIO_TYPE, VFIO_BASE + 11)
VFIO_IOMMU_GET_INFO: Final = _IO(VFIO_TYPE, VFIO_BASE + 12)
VFIO_IOMMU_MAP_DMA: Final = _IO(VFIO_TYPE, VFIO_BASE + 13)
VFIO_IOMMU_UNMAP_DMA: Final = _IO(VFIO_TYPE, VFIO_BASE + 14)

VFIO_GROUP_FLAGS_VIABLE: Final = 1 << 0
VFIO_GROUP_FLAGS_CONTAINER_SET: Final = 1 << 1

VFIO_DEVICE_FLAGS_RESET: Final = 1 << 0
VFIO_DEVICE_FLAGS_PCI: Final = 1 << 1
VFIO_DEVICE_FLAGS_CAPS: Final = 1 << 7

VFIO_REGION_INFO_FLAG_READ: Final = 1 << 0
VFIO_REGION_INFO_FLAG_WRITE: Final = 1 << 1
VFIO_REGION_INFO_FLAG_MMAP: Final = 1 << 2
VFIO_REGION_INFO_FLAG_CAPS: Final = 1 << 3

VFIO_REGION_INFO_CAP_SPARSE_MMAP: Final = 1
VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: Final = 3

VFIO_PCI_BAR0_REGION_INDEX: Final = 0
VFIO_PCI_BAR5_REGION_INDEX: Final = 5
VFIO_PCI_ROM_REGION_INDEX: Final = 6
VFIO_PCI_CONFIG_REGION_INDEX: Final = 7

VFIO_PCI_INTX_IRQ_INDEX: Final = 0
VFIO_PCI_MSI_IRQ_INDEX: Final = 1
VFIO_PCI_MSIX_IRQ_INDEX: Final = 2
VFIO_PCI_ERR_IRQ_INDEX: Final = 3
VFIO_PCI_REQ_IRQ_INDEX: Final = 4

VFIO_IRQ_INFO_EVENTFD: Final = 1 << 0
VFIO_IRQ_INFO_MASKABLE: Final = 1 << 1
VFIO_IRQ_INFO_AUTOMASKED: Final = 1 << 2
VFIO_IRQ_INFO_NORESIZE: Final = 1 << 3

VFIO_IRQ_SET_DATA_NONE: Final = 1 << 0
VFIO_IRQ_SET_DATA_EVENTFD: Final = 1 << 2
VFIO_IRQ_SET_ACTION_TRIGGER: Final = 1 << 5

VFIO_IOMMU_INFO_PGSIZES: Final = 1 << 0
VFIO_IOMMU_INFO_CAPS: Final = 1 << 1

VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: Final = 1
VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: Final = 3

VFIO_DMA_MAP_FLAG_READ: Final = 1 << 0
VFIO_DMA_MAP_FLAG_WRITE: Final = 1 << 1

# struct vfio_info_cap_header: id, version, next
_CAP_HEADER: Final = struct.Struct("=HHI")
# struct vfio_group_status: argsz, flags
_GROUP_STATUS: Final = struct.Struct("=II")
# struct vfio_device_info: argsz, flags, num_regions, num_irqs, cap_offset
_DEVICE_INFO: Final = struct.Struct("=IIIII")
# struct vfio_region_info: argsz, flags, index, cap_offset, size, offset
_REGION_INFO: Final = struct.Struct("=IIIIQQ")
# struct vfio_irq_info: argsz, flags, index, count
_IRQ_INFO: Final = struct.Struct("=IIII")
# struct vfio_irq_set: argsz, flags, index, start, count; data follows
_IRQ_SET: Final = struct.Struct("=IIIII")
# struct vfio_iommu_type1_info: argsz, flags, iova_pgsizes, cap_offset, and its padding
_IOMMU_INFO: Final = struct.Struct("=IIQII")
# struct vfio_iommu_type1_dma_map: argsz, flags, vaddr, iova, size
_DMA_MAP: Final = struct.Struct("=IIQQQ")
# struct vfio_iommu_type1_dma_unmap: argsz, flags, iova, size
_DMA_UNMAP: Final = struct.Struct("=IIQQ")
# A chain is short; the kernel writes no longer one, so that would be an endless loop.
_MAX_CAPABILITIES: Final = 64
_MAX_ARGSZ: Final = 1 << 20


class Kernel:
    """The two system calls that VFIO needs besides reading and writing; tests replace this
    class.
    """

    def open(self, path: str) -> int:
        """A descriptor, read-write and closed on exec."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        """The call's own result; a bytearray is changed in place. The GIL is released meanwhile."""
        result: int = fcntl.ioctl(fd, request, argument)
        return result


@attrs.frozen
class Area:
    """A part of a region that may be mapped."""

    offset: int
    nbytes: int


@attrs.frozen
class Region:
    """struct vfio_region_info with its capabilities.

    `areas` is what may be mapped: all of it, the areas of VFIO_REGION_INFO_CAP_SPARSE_MMAP, or
    nothing. `offset` is the region's start in the device's descriptor.
    """

    index: int
    flags: int
    nbytes: int
    offset: int
    areas: tuple[Area, ...]
    msix_mappable: bool


@attrs.frozen
class DeviceInfo:
    """struct vfio_device_info."""

    flags: int
    num_regions: int
    num_irqs: int


@attrs.frozen
class IrqInfo:
    """struct vfio_irq_info."""

    index: int
    flags: int
    count: int


@attrs.frozen
class IommuInfo:
    """struct vfio_iommu_type1_info with its capabilities.

    `iova_ranges` is empty and `dma_avail` None if the kernel doesn't report them (before 5.4 and
    5.10).
    """

    page_sizes: int
    iova_ranges: tuple[range, ...]
    dma_avail: int | None


def capabilities(info: bytes | bytearray, first: int) -> Iterator[tuple[int, int, bytes]]:
    """(id, version, what follows the header up to the buffer's end) for each capability; ends at
    the first bad offset.
    """
    offset = first
    for _ in range(_MAX_CAPABILITIES):
        if offset == 0 or offset + _CAP_HEADER.size > len(info):
            return
        identifier, version, following = _CAP_HEADER.unpack_from(info, offset)
        yield identifier, version, bytes(info[offset + _CAP_HEADER.size :])
        offset = following


def _query(kernel: Kernel, fd: int, request: int, layout: struct.Struct, *fields: int) -> bytearray:
    """An INFO call: once for the size, and again if its capabilities need more room."""
    argsz = layout.size
    while True:
        info = bytearray(argsz)
        struct.pack_into(f"={1 + len(fields)}I", info, 0, argsz, *fields)
        kernel.ioctl(fd, request, info)
        (needed,) = struct.unpack_from("=I", info)
        if not argsz < needed <= _MAX_ARGSZ:
            return info
        argsz = needed


def group_flags(kernel: Kernel, group: int) -> int:
    """VFIO_GROUP_GET_STATUS: VFIO_GROUP_FLAGS_…"""
    status = bytearray(_GROUP_STATUS.pack(_GROUP_STATUS.size, 0))
    kernel.ioctl(group, VFIO_GROUP_GET_STATUS, status)
    return int(_GROUP_STATUS.unpack(status)[1])


def set_container(kernel: Kernel, group: int, container: int) -> None:
    """VFIO_GROUP_SET_CONTAINER."""
    kernel.ioctl(group, VFIO_GROUP_SET_CONTAINER, bytearray(struct.pack("=i", container)))


def device_fd(kernel: Kernel, group: int, address: str) -> int:
    """VFIO_GROUP_GET_DEVICE_FD: the device's descriptor, closed on exec."""
    return kernel.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bytearray(address.encode() + b"\0"))


def device_info(kernel: Kernel, device: int) -> DeviceInfo:
    """VFIO_DEVICE_GET_INFO."""
    info = _query(kernel, device, VFIO_DEVICE_GET_INFO, _DEVICE_INFO)
    _, flags, regions, irqs, _ = _DEVICE_INFO.unpack_from(info)
    return DeviceInfo(flags, regions, irqs)


def region_info(kernel: Kernel, device: int, index: int) -> Region:
    """VFIO_DEVICE_GET_REGION_INFO."""
    info = _query(kernel, device, VFIO_DEVICE_GET_REGION_INFO, _REGION_INFO, 0, index)
    _, flags, _, cap_offset, nbytes, offset = _REGION_INFO.unpack_from(info)
    areas: tuple[Area, ...] = ()
    if flags & VFIO_REGION_INFO_FLAG_MMAP and nbytes:
        areas = (Area(0, nbytes),)
    msix_mappable = False
    for identifier, _, body in capabilities(info, cap_offset if flags & VFIO_REGION_INFO_FLAG_CAPS else 0):
        if identifier == VFIO_REGION_INFO_CAP_SPARSE_MMAP and areas:
            count, _ = struct.unpack_from("=II", body)
            whole = [
                struct.unpack_from("=QQ", body, 8 + 16 * number) for number in range(min(count, (len(body) - 8) // 16))
            ]
            areas = tuple(Area(start, length) for start, length in whole if length and start + length <= nbytes)
        elif identifier == VFIO_REGION_INFO_CAP_MSIX_MAPPABLE:
            msix_mappable = True
    return Region(index, flags, nbytes, offset, areas, msix_mappable)


def irq_info(kernel: Kernel, device: int, index: int) -> IrqInfo:
    """VFIO_DEVICE_GET_IRQ_INFO."""
    info = bytearray(_IRQ_INFO.pack(_IRQ_INFO.size, 0, index, 0))
    kernel.ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, info)
    _, flags, _, count = _IRQ_INFO.unpack(info)
    return IrqInfo(index, flags, count)


def set_eventfds(kernel: Kernel, device: int, index: int, start: int, eventfds: Sequence[int]) -> int:
    """VFIO_DEVICE_SET_IRQS: eventfds for vectors from `start` on; -1 removes one.

    The result is 0, or the number of vectors that the kernel could have enabled if that is fewer
    than requested.
    """
    data = struct.pack(f"={len(eventfds)}i", *eventfds)
    flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER
    header = _IRQ_SET.pack(_IRQ_SET.size + len(data), flags, index, start, len(eventfds))
    return kernel.ioctl(device, VFIO_DEVICE_SET_IRQS, bytearray(header + data))


def disable_irqs(kernel: Kernel, device: int, index: int) -> None:
    """VFIO_DEVICE_SET_IRQS: none at all."""
    flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER
    kernel.ioctl(device, VFIO_DEVICE_SET_IRQS, bytearray(_IRQ_SET.pack(_IRQ_SET.size, flags, index, 0, 0)))


def iommu_info(kernel: Kernel, container: int) -> IommuInfo:
    """VFIO_IOMMU_GET_INFO."""
    info = _query(kernel, container, VFIO_IOMMU_GET_INFO, _IOMMU_INFO)
    _, flags, page_sizes, cap_offset, _ = _IOMMU_INFO.unpack_from(info)
    if not flags & VFIO_IOMMU_INFO_PGSIZES:
        page_sizes = os.sysconf("SC_PAGE_SIZE")
    ranges: tuple[range, ...] = ()
    available: int | None = None
    for identifier, _, body in capabilities(info, cap_offset if flags & VFIO_IOMMU_INFO_CAPS else 0):
        if identifier == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
            count, _ = struct.unpack_from("=II", body)
            pairs = [
                struct.unpack_from("=QQ", body, 8 + 16 * number) for number in range(min(count, (len(body) - 8) // 16))
            ]
            ranges = tuple(range(start, end + 1) for start, end in pairs)
        elif identifier == VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
            (available,) = struct.unpack_from("=I", body)
    return IommuInfo(page_sizes, ranges, available)


def map_dma(kernel: Kernel, container: int, *, address: int, iova: int, nbytes: int) -> None:
    """VFIO_IOMMU_MAP_DMA, for reading and writing by the device."""
    flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE
    request = bytearray(_DMA_MAP.pack(_DMA_MAP.size, flags, address, iova, nbytes))
    kernel.ioctl(container, VFIO_IOMMU_MAP_DMA, request)


def unmap_dma(kernel: Kernel, container: int, *, iova: int, nbytes: int) -> int:
    """VFIO_IOMMU_UNMAP_DMA; how many bytes were unmapped."""
    request = bytearray(_DMA_UNMAP.pack(_DMA_UNMAP.size, 0, iova, nbytes))
    kernel.ioctl(container, VFIO_IOMMU_UNMAP_DMA, request)
    return int(_DMA_UNMAP.unpack(request)[3])
