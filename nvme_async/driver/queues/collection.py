"""The queue pairs of a controller, and operations on all of them: hold, refuse, fail, silence,
drain, restart.

A queue pair belongs to the thread of its loop. The controller's home loop accesses one only through
Controller._on_owner().
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.transport import Owner
from nvme_async.errors import ControllerTimeout, NvmeError
from nvme_async.native import _hotpath

log: logging.Logger = logging.getLogger("nvme_async")


class QueueCollection:
    """Attributes:
    admin: the admin queue pair, on the controller's home loop.
    io: {loop: LoopQueue}; hot: {loop: native queue pair}, which namespaces look up for each I/O.
    spare: a predecessor's I/O queue pairs that no loop of this process has taken yet. The home loop
        handles them.
    unsettled: being created or deleted: the controller may know them, so their memory stays until
        that is certain, or it was reset.
    """

    def __init__(self, controller: Owner) -> None:
        self._controller = controller
        self.io: dict[asyncio.AbstractEventLoop, LoopQueue] = {}
        self.hot: dict[asyncio.AbstractEventLoop, _hotpath.QueuePair] = {}
        self.spare: list[LoopQueue] = []
        self.unsettled: list[LoopQueue] = []
        self._admin: LoopQueue | None = None
        self._holds: set[str] = set()

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

    # -- whether commands are sent -----------------------------------------------------------------

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
        await self._on_each_loop(lambda hot: hot.refuse(error), admin=False)

    async def fail(self, error: NvmeError, *, admin: bool = True) -> None:
        """All waits end with `error`; pages stay with the controller. admin: it has failed, so
        no doorbell is rung any more.
        """

        def end(hot: _hotpath.QueuePair) -> None:
            hot.refuse(error)
            if admin:
                hot.silence(True)
            hot.fail_waiters(error)

        await self._on_each_loop(end, admin=admin)

    async def _on_each_loop(self, what: Callable[[_hotpath.QueuePair], None], *, admin: bool) -> None:
        """what(queue) on every owner's thread, at the same time. One that is stuck is logged, and
        holds up no other.
        """

        async def one(queue: LoopQueue) -> None:
            try:
                await self._controller._on_owner(queue, lambda: what(queue.hot))
            except ControllerTimeout as error:
                log.warning("%s", error)

        await asyncio.gather(*(one(queue) for queue in self.all() if admin or queue.qid))

    async def hold(self, reason: str) -> None:
        """New I/O waits until unhold() or lift() was called for each reason."""
        self._holds.add(reason)
        await self.on_each(lambda queue: queue.hot.hold(True), admin=False)

    def holds_for(self, reason: str) -> bool:
        """Does new I/O wait for that reason?"""
        return reason in self._holds

    async def pause(self, paused: bool) -> None:
        """The controller pauses: commands in flight aren't late, and new I/O waits."""
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
        """New I/O continues, if nothing else holds it."""
        self._holds.discard(reason)
        await self.on_each(lambda queue: queue.hot.hold(bool(self._holds)), admin=False)

    def lift(self, reason: str) -> None:
        """unhold() without waiting for other loops."""
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
        """Before a reset: a controller that is disabled, or doesn't know a queue yet, must see
        no doorbell.
        """
        await self.on_each(lambda queue: queue.silence(True))

    async def go_on(self, *, strictly: bool = False) -> None:
        """Geometries of namespaces were held, released or expired: every I/O queue pair checks
        its waiting requests again. From now on none sends what they forbid. strictly:
        ControllerTimeout if a queue pair's thread is stuck; otherwise that is logged.
        """

        def go_on(hot: _hotpath.QueuePair) -> None:
            if not hot.closed:
                hot.go_on()

        if not strictly:
            await self._on_each_loop(go_on, admin=False)
            return
        for queue in self.io_queues():
            await self._controller._on_owner(queue, lambda queue=queue: go_on(queue.hot))  # type: ignore[misc]

    async def drain(self, seconds: float, nsids: frozenset[int] | None = None) -> bool:
        """Waits until no I/O is in flight, of these namespaces or of any; False if that took too
        long.
        """
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        while any(queue.hot.outstanding_of(nsids) for queue in self.io_queues()):
            if loop.time() >= limit:
                return False
            for queue in self.io_queues():
                if not queue.loop.is_running():
                    queue.hot.reap()
            await asyncio.sleep(0.001)
        return True

    async def go(self) -> None:
        """Sends the commands in the I/O rings to the controller, which knows the rings; new I/O
        too, if nothing else holds it.
        """
        self._holds.discard("reset")

        def go(queue: LoopQueue) -> None:
            queue.silence(False)
            queue.hot.hold(bool(self._holds))

        await self.on_each(go, admin=False)

    # -- the end -----------------------------------------------------------------------------------

    def forget_all(self) -> None:
        """No loop has a queue pair any more. They are closed."""
        self.unsettled.clear()
        self.io.clear()
        self.hot.clear()
        self.spare.clear()
        self._admin = None

    def uses(self, iova: int, nbytes: int) -> bool:
        """Does a command in flight transfer data within these device addresses?"""
        return any(queue.hot.uses(iova, nbytes) for queue in [*self.all(), *self.unsettled])

    def refuse_in_child(self, error: NvmeError) -> None:
        """In a forked child: the rings belong to the parent."""
        for queue in [*self.all(), *self.unsettled]:
            queue.hot.disown()
            queue.hot.refuse(error)
