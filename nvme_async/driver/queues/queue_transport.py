"""What all transports with a QueueSet have in common."""

from __future__ import annotations

from nvme_async.driver.queues.queue_set import QueueSet
from nvme_async.driver.transport import Transport


class QueueTransport(Transport):
    queues: QueueSet

    @property
    def _most_bytes(self) -> int:
        """Of one I/O command, whatever the controller allows."""
        raise NotImplementedError

    def limit_transfer(self, mdts: int) -> bool:
        return self.queues.maker.limit_transfer(min(self._most_bytes, mdts or self._most_bytes))

    @property
    def max_transfer(self) -> int:
        return self.queues.maker.max_transfer
