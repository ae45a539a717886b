"""Creating one queue pair: on the host's side, and at the controller.

On the controller's home loop.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from nvme_async.driver.completions import error_from
from nvme_async.driver.delays import retry_delay
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.transport import Owner
from nvme_async.errors import NvmeError
from nvme_async.native import _hotpath, _placement
from nvme_async.runtime import loop_internals
from nvme_async.spec.registers import PAGE
from nvme_async.spec.status import status_text

log: logging.Logger = logging.getLogger("nvme_async")

# Longest spin for a completion, unless an option says another: polling for so long is cheap beside
# a sleep on any machine.
SPIN_NS = 20_000


class QueueMaker(ABC):
    """Attributes:
    max_transfer: bytes of one I/O command.
    capacity: bytes that one command of a queue pair can transfer at most. Set once: a larger limit
        after a reset is not used.
    sgl: which Scatter Gather Lists I/O commands may have (SGLS bits 1:0); sgl_metadata: and their
        metadata.
    strays: completions that answered no command.
    errors: how many awaited commands failed, by status.
    """

    ADMIN_TRANSFER: int
    """Bytes of one admin command."""

    sgl: int = 0
    sgl_metadata: bool = False
    strays: int
    max_transfer: int

    def __init__(self, controller: Owner) -> None:
        self._controller = controller
        self.max_transfer = PAGE
        self.capacity: int = 0
        self.strays = 0
        self.errors: Counter[str] = Counter()

    @abstractmethod
    async def make_room(self, qid: int, entries: int) -> None:
        """Ensures memory for one more queue pair. OutOfDmaMemory."""

    @abstractmethod
    def make(self, qid: int, entries: int, loop: asyncio.AbstractEventLoop) -> LoopQueue:
        """The host's side of a queue pair. The controller doesn't know of it yet. Ends with
        forget().
        """

    @abstractmethod
    async def create(self, queue: LoopQueue) -> None:
        """Creates the queue pair at the controller. CommandError if it refuses."""

    @abstractmethod
    async def delete(self, queue: LoopQueue) -> None:
        """Deletes it from the controller; its memory stays until forget()."""

    def forget(self, queue: LoopQueue) -> None:
        """Releases all of its resources. The controller doesn't know it, or was reset."""
        queue.close()

    def allow_sgl(self, kind: int, *, metadata: bool) -> None:
        """See Transport.allow_sgl(). Only queue pairs whose device reaches memory use SGLs."""
        self.sgl, self.sgl_metadata = 0, False

    def limit_transfer(self, nbytes: int) -> bool:
        """One command transfers at most `nbytes` from now on; True if the limit has changed."""
        self.capacity = self.capacity or nbytes
        before, self.max_transfer = self.max_transfer, min(nbytes, self.capacity)
        return self.max_transfer != before

    def _max_transfer(self, qid: int) -> int:
        return self.capacity if qid else self.ADMIN_TRANSFER

    # -- common to all native queue pairs ----------------------------------------------------------

    def _native(self, memory: Any, loop: asyncio.AbstractEventLoop, **facts: Any) -> _hotpath.QueuePair:
        """The native half. facts: this transport's arguments."""
        hot = _hotpath.QueuePair(
            memory,
            **facts,
            create_future=loop.create_future,
            call_soon=loop.call_soon,
            command_error=self._error,
            on_stray=self._on_stray,
            ready=loop_internals.ready_callbacks(loop),
        )
        hot.retry_delay, hot.call_later = self._retry_delay, loop.call_later
        return hot

    def _set_waiting(self, hot: _hotpath.QueuePair, *, interrupts: bool = True) -> None:
        """How its callers wait. Without interrupts there is only one way."""
        options = self._controller.options
        hot.mode = _hotpath.MODES["interrupt" if hot.qid == 0 else options.mode if interrupts else "poll"]
        hot.spin_ns = SPIN_NS if options.spin_us is None else int(options.spin_us * 1000)
        hot.spin_learnt = options.spin_us is None
        if hot.qid and options.latency:
            hot.record_latency(True)

    def _watching(self, qid: int) -> dict[str, Any]:
        """Arguments of a LoopQueue: the timeout of commands, and its handling."""
        controller = self._controller
        return {
            "timeout": controller.options.command_timeout if qid else controller.options.admin_timeout,
            "on_timeout": controller._on_timeout,
            "on_slow": controller._on_slow,
        }

    def _retry_delay(self, status: int, opcode: int, admin: bool, attempts: int) -> float | None:
        """After how many seconds a command that failed with `status` is sent again; None: not."""
        options = self._controller.options
        if attempts >= options.retries:
            return None
        return retry_delay(
            self._controller.identify,
            status,
            opcode,
            admin=admin,
            longest=options.admin_timeout if admin else options.command_timeout,
        )

    def _error(self, status: int, dw0: int, sqe: bytes, admin: bool, timed_out: bool) -> NvmeError:
        text = status_text(status >> 8 & 7, status & 0xFF)
        self.errors[f"{status & 0x7FF:#05x} {text}"] += 1
        return error_from(status, dw0, sqe, admin, timed_out)

    def _on_stray(self, qid: int, n: int, n_sqid: int, cid: int, sqid: int) -> None:
        """Stray completions, on the queue's loop; docs/design.md explains why they are only
        counted and logged.
        """
        controller = self._controller
        before, self.strays = self.strays, self.strays + n
        if n_sqid:
            what = f"completion of command {cid:#06x} names submission queue {sqid}"
        else:
            what = f"the completion has an unknown or stale command id {cid:#06x} (submission queue {sqid})"
        if self.strays.bit_length() != before.bit_length():  # the 1st, 2nd, 4th, 8th …
            log.warning("%s: queue %d: %s; %d so far", controller.uri, qid, what, self.strays)
        if not controller.loop.is_closed():
            controller.loop.call_soon_threadsafe(
                controller._on_stray, n, f"queue {qid}: {what}", n_sqid > 0, controller.resets
            )


class CarriedQueueMaker(QueueMaker):
    """Queue pairs whose commands a native transport carries (ext/hotpath/transport.h): the rings
    are in memory of this process alone, and nothing is bounced.
    """

    ADMIN_TRANSFER: int = 1 << 20

    async def make_room(self, qid: int, entries: int) -> None:
        """The rings are no device's to reach: there always is."""

    def _rings(self, qid: int, entries: int, loop: asyncio.AbstractEventLoop) -> _hotpath.QueuePair:
        """The native half, before its set_transport()."""
        max_transfer = self._max_transfer(qid)
        return self._native(
            _placement.HostMemory(_hotpath.queue_memory(entries, entries - 1, max_transfer)),
            loop,
            qid=qid,
            entries=entries,
            n_trackers=entries - 1,
            max_transfer=max_transfer,
            address_map=_placement.AddressMap(),
            bounce=_placement.BounceCache(_no_bounce),
        )

    def on(self, queue: LoopQueue, what: Callable[[], Any]) -> Awaitable[Any]:
        """what() in the thread of the queue's loop."""
        return self._controller._on_owner(queue, what)


def _no_bounce(nbytes: int, tag: int) -> Any:
    raise AssertionError("bounce pages need a transport with direct memory access")
