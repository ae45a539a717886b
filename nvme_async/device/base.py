"""The driver's interface to a device, independent of the way it is accessed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs

from nvme_async.native._dma import Pool
from nvme_async.native._mmio import Mmio


@attrs.frozen
class DeviceIds:
    """The function's identity from PCI configuration space, which a successor compares."""

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem: int
    class_code: int
    """24 bits: base class, subclass, programming interface; 0x010802 is an NVMe I/O controller."""
    revision: int
    serial_number: int = 0
    """Device Serial Number (PCI Express Base 4.0, 7.9.3), 64 bits; 0 = the function has no such
    capability.
    """

    def __str__(self) -> str:
        serial = f" serial number {self.serial_number:016x}" if self.serial_number else ""
        return f"{self.vendor:04x}:{self.device:04x} class {self.class_code:06x} revision {self.revision:02x}{serial}"


@attrs.frozen
class Doorbells:
    """The place of the doorbells.

    mmio: memory to store to, or None: ring with Device.write32(), as for doorbells beyond its end.
    offset: of the first doorbell (the admin submission queue's tail), in mmio if there is one, else
        in BAR0.
    window: (descriptor, offset, bytes) of that memory, for another process to map; the descriptor
        is the device's. None: there is none.
    kick_fd: an eventfd to write after a doorbell store of which the controller requested
        notification, or -1. It
    belongs to
        the device: don't close it, and don't use it once the device is closed.
    """

    mmio: Mmio | None
    offset: int
    kick_fd: int = -1
    window: tuple[int, int, int] | None = None


@runtime_checkable
class Device(Protocol):
    """One PCI function with an NVMe controller behind it: BAR0, DMA mappings, interrupts, reset.

    Every call may be made from any thread, blocks for a bounded time, and raises ControllerGone
    when the peer or the function is gone, ControllerTimeout when it doesn't answer in time,
    DeviceError for what it refused.
    """

    @property
    def uri(self) -> str:
        """As given to open_device()."""

    timeout: float
    """The limit of one call in seconds, if calls are messages. May be changed."""

    @property
    def direct(self) -> bool:
        """True: registers are memory. False: each access is a message of up to a millisecond: call
            from a
        thread.
        """

    @property
    def n_vectors(self) -> int:
        """MSI-X vectors."""

    @property
    def iova_ranges(self) -> tuple[range, ...]:
        """Addresses that map_dma() accepts."""

    @property
    def max_mappings(self) -> int:
        """How many DMA mappings there may be at once."""

    @property
    def ids(self) -> DeviceIds: ...

    @property
    def gone_fd(self) -> int:
        """Readable once the device is gone, or requested by the system; -1 if there is no such
        notification. It belongs to the device: don't read it, and stop watching it before
        close() or detach().
        """

    @property
    def trouble(self) -> str | None:
        """Why gone_fd is readable, if the device layer knows."""

    @property
    def bar0_nbytes(self) -> int:
        """Size of BAR0: doorbells beyond it don't exist."""

    def read32(self, offset: int) -> int:
        """BAR0, one access of this width. `offset` in bytes, aligned to the width."""

    def read64(self, offset: int) -> int: ...

    def read_many(self, registers: Sequence[tuple[int, int]]) -> list[int]:
        """Several reads of (offset, width in bytes: 4 or 8), in this order. If accesses are
        messages, there is one wait for all.
        """

    def write32(self, offset: int, value: int) -> None: ...
    def write64(self, offset: int, value: int) -> None: ...

    def ring(self, offset: int, value: int, done: Callable[[], None]) -> None:
        """write32() of a doorbell, from an event loop: if registers are messages, a thread sends
        it, before any later register access. done(): called once the device has the value, in
        any thread; not for a value that a later one replaced. Failures are reported by gone_fd.
        """

    def doorbells(self) -> Doorbells:
        """The same object each time."""

    def map_bar(self, bar: int, offset: int, nbytes: int | None) -> Mmio:
        """Maps `nbytes` from `offset` of a BAR (None: all of it), as memory for the caller, whose
        mapping outlives the device. DeviceError if the BAR has not as many bytes, or can't be
        mapped.
        """

    def map_dma(
        self, memory: Pool | int, *, iova: int, nbytes: int, file_offset: int = 0, address: int | None = None
    ) -> None:
        """Lets the controller read and write `nbytes` of a pool or a descriptor at `iova`, page
        aligned.

        `address` is where this process has it mapped, for backends that map by address; a Pool
        knows its own. The mapping lasts until unmap_dma() or close(), and keeps the memory alive.
        """

    def unmap_dma(self, iova: int, nbytes: int) -> None:
        """Removes exactly one earlier mapping. Delete the queues in it first: otherwise some
        controllers fail.
        """

    def set_interrupts(self, eventfds: Sequence[int | None]) -> int:
        """Vector i signals eventfds[i]; None and the rest: none. An empty sequence switches
        interrupts off. Returns how many of `eventfds` are signalled: all, unless the system has
        fewer vectors left than the function.

        The descriptors stay the caller's and may be closed afterwards.
        """

    def steer(self, vector: int, cpus: Collection[int]) -> bool:
        """Delivers a vector to one of `cpus`; False if that isn't possible. May be called at any
        time after set_interrupts(), also on a device that was closed meanwhile.
        """

    def reset(self) -> None:
        """Function level reset if there is one; may do nothing. CC.EN=0 is the reliable reset.

        DMA mappings stay. Interrupts must be set again.
        """

    def enable_bus_mastering(self) -> None:
        """Enables memory accesses and DMA and disables INTx (PCI command register), if
        necessary. Called before each CC.EN=1.
        """

    def descriptors(self) -> dict[str, int]:
        """The descriptors that keep the controller running, by name. They belong to the device;
        duplicate them to keep them.
        """

    def save(self) -> dict[str, Any]:
        """The state that a successor needs in addition to descriptors(), in JSON's types. See
        resume_device().
        """

    def park(self, parked: bool, *, wait: bool = True) -> bool:
        """True: calls of this process may fail (DeviceError) until park(False), if they could be
        confused with a successor's. Returns when no call is in progress; with wait=False it
        returns at once, with False and nothing changed if one is.
        """

    def identify_again(self) -> None:
        """After resume_device(…, ids=…), once no other process uses the device: shows that it
        answers, that no answer to the other process is under way, and what `ids` are.
        """

    def inspect(self) -> dict[str, Any]:
        """The state of the device layer, in JSON's types."""

    def close(self) -> None:
        """Releases everything: the controller loses its mappings and stops. Harmless if already
        closed.
        """

    def detach(self) -> None:
        """Closes this process's copies of the descriptors and touches nothing else: others may hold
        them.
        """


Saved = Mapping[str, Any]
