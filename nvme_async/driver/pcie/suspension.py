"""Freezing the driver of a running controller, so that another process can continue with it.

    suspend   no new work; posted commands are rung; from then on this process doesn't touch the
              queues' memory, doorbells or interrupts
    resume    back to service
    release   another process has the controller: waiters end with HandedOver, and every object of
              this process that could touch the controller is dropped

Commands in flight are not waited for. On the controller's home loop, with its lock held from
suspend to resume or release.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from nvme_async.driver.controller import Controller
from nvme_async.driver.lifecycle import State
from nvme_async.driver.pcie.memory import let_go as let_go_of_pools
from nvme_async.driver.pcie.pooled_transport import pooled
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.errors import HandedOver, NvmeError, QueueShutdown
from nvme_async.native import _hotpath
from nvme_async.runtime import loops

log: logging.Logger = logging.getLogger("nvme_async")

_PATIENCE = 10.0
"""Seconds for another loop to do its part."""
_lent: list[Any] = []
"""Requests whose memory belongs to this process and that the controller may still access: kept
until the process ends.
"""


async def suspend(controller: Controller, record: Callable[[], None]) -> None:
    """Stops every queue pair, in its own thread if that is in the middle of something, and calls
    record() once all are frozen.

    If any of that fails, service has resumed when this raises.
    """
    transport = pooled(controller.transport)
    assert transport.memory is not None
    controller.lifecycle.to(State.SAVING)
    try:
        await controller.recovery.stop()  # the watchdog will find late commands again
        await _everywhere(controller, transport.queues.all(), LoopQueue.freeze, LoopQueue.freeze_from_afar)
        if controller.state is not State.SAVING:
            raise controller.failure or QueueShutdown(f"{controller.uri}: the controller is {controller.state}")
        record()
        for pool in transport.memory.pools:
            pool.pause()
        if not transport.passed_device.park(True, wait=False):
            await transport.call(lambda: transport.passed_device.park(True))
    except BaseException as error:
        log.warning("%s: saving failed, service continues: %r", controller.uri, error)
        await resume(controller)
        raise


async def _everywhere(
    controller: Controller,
    queues: Sequence[LoopQueue],
    function: Callable[[LoopQueue], None],
    from_afar: Callable[[LoopQueue], bool],
) -> None:
    """function(queue) for each in its own thread; one trip to each loop, the home loop's own at
    once. No trip for queues of other loops for which from_afar() does the same. The first
    exception is raised when all have been tried.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[LoopQueue]] = {}
    # A loop that is about to adopt its queue pair would add the reader that was removed from afar.
    adopted = pooled(controller.transport).queues.hot
    for queue in queues:
        here = queue.loop is controller.loop or not queue.loop.is_running()
        if here or adopted.get(queue.loop) is not queue.hot or not from_afar(queue):
            by_loop.setdefault(queue.loop, []).append(queue)
    errors: list[BaseException] = []

    def all_of(several: list[LoopQueue]) -> None:
        for queue in several:
            try:
                function(queue)
            except BaseException as error:
                errors.append(error)

    # The others set out first, and do their part while the home loop does its own.
    trips = [
        (several[0], loops.Trip(loop, lambda several=several: all_of(several)))  # type: ignore[misc]
        for loop, several in by_loop.items()
        if loop is not controller.loop and loop.is_running()
    ]
    for loop, several in by_loop.items():
        if loop is controller.loop or not loop.is_running():
            all_of(several)
    for queue, trip in trips:
        try:
            await trip.wait(_PATIENCE, controller._stuck(queue, _PATIENCE))
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


async def resume(controller: Controller) -> None:
    """Service continues where suspend() stopped it."""
    transport = pooled(controller.transport)
    queues = transport.queues
    transport.passed_device.park(False)
    for pool in transport.memory.pools if transport.memory is not None else ():
        pool.resume()

    def thaw(queue: LoopQueue) -> None:
        queue.thaw()
        queue.hot.hold(bool(queue.qid) and queues.held)

    for queue in queues.all():
        try:
            await controller._on_owner(queue, lambda queue=queue: thaw(queue))  # type: ignore[misc]
        except NvmeError as error:
            log.warning("%s: queue %d: %s", controller.uri, queue.qid, error)
            if queue.loop.is_running():
                # Its loop is stuck, and runs this when it continues.
                queue.loop.call_soon_threadsafe(thaw, queue)
    if controller.state is State.SAVING:
        controller.lifecycle.to(State.READY)
    controller._changed()


def release(controller: Controller, *, later: bool = False) -> Callable[[], None]:
    """Another process has the controller, or will have it: from now on no object of this process
    can touch the controller or the pool. What this returns ends waiters, and closes descriptors and
    memory, once. It is called in the event-loop iteration after the next, as a task that waits for
    this one comes first; later: the caller must call it, on the home loop.
    """
    controller.lifecycle.to(State.HANDED_OVER)
    sent = HandedOver(f"{controller.uri}: handed over to a successor, which gets the command's result", sent=True)
    unsent = HandedOver(f"{controller.uri}: handed over to a successor; the command was not sent")
    for namespace in controller.namespaces.values():
        namespace._set_gone(unsent)
    pooled(controller.transport).watch(None)
    controller.recovery.cancel()
    controller.listener.cancel()
    controller._cancel_background_work()
    controller.listener.end()
    finish = _Departure(controller, sent, unsent).finish
    if not later:
        controller.loop.call_soon(controller.loop.call_soon, finish)
    return finish


class _Departure:
    """What this process still has of a controller that another process drives.

    Each queue pair ends in the thread of its loop. That is not waited for: it is frozen, and
    touches nothing. The last one to end closes the pools.
    """

    def __init__(self, controller: Controller, sent: HandedOver, unsent: HandedOver) -> None:
        transport = pooled(controller.transport)
        memory, queues = transport.memory, transport.queues
        self._transport, self._home = transport, controller.loop
        self._sent, self._unsent = sent, unsent
        self._pools = memory.detach() if memory is not None else []
        self._adopted = dict(queues.hot)
        self._queues = queues.all()
        # No other loop knows these yet, or any more; they too keep the pool and the device open.
        self._half_made = list(queues.unsettled)
        self._visits: list[_LastVisit] = []
        self._lock = threading.Lock()
        self._finished = False
        self._to_end = 1  # the home loop's, and those of visits
        queues.forget_all()

    def finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        for queue in self._queues:
            if queue.loop is self._home or not queue.loop.is_running():
                self.end(queue)
                continue
            known = self._adopted.get(queue.loop) is queue.hot
            ended = known and queue.hand_over_from_afar(self._sent, self._unsent)
            if not ended or queue.listening:
                self._visits.append(_LastVisit(self, queue))
        for queue in self._half_made:
            self.end(queue)
        self._to_end += len(self._visits)
        self._transport.passed_device.detach()
        self._transport.queues.maker.close_vectors({visit.event_fd for visit in self._visits})
        while self._visits:
            visit = self._visits.pop()
            try:
                visit.queue.loop.call_soon_threadsafe(visit)
            except RuntimeError:  # the loop is closed
                pass
        self.has_ended()

    def end(self, queue: LoopQueue) -> None:
        """In the thread of its loop, or once that has ended."""
        for step in (queue.stop_listening, lambda: self._end_waiters(queue)):
            try:
                step()
            except Exception as error:
                log.warning("queue %d of a controller that was handed over: %r", queue.qid, error)

    def _end_waiters(self, queue: LoopQueue) -> None:
        _lent.extend(_hotpath.hand_over(queue.hot, self._sent, self._unsent))

    def has_ended(self) -> None:
        """Of one thread, all queue pairs. From any thread."""
        with self._lock:
            self._to_end -= 1
            if self._to_end:
                return
        let_go_of_pools(self._pools)


class _LastVisit:
    """Ends a handed-over queue pair in its loop's thread, and closes the interrupt's eventfd.
    Closed earlier, it would stay in what the loop polls, as the successor has it open. A loop that
    is closed before drops this object, which does the same.
    """

    def __init__(self, departure: _Departure, queue: LoopQueue) -> None:
        self.queue = queue
        self.event_fd: int = queue.event_fd if queue.listening else -1
        self._departure: _Departure | None = departure

    def __call__(self) -> None:
        departure, self._departure = self._departure, None
        if departure is None:
            return
        departure.end(self.queue)
        if self.event_fd >= 0:
            os.close(self.event_fd)
        departure.has_ended()

    def __del__(self) -> None:
        self()
