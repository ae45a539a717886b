"""What transports have in common whose device reaches pools of this process."""

from __future__ import annotations

from nvme_async.dma import DmaBuffer
from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.queues.queue_transport import QueueTransport
from nvme_async.driver.registration import Registration
from nvme_async.driver.transport import Owner


class PooledTransport(QueueTransport):
    """Attributes:
    memory: pools and mappings, after the connect steps; None before.
    """

    memory: DeviceMemory | None
    fuses = True
    _owner: Owner

    @property
    def _most_bytes(self) -> int:
        return self._owner.options.max_transfer

    def alloc(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        return self._pools().alloc(nbytes, owner="application", tag=tag)

    def register(self, buffer: BufferLike) -> Registration:
        return self._pools().register(buffer)

    def _pools(self) -> DeviceMemory:
        if self.memory is None:
            raise self._owner._not_here()
        return self.memory
