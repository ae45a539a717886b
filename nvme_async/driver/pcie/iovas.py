"""The device addresses of memory: the IOVA ranges in use, and those lent to other processes."""

from __future__ import annotations

import threading

from nvme_async.device import Device
from nvme_async.dma.manager import FIRST_IOVA
from nvme_async.errors import OutOfDmaMemory

ALIGN = 2 << 20


class IovaSpace:
    """The device's addresses. All methods from any thread.

    Attributes:
        device: its `iova_ranges` and `max_mappings` are the limits.
        windows: ranges in which another process's memory is mapped; lent_mappings: their number of
            mappings.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.windows: list[range] = []
        self.lent_mappings = 0
        self._placing = threading.Lock()
        self._mapped: list[tuple[int, int]] = []  # (iova, nbytes)

    def reserve(self, nbytes: int) -> int:
        """A free IOVA range of `nbytes` that the device can access, reserved from now on.
        OutOfDmaMemory if there is none, or no mapping left.
        """
        with self._placing:
            if len(self._mapped) + self.lent_mappings >= self.device.max_mappings:
                raise OutOfDmaMemory(f"the device's limit is {self.device.max_mappings} mappings")
            iova = self._place(aligned(nbytes))
            self._mapped.append((iova, nbytes))
            return iova

    def reserve_window(self, nbytes: int) -> range:
        """Device addresses for another process's memory; this process maps nothing there. Ends
        with release_window(). OutOfDmaMemory if not enough is free.
        """
        with self._placing:
            nbytes = aligned(nbytes)
            iova = self._place(nbytes)
            window = range(iova, iova + nbytes)
            self.windows.append(window)
            return window

    def release_window(self, window: range) -> None:
        """Nothing is mapped there any more."""
        with self._placing:
            if window in self.windows:
                self.windows.remove(window)

    def reserve_at(self, mappings: list[tuple[int, int]]) -> None:
        """These (iova, nbytes) are mapped already, by a predecessor."""
        with self._placing:
            self._mapped += mappings

    def shrink(self, iova: int, nbytes: int, used: int) -> None:
        """Of a range that was reserved only the first `used` bytes are needed."""
        with self._placing:
            self._mapped[self._mapped.index((iova, nbytes))] = (iova, used)

    def release(self, iova: int, nbytes: int) -> None:
        """The range is not mapped, or not any more."""
        with self._placing:
            if (iova, nbytes) in self._mapped:
                self._mapped.remove((iova, nbytes))

    def _place(self, nbytes: int) -> int:
        ranges = self.device.iova_ranges
        taken = sorted([*self._mapped, *((window.start, len(window)) for window in self.windows)])
        # Address 0 is never used: some controllers treat it as "none". Above everything that a
        # 32-bit device or a platform's reserved windows (MSI at FEE0_0000h) use; below only if the
        # IOMMU translates nothing above.
        for lowest in (FIRST_IOVA, ALIGN):
            for window in ranges:
                at = aligned(max(window.start, lowest))
                for iova, length in taken:
                    if iova < at + nbytes and at < iova + length:
                        at = aligned(iova + length)
                if at + nbytes <= window.stop:
                    return at
        windows = ", ".join(f"{window.start:#x}-{window.stop - 1:#x}" for window in ranges[:8])
        raise OutOfDmaMemory(
            f"no {nbytes} bytes of IOVA space are free; the device can address {windows or 'nothing more'}"
            + (f" and {len(ranges) - 8} more windows" if len(ranges) > 8 else "")
        )


def aligned(nbytes: int) -> int:
    """Rounded up to the alignment of pools and reserved ranges."""
    return -(-nbytes // ALIGN) * ALIGN
