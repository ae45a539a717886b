"""Memory of the library's own that the kernel knows beforehand: io_uring's registered buffers.

What comes from alloc(), or was given to register(), is pinned once and not for each command. Where
the kernel refuses that (the limit of locked memory), the memory is like any other.

Threads: alloc() any; the rest the home loop's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nvme_async.dma import DmaBuffer
from nvme_async.dma.budget import Budget
from nvme_async.driver.options import Options
from nvme_async.driver.registration import Registration
from nvme_async.errors import ConfigurationError, OutOfDmaMemory
from nvme_async.native._dma import Pool
from nvme_async.native._placement import address_of, byte_view
from nvme_async.spec.registers import PAGE

POOLS_IOVA = 1 << 40
"""Addresses that commands may name in MPTR; the link translates them, and nothing else."""


class KernelRegistration(Registration):
    """The caller's memory, as registered buffers of every ring."""

    def __init__(self, memory: KernelMemory, view: memoryview, address: int, iova: int) -> None:
        self._memory = memory
        self._view: memoryview | None = view
        self.address: int = address
        self.nbytes: int = view.nbytes
        self.iova: int | None = iova

    def close(self) -> None:
        """The rings forget it; the kernel keeps it pinned until the last command that uses it is
        over.
        """
        view, self._view = self._view, None
        if view is not None:
            self.iova = None
            self._memory.forget(self.address)
            view.release()


class KernelMemory:
    """on_region(address, nbytes, iova): called when there is memory for the rings to register,
        from any thread. on_gone(address): when they are to forget it.

    Attributes:
        pools: what alloc() takes from. regions: (address, nbytes, iova) of all that the rings know.
    """

    def __init__(
        self,
        uri: str,
        options: Options,
        *,
        on_region: Callable[[int, int, int], None],
        on_gone: Callable[[int], None],
    ) -> None:
        self._uri = uri
        self._options = options
        self._on_region = on_region
        self._on_gone = on_gone
        self._budget = Budget(options.memory_limit, hugepages=options.hugepages, locked=False)
        self._growing = threading.Lock()
        self._next_iova = POOLS_IOVA
        self._closed = False
        self.pools: list[Pool] = []
        self.regions: list[tuple[int, int, int]] = []

    def alloc(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        """Zeroed memory, page aligned. OutOfDmaMemory. May block, while there is one pool more
        to be made.
        """
        while True:
            pools = list(self.pools)
            for pool in pools:
                try:
                    return pool.alloc(nbytes, owner="application", tag=tag)
                except OutOfDmaMemory:
                    continue
            self._grow(-(-nbytes // PAGE) * PAGE, seen=len(pools))

    def _grow(self, needed: int, *, seen: int) -> None:
        with self._growing:
            if len(self.pools) != seen:
                return
            if self._closed:
                raise OutOfDmaMemory(f"{self._uri}: the controller is closed")
            wanted = max(needed, self._options.pool_bytes)
            bound = self._budget.room(self.pools, Pool.size_for(wanted))
            nbytes = wanted if bound.nbytes >= Pool.size_for(wanted) else needed
            if bound.nbytes < Pool.size_for(nbytes):
                raise OutOfDmaMemory(f"{self._uri}: no memory for {needed} more bytes: {bound.reason}")
            pool = Pool(
                Pool.size_for(nbytes),
                iova=self._take_iova(Pool.size_for(nbytes)),
                name=f"pool{len(self.pools)}",
                hugepages=self._options.hugepages,
            )
            self._budget.count(pool)
            self.pools.append(pool)
        self._add(pool.address, pool.nbytes, pool.iova)

    def _take_iova(self, nbytes: int) -> int:
        iova, self._next_iova = self._next_iova, self._next_iova + (-(-nbytes // (2 << 20)) + 1) * (2 << 20)
        return iova

    def _add(self, address: int, nbytes: int, iova: int) -> None:
        self.regions.append((address, nbytes, iova))
        self._on_region(address, nbytes, iova)

    def register(self, buffer: Any) -> KernelRegistration:
        """See Controller.register()."""
        view = byte_view(buffer, writable=True)
        with self._growing:
            iova = self._take_iova(view.nbytes)
        address = address_of(view)
        if any(address == region[0] for region in self.regions):
            raise ConfigurationError(f"the memory at {address:#x} is already registered")
        self._add(address, view.nbytes, iova)
        return KernelRegistration(self, view, address, iova)

    def forget(self, address: int) -> None:
        """A registration is closed."""
        self.regions = [region for region in self.regions if region[0] != address]
        self._on_gone(address)

    def close(self) -> None:
        """The driver uses none of it any more. Pools with views in the application stay mapped
        until those end.
        """
        with self._growing:
            self._closed = True
            pools, self.pools = self.pools, []
            self.regions.clear()
        for pool in pools:
            try:
                pool.close()
            except BufferError:
                continue
