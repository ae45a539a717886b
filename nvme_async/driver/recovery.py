"""What happens when a command doesn't come back: Abort, then a controller reset, then the rest is
sent again or failed.

A page is released by its completion or by a finished reset, by nothing else: whatever is decided
here about waiters, pages stay with their
commands until CSTS.RDY was seen to be 0, or the device can't reach memory any more because its
mappings are gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nvme_async.driver.pcie.loop_queue import LoopQueue
from nvme_async.errors import (
    CommandError,
    ControllerError,
    ControllerFatal,
    ControllerGone,
    ControllerTimeout,
    NvmeError,
)
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import NvmOpcode

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller

log = logging.getLogger("nvme_async")

# Sending these twice leaves the media as sending them once. Not so: zone append, reservations, copy
# within overlapping ranges.
RETRYABLE = frozenset(
    int(opcode)
    for opcode in (
        NvmOpcode.READ,
        NvmOpcode.WRITE,
        NvmOpcode.FLUSH,
        NvmOpcode.COMPARE,
        NvmOpcode.WRITE_ZEROES,
        NvmOpcode.WRITE_UNCORRECTABLE,
        NvmOpcode.DATASET_MANAGEMENT,
        NvmOpcode.VERIFY,
    )
)


class Recovery:
    """The escalation of one controller. On the controller's own loop; one at a time."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._task: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self.aborts = 0
        self.timeouts = 0

    def on_timeout(self, queue: LoopQueue, late: list[tuple[int, bytes]]) -> None:
        """From a queue's watchdog, on that queue's loop."""
        home = self._controller.loop
        if not home.is_closed():
            home.call_soon_threadsafe(self._start, queue, late)

    def _start(self, queue: LoopQueue, late: list[tuple[int, bytes]]) -> None:
        controller = self._controller
        if controller.state == "ready":
            if self._task is None or self._task.done():
                self._task = controller.loop.create_task(self._escalate(queue, late))
        elif queue.qid == 0 and (self._telling is None or self._telling.done()):
            # Bring-up, reset or shutdown wait for this answer, and decide themselves what becomes
            # of it.
            self._telling = controller.loop.create_task(self._tell(queue, late))

    def on_slow(self) -> None:
        """From a watchdog: a command is out for a while, not yet for too long. Is the controller
        still there?
        """
        home = self._controller.loop
        if not home.is_closed():
            home.call_soon_threadsafe(self._ask)

    def _ask(self) -> None:
        if (self._task is None or self._task.done()) and self._controller.state == "ready":
            self._task = self._controller.loop.create_task(self._look_after())

    async def _look_after(self) -> None:
        controller = self._controller
        try:
            if (await controller.registers.csts()).cfs:
                await controller._reset("CSTS.CFS is set")
        except (ControllerGone, ControllerTimeout) as error:
            controller.fail(error)
        except NvmeError as error:
            log.warning("%s: %s", controller.uri, error)

    async def stop(self) -> None:
        """Ends a recovery that is under way. The controller's lock is held, so it isn't in the
        middle of a reset.
        """
        for task in (self._task, self._telling):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._task = self._telling = None

    async def _escalate(self, queue: LoopQueue, late: list[tuple[int, bytes]]) -> None:
        controller = self._controller
        self.timeouts += len(late)
        log.warning(
            "%s: queue %d: %d commands without completion for %g s", controller.uri, queue.qid, len(late), queue.timeout
        )
        try:
            csts = await controller.registers.csts()
            if csts.rdy and not csts.cfs and await self._abort(queue, late):
                return
            await controller._reset("commands timed out")
        except NvmeError as error:
            controller.fail(error)

    async def _tell(self, queue: LoopQueue, late: list[tuple[int, bytes]]) -> None:
        """Those who wait for these admin commands get to know that there won't be an answer, and
        why.
        """
        self.timeouts += len(late)
        uri = self._controller.uri
        names = ", ".join(sorted({Command.unpack(sqe, admin=True).name for _, sqe in late}))
        error: NvmeError = ControllerTimeout(f"{uri}: no completion of {names} for {queue.timeout:g} s")
        try:
            if (await self._controller.registers.csts()).cfs:
                error = ControllerFatal(f"{uri}: CSTS.CFS is set, no completion of {names}")
        except NvmeError as gone:
            error = gone
        if not queue.hot.closed:
            queue.hot.fail_waiters(error)

    async def _abort(self, queue: LoopQueue, late: list[tuple[int, bytes]]) -> bool:
        """Asks the controller to abort them; True when none of them is out any more in time."""
        controller = self._controller
        if queue.qid == 0:
            return False  # an admin queue that doesn't answer won't answer an Abort either
        cids = [cid for cid, _ in late]
        await controller.on_owner(queue, lambda: queue.hot.mark_timed_out(cids))
        # No more at once than the controller takes (ACL is zero-based).
        limit = (controller.identify.acl if controller.identify is not None else 0) + 1

        async def one(cid: int) -> None:
            self.aborts += 1
            await controller.admin_queue.submit(commands.abort(queue.qid, cid), internal=True)

        try:
            async with asyncio.timeout(controller.options.abort_timeout):
                for at in range(0, len(cids), limit):
                    await asyncio.gather(*(one(cid) for cid in cids[at : at + limit]))
                while await controller.on_owner(queue, lambda: queue.hot.still_out(cids)):
                    await asyncio.sleep(0.01)
        except (TimeoutError, CommandError, ControllerError):
            return False
        return True
