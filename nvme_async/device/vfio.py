"""A PCI function through the kernel's VFIO: BAR0 mapped, DMA through the IOMMU, MSI-X vectors as
eventfds.

NVMe over PCIe Transport 1.0. Three descriptors hold everything: the container (the IOMMU's
mappings), the
group, the device. As long as any process has them, the controller stays as it is: enabled, its
queues and its
memory reachable. Dropping the last one makes the kernel end its DMA and reset the function.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nvme_async.device import vfio_abi as abi
from nvme_async.device.affinity import steer
from nvme_async.device.base import DeviceIds, Doorbells, Saved
from nvme_async.device.patience import patiently
from nvme_async.device.vfio_bar import (
    PCI_COMMAND_INTX_DISABLE,
    PCI_COMMAND_MASTER,
    PCI_COMMAND_MEMORY,
    VS,
    Bar0,
    Config,
    failed,
    map_region,
)
from nvme_async.device.vfio_container import Container, group_number, open_group
from nvme_async.device.vfio_irq import Vectors
from nvme_async.dma import Pool
from nvme_async.errors import ConfigurationError, ControllerGone, DeviceError
from nvme_async.native._mmio import Mmio
from nvme_async.runtime import forks

log: logging.Logger = logging.getLogger("nvme_async")

DESCRIPTORS = ("container", "group", "device")


@contextmanager
def flr_first(address: str, root: Path = Path("/")) -> Iterator[str]:
    """In this context the kernel resets the function by FLR if it supports that, regardless of
    the first entry of its reset_method attribute (Linux 5.15), which is restored afterwards.
    Yields the method.
    """
    path = root / "sys/bus/pci/devices" / address / "reset_method"
    try:
        before = path.read_text().split()
    except OSError:
        yield "by the kernel's choice"
        return
    if not before or before[0] == "flr" or "flr" not in before:
        yield before[0] if before else "no method"
        return
    try:
        path.write_text("flr\n")
    except OSError:
        yield before[0]  # this user may not change it
        return
    try:
        yield "flr"
    finally:
        try:
            path.write_text(" ".join(before) + "\n")
        except OSError as error:
            log.warning("%s: its reset_method stays flr, it was %s: %s", address, " ".join(before), error.strerror)


class VfioDevice:
    """A nvme_async.device.Device on a function that is bound to vfio-pci.

    Owner: the code that opened it; close() or detach() ends it. Any thread may call anything,
        except that the end
    must not race an access. No call waits for another process: each lasts as long as the kernel
        takes, which
    is bounded (a function-level reset: about 100 ms; pinning a pool: according to its size).

    Opening changes only the command register (memory and bus mastering on, INTx off): a controller
    that runs goes on running. `resume()` doesn't change even that.

    Attributes:
        request_fd: an eventfd that the kernel signals when it requests the function back (it is
            unbound or unplugged): close the device then, because the kernel waits for that. It is
            also signalled when the mapped registers are lost. -1 once closed.
        can_reset: whether reset() does anything.
    """

    direct = True
    timeout: float = 0.0  # calls aren't messages
    uri: str
    ids: DeviceIds
    n_vectors: int
    request_fd: int
    _config: Config
    can_reset: bool
    _root = Path("/")

    @property
    def gone_fd(self) -> int:
        return self.request_fd

    @property
    def trouble(self) -> str | None:
        return self._bar0.trouble or "the kernel requested its release (it is being unbound or removed)"

    @property
    def bar0_nbytes(self) -> int:
        return self._bar0.nbytes

    def __init__(self, address: str, *, kernel: abi.Kernel | None = None, root: Path = Path("/")) -> None:
        kernel = kernel or abi.Kernel()
        container = open_group(address, kernel, root)
        device = -1
        try:
            try:
                group = container.group_fd
                device = patiently(f"{address}: its descriptor", lambda: abi.device_fd(kernel, group, address))
            except OSError as error:
                raise failed(address, f"VFIO_GROUP_GET_DEVICE_FD in group {container.number}", error) from error
            self._root = root
            self._take(address, kernel, container, device)
            try:
                self.enable_bus_mastering()
            except BaseException:
                self._closed = True
                self._let_go()
                raise
        except BaseException:
            if device >= 0:
                os.close(device)
            container.release()
            raise

    @classmethod
    def resume(
        cls,
        address: str,
        descriptors: Mapping[str, int],
        saved: Saved | None = None,
        *,
        kernel: abi.Kernel | None = None,
    ) -> Self:
        """Takes over a device from the descriptors() of a predecessor, and changes nothing about
        it.

        The descriptors belong to the new object from now on, also if this fails. Interrupts still
        go to the predecessor's eventfds until set_interrupts(). `saved` is the result of its
        save(): the existing mappings. Without it they still exist, but iova_ranges doesn't know of
        them.
        """
        kernel = kernel or abi.Kernel()
        self = cls.__new__(cls)
        container: Container | None = None
        try:
            if missing := set(DESCRIPTORS) - descriptors.keys():
                raise ConfigurationError(f"descriptors are missing to resume {address}: {', '.join(sorted(missing))}")
            container = Container(kernel, descriptors["container"], descriptors["group"], None)
            for iova, nbytes in (saved or {}).get("mappings", ()):
                container.adopt(iova, nbytes)
            self._take(address, kernel, container, descriptors["device"])
        except BaseException:
            if container is not None:
                container.disown()
            for fd in descriptors.values():
                os.close(fd)
            raise
        return self

    def _take(self, address: str, kernel: abi.Kernel, container: Container, fd: int) -> None:
        """Query the device and map the registers; changes nothing about the device."""
        self.uri = f"pci:{address}"
        self._address, self._kernel, self._container, self._fd = address, kernel, container, fd
        self._lock = threading.RLock()
        self._closed = False
        self.request_fd = -1
        self._whose = "was closed by this process"
        try:
            info = abi.device_info(kernel, fd)
            config = abi.region_info(kernel, fd, abi.VFIO_PCI_CONFIG_REGION_INDEX)
            bar0 = abi.region_info(kernel, fd, abi.VFIO_PCI_BAR0_REGION_INDEX)
            requests = (
                abi.irq_info(kernel, fd, abi.VFIO_PCI_REQ_IRQ_INDEX).count
                if info.num_irqs > abi.VFIO_PCI_REQ_IRQ_INDEX
                else 0
            )
        except OSError as error:
            raise failed(address, "asking VFIO about the device", error) from error
        if not info.flags & abi.VFIO_DEVICE_FLAGS_PCI:
            raise DeviceError(f"{address} is not a PCI function, says VFIO (flags {info.flags:#x})")
        self.can_reset = bool(info.flags & abi.VFIO_DEVICE_FLAGS_RESET)
        for region, name in ((config, "configuration space"), (bar0, "BAR0")):
            wanted = abi.VFIO_REGION_INFO_FLAG_READ | abi.VFIO_REGION_INFO_FLAG_WRITE
            if region.flags & wanted != wanted or not region.nbytes:
                raise DeviceError(f"{address} has no {name} that can be read and written through VFIO")
        self._vectors = Vectors(kernel, fd, address)
        self.n_vectors = self._vectors.count
        self._config = Config(fd, config, address)
        self.ids = self._config.ids()
        try:
            self.request_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise failed(address, "watching for removal requests", error) from error
        try:
            holes = self._config.msix_pages(abi.VFIO_PCI_BAR0_REGION_INDEX)
            self._bar0 = Bar0(fd, bar0, address, holes, self.request_fd)
            if requests:
                self._watch_requests()
        except BaseException:
            self._close_request()
            raise
        forks.watch(self)

    def _watch_requests(self) -> None:
        try:
            abi.set_eventfds(self._kernel, self._fd, abi.VFIO_PCI_REQ_IRQ_INDEX, 0, [self.request_fd])
        except OSError as error:
            self._bar0.close()
            raise failed(self._address, "VFIO_DEVICE_SET_IRQS (device request)", error) from error

    # Registers

    def read32(self, offset: int) -> int:
        """A 32-bit register of BAR0. ControllerGone if the device doesn't answer."""
        self._check_open()
        return self._bar0.read32(offset)

    def read64(self, offset: int) -> int:
        """A 64-bit register of BAR0, in one access. ControllerGone if the device is gone."""
        self._check_open()
        return self._bar0.read64(offset)

    def read_many(self, registers: Sequence[tuple[int, int]]) -> list[int]:
        """Reads one after another. ControllerGone if the device doesn't answer."""
        return [self.read64(offset) if width == 8 else self.read32(offset) for offset, width in registers]

    def write32(self, offset: int, value: int) -> None:
        """Write a 32-bit register of BAR0."""
        self._check_open()
        self._bar0.write32(offset, value)

    def write64(self, offset: int, value: int) -> None:
        """Write a 64-bit register of BAR0, in one access."""
        self._check_open()
        self._bar0.write64(offset, value)

    def map_bar(self, bar: int, offset: int, nbytes: int | None) -> Mmio:
        self._check_open()
        return map_region(self._kernel, self._fd, self._address, self._config, bar, offset, nbytes)

    def ring(self, offset: int, value: int, done: Callable[[], None]) -> None:
        """write32(), which completes at once."""
        self.write32(offset, value)
        done()

    def doorbells(self) -> Doorbells:
        """Where the doorbells are mapped, or that write32() must be used for them."""
        self._check_open()
        return self._bar0.doorbells

    @property
    def mapped(self) -> tuple[range, ...]:
        """The parts of BAR0 that are mapped; the rest goes through system calls."""
        return self._bar0.mapped

    # DMA

    @property
    def iova_ranges(self) -> tuple[range, ...]:
        """Where a mapping may be placed: unoccupied ranges that the IOMMU translates."""
        return self._container.iova_ranges

    @property
    def max_mappings(self) -> int:
        """How many mappings may exist at once."""
        return self._container.max_mappings

    def map_dma(
        self, memory: Pool | int, *, iova: int, nbytes: int, file_offset: int = 0, address: int | None = None
    ) -> None:
        """Let the device read and write memory at `iova`: a pool, or `nbytes` of a descriptor from
        `file_offset`.

        `address` says where this process has that memory mapped, if it has. The pages are pinned
        until unmap_dma(), even if the mapping in this process ends.
        """
        self._check_open()
        if address is None and isinstance(memory, Pool):
            address = memory.address + file_offset
        if address is not None:
            self._container.map(address, iova, nbytes)
            return
        fd = memory.fd if isinstance(memory, Pool) else memory
        try:
            view = mmap.mmap(fd, nbytes, offset=file_offset)
        except (OSError, ValueError) as error:
            raise DeviceError(f"can't map {nbytes} bytes of descriptor {fd} from {file_offset:#x}: {error}") from error
        with view:
            start = ctypes.c_char.from_buffer(view)
            try:
                self._container.map(ctypes.addressof(start), iova, nbytes)
            finally:
                del start  # an export; with it the view could not be closed

    def unmap_dma(self, iova: int, nbytes: int) -> None:
        """Remove a mapping; a later access by the device is an IOMMU fault, and harmless to
        memory.
        """
        self._check_open()
        self._container.unmap(iova, nbytes)

    # Interrupts and reset

    def set_interrupts(self, eventfds: Sequence[int | None]) -> int:
        """Have MSI-X vector n signal eventfds[n]; None, and those beyond the end, signal
        nothing. [] turns all off. Returns how many of them do, if the kernel has fewer vectors
        left.

        The descriptors stay the caller's and may be closed: the kernel keeps what is behind them.
        """
        self._check_open()
        with self._lock:
            return self._vectors.set(eventfds)

    def reset(self) -> None:
        """VFIO_DEVICE_RESET (a function-level reset or the kernel's substitute); does nothing if
        there is none.

        Registers and queues are lost, mappings and interrupts stay. Blocks the thread for about 100
        ms.
        """
        self._check_open()
        if not self.can_reset:
            return
        with self._lock, flr_first(self._address, self._root) as method:
            try:
                self._kernel.ioctl(self._fd, abi.VFIO_DEVICE_RESET)
            except OSError as error:
                raise failed(self._address, "VFIO_DEVICE_RESET", error) from error
        log.info("%s was reset (%s)", self._address, method)

    def enable_bus_mastering(self) -> None:
        # Only MSI-X is used; an unserved INTx line would be shared with other devices.
        self._check_open()
        self._config.command(on=PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE)

    # End and hand-over

    def descriptors(self) -> dict[str, int]:
        """The descriptors that keep the controller running. They stay ours: a successor or a
        keeper gets copies.
        """
        self._check_open()
        fds = (self._container.fd, self._container.group_fd, self._fd)
        return dict(zip(DESCRIPTORS, fds, strict=True))

    def save(self) -> dict[str, Any]:
        """The state that resume() needs in addition to descriptors(), in JSON's types."""
        return {"mappings": [list(mapping) for mapping in self._container.mappings]}

    def inspect(self) -> dict[str, Any]:
        """Which parts of BAR0 are mapped; accesses of mapped registers that faulted; parts that
        could not be mapped; DMA mappings.
        """
        return {
            "ids": str(self.ids),
            "vectors": self.n_vectors,
            "mapped": [[part.start, part.stop] for part in self._bar0.mapped],
            "faults": self._bar0.faults,
            "refused": self._bar0.refused,
            "dma_mappings": len(self._container.mappings),
        }

    def steer(self, vector: int, cpus: Collection[int]) -> bool:
        return steer(self._address, vector, cpus, self._root)

    def identify_again(self) -> None:
        """Nothing to do: resume() has asked the kernel."""

    def park(self, parked: bool, *, wait: bool = True) -> bool:
        """Nothing to do: registers and ioctls don't interfere with a successor's."""
        return True

    def detach(self) -> None:
        """Close our copies and touch nothing else: the controller keeps running for the process
        that has descriptors().
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                self._let_go()
                self._close_descriptors()

    def forget_in_child(self) -> None:
        # In particular not the end of close(), which disables the function's DMA.
        self._lock = threading.RLock()
        if not self._closed:
            self._closed = True
            self._whose = forks.PARENTS
            # The windows, now unrelated memory, stay for queue pairs that ring once more when they
            # are dropped.
            for window in self._bar0.windows:
                window.lost_fd = -1
            self._close_request()
            os.close(self._fd)

    def close(self) -> None:
        """End it: DMA and interrupts off, everything closed. The kernel resets the function if
            no other process has it.

        The kernel also resets a missing function, in vain, and waits a minute for it to come back.
            A thread
        waits for the kernel then, and the process can't end before.
        """
        with self._lock:
            if self._closed:
                return
            gone = False
            try:
                self._bar0.read32(VS)
                self._config.command(off=PCI_COMMAND_MASTER)
                self._vectors.disable()
            except ControllerGone:
                gone = True  # and so have its DMA and its interrupts
            except DeviceError:
                pass  # closing ends both as well
            self._closed = True
            self._let_go()
        if gone:
            threading.Thread(target=self._close_descriptors, name=f"close {self.uri}", daemon=True).start()
        else:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        os.close(self._fd)
        self._container.release()

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<VfioDevice {self.uri}{' closed' if self._closed else ''}>"

    def _let_go(self) -> None:
        self._bar0.close()
        self._close_request()

    def _close_request(self) -> None:
        if self.request_fd >= 0:
            os.close(self.request_fd)
            self.request_fd = -1

    def _check_open(self) -> None:
        if self._closed:
            raise ControllerGone(f"{self._address} {self._whose}")


def open_uri(address: str, *, timeout: float = 0.0) -> VfioDevice:
    """Opens `pci:ADDRESS`. DeviceError if it is not bound to vfio-pci, with the command that
    binds it.

    timeout: unused; every call is an ioctl or a register access.
    """
    group_number(address)
    driver = Path("/sys/bus/pci/devices") / address / "driver"
    bound = driver.resolve().name if driver.exists() else "no driver"
    if bound != "vfio-pci":
        raise DeviceError(f"{address} is bound to {bound}, not to vfio-pci: `nvme-async bind pci:{address}` (as root)")
    return VfioDevice(address)


def resume_uri(
    address: str,
    descriptors: Mapping[str, int],
    saved: Saved | None = None,
    *,
    timeout: float = 0.0,
    ids: DeviceIds | None = None,
) -> VfioDevice:
    """The `pci:` half of resume_device()."""
    return VfioDevice.resume(address, descriptors, saved)
