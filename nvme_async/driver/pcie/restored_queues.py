"""Queue pairs that a predecessor left: the loops of this process take them, one after another.

On the controller's home loop, unless said otherwise.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

from nvme_async.driver.lifecycle import State
from nvme_async.driver.pcie.queue_maker import PcieQueueMaker
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.queues.queue_set import QueueSet, RingTransport
from nvme_async.driver.transport import Owner
from nvme_async.errors import ControllerTimeout
from nvme_async.native import _hotpath
from nvme_async.runtime import loop_internals, loops

_AT_ONCE = 1.0
"""Seconds for the home loop to give a spare queue pair; then a task there does."""


class RestoredQueues(QueueSet):
    """Attributes, besides those of QueueSet:
    inherited: {qid: saved description} of those that a predecessor was creating or deleting.
    """

    maker: PcieQueueMaker

    def __init__(self, controller: Owner, transport: RingTransport, maker: PcieQueueMaker) -> None:
        super().__init__(controller, transport, maker)
        self.inherited: dict[int, Any] = {}

    def hold_first(self, reason: str) -> None:
        """Before there are queue pairs: new I/O waits until lift(reason)."""
        self._holds.add(reason)

    def attach(self, queue: LoopQueue) -> None:
        """A queue pair of the predecessor's, made by wrap(attach=True)."""
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
        is one. Not while it has the predecessor's commands in flight, which the home loop handles.
        """
        idle = [queue for queue in self.spare if queue.hot.movable]
        if not idle:
            return None
        spare = min(idle, key=lambda queue: queue.worker != worker)
        self.spare.remove(spare)
        spare.stop_listening()
        _hotpath.rebind(spare.hot, loop.create_future, loop.call_soon, loop_internals.ready_callbacks(loop))
        return self.maker.face(spare.hot, loop, spare.vector, spare.interrupts)

    def assign(self, loops: Iterable[tuple[asyncio.AbstractEventLoop, str]]) -> None:
        """Each of these loops, with the name of its thread, gets a predecessor's queue pair, if it
        has none and one is idle. It adopts it at its first I/O. Not during a delivery of one of
        them.
        """
        if self._controller.lifecycle.state is not State.READY or self._creating.locked():
            return
        known = {queue.worker for queue in self.spare}
        for loop, worker in sorted(loops, key=lambda one: one[1] not in known):
            if loop not in self.io and loop.is_running():
                queue = self._take_spare(loop, worker)
                if queue is not None:
                    self.io[loop] = queue
                    queue.worker = worker

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

    def _has_more(self) -> bool:
        return super()._has_more() or any(queue.hot.movable for queue in self.spare)

    def give_back(self, qid: int) -> None:
        """The controller no longer knows this inherited queue pair, and its memory is free."""
        if self.inherited.pop(qid, None) is not None:
            self._free_qids.append(qid)
