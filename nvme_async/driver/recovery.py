"""The handling of a timed-out command: Abort, then a controller reset, then the other commands
are resent or failed.

Only a completion or a finished reset releases a page: regardless of the waiters, pages stay with
their commands until CSTS.RDY was read as 0, or the device can't access memory any more because its
mappings are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from nvme_async.driver.admin_queue import admin_limit
from nvme_async.driver.context import ControllerContext
from nvme_async.driver.lifecycle import State
from nvme_async.driver.transport import CommandQueue
from nvme_async.errors import (
    CommandError,
    ControllerError,
    ControllerFatal,
    ControllerGone,
    ControllerTimeout,
    NvmeError,
)
from nvme_async.runtime.tasks import cancel_other
from nvme_async.spec import commands
from nvme_async.spec.opcodes import AdminOpcode, NvmOpcode

log: logging.Logger = logging.getLogger("nvme_async")

# Sending these twice has the same effect on the media as once. This doesn't hold for zone append,
# reservations, and copy within overlapping ranges.
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


# Admin commands of the application without a timeout (Base 2.0, 5.14 and 5.24).
UNLIMITED = frozenset({int(AdminOpcode.FORMAT_NVM), int(AdminOpcode.SANITIZE)})

STRAYS = 64
"""Stray completions since the last reset after which the controller is reset."""
MAX_STRAY_RESETS = 3


class Recovery:
    """The escalation of one controller. On the controller's own loop; one at a time.

    It takes the controller's lock, and nothing that holds the lock waits for it.
    """

    timeouts: int

    def __init__(self, controller: ControllerContext) -> None:
        self._controller = controller
        self._task: asyncio.Task[None] | None = None
        self._strays = self._strays_of = self._stray_resets = 0
        self.aborts = 0
        self.timeouts = 0

    def on_timeout(self, queue: CommandQueue, late: list[tuple[int, bytes]]) -> None:
        """From a queue's watchdog, on that queue's loop."""
        if not queue.qid:
            late = [(cid, sqe) for cid, sqe in late if sqe[0] not in UNLIMITED]
        home = self._controller.loop
        if late and not home.is_closed():
            home.call_soon_threadsafe(self._begin, lambda: self._escalate(queue, late))

    def on_slow(self) -> None:
        """From a watchdog: a command has been in flight for a while, but not too long. Is the
        controller still there and unchanged?
        """
        home = self._controller.loop
        if not home.is_closed():
            home.call_soon_threadsafe(self._begin, self._check_health)

    def on_stray(self, n: int, what: str, ambiguous: bool, resets: int) -> None:
        """Stray completions, after so many resets. Many, or one that may belong to a command of
        another queue, lead to a reset; if that doesn't help, the controller fails.
        """
        controller = self._controller
        if resets != controller.resets:
            return  # from before the last reset
        if resets != self._strays_of:
            self._strays, self._strays_of = 0, resets
        self._strays += n
        if self._strays < STRAYS and not ambiguous:
            return
        if self._task is not None and not self._task.done():
            self._task.add_done_callback(lambda _: self.on_stray(0, what, ambiguous, resets))
            return
        if controller.state is not State.READY:
            return
        self._stray_resets += 1
        if self._stray_resets > MAX_STRAY_RESETS:
            controller._fail(ControllerFatal(f"{controller.uri}: {what}, and again after {MAX_STRAY_RESETS} resets"))
        else:
            self.request(what)

    def request(self, reason: str) -> None:
        """A reset, unless a recovery is under way or the controller isn't ready."""
        self._begin(lambda: self._reset(reason, self._controller.resets))

    def _begin(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        controller = self._controller
        if controller.state is State.READY and (self._task is None or self._task.done()):
            self._task = controller.loop.create_task(make(), name=f"{controller.uri} recovery")

    async def over(self) -> None:
        """Waits until the running recovery has ended in any way."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        """Ends a running recovery. The controller's lock is held, so it isn't in the middle of a
        reset.
        """
        task = self.cancel()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def cancel(self) -> asyncio.Task[None] | None:
        """stop() without waiting for its end. Returns what ends."""
        task, self._task = self._task, None
        return cancel_other(task)

    async def _reset(self, reason: str, resets: int) -> None:
        """Resets for a problem found when there had been `resets` resets; if there was one
        meanwhile, nothing is left to do. The controller has failed if it doesn't come back.
        """
        with contextlib.suppress(NvmeError):
            await self._controller._reset_once(reason, resets)

    async def sit_out(self) -> bool:
        """Waits while the controller has paused its processing, as for the activation of
        firmware without a reset, and holds I/O meanwhile. False if it hasn't paused, or its
        limit (MTFA) is over: then it is treated as if it hadn't. Raises as Transport.lost()
        does.
        """
        identify = self._controller.identify
        mtfa = identify.mtfa / 10 if identify is not None else 0.0
        return await self._controller.transport.sit_out(mtfa or admin_limit(self._controller.options))

    async def _check_health(self) -> None:
        controller = self._controller
        resets = controller.resets
        try:
            if await self.sit_out():
                return
            if reason := await controller.transport.lost():
                await self._reset(reason, resets)
        except (ControllerGone, ControllerTimeout) as error:
            controller._fail(error)
        except NvmeError as error:
            log.warning("%s: %s", controller.uri, error)

    async def _escalate(self, queue: CommandQueue, late: list[tuple[int, bytes]]) -> None:
        controller = self._controller
        resets = controller.resets
        self.timeouts += len(late)
        log.warning(
            "%s: queue %d: %d commands without completion for %g s", controller.uri, queue.qid, len(late), queue.timeout
        )
        try:
            if await self.sit_out() and await self._over_within(queue, late, queue.timeout):
                return
            reason = await controller.transport.lost()
            if not reason and await self._abort(queue, late):
                return
            await self._reset(reason or "commands timed out", resets)
        except NvmeError as error:
            controller._fail(error)

    async def _abort(self, queue: CommandQueue, late: list[tuple[int, bytes]]) -> bool:
        """Sends Abort for them; True if none of them is in flight any more within the limit."""
        controller = self._controller
        if queue.qid == 0 or controller.fused:
            return False  # an admin queue that doesn't answer won't answer an Abort either
        cids = [cid for cid, _ in late]
        await controller._on_owner(queue, lambda: queue.mark_timed_out(cids))
        # No more at once than the controller allows (ACL is zero-based).
        limit = (controller.identify.acl if controller.identify is not None else 0) + 1

        async def one(cid: int) -> None:
            self.aborts += 1
            await controller._submit_admin(commands.abort(queue.qid, cid), internal=True)

        try:
            async with asyncio.timeout(controller.options.abort_timeout):
                for at in range(0, len(cids), limit):
                    await asyncio.gather(*(one(cid) for cid in cids[at : at + limit]))
                await self._until_over(queue, cids)
        except (TimeoutError, CommandError, ControllerError):
            return False
        return True

    async def _over_within(self, queue: CommandQueue, late: list[tuple[int, bytes]], seconds: float) -> bool:
        """Have all of them completed within that time?"""
        try:
            async with asyncio.timeout(seconds):
                await self._until_over(queue, [cid for cid, _ in late])
        except TimeoutError:
            return False
        return True

    async def _until_over(self, queue: CommandQueue, cids: list[int]) -> None:
        while await self._controller._on_owner(queue, lambda: queue.still_out(cids)):
            await asyncio.sleep(0.01)
