"""A device behind a vfio-user server: the built-in controller, SPDK, QEMU.

Registers are messages; doorbells are memory if the peer offers it. When the socket's last
descriptor is closed the peer drops every mapping and resets the controller, so a live takeover
passes the socket on; see resume().
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import attrs

from nvme_async.device import vfio_user_protocol as wire
from nvme_async.device.base import DeviceIds, Doorbells, Saved
from nvme_async.device.vfio_user_channel import Channel, busy, connect
from nvme_async.device.vfio_user_explore import (
    Layout,
    assign_bar0,
    close_all,
    explore,
    id_reads,
    ids_from,
    layout_from,
    map_region,
    read_answers,
    read_many,
    read_region,
    read_request,
    write_region,
)
from nvme_async.device.vfio_user_protocol import Command
from nvme_async.device.vfio_user_ring import Ringer
from nvme_async.errors import ControllerGone, DeviceError, DeviceTimeout, InvalidSavedState
from nvme_async.native._dma import PAGE_SIZE, Pool
from nvme_async.native._mmio import Mmio
from nvme_async.runtime import forks
from nvme_async.spec.registers import DOORBELL_BASE

DEFAULT_TIMEOUT = 10.0

# Configuration space (PCI Local Bus 3.0, 6.1 and 6.8.2).
_COMMAND = 0x04
_COMMAND_MEMORY, _COMMAND_MASTER, _COMMAND_INTX_DISABLE = 0x2, 0x4, 0x400
_MSIX_CONTROL = 2
_MSIX_ENABLE = 0x8000


# Its reply is the same for any sender, so it is harmless if the predecessor's request had this id
# too. Requests sent with it are answered after it.
_WHO = (Command.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(wire.DEVICE_INFO.size, 0, 0, 0))


def _ask_ids(channel: Channel, layout: Layout) -> DeviceIds:
    reads = id_reads(layout.serial_capability)
    _, *answers = channel.call_all([_WHO, *(read_request(*read) for read in reads)])
    return ids_from(read_answers(answers, reads))


class VfioUserDevice:
    """Device (see there) over one vfio-user connection.

    It owns the socket and the descriptors it got from the peer. Every call is bounded by the
    timeout in seconds.
    """

    direct = False
    iova_ranges: tuple[range] = (range(1 << 64),)

    def __init__(self, channel: Channel, layout: Layout, *, uri: str, doorbell_fd: int = -1, kick_fd: int = -1) -> None:
        """Only for this class: connect(), from_socket() and resume() make devices."""
        self.uri = uri
        self._channel = channel
        self._layout = layout
        self._saved: dict[str, Any] | None = None
        self._doorbell_fd = doorbell_fd
        self._kick_fd = kick_fd
        self._closing = threading.Lock()
        self._hang_up: select.epoll | None = None
        self._trouble: str | None = None
        self._trouble_fd = -1
        self._ringer = Ringer(self.write32, lambda error: self._fail(str(error)))
        # Vectors that may have an eventfd; a predecessor may have set any.
        self._assigned = set(range(layout.n_vectors))
        self._has_masks = True  # until the peer says that it hasn't
        try:
            self._trouble_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._hang_up = select.epoll()
            self._hang_up.register(channel.fd, select.EPOLLRDHUP)
            self._hang_up.register(self._trouble_fd, select.EPOLLIN)
            if layout.doorbells is None:
                self._doorbells = Doorbells(None, DOORBELL_BASE)
            else:
                mmio = Mmio(doorbell_fd, *layout.doorbells, lost_fd=self._trouble_fd)
                self._doorbells = Doorbells(mmio, 0, kick_fd, (doorbell_fd, *layout.doorbells))
        except (OSError, ValueError) as error:
            self._close_watch()
            raise DeviceError(f"{uri}: its doorbells cannot be mapped and watched: {error}") from error
        forks.watch(self)  # only now: if making it fails, the caller closes the descriptors

    # --- making one

    @classmethod
    def connect(cls, path: str, *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """The device of the server that listens at the Unix socket `path`."""
        return cls._negotiate(connect(path, timeout), f"vfio-user:{path}")

    @classmethod
    def from_socket(cls, sock: socket.socket, *, uri: str = "vfio-user:", timeout: float = DEFAULT_TIMEOUT) -> Self:
        """The device at the other end of a connected stream socket, which becomes the device's
        own.
        """
        return cls._negotiate(Channel(sock, timeout), uri)

    @classmethod
    def _negotiate(cls, channel: Channel, uri: str) -> Self:
        try:
            try:
                answer = channel.call(Command.VERSION, wire.version_request())
            except DeviceTimeout as error:
                raise DeviceTimeout(f"{uri}: {error}{busy(uri.partition(':')[2])}") from None
            limits = wire.parse_version(answer)
            device = cls._explored(channel, uri, limits)
        except BaseException:
            channel.close()
            raise
        try:
            device._enable()
        except BaseException:
            device.detach()
            raise
        device._assigned = set()
        return device

    @classmethod
    def resume(
        cls,
        descriptors: Mapping[str, int],
        saved: Saved | None = None,
        *,
        uri: str = "vfio-user:",
        timeout: float = DEFAULT_TIMEOUT,
        ids: DeviceIds | None = None,
    ) -> Self:
        """Continues where another process stopped, which may have been killed in the middle of a
        call.

        `descriptors` ("socket", and "doorbell" and "kick" where the device has them) become the
        device's own, also when this fails. No handshake and no reset; with `saved` nothing is asked
        but one question whose answer shows that the peer lives and that all replies to the
        predecessor are through, and who it is: `ids` are the device's own. Given `ids`, not even
        that: identify_again() asks. Raises InvalidSavedState when the two don't fit together.
        """
        fds = dict(descriptors)
        if "socket" not in fds:
            close_all(list(fds.values()))
            raise InvalidSavedState(f"a vfio-user device cannot be resumed without its socket, only {sorted(fds)}")
        try:
            sock = socket.socket(fileno=fds["socket"])
        except OSError as error:
            close_all(list(fds.values()))
            raise InvalidSavedState(f"descriptor {fds['socket']} is not a vfio-user socket: {error.strerror}") from None
        del fds["socket"]
        channel = Channel(sock, timeout)
        try:
            if saved is None:
                channel.call(*_WHO)
                return cls._explored(channel, uri, wire.Limits())
            layout = layout_from(saved)
            layout = attrs.evolve(layout, ids=ids or _ask_ids(channel, layout))
            if layout.doorbells is not None and "doorbell" not in fds:
                raise InvalidSavedState("the saved state has mapped doorbells, but the doorbell descriptor is missing")
            device = cls(channel, layout, uri=uri, doorbell_fd=fds.get("doorbell", -1), kick_fd=fds.get("kick", -1))
            fds.pop("doorbell", None)
            fds.pop("kick", None)
            return device
        except BaseException:
            channel.close()
            raise
        finally:
            close_all(list(fds.values()))

    @classmethod
    def _explored(cls, channel: Channel, uri: str, limits: wire.Limits) -> Self:
        layout, doorbell_fd, kick_fd = explore(channel, uri, limits)
        try:
            return cls(channel, layout, uri=uri, doorbell_fd=doorbell_fd, kick_fd=kick_fd)
        except BaseException:
            close_all([fd for fd in (doorbell_fd, kick_fd) if fd >= 0])
            raise

    def _enable(self) -> None:
        """Enable memory accesses, with an address, and DMA; disable INTx, because some
        controllers treat a missing INTx handler as a fatal error.
        """
        assign_bar0(self._channel, self._layout.bar0_size)
        self.enable_bus_mastering()

    # --- properties

    @property
    def ids(self) -> DeviceIds:
        return self._layout.ids

    @property
    def n_vectors(self) -> int:
        return self._layout.n_vectors

    @property
    def max_mappings(self) -> int:
        return self._layout.limits.max_mappings

    @property
    def bar0_nbytes(self) -> int:
        return self._layout.bar0_size

    @property
    def gone_fd(self) -> int:
        """An epoll descriptor, because only the peer's hang-up matters, not its replies."""
        with self._closing:
            return -1 if self._hang_up is None else self._hang_up.fileno()

    @property
    def trouble(self) -> str | None:
        mmio = self._doorbells.mmio
        if mmio is not None and mmio.lost:
            return "the peer has withdrawn the memory of its doorbells"
        return self._trouble

    def _fail(self, why: str) -> None:
        """Makes gone_fd readable. Any thread."""
        with self._closing:
            self._trouble = self._trouble or why
            if self._trouble_fd >= 0:
                os.eventfd_write(self._trouble_fd, 1)

    @property
    def timeout(self) -> float:
        return self._channel.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._channel.timeout = seconds

    def doorbells(self) -> Doorbells:
        return self._doorbells

    def __repr__(self) -> str:
        state = "" if self._channel.fd >= 0 else ", closed"
        return f"<{type(self).__name__} {self.uri} {self.ids}, {self.n_vectors} vectors{state}>"

    # --- registers

    def read32(self, offset: int) -> int:
        return self._read(offset, 4)

    def read64(self, offset: int) -> int:
        return self._read(offset, 8)

    def read_many(self, registers: Sequence[tuple[int, int]]) -> list[int]:
        for offset, width in registers:
            self._check_register(offset, width)
        self._settle()
        return read_many(self._channel, [(wire.BAR0_REGION, *register) for register in registers])

    def write32(self, offset: int, value: int) -> None:
        self._write(offset, value, 4)

    def ring(self, offset: int, value: int, done: Callable[[], None]) -> None:
        self._check_register(offset, 4)
        self._ringer.ring(offset, value, done)

    def write64(self, offset: int, value: int) -> None:
        self._write(offset, value, 8)

    def _check_register(self, offset: int, width: int) -> None:
        if not 0 <= offset <= self._layout.bar0_size - width or offset % width:
            raise ValueError(
                f"{width * 8}-bit access at {offset:#x} is misaligned or beyond "
                f"the {self._layout.bar0_size:#x} bytes of BAR0"
            )

    def _settle(self) -> None:
        """Before a register access: doorbells that were rung come first. A peer that let one of
        them time out is not waited for again.
        """
        self._ringer.settle(self.timeout)
        if self._trouble is not None:
            raise ControllerGone(f"{self.uri}: {self._trouble}")

    def _read(self, offset: int, width: int) -> int:
        self._check_register(offset, width)
        self._settle()
        return read_region(self._channel, wire.BAR0_REGION, offset, width)

    def _write(self, offset: int, value: int, width: int) -> None:
        self._check_register(offset, width)
        self._settle()
        write_region(self._channel, wire.BAR0_REGION, offset, value, width)

    # --- memory

    def map_bar(self, bar: int, offset: int, nbytes: int | None) -> Mmio:
        return map_region(self._channel, self.uri, bar, offset, nbytes)

    def map_dma(
        self, memory: Pool | int, *, iova: int, nbytes: int, file_offset: int = 0, address: int | None = None
    ) -> None:
        """`address` is unused: the peer maps the descriptor."""
        for name, value in (("iova", iova), ("nbytes", nbytes), ("file_offset", file_offset)):
            if value < 0 or value % PAGE_SIZE:
                raise ValueError(f"{name} {value:#x} of a DMA mapping is not a multiple of {PAGE_SIZE}")
        if nbytes == 0 or iova + nbytes > 1 << 64:
            raise ValueError(f"cannot map {nbytes} bytes at IOVA {iova:#x}")
        fd = memory.fd if isinstance(memory, Pool) else memory
        entry = wire.DMA_MAP.pack(wire.DMA_MAP.size, wire.DMA_READ_WRITE, file_offset, iova, nbytes)
        self._channel.call(Command.DMA_MAP, entry, (fd,))

    def unmap_dma(self, iova: int, nbytes: int) -> None:
        self._channel.call(Command.DMA_UNMAP, wire.DMA_UNMAP.pack(wire.DMA_UNMAP.size, 0, iova, nbytes))

    # --- interrupts and reset

    def set_interrupts(self, eventfds: Sequence[int | None]) -> int:
        if len(eventfds) > self.n_vectors:
            raise ValueError(f"{len(eventfds)} interrupts were requested, the device has {self.n_vectors} vectors")
        wanted = dict(enumerate(eventfds))
        if all(fd is None for fd in wanted.values()):
            self._enable_msix(False)
            self._set_irqs(0, 0, wire.IRQ_SET_DATA_NONE)
            self._assigned.clear()
            return len(eventfds)
        most = max(1, self._layout.limits.max_msg_fds)
        given: list[range] = []
        start = 0
        while start < self.n_vectors:
            fds: list[int] = []
            while (fd := wanted.get(start + len(fds))) is not None and len(fds) < most:
                fds.append(fd)
            end = start + max(1, len(fds))
            while not fds and end < self.n_vectors and wanted.get(end) is None:
                end += 1
            vectors = range(start, end)
            if fds:
                self._assigned.update(vectors)
                self._set_irqs(start, len(vectors), wire.IRQ_SET_DATA_EVENTFD, fds)
                given.append(vectors)
            elif not self._assigned.isdisjoint(vectors):
                # Without descriptors the message removes the vectors' eventfds.
                self._set_irqs(start, len(vectors), wire.IRQ_SET_DATA_EVENTFD)
                self._assigned.difference_update(vectors)
            start = end
        self._unmask(given)
        # Only now: with MSI-X on and no eventfd, some controllers treat the first interrupt as a
        # fatal error.
        self._enable_msix(True)
        return len(eventfds)

    def _unmask(self, given: Sequence[range]) -> None:
        """After a reset of the function all vectors are masked (PCI Local Bus 3.0, 6.8.2.9). A
        server that respects its MSI-X table, as QEMU's does, signals nothing until they are
        unmasked; one without masks refuses.
        """
        for vectors in given:
            if not self._has_masks:
                return
            try:
                self._set_irqs(vectors.start, len(vectors), wire.IRQ_SET_DATA_NONE, action=wire.IRQ_SET_ACTION_UNMASK)
            except DeviceError:
                self._has_masks = False

    def _set_irqs(
        self, start: int, count: int, data: int, fds: Sequence[int] = (), action: int = wire.IRQ_SET_ACTION_TRIGGER
    ) -> None:
        request = wire.IRQ_SET.pack(wire.IRQ_SET.size, data | action, wire.MSIX_IRQ, start, count)
        self._channel.call(Command.DEVICE_SET_IRQS, request, fds)

    def _enable_msix(self, enable: bool) -> None:
        if self._layout.msix_capability:
            self._write_config16(self._layout.msix_capability + _MSIX_CONTROL, _MSIX_ENABLE if enable else 0)

    def _write_config16(self, offset: int, value: int) -> None:
        write_region(self._channel, wire.CONFIG_REGION, offset, value, 2)

    def reset(self) -> None:
        if self._layout.can_reset:
            self._channel.call(Command.DEVICE_RESET)
            self._enable()

    def enable_bus_mastering(self) -> None:
        self._write_config16(_COMMAND, _COMMAND_MEMORY | _COMMAND_MASTER | _COMMAND_INTX_DISABLE)

    # --- hand-over and end

    def descriptors(self) -> dict[str, int]:
        if self._channel.fd < 0:
            raise ControllerGone(f"{self.uri} is closed")
        fds = {"socket": self._channel.fd, "doorbell": self._doorbell_fd, "kick": self._kick_fd}
        return {name: fd for name, fd in fds.items() if fd >= 0}

    def save(self) -> dict[str, Any]:
        if self._saved is None:  # it never changes
            self._saved = attrs.asdict(self._layout)
            if self._layout.doorbells is not None:
                self._saved["doorbells"] = list(self._layout.doorbells)
        return self._saved

    def close(self) -> None:
        self._channel.shut_down()
        self.detach()

    def steer(self, vector: int, cpus: Collection[int]) -> bool:
        """The interrupt is an eventfd of another process, which has no CPU."""
        return False

    def inspect(self) -> dict[str, Any]:
        """How its doorbells are rung, and the number of dropped replies."""
        mmio, kick = self._doorbells.mmio, self._doorbells.kick_fd >= 0
        return {
            "ids": str(self.ids),
            "vectors": self.n_vectors,
            "doorbells": "messages" if mmio is None else "mapped, with an eventfd" if kick else "mapped",
            "stale_replies": self._channel.stale_replies,
            "timeout": self.timeout,
        }

    def identify_again(self) -> None:
        self._layout = attrs.evolve(self._layout, ids=_ask_ids(self._channel, self._layout))

    def park(self, parked: bool, *, wait: bool = True) -> bool:
        if wait:
            self._ringer.settle(self.timeout)
        elif not self._ringer.settled:
            return False
        return self._channel.park(parked, wait=wait)

    def detach(self) -> None:
        self._ringer.close()
        with self._closing:
            self._channel.close()
            self._close_descriptors()

    def forget_in_child(self) -> None:
        self._closing = threading.Lock()
        self._ringer = Ringer(self.write32, lambda error: None)
        self._ringer.close()
        self._close_descriptors()

    def _close_watch(self) -> None:
        if self._hang_up is not None:
            self._hang_up.close()
            self._hang_up = None
        if self._trouble_fd >= 0:
            os.close(self._trouble_fd)
            self._trouble_fd = -1

    def _close_descriptors(self) -> None:
        if self._doorbells.mmio is not None:
            self._doorbells.mmio.lost_fd = -1
        self._close_watch()
        # Mapped doorbells stay while they are referenced: a late store then has no effect.
        for fd in (self._doorbell_fd, self._kick_fd):
            if fd >= 0:
                os.close(fd)
        self._doorbell_fd = self._kick_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_uri(path: str, *, timeout: float = DEFAULT_TIMEOUT) -> VfioUserDevice:
    """Opens `vfio-user:PATH`."""
    return VfioUserDevice.connect(path, timeout=timeout)


def resume_uri(
    path: str,
    descriptors: Mapping[str, int],
    saved: Saved | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    ids: DeviceIds | None = None,
) -> VfioUserDevice:
    """The `vfio-user:` half of resume_device()."""
    return VfioUserDevice.resume(descriptors, saved, uri=f"vfio-user:{path}", timeout=timeout, ids=ids)
