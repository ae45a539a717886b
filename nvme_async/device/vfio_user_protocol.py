"""vfio-user on the wire: numbers, layouts, and parsing that tolerates no peer errors.

After libvfio-user's docs/vfio-user.rst (QEMU: docs/interop/vfio-user.rst) and, for what it borrows
from VFIO, <linux/vfio.h> and <linux/pci_regs.h>. Everything is little endian. No sockets here.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from nvme_async.errors import ControllerFatal


class Command(enum.IntEnum):
    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13


HEADER = struct.Struct("<HHIII")  # msg_id, command, size of the whole message, flags, error
TYPE_MASK, TYPE_COMMAND, TYPE_REPLY = 0xF, 0x0, 0x1
FLAG_NO_REPLY = 0x10
FLAG_ERROR = 0x20

MAJOR, MINOR = 0, 1
VERSION = struct.Struct("<HH")
MAX_MESSAGE_BYTES = 1 << 16
"""No reply to our requests is longer; a header that claims it is broken."""
MAX_MESSAGE_FDS = 16
"""The limit of descriptors in one message that we announce."""

DEVICE_INFO = struct.Struct("<IIII")  # argsz, flags, num_regions, num_irqs
DEVICE_FLAG_RESET = 0x1
DEVICE_FLAG_PCI = 0x2

REGION_INFO = struct.Struct("<IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
REGION_FLAG_MMAP = 0x4
REGION_FLAG_CAPS = 0x8
CAPABILITY = struct.Struct("<HHI")  # id, version, next
CAPABILITY_SPARSE_MMAP = 1
SPARSE_MMAP = struct.Struct("<II")  # nr_areas, reserved
SPARSE_AREA = struct.Struct("<QQ")  # offset, size

BAR0_REGION = 0
CONFIG_REGION = 7

IO_FDS = struct.Struct("<IIII")  # argsz, flags, index, count
IO_FD = struct.Struct("<QQIII")  # offset, size, fd_index, type, flags: the start of each kind of entry
IO_FD_IOEVENTFD = 0
IO_FD_IOEVENTFD_SHADOW = 2
IOEVENTFD_FLAG_DATAMATCH = 0x1

IRQ_INFO = struct.Struct("<IIII")  # argsz, flags, index, count
IRQ_SET = struct.Struct("<IIIII")  # argsz, flags, index, start, count
IRQ_SET_DATA_NONE = 0x1
IRQ_SET_DATA_EVENTFD = 0x4
IRQ_SET_ACTION_UNMASK = 0x10
IRQ_SET_ACTION_TRIGGER = 0x20
MSIX_IRQ = 2

DMA_MAP = struct.Struct("<IIQQQ")  # argsz, flags, offset, address, size
DMA_READ_WRITE = 0x3
DMA_UNMAP = struct.Struct("<IIQQ")  # argsz, flags, address, size

REGION_ACCESS = struct.Struct("<QII")  # offset, region, count; then data


@attrs.frozen
class Limits:
    """The peer's properties from VERSION, with the specification's defaults for missing ones."""

    max_msg_fds: int = 1
    max_mappings: int = 64
    """Servers that don't report it (max_dma_maps) are known to stop at 64."""


def version_request() -> bytes:
    capabilities = {"max_msg_fds": MAX_MESSAGE_FDS, "max_data_xfer_size": 4096}
    return VERSION.pack(MAJOR, MINOR) + json.dumps({"capabilities": capabilities}).encode() + b"\0"


def parse_version(payload: bytes) -> Limits:
    if len(payload) < VERSION.size:
        raise ControllerFatal(f"the vfio-user peer's VERSION reply has only {len(payload)} bytes")
    major, minor = VERSION.unpack_from(payload)
    if major != MAJOR or minor > MINOR:
        raise ControllerFatal(f"the vfio-user peer has version {major}.{minor}, this client {MAJOR}.{MINOR}")
    text = payload[VERSION.size :].split(b"\0", 1)[0]
    if not text.strip():
        return Limits()
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ControllerFatal(f"the vfio-user peer's VERSION reply isn't JSON: {error}") from None
    capabilities = document.get("capabilities", {}) if isinstance(document, dict) else {}
    if not isinstance(capabilities, dict):
        capabilities = {}
    return Limits(
        max_msg_fds=_count(capabilities, "max_msg_fds", Limits().max_msg_fds),
        max_mappings=_count(capabilities, "max_dma_maps", Limits().max_mappings),
    )


def _count(capabilities: Mapping[str, Any], name: str, default: int) -> int:
    value = capabilities.get(name, default)
    if not isinstance(value, int) or value < 0:
        raise ControllerFatal(f"the vfio-user peer's capability {name} is {value!r}, not a count")
    return value


@attrs.frozen
class Region:
    """One region of the device, from a whole GET_REGION_INFO reply."""

    flags: int
    size: int
    file_offset: int
    areas: tuple[tuple[int, int], ...]
    """(offset in the region, size) of what may be mapped."""

    def area_at(self, offset: int) -> tuple[int, int] | None:
        """(offset, size) of what can be mapped from the page at `offset` to the end of its area."""
        for start, size in self.areas:
            if start <= offset < start + size <= self.size:
                return offset, start + size - offset
        return None


def parse_region(payload: bytes, index: int) -> Region:
    if len(payload) < REGION_INFO.size:
        raise ControllerFatal(f"the vfio-user peer's reply for region {index} has only {len(payload)} bytes")
    _, flags, answered, cap_offset, size, file_offset = REGION_INFO.unpack_from(payload)
    if answered != index:
        raise ControllerFatal(f"the vfio-user peer described region {answered} when asked for {index}")
    areas: list[tuple[int, int]] = []
    sparse = False
    if flags & REGION_FLAG_MMAP:
        if flags & REGION_FLAG_CAPS and cap_offset:
            for capability, at in _capabilities(payload, cap_offset):
                if capability == CAPABILITY_SPARSE_MMAP:
                    sparse = True
                    areas += _sparse_areas(payload, at)
        if not sparse:
            areas.append((0, size))
    return Region(flags, size, file_offset, tuple(areas))


def _capabilities(payload: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """(id, offset of the contents). The chain must go forwards, so that it ends."""
    end = REGION_INFO.size
    while offset:
        if offset < end or offset + CAPABILITY.size > len(payload):
            raise ControllerFatal(f"the vfio-user peer's region capability at {offset} is outside the reply")
        identity, _, following = CAPABILITY.unpack_from(payload, offset)
        end = offset + CAPABILITY.size
        yield identity, end
        offset = following


def _sparse_areas(payload: bytes, offset: int) -> Iterator[tuple[int, int]]:
    if offset + SPARSE_MMAP.size > len(payload):
        raise ControllerFatal("the vfio-user peer's sparse mmap capability is truncated")
    count, _ = SPARSE_MMAP.unpack_from(payload, offset)
    offset += SPARSE_MMAP.size
    if count > (len(payload) - offset) // SPARSE_AREA.size:
        raise ControllerFatal(f"the vfio-user peer's sparse mmap capability is too short for {count} areas")
    for i in range(count):
        start, size = SPARSE_AREA.unpack_from(payload, offset + i * SPARSE_AREA.size)
        yield start, size


def doorbell_ioeventfd(payload: bytes, doorbells: int) -> int | None:
    """Index among the received descriptors of the eventfd that stands for the doorbells from
    `doorbells` on.

    Only one that stands for all of them counts: an entry whose span starts there or before and
        whose size is
    0 (any access) or at least a page. Entries are as long as argsz and count say (libvfio-user's
    have 48 bytes, the specification's 40).
    """
    if len(payload) < IO_FDS.size:
        return None
    argsz, _, _, count = IO_FDS.unpack_from(payload)
    if count == 0:
        return None
    stride = (min(argsz, len(payload)) - IO_FDS.size) // count
    if stride < IO_FD.size:
        return None
    for i in range(count):
        offset, size, index, kind, flags = IO_FD.unpack_from(payload, IO_FDS.size + i * stride)
        if kind not in (IO_FD_IOEVENTFD, IO_FD_IOEVENTFD_SHADOW) or flags & IOEVENTFD_FLAG_DATAMATCH:
            continue
        if (offset == doorbells and size == 0) or (offset <= doorbells and offset + size >= doorbells + 4096):
            return int(index)
    return None
