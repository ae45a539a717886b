"""The queue pairs of one controller: which loop has which, how they come and go, and how they get
through a reset or a change of process.

A queue pair belongs to the thread of its loop. Whatever is done to one from the controller's home
goes through Controller._on_owner().
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from nvme_async.device.quirks import Quirk
from nvme_async.dma import DmaBuffer
from nvme_async.driver.pcie.lending import Lender
from nvme_async.driver.pcie.loop_queue import LoopQueue
from nvme_async.driver.pcie.queue_creation import PciePieces, QueueMaker
from nvme_async.driver.pcie.registers import doorbell_pairs
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
from nvme_async.native import _hotpath
from nvme_async.runtime import loop_internals
from nvme_async.runtime.tasks import finish
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature

log = logging.getLogger("nvme_async")


class QueueSet:
    """Attributes:
    admin: the admin queue pair, on the controller's home loop.
    io: {loop: LoopQueue}; hot: {loop: native queue pair}, what namespaces look up for each I/O.
    shared: how many loops use a neighbour's queue pair because the controller had no more.
    limit: I/O queue pairs that the controller granted.
    spare: a predecessor's I/O queue pairs that no loop of this process has taken yet. The home loop
        looks after them.
    unsettled: being created or deleted: the controller may know them, so their memory stays until
        that is certain, or it was reset.
    inherited: {qid: saved description} of those that a predecessor left so.
    lender: who lends queue pairs to other processes, or None; lent: their ids.
    maker: makes them.
    """

    def __init__(self, controller: Owner, transport: Any, maker: Any = None) -> None:
        """maker: what makes queue pairs that are not PCIe's (driver/tcp/queues.py)."""
        self._controller = controller
        self._transport: PciePieces = transport
        self.maker: QueueMaker = maker or QueueMaker(controller, transport)
        self.io: dict[asyncio.AbstractEventLoop, LoopQueue] = {}
        self.hot: dict[asyncio.AbstractEventLoop, _hotpath.QueuePair] = {}
        self.neighbours: dict[asyncio.AbstractEventLoop, LoopQueue] = {}
        self.shared = 0
        self.limit = 0
        self.spare: list[LoopQueue] = []
        self.unsettled: list[LoopQueue] = []
        self.inherited: dict[int, Any] = {}
        self.lender: Lender | None = None
        self.lent: set[int] = set()
        self._admin: LoopQueue | None = None
        self._free_qids: list[int] = []
        self._assumed = False  # the limit is a guess
        self._holds: set[str] = set()
        self._creating = asyncio.Lock()
        self._making: dict[
            asyncio.AbstractEventLoop, asyncio.Future[None]
        ] = {}  # until a task of that loop has what it asked for

    @property
    def admin(self) -> LoopQueue:
        if self._admin is None:
            raise self._controller._not_here()
        return self._admin

    def all(self) -> list[LoopQueue]:
        """Admin first."""
        return ([self._admin] if self._admin is not None else []) + self.io_queues()

    def with_commands(self) -> list[LoopQueue]:
        """All I/O queue pairs that may have commands in flight."""
        return [*self.io_queues(), *(queue for queue in self.unsettled if queue.qid)]

    def io_queues(self) -> list[LoopQueue]:
        """Those that loops use, then the spare ones."""
        return list(self.io.values()) + self.spare

    # -- coming and going --------------------------------------------------------------------------

    def prepare_admin(self) -> LoopQueue:
        """The admin queue, rings at their start, listening. The controller is disabled."""
        if self._admin is None:
            self._admin = self.maker.make(0, self._controller.options.admin_entries, self._controller.loop)
            self._admin.listen()
        return self._admin

    @property
    def _wanted(self) -> int:
        """With a single vector the only I/O queue shares it with the admin queue."""
        if Quirk.QUEUE_DEPTH_ONE in self._controller.quirks:
            return 1
        transport = self._transport
        doorbells = doorbell_pairs(transport.cap, transport.device.bar0_nbytes) - 1
        return min(self._controller.options.io_queues, max(1, len(self.maker.event_fds) - 1), max(1, doorbells))

    async def negotiate(self) -> None:
        """Number of Queues (5.27.1.5). After each reset: it may be another."""
        wanted = self._wanted
        feature = commands.set_features(Feature.NUMBER_OF_QUEUES, (wanted - 1) << 16 | (wanted - 1))
        granted = (await self._controller._submit_admin(feature)).dw0
        self._grant(min(wanted, (granted & 0xFFFF) + 1, (granted >> 16) + 1))
        self._assumed = False

    def assume(self) -> str:
        """How many there may be is unknown: the first that is refused is one too many."""
        self._grant(self._wanted)
        self._assumed = True
        return f"up to {self.limit} queue pairs are tried"

    def _grant(self, limit: int) -> None:
        self.limit = limit
        taken = {queue.qid for queue in [*self.io_queues(), *self.unsettled]} | set(self.inherited) | self.lent
        self._free_qids = [qid for qid in range(limit, 0, -1) if qid not in taken]

    def lend(self) -> int | None:
        """The id of a queue pair with an interrupt vector of its own, for someone else to create; None if there is
        none left. Back by return_lent().
        """
        own = [qid for qid in self._free_qids if 0 < qid < len(self.maker.event_fds)]
        # The home loop has one, and another loop of this process may still want one.
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
        """The controller knows no queue of this id, and nobody else rings its doorbells."""
        self.lent.discard(qid)
        if qid <= self.limit and qid not in self._free_qids:
            self._free_qids.append(qid)

    def _refused(self) -> None:
        """The controller didn't take one more queue pair. If the number was a guess, it is known
        now.
        """
        if self._assumed:
            self._free_qids.clear()
            self.limit = max(1, len(self.io_queues()))

    async def create(self, loop: asyncio.AbstractEventLoop, worker: str = "") -> LoopQueue | None:
        """A queue pair for `loop`, made on the home loop. None when the controller has no more. The
        owner's loop has to call adopt().

        worker: name of the loop's thread. Not to be cancelled half-way: see finish(). Should a
            reset come in between, it is made once more.
        """
        controller = self._controller
        async with self._creating:
            while True:
                await controller._until_ready()
                if loop in self.io:
                    return self.io[loop]
                resets = controller.resets
                try:
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

    async def _create(self, loop: asyncio.AbstractEventLoop) -> LoopQueue | None:
        await self._take_from_closed_loops()
        if not self._free_qids:
            return None
        controller = self._controller
        qid = self._free_qids.pop()
        entries = min(controller.options.queue_entries, self._transport.cap.mqes + 1, 4096)
        if Quirk.QUEUE_DEPTH_ONE in controller.quirks:
            entries = 2  # one is always free: one command
        try:
            assert self._transport.memory is not None
            await self._transport.memory.make_room(self.maker.memory_for(qid, entries))
            queue = self.maker.make(qid, entries, loop)
        except BaseException:
            self._free_qids.append(qid)
            raise
        self.unsettled.append(queue)
        try:
            # Known to a successor before the controller knows it.
            controller._changed(strictly=True)
            await self.maker.tell(queue)
        except (CommandError, OutOfDmaMemory) as error:
            self._settle(queue)
            if isinstance(error, CommandError):
                self._refused()
            raise
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
        # Before the memory goes: what the saved state tells of has to be there.
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
            raise self._controller._not_here()  # handed over before its loop came round
        queue.hot.hold(bool(self._holds))
        self.listen(queue)
        queue.hot.bind(queue.loop, loop_internals.shows_thread(queue.loop))
        self.hot[queue.loop] = queue.hot

    def listen(self, queue: LoopQueue) -> None:
        """Takes the queue pair's interrupts, on its loop."""
        if queue is self._admin or queue.event_fd != self.admin.event_fd:
            queue.listen()
            self._steer(queue)
        else:
            self.admin.listen(queue)

    def _steer(self, queue: LoopQueue) -> None:
        """Its interrupts go to the CPUs of the loop's thread, where that is bound to some. On the
        loop; the files that it takes are written in a thread.
        """
        cpus = os.sched_getaffinity(0)
        if not queue.interrupts or not queue.qid or len(cpus) >= (os.cpu_count() or 1):
            return
        device, vector = self._transport.device, queue.vector

        def steer() -> None:
            queue.cpus = sorted(cpus) if device.steer(vector, cpus) else None

        asyncio.get_running_loop().run_in_executor(None, steer)

    async def _take_from_closed_loops(self) -> None:
        """Queue pairs whose loop has ended are deleted, so that their ids can be used again."""
        for loop, queue in list(self.io.items()):
            if not loop.is_closed():
                continue
            del self.io[loop]
            self.hot.pop(loop, None)
            self.unsettled.append(queue)
            try:
                # A successor must not take for whole what the controller may know no more.
                self._controller._changed(strictly=True)
                await self.maker.delete(queue)
            except (CommandError, OutOfDmaMemory) as error:
                # Perhaps half of it is gone: neither used nor tried again before a reset.
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
        while queue is None and (making := self._making.get(loop)) is not None:
            # One of this loop's tasks asks for it already; a second trip to the home loop would
            # bring nothing but work.
            await asyncio.wait([making])
            queue = self.io.get(loop)
        if queue is None:
            neighbour = self.neighbours.get(loop)
            if neighbour is not None and neighbour.loop.is_running() and not self._has_more():
                return None
            worker = threading.current_thread().name
            made = self._making[loop] = loop.create_future()
            try:
                # To its end also if the caller is cancelled: a controller that was told of half a
                # queue pair is no use to anybody.
                queue = await self._controller._at_home(lambda: finish(lambda: self.create(loop, worker)))
            except (CommandError, OutOfDmaMemory) as error:
                if not self.io:
                    raise
                log.warning("%s: no queue pair for another loop: %s", self._controller.uri, error)
            finally:
                del self._making[loop]
                made.set_result(None)
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
        raise QueueShutdown(f"{self._controller.uri}: its {self.limit} queue pairs are taken, by loops that don't run")

    # -- a predecessor's ---------------------------------------------------------------------------

    def begin_restored(self, *, limit: int, max_transfer: int, used: list[int], shadow: DmaBuffer | None) -> None:
        """Instead of negotiate(): what the controller granted the predecessor. New I/O is held for
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
        """The home loop takes its queue pair: the one of a thread of the same name, else the first."""
        if self.spare:
            worker = threading.current_thread().name
            queue = min(self.spare, key=lambda queue: queue.worker != worker)
            self.spare.remove(queue)
            queue.worker = worker
            queue.hot.bind(loop, loop_internals.shows_thread(loop))
            self.io[loop], self.hot[loop] = queue, queue.hot

    def _take_spare(self, loop: asyncio.AbstractEventLoop, worker: str) -> LoopQueue | None:
        """A predecessor's queue pair for `loop`, the one of a thread of the same name if there is
        one. Not while it has commands out: those are the home loop's to look after.
        """
        idle = [queue for queue in self.spare if not queue.hot.n_outstanding]
        if not idle:
            return None
        spare = min(idle, key=lambda queue: queue.worker != worker)
        self.spare.remove(spare)
        spare.deaf()
        _hotpath.rebind(spare.hot, loop.create_future, loop.call_soon, loop_internals.ready_callbacks(loop))
        return self.maker.face(spare.hot, loop, spare.vector, spare.interrupts)

    def give_back(self, qid: int) -> None:
        """The controller knows nothing of this inherited queue pair any more, and its memory is
        free.
        """
        if self.inherited.pop(qid, None) is not None:
            self._free_qids.append(qid)

    # -- all of them -------------------------------------------------------------------------------

    async def on_each(self, what: Callable[[LoopQueue], object], *, admin: bool = True) -> None:
        """what(queue) on every owner's thread, at the same time. ControllerTimeout when one of them
        is stuck.
        """
        queues = [queue for queue in self.all() if admin or queue.qid]
        results = await asyncio.gather(
            *(self._controller._on_owner(queue, lambda queue=queue: what(queue)) for queue in queues),  # type: ignore[misc]
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def refuse(self, error: NvmeError) -> None:
        """New I/O fails with `error`."""
        await self._tell(lambda hot: hot.refuse(error), admin=False)

    async def fail(self, error: NvmeError, *, admin: bool = True) -> None:
        """Everybody's wait ends with `error`; pages stay with the controller. admin: it is beyond
        help, so no doorbell is rung any more.
        """

        def tell(hot: _hotpath.QueuePair) -> None:
            hot.refuse(error)
            if admin:
                hot.silence(True)
            hot.fail_waiters(error)

        await self._tell(tell, admin=admin)
        if admin and self.lender is not None:
            await self.lender.fail(error)

    async def _tell(self, what: Callable[[_hotpath.QueuePair], None], *, admin: bool) -> None:
        """what(queue) on every owner's thread, at the same time: one that is stuck keeps no other
        from being told.
        """

        async def one(queue: LoopQueue) -> None:
            try:
                await self._controller._on_owner(queue, lambda: what(queue.hot))
            except ControllerTimeout as error:
                log.warning("%s", error)

        await asyncio.gather(*(one(queue) for queue in self.all() if admin or queue.qid))

    async def hold(self, reason: str) -> None:
        """New I/O waits, until unhold() or lift() for each reason that there is."""
        self._holds.add(reason)
        await self.on_each(lambda queue: queue.hot.hold(True), admin=False)

    async def pause(self, paused: bool) -> None:
        """The controller does nothing for a while: what is out isn't late, and new I/O waits."""
        if paused:
            self._holds.add("paused")
        else:
            self._holds.discard("paused")

        def pause(queue: LoopQueue) -> None:
            queue.pause(paused)
            if queue.qid:
                queue.hot.hold(bool(self._holds))

        await self.on_each(pause)

    async def unhold(self, reason: str) -> None:
        """New I/O goes on, if nothing else holds it."""
        self._holds.discard(reason)
        await self.on_each(lambda queue: queue.hot.hold(bool(self._holds)), admin=False)

    def lift(self, reason: str) -> None:
        """unhold() without waiting for other loops to hear of it."""
        self._holds.discard(reason)
        for queue in self.io_queues():
            if queue.loop is self._controller.loop or not queue.loop.is_running():
                self._apply_holds(queue)
            else:
                queue.loop.call_soon_threadsafe(self._apply_holds, queue)

    def _apply_holds(self, queue: LoopQueue) -> None:
        if not queue.hot.closed:
            queue.hot.hold(bool(self._holds))

    @property
    def held(self) -> bool:
        """Does new I/O wait?"""
        return bool(self._holds)

    async def silence(self) -> None:
        """Before a reset: a controller that is disabled, or doesn't know a queue yet, must not hear
        doorbells.
        """
        if self.lender is not None:
            await self.lender.stop()
        await self.on_each(lambda queue: queue.silence(True))

    async def go_on(self, *, strictly: bool = False) -> None:
        """Geometries of namespaces were held, released or expired: every I/O queue pair looks again
        at what waits for that. From here on none sends what they forbid. strictly: ControllerTimeout
        if a queue pair's thread is stuck; else that is logged.
        """

        def go_on(hot: _hotpath.QueuePair) -> None:
            if not hot.closed:
                hot.go_on()

        if not strictly:
            await self._tell(go_on, admin=False)
            if self.lender is not None:
                await self.lender.unhold()
            return
        for queue in self.io_queues():
            await self._controller._on_owner(queue, lambda queue=queue: go_on(queue.hot))  # type: ignore[misc]

    async def drain(self, seconds: float, nsids: frozenset[int] | None = None) -> bool:
        """Waits until no I/O is out, of these namespaces or of any; False when that took too long."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        if nsids is not None and self.lender is not None and not await self.lender.hold(nsids, seconds):
            return False
        while any(queue.hot.outstanding_of(nsids) for queue in self.io_queues()):
            if loop.time() >= limit:
                return False
            for queue in self.io_queues():
                if not queue.loop.is_running():
                    queue.hot.reap()
            await asyncio.sleep(0.001)
        return True

    async def restart(self, retryable: frozenset[int], error: NvmeError) -> None:
        """The controller is disabled: rings to their start, retryable commands posted again (and
        not rung), others fail with `error`.
        """
        limit = self._controller.options.retries

        def restart(queue: LoopQueue) -> None:
            queue.hot.restart(retryable if queue.qid else frozenset(), error, limit)

        await self.on_each(restart)
        self._settle(*self.unsettled)
        if self.lender is not None:
            self.lender.disabled()

    async def create_all(self, degraded: Degraded) -> None:
        """The controller, which was enabled, learns of the I/O queues (again); their doorbells stay
        silent. One is required, the home loop's if there is none yet. What it doesn't take is given
        up, and its loop shares another's.
        """
        controller = self._controller
        failure: NvmeError | None = None
        made = 0
        for queue in self.io_queues():
            if queue.qid > self.limit:
                failure = ControllerError(f"{controller.uri}: {self.limit} I/O queue pairs are left after the reset")
                await self._give_up(queue, failure, known=False)
                continue
            try:
                await patiently(lambda queue=queue: self.maker.tell(queue))  # type: ignore[misc]
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
            degraded.add("I/O queue pairs", failure, "loops share those that are left")
        if not made:
            first = await self._create(controller.loop)
            if first is None:
                raise failure or ControllerError(f"{controller.uri}: no I/O queue pair is to be had")
            self.io[controller.loop] = first
            first.worker = threading.current_thread().name
            self.adopt(first)
            first.silence(True)

    async def _give_up(self, queue: LoopQueue, error: NvmeError, *, known: bool) -> None:
        """A loop loses its queue pair; commands of its that were out end with `error`, and new ones
        go through a neighbour's. known: the controller may know it, so that its memory stays.
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
            queue.deaf()
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

    async def go(self) -> None:
        """What is in the I/O rings goes to the controller, which knows them; new I/O too, if nothing
        else holds it.
        """
        self._holds.discard("reset")

        def go(queue: LoopQueue) -> None:
            queue.silence(False)
            queue.hot.hold(bool(self._holds))

        await self.on_each(go, admin=False)
        if self.lender is not None:
            await self.lender.go()

    async def delete_all(self) -> None:
        """Deletes the I/O queues from the controller; their memory stays until release()."""
        if self.lender is not None:
            await self.lender.take_back()
        for queue in self.io_queues():
            await self.maker.delete(queue)

    async def release(self, reason: NvmeError) -> None:
        """Everything goes back to its owner. The controller can't reach memory any more: reset, or
        without mappings.
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
                # Its thread does so itself, once it comes round; the memory stays until then.
                log.warning("%s", error)
                queue.loop.call_soon_threadsafe(end)
        if self.lender is not None:
            await self.lender.release()
        self.forget_all()
        self.maker.free_shadow()

    def forget_all(self) -> None:
        """No loop has a queue pair any more. They are closed."""
        self.unsettled.clear()
        self.io.clear()
        self.hot.clear()
        self.spare.clear()
        self.neighbours.clear()
        self.inherited.clear()
        self._admin = None
        lender, self.lender = self.lender, None
        if lender is not None:
            lender.forget()

    def uses(self, iova: int, nbytes: int) -> bool:
        """Does a command that is out move data within these device addresses?"""
        return any(queue.hot.uses(iova, nbytes) for queue in [*self.all(), *self.unsettled])

    def refuse_in_child(self, error: NvmeError) -> None:
        """In a forked child: the rings are the parent's."""
        for queue in self.all():
            queue.hot.refuse(error)

    def inspect(self) -> dict[str, Any]:
        queues = self.all()
        return {
            "admin_queue": queues[0].inspect() if queues else None,
            "io_queues": [queue.inspect() for queue in queues[1:]],
            "spare_io_queues": len(self.spare),
            "unsettled_io_queues": sorted([*(queue.qid for queue in self.unsettled), *self.inherited]),
            "held": sorted(self._holds),
            "io_queue_limit": self.limit,
            "lent_io_queues": sorted(self.lent),
            "leases": self.lender.inspect() if self.lender is not None else [],
            "loops_sharing_a_queue": self.shared,
            "vectors": len(self.maker.event_fds),
            "errors": dict(self.maker.errors),
            "stray_completions": self.maker.strays,
        }
