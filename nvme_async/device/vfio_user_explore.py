"""Exploring a vfio-user peer's device: everything is queried once and kept as a Layout for a
successor; also its registers by message.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any

import attrs
import cattrs

from nvme_async.device import vfio_user_protocol as wire
from nvme_async.device.base import DeviceIds, Saved
from nvme_async.device.vfio_user_channel import Channel
from nvme_async.device.vfio_user_protocol import Command
from nvme_async.errors import ControllerFatal, DeviceError, InvalidSavedState
from nvme_async.native._mmio import Mmio, file_system
from nvme_async.spec.registers import DOORBELL_BASE

log: logging.Logger = logging.getLogger("nvme_async")

# Configuration space (PCI Local Bus 3.0, 6.1, 6.2.5.1 and 6.8.2).
_COMMAND = 0x04
_STATUS_CAPABILITIES = 0x10
_CAPABILITIES = 0x34
_CAPABILITY_MSIX = 0x11
_CAPABILITY_EXPRESS = 0x10
_EXTENDED_CAPABILITIES = 0x100
_EXTENDED_SERIAL_NUMBER = 0x0003
_FIRST_CAPABILITY = 0x40
_BAR0 = 0x10
_BAR_IS_IO, _BAR_TYPE, _BAR_TYPE_64_BIT, _BAR_FLAGS = 0x1, 0x6, 0x4, 0xF
# statfs(2): a process behind the mount, or another machine, answers page faults there.
_SLOW_FILE_SYSTEMS = {0x65735546: "FUSE", 0x6969: "NFS", 0x01021997: "9P", 0xFF534D42: "CIFS", 0xFE534D42: "SMB"}
_BAR_ADDRESS, _BAR_END, _BAR_HIGH_ADDRESS = 0xE0000000, 0xFE000000, 1 << 40


@attrs.frozen
class Layout:
    """The properties of the device: everything that a successor would otherwise have to
    query.
    """

    ids: DeviceIds
    limits: wire.Limits
    can_reset: bool
    n_vectors: int
    msix_capability: int
    """Its offset in configuration space, 0 = none."""
    bar0_size: int
    doorbells: tuple[int, int] | None
    """(offset in the doorbell descriptor's file, bytes), or None: they go by message."""
    serial_capability: int = 0
    """Offset of the Device Serial Number capability in configuration space, 0 = none."""


_converter = cattrs.Converter()
# Compiled here and not at the first use, when a successor must be fast: it takes milliseconds.
_structure_layout = _converter.get_structure_hook(Layout)


def layout_from(saved: Saved) -> Layout:
    try:
        layout: Layout = _structure_layout(dict(saved), Layout)
        return layout
    except Exception as error:  # any exception of the nested converters
        reasons = "; ".join(cattrs.transform_error(error)) if isinstance(error, cattrs.BaseValidationError) else error
        raise InvalidSavedState(f"saved state of a vfio-user device is invalid: {reasons}") from error


def explore(channel: Channel, uri: str, limits: wire.Limits) -> tuple[Layout, int, int]:
    """Queries everything from the peer, and changes nothing on the device. Returns the layout,
    and the descriptors of the doorbells and of their kick eventfd (-1: none), which become the
    caller's.
    """
    answer = channel.call(Command.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(wire.DEVICE_INFO.size, 0, 0, 0))
    _, flags, n_regions, n_irqs = _unpack(wire.DEVICE_INFO, answer, Command.DEVICE_GET_INFO)
    if not flags & wire.DEVICE_FLAG_PCI or n_regions <= wire.CONFIG_REGION:
        raise DeviceError(f"{uri} is not a PCI device (flags {flags:#x}, {n_regions} regions)")
    msix_capability, serial_capability = _find_capabilities(channel)
    ids = ids_from(read_many(channel, id_reads(serial_capability)))
    n_vectors = _vectors(channel) if n_irqs > wire.MSIX_IRQ else 0
    bar0, fds = _region(channel, wire.BAR0_REGION)
    doorbell_fd = kick_fd = -1
    doorbells = None
    try:
        if bar0.size < DOORBELL_BASE + 8:
            raise DeviceError(f"{uri}: BAR0 has {bar0.size:#x} bytes, doorbells begin at {DOORBELL_BASE:#x}")
        area = bar0.area_at(DOORBELL_BASE)
        if area is not None and fds and _is_memory(fds[0], uri):
            doorbell_fd = fds.pop(0)
            doorbells = (bar0.file_offset + area[0], area[1])
            kick_fd = _kick_fd(channel, uri)
        layout = Layout(
            ids=ids,
            limits=limits,
            can_reset=bool(flags & wire.DEVICE_FLAG_RESET),
            n_vectors=n_vectors,
            msix_capability=msix_capability,
            bar0_size=bar0.size,
            doorbells=doorbells,
            serial_capability=serial_capability,
        )
        return layout, doorbell_fd, kick_fd
    except BaseException:
        fds += [fd for fd in (doorbell_fd, kick_fd) if fd >= 0]
        raise
    finally:
        close_all(fds)


def assign_bar0(channel: Channel, nbytes: int) -> None:
    """Gives BAR0 an address if it has none. Region accesses don't need it, but a server that
    decodes its own bus, as QEMU's does, finds nothing behind an unassigned BAR.
    """
    bar = read_region(channel, wire.CONFIG_REGION, _BAR0, 4)
    wide = bar & _BAR_TYPE == _BAR_TYPE_64_BIT
    if bar & _BAR_IS_IO or bar & ~_BAR_FLAGS or (wide and read_region(channel, wire.CONFIG_REGION, _BAR0 + 4, 4)):
        return
    alignment = 1 << (nbytes - 1).bit_length()
    address = -(-_BAR_ADDRESS // alignment) * alignment
    if address + nbytes > _BAR_END:
        address = max(_BAR_HIGH_ADDRESS, alignment)
    if address >> 32 and not wide:
        return
    with contextlib.suppress(DeviceError):  # a peer that needs no address refuses it
        write_region(channel, wire.CONFIG_REGION, _BAR0, address & 0xFFFFFFFF, 4)
        if wide:
            write_region(channel, wire.CONFIG_REGION, _BAR0 + 4, address >> 32, 4)


def _unpack(layout: Any, payload: bytes, command: Command) -> tuple[int, ...]:
    if len(payload) < layout.size:
        raise ControllerFatal(
            f"vfio-user peer's reply to {command.name} has {len(payload)} bytes, not the {layout.size} due"
        )
    return tuple(layout.unpack_from(payload))


def read_request(region: int, offset: int, width: int) -> tuple[Command, bytes]:
    return Command.REGION_READ, wire.REGION_ACCESS.pack(offset, region, width)


def read_answers(answers: Sequence[bytes], reads: Sequence[tuple[int, int, int]]) -> list[int]:
    values = []
    for answer, (_, _, width) in zip(answers, reads, strict=True):
        _, _, count = _unpack(wire.REGION_ACCESS, answer, Command.REGION_READ)
        data = answer[wire.REGION_ACCESS.size :]
        if count != width or len(data) != width:
            raise ControllerFatal(f"vfio-user peer returned {len(data)} bytes (count {count}) for a read of {width}")
        values.append(int.from_bytes(data, "little"))
    return values


def read_many(channel: Channel, reads: Sequence[tuple[int, int, int]]) -> list[int]:
    """Reads of (region, offset, width), executed by the device in this order, with one wait for
    all.
    """
    return read_answers(channel.call_all([read_request(*read) for read in reads]), reads)


def read_region(channel: Channel, region: int, offset: int, width: int) -> int:
    return read_many(channel, [(region, offset, width)])[0]


def write_region(channel: Channel, region: int, offset: int, value: int, width: int) -> None:
    data = value.to_bytes(width, "little")
    channel.call(Command.REGION_WRITE, wire.REGION_ACCESS.pack(offset, region, width) + data)


def _region(channel: Channel, index: int) -> tuple[wire.Region, list[int]]:
    """A region and its descriptors, which become the caller's."""
    argsz = 256  # usually enough for the capabilities
    while True:
        request = wire.REGION_INFO.pack(argsz, 0, index, 0, 0, 0)
        answer, fds = channel.call_fds(Command.DEVICE_GET_REGION_INFO, request)
        try:
            needed = _unpack(wire.REGION_INFO, answer, Command.DEVICE_GET_REGION_INFO)[0]
            if needed <= argsz:
                return wire.parse_region(answer, index), fds
            if needed > wire.MAX_MESSAGE_BYTES - wire.HEADER.size:
                raise ControllerFatal(f"vfio-user peer needs {needed} bytes to describe region {index}")
        except BaseException:
            close_all(fds)
            raise
        close_all(fds)
        argsz = needed


def map_region(channel: Channel, uri: str, index: int, offset: int, nbytes: int | None) -> Mmio:
    """See Device.map_bar()."""
    region, fds = _region(channel, index)
    try:
        size = region.size - offset if nbytes is None else nbytes
        area = region.area_at(offset)
        if not fds or area is None or not 0 < size <= area[1] or not _is_memory(fds[0], uri):
            raise DeviceError(f"{uri}: {size:#x} bytes from {offset:#x} of BAR {index} can't be mapped")
        return Mmio(fds[0], region.file_offset + offset, size)
    except (OSError, ValueError) as error:
        raise DeviceError(f"{uri}: mapping BAR {index}: {error}") from error
    finally:
        close_all(fds)


def _is_memory(fd: int, uri: str) -> bool:
    """Whether a store to a mapping of `fd` completes at once: not if another process serves the
    pages, which may take any time.
    """
    try:
        name = _SLOW_FILE_SYSTEMS.get(file_system(fd))
    except OSError as error:
        name = f"an unknown file system ({error.strerror})"
    if name is not None:
        log.warning("%s: its doorbells are in a file of %s; they are sent as messages instead", uri, name)
    return name is None


def _kick_fd(channel: Channel, uri: str) -> int:
    """The eventfd that announces doorbell stores, -1 if the peer has none: the message is
    optional.
    """
    argsz = 256
    while True:
        try:
            answer, fds = channel.call_fds(
                Command.DEVICE_GET_REGION_IO_FDS, wire.IO_FDS.pack(argsz, 0, wire.BAR0_REGION, 0)
            )
        except DeviceError:
            return -1
        needed = _unpack(wire.IO_FDS, answer, Command.DEVICE_GET_REGION_IO_FDS)[0] if len(answer) >= 4 else 0
        if argsz < needed <= wire.MAX_MESSAGE_BYTES - wire.HEADER.size:
            close_all(fds)
            argsz = needed
            continue
        index = wire.doorbell_ioeventfd(answer, DOORBELL_BASE)
        kick = fds.pop(index) if index is not None and index < len(fds) else -1
        close_all(fds)
        if kick >= 0 and os.readlink(f"/proc/self/fd/{kick}") != "anon_inode:[eventfd]":
            log.warning("%s: the descriptor that should signal its doorbells is not an eventfd; it is not used", uri)
            os.close(kick)
            kick = -1
        return kick


def _vectors(channel: Channel) -> int:
    request = wire.IRQ_INFO.pack(wire.IRQ_INFO.size, 0, wire.MSIX_IRQ, 0)
    answer = channel.call(Command.DEVICE_GET_IRQ_INFO, request)
    count = _unpack(wire.IRQ_INFO, answer, Command.DEVICE_GET_IRQ_INFO)[3]
    if count > 2048:  # the largest count of an MSI-X capability
        raise ControllerFatal(f"vfio-user peer says it has {count} MSI-X vectors")
    return count


def id_reads(serial_capability: int) -> list[tuple[int, int, int]]:
    """The data for ids_from(), by reads of four bytes, which every peer's configuration space
    supports.
    """
    offsets = [0x00, 0x08, 0x2C]
    if serial_capability:
        offsets += [serial_capability + 4, serial_capability + 8]
    return [(wire.CONFIG_REGION, offset, 4) for offset in offsets]


def ids_from(values: Sequence[int]) -> DeviceIds:
    vendor_device, class_revision, subsystem, *serial = values
    return DeviceIds(
        vendor=vendor_device & 0xFFFF,
        device=vendor_device >> 16,
        subsystem_vendor=subsystem & 0xFFFF,
        subsystem=subsystem >> 16,
        class_code=class_revision >> 8,
        revision=class_revision & 0xFF,
        serial_number=serial[0] | serial[1] << 32 if serial else 0,
    )


def _find_capabilities(channel: Channel) -> tuple[int, int]:
    """The offsets of MSI-X and the Device Serial Number (0 = none)."""

    def read32(offset: int) -> int:
        return read_region(channel, wire.CONFIG_REGION, offset, 4)

    msix = 0
    express = False
    at = read32(_CAPABILITIES) & 0xFC if read32(_COMMAND) >> 16 & _STATUS_CAPABILITIES else 0
    seen: set[int] = set()
    while at >= _FIRST_CAPABILITY and at not in seen:
        seen.add(at)
        header = read32(at)
        express |= header & 0xFF == _CAPABILITY_EXPRESS
        if header & 0xFF == _CAPABILITY_MSIX and not msix:
            msix = at
        at = header >> 8 & 0xFC
    at = _EXTENDED_CAPABILITIES if express else 0
    while at >= _EXTENDED_CAPABILITIES and at not in seen:
        seen.add(at)
        header = read32(at)
        if header & 0xFFFF == _EXTENDED_SERIAL_NUMBER:
            return msix, at
        at = header >> 20 & 0xFFC
    return msix, 0


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
