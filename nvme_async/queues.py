"""The queue pairs of one controller: which loop has which, how they are made, deleted, and brought through a reset.

A queue pair belongs to the thread of its loop. Whatever is done to one from the controller's home goes through Controller.on_owner().
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nvme_async import _hotpath
from nvme_async._tasks import finish
from nvme_async.dma import DmaBuffer
from nvme_async.errors import (
    CommandError,
    ControllerError,
    ControllerFatal,
    ControllerTimeout,
    NvmeError,
    OutOfDmaMemory,
    QueueShutdown,
)
from nvme_async.queue_pair import QueuePair, error_from
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature
from nvme_async.spec.registers import cq_doorbell, sq_doorbell
from nvme_async.spec.status import status_text

if TYPE_CHECKING:
    from nvme_async.controller import Controller

log = logging.getLogger("nvme_async")
PAGE = 4096
FIRST_DOORBELL = 0x1000


class QueueSet:
    """Attributes:
    admin: the admin queue pair, on the controller's home loop.
    io: {loop: QueuePair}; hot: {loop: native queue pair}, what namespaces look up for each I/O.
    shared: how many loops use a neighbour's queue pair because the controller had no more.
    errors: how many commands failed that somebody waited for, by status.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.io: dict[asyncio.AbstractEventLoop, QueuePair] = {}
        self.hot: dict[asyncio.AbstractEventLoop, _hotpath.QueuePair] = {}
        self.neighbours: dict[asyncio.AbstractEventLoop, QueuePair] = {}
        self.shared = 0
        self.errors: Counter[str] = Counter()
        self.max_transfer = PAGE
        self._admin: QueuePair | None = None
        self._limit = 0  # I/O queue pairs that the controller granted
        self._free_qids: list[int] = []
        self._event_fds: list[int] = []
        self._memory: dict[int, tuple[DmaBuffer, _hotpath.BounceCache]] = {}  # by qid
        self._doubtful: list[QueuePair] = []  # the controller may know them: their memory stays until it was reset
        self._shadow: DmaBuffer | None = None
        self._creating = asyncio.Lock()

    @property
    def admin(self) -> QueuePair:
        if self._admin is None:
            raise QueueShutdown(f"{self._controller.uri}: the controller is {self._controller.state}")
        return self._admin

    def all(self) -> list[QueuePair]:
        """Admin first."""
        return ([self._admin] if self._admin is not None else []) + list(self.io.values())

    # -- interrupts --------------------------------------------------------------------------------------------------------------------

    def open_vectors(self) -> None:
        """One eventfd for each vector that could be used: vector 0 is the admin queue's, the others the I/O queues'."""
        device = self._controller.device
        wanted = min(device.n_vectors, self._controller.options.io_queues + 1)
        self._event_fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(wanted)]
        device.set_interrupts(self._event_fds)

    def close_vectors(self) -> None:
        for fd in self._event_fds:
            os.close(fd)
        self._event_fds.clear()

    def _vector(self, qid: int) -> int:
        # With a single vector the only I/O queue shares it with the admin queue.
        return qid if qid < len(self._event_fds) else 0

    # -- making ------------------------------------------------------------------------------------------------------------------------

    def _make(self, qid: int, entries: int, loop: asyncio.AbstractEventLoop) -> QueuePair:
        """The host's side of a queue pair: memory, rings, doorbells. The controller doesn't know of it yet."""
        controller = self._controller
        options = controller.options
        assert controller.memory is not None
        max_transfer = self.max_transfer if qid else PAGE * 16
        # One id fewer than the ring could take: a successor may have to send a command of its own past a full set (keepalive).
        n_trackers = max(1, entries - 2)
        memory = controller.memory.alloc(
            _hotpath.queue_memory(entries, n_trackers, max_transfer), owner=f"queue {qid}", tag=qid
        )
        bounce = _hotpath.BounceCache(controller.memory.chunk_source(f"bounce {qid}"))
        vector = self._vector(qid)
        hot = None
        try:
            hot = _hotpath.QueuePair(
                memory,
                qid=qid,
                entries=entries,
                n_trackers=n_trackers,
                max_transfer=max_transfer,
                address_map=controller.memory.address_map,
                bounce=bounce,
                create_future=loop.create_future,
                call_soon=loop.call_soon,
                command_error=self._error,
                on_fault=self._on_fault,
                vector=vector,
                interrupts=self._interrupts(qid),
                ready=getattr(loop, "_ready", None),
            )
            self._connect_doorbells(hot)
        except BaseException:
            if hot is not None:
                hot.close()
            memory.free()
            raise
        hot.mode = _hotpath.MODES["interrupt" if qid == 0 else options.mode]
        hot.spin_ns = int(options.spin_us * 1000)
        if qid and options.latency:
            hot.record_latency(True)
        self._memory[qid] = (memory, bounce)
        return QueuePair(
            hot,
            loop,
            vector=vector,
            event_fd=self._event_fds[vector],
            timeout=options.command_timeout if qid else options.admin_timeout,
            on_timeout=controller.recovery.on_timeout,
            on_slow=controller.recovery.on_slow,
        )

    def _connect_doorbells(self, hot: _hotpath.QueuePair) -> None:
        device = self._controller.device
        doorbells = device.doorbells()
        dstrd = self._controller.cap.dstrd
        sq, cq = sq_doorbell(hot.qid, dstrd), cq_doorbell(hot.qid, dstrd)
        base = doorbells.offset - FIRST_DOORBELL
        hot.set_doorbells(
            doorbells.mmio,
            base + sq,
            base + cq,
            kick_fd=-1 if doorbells.kick_fd is None else doorbells.kick_fd,
            write32=device.write32,
            sq_register=sq,
            cq_register=cq,
        )

    def _interrupts(self, qid: int) -> bool:
        return qid == 0 or self._controller.options.mode != "poll"

    def _error(self, status: int, dw0: int, sqe: bytes, admin: bool, timed_out: bool) -> NvmeError:
        text = status_text(status >> 8 & 7, status & 0xFF)
        self.errors[f"{status & 0x7FF:#05x} {text}"] += 1
        return error_from(status, dw0, sqe, admin, timed_out)

    def _on_fault(self, text: str) -> None:
        controller = self._controller
        error = ControllerFatal(f"{controller.uri}: {text}")
        if not controller.loop.is_closed():
            controller.loop.call_soon_threadsafe(controller.fail, error)

    def prepare_admin(self) -> QueuePair:
        """The admin queue, rings at their start, listening. The controller is disabled."""
        if self._admin is None:
            self._admin = self._make(0, self._controller.options.admin_entries, self._controller.loop)
            self._admin.listen()
        return self._admin

    async def negotiate(self, *, again: bool = False) -> None:
        """Number of Queues (5.27.1.5), and Doorbell Buffer Config where offered (5.8)."""
        controller = self._controller
        options = controller.options
        vectors = len(self._event_fds)
        wanted = min(options.io_queues, max(1, vectors - 1))
        feature = commands.set_features(Feature.NUMBER_OF_QUEUES, (wanted - 1) << 16 | (wanted - 1))
        granted = (await self.admin.submit(feature)).dw0
        limit = min(wanted, (granted & 0xFFFF) + 1, (granted >> 16) + 1)
        if not again:
            self._limit = limit
            self._free_qids = list(range(limit, 0, -1))
        elif limit < len(self.io):
            raise ControllerFatal(f"{controller.uri}: {limit} queues after the reset, {len(self.io)} are needed")
        await controller.listener.enable()
        if options.shadow_doorbells and controller.identify.oacs & 1 << 8:
            await self._configure_shadow()

    async def _configure_shadow(self) -> None:
        memory = self._controller.memory
        assert memory is not None
        if self._shadow is None:
            self._shadow = memory.alloc(2 * PAGE, owner="shadow doorbells")
        try:
            await self.admin.submit(commands.doorbell_buffer_config(self._shadow.iova, self._shadow.iova + PAGE))
        except CommandError as error:
            log.warning("%s: Doorbell Buffer Config refused: %s", self._controller.uri, error)
            for queue in self.io.values():
                await self._controller.on_owner(queue, queue.hot.drop_shadow_doorbells)
            self._shadow.free()
            self._shadow = None

    async def create(self, loop: asyncio.AbstractEventLoop) -> QueuePair | None:
        """A queue pair for `loop`, made on the home loop. None when the controller has no more. The owner's loop has to call adopt().

        Not to be cancelled half-way: see finish(). Should a reset come in between, it is made once more.
        """
        controller = self._controller
        async with self._creating:
            while True:
                await controller.until_ready()
                if loop in self.io:
                    return self.io[loop]
                resets = controller.resets
                try:
                    queue = await self._create(loop)
                except NvmeError:
                    if controller.resets != resets:
                        continue
                    raise
                break
            if queue is not None:
                self.io[loop] = queue
                if loop is controller.loop:
                    self.adopt(queue)
            return queue

    async def _create(self, loop: asyncio.AbstractEventLoop) -> QueuePair | None:
        await self._take_from_closed_loops()
        if not self._free_qids:
            return None
        controller = self._controller
        qid = self._free_qids.pop()
        entries = min(controller.options.queue_entries, controller.cap.mqes + 1, 4096)
        try:
            queue = self._make(qid, entries, loop)
        except BaseException:
            self._free_qids.append(qid)
            raise
        self._doubtful.append(queue)
        try:
            await self._tell_controller(queue)
        except CommandError:
            self._clear_doubtful(queue)
            raise
        if queue not in self._doubtful:
            raise ControllerError(f"{controller.uri}: the controller was reset while queue {qid} was created")
        self._doubtful.remove(queue)
        return queue

    def _clear_doubtful(self, *queues: QueuePair) -> None:
        """The controller knows none of these queues for certain: neither id nor vector nor memory is lost."""
        for queue in queues:
            if queue in self._doubtful:
                self._doubtful.remove(queue)
                qid = queue.qid
                self._forget(qid, queue)
                self._free_qids.append(qid)

    def adopt(self, queue: QueuePair) -> None:
        """On the owner's loop: from here on it is used."""
        if queue.loop in self.hot:
            return
        if queue.event_fd == self.admin.event_fd:
            if queue.loop is self.admin.loop:
                self.admin.listen(queue)
            else:
                # One vector for two loops: the home loop takes the interrupt and passes it on.
                self.admin.listen(_Relay(queue))  # type: ignore[arg-type]
        else:
            queue.listen()
        queue.hot.bind(queue.loop)
        self.hot[queue.loop] = queue.hot

    async def _tell_controller(self, queue: QueuePair) -> None:
        """Create I/O Completion Queue, then Create I/O Submission Queue (5.4, 5.5)."""
        hot = queue.hot
        create_cq = commands.create_io_cq(
            hot.qid, hot.entries, hot.cq_iova, queue.vector, interrupts=self._interrupts(hot.qid)
        )
        create_sq = commands.create_io_sq(hot.qid, hot.entries, hot.sq_iova, hot.qid)
        if self._shadow is not None:
            dstrd = self._controller.cap.dstrd
            sq, cq = sq_doorbell(hot.qid, dstrd) - FIRST_DOORBELL, cq_doorbell(hot.qid, dstrd) - FIRST_DOORBELL
            if cq + 4 <= PAGE:
                hot.set_shadow_doorbells(self._shadow, sq, cq, PAGE)
        await self.admin.submit(create_cq)
        try:
            await self.admin.submit(create_sq)
        except CommandError:
            try:
                await self.admin.submit(commands.delete_io_cq(hot.qid))
            except CommandError:
                pass
            raise

    def _forget(self, qid: int, queue: QueuePair) -> None:
        queue.close()
        memory, bounce = self._memory.pop(qid, (None, None))
        if bounce is not None:
            bounce.close()
        if memory is not None:
            memory.free()

    async def _take_from_closed_loops(self) -> None:
        """Queue pairs whose loop has ended are deleted, so that their ids can be used again."""
        for loop, queue in list(self.io.items()):
            if not loop.is_closed():
                continue
            try:
                await self._delete(queue)
            except CommandError as error:
                log.warning("%s: queue %d of an ended loop: %s", self._controller.uri, queue.qid, error)
                continue
            # Its commands have ended with it: Delete I/O Submission Queue completes after they have completed or were aborted (5.7).
            if self.io.pop(loop, None) is None:
                continue
            self.hot.pop(loop, None)
            queue.hot.release_all()
            qid = queue.qid
            self._forget(qid, queue)
            self._free_qids.append(qid)

    async def for_this_loop(self) -> QueuePair | None:
        """The running loop's own queue pair, made at first use; None if it has to share a neighbour's."""
        loop = asyncio.get_running_loop()
        queue = self.io.get(loop)
        if queue is None:
            neighbour = self.neighbours.get(loop)
            if neighbour is not None and neighbour.loop.is_running():
                return None
            try:
                # To its end also if the caller is cancelled: a controller that was told of half a queue pair is no use to anybody.
                queue = await self._controller.at_home(lambda: finish(lambda: self.create(loop)))
            except (CommandError, OutOfDmaMemory) as error:
                if not self.io:
                    raise
                log.warning("%s: no queue pair for another loop: %s", self._controller.uri, error)
        if queue is None:
            self._share(loop)
            return None
        self.adopt(queue)
        return queue

    def _share(self, loop: asyncio.AbstractEventLoop) -> None:
        for ended in [one for one in self.neighbours if one.is_closed()]:
            del self.neighbours[ended]
        for queue in list(self.io.values()):
            if queue.loop.is_running():
                self.shared += loop not in self.neighbours
                self.neighbours[loop] = queue
                return
        raise QueueShutdown(f"{self._controller.uri}: its {self._limit} queue pairs are taken, by loops that don't run")

    # -- all of them -------------------------------------------------------------------------------------------------------------------

    async def _each(self, action: str, *arguments: Any, admin: bool = True) -> None:
        controller = self._controller
        for queue in self.all():
            if admin or queue.qid:
                await controller.on_owner(queue, lambda q=queue: getattr(q.hot, action)(*arguments))  # type: ignore[misc]

    async def refuse(self, error: NvmeError) -> None:
        """New I/O fails with `error`."""
        await self._tell(lambda hot: hot.refuse(error), admin=False)

    async def fail(self, error: NvmeError, *, admin: bool = True) -> None:
        """Everybody's wait ends with `error`; pages stay with the controller. admin: it is beyond help, so no doorbell is rung any more."""

        def tell(hot: _hotpath.QueuePair) -> None:
            hot.refuse(error)
            if admin:
                hot.silence(True)
            hot.fail_waiters(error)

        await self._tell(tell, admin=admin)

    async def _tell(self, what: Callable[[_hotpath.QueuePair], None], *, admin: bool) -> None:
        """what(queue) on every owner's thread, at the same time: one that is stuck keeps no other from being told."""

        async def one(queue: QueuePair) -> None:
            try:
                await self._controller.on_owner(queue, lambda: what(queue.hot))
            except ControllerTimeout as error:
                log.warning("%s", error)

        await asyncio.gather(*(one(queue) for queue in self.all() if admin or queue.qid))

    async def hold(self, held: bool) -> None:
        """New I/O waits, or goes on."""
        await self._each("hold", held, admin=False)

    async def silence(self) -> None:
        """Before a reset: a controller that is disabled, or doesn't know a queue yet, must not hear doorbells."""
        await self._each("silence", True)

    async def drain(self, seconds: float) -> bool:
        """Waits until no I/O is out; False when that took too long."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        while any(queue.hot.n_outstanding for queue in self.io.values()):
            if loop.time() >= limit:
                return False
            for queue in self.io.values():
                if not queue.loop.is_running():
                    queue.hot.reap()
            await asyncio.sleep(0.001)
        return True

    async def restart(self, retryable: frozenset[int], error: NvmeError) -> None:
        """The controller is disabled: rings to their start, retryable commands posted again (and not rung), others fail with `error`."""
        controller = self._controller
        limit = controller.options.retries
        for queue in self.all():
            opcodes = retryable if queue.qid else frozenset()
            await controller.on_owner(queue, lambda q=queue, o=opcodes: q.hot.restart(o, error, limit))  # type: ignore[misc]
        self._clear_doubtful(*self._doubtful)

    async def recreate_all(self) -> None:
        """After a reset: the controller learns of the I/O queues again, and of what is in their rings."""
        for queue in list(self.io.values()):
            await self._tell_controller(queue)
            await self._controller.on_owner(queue, lambda q=queue: q.hot.silence(False))  # type: ignore[misc]

    async def _delete(self, queue: QueuePair) -> None:
        """Submission queue first (3.3.1.3): a completion queue with a user can't be deleted."""
        await self.admin.submit(commands.delete_io_sq(queue.qid))
        await self.admin.submit(commands.delete_io_cq(queue.qid))

    async def delete_all(self) -> None:
        """Deletes the I/O queues from the controller; their memory stays until release()."""
        for queue in list(self.io.values()):
            await self._delete(queue)

    async def release(self, reason: NvmeError) -> None:
        """Everything goes back to its owner. The controller can't reach memory any more: reset, or without mappings."""
        controller = self._controller
        for queue in [*self.all(), *self._doubtful]:

            def end(queue: QueuePair = queue) -> None:
                queue.hot.refuse(reason)
                queue.hot.silence(True)
                queue.hot.fail_waiters(reason)
                queue.hot.release_all()
                self._forget(queue.qid, queue)

            try:
                await controller.on_owner(queue, end)
            except ControllerTimeout as error:
                # Its thread does so itself, once it comes round; the memory stays until then.
                log.warning("%s", error)
                queue.loop.call_soon_threadsafe(end)
        self._doubtful.clear()
        self.io.clear()
        self.hot.clear()
        self.neighbours.clear()
        self._admin = None
        if self._shadow is not None:
            self._shadow.free()
            self._shadow = None

    def uses(self, iova: int, nbytes: int) -> bool:
        """Does a command that is out move data within these device addresses?"""
        return any(queue.hot.uses(iova, nbytes) for queue in self.all())

    def inspect(self) -> dict[str, Any]:
        queues = self.all()
        return {
            "admin_queue": queues[0].inspect() if queues else None,
            "io_queues": [queue.inspect() for queue in queues[1:]],
            "io_queue_limit": self._limit,
            "loops_sharing_a_queue": self.shared,
            "vectors": len(self._event_fds),
            "errors": dict(self.errors),
        }


class _Relay:
    """Passes an interrupt on to a queue pair of another loop."""

    def __init__(self, queue: QueuePair) -> None:
        self._queue = queue
        self.hot = self

    def more(self) -> None:
        if not self._queue.loop.is_closed():
            self._queue.loop.call_soon_threadsafe(self._queue.hot.more)
