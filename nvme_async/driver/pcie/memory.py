"""The memory that one controller reaches: pools and registered user buffers, mapped at its IOMMU
and known to its queue pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

from nvme_async.device import Device
from nvme_async.dma import DmaBuffer, Pool
from nvme_async.dma.backing import shared_backing
from nvme_async.dma.manager import DmaClient, DmaManager, Policy
from nvme_async.errors import ConfigurationError, DeviceError, OutOfDmaMemory
from nvme_async.native._hotpath import AddressMap, address_of, byte_view

# Above everything that a 32-bit device or a platform's reserved windows (MSI at FEE0_0000h) claim.
FIRST_IOVA = 0x1_0000_0000
ALIGN = 2 << 20


class DeviceMemory:
    """Pools of a controller, and where they lie for it.

    Owner: its Controller, on whose loop's thread everything here is called, except alloc(), which
        any of the controller's loops calls under
    the GIL. Closed after the controller was reset, before the device is.
    """

    def __init__(
        self,
        device: Device,
        *,
        pool_bytes: int,
        hugepages: Literal["auto", "never", "require"],
        fixed: bool = False,
        adopt: Pool | None = None,
    ) -> None:
        """fixed: one private pool, and no more. adopt: that one, which a predecessor has mapped at
        the device already.
        """
        self.device = device
        self.address_map = AddressMap()
        self._fixed = fixed or adopt is not None
        private = 0
        if self._fixed:
            # As much as the pool takes with its table, and with huge pages.
            private = adopt.nbytes if adopt is not None else _aligned(Pool.size_for(_aligned(pool_bytes)))
        self.manager = DmaManager(private, hugepages=hugepages)
        self._clients: list[DmaClient] = []
        self.registrations: dict[int, Registration] = {}
        self._pool_bytes = pool_bytes
        self._mapped: list[tuple[int, int]] = []  # (iova, nbytes)
        self._inherited: list[tuple[int, int]] = []  # a predecessor's registrations
        self._retired: list[tuple[int, int]] = []  # closed registrations that a command may still use
        self.in_use: Callable[[int, int], bool] = lambda iova, nbytes: False
        self.on_mapped: Callable[[], None] = lambda: (
            None
        )  # a mapping of user memory is about to be made, was made, or was removed
        if adopt is not None:
            self._know(self.manager.adopt(adopt))
        else:
            self.grow(pool_bytes)

    @property
    def pools(self) -> list[Pool]:
        """Of its DMA clients, the first one first. With keepalive there is one, and it is private."""
        return [client.pool for client in self._clients]

    def place(self, nbytes: int) -> int:
        """A free IOVA range of `nbytes` that the device can reach; OutOfDmaMemory if there is none."""
        nbytes = _aligned(nbytes)
        taken = sorted(self._mapped)
        for window in self.device.iova_ranges:
            at = -(-max(window.start, FIRST_IOVA) // ALIGN) * ALIGN
            for iova, length in taken:
                if iova < at + nbytes and at < iova + length:
                    at = -(-(iova + length) // ALIGN) * ALIGN
            if at + nbytes <= window.stop:
                return at
        raise OutOfDmaMemory(f"no {nbytes} bytes of IOVA space are free; the device reaches {self.device.iova_ranges}")

    def grow(self, nbytes: int) -> DmaClient:
        """One more client with room for `nbytes` of allocations at least: the private one where the
        pool is fixed, else an ephemeral one.
        """
        if len(self._mapped) >= self.device.max_mappings:
            raise OutOfDmaMemory(f"the device takes no more than {self.device.max_mappings} mappings")
        size = max(self._pool_bytes, _aligned(nbytes))
        policy = Policy.PRIVATE if self._fixed else Policy.EPHEMERAL
        client = self.manager.client(f"pool{len(self._clients)}", policy, size, iova=self.place(Pool.size_for(size)))
        try:
            self.device.map_dma(client.pool, iova=client.pool.iova, nbytes=client.pool.nbytes)
        except BaseException:
            client.close()
            raise
        self._know(client)
        return client

    def _know(self, client: DmaClient) -> None:
        pool = client.pool
        self._mapped.append((pool.iova, pool.nbytes))
        self.address_map.add(pool.address, pool.nbytes, pool.iova, True)
        self._clients.append(client)

    def alloc(self, nbytes: int, *, owner: str, tag: int = 0) -> DmaBuffer:
        """Zeroed memory that the device reaches, from the first pool with room. OutOfDmaMemory if a
        fixed pool has none.
        """
        error: OutOfDmaMemory | None = None
        for client in self._clients:
            try:
                return client.alloc(nbytes, owner=owner, tag=tag, persistent=False)
            except OutOfDmaMemory as full:
                error = full
        if self._fixed and error is not None:
            raise error
        return self.grow(nbytes).alloc(nbytes, owner=owner, tag=tag, persistent=False)

    def chunk_source(self, owner: str) -> Callable[[int, int], DmaBuffer]:
        """alloc() as BounceCache wants it."""
        return lambda nbytes, tag: self.alloc(nbytes, owner=owner, tag=tag)

    def register(self, buffer: Any) -> Registration:
        """Makes existing memory reachable, in place."""
        self.sweep()
        registration = Registration(self, buffer)
        self.registrations[registration.address] = registration
        return registration

    def retire(self, iova: int, nbytes: int) -> None:
        """Unmaps a registration as soon as no command uses it: until then its IOVA must not come to
        mean other memory.
        """
        self._retired.append((iova, nbytes))
        self.sweep()

    def sweep(self) -> None:
        """Unmaps what was retired and is not in use any more."""
        for iova, nbytes in list(self._retired):
            if not self.in_use(iova, nbytes):
                self._retired.remove((iova, nbytes))
                self.unmap(iova, nbytes)
                self.on_mapped()

    def foreign_mappings(self) -> list[tuple[int, int]]:
        """(iova, nbytes) of what is mapped at the device beside the pools."""
        pools = {pool.iova for pool in self.pools}
        return [(iova, nbytes) for iova, nbytes in self._mapped if iova not in pools]

    def inherit(self, mappings: list[tuple[int, int]]) -> None:
        """Mappings of a predecessor's memory: their IOVAs are in use until forget_inherited()."""
        self._mapped += mappings
        self._inherited = list(mappings)

    def forget_inherited(self) -> None:
        """The predecessor's last command is over: its memory is taken from the device."""
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
        """Unmaps and frees everything. Only after the controller was reset or is gone: it may not
        reach a page of this any more.
        """
        self.in_use = lambda iova, nbytes: False
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
        """Takes [iova, iova + nbytes) from the device. A device that is gone has let go already."""
        try:
            self.device.unmap_dma(iova, nbytes)
        except (DeviceError, ConnectionError, TimeoutError):
            pass
        if (iova, nbytes) in self._mapped:
            self._mapped.remove((iova, nbytes))

    def inspect(self) -> dict[str, Any]:
        """DMA clients with their slots' states, pools with their slots, registrations."""
        return {
            "private_bytes": self.manager.private_bytes,
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


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def let_go(pools: Iterable[Pool]) -> None:
    """Closes pools that nothing of the driver's uses any more."""
    for pool in pools:
        try:
            pool.close()
        except BufferError:
            # The application still looks at a buffer of this pool; its memory lives on until it
            # stops.
            pass


class Registration:
    """User memory that the device reaches in place (`controller.register(buffer)`); a context
    manager, closed with its controller.

    Attributes:
        address, nbytes: the registered memory, which is the page-aligned hull of the buffer if the
            device can map that.
        zero_copy: False where the device can't reach it (memory that a vfio-user peer can't be
            given): then I/O is bounced as for any other.
        iova: its device address, or None.
    """

    def __init__(self, memory: DeviceMemory, buffer: Any) -> None:
        self._memory = memory
        self._view: memoryview | None = byte_view(buffer)
        if self._view.nbytes == 0:
            raise ConfigurationError("a buffer of 0 bytes can't be registered")
        self.address = address_of(self._view)
        self.nbytes = self._view.nbytes
        self.iova: int | None = None
        begin = self.address & ~4095
        end = (self.address + self.nbytes + 4095) & ~4095
        self._hull = (begin, end - begin)
        if self.address in memory.registrations:
            self._view.release()
            raise ConfigurationError(f"the memory at {self.address:#x} is registered already")
        iova = memory.place(end - begin)
        # Known before it is made: should this process be killed in between, a successor unmaps it.
        memory._mapped.append((iova, end - begin))
        try:
            memory.on_mapped()
            mapped = self._map(memory.device, iova)
        except BaseException:
            memory._mapped.remove((iova, end - begin))
            self._view.release()
            raise
        if not mapped:
            memory._mapped.remove((iova, end - begin))
        memory.on_mapped()
        if mapped:
            self.iova = iova + (self.address - begin)
            memory.address_map.add(self.address, self.nbytes, self.iova)

    def _map(self, device: Device, iova: int) -> bool:
        address, nbytes = self._hull
        if device.direct:
            device.map_dma(-1, iova=iova, nbytes=nbytes, address=address)
            return True
        backing = shared_backing(address, nbytes)
        if backing is None:
            return False
        fd, offset = backing
        try:
            device.map_dma(fd, iova=iova, nbytes=nbytes, file_offset=offset)
        finally:
            os.close(fd)
        return True

    @property
    def zero_copy(self) -> bool:
        return self.iova is not None

    def close(self) -> None:
        """Takes the memory from the device: new I/O on it is bounced; it stays mapped until the
        last command that uses it completed.
        """
        if self._view is None:
            return
        self._memory.registrations.pop(self.address, None)
        if self.iova is not None:
            self._memory.address_map.remove(self.address)
            self._memory.retire(self.iova - (self.address - self._hull[0]), self._hull[1])
            self.iova = None
        self._view.release()
        self._view = None

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
