"""The assignment of queue pairs to loops, and their creation and deletion.

On the controller's home loop, unless said otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, Protocol

from nvme_async.device.quirks import Quirk
from nvme_async.driver.lifecycle import FINAL, State
from nvme_async.driver.queues.collection import QueueCollection
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.queues.queue_maker import QueueMaker
from nvme_async.driver.steps import Degraded, patiently
from nvme_async.driver.transport import Owner
from nvme_async.errors import (
    CommandError,
    ControllerError,
    ControllerTimeout,
    NvmeError,
    OutOfDmaMemory,
    QueueShutdown,
)
from nvme_async.runtime import loop_internals
from nvme_async.runtime.tasks import finish
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature
from nvme_async.spec.registers import Cap

log: logging.Logger = logging.getLogger("nvme_async")


class RingTransport(Protocol):
    """The part of a ring-based transport that its queue set needs."""

    cap: Cap


class QueueSet(QueueCollection):
    """Attributes, besides those of QueueCollection:
    maker: makes queue pairs.
    limit: I/O queue pairs that the controller granted.
    shared: how many loops share another loop's queue pair because the controller had no more.
    neighbours: {loop: the queue pair of another loop that it uses}.
    """

    shared: int

    def __init__(self, controller: Owner, transport: RingTransport, maker: QueueMaker) -> None:
        super().__init__(controller)
        self.maker = maker
        self.neighbours: dict[asyncio.AbstractEventLoop, LoopQueue] = {}
        self.shared = 0
        self.limit: int = 0
        self._transport = transport
        self._free_qids: list[int] = []
        self._assumed = False  # the limit is a guess
        self._creating = asyncio.Lock()
        self._making: dict[
            asyncio.AbstractEventLoop, list[asyncio.Future[None]]
        ] = {}  # the tasks of that loop that wait while another one gets its queue pair

    # -- how many ----------------------------------------------------------------------------------

    @property
    def _wanted(self) -> int:
        """I/O queue pairs to request from the controller."""
        return self._controller.options.io_queues

    async def negotiate(self) -> None:
        """Number of Queues (5.27.1.5). After each reset, because it may change."""
        wanted = self._wanted
        feature = commands.set_features(Feature.NUMBER_OF_QUEUES, (wanted - 1) << 16 | (wanted - 1))
        granted = (await self._controller._submit_admin(feature)).dw0
        self._grant(min(wanted, (granted & 0xFFFF) + 1, (granted >> 16) + 1))
        self._assumed = False

    def assume(self) -> str:
        """The limit is unknown: the first refusal shows it."""
        self._grant(self._wanted)
        self._assumed = True
        return f"up to {self.limit} queue pairs are tried"

    def _grant(self, limit: int) -> None:
        self.limit = limit
        taken = self._taken()
        self._free_qids = [qid for qid in range(limit, 0, -1) if qid not in taken]

    def _taken(self) -> set[int]:
        """Ids that no new queue pair gets."""
        return {queue.qid for queue in [*self.io_queues(), *self.unsettled]}

    def _refused(self) -> None:
        """The controller refused one more queue pair. If the limit was a guess, it is known now."""
        if self._assumed:
            self._free_qids.clear()
            self.limit = max(1, len(self.io_queues()))

    # -- creation and deletion

    def prepare_admin(self) -> LoopQueue:
        """The admin queue, rings at their start, listening. The controller is disabled."""
        if self._admin is None:
            self._admin = self.maker.make(0, self._controller.options.admin_entries, self._controller.loop)
            self._admin.listen()
        return self._admin

    async def create(self, loop: asyncio.AbstractEventLoop, worker: str = "") -> LoopQueue | None:
        """A queue pair for `loop`, made on the home loop. None when the controller has no more.
        The owner's loop must call adopt().

        worker: name of the loop's thread. Not to be cancelled half-way: see finish(). If a reset
            comes in between, it is made again.
        """
        controller = self._controller
        async with self._creating:
            while True:
                await controller._until_ready()
                if loop in self.io:
                    return self.io[loop]
                resets = controller.resets
                try:
                    if controller.fused:
                        await self._take_from_closed_loops()
                    queue = self._take_spare(loop, worker) or await self._create(loop)
                except NvmeError:
                    if controller.resets != resets:
                        continue
                    raise
                break
            if queue is not None:
                self.io[loop] = queue
                queue.worker = worker
                controller._changed()
                if loop is controller.loop:
                    self.adopt(queue)
            return queue

    def _take_spare(self, loop: asyncio.AbstractEventLoop, worker: str) -> LoopQueue | None:
        """An existing one without a loop, for `loop`."""
        return None

    async def _spare_at_once(self, loop: asyncio.AbstractEventLoop, worker: str) -> LoopQueue | None:
        """What create() would take from the spare ones, in `loop`'s thread, if that needs no wait
        on the home loop. None: create() decides.
        """
        return None

    @property
    def entries(self) -> int:
        """Of a new I/O queue."""
        if Quirk.QUEUE_DEPTH_ONE in self._controller.quirks:
            return 2  # one is always free: one command
        return min(self._controller.options.queue_entries, self._transport.cap.mqes + 1, 4096)

    async def _create(self, loop: asyncio.AbstractEventLoop) -> LoopQueue | None:
        await self._take_from_closed_loops()
        if not self._free_qids:
            return None
        controller = self._controller
        qid, entries = self._free_qids.pop(), self.entries
        try:
            await self.maker.make_room(qid, entries)
            queue = self.maker.make(qid, entries, loop)
        except BaseException:
            self._free_qids.append(qid)
            raise
        self.unsettled.append(queue)
        try:
            # Recorded for a successor before the controller knows it.
            controller._changed(strictly=True)
            await self.maker.create(queue)
        except (CommandError, OutOfDmaMemory) as error:
            self._settle(queue)
            if isinstance(error, CommandError):
                self._refused()
            raise
        while controller.lifecycle.state is State.SAVING:
            # It isn't frozen as the others are, and the saved state has it as unsettled.
            await controller._until_ready()
        if controller.lifecycle.state in FINAL:
            raise controller._not_here()
        if queue not in self.unsettled:
            raise ControllerError(f"{controller.uri}: the controller was reset while queue {qid} was created")
        self.unsettled.remove(queue)
        return queue

    def _settle(self, *queues: LoopQueue) -> None:
        """The controller knows none of these queues for certain: neither id nor vector nor memory
        is lost.
        """
        settled = [queue for queue in queues if queue in self.unsettled]
        for queue in settled:
            self.unsettled.remove(queue)
        # Before the memory is released: memory named in the saved state must exist.
        self._controller._changed()
        for queue in settled:
            queue.hot.release_all()
            self.maker.forget(queue)
            self._free_qids.append(queue.qid)

    def adopt(self, queue: LoopQueue) -> None:
        """On the owner's loop: from here on it is used."""
        if queue.loop in self.hot:
            return
        if queue.closed:
            raise self._controller._not_here()  # handed over before its loop ran
        queue.hot.hold(bool(self._holds))
        self.listen(queue)
        queue.hot.bind(queue.loop, loop_internals.shows_thread(queue.loop))
        self.hot[queue.loop] = queue.hot

    def listen(self, queue: LoopQueue) -> None:
        """Takes the queue pair's interrupts, on its loop."""
        if queue is self._admin or queue.event_fd != self.admin.event_fd:
            queue.listen()
        else:
            self.admin.listen(queue)

    async def _take_from_closed_loops(self) -> None:
        """Queue pairs whose loop has ended are deleted, so that their ids can be used again."""
        for loop, queue in list(self.io.items()):
            if not loop.is_closed():
                continue
            del self.io[loop]
            self.hot.pop(loop, None)
            self.unsettled.append(queue)
            try:
                # A successor must not rely on a queue pair that the controller may no longer know.
                self._controller._changed(strictly=True)
                await self.maker.delete(queue)
            except (CommandError, OutOfDmaMemory) as error:
                # It may be half deleted: neither used nor deleted again before a reset.
                log.warning("%s: queue %d of an ended loop: %s", self._controller.uri, queue.qid, error)
                continue
            # Its commands have ended with it: Delete I/O Submission Queue completes after they have
            # completed or were aborted (5.7).
            self._settle(queue)

    async def for_this_loop(self) -> LoopQueue | None:
        """The running loop's own queue pair, made at first use; None if it has to share a
        neighbour's.
        """
        loop = asyncio.get_running_loop()
        queue = self.io.get(loop)
        while queue is None and (waiting := self._making.get(loop)) is not None:
            # One of this loop's tasks has requested it already.
            ready = loop.create_future()
            waiting.append(ready)
            await ready
            queue = self.io.get(loop)
        if queue is None:
            neighbour = self.neighbours.get(loop)
            if neighbour is not None and neighbour.loop.is_running() and not self._has_more():
                return None
            worker = threading.current_thread().name
            waiting = self._making[loop] = []
            try:
                # It finishes even if the caller is cancelled: otherwise half a queue pair would
                # stay in the controller.
                queue = await self._spare_at_once(loop, worker)
                if queue is None:
                    queue = await self._controller._at_home(lambda: finish(lambda: self.create(loop, worker)))
            except (CommandError, OutOfDmaMemory) as error:
                if not self.io:
                    raise
                log.warning("%s: no queue pair can be created for another loop: %s", self._controller.uri, error)
            finally:
                del self._making[loop]
                for ready in waiting:
                    if not ready.done():
                        ready.set_result(None)
        if queue is None:
            self._share(loop)
            return None
        self.neighbours.pop(loop, None)
        self.adopt(queue)
        return queue

    def _has_more(self) -> bool:
        """Could there be a queue pair for one more loop?"""
        return bool(self._free_qids) or any(loop.is_closed() for loop in list(self.io))

    def _share(self, loop: asyncio.AbstractEventLoop) -> None:
        for ended in [one for one in self.neighbours if one.is_closed()]:
            del self.neighbours[ended]
        for queue in list(self.io.values()):
            if queue.loop.is_running():
                self.shared += loop not in self.neighbours
                self.neighbours[loop] = queue
                return
        raise QueueShutdown(
            f"{self._controller.uri}: its {self.limit} queue pairs belong to loops that are not running"
        )

    # -- reset and end -----------------------------------------------------------------------------

    async def restart(self, retryable: frozenset[int], error: NvmeError) -> None:
        """The controller is disabled: rings to their start, retryable commands posted again (and
        not rung), others fail with `error`.
        """
        limit = self._controller.options.retries

        def restart(queue: LoopQueue) -> None:
            queue.hot.restart(retryable if queue.qid else frozenset(), error, limit)

        await self.on_each(restart)
        self._settle(*self.unsettled)

    async def create_all(self, degraded: Degraded) -> None:
        """Creates the I/O queues (again) at the enabled controller; their doorbells stay silent.
        One is required, the home loop's if there is none yet. A refused one is given up, and its
        loop shares another's.
        """
        controller = self._controller
        failure: NvmeError | None = None
        made = 0
        for queue in self.io_queues():
            if queue.qid > self.limit:
                failure = ControllerError(f"{controller.uri}: {self.limit} I/O queue pairs remain after the reset")
                await self._give_up(queue, failure, known=False)
                continue
            try:
                await patiently(lambda queue=queue: self.maker.create(queue))  # type: ignore[misc]
                made += 1
            except ControllerTimeout as error:
                if not made:
                    raise
                failure = error
                await self._give_up(queue, error, known=True)
            except CommandError as error:
                failure = error
                await self._give_up(queue, error, known=False)
        if failure is None:
            degraded.clear("I/O queue pairs")
        else:
            degraded.add("I/O queue pairs", failure, "event loops share the remaining ones")
        if not made:
            first = await self._create(controller.loop)
            if first is None:
                raise failure or ControllerError(f"{controller.uri}: no I/O queue pair is available")
            self.io[controller.loop] = first
            first.worker = threading.current_thread().name
            self.adopt(first)
            first.silence(True)

    async def _give_up(self, queue: LoopQueue, error: NvmeError, *, known: bool) -> None:
        """A loop loses its queue pair; its in-flight commands end with `error`, and new ones go
        through another loop's. known: the controller may know it, so its memory stays.
        """
        controller = self._controller
        for loop in [loop for loop, its in self.io.items() if its is queue]:
            del self.io[loop]
            self.hot.pop(loop, None)
        if queue in self.spare:
            self.spare.remove(queue)

        def end() -> None:
            queue.hot.refuse(error)
            queue.hot.fail_waiters(error)
            queue.stop_listening()
            if not known:
                queue.hot.release_all()

        await controller._on_owner(queue, end)
        if known:
            self.unsettled.append(queue)
            return
        controller._changed()
        self.maker.forget(queue)
        if queue.qid <= self.limit:
            self._free_qids.append(queue.qid)

    async def delete_all(self) -> None:
        """Deletes the I/O queues from the controller; their memory stays until release()."""
        for queue in self.io_queues():
            await self.maker.delete(queue)

    async def release(self, reason: NvmeError) -> None:
        """Releases everything. The controller can't access memory any more: it was reset, or has
        no mappings.
        """
        controller = self._controller
        for queue in [*self.all(), *self.unsettled]:

            def end(queue: LoopQueue = queue) -> None:
                queue.hot.refuse(reason)
                queue.hot.silence(True)
                queue.hot.fail_waiters(reason)
                queue.hot.release_all()
                self.maker.forget(queue)

            try:
                await controller._on_owner(queue, end)
            except ControllerTimeout as error:
                # Its thread does so itself once it runs; the memory stays until then.
                log.warning("%s", error)
                queue.loop.call_soon_threadsafe(end)
        self.forget_all()

    def forget_all(self) -> None:
        super().forget_all()
        self.neighbours.clear()

    def inspect(self) -> dict[str, Any]:
        queues = self.all()
        return {
            "admin_queue": queues[0].inspect() if queues else None,
            "io_queues": [queue.inspect() for queue in queues[1:]],
            "spare_io_queues": len(self.spare),
            "unsettled_io_queues": sorted(queue.qid for queue in self.unsettled),
            "held": sorted(self._holds),
            "io_queue_limit": self.limit,
            "loops_sharing_a_queue": self.shared,
            "errors": dict(self.maker.errors),
            "stray_completions": self.maker.strays,
        }
