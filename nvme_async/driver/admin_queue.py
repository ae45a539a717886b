"""The admin queue as the driver itself uses it: every wait for a command has a limit, in every
state of the controller.

A command without completion ends with an exception for its sender. While the controller is ready
its loss also leads to one reset: bring-up, reset and shutdown handle a loss themselves, and if the
same command is lost again after that reset, a further reset would not help.

On the controller's home loop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nvme_async.driver.context import ControllerContext
from nvme_async.driver.lifecycle import State
from nvme_async.driver.options import Options
from nvme_async.errors import AdminRefused, ControllerFatal, ControllerTimeout, NvmeError
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion

DEFAULT_LIMIT = 60.0
"""Limit in seconds for the driver's own commands if `admin_timeout` is 0 (no limit for the
application's).
"""

PARTS = 8
"""A limit is waited for in so many parts. If this process stands still, that costs the controller
one of them: it has not had that time, or its completion hasn't been seen yet.
"""

SEALED = frozenset({State.READY, State.SAVING, State.CLOSING})
"""The states in which a fused controller takes no admin command."""


def admin_limit(options: Options) -> float:
    """Limit in seconds for one of the driver's own commands."""
    return options.admin_timeout or DEFAULT_LIMIT


class AdminQueue:
    """Sends the driver's admin commands."""

    def __init__(self, controller: ControllerContext) -> None:
        self._controller = controller
        self._lost: set[tuple[int, int, int]] = set()  # not answered when they were last sent

    @property
    def limit(self) -> float:
        """Limit in seconds for one of the driver's own commands."""
        return admin_limit(self._controller.options)

    async def submit(
        self, command: Command, buffer: Any = None, *, tag: int = 0, internal: bool = False, user: bool = False
    ) -> Completion:
        """Like LoopQueue.submit(). Raises ControllerTimeout (ControllerFatal if CSTS.CFS is set,
        ControllerGone) when one of the driver's own commands has no completion in time; its
        pages stay reserved until the controller completes it or is reset.

        internal: an Asynchronous Event Request or Abort, limited by its sender. user: the
            application's, limited by the watchdog.
        """
        controller = self._controller
        if controller.fused and controller.state in SEALED:
            raise AdminRefused(
                f"{controller.uri}: {command.name} was not sent: the controller is in fused mode, so the admin queue "
                "is not used after the bring-up (the option fused=False, or quirks=, changes that)"
            )
        queue = controller.transport.queues.admin
        if internal or user:
            return await queue.submit(command, buffer, tag=tag, internal=internal, user=user)
        limit = self.limit
        key = (command.opcode, command.nsid, command.cdw10)
        answer = asyncio.ensure_future(queue.submit(command, buffer, tag=tag))
        try:
            error: NvmeError | None = None
            while error is None:
                for _ in range(PARTS):
                    await asyncio.wait([answer], timeout=limit / PARTS)
                    if answer.done():
                        self._lost.discard(key)
                        return answer.result()
                error = await self._why(command, limit, key in self._lost)
        finally:
            if not answer.done():
                answer.cancel()
                await asyncio.wait([answer])
            if not answer.cancelled():
                answer.exception()  # counts as seen: what ended the wait says more
        self._lost.add(key)
        raise error

    async def _why(self, command: Command, limit: float, again: bool) -> NvmeError | None:
        """The exception for a command without completion; None if the controller had paused, so
        that the time limit starts again.
        """
        controller = self._controller
        try:
            if await controller._sit_out():
                return None
            controller._timed_out(1)
            if await controller.transport.has_failed():
                controller._request_reset("CSTS.CFS is set")
                return ControllerFatal(f"{controller.uri}: CSTS.CFS is set, no completion of {command.name}")
        except NvmeError as gone:
            return gone
        if not again:
            controller._request_reset(f"no completion of {command.name}")
        return ControllerTimeout(f"{controller.uri}: no completion of {command.name} for {limit:g} s")
