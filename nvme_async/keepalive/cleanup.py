"""A successor's cleanup while it already serves: the drain, half-made queue pairs, the
predecessor's mappings, memory without an owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from nvme_async.dma import Pool, Slot
from nvme_async.dma.manager import DmaClient
from nvme_async.driver.controller import Controller
from nvme_async.driver.pcie.memory import ROOM
from nvme_async.driver.pcie.pooled_transport import pooled
from nvme_async.errors import CommandError, NvmeError
from nvme_async.keepalive import manifest
from nvme_async.keepalive.adopted import AdoptedCommands
from nvme_async.keepalive.state import QueueState
from nvme_async.runtime.tasks import in_thread
from nvme_async.spec import commands

log: logging.Logger = logging.getLogger("nvme_async")

AFTER = 0.02
"""Seconds from the end of the drain to all that can wait: callers' I/O comes first."""
_FIRST_LOOK = 0.0005
_LAST_LOOK = 0.05


class Left(Protocol):
    """The part of a saved state that the cleanup needs: all queue pairs; those half made or half
    deleted.
    """

    @property
    def queues(self) -> Sequence[QueueState]: ...
    @property
    def unsettled(self) -> Sequence[QueueState]: ...


class PredecessorCleanup:
    """The cleanup of one restored controller, on its home loop; ends by itself, or with
    stop().
    """

    def __init__(self, controller: Controller, adopted: AdoptedCommands, state: Left) -> None:
        self._controller = controller
        self._adopted = adopted
        self._state = state
        self._task: asyncio.Task[None] | None = None
        self._waits = False  # begun, and not started yet
        self._verify = False
        self._confirm: Callable[[Any], Coroutine[Any, Any, None]] | None = None
        self._transport = pooled(controller.transport)
        assert self._transport.memory is not None
        self._pool = self._transport.memory.pools[0]

    def begin(self, *, verify: bool = False, confirm: Callable[[Any], Coroutine[Any, Any, None]] | None = None) -> None:
        """Called after the predecessor's commands were adopted. verify: the namespaces must be
        read again, and "drain", which holds new I/O, ends only then. confirm: comes first.
        """
        self._verify = verify
        self._confirm = confirm
        self._transport.queues.inherited = {queue.qid: queue for queue in self._state.unsettled}
        self._waits = True
        # Callers' I/O comes first.
        self._controller.loop.call_soon(self._controller.loop.call_soon, self._start)

    def _start(self) -> None:
        if self._waits:
            self._waits = False
            self._task = self._controller.loop.create_task(self._run(), name=f"{self._controller.uri} cleanup")

    async def wait(self) -> None:
        """Waits until the cleanup is done, or the controller has ended."""
        while self._waits:
            await asyncio.sleep(0)
        if self._task is not None:
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        task = self.cancel()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def cancel(self) -> asyncio.Task[None] | None:
        """stop() without waiting for its end. Returns what ends."""
        self._waits = False
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    async def _run(self) -> None:
        controller = self._controller
        try:
            # The callers whose I/O waits come first.
            await self._until(lambda: not self._adopted.draining)
            if not self._verify:
                await asyncio.sleep(AFTER)
            if controller.state == "ready":  # else it is the next successor's to do
                self._free_unused()
            if self._confirm is not None:
                await self._confirm(controller)
            await self._until(lambda: not self._adopted.draining)
            if (memory := self._transport.memory) is not None:
                if self._transport.unmaps_by_request:
                    await in_thread(memory.forget_inherited)
                else:
                    memory.forget_inherited()
            await self._until(lambda: self._adopted.settled)
            if self._verify:
                await self._read_namespaces()
            for qid in list(self._transport.queues.inherited):
                await self._undo(qid)
        except NvmeError as error:
            log.warning("%s: cleaning up after the predecessor failed: %s", controller.uri, error)

    async def _read_namespaces(self) -> None:
        """For example after the predecessor's Format: the namespaces are read again. One that
        can't be read takes no I/O until it can.
        """
        controller = self._controller
        namespaces = list(controller.namespaces.values())
        try:
            async with controller.scanner.alone():
                await controller.scanner.namespaces_again(namespaces)
        except NvmeError as error:
            log.warning("%s: the namespaces could not be read again: %s", controller.uri, error)
            for namespace in namespaces:
                namespace._unknown()
            controller.scanner.later(str(error))
        await self._transport.queues.go_on()
        self._transport.queues.lift("drain")
        controller._changed()

    async def _until(self, done) -> None:  # type: ignore[no-untyped-def]
        """Polls the completion rings meanwhile: some have no interrupts, and an interrupt may
        have gone to the predecessor.
        """
        pause = _FIRST_LOOK
        while not done():
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LAST_LOOK)
            for queue in self._transport.queues.all():
                if queue.loop is self._controller.loop:
                    queue.hot.reap()

    async def _undo(self, qid: int) -> None:
        """The predecessor was creating or deleting this queue pair: it is deleted in any case."""
        controller = self._controller
        for command in (commands.delete_io_sq(qid), commands.delete_io_cq(qid)):
            try:
                await controller.admin_queue.submit(command)
            except CommandError as error:
                log.debug("%s: unfinished queue %d: %s", controller.uri, qid, error)
        for slot in self._pool.slots():
            if slot.owner in (f"queue {qid}", f"bounce {qid}") and slot.state == "pending-restore":
                self._pool.reclaim(slot.offset)
        self._transport.queues.give_back(qid)
        controller._changed()

    def _free_unused(self) -> None:
        """Memory that the predecessor had allocated, but that the controller never learned of."""
        known = {queue.qid for queue in [*self._state.queues, *self._state.unsettled]}
        for slot in _pending(self._pool):
            kind, _, number = slot.owner.partition(" ")
            ours = slot.owner in (manifest.OWNER, ROOM) or (
                kind in ("queue", "bounce") and number.isdigit() and int(number) not in known
            )
            if ours or (kind == "queue" and number.isdigit() and self._is_double(slot, int(number))):
                self._pool.reclaim(slot.offset)

    def _is_double(self, slot: Slot, qid: int) -> bool:
        """A second allocation for a queue pair that is known to be elsewhere."""
        return all(
            slot.offset != queue.offset for queue in [*self._state.queues, *self._state.unsettled] if queue.qid == qid
        )


def _pending(pool: Pool) -> list[Slot]:
    return [slot for slot in pool.slots() if slot.state == "pending-restore"]


def validate(uri: str, clients: Iterable[DmaClient]) -> list[Slot]:
    """Unclaimed slots; their pages are not reused from now on, because a controller might still
    write there.
    """
    unclaimed = []
    for client in clients:
        for slot in client.mark_unclaimed():
            unclaimed.append(slot)
            log.warning(
                "%s: %d bytes at %#x of %s are leaked: the predecessor's allocation %r was not claimed",
                uri,
                slot.nbytes,
                slot.offset,
                client.name,
                slot.owner,
            )
    return unclaimed
