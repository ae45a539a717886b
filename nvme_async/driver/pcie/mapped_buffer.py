"""A user's buffer that the device accesses in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from nvme_async.device import Device
from nvme_async.dma.backing import shared_backing
from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.registration import Registration
from nvme_async.errors import ConfigurationError
from nvme_async.native._placement import AddressMap, address_of, byte_view
from nvme_async.spec.registers import PAGE


class Mapper(Protocol):
    """The part of the controller's memory that a buffer needs."""

    device: Device
    address_map: AddressMap
    registrations: dict[int, MappedBuffer]
    on_mapped: Callable[[], None]

    def reserve(self, nbytes: int) -> int: ...
    def release(self, iova: int, nbytes: int) -> None: ...
    def retire(self, iova: int, nbytes: int) -> None: ...


class MappedBuffer(Registration):
    """Mapped at the device, at its own address."""

    def __init__(self, memory: Mapper, buffer: BufferLike) -> None:
        self._memory = memory
        self._view: memoryview | None = byte_view(buffer)
        if self._view.nbytes == 0:
            raise ConfigurationError("a buffer of 0 bytes can't be registered")
        self.address: int = address_of(self._view)
        self.nbytes: int = self._view.nbytes
        self.iova: int | None = None
        begin = self.address & -PAGE
        end = (self.address + self.nbytes + PAGE - 1) & -PAGE
        self._hull = (begin, end - begin)
        if self.address in memory.registrations:
            self._view.release()
            raise ConfigurationError(f"the memory at {self.address:#x} is already registered")
        try:
            # Recorded before it is made: if this process is killed in between, a successor unmaps
            # it.
            iova = memory.reserve(end - begin)
        except BaseException:
            self._view.release()
            raise
        try:
            memory.on_mapped()
            mapped = self._map(memory.device, iova)
        except BaseException:
            memory.release(iova, end - begin)
            self._view.release()
            raise
        if not mapped:
            memory.release(iova, end - begin)
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

    def close(self) -> None:
        if self._view is None:
            return
        self._memory.registrations.pop(self.address, None)
        if self.iova is not None:
            self._memory.address_map.remove(self.address)
            self._memory.retire(self.iova - (self.address - self._hull[0]), self._hull[1])
            self.iova = None
        self._view.release()
        self._view = None
