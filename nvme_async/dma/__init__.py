"""Memory that a device may access: pools, and buffers in them."""

from __future__ import annotations

from nvme_async.native._dma import PAGE_SIZE, DmaBuffer, Pool, Slot

__all__ = ["PAGE_SIZE", "DmaBuffer", "Pool", "Slot"]
