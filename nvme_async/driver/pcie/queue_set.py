"""The queue pairs of a PCI function: besides those of this process's loops a predecessor's, and
those lent to other processes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any

from nvme_async.device.quirks import Quirk
from nvme_async.dma import DmaBuffer
from nvme_async.driver.pcie.lending import Lender
from nvme_async.driver.pcie.queue_maker import PciePieces, PcieQueueMaker
from nvme_async.driver.pcie.registers import doorbell_pairs
from nvme_async.driver.pcie.restored_queues import RestoredQueues
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.steps import Degraded
from nvme_async.driver.transport import Owner
from nvme_async.errors import CommandError, NvmeError, OutOfDmaMemory
from nvme_async.native import _hotpath
from nvme_async.runtime import loop_internals


class PcieQueueSet(RestoredQueues):
    """Attributes, besides those of RestoredQueues:
    lender: lends queue pairs to other processes, or None; lent: their ids.
    """

    maker: PcieQueueMaker

    def __init__(self, controller: Owner, transport: PciePieces) -> None:
        super().__init__(controller, transport, PcieQueueMaker(controller, transport))
        self.lender: Lender | None = None
        self.lent: set[int] = set()
        self._pcie = transport

    @property
    def _wanted(self) -> int:
        """With a single vector the only I/O queue shares it with the admin queue."""
        if Quirk.QUEUE_DEPTH_ONE in self._controller.quirks:
            return 1
        doorbells = doorbell_pairs(self._pcie.cap, self._pcie.device.bar0_nbytes) - 1
        return min(self._controller.options.io_queues, max(1, len(self.maker.event_fds) - 1), max(1, doorbells))

    def _taken(self) -> set[int]:
        return super()._taken() | set(self.inherited) | self.lent

    def listen(self, queue: LoopQueue) -> None:
        super().listen(queue)
        if queue.event_fd != self.admin.event_fd:
            self._steer(queue)

    def _steer(self, queue: LoopQueue) -> None:
        """Its interrupts go to the CPUs of the loop's thread, if that is bound to some. On the
        loop; a thread writes the files.
        """
        cpus = os.sched_getaffinity(0)
        if not queue.interrupts or not queue.qid or len(cpus) >= (os.cpu_count() or 1):
            return
        device, vector = self._pcie.device, queue.vector

        def steer() -> None:
            queue.cpus = sorted(cpus) if device.steer(vector, cpus) else None

        asyncio.get_running_loop().run_in_executor(None, steer)

    # -- a predecessor's ---------------------------------------------------------------------------

    def begin_restored(self, *, limit: int, max_transfer: int, used: list[int], shadow: DmaBuffer | None) -> None:
        """Instead of negotiate(): the controller's grant to the predecessor. New I/O is held for
        the drain.
        """
        self.limit = limit
        self.maker.limit_transfer(max_transfer)
        self.maker.adopt_shadow(shadow)
        self._free_qids = [qid for qid in range(limit, 0, -1) if qid not in used]
        self.hold_first("drain")

    def attach(self, queue: LoopQueue) -> None:
        if queue.qid == 0:
            self._admin = queue
        else:
            super().attach(queue)

    # -- fused: none is created or deleted after the bring-up
    # ----------------------------------------

    async def create_all(self, degraded: Degraded) -> None:
        await super().create_all(degraded)
        controller = self._controller
        while controller.fused and self._free_qids:
            try:
                queue = await self._create(controller.loop)
            except (CommandError, OutOfDmaMemory) as error:
                degraded.add("I/O queue pairs", error, "event loops share the existing ones")
                self._free_qids.clear()
                break
            if queue is not None:
                queue.silence(True)
                self.spare.append(queue)

    async def _take_from_closed_loops(self) -> None:
        if not self._controller.fused:
            await super()._take_from_closed_loops()
            return
        home = self._controller.loop
        for loop, queue in list(self.io.items()):
            if not loop.is_closed() or queue.hot.n_outstanding:
                continue
            del self.io[loop]
            self.hot.pop(loop, None)
            queue.stop_listening()
            _hotpath.rebind(queue.hot, home.create_future, home.call_soon, loop_internals.ready_callbacks(home))
            self.spare.append(self.maker.face(queue.hot, home, queue.vector, queue.interrupts))
            self._controller._changed()

    # -- lent to other processes -------------------------------------------------------------------

    def lend(self) -> int | None:
        """The id of a queue pair with its own interrupt vector, for another process; None if
        none is left. Returned by return_lent().
        """
        own = [qid for qid in self._free_qids if 0 < qid < len(self.maker.event_fds)]
        # The home loop has one, and another loop of this process may still need one.
        if not own:
            return None
        qid = max(own)
        self._free_qids.remove(qid)
        self.lent.add(qid)
        return qid

    def reserve_lent(self, qids: Iterable[int]) -> None:
        """These are lent already, by a predecessor."""
        self.lent.update(qids)
        self._free_qids = [qid for qid in self._free_qids if qid not in self.lent]

    def return_lent(self, qid: int) -> None:
        """The controller knows no queue of this id, and no other process rings its doorbells."""
        self.lent.discard(qid)
        if qid <= self.limit and qid not in self._free_qids:
            self._free_qids.append(qid)

    async def fail(self, error: NvmeError, *, admin: bool = True) -> None:
        await super().fail(error, admin=admin)
        if admin and self.lender is not None:
            await self.lender.fail(error)

    async def silence(self) -> None:
        if self.lender is not None:
            await self.lender.stop()
        await super().silence()

    async def go_on(self, *, strictly: bool = False) -> None:
        await super().go_on(strictly=strictly)
        if not strictly and self.lender is not None:
            await self.lender.unhold()

    async def drain(self, seconds: float, nsids: frozenset[int] | None = None) -> bool:
        until = asyncio.get_running_loop().time() + seconds
        if nsids is not None and self.lender is not None and not await self.lender.hold(nsids, seconds):
            return False
        return await super().drain(until - asyncio.get_running_loop().time(), nsids)

    async def restart(self, retryable: frozenset[int], error: NvmeError) -> None:
        await super().restart(retryable, error)
        if self.lender is not None:
            self.lender.disabled()

    async def go(self) -> None:
        await super().go()
        if self.lender is not None:
            await self.lender.go()

    async def delete_all(self) -> None:
        if self.lender is not None:
            await self.lender.take_back()
        await super().delete_all()

    async def release(self, reason: NvmeError) -> None:
        if self.lender is not None:
            await self.lender.release()
        await super().release(reason)
        self.maker.free_shadow()

    def forget_all(self) -> None:
        super().forget_all()
        self.inherited.clear()
        lender, self.lender = self.lender, None
        if lender is not None:
            lender.forget()

    def inspect(self) -> dict[str, Any]:
        found = super().inspect()
        return {
            **found,
            "unsettled_io_queues": sorted([*found["unsettled_io_queues"], *self.inherited]),
            "lent_io_queues": sorted(self.lent),
            "leases": self.lender.inspect() if self.lender is not None else [],
            "vectors": len(self.maker.event_fds),
        }
