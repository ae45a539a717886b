"""One NVMe controller: bring-up, queue pairs for the loops that use it, admin commands, reset and
shutdown.

Threads: a controller lives on the loop that opened it (`loop`, its home). Admin work happens there,
whoever asks. I/O happens on the loop that
awaits it, each with a queue pair of its own; nothing of one loop's queue pair is touched from
another thread, except through on_owner().
"""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from nvme_async.device import Device
from nvme_async.device.quirks import quirks_of
from nvme_async.dma import DmaBuffer
from nvme_async.driver.active import ActiveNamespaces
from nvme_async.driver.admin_queue import AdminQueue
from nvme_async.driver.bringup import BringUp
from nvme_async.driver.effects import Effects
from nvme_async.driver.events import Event, EventListener
from nvme_async.driver.hooks import LifecycleHooks
from nvme_async.driver.lifecycle import ENDING, FINAL, Lifecycle, State
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.options import DEFAULT_POOL, Options
from nvme_async.driver.pcie.loop_queue import LoopQueue
from nvme_async.driver.pcie.memory import DeviceMemory, Registration
from nvme_async.driver.pcie.queue_set import QueueSet
from nvme_async.driver.pcie.registers import Registers
from nvme_async.driver.recovery import Recovery
from nvme_async.driver.scanner import Scanner
from nvme_async.errors import ControllerError, ControllerGone, ControllerTimeout, HandedOver, NvmeError, QueueShutdown
from nvme_async.runtime import forks, loops
from nvme_async.runtime.tasks import finish, in_thread
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import AsyncEvent, Completion
from nvme_async.spec.identify import IdentifyController, IdentifyControllerNvm
from nvme_async.spec.identity import ControllerIdentity
from nvme_async.spec.registers import Cap, Vs

log = logging.getLogger("nvme_async")
T = TypeVar("T")

SHUTDOWN_SECONDS = (5.0, 60.0)
"""At least and at most, where no `shutdown_timeout` is given: RTD3E is 32 bits of microseconds."""


class Controller(LifecycleHooks):
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
        identity: what tells it from any other controller; None before Identify.
        namespaces: {nsid: Namespace}, the active ones, in ascending order.
        options: what it was opened with.
        loop: its home.
        quirks: what it needs that others don't (device/quirks.py).
    """

    def __init__(self, device: Device, options: Options) -> None:
        self.device = device
        self.options = options
        self.uri = device.uri
        self.lifecycle = Lifecycle(device.uri)
        self.loop = asyncio.get_running_loop()
        self.quirks = quirks_of(device.ids, override=options.quirks)
        self.registers = Registers(device, self.quirks)
        self.cap = Cap()
        self.vs = Vs()
        self.identify: IdentifyController = None  # type: ignore[assignment]  # known once the bring-up is over
        self.identify_nvm: IdentifyControllerNvm | None = None
        self.identity: ControllerIdentity | None = None
        self.namespaces: dict[int, Namespace] = ActiveNamespaces(self.uri)
        self.scanner = Scanner(self)
        self.effects = Effects(self)
        self.memory: DeviceMemory | None = None
        self.queues = QueueSet(self)
        self.recovery = Recovery(self)
        self.listener = EventListener(self)
        self.admin_queue = AdminQueue(self)
        self.bringup = BringUp(self)
        self.resets = 0
        self._lock = asyncio.Lock()  # reset and close, one at a time
        self._watched = -1  # the descriptor that tells of the device's disappearance
        self._telling: asyncio.Task[None] | None = None
        self._forked: NvmeError | None = None
        forks.watch(self)

    # -- life --------------------------------------------------------------------------------------

    async def bring_up(self) -> None:
        """From any state of the hardware to ready (Base 2.0, 3.5.1). On failure everything is
        released before the exception goes on.
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
        self.watch(True)
        await self.bringup.first()
        self.lifecycle.to(State.READY)
        await self.queues.go()
        self.listener.start()
        self.brought_up()

    async def make_memory(self) -> None:
        """The pool, and an eventfd for each vector. Once, with the controller disabled."""
        await in_thread(self._make_memory)
        await self.call(self.queues.maker.open_vectors)

    def _make_memory(self) -> None:
        self.memory = DeviceMemory(
            self.device,
            pool_bytes=self.options.pool_bytes,
            hugepages=self.options.hugepages,
            fixed=self.options.keepalive,
            limit=self.options.memory_limit,
            flexible=self.options.pool_bytes == DEFAULT_POOL,
        )
        self.memory.in_use = self.queues.uses

    def identified(self, identify: IdentifyController) -> None:
        """What Identify Controller says, at bring-up and after each reset: firmware may have changed
        it. New limits count from here on.
        """
        self.identify = identify
        mdts = identify.max_transfer_size(self.cap.min_page_size) or self.options.max_transfer
        if self.queues.maker.limit_transfer(min(self.options.max_transfer, mdts)):
            for namespace in self.namespaces.values():
                namespace._limit()

    async def call(self, function: Callable[[], T]) -> T:
        """A call into the device layer: on the loop if that is only memory and ioctls, in a thread
        if it is messages.
        """
        return function() if self.device.direct else await in_thread(function)

    @property
    def state(self) -> State:
        return self.lifecycle.state

    @property
    def failure(self) -> NvmeError | None:
        return self.lifecycle.failure

    def watch(self, on: bool) -> None:
        """Looks out for the device's disappearance, or no more: before the device is closed or
        handed on. On the home loop.
        """
        fd = self.device.gone_fd if on else self._watched
        if on and fd >= 0:
            self.loop.add_reader(fd, self._on_gone)
            self._watched = fd
        elif not on and fd >= 0:
            self.loop.remove_reader(fd)
            self._watched = -1

    def _on_gone(self) -> None:
        self.watch(False)
        error = ControllerGone(f"{self.uri}: the device is gone, or somebody wants it back")
        if self.state is State.CLOSING:
            self._telling = self.loop.create_task(self.queues.fail(error))
        self.fail(error)

    async def hurry(self, error: NvmeError) -> None:
        """Ends every wait of a close() or reset() that takes too long: waiters get `error` and the
            device is closed, so that its mappings
        are gone and nothing waits for it any more. close() has to follow, if it isn't under way. On
        the home loop.
        """
        self.watch(False)
        await self.call(self.device.close)
        await self.queues.fail(error)

    async def release(self) -> Device | None:
        """Shuts down like close(), but leaves the device open and gives it back, for another
        Controller. None if the controller can't be
        stopped, or was closed before: then the device is closed.
        """
        self.lifecycle.closing = True
        return await self.at_home(lambda: finish(lambda: self._close(keep_device=True)))

    async def close(self) -> None:
        """Shuts down: no new commands, those that are out get `drain_timeout`, queues deleted,
        CC.SHN, CC.EN=0, memory and device released.

        Waiters that are still there when the reset is over end with QueueShutdown; until then no
        buffer is let go. Runs to its end even if the caller is cancelled. Closing twice is fine.
        From any loop, also when the controller's own was closed.
        """
        self.lifecycle.closing = True
        if self._forked is not None:
            return
        if self.loop.is_closed():
            self._inherit()
        await self.at_home(lambda: finish(self._close))

    def __del__(self) -> None:
        """Dropped without close(), after its loop has ended (a running one refers to it): a warning, and
        the descriptors are closed. The device comes first: pools are unmapped when their objects are
        freed, which is after this.
        """
        lifecycle = getattr(self, "lifecycle", None)
        if lifecycle is None or lifecycle.state in FINAL or lifecycle.state is State.NEW or self._forked is not None:
            return
        self.lifecycle = Lifecycle(self.uri)
        try:
            self.drop_device()
        finally:
            self.queues.maker.close_vectors()
            warnings.warn(
                f"unclosed controller {self.uri}: await its close()", ResourceWarning, stacklevel=2, source=self
            )

    def drop_device(self) -> None:
        """Lets go of the device without a word to the controller, whose memory it reaches no more then."""
        self.device.close()

    def forget_in_child(self) -> None:
        """A forked child: the controller is the parent's, and its rings are out of reach."""
        self._forked = reason = forks.belongs_to_parent(self.uri)
        self.lifecycle.disown(reason)
        for namespace in self.namespaces.values():
            namespace._set_gone(reason)
        for queue in self.queues.all():
            queue.hot.refuse(reason)

    def _inherit(self) -> None:
        """The home has ended without closing the controller: the running loop has to do it, without
            the queues, whose futures were that
        loop's.
        """
        self.loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._watched = -1
        self.recovery = Recovery(self)
        self.scanner, self.effects = Scanner(self), Effects(self)
        self.listener.forget()
        self.lifecycle.orphan(QueueShutdown(f"{self.uri}: the event loop that opened this controller has ended"))

    async def _close(self, keep_device: bool = False) -> Device | None:
        try:
            return await self._shut_down(keep_device)
        finally:
            await self.closed()

    async def _shut_down(self, keep_device: bool) -> Device | None:
        async with self._lock:
            if self.state in FINAL:
                return None
            was_ready = self.state is State.READY
            self.lifecycle.to(State.CLOSING)
            self.became_unusable()
            reason = QueueShutdown(f"{self.uri}: the controller is closed")
            for namespace in self.namespaces.values():
                namespace._set_gone(reason)
            await self.queues.refuse(reason)
            if was_ready:
                await self.queues.drain(self.options.drain_timeout)
            await self.recovery.stop()
            await self.listener.stop()
            await self.scanner.stop()
            await self.queues.fail(reason, admin=False)
            await self.stop_background_work()
            if was_ready:
                try:
                    async with asyncio.timeout(self._shutdown_seconds()):
                        await self.queues.delete_all()
                except (NvmeError, TimeoutError) as error:
                    log.warning("%s: deleting the I/O queues: %s", self.uri, str(error) or "no answer")
                try:
                    await self.registers.shut_down(self._shutdown_seconds())
                except NvmeError as error:
                    log.warning("%s: %s", self.uri, error)
            return await self._let_go(reason, keep_device)

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

    async def _let_go(self, reason: NvmeError, keep_device: bool = False) -> Device | None:
        """Makes sure that the controller reaches no memory any more; only then releases buffers,
        pools and the device. May be repeated.
        """
        quiet = False
        self.watch(False)
        try:
            # From here on a doorbell is an error at best, and a store into an unmapped page once
            # the device is closed.
            await self.queues.silence()
        except Exception as error:
            log.warning("%s: %s", self.uri, error)
        try:
            await self.registers.disable(self.cap)
            quiet = True
        except Exception as error:
            log.warning("%s: %s", self.uri, error)
        steps: list[Callable[[], Awaitable[None]]] = [lambda: self.queues.release(reason), self._release_memory]
        if not quiet:
            # Its mappings go with the device; from then on the IOMMU (or the peer's missing
            # mapping) stops it.
            steps.insert(0, self._close_device)
        elif keep_device:
            steps.append(lambda: self.call(lambda: self.device.set_interrupts(())))
        else:
            steps.append(self._close_device)
        for step in steps:
            try:
                await step()
            except Exception:
                # What remains has to be released none the less.
                log.exception("%s: an error while closing", self.uri)
                if keep_device and quiet:
                    quiet = False
                    steps.append(self._close_device)
        self.queues.maker.close_vectors()
        self.listener.end()
        self.lifecycle.to(State.CLOSED)
        return self.device if keep_device and quiet else None

    async def _close_device(self) -> None:
        await self.call(self.device.close)

    async def _release_memory(self) -> None:
        if self.memory is not None:
            await in_thread(self.memory.close)

    def _shutdown_seconds(self) -> float:
        """What the caller has chosen, or what the controller asks for, within reason."""
        if self.options.shutdown_timeout is not None:
            return self.options.shutdown_timeout
        rtd3e = self.identify.rtd3e / 1e6 if self.identify is not None else 0.0
        return min(max(SHUTDOWN_SECONDS[0], rtd3e), SHUTDOWN_SECONDS[1])

    async def __aenter__(self) -> Controller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def fail(self, error: NvmeError) -> None:
        """The controller is beyond help: everybody gets `error`, now and from now on. Pages stay
        owned until close(). On the home loop.
        """
        if not self.lifecycle.fail(error):
            return
        self.became_unusable()
        log.error("%s: %s", self.uri, error)
        for namespace in self.namespaces.values():
            namespace._set_gone(error)
        self._telling = self.loop.create_task(self.queues.fail(error))
        self.listener.end()

    async def reset(self, reason: str = "requested") -> None:
        """Controller reset (CC.EN 1→0→1): queues are made anew, retryable commands that were out
        are sent again, others fail.

        Callers of I/O wait meanwhile. ControllerGone or ControllerTimeout when the controller
        doesn't come back; then it has failed.
        """
        await self.at_home(lambda: finish(lambda: self._reset(reason)))

    async def reset_once(self, reason: str, resets: int) -> None:
        """reset(), unless there was one since there were `resets` of them. On the home loop."""
        await finish(lambda: self._reset(reason, resets))

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
            self.changed()
            try:
                await self.listener.stop()
                await self.queues.hold("reset")
                await self.queues.silence()
                await self.bringup.again(reason)
                lifecycle.to(State.READY)
                self.changed()
                await self.queues.go()
            except BaseException as error:
                failure = (
                    error
                    if isinstance(error, NvmeError)
                    else ControllerError(f"{self.uri}: the reset failed: {error!r}")
                )
                self.fail(failure)
                raise
            self.listener.start()

    async def until_ready(self) -> None:
        """Waits for the end of a reset or save that is under way. Raises why the controller takes
        no commands, if it doesn't.
        """
        if await self.lifecycle.settled() not in (State.READY, State.NEW):
            raise self.failure or self.not_here()

    # -- threads -----------------------------------------------------------------------------------

    async def at_home(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs make()'s coroutine on the home loop, from whichever loop."""
        if self._forked is not None:
            raise self._forked
        if asyncio.get_running_loop() is self.loop:
            return await make()
        return await self.elsewhere(self.loop, make, "the event loop that opened this controller")

    async def elsewhere(
        self, loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]], whose: str
    ) -> T:
        """Runs make()'s coroutine on another thread's loop. QueueShutdown if that loop doesn't run,
        or ends before the coroutine does.
        """
        return await loops.on_loop(loop, make, ended=QueueShutdown(f"{self.uri}: {whose} doesn't run"))

    async def on_owner(self, queue: LoopQueue, function: Callable[[], T], *, timeout: float = 10.0) -> T:
        """Runs function() in the thread of the queue pair's loop; here, if that loop doesn't run.

        ControllerTimeout if that thread is stuck; then function() won't be run.
        """
        stuck = ControllerTimeout(f"{self.uri}: the loop of queue {queue.qid} hasn't answered for {timeout:g} s")
        return await loops.in_thread_of(queue.loop, function, timeout=timeout, stuck=stuck)

    def not_here(self) -> NvmeError:
        """Why it takes no commands any more."""
        if self._forked is not None:
            return self._forked
        error = HandedOver if self.state is State.HANDED_OVER else QueueShutdown
        return error(f"{self.uri}: the controller is {self.state}")

    # -- commands ----------------------------------------------------------------------------------

    async def admin(self, command: Command, buffer: Any = None, *, tag: int = 0) -> Completion:
        """Sends an admin command (see nvme_async.spec.commands). Answers of known length come as
        Completion.data, others in `buffer`.

        Around a command that changes namespaces or the controller (Format NVM, Namespace Management
        and Attachment, Sanitize, firmware activation, and what the controller's Commands Supported
        and Effects log says so of) I/O that would be hurt is held and drained, and Identify is read
        again before it goes on: see docs/commands-with-effects.md. ControllerTimeout, and the command
        was not sent, if that I/O doesn't end in time.
        """
        return await self.at_home(lambda: self._admin(command, buffer, tag))

    async def _admin(self, command: Command, buffer: Any, tag: int) -> Completion:
        await self.until_ready()
        return await self.effects.submit(command, buffer, tag)

    async def rescan(self, cause: AsyncEvent | None = None) -> None:
        """Reads the active namespaces again: new ones appear in `namespaces`, changed ones change
        in place (requests made for another format end with NamespaceChanged), removed ones fail from
        now on. One that is another disk under its old number is a new Namespace, and the old one
        fails with NamespaceReplaced.

        A namespace whose Identify fails stays as it is and is read again in the background.
        """
        await self.at_home(lambda: self.scanner.scan(cause))

    def events(self) -> AsyncIterator[Event]:
        """Asynchronous events of the controller (namespaces changed, errors, SMART warnings), as
        they come; ends with the controller.
        """
        return self.listener.subscribe()

    # -- memory ------------------------------------------------------------------------------------

    def alloc(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        """Zeroed memory that the device reaches directly: a writable buffer of `nbytes`, page
        aligned; free() it or use it in `with`.

        OutOfDmaMemory if there is none to be had: the options pool_bytes (with keepalive) and
        memory_limit, the memory that is available, and the limit of locked memory bound it. From any
        thread. Blocks while the memory has to grow, or much of it to be cleared; buffer() doesn't.
        """
        return self._reachable().alloc(self._positive(nbytes), owner="application", tag=tag)

    async def buffer(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        """alloc() for large buffers on an event loop, which goes on meanwhile. From any loop."""
        memory, nbytes = self._reachable(), self._positive(nbytes)
        made: list[DmaBuffer] = []
        try:
            await in_thread(lambda: made.append(memory.alloc(nbytes, owner="application", tag=tag)))
        except asyncio.CancelledError:
            for buffer in made:
                buffer.free()
            raise
        return made[0]

    def _reachable(self) -> DeviceMemory:
        if self.memory is None or self.state in ENDING:
            raise self.not_here()
        return self.memory

    @staticmethod
    def _positive(nbytes: int) -> int:
        if nbytes <= 0:
            raise ValueError(f"nbytes is {nbytes}, at least 1 is needed")
        return nbytes

    def register(self, buffer: Any) -> Registration:
        """Makes existing memory (an array, an mmap) reachable for the device in place, so that
        readinto and write copy nothing.

        On the home loop's thread. The registration holds the buffer until it is closed (`with`, or
        with the controller).
        """
        if self.memory is None or self.state in ENDING or self.state is State.SAVING:
            raise self.not_here()
        return self.memory.register(buffer)

    # -- sight -------------------------------------------------------------------------------------

    def inspect(self) -> dict[str, Any]:
        """Everything that is known about this controller as plain data: state, queues, pending
        commands, memory, namespaces, counters.
        """
        identify = self.identify
        return {
            "uri": self.uri,
            "state": str(self.state),
            "pid": os.getpid(),
            "model": identify.mn if identify else None,
            "serial": identify.sn if identify else None,
            "firmware": identify.fr if identify else None,
            "version": str(self.vs),
            "quirks": self.quirks.inspect(),
            "failure": str(self.failure) if self.failure else None,
            "resets": self.resets,
            "timeouts": self.recovery.timeouts,
            "aborts": self.recovery.aborts,
            "events": self.listener.seen,
            "degraded": dict(self.bringup.degraded.reasons),
            "event_requests": self.listener.inspect(),
            "rescan": self.scanner.inspect(),
            "effects": self.effects.inspect(),
            **self.inspect_hooks(),
            "namespaces": [namespace.inspect() for namespace in list(self.namespaces.values())],
            **self.queues.inspect(),
            "memory": self.memory.inspect() if self.memory else None,
        }

    def __repr__(self) -> str:
        what = f" {self.identify.mn.strip()}" if self.identify else ""
        return f"<Controller {self.uri}{what} {self.state}>"
