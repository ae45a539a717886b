"""A queue pair on an event loop: the native rings, their interrupt, and the watchdog over commands
that take too long.

Admin and I/O queues are one class; only their doorbells, depth and owner differ.

Threads: everything here belongs to the thread of `loop`. Other threads may call inspect().
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from nvme_async.driver.queues import loop_waits
from nvme_async.native import _hotpath, _placement
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.opcodes import Direction, command_name

# How often the watchdog checks within one command timeout.
CHECKS = 8
# If so many early polls in a row have found completions without a single interrupt, none will come.
DEAD_VECTOR = 8


class LoopQueue:
    """One queue pair and its loop.

    hot: the native half; the hot path of Namespace talks to it directly.
    on_timeout(queue, [(cid, sqe)]): called by the watchdog, on the loop, for commands that are in
        flight longer than `timeout` seconds.
    on_slow(): the same, at each check that finds a command that was in flight at the previous
        check, and at each early poll after a second without completions.
    on_dead_vector(queue): no interrupt arrives; it is polled from now on.
    """

    def __init__(
        self,
        hot: _hotpath.QueuePair,
        loop: asyncio.AbstractEventLoop,
        *,
        vector: int,
        event_fd: int,
        interrupts: bool,
        timeout: float,
        on_timeout: Callable[[LoopQueue, list[tuple[int, bytes]]], None],
        on_slow: Callable[[], None] = lambda: None,
        on_dead_vector: Callable[[LoopQueue], None] = lambda queue: None,
    ) -> None:
        self.hot = hot
        self.loop = loop
        self.vector = vector
        self.event_fd = event_fd
        self.interrupts = interrupts
        self.cpus: list[int] | None = None  # where its interrupts are delivered, if chosen
        self.worker: str = ""  # name of the thread that uses it
        self.fusing = asyncio.Lock()  # one caller at a time collects the ids of a fused operation
        self.timeout = timeout
        self._on_timeout = on_timeout
        self._on_slow = on_slow
        self._on_dead_vector = on_dead_vector
        self._sharing: tuple[LoopQueue, ...] = ()  # its vector
        self._listener = self  # takes the vector's interrupts
        self._interrupts = self._missed = 0  # at the last interrupt
        self._dead_vector = False
        self._timer: asyncio.TimerHandle | None = None
        self._waits = loop_waits.of(loop)
        self._frozen = False
        self._on_interrupt: Callable[[], None] | None = None  # while it takes interrupts
        self._paused = False
        self._timer_fd = -1  # of the native half, once a nap has made it
        hot.set_event_fd(event_fd)
        hot.shared = self._waits.native
        hot.on_sleep = self._guard
        hot.on_timer_made = self._read_timer
        if timeout:
            hot.on_busy = self._watch

    @property
    def qid(self) -> int:
        return self.hot.qid

    @property
    def entries(self) -> int:
        """Of each ring; one more than the commands in flight at most."""
        return self.hot.entries

    @property
    def in_flight(self) -> int:
        """Commands that the controller has not completed yet."""
        return self.hot.n_outstanding

    async def io(self, namespace: Any, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The namespace's own fast path, which finds this queue pair now."""
        return await getattr(namespace, method)(*arguments, **options)

    def batch(self, *arguments: Any, **options: Any) -> _hotpath.Batch:
        """See CommandQueue.batch()."""
        return self.hot.batch(*arguments, **options)

    def left_behind(self, nsid: int, lba: int, blocks: int) -> list[int]:
        """See CommandQueue.left_behind()."""
        return self.hot.left_behind(nsid, lba, blocks)

    def when_gone(self, cids: list[int], callback: Callable[[], None]) -> None:
        """See CommandQueue.when_gone()."""
        self.hot.when_gone(cids, callback)

    def poll(self) -> None:
        """Takes the completions that are there."""
        self.hot.reap()

    @property
    def closed(self) -> bool:
        return self.hot.closed

    def mark_timed_out(self, cids: Sequence[int]) -> None:
        """See CommandQueue.mark_timed_out()."""
        self.hot.mark_timed_out(list(cids))

    def still_out(self, cids: Sequence[int]) -> bool:
        """See CommandQueue.still_out()."""
        return bool(self.hot.still_out(list(cids)))

    def listen(self, *others: LoopQueue) -> None:
        """Receives interrupts through the loop. `others` share the vector; interrupts are passed
        on to those of other loops.
        """
        # A predecessor's keeps its worker's name, by which a thread of this process finds it.
        self.worker = self.worker or threading.current_thread().name
        callbacks = [queue.hot.more if queue.loop is self.loop else queue.poll_soon for queue in others]
        self._sharing = others
        for queue in others:
            queue._listener = self
            if self._dead_vector:
                queue.without_interrupts()

        def on_interrupt() -> None:
            self.hot.on_interrupt()
            for callback in callbacks:
                callback()

        self._on_interrupt = on_interrupt if callbacks else self.hot.on_interrupt
        self.hot.on_unwanted = self._stop_reading
        if not self._frozen:
            self._read_interrupts()

    def _read_interrupts(self) -> None:
        if self._on_interrupt is None or self.loop.is_closed():
            return
        if self._on_interrupt == self.hot.on_interrupt:
            self._waits.read(self.event_fd, self.hot)
        else:
            self._waits.stop_reading(self.event_fd)
            self.loop.add_reader(self.event_fd, self._on_interrupt)

    def poll_soon(self) -> None:
        """Its vector was signalled, and another loop took the interrupt. From any thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.hot.more)

    def freeze(self) -> None:
        """Until thaw() this process doesn't touch the queue pair: neither memory, nor doorbells,
        nor the interrupts, which belong to a successor from now on. Existing completions are
        reaped first. Thread: as for stop_listening().
        """
        self._frozen = True
        if self._on_interrupt is not None:
            self._stop_reading()
        self._waits.forget(self.hot)
        _hotpath.freeze(self.hot)

    def freeze_from_afar(self) -> bool:
        """freeze() from another thread, without a visit to the loop's, which may be busy for long:
        only if that thread is in the middle of nothing. False: visit the thread. The loop goes on
        reading the interrupt's eventfd, which is not safe to change from here: the first
        interrupt, a successor's, ends that. An early poll does nothing, and thaw() begins anew.
        """
        if not _hotpath.freeze_remotely(self.hot):
            return False
        self._frozen = True
        return True

    def hand_over_from_afar(self, sent: BaseException, unsent: BaseException) -> bool:
        """The native hand_over() after freeze_from_afar(), if the queue pair is idle.
        stop_listening() is left to do in the loop's thread, before the eventfd is closed.
        """
        if not _hotpath.is_at_rest(self.hot):
            return False
        _hotpath.hand_over(self.hot, sent, unsent)
        return True

    @property
    def listening(self) -> bool:
        """Is the interrupt's eventfd registered with the loop?"""
        return self._on_interrupt is not None

    def _stop_reading(self) -> None:
        self._waits.stop_reading(self.event_fd)
        if not self.loop.is_closed():
            self.loop.remove_reader(self.event_fd)

    def _read_timer(self, fd: int) -> None:
        self._timer_fd = fd
        self.loop.add_reader(fd, self.hot.on_timer)

    def _end_timer(self) -> None:
        if self._timer_fd >= 0:
            if not self.loop.is_closed():
                self.loop.remove_reader(self._timer_fd)
            self._timer_fd = -1
            self.hot.close_timer()

    def thaw(self) -> None:
        """Continues where freeze() stopped. The caller must still end the hold."""
        self._frozen = False
        _hotpath.thaw(self.hot)
        self._read_interrupts()
        if self.hot.guarded:
            self._guard()

    def stop_listening(self) -> None:
        """Stops taking interrupts and watching. From the loop's thread, or after the loop has
        ended.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waits.forget(self.hot)
        if self._on_interrupt is not None:
            self._stop_reading()
        self._on_interrupt = self.hot.on_unwanted = None
        self._end_timer()

    def silence(self, silent: bool) -> None:
        """Rings no doorbell until it is called again: the controller is being reset. The
        timeouts of commands in flight stand still meanwhile.
        """
        self._paused = silent
        self.hot.silence(silent)

    def pause(self, paused: bool) -> None:
        """The timeouts of commands in flight stand still until it is called again: the
        controller has announced a pause.
        """
        self._paused = paused

    def watch(self) -> None:
        """Commands are in flight that this process didn't send: the watchdog covers them too."""
        if self.timeout:
            self.hot.watched = True
            self._watch()

    def when_busy(self, first: Callable[[], None] | None) -> None:
        """first() is called once, when the next command is sent; None: not any more. Costs
        nothing for each command: it takes the place of the watchdog's start.
        """
        if self.hot.closed:
            return
        if first is None:
            self.hot.on_busy = self._watch if self.timeout else None
            return

        callback = first

        def busy() -> None:
            self.when_busy(None)
            callback()
            if self.timeout:
                self._watch()

        self.hot.on_busy = busy
        self.hot.watched = False

    def close(self) -> None:
        """Releases loop and memory; no command may be in flight any more."""
        self.stop_listening()
        self.hot.on_busy = self.hot.on_sleep = self.hot.on_timer_made = None
        self.hot.close()

    async def submit(
        self,
        command: Command,
        buffer: Any = None,
        *,
        tag: int = 0,
        internal: bool = False,
        user: bool = False,
        geometry: _hotpath.Geometry | None = None,
    ) -> Completion:
        """One command; its returned data, if any, is in Completion.data as bytes, or in
        `buffer`.

        buffer: the data to send, or where returned data goes; for commands of known length
            (identify, log pages, features) it may be omitted.
        tag: the caller's; survives a servicing. internal: without a time limit. user: an admin
            command that isn't the driver's own. geometry: the format that it was sized for.
        Raises CommandError and its subclasses; ValueError if data are missing or their length
        differs from the command's.
        """
        if not isinstance(command, Command):
            raise TypeError(f"command is a {type(command).__name__}, must be a Command of nvme_async.spec")
        to_host = command.direction is Direction.CONTROLLER_TO_HOST
        nbytes = command.data_length
        if buffer is not None and nbytes:
            length = _placement.byte_view(buffer).nbytes
            if length != nbytes:
                raise ValueError(f"{command.name} transfers {nbytes} bytes, but the buffer has {length}")
        if buffer is None and nbytes and not to_host:
            raise ValueError(f"{command.name} sends {nbytes} bytes, but no buffer was given")
        if (
            buffer is None
            and nbytes is None
            and command.direction in (Direction.HOST_TO_CONTROLLER, Direction.CONTROLLER_TO_HOST)
        ):
            raise ValueError(f"{command.name} transfers data, but no buffer was given")
        dw0, dw1, data = await self.hot.request(
            command.pack(),
            buffer,
            read_nbytes=nbytes if buffer is None and nbytes and to_host else -1,
            to_host=to_host,
            tag=tag,
            internal=internal,
            driver=self.qid == 0 and not user,
            geometry=geometry,
        )
        return Completion(dw0=dw0, dw1=dw1, sqid=self.qid, data=data if isinstance(data, bytes) else None)

    def _watch(self) -> None:
        """Starts the watchdog; it runs while commands are in flight and stops by itself, so that
        an idle queue costs nothing.
        """
        if self._timer is None and not self.hot.closed:
            self._timer = self.loop.call_later(self.timeout / CHECKS, self._check)

    def _check(self) -> None:
        self._timer = None
        hot = self.hot
        if hot.closed:
            return
        if self._paused:
            self._watch()
            return
        epoch = hot.tick()
        if hot.n_outstanding == 0:
            hot.watched = False
            return
        # Possibly only the interrupt was lost.
        hot.reap()
        late = hot.older_than(epoch - CHECKS) if epoch > CHECKS else []
        if late:
            self._on_timeout(self, late)
        elif hot.older_than(epoch - 1):
            self._on_slow()
        self._watch()

    def _guard(self) -> None:
        """A sleep starts that a missed interrupt could make too long."""
        if not self._frozen:
            self._waits.guard(self.hot, self._on_early)

    def _on_early(self, missed: bool) -> None:
        if missed:
            self._check_vector()
        else:
            self._on_slow()

    def _check_vector(self) -> None:
        """Do interrupts arrive at all? If not, the ring is polled at each event-loop iteration
        while commands are in flight; so are those that share the vector.
        """
        hot, listener = self.hot, self._listener
        taken = listener.hot.n_interrupts
        if listener._on_interrupt is None or taken != self._interrupts:
            self._interrupts, self._missed = taken, hot.n_missed
        elif hot.n_missed - self._missed >= DEAD_VECTOR:
            self._missed = hot.n_missed
            listener._dead_vector = True
            for queue in (listener, *listener._sharing):
                queue.without_interrupts()
            self._on_dead_vector(self)

    def without_interrupts(self) -> None:
        """Interrupts are no longer waited for. The admin queue's early polls suffice for its few
        commands. From any thread.
        """
        if self.qid and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(setattr, self.hot, "mode", _hotpath.MODES["poll"])

    def inspect(self) -> dict[str, Any]:
        """Positions, counters and pending commands with their age in seconds."""
        state: dict[str, Any] = self.hot.inspect()
        epoch = state.pop("epoch", 0)
        for command in state.get("pending", ()):
            command["age"] = round((epoch - command.pop("epoch")) * self.timeout / CHECKS, 3)
            command["name"] = command_name(command["opcode"], admin=self.qid == 0)
        if "sq" in state:
            submitted = state["sq"]["submitted"]
            rung = state["sq"]["doorbells"] + state["cq"]["doorbells"]
            state["doorbells_per_command"] = round(rung / submitted, 3) if submitted else 0.0
        state["interrupt_cpus"] = self.cpus
        return state
