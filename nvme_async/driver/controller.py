"""One NVMe controller: bring-up, queue pairs for the loops that use it, admin commands, reset and
shutdown.

Threads: a controller belongs to the loop that opened it (`loop`, its home). All admin work happens
there. I/O happens on the loop that awaits it, each with its own queue pair; another thread touches
a loop's queue pair only through _on_owner().
"""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from nvme_async.device.quirks import Quirks
from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.active import ActiveNamespaces
from nvme_async.driver.admin_queue import AdminQueue
from nvme_async.driver.bringup import BringUp
from nvme_async.driver.effects import Effects
from nvme_async.driver.events import Event, EventListener
from nvme_async.driver.lifecycle import FINAL, Lifecycle, State
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.options import Options
from nvme_async.driver.power import Power
from nvme_async.driver.reachable_memory import ReachableMemory
from nvme_async.driver.recovery import Recovery
from nvme_async.driver.regions import Regions
from nvme_async.driver.scanner import Scanner
from nvme_async.driver.steps import Degraded
from nvme_async.driver.transport import CommandQueue, Transport
from nvme_async.errors import (
    CommandError,
    ControllerError,
    ControllerGone,
    ControllerReplaced,
    ControllerTimeout,
    NvmeError,
    QueueShutdown,
)
from nvme_async.runtime import forks
from nvme_async.runtime.tasks import finish
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import AsyncEvent, Completion
from nvme_async.spec.identify import IdentifyController, IdentifyControllerNvm, Sgls
from nvme_async.spec.identity import ControllerIdentity

log: logging.Logger = logging.getLogger("nvme_async")
T = TypeVar("T")

SHUTDOWN_SECONDS = (5.0, 60.0)
"""Minimum and maximum if no `shutdown_timeout` is given: RTD3E is 32 bits of microseconds."""


class Controller(ReachableMemory):
    """An NVMe controller that this process drives. Made by nvme_async.open(); an async context
    manager that shuts it down.

    Attributes:
        uri: the device address it was opened with.
        state: a nvme_async.driver.lifecycle.State, which compares equal to its text: "new",
            "ready", "resetting", "saving", "failed", "closing", "closed", or "handed over" to a
            successor.
        failure: why it failed, or None.
        cap, vs: registers read at bring-up.
        identify: Identify Controller (an attrs object with the specification's field names).
        identify_nvm: Identify Controller of the NVM command set, None where the controller has
            none.
        identity: distinguishes it from any other controller; None before Identify.
        namespaces: {nsid: Namespace}, the active ones, in ascending order.
        options: the options it was opened with.
        power: its power states.
        regions: its own memory that the host maps: CMB and PMR.
        loop: its home.
        quirks: its deviations from the specification (device/quirks.py).
    """

    resets: int

    def __init__(self, transport: Transport, options: Options) -> None:
        self.transport = transport
        self.options = options
        self.uri: str = transport.uri
        self.lifecycle = Lifecycle(transport.uri)
        self.loop = asyncio.get_running_loop()
        self.identify: IdentifyController = None  # type: ignore[assignment]  # known once the bring-up is over
        self.identify_nvm: IdentifyControllerNvm | None = None
        self.identity: ControllerIdentity | None = None
        self.namespaces: dict[int, Namespace] = ActiveNamespaces(self.uri)
        self.resets = 0
        self.degraded: Degraded = Degraded(self.uri)
        self.scanner: Scanner = Scanner(self)
        self.effects: Effects = Effects(self, self.scanner)
        self.recovery: Recovery = Recovery(self)
        self.listener: EventListener = EventListener(self)
        self.admin_queue: AdminQueue = AdminQueue(self)
        self.power: Power = Power(self, options.apst_latency_us)
        self.regions: Regions = Regions(self)
        self.bringup: BringUp = BringUp(self, self.scanner, self.effects, self.power)
        self._lock = asyncio.Lock()  # reset and close, one at a time
        self._failing: asyncio.Task[None] | None = None
        self._forked: NvmeError | None = None
        transport.attach(self)
        self.quirks: Quirks = transport.quirks
        forks.watch(self)

    # -- lifecycle

    async def bring_up(self) -> None:
        """From any state of the hardware to ready (Base 2.0, 3.5.1). On failure everything is
        released before the exception propagates.
        """
        limit = self.options.open_timeout or None
        try:
            async with asyncio.timeout(limit) as timer:
                await self._bring_up()
        except BaseException as error:
            at = self.bringup.at
            await finish(self._abandon)
            if isinstance(error, TimeoutError) and not isinstance(error, NvmeError) and timer.expired():
                raise ControllerTimeout(
                    f"{self.uri}: the bring-up took longer than {limit:g} s (open_timeout); it was at: {at}"
                ) from None
            raise

    async def _bring_up(self) -> None:
        self.transport.watch(self._on_gone)
        await self.bringup.first()
        self.lifecycle.to(State.READY)
        await self.transport.queues.go()
        self.listener.start()
        self._brought_up()

    def _identified(self, identify: IdentifyController) -> None:
        """Sets Identify Controller, at bring-up and after each reset: firmware may have changed
        it. New limits apply from now on.
        """
        self.identify = identify
        self.transport.allow_sgl(identify.sgls & 3, metadata=Sgls.METADATA_SGL in identify.sgl_support)
        if self.transport.limit_transfer(identify.max_transfer_size(self.cap.min_page_size) or 0):
            for namespace in self.namespaces.values():
                namespace._limit()

    def _on_gone(self) -> None:
        self.transport.watch(None)
        error = ControllerGone(f"{self.uri}: {self.transport.trouble or 'the device is gone'}")
        if self.state is State.CLOSING:
            self._failing = self.loop.create_task(self.transport.queues.fail(error), name=f"{self.uri} failure")
        self._fail(error)

    async def _cut_off(self, error: NvmeError) -> None:
        """Ends every wait of a close() or reset() that takes too long: waiters get `error` and the
            device is closed, so that its mappings
        are gone and nothing waits for it any more. close() must follow, if it isn't running
        already. On the home loop.
        """
        self.transport.watch(None)
        await self.transport.cut_off()
        await self.transport.queues.fail(error)

    async def release(self) -> Transport | None:
        """Shuts down like close(), but leaves the transport open, and returns it for another
        Controller. None if the controller can't be stopped, or was closed before: then the
        transport is closed.
        """
        self.lifecycle.closing = True
        return await self._at_home(lambda: finish(lambda: self._close(keep=True)))

    async def close(self) -> None:
        """Shuts down: no new commands, those in flight get `drain_timeout`, queues deleted,
        CC.SHN, CC.EN=0, memory and device released.

        Waiters that remain after the reset end with QueueShutdown; until then no buffer is
        released. Runs to its end even if the caller is cancelled. Closing twice is fine. From any
        loop, also when the controller's own was closed.
        """
        self.lifecycle.closing = True
        if self._forked is not None:
            return
        if self.loop.is_closed():
            self._inherit()
        await self._at_home(lambda: finish(self._close))

    def __del__(self) -> None:
        """Dropped without close(), after its loop has ended (a running one refers to it): a
        warning, and the descriptors are closed. The device comes first: pools are unmapped when
        their objects are freed, which is after this.
        """
        lifecycle = getattr(self, "lifecycle", None)
        if lifecycle is None or lifecycle.state in FINAL or lifecycle.state is State.NEW or self._forked is not None:
            return
        self.lifecycle: Lifecycle = Lifecycle(self.uri)
        try:
            self._drop_device()
        finally:
            warnings.warn(
                f"unclosed controller {self.uri}: await its close()", ResourceWarning, stacklevel=2, source=self
            )

    def _drop_device(self) -> None:
        """Closes the transport: the controller gets no more commands and can't access memory any
        more.
        """
        self.transport.drop()

    def forget_in_child(self) -> None:
        """A forked child: the controller belongs to the parent, and its rings are
        inaccessible.
        """
        self._forked = reason = forks.belongs_to_parent(self.uri)
        self.lifecycle.disown(reason)
        for namespace in self.namespaces.values():
            namespace._set_gone(reason)
        self.transport.queues.refuse_in_child(reason)

    def _inherit(self) -> None:
        """The home loop has ended without closing the controller: the running loop must do it,
            without the queues, whose futures were that
        loop's.
        """
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self.transport.watch(None)
        self.recovery = Recovery(self)
        self.scanner = Scanner(self)
        self.effects = Effects(self, self.scanner)
        self.listener.forget()
        self.lifecycle.orphan(QueueShutdown(f"{self.uri}: the event loop that opened this controller has ended"))

    async def _close(self, keep: bool = False) -> Transport | None:
        try:
            return await self._shut_down(keep)
        finally:
            await self._was_closed()

    async def _shut_down(self, keep: bool) -> Transport | None:
        async with self._lock:
            if self.state in FINAL:
                return None
            was_ready = self.state is State.READY
            self.lifecycle.to(State.CLOSING)
            self._became_unusable()
            reason = QueueShutdown(f"{self.uri}: the controller is closed")
            for namespace in self.namespaces.values():
                namespace._set_gone(reason)
            await self.transport.queues.refuse(reason)
            if was_ready:
                await self.transport.queues.drain(self.options.drain_timeout)
            await self.recovery.stop()
            await self.listener.stop()
            await self.scanner.stop()
            await self.transport.queues.fail(reason, admin=False)
            await self._stop_background_work()
            if was_ready:
                try:
                    await self.transport.shut_down(self._shutdown_seconds())
                except (NvmeError, TimeoutError) as error:
                    log.warning("%s: the shutdown: %s", self.uri, str(error) or "no answer")
            return await self._let_go(reason, keep)

    async def _abandon(self) -> None:
        """After a failed bring-up."""
        async with self._lock:
            if self.state is State.CLOSED:
                return
            self.lifecycle.to(State.CLOSING)
            await self.recovery.stop()
            await self.listener.stop()
            await self.scanner.stop()
            await self._let_go(QueueShutdown(f"{self.uri}: the bring-up failed"))

    async def _let_go(self, reason: NvmeError, keep: bool = False) -> Transport | None:
        """Ensures that the controller can't access memory any more, then releases everything.
        May be repeated.
        """
        self.transport.watch(None)
        kept = await self.transport.release(reason, keep=keep)
        self.listener.end()
        self.lifecycle.to(State.CLOSED)
        return kept

    def _shutdown_seconds(self) -> float:
        """The caller's choice, or the controller's value within limits."""
        if self.options.shutdown_timeout is not None:
            return self.options.shutdown_timeout
        rtd3e = self.identify.rtd3e / 1e6 if self.identify is not None else 0.0
        return min(max(SHUTDOWN_SECONDS[0], rtd3e), SHUTDOWN_SECONDS[1])

    async def __aenter__(self) -> Controller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _fail(self, error: NvmeError) -> None:
        """The controller has failed: all callers get `error`, now and from now on. Pages stay
        owned until close(). On the home loop.
        """
        if not self.lifecycle.fail(error):
            return
        self._became_unusable()
        log.error("%s: %s", self.uri, error)
        for namespace in self.namespaces.values():
            namespace._set_gone(error)
        self._failing = self.loop.create_task(self.transport.queues.fail(error), name=f"{self.uri} failure")
        self.listener.end()

    async def reset(self, reason: str = "requested") -> None:
        """Controller reset (CC.EN 1→0→1): queues are recreated, retryable in-flight commands are
        resent, others fail.

        Callers of I/O wait meanwhile. ControllerGone or ControllerTimeout when the controller
        doesn't come back; then it has failed.
        """
        await self._at_home(lambda: finish(lambda: self._reset(reason)))

    async def _reset_once(self, reason: str, resets: int) -> None:
        """reset(), unless the number of resets has exceeded `resets` meanwhile. For the
        recovery: it can be cancelled while it waits for the lock. On the home loop.
        """
        await self._reset(reason, resets)

    async def _reset(self, reason: str, resets: int | None = None) -> None:
        lifecycle = self.lifecycle
        async with self._lock:
            if resets is not None and resets != self.resets:
                return
            if lifecycle.state is not State.READY or lifecycle.closing:
                raise self.failure or QueueShutdown(
                    f"{self.uri}: the controller is {'closed' if lifecycle.closing else self.state}"
                )
            log.warning("%s: controller reset (%s)", self.uri, reason)
            lifecycle.to(State.RESETTING)
            self.resets += 1
            self._changed()
            try:
                await self.listener.stop()
                await self.transport.queues.hold("reset")
                await self.transport.queues.silence()
                await self.bringup.again(reason)
                lifecycle.to(State.READY)
                self._changed()
                await self.transport.queues.go()
            except BaseException as error:
                # A refused Identify isn't the status of a waiting read, whose caller must see that
                # the controller failed.
                failure = (
                    error
                    if isinstance(error, NvmeError) and not isinstance(error, CommandError)
                    else ControllerError(f"{self.uri}: the reset failed: {str(error) or repr(error)}")
                )
                self._fail(failure)
                raise
            self.listener.start()

    # -- commands ----------------------------------------------------------------------------------

    async def admin(
        self, command: Command, buffer: BufferLike | None = None, *, tag: int = 0, unlimited: bool = False
    ) -> Completion:
        """Sends an admin command (see nvme_async.spec.commands). Results of known length are in
        Completion.data, others in `buffer`.

        Around a command that changes namespaces or the controller (Format NVM, Namespace Management
        and Attachment, Sanitize, firmware activation, and commands with effects according to the
        controller's Commands Supported and Effects log) affected I/O is held and drained, and
        Identify is read again before it continues: see docs/commands-with-effects.md.
        ControllerTimeout, and the command was not sent, if that I/O doesn't end in time.

        unlimited: `admin_timeout` doesn't apply to this command, which may take hours (Format NVM);
        the caller limits it.
        """
        return await self._at_home(lambda: self._admin(command, buffer, tag, unlimited))

    async def _admin(self, command: Command, buffer: BufferLike | None, tag: int, unlimited: bool) -> Completion:
        await self._until_ready()
        return await self.effects.submit(command, buffer, tag, unlimited)

    async def _submit_admin(
        self,
        command: Command,
        buffer: BufferLike | None = None,
        *,
        tag: int = 0,
        internal: bool = False,
        user: bool = False,
    ) -> Completion:
        """The driver's own admin commands; see AdminQueue.submit(). On the home loop."""
        return await self.admin_queue.submit(command, buffer, tag=tag, internal=internal, user=user)

    async def rescan(self, cause: AsyncEvent | None = None) -> None:
        """Reads the active namespaces again: new ones appear in `namespaces`, changed ones
        change in place (requests made for another format end with NamespaceChanged), removed
        ones fail from now on. Another disk under an old number is a new Namespace, and the old
        handle fails with NamespaceReplaced.

        A namespace whose Identify fails stays as it is and is read again in the background.
        """
        await self._at_home(lambda: self.scanner.scan(cause))

    def events(self) -> AsyncIterator[Event]:
        """Asynchronous events of the controller (namespaces changed, errors, SMART warnings), as
        they arrive; ends with the controller.
        """
        return self.listener.subscribe()

    # -- requests of the driver's parts to each other

    async def _enable_events(self) -> None:
        await self.listener.enable()

    def _publish(self, event: Event) -> None:
        self.listener.publish(event)

    def _rescan_later(self, why: str) -> None:
        self.scanner.later(why)

    def _request_reset(self, reason: str) -> None:
        self.recovery.request(reason)

    async def _sit_out(self) -> bool:
        return await self.recovery.sit_out()

    async def _identify_again(self) -> None:
        try:
            async with self.scanner.alone():
                await self.scanner.controller_again()
        except ControllerReplaced as error:
            self._fail(error)

    async def _read_again(self) -> None:
        await self.effects.of_another()

    def _timed_out(self, commands: int) -> None:
        self.recovery.timeouts += commands

    def _on_timeout(self, queue: CommandQueue, late: list[tuple[int, bytes]]) -> None:
        self.recovery.on_timeout(queue, late)

    def _on_slow(self) -> None:
        self.recovery.on_slow()

    def _on_stray(self, n: int, what: str, ambiguous: bool, resets: int) -> None:
        self.recovery.on_stray(n, what, ambiguous, resets)

    # -- inspection

    def inspect(self) -> dict[str, Any]:
        """The complete state of this controller as plain data: state, queues, pending commands,
        memory, namespaces, counters.
        """
        identify = self.identify
        return {
            "uri": self.uri,
            "transport": self.transport.kind,
            "state": str(self.state),
            "pid": os.getpid(),
            "model": identify.mn if identify else None,
            "serial": identify.sn if identify else None,
            "firmware": identify.fr if identify else None,
            "version": str(self.vs),
            "quirks": self.quirks.inspect(),
            "fused": self.fused,
            "failure": str(self.failure) if self.failure else None,
            "resets": self.resets,
            "timeouts": self.recovery.timeouts,
            "aborts": self.recovery.aborts,
            "events": self.listener.seen,
            "degraded": dict(self.degraded.reasons),
            "event_requests": self.listener.inspect(),
            "rescan": self.scanner.inspect(),
            "effects": self.effects.inspect(),
            **self._inspect_hooks(),
            "namespaces": [namespace.inspect() for namespace in list(self.namespaces.values())],
            **self.transport.inspect(),
        }

    def __repr__(self) -> str:
        what = f" {self.identify.mn.strip()}" if self.identify else ""
        return f"<Controller {self.uri}{what} {self.state}>"
