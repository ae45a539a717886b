"""The queue pairs of a PCI function: besides those of this process's loops a predecessor's, and
those lent to other processes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable
from typing import Any

from nvme_async.device.quirks import Quirk
from nvme_async.dma import DmaBuffer
from nvme_async.driver.lifecycle import State
from nvme_async.driver.pcie.lending import Lender
from nvme_async.driver.pcie.queue_maker import PciePieces, PcieQueueMaker
from nvme_async.driver.pcie.registers import doorbell_pairs
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.queues.queue_set import QueueSet
from nvme_async.driver.steps import Degraded
from nvme_async.driver.transport import Owner
from nvme_async.errors import CommandError, ControllerTimeout, NvmeError, OutOfDmaMemory
from nvme_async.native import _hotpath
from nvme_async.runtime import loop_internals, loops

_AT_ONCE = 1.0
"""Seconds for the home loop to give a spare queue pair; then a task there does."""


class PcieQueueSet(QueueSet):
    """Attributes, besides those of QueueSet:
    inherited: {qid: saved description} of those that a predecessor was creating or deleting.
    lender: lends queue pairs to other processes, or None; lent: their ids.
    """

    maker: PcieQueueMaker

    def __init__(self, controller: Owner, transport: PciePieces) -> None:
        super().__init__(controller, transport, PcieQueueMaker(controller, transport))
        self.inherited: dict[int, Any] = {}
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
        self._holds.add("drain")

    def attach(self, queue: LoopQueue) -> None:
        """A queue pair of the predecessor's, made by wrap(attach=True)."""
        if queue.qid == 0:
            self._admin = queue
        else:
            self.spare.append(queue)

    def first_restored(self, loop: asyncio.AbstractEventLoop) -> None:
        """The home loop takes its queue pair: that of a thread with the same name, otherwise the
        first.
        """
        if self.spare:
            worker = threading.current_thread().name
            queue = min(self.spare, key=lambda queue: queue.worker != worker)
            self.spare.remove(queue)
            queue.worker = worker
            queue.hot.bind(loop, loop_internals.shows_thread(loop))
            self.io[loop], self.hot[loop] = queue, queue.hot

    def _take_spare(self, loop: asyncio.AbstractEventLoop, worker: str) -> LoopQueue | None:
        """A predecessor's queue pair for `loop`, the one of a thread of the same name if there
        is one. Not while it has commands in flight, which the home loop handles.
        """
        idle = [queue for queue in self.spare if not queue.hot.n_outstanding]
        if not idle:
            return None
        spare = min(idle, key=lambda queue: queue.worker != worker)
        self.spare.remove(spare)
        spare.stop_listening()
        _hotpath.rebind(spare.hot, loop.create_future, loop.call_soon, loop_internals.ready_callbacks(loop))
        return self.maker.face(spare.hot, loop, spare.vector, spare.interrupts)

    async def _spare_at_once(self, loop: asyncio.AbstractEventLoop, worker: str) -> LoopQueue | None:
        """One call on the home loop, which is busy after a servicing, instead of a task there."""
        home = self._controller.loop
        if not self.spare or loop is home or not home.is_running():
            return None

        def take() -> LoopQueue | None:
            if (
                asyncio.get_running_loop() is not home  # it has just stopped
                or self._controller.lifecycle.state is not State.READY
                or self._creating.locked()
                or loop in self.io
            ):
                return None
            queue = self._take_spare(loop, worker)
            if queue is not None:
                self.io[loop] = queue
                queue.worker = worker
                self._controller._changed()
            return queue

        try:
            return await loops.Trip(home, take).wait(_AT_ONCE, ControllerTimeout("the home loop is busy"))
        except ControllerTimeout:
            return None

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

    def _has_more(self) -> bool:
        return super()._has_more() or any(not queue.hot.n_outstanding for queue in self.spare)

    def give_back(self, qid: int) -> None:
        """The controller no longer knows this inherited queue pair, and its memory is free."""
        if self.inherited.pop(qid, None) is not None:
            self._free_qids.append(qid)

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
