"""MSI-X vectors of a VFIO device, each with an eventfd of its own."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from nvme_async.device import vfio_abi as abi
from nvme_async.device.vfio_bar import failed
from nvme_async.errors import ConfigurationError, DeviceError


class Vectors:
    """Which eventfd each vector signals. Owner: its VfioDevice, which serializes the calls.

    All vectors that the function has are enabled at once, for VFIO can't add one later
    (VFIO_IRQ_INFO_NORESIZE); those without an eventfd cost nothing, as the kernel requests an
    interrupt only with an eventfd.
    """

    def __init__(self, kernel: abi.Kernel, fd: int, address: str) -> None:
        self._kernel, self._fd, self._address = kernel, fd, address
        try:
            self.count = abi.irq_info(kernel, fd, abi.VFIO_PCI_MSIX_IRQ_INDEX).count
        except OSError as error:
            raise failed(address, "VFIO_DEVICE_GET_IRQ_INFO", error) from error
        self._enabled = 0

    def set(self, eventfds: Sequence[int | None]) -> None:
        """Vector n signals eventfds[n].

        All are set anew, since a number may stand for another eventfd by now. An interrupt that
        comes in between is not lost: the vector is masked, and the function sends it when that ends
        (PCI Local Bus 3.0, 6.8.3.5).
        """
        wanted = [-1 if fd is None else fd for fd in eventfds]
        if len(wanted) > self.count:
            raise ConfigurationError(f"{len(wanted)} interrupts for {self._address}, which has {self.count} vectors")
        if all(fd < 0 for fd in wanted):
            self.disable()
        elif len(wanted) <= self._enabled:
            self._set(wanted + [-1] * (self._enabled - len(wanted)))
        else:
            if self._enabled:
                # The kernel had fewer than the function has: start again with what is wanted now.
                self.disable()
            self._enable(wanted)

    def _enable(self, wanted: list[int]) -> None:
        padded = wanted + [-1] * (self.count - len(wanted))
        try:
            possible = self._set(padded)
        except DeviceError as error:
            # A predecessor enabled fewer vectors than there are, which can't be told apart from
            # here.
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EINVAL:
                raise
            self.disable()
            possible = self._set(padded)
        if possible > 0:
            if possible < len(wanted):
                raise DeviceError(f"{self._address}: the kernel has {possible} of {len(wanted)} interrupt vectors left")
            padded = padded[:possible]
            if self._set(padded):
                raise DeviceError(f"{self._address}: the kernel offered {possible} vectors and has fewer")
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
