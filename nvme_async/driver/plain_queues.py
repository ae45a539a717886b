"""Queues for transports whose commands are awaitables: one per event loop, with the common
rules.

A transport supplies `execute`, a coroutine function that executes one command. This module adds the
limit of commands in flight, holding, refusing, and the handling of a command whose caller was
cancelled: it runs to its end, and its buffer stays reserved until then.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from nvme_async.driver import command_io
from nvme_async.driver.transport import CommandQueue, Owner
from nvme_async.errors import CommandTimeout, NvmeError
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.opcodes import NvmOpcode

Execute = Callable[["PlainQueue", Command, memoryview | None, int], Awaitable[Completion]]
"""execute(queue, command, buffer, nbytes): buffer None with nbytes > 0 requests the data as
Completion.data.

Raises CommandError for errors that the controller reports. It is never cancelled.
"""

_CHANGES_BLOCKS = frozenset(
    {
        NvmOpcode.WRITE,
        NvmOpcode.WRITE_ZEROES,
        NvmOpcode.WRITE_UNCORRECTABLE,
        NvmOpcode.DATASET_MANAGEMENT,
        NvmOpcode.COPY,
    }
)


@attrs.define(eq=False)
class InFlight:
    """One command in the transport."""

    command: Command
    began: float
    left_behind: bool = False
    callbacks: list[Callable[[], None]] = attrs.field(factory=list)


def _retrieve(task: asyncio.Task[Completion]) -> None:
    if not task.cancelled():
        task.exception()


class PlainQueue:
    """One loop's queue. See nvme_async.driver.transport.CommandQueue."""

    completed: int
    submitted: int
    failed: int

    def __init__(
        self, qid: int, loop: asyncio.AbstractEventLoop, execute: Execute, entries: int, timeout: float
    ) -> None:
        self.qid = qid
        self.loop = loop
        self.entries = entries
        self.timeout = timeout
        self.worker = ""
        self.closed = False
        self._execute = execute
        self._slots = asyncio.Semaphore(entries - 1)
        self._refusal: NvmeError | None = None
        self._gate: asyncio.Future[None] | None = None  # while new commands wait
        self._parked: list[asyncio.Future[None]] = []  # their namespace is held
        self._out: dict[int, InFlight] = {}
        self._next = 0
        self._waiters: set[asyncio.Future[Any]] = set()
        self.submitted = self.completed = self.failed = 0

    @property
    def in_flight(self) -> int:
        return len(self._out)

    # -- called by the group, on this loop ---------------------------------------------------------

    def hold(self, on: bool) -> None:
        """New commands wait, or continue."""
        if on and self._gate is None:
            self._gate = self.loop.create_future()
        elif not on and self._gate is not None:
            gate, self._gate = self._gate, None
            if not gate.done():
                gate.set_result(None)

    def refuse(self, error: NvmeError) -> None:
        """New commands fail, those that wait too."""
        self._refusal = error
        self.hold(False)
        self.go_on()

    def go_on(self) -> None:
        """Commands that wait for a held geometry check it again."""
        parked, self._parked = self._parked, []
        for future in parked:
            if not future.done():
                future.set_result(None)

    def fail_waiters(self, error: NvmeError) -> None:
        """All waits end; what is in flight stays with the transport."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    # -- commands ----------------------------------------------------------------------------------

    async def submit(
        self,
        command: Command,
        buffer: Any = None,
        *,
        tag: int = 0,
        internal: bool = False,
        user: bool = False,
        geometry: Any = None,
    ) -> Completion:
        """See CommandQueue.submit()."""
        view, nbytes = command_io.check_buffer(command, buffer)
        await self._slots.acquire()
        try:
            await self._permission(geometry)
        except BaseException:
            self._slots.release()
            raise
        cid, self._next = self._next, self._next + 1 & 0xFFFF_FFFF
        self._out[cid] = out = InFlight(command, time.monotonic())
        self.submitted += 1
        task = self.loop.create_task(self._run(cid, command, view, nbytes), name=command.name)
        task.add_done_callback(_retrieve)  # its waiter may have gone
        waiter = asyncio.shield(task)
        self._waiters.add(waiter)
        limit = None if internal else self.timeout or None
        try:
            async with asyncio.timeout(limit):
                return await waiter
        except asyncio.CancelledError:
            out.left_behind = True
            raise
        except TimeoutError as error:
            if isinstance(error, NvmeError):
                raise
            out.left_behind = True
            raise CommandTimeout(
                f"{command.name} on namespace {command.nsid}: no completion for {limit:g} s; its buffer is not released"
            ) from None
        finally:
            self._waiters.discard(waiter)

    async def _permission(self, geometry: Any) -> None:
        """Returns when nothing holds the command. Raises the reason if it must not be sent."""
        while True:
            if self._refusal is not None:
                raise self._refusal
            if geometry is not None:
                geometry.check()
            if self._gate is not None:
                await asyncio.shield(self._gate)
            elif geometry is not None and geometry.held:
                parked = self.loop.create_future()
                self._parked.append(parked)
                await parked
            else:
                return

    async def _run(self, cid: int, command: Command, view: memoryview | None, nbytes: int) -> Completion:
        try:
            return await self._execute(self, command, view, nbytes)
        except NvmeError:
            self.failed += 1
            raise
        finally:
            self.completed += 1
            self._slots.release()
            for callback in self._out.pop(cid).callbacks:
                callback()

    async def io(self, namespace: Any, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """See CommandQueue.io()."""
        return await command_io.io(self, namespace, method, arguments, options)

    def batch(self, *arguments: Any, **options: Any) -> command_io.Batch:
        """See CommandQueue.batch()."""
        return command_io.Batch(self, *arguments, **options)

    # -- abandoned commands -------------------------------------------------------------

    def mark_timed_out(self, cids: Any) -> None:
        """Nothing to do: a waiter gets CommandTimeout by its own limit."""

    def still_out(self, cids: Any) -> bool:
        """Has one of them not completed yet?"""
        return any(cid in self._out for cid in cids)

    def left_behind(self, nsid: int, lba: int, blocks: int) -> list[int]:
        """See CommandQueue.left_behind()."""

        def concerns(command: Command) -> bool:
            if command.nsid != nsid or command.opcode not in _CHANGES_BLOCKS:
                return False
            if command.opcode != NvmOpcode.WRITE or command.lba is None:
                return True
            return command.lba < lba + blocks and lba < command.lba + (command.blocks or 1)

        return [cid for cid, out in self._out.items() if out.left_behind and concerns(out.command)]

    def when_gone(self, cids: list[int], callback: Callable[[], None]) -> None:
        """See CommandQueue.when_gone()."""
        left = {cid for cid in cids if cid in self._out}
        if not left:
            callback()

        def gone(cid: int) -> None:
            left.discard(cid)
            if not left:
                callback()

        for cid in list(left):
            self._out[cid].callbacks.append(lambda cid=cid: gone(cid))  # type: ignore[misc]

    def poll(self) -> None:
        """Nothing to poll: completions arrive through the loop."""

    def inspect(self) -> dict[str, Any]:
        """See CommandQueue.inspect()."""
        now = time.monotonic()
        pending = [
            {"name": out.command.name, "nsid": out.command.nsid, "age": round(now - out.began, 3)}
            for out in list(self._out.values())
        ]
        return {
            "qid": self.qid,
            "depth": self.entries - 1,
            "outstanding": len(pending),
            "waiting": 0,
            "submitted": self.submitted,
            "completed": self.completed,
            "errors": self.failed,
            "held": self._gate is not None,
            "closed": self.closed,
            "worker": self.worker,
            "pending": pending,
        }


class PlainQueues:
    """See nvme_async.driver.transport.QueueGroup. A loop gets its queue at first use; there is
    always one more.
    """

    def __init__(self, owner: Owner, execute: Execute, *, entries: int) -> None:
        self._owner = owner
        self._execute = execute
        self._entries = entries
        self._lock = threading.Lock()
        self._holds: set[str] = set()
        self._refusal: NvmeError | None = None
        self._io: dict[asyncio.AbstractEventLoop, PlainQueue] = {}
        self._ids = 0
        self.hot: dict[asyncio.AbstractEventLoop, Any] = {}
        self.neighbours: dict[asyncio.AbstractEventLoop, PlainQueue] = {}
        self.limit = 0xFFFF
        self.admin: PlainQueue = PlainQueue(0, owner.loop, execute, entries, owner.options.admin_timeout)

    def _make(self, qid: int, loop: asyncio.AbstractEventLoop) -> PlainQueue:
        return PlainQueue(qid, loop, self._execute, self._entries, self._owner.options.command_timeout)

    def all(self) -> list[PlainQueue]:
        return [self.admin, *self._queues()]

    def _queues(self) -> list[PlainQueue]:
        """Those of all loops."""
        with self._lock:
            return list(self._io.values())

    def with_commands(self) -> Sequence[CommandQueue]:
        return self._queues()

    async def for_this_loop(self) -> PlainQueue:
        loop = asyncio.get_running_loop()
        queue = self._io.get(loop)
        if queue is None:
            await self._owner._until_ready()
            with self._lock:
                for ended in [one for one in self._io if one.is_closed()]:
                    del self._io[ended]
                self._ids += 1
                queue = self._make(self._ids, loop)
                queue.worker = threading.current_thread().name
                self._io[loop] = queue
            queue.hold(bool(self._holds))
            if self._refusal is not None:
                queue.refuse(self._refusal)
        return queue

    async def _each(self, what: Callable[[PlainQueue], None], *, admin: bool) -> None:
        for queue in self.all() if admin else self._queues():
            if not queue.loop.is_closed():
                await self._owner._on_owner(queue, lambda queue=queue: what(queue))  # type: ignore[misc]

    async def hold(self, reason: str) -> None:
        self._holds.add(reason)
        await self._each(lambda queue: queue.hold(True), admin=False)

    async def unhold(self, reason: str) -> None:
        self._holds.discard(reason)
        await self._each(lambda queue: queue.hold(bool(self._holds)), admin=False)

    async def refuse(self, error: NvmeError) -> None:
        self._refusal = error
        await self._each(lambda queue: queue.refuse(error), admin=False)

    async def fail(self, error: NvmeError, *, admin: bool = True) -> None:
        self._refusal = error

        def fail(queue: PlainQueue) -> None:
            queue.refuse(error)
            queue.fail_waiters(error)

        await self._each(fail, admin=admin)

    async def drain(self, seconds: float, nsids: frozenset[int] | None = None) -> bool:
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        while any(self._out_of(queue, nsids) for queue in self._queues()):
            if loop.time() >= limit:
                return False
            await asyncio.sleep(0.001)
        return True

    @staticmethod
    def _out_of(queue: PlainQueue, nsids: frozenset[int] | None) -> bool:
        return any(nsids is None or out.command.nsid in nsids for out in list(queue._out.values()))

    async def go_on(self, *, strictly: bool = False) -> None:
        await self._each(lambda queue: queue.go_on(), admin=False)

    async def silence(self) -> None:
        await self._each(lambda queue: queue.hold(True), admin=False)

    async def go(self) -> None:
        self._holds.discard("reset")
        await self._each(lambda queue: queue.hold(bool(self._holds)), admin=False)

    def refuse_in_child(self, error: NvmeError) -> None:
        self._refusal = error
        for queue in self.all():
            queue._refusal = error

    def inspect(self) -> dict[str, Any]:
        queues = self.all()
        return {
            "admin_queue": queues[0].inspect(),
            "io_queues": [queue.inspect() for queue in queues[1:]],
            "held": sorted(self._holds),
            "io_queue_limit": self.limit,
        }
