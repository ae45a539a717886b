"""The interface between the parts of one controller's driver.

The parts (bring-up, discovery, events, recovery, namespaces) get this interface; the Controller
implements it. So they need not import the module that composes them.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from nvme_async.device.quirks import Quirk, Quirks
from nvme_async.dma import DmaBuffer
from nvme_async.driver.hooks import LifecycleHooks
from nvme_async.driver.lifecycle import Lifecycle, State
from nvme_async.driver.options import Options
from nvme_async.driver.steps import Degraded
from nvme_async.driver.transport import Transport
from nvme_async.errors import ControllerTimeout, HandedOver, NvmeError, QueueShutdown
from nvme_async.runtime import loops
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import AsyncEvent, Completion
from nvme_async.spec.identify import IdentifyController, IdentifyControllerNvm
from nvme_async.spec.identity import ControllerIdentity
from nvme_async.spec.registers import Cap, Vs

T = TypeVar("T")


class OfLoop(Protocol):
    """Something that belongs to one event loop's thread."""

    loop: asyncio.AbstractEventLoop

    @property
    def qid(self) -> int: ...


class ControllerContext(LifecycleHooks):
    """Attributes: see nvme_async.driver.controller.Controller."""

    uri: str
    options: Options
    transport: Transport
    lifecycle: Lifecycle
    loop: asyncio.AbstractEventLoop
    identify: IdentifyController
    identify_nvm: IdentifyControllerNvm | None
    identity: ControllerIdentity | None
    namespaces: dict[int, Any]
    resets: int
    degraded: Degraded
    quirks: Quirks
    _forked: NvmeError | None

    # -- properties --------------------------------------------------------------------------------

    @property
    def cap(self) -> Cap:
        """CAP, read at bring-up."""
        return self.transport.cap

    @property
    def vs(self) -> Vs:
        """VS, read at bring-up."""
        return self.transport.vs

    @property
    def state(self) -> State:
        """Compares equal to its text: "new", "ready", "resetting", "saving", "failed",
        "closing", "closed", "handed over".
        """
        return self.lifecycle.state

    @property
    def fused(self) -> bool:
        """Is no admin command sent after the bring-up? See Options."""
        if self.options.fused is not None:
            return self.options.fused
        return self.options.keepalive and Quirk.KEEPALIVE_BY_CLASS in self.quirks

    @property
    def failure(self) -> NvmeError | None:
        """Why it failed, or None."""
        return self.lifecycle.failure

    def _not_here(self) -> NvmeError:
        """Why it takes no commands any more."""
        if self._forked is not None:
            return self._forked
        error = HandedOver if self.state is State.HANDED_OVER else QueueShutdown
        return error(f"{self.uri}: the controller is {self.state}")

    async def _until_ready(self) -> None:
        """Waits for the end of a running reset or save. Raises the reason if the controller
        takes no commands.
        """
        if await self.lifecycle.settled() not in (State.READY, State.NEW):
            raise self.failure or self._not_here()

    # -- threads -----------------------------------------------------------------------------------

    async def _at_home(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs make()'s coroutine on the home loop, from any loop."""
        if self._forked is not None:
            raise self._forked
        if asyncio.get_running_loop() is self.loop:
            return await make()
        return await self._elsewhere(self.loop, make, "the event loop that opened this controller")

    async def _elsewhere(
        self, loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]], whose: str
    ) -> T:
        """Runs make()'s coroutine on another thread's loop. QueueShutdown if that loop doesn't
        run, or ends before the coroutine does.
        """
        return await loops.on_loop(loop, make, ended=QueueShutdown(f"{self.uri}: {whose} is not running"))

    async def _on_owner(self, queue: OfLoop, function: Callable[[], T], *, timeout: float = 10.0) -> T:
        """Runs function() in the thread of the queue's loop; here, if that loop doesn't run.

        ControllerTimeout if that thread is stuck; then function() won't be run.
        """
        return await loops.in_thread_of(queue.loop, function, timeout=timeout, stuck=self._stuck(queue, timeout))

    def _stuck(self, queue: OfLoop, timeout: float) -> ControllerTimeout:
        return ControllerTimeout(f"{self.uri}: the loop of queue {queue.qid} has not answered for {timeout:g} s")

    # -- requests of the parts to each other, through the controller

    @abstractmethod
    async def _submit_admin(
        self, command: Command, buffer: Any = None, *, tag: int = 0, internal: bool = False, user: bool = False
    ) -> Completion:
        """See AdminQueue.submit()."""

    @abstractmethod
    async def admin(self, command: Command, buffer: Any = None, *, tag: int = 0, unlimited: bool = False) -> Completion:
        """See Controller.admin()."""

    @abstractmethod
    async def buffer(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        """See Controller.buffer()."""

    @abstractmethod
    def alloc(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        """See Controller.alloc()."""

    @abstractmethod
    async def rescan(self, cause: AsyncEvent | None = None) -> None:
        """Reads the active namespaces again."""

    @abstractmethod
    def _rescan_later(self, why: str) -> None:
        """The namespaces could not be read completely: schedules a few retries, once the
        controller is ready.
        """

    @abstractmethod
    async def _enable_events(self) -> None:
        """Asynchronous Event Configuration."""

    @abstractmethod
    def _publish(self, event: Any) -> None:
        """Sends an Event to subscribers."""

    @abstractmethod
    def _identified(self, identify: IdentifyController) -> None:
        """Sets Identify Controller, at bring-up and after each reset."""

    @abstractmethod
    def _fail(self, error: NvmeError) -> None:
        """The controller has failed: all waits end with `error`, now and from now on."""

    @abstractmethod
    def _request_reset(self, reason: str) -> None:
        """Starts a reset, unless a recovery is running or the controller isn't ready."""

    @abstractmethod
    async def _reset_once(self, reason: str, resets: int) -> None:
        """reset(), unless the number of resets has exceeded `resets` meanwhile."""

    @abstractmethod
    async def _sit_out(self) -> bool:
        """Waits while the controller has paused its processing; False if it hasn't, or not
        within the limit.
        """

    @abstractmethod
    async def _identify_again(self) -> None:
        """Reads Identify Controller again: other firmware may be running now."""

    @abstractmethod
    async def _read_again(self) -> None:
        """Reads the controller and its namespaces again: an admin command of another process may
        have changed them.
        """

    @abstractmethod
    def _timed_out(self, commands: int) -> None:
        """Counts commands that timed out."""

    @abstractmethod
    def _on_timeout(self, queue: Any, late: list[tuple[int, bytes]]) -> None:
        """From a queue's watchdog, on that queue's loop."""

    @abstractmethod
    def _on_slow(self) -> None:
        """From a queue's watchdog: a command has been in flight for a while, but not too
        long.
        """

    @abstractmethod
    def _on_stray(self, n: int, what: str, ambiguous: bool, resets: int) -> None:
        """`n` completions answered no command, when there had been `resets` resets. On the home
        loop.

        ambiguous: it is uncertain which command was completed.
        """
