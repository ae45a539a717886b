"""What transports have in common whose device reaches pools of this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from nvme_async.dma import DmaBuffer
from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.pcie.restored_queues import RestoredQueues
from nvme_async.driver.queues.queue_transport import QueueTransport
from nvme_async.driver.registration import Registration
from nvme_async.driver.transport import Owner, Transport
from nvme_async.errors import ConfigurationError

T = TypeVar("T")


class PassedDevice(Protocol):
    """The part of a nvme_async.device.Device that a hand-over to another process needs."""

    def park(self, parked: bool, *, wait: bool = True) -> bool: ...
    def detach(self) -> None: ...


class PooledTransport(QueueTransport):
    """Attributes:
    memory: pools and mappings, after the connect steps; None before.
    unmaps_by_request: unmapping is a request to another process, and blocks until it has answered.
    """

    queues: RestoredQueues
    unmaps_by_request = False
    memory: DeviceMemory | None
    fuses = True
    _owner: Owner

    @property
    def passed_device(self) -> PassedDevice:
        """What a successor attaches to while this process lets go of it."""
        raise NotImplementedError

    async def call(self, function: Callable[[], T]) -> T:
        """A call into the device layer."""
        raise NotImplementedError

    @property
    def _most_bytes(self) -> int:
        return self._owner.options.max_transfer

    def allow_sgl(self, kind: int, *, metadata: bool) -> None:
        maker = self.queues.maker
        maker.allow_sgl(kind, metadata=metadata)
        for queue in self.queues.io_queues():
            queue.hot.sgl, queue.hot.sgl_metadata = maker.sgl, maker.sgl_metadata

    def alloc(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        return self._pools().alloc(nbytes, owner="application", tag=tag)

    def register(self, buffer: BufferLike) -> Registration:
        return self._pools().register(buffer)

    def _pools(self) -> DeviceMemory:
        if self.memory is None:
            raise self._owner._not_here()
        return self.memory


def pooled(transport: Transport) -> PooledTransport:
    """`transport`, if its queue pairs are in pools of this process. ConfigurationError for any
    other.
    """
    if not isinstance(transport, PooledTransport):
        raise ConfigurationError(f"{transport.uri}: a controller reached over {transport.kind} has no pool")
    return transport
