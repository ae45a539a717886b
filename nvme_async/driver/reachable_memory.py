"""The calls of a controller that give applications memory which the device can access."""

from __future__ import annotations

import asyncio

from nvme_async.dma import DmaBuffer
from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.context import ControllerContext
from nvme_async.driver.lifecycle import ENDING, State
from nvme_async.driver.registration import Registration
from nvme_async.driver.transport import Transport
from nvme_async.runtime.tasks import in_thread


class ReachableMemory(ControllerContext):
    """ConfigurationError where the transport has no direct memory access."""

    def alloc(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        """Zeroed memory that the device can access directly: a writable buffer of `nbytes`, page
        aligned; free() it or use it in `with`.

        OutOfDmaMemory if none is available: the options pool_bytes (with keepalive) and
        memory_limit, the available memory, and the limit of locked memory bound it. From any
        thread. Blocks while memory grows, or a large range is cleared; buffer() doesn't.
        """
        return self._reachable().alloc(self._positive(nbytes), tag=tag)

    async def buffer(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        """alloc() for large buffers without blocking the event loop. From any loop."""
        transport, nbytes = self._reachable(), self._positive(nbytes)
        made: list[DmaBuffer] = []
        try:
            await in_thread(lambda: made.append(transport.alloc(nbytes, tag=tag)))
        except asyncio.CancelledError:
            for buffer in made:
                buffer.free()
            raise
        return made[0]

    def _reachable(self) -> Transport:
        if self.state in ENDING:
            raise self._not_here()
        return self.transport

    @staticmethod
    def _positive(nbytes: int) -> int:
        if nbytes <= 0:
            raise ValueError(f"nbytes is {nbytes}, must be 1 or more")
        return nbytes

    def register(self, buffer: BufferLike) -> Registration:
        """Makes existing memory (an array, an mmap) accessible to the device in place, so that
        readinto and write copy nothing.

        On the home loop's thread. The registration holds the buffer until it is closed (`with`, or
        with the controller).
        """
        if self.state in ENDING or self.state is State.SAVING:
            raise self._not_here()
        return self.transport.register(buffer)
