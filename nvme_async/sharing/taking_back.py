"""How a lease ends: its queues are deleted, or the controller is reset; only then its memory is
unmapped, and only then are its queue ids lent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from nvme_async.driver.context import ControllerContext
from nvme_async.driver.lifecycle import State
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.errors import CommandError, NvmeError
from nvme_async.runtime.tasks import in_thread
from nvme_async.sharing.lease import Lease, Mapping, QueueIs
from nvme_async.spec import commands

log: logging.Logger = logging.getLogger("nvme_async")

_INVALID_QUEUE = 0x101
"""Invalid Queue Identifier: the controller knows no such queue (Base 2.0, 5.7 and 5.6)."""
_LIMIT = 60.0
"""Limit in seconds for a requested reset, after which the lease waits for the next one."""


class TakingBack:
    """Deletes the queues and mappings of leases. On the controller's home loop."""

    def __init__(self, controller: ControllerContext, transport: PcieTransport) -> None:
        self._controller = controller
        self._transport = transport
        self._deleting = asyncio.Semaphore(8)

    async def delete_queues(self, lease: Lease) -> bool:
        """True once the controller knows none of them. Their commands have ended with them:
        Delete I/O Submission Queue completes after they have completed or were aborted (Base
        2.0, 5.7). The lease's lock is held.
        """
        for qid in lease.present:
            lease.queues[qid] = QueueIs.UNCERTAIN
            lease.settled.clear()
            if not await self._delete(lease, qid):
                return False
        return True

    async def _delete(self, lease: Lease, qid: int) -> bool:
        controller = self._controller
        try:
            async with self._deleting:
                await controller._until_ready()
                if lease.queues[qid] is QueueIs.ABSENT:
                    return True  # there was a reset meanwhile
                for command in (commands.delete_io_sq(qid), commands.delete_io_cq(qid)):
                    resets = controller.resets
                    with contextlib.suppress(_NoSuchQueue):
                        await self._submit(command)
                    if controller.resets != resets:
                        break
        except NvmeError as error:
            if lease.queues[qid] is not QueueIs.ABSENT:
                log.warning("%s: queue %d of process %d: %s", controller.uri, qid, lease.pid, error)
                return await self._reset(lease, qid, str(error))
        if lease.queues[qid] is QueueIs.UNCERTAIN and controller.state is State.READY:
            lease.queues[qid] = QueueIs.ABSENT
        return lease.queues[qid] is QueueIs.ABSENT

    async def _submit(self, command: commands.Command) -> None:
        try:
            await self._controller._submit_admin(command)
        except CommandError as error:
            if error.status == _INVALID_QUEUE:
                raise _NoSuchQueue from None
            raise

    async def _reset(self, lease: Lease, qid: int, reason: str) -> bool:
        """The last resort. disabled() of the owner settles the lease."""
        controller = self._controller
        if controller.state is State.READY:
            controller._request_reset(f"queue {qid} of a worker could not be deleted: {reason}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LIMIT):
                await lease.settled.wait()
        return lease.queues[qid] is QueueIs.ABSENT

    async def unmap(self, lease: Lease, mappings: list[Mapping] | None = None) -> None:
        """The controller no longer accesses this memory. Only while it knows no queue of the
        lease.
        """
        memory = self._transport.memory
        for mapping in list(lease.mappings if mappings is None else mappings):
            if memory is not None:
                await in_thread(self._unmap, mapping)
                memory.lent_mappings -= 1
            lease.mappings.remove(mapping)
            if mapping.view is not None:
                mapping.view.close()

    def _unmap(self, mapping: Mapping) -> None:
        # A device that is gone has no mappings.
        with contextlib.suppress(NvmeError, ConnectionError, TimeoutError):
            self._transport.device.unmap_dma(mapping.iova, mapping.nbytes)

    def return_ids(self, lease: Lease) -> None:
        """The lease's process rings no doorbell any more: others may have the queue ids and the
        window.
        """
        queues = self._transport.queues
        for qid in lease.queues:
            with contextlib.suppress(BlockingIOError, IndexError, OSError):
                os.eventfd_read(queues.maker.event_fds[qid])  # its last interrupts have no receiver
            queues.return_lent(qid)
        if self._transport.memory is not None:
            self._transport.memory.release_window(lease.window)


class _NoSuchQueue(Exception):
    pass
