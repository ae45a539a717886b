"""MSI-X vectors of a VFIO device, each with its own eventfd."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from nvme_async.device import vfio_abi as abi
from nvme_async.device.vfio_bar import failed
from nvme_async.errors import ConfigurationError, DeviceError


class Vectors:
    """Which eventfd each vector signals. Owner: its VfioDevice, which serializes the calls.

    All vectors of the function are enabled at once, because VFIO can't add one later
    (VFIO_IRQ_INFO_NORESIZE); those without an eventfd cost nothing, as the kernel requests an
    interrupt only with an eventfd.
    """

    def __init__(self, kernel: abi.Kernel, fd: int, address: str) -> None:
        self._kernel, self._fd, self._address = kernel, fd, address
        try:
            self.count: int = abi.irq_info(kernel, fd, abi.VFIO_PCI_MSIX_IRQ_INDEX).count
        except OSError as error:
            raise failed(address, "VFIO_DEVICE_GET_IRQ_INFO", error) from error
        self._enabled = 0

    def set(self, eventfds: Sequence[int | None]) -> int:
        """Vector n signals eventfds[n]. Returns how many do: fewer if the kernel has no more
        vectors left; DeviceError if it has none.

        All are set again, since a number may stand for another eventfd by now. An interrupt in
        between is not lost: the vector is masked, and the function sends it when that ends (PCI
        Local Bus 3.0, 6.8.3.5).
        """
        wanted = [-1 if fd is None else fd for fd in eventfds]
        if len(wanted) > self.count:
            raise ConfigurationError(
                f"{len(wanted)} interrupts were requested for {self._address}, which has {self.count} vectors"
            )
        if all(fd < 0 for fd in wanted):
            self.disable()
            return len(wanted)
        if len(wanted) <= self._enabled:
            self._set(wanted + [-1] * (self._enabled - len(wanted)))
        else:
            if self._enabled:
                # The kernel had fewer than the function has: start again with the present request.
                self.disable()
            self._enable(wanted)
        return min(len(wanted), self._enabled)

    def _enable(self, wanted: list[int]) -> None:
        padded = wanted + [-1] * (self.count - len(wanted))
        try:
            possible = self._set(padded)
        except DeviceError as error:
            # A predecessor enabled fewer vectors than there are, which can't be distinguished here.
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EINVAL:
                raise
            self.disable()
            possible = self._set(padded)
        while possible > 0:
            # Between its answer and the next request others may have taken some: fewer each time,
            # so this ends.
            if possible >= len(padded):
                raise DeviceError(f"{self._address}: the kernel refused {len(padded)} vectors and offered {possible}")
            padded = padded[:possible]
            possible = self._set(padded)
        self._enabled = len(padded)

    def _set(self, fds: list[int]) -> int:
        try:
            return abi.set_eventfds(self._kernel, self._fd, abi.VFIO_PCI_MSIX_IRQ_INDEX, 0, fds)
        except OSError as error:
            raise failed(self._address, "VFIO_DEVICE_SET_IRQS", error) from error

    def disable(self) -> None:
        """No interrupts at all."""
        try:
            abi.disable_irqs(self._kernel, self._fd, abi.VFIO_PCI_MSIX_IRQ_INDEX)
        except OSError as error:
            raise failed(self._address, "VFIO_DEVICE_SET_IRQS (disable)", error) from error
        self._enabled = 0
