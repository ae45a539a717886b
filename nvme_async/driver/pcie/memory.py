"""The memory that one controller can access: pools and registered user buffers, mapped at its
IOMMU and known to its queue pairs.

Pools are made one after another under a lock, in the thread that finds no room. An event loop
doesn't wait for that: it calls make_room() or, for bounce pages, on_starved(), and the pool is made
in a thread.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from nvme_async.device import Device
from nvme_async.dma import PAGE_SIZE, DmaBuffer, Pool
from nvme_async.dma.budget import Budget
from nvme_async.dma.buffers import BufferLike
from nvme_async.dma.manager import DmaClient, DmaManager, Policy
from nvme_async.dma.numa import memory_nodes
from nvme_async.driver.pcie.iovas import IovaSpace, aligned
from nvme_async.driver.pcie.mapped_buffer import MappedBuffer
from nvme_async.errors import DeviceError, NvmeError, OutOfDmaMemory
from nvme_async.native._hotpath import QueuePair, fed
from nvme_async.native._placement import AddressMap
from nvme_async.runtime.tasks import in_thread

log: logging.Logger = logging.getLogger("nvme_async")

SMALLEST_POOL = 2 << 20
"""Minimum bytes of a first pool that was reduced to a limit: admin queue, one I/O queue, some
data.
"""
ROOM = "room"
"""The owner of memory that make_room() takes and gives back at once. The controller never learns of
it: a successor of a process that was killed in between may use it.
"""
_REFUSED_SECONDS = 0.5
"""A failure to grow is remembered this long before the next attempt."""


class DeviceMemory(IovaSpace):
    """Pools of a controller, and their device addresses.

    Owner: its Controller, on whose loop's thread everything here is called, except alloc(), find(),
    make_room() and the result of feeder(), which any of the controller's loops and threads may
    call. Closed after the controller was reset, before the device is.

    Attributes:
        note: why the first pool is smaller than requested, or None.
    """

    def __init__(
        self,
        device: Device,
        *,
        pool_bytes: int,
        hugepages: Literal["auto", "never", "require"],
        numa: str = "",
        fixed: bool = False,
        adopt: Pool | None = None,
        grows: bool = False,
        limit: int | None = None,
        flexible: bool = False,
    ) -> None:
        """fixed: one private pool, and no more. adopt: that one, which a predecessor has mapped at
        the device already; grows: that is the first of several.

        limit: bytes of all pools together; None: half of the memory that the process can have.
        numa: "split": pools are spread over the NUMA nodes.
        flexible: the first pool may be smaller if limits, or the IOMMU's windows, don't allow
        pool_bytes.
        """
        super().__init__(device)
        self.address_map: AddressMap = AddressMap()
        self.note: str | None = None
        self.registrations: dict[int, MappedBuffer] = {}
        self.in_use: Callable[[int, int], bool] = lambda iova, nbytes: False
        self.on_mapped: Callable[[], None] = lambda: (
            None
        )  # a mapping of user memory is about to be made, was made, or was removed
        self._fixed = fixed or (adopt is not None and not grows)
        self._budget = Budget(limit, hugepages=hugepages, locked=device.direct)
        self._pool_bytes = pool_bytes
        self._clients: list[DmaClient] = []
        self._names = itertools.count(adopt is not None)
        self._growing = threading.Lock()
        self._closed = False
        self._refused: tuple[float, NvmeError] | None = None
        self._inherited: list[tuple[int, int]] = []  # a predecessor's registrations
        self._retired: list[tuple[int, int]] = []  # closed registrations that a command may still use
        self.manager: DmaManager = DmaManager(
            0 if adopt is None else adopt.nbytes,
            hugepages=hugepages,
            nodes=memory_nodes() if numa == "split" else (),
        )
        if adopt is not None:
            client = self.manager.adopt(adopt)
            self.reserve_at([(adopt.iova, adopt.nbytes)])
            self._know(client)
        else:
            needed = min(SMALLEST_POOL, pool_bytes) if flexible else pool_bytes
            self._grow(_pages(needed), seen=0)

    @property
    def pools(self) -> list[Pool]:
        """The pools of its DMA clients, the first one first. With keepalive there is one, and it
        is private.
        """
        return [client.pool for client in self._clients]

    @property
    def is_growing(self) -> bool:
        """Is a pool being made?"""
        return self._growing.locked()

    @property
    def clients(self) -> tuple[DmaClient, ...]:
        """In the order of `pools`."""
        return tuple(self._clients)

    # -- pools -------------------------------------------------------------------------------------

    def alloc(self, nbytes: int, *, owner: str, tag: int = 0) -> DmaBuffer:
        """Zeroed memory that the device can access, from the first pool with room, or from a new
        one: then it blocks until that is made. From any thread.

        OutOfDmaMemory if a fixed pool has none, or a limit forbids one more.
        """
        while True:
            clients = list(self._clients)
            for client in clients:
                try:
                    return client.alloc(nbytes, owner=owner, tag=tag)
                except OutOfDmaMemory as full:
                    if self._fixed:
                        raise
                    log.debug("%s: %s", self.device.uri, full)
            self._grow(_pages(nbytes), seen=len(clients))

    def find(self, nbytes: int, *, owner: str, tag: int = 0) -> DmaBuffer | None:
        """alloc() from the existing pools; None if none has room."""
        for client in list(self._clients):
            try:
                return client.alloc(nbytes, owner=owner, tag=tag)
            except OutOfDmaMemory:
                continue
        return None

    async def make_room(self, nbytes: int) -> None:
        """Grows the memory, in a thread, until an alloc() of `nbytes` has room. (Another thread
        may take the room first.) Raises as alloc() does.
        """
        room = self.find(nbytes, owner=ROOM)
        if room is None:
            room = await in_thread(lambda: self.alloc(nbytes, owner=ROOM))
        room.free()

    def chunk_source(self, owner: str) -> Callable[[int, int], DmaBuffer | None]:
        """find() in the form that BounceCache needs."""
        return lambda nbytes, tag: self.find(nbytes, owner=owner, tag=tag)

    def feeder(self, hot: QueuePair, loop: asyncio.AbstractEventLoop) -> Callable[[int], None]:
        """The function for QueuePair.on_starved: called on `loop`, it grows the memory in a
        thread and calls fed(hot) afterwards; or it raises OutOfDmaMemory at once.
        """

        def grow(nbytes: int, seen: int) -> None:
            try:
                self._grow(nbytes, seen=seen)
            except NvmeError as error:
                self._refused = (time.monotonic(), error)
            try:
                loop.call_soon_threadsafe(fed, hot)
            except RuntimeError:
                pass  # the loop has ended, and so have its waiters

        def on_starved(nbytes: int) -> None:
            if self._fixed:
                raise OutOfDmaMemory(
                    f"{self.device.uri}: the pool of {self.pools[0].nbytes} bytes has no {nbytes} bytes for a "
                    "transfer, and keepalive fixes its size; the option pool_bytes makes it larger"
                )
            refused = self._refused
            if refused is not None and time.monotonic() - refused[0] < _REFUSED_SECONDS:
                raise OutOfDmaMemory(f"{self.device.uri}: no memory for a transfer of {nbytes} bytes: {refused[1]}")
            arguments = (_pages(nbytes), len(self._clients))
            threading.Thread(target=grow, args=arguments, name="nvme memory", daemon=True).start()

        return on_starved

    def _grow(self, needed: int, *, seen: int) -> None:
        """One more client with room for at least `needed` bytes, and up to pool_bytes: the
        private one if the pool is fixed, otherwise an ephemeral one. Does nothing if the clients
        differ from `seen` by now.
        """
        with self._growing:
            if len(self._clients) != seen:
                return
            if self._closed:
                raise OutOfDmaMemory(f"{self.device.uri}: the controller is closed")
            wanted = max(self._pool_bytes, aligned(needed))
            iova, size = self._fit(needed, wanted, first=not seen)
            length = aligned(Pool.size_for(size))
            if self._fixed:
                self.manager.private_bytes = length
            policy = Policy.PRIVATE if self._fixed else Policy.EPHEMERAL
            client = None
            try:
                client = self.manager.client(f"pool{next(self._names)}", policy, size, iova=iova)
                self.device.map_dma(client.pool, iova=iova, nbytes=client.pool.nbytes)
                self.shrink(iova, length, client.pool.nbytes)
            except BaseException as error:
                self.release(iova, length)
                if client is not None:
                    client.close()
                if seen and isinstance(error, DeviceError):
                    text = f"{self.device.uri}: no more memory can be mapped for the device: {error}"
                    raise OutOfDmaMemory(text) from error
                raise
            self._know(client)

    def _fit(self, needed: int, wanted: int, *, first: bool) -> tuple[int, int]:
        """The next pool's address, and its capacity in bytes: `wanted`, or less if limits and
        windows require it, but no less than `needed`.
        """
        bound = self._budget.room(self.pools, Pool.size_for(wanted))
        # The table takes 1/65; whole 64 KiB, so that repeated growth doesn't fragment.
        size = min(wanted, bound.nbytes * 64 // 65 - PAGE_SIZE & ~0xFFFF)
        if size < needed:
            raise OutOfDmaMemory(
                f"{self.device.uri}: no memory for {needed} more bytes that the device can access: {bound.reason}"
            )
        reason = bound.reason
        while True:
            try:
                iova = self.reserve(aligned(Pool.size_for(size)))
                break
            except OutOfDmaMemory as error:
                if size == needed:
                    raise
                reason = str(error)
                size = max(needed, _pages(size // 2))
        if first and size < self._pool_bytes:
            self.note = f"a pool of {size} bytes instead of {self._pool_bytes}: {reason}"
            log.warning("%s: %s", self.device.uri, self.note)
        return iova, size

    def _know(self, client: DmaClient) -> None:
        pool = client.pool
        self._budget.count(pool)
        self.address_map.add(pool.address, pool.nbytes, pool.iova, True)
        self._clients.append(client)

    # -- registered memory -------------------------------------------------------------------------

    def register(self, buffer: BufferLike) -> MappedBuffer:
        """Makes existing memory accessible in place."""
        self.sweep()
        registration = MappedBuffer(self, buffer)
        self.registrations[registration.address] = registration
        return registration

    def retire(self, iova: int, nbytes: int) -> None:
        """Unmaps a registration as soon as no command uses it: until then its IOVA must not be
        reused for other memory.
        """
        self._retired.append((iova, nbytes))
        self.sweep()

    def sweep(self) -> None:
        """Unmaps retired registrations that are no longer in use."""
        for iova, nbytes in list(self._retired):
            if not self.in_use(iova, nbytes):
                self._retired.remove((iova, nbytes))
                self.unmap(iova, nbytes)
                self.on_mapped()

    def foreign_mappings(self) -> list[tuple[int, int]]:
        """(iova, nbytes) of the device's mappings besides the pools."""
        pools = {pool.iova for pool in self.pools}
        return [(iova, nbytes) for iova, nbytes in self._mapped if iova not in pools]

    def inherit(self, mappings: list[tuple[int, int]]) -> None:
        """Mappings of a predecessor's memory: their IOVAs are in use until forget_inherited()."""
        self.reserve_at(mappings)
        self._inherited = list(mappings)

    def forget_inherited(self) -> None:
        """The predecessor's last command has ended: its memory is unmapped from the device."""
        inherited, self._inherited = self._inherited, []
        for iova, nbytes in inherited:
            self.unmap(iova, nbytes)
        if inherited:
            self.on_mapped()

    def detach(self) -> list[Pool]:
        """A successor has the pools and the device: forgets everything and touches nothing. Returns
        the pools, to be let_go().
        """
        self.in_use = lambda iova, nbytes: True
        with self._growing:
            self._closed = True
        pools = self.pools
        for client in self._clients:
            client.pool.detach()
            self.manager.forget(client)
        self._clients, self._mapped, self._retired, self._inherited = [], [], [], []
        for registration in list(self.registrations.values()):
            registration.close()
        self._retired = []
        return pools

    def close(self) -> None:
        """Unmaps and frees everything. Only after the controller was reset or is gone: it must
        not access these pages any more.
        """
        self.in_use = lambda iova, nbytes: False
        with self._growing:
            self._closed = True
        for registration in list(self.registrations.values()):
            registration.close()
        self.sweep()
        for pool in self.pools:
            self.address_map.remove(pool.address)
            self.unmap(pool.iova, pool.nbytes)
        self._mapped.clear()
        pools = self.pools
        for client in self._clients:
            self.manager.forget(client)
        self._clients = []
        let_go(pools)

    def unmap(self, iova: int, nbytes: int) -> None:
        """Unmaps [iova, iova + nbytes) from the device. A device that is gone has no
        mappings.
        """
        try:
            self.device.unmap_dma(iova, nbytes)
        except (DeviceError, ConnectionError, TimeoutError):
            pass
        self.release(iova, nbytes)

    def inspect(self) -> dict[str, Any]:
        """DMA clients with their slots' states, pools with their slots, registrations."""
        return {
            "private_bytes": self.manager.private_bytes,
            "note": self.note,
            "clients": [
                {"name": client.name, "policy": client.policy.value, "states": client.states()}
                for client in self._clients
            ],
            "pools": [pool.inspect() for pool in self.pools],
            "registered": [
                {"address": r.address, "nbytes": r.nbytes, "iova": r.iova, "zero_copy": r.zero_copy}
                for r in self.registrations.values()
            ],
        }


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_SIZE) * PAGE_SIZE


def let_go(pools: Iterable[Pool]) -> None:
    """Closes pools that nothing of the driver's uses any more."""
    for pool in pools:
        try:
            pool.close()
        except BufferError:
            # The application still uses a buffer of this pool; its memory stays until that ends.
            pass
