"""Queues over several paths: each call goes to one path's controller, and to another one if that
path is lost, or refuses it by its ANA state.

What is sent twice: after the loss of a path, commands that may be executed twice (RETRYABLE);
others end with the reason. After the status of an ANA state every command, because such a status
means that the command was not executed (Base 2.1, 8.1.1).
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Protocol

from nvme_async.driver.command_io import block_command
from nvme_async.driver.completions import error_from
from nvme_async.driver.context import ControllerContext
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.plain_queues import Execute, PlainQueue, PlainQueues
from nvme_async.driver.recovery import RETRYABLE
from nvme_async.driver.tcp.paths import WORDS, Path
from nvme_async.driver.transport import CommandQueue
from nvme_async.errors import (
    CommandError,
    CommandTimeout,
    ConfigurationError,
    ControllerError,
    ControllerTimeout,
    NvmeError,
    QueueShutdown,
)
from nvme_async.native._placement import byte_view
from nvme_async.runtime.gate import Gate
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identity import NamespaceIdentity
from nvme_async.spec.logs import AnaState
from nvme_async.spec.opcodes import command_name
from nvme_async.spec.status import PathStatus, StatusCodeType

LOST = (QueueShutdown, ControllerError)
"""The errors with which a path ends."""
_REFUSALS = frozenset(
    {
        PathStatus.ASYMMETRIC_ACCESS_PERSISTENT_LOSS,
        PathStatus.ASYMMETRIC_ACCESS_INACCESSIBLE,
        PathStatus.ASYMMETRIC_ACCESS_TRANSITION,
    }
)
_USABLE = (AnaState.OPTIMIZED, AnaState.NON_OPTIMIZED)
# Seconds until paths that refused a command with another path-related status get it again.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
_NO_IDENTITY = NamespaceIdentity()

Send = Callable[[Namespace | None, CommandQueue | None], Awaitable[Any]]
"""Sends to a path: its namespace, and the running loop's queue (None: it shares another loop's)."""


class Paths(Protocol):
    """The part of the transport that its queues need."""

    uri: str
    paths: Sequence[Path]
    gate: Gate
    owner: ControllerContext


def _is_path_related(status: int) -> bool:
    return status >> 8 & 7 == StatusCodeType.PATH


class PathQueue(PlainQueue):
    """One loop's queue: it has no commands of its own, but the paths' queues of that loop have."""

    def __init__(self, qid: int, loop: asyncio.AbstractEventLoop, execute: Execute, paths: Paths) -> None:
        options = paths.owner.options
        super().__init__(qid, loop, execute, options.queue_entries, options.command_timeout)
        self._paths = paths
        self._turn = 0
        self._sent: dict[Path, int] = {}
        self._making: dict[Path, asyncio.Task[CommandQueue | None]] = {}

    @property
    def in_flight(self) -> int:
        return sum(self._sent.values())

    # -- the choice --------------------------------------------------------------------------------

    def _choose(self, nsid: int, tried: set[Path]) -> Path | None:
        """An optimized path before a non-optimized one; among equals by `iopolicy`."""
        known = self._paths.owner.namespaces.get(nsid)
        identity = known.identity if known is not None else _NO_IDENTITY
        best: list[Path] = []
        found = AnaState.NON_OPTIMIZED
        for path in self._paths.paths:
            if path in tried or not path.ready or (known is not None and path.namespace(nsid, identity) is None):
                continue
            state = path.state_of(nsid)
            if state not in _USABLE or state > found:
                continue
            if state < found:
                best, found = [], state
            best.append(path)
        if not best:
            return None
        if self._paths.owner.options.iopolicy == "queue-depth":
            return min(best, key=lambda path: self._sent.get(path, 0))
        self._turn += 1
        return best[self._turn % len(best)]

    async def _queue_of(self, path: Path) -> CommandQueue | None:
        """This loop's queue of the path, made at first use. ControllerError if the path is lost
        meanwhile.
        """
        controller = path.controller
        if controller is None:
            raise ControllerError(f"{path.uri}: {path.trouble or 'the path is lost'}")
        queues = controller.transport.queues
        if self.loop in queues.hot or self.loop in queues.neighbours:
            return await queues.for_this_loop()
        making = self._making.get(path)
        if making is None:
            making = self._making[path] = self.loop.create_task(queues.for_this_loop(), name=f"{path.uri} queue")
            making.add_done_callback(lambda done: self._made(path, done))
        while not making.done():
            future = self._paths.gate.enter()
            try:
                if path.controller is not controller or not path.ready:
                    raise ControllerError(f"{path.uri}: the path was lost while it got a queue")
                either: list[asyncio.Future[Any]] = [making, future]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._paths.gate.leave(future)
        return making.result()

    def _made(self, path: Path, done: asyncio.Task[CommandQueue | None]) -> None:
        del self._making[path]
        if not done.cancelled():
            done.exception()  # of those that still wait

    async def _change(self, nsid: int, tried: set[Path], seconds: float) -> None:
        """Returns when a path may be usable that was not, at the latest after `seconds`."""
        future = self._paths.gate.enter()
        try:
            if self._refusal is None and self._choose(nsid, tried) is None:
                await asyncio.wait([future], timeout=None if seconds == math.inf else seconds)
        finally:
            self._paths.gate.leave(future)

    def _without(self, nsid: int, cause: NvmeError | None) -> ControllerTimeout:
        limit = self._paths.owner.options.ctrl_loss_tmo
        states = ", ".join(
            f"{path.address.endpoint} is {WORDS[path.state_of(nsid)] if path.ready else 'lost'}"
            for path in self._paths.paths
        )
        last = f"; the last error: {cause}" if cause is not None else ""
        return ControllerTimeout(
            f"{self._paths.uri}: no path to namespace {nsid} for {limit:g} s (ctrl_loss_tmo): {states}{last}"
        )

    # -- sending -----------------------------------------------------------------------------------

    async def _over_a_path(self, nsid: int, again: bool, geometry: Any, send: Send) -> Any:
        """again: it may be executed twice."""
        tried: set[Path] = set()
        timeouts, pause = 0, FIRST_PAUSE
        limit: float | None = None  # for the time without a path
        cause: NvmeError | None = None
        while True:
            await self._permission(geometry)
            path = self._choose(nsid, tried)
            if path is None:
                now = self.loop.time()
                limit = now + self._paths.owner.options.loss_limit if limit is None else limit
                if now >= limit:
                    raise self._without(nsid, cause)
                await self._change(nsid, tried, min(limit - now, pause) if tried else limit - now)
                pause = min(2 * pause, LONGEST_PAUSE) if tried else pause
                tried.clear()
                continue
            try:
                queue = await self._queue_of(path)
                if self._gate is not None or self._refusal is not None or (geometry is not None and geometry.held):
                    continue
                return await self._send(path, nsid, queue, send)
            except CommandError as error:
                if error.sct != StatusCodeType.PATH:
                    raise
                if error.sc in _REFUSALS:
                    path.refused(nsid)
                elif error.dnr or not again:
                    raise
                cause = error
                tried.add(path)
            except CommandTimeout as error:
                timeouts += 1
                if not again or timeouts > self._paths.owner.options.retries:
                    raise
                cause = error
                tried.add(path)
            except LOST as error:
                if self._refusal is None and not again:
                    raise
                cause = error
                if path.ready:
                    tried.add(path)
            path.failovers += 1

    async def _send(self, path: Path, nsid: int, queue: CommandQueue | None, send: Send) -> Any:
        controller = path.controller
        if controller is None:
            raise ControllerError(f"{path.uri}: {path.trouble or 'the path is lost'}")
        self._sent[path] = self._sent.get(path, 0) + 1
        self.submitted += 1
        path.commands += 1
        try:
            return await send(controller.namespaces.get(nsid), queue)
        finally:
            self._sent[path] -= 1
            self.completed += 1

    async def io(self, namespace: Any, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """See CommandQueue.io()."""

        async def send(target: Namespace | None, queue: CommandQueue | None) -> Any:
            if target is None:
                raise ControllerError(f"{self._paths.uri}: the path has no namespace {namespace.nsid} any more")
            return await getattr(target, method)(*arguments, **options)

        if namespace._gone is not None:
            raise namespace._gone
        return await self._over_a_path(namespace.nsid, True, namespace.geometry, send)

    def own(self, queue: CommandQueue | None) -> CommandQueue:
        """This loop's queue of a path. ConfigurationError if it has none of its own."""
        if queue is None:
            raise ConfigurationError(
                f"{self._paths.uri}: this event loop shares another loop's queue pair, so it can only read, "
                "write and flush"
            )
        return queue

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

        async def send(target: Namespace | None, queue: CommandQueue | None) -> Completion:
            return await self.own(queue).submit(
                command, buffer, tag=tag, internal=internal, user=user, geometry=geometry
            )

        if not isinstance(command, Command):
            raise TypeError(f"command is a {type(command).__name__}, must be a Command of nvme_async.spec")
        again = command.opcode in RETRYABLE
        completion: Completion = await self._over_a_path(command.nsid, again, geometry, send)
        return completion

    def batch(self, *arguments: Any, **options: Any) -> Any:
        """See CommandQueue.batch(). If its path is lost, all elements are sent again."""
        return PathBatch(self, arguments, options)

    def inspect(self) -> dict[str, Any]:
        """See CommandQueue.inspect()."""
        return {**super().inspect(), "outstanding": self.in_flight}


class PathBatch:
    """See transport.BatchOfCommands."""

    def __init__(self, queue: PathQueue, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._queue = queue
        self._arguments = arguments
        self._options = options
        self._opcode, self._nsid, lbas, self._blocks, _, self._nbytes = arguments
        self._lbas = byte_view(lbas).cast("Q")
        self.statuses: array[int] = array("H", bytes(2 * len(self._lbas)))
        self.failed = 0

    def __len__(self) -> int:
        return len(self._lbas)

    def command(self, element: int) -> bytes:
        """The 64 bytes of one element's command."""
        flags = self._options.get("flags", 0)
        return block_command(self._opcode, self._nsid, self._lbas[element], self._blocks, self._nbytes, flags).pack()

    def __await__(self) -> Generator[Any, None, PathBatch]:
        return self._run().__await__()

    async def _run(self) -> PathBatch:
        async def send(target: Namespace | None, queue: CommandQueue | None) -> None:
            queue = self._queue.own(queue)
            options = {**self._options, "depth": min(self._options.get("depth", 0), queue.entries)}
            batch = queue.batch(*self._arguments, **options)
            await batch
            for element, status in enumerate(batch.statuses if batch.failed else ()):
                if _is_path_related(status):
                    raise error_from(status, 0, batch.command(element), False, False)
            self.statuses, self.failed = batch.statuses, batch.failed

        await self._queue._over_a_path(self._nsid, self._opcode in RETRYABLE, self._options.get("geometry"), send)
        return self

    def __repr__(self) -> str:
        return f"<{len(self)} × {command_name(self._opcode, admin=False)} over several paths>"


class PathQueues(PlainQueues):
    """The loops' queues; operations on all of them concern the paths' queues too."""

    def __init__(self, owner: ControllerContext, paths: Paths, execute: Execute) -> None:
        super().__init__(owner, execute, entries=owner.options.admin_entries)
        self._paths = paths

    def _make(self, qid: int, loop: asyncio.AbstractEventLoop) -> PathQueue:
        return PathQueue(qid, loop, self._execute, self._paths)

    def _controllers(self) -> list[ControllerContext]:
        return [path.controller for path in self._paths.paths if path.controller is not None]

    def with_commands(self) -> list[CommandQueue]:
        return [queue for controller in self._controllers() for queue in controller.transport.queues.with_commands()]

    async def refuse(self, error: NvmeError) -> None:
        await super().refuse(error)
        self._paths.gate.wake()

    async def fail(self, error: NvmeError, *, admin: bool = True) -> None:
        await super().fail(error, admin=admin)
        self._paths.gate.wake()
        for controller in self._controllers():
            await controller.transport.queues.fail(error, admin=admin)

    async def drain(self, seconds: float, nsids: frozenset[int] | None = None) -> bool:
        until = self._owner.loop.time() + seconds
        for controller in self._controllers():
            if not await controller.transport.queues.drain(max(0.0, until - self._owner.loop.time()), nsids):
                return False
        return True

    async def go_on(self, *, strictly: bool = False) -> None:
        await super().go_on(strictly=strictly)
        for controller in self._controllers():
            await controller.transport.queues.go_on(strictly=strictly)

    def inspect(self) -> dict[str, Any]:
        """The queues and errors of all paths. Each has an admin queue of its own."""
        queues: list[dict[str, Any]] = []
        errors: dict[str, int] = {}
        strays = shared = 0
        for path in self._paths.paths:
            if path.controller is None:
                continue
            found = path.controller.transport.queues.inspect()
            queues += [{**queue, "path": path.uri} for queue in found["io_queues"]]
            for status, count in found["errors"].items():
                errors[status] = errors.get(status, 0) + count
            strays += found["stray_completions"]
            shared += found["loops_sharing_a_queue"]
        return {
            **super().inspect(),
            "admin_queue": None,
            "io_queues": queues,
            "errors": errors,
            "stray_completions": strays,
            "loops_sharing_a_queue": shared,
        }
