"""What the driver asks of a device, whichever way it is reached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs

from nvme_async.native._dma import Pool
from nvme_async.native._mmio import Mmio


@attrs.frozen
class DeviceIds:
    """What PCI configuration space says of the function: identity that a successor compares."""

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
    """Where doorbells are rung.

    mmio: memory to store to, or None: ring with Device.write32(), as those that lie beyond its end.
    offset: of the first doorbell (the admin submission queue's tail), in mmio if there is one, else
        in BAR0.
    window: (descriptor, offset, bytes) of that memory, for another process to map; the descriptor is the
        device's. None: there is none.
    kick_fd: an eventfd to write after a doorbell store that the controller asked to hear of, or -1.
        It
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
    """Seconds that one call may take, where calls are messages. May be changed."""

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
        """Readable once the device is gone, or wanted back by the system; -1 if nothing tells. It
        is the device's: don't read it, stop watching it before close() or detach().
        """

    @property
    def trouble(self) -> str | None:
        """Why gone_fd is readable, where the device layer knows."""

    @property
    def bar0_nbytes(self) -> int:
        """Size of BAR0: doorbells beyond it don't exist."""

    def read32(self, offset: int) -> int:
        """BAR0, one access of this width. `offset` in bytes, aligned to the width."""

    def read64(self, offset: int) -> int: ...

    def read_many(self, registers: Sequence[tuple[int, int]]) -> list[int]:
        """Several reads of (offset, width in bytes: 4 or 8), in this order. Where accesses are
        messages, all of them are one wait.
        """

    def write32(self, offset: int, value: int) -> None: ...
    def write64(self, offset: int, value: int) -> None: ...

    def ring(self, offset: int, value: int, done: Callable[[], None]) -> None:
        """write32() of a doorbell, from an event loop: where registers are messages, a thread sends
        it, before any later access of a register. done(): called once the device has the value, in
        any thread; not for a value that a later one overtook. What goes wrong is seen at gone_fd.
        """

    def doorbells(self) -> Doorbells:
        """The same object each time."""

    def map_dma(
        self, memory: Pool | int, *, iova: int, nbytes: int, file_offset: int = 0, address: int | None = None
    ) -> None:
        """Lets the controller read and write `nbytes` of a pool or a descriptor at `iova`, page
        aligned.

        `address` is where this process has it mapped, for backends that map by address; a Pool
        knows its own. The mapping lasts until unmap_dma() or close(), and the memory stays alive as
        long.
        """

    def unmap_dma(self, iova: int, nbytes: int) -> None:
        """Exactly one earlier mapping. Delete the queues in it first: some controllers don't
        survive otherwise.
        """

    def set_interrupts(self, eventfds: Sequence[int | None]) -> int:
        """Vector i signals eventfds[i]; None and the rest: none. An empty sequence switches
        interrupts off. Returns how many of `eventfds` are signalled: all, but for a system that has
        fewer vectors left than the function.

        The descriptors stay the caller's and may be closed afterwards.
        """

    def steer(self, vector: int, cpus: Collection[int]) -> bool:
        """Has a vector delivered to one of `cpus`; False where that isn't possible. Any time after
        set_interrupts(), also of a device that was closed meanwhile.
        """

    def reset(self) -> None:
        """Function level reset if there is one; may do nothing. CC.EN=0 is the reset that can be
        relied on.

        DMA mappings stay. Interrupts must be set again.
        """

    def enable_bus_mastering(self) -> None:
        """Memory accesses and DMA on, INTx off (PCI command register), where anybody has switched
        them off. Before each CC.EN=1.
        """

    def descriptors(self) -> dict[str, int]:
        """The descriptors that keep the controller as it is, by name. They belong to the device;
        duplicate to keep.
        """

    def save(self) -> dict[str, Any]:
        """What a successor needs beside descriptors(), in JSON's types. See resume_device()."""

    def park(self, parked: bool, *, wait: bool = True) -> bool:
        """True: calls of this process may fail (DeviceError) until park(False), where a successor's
        would get mixed up with them. Returns when none is in progress; with wait=False at once, and
        False, with nothing changed, if one is.
        """

    def identify_again(self) -> None:
        """After resume_device(…, ids=…), once no other process uses the device: shows that it answers, that no
        answer to the other process is under way, and what `ids` are.
        """

    def inspect(self) -> dict[str, Any]:
        """What there is to see of the device layer, in JSON's types."""

    def close(self) -> None:
        """Ends it all: the controller loses its mappings and stops. Harmless when closed already."""

    def detach(self) -> None:
        """Closes this process's copies of the descriptors and touches nothing else: others may hold
        them.
        """


Saved = Mapping[str, Any]
