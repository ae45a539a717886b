"""Several paths to one NVMe/TCP subsystem as one controller: tcp:HOST:PORT,HOST:PORT/NQN.

Each path has a controller of its own, with its connections, reset and reconnect; the one that the
application has sends through them. It stays while one of them is there, and fails when none has
been for `ctrl_loss_tmo`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from nvme_async.driver.context import ControllerContext
from nvme_async.driver.controller import Controller
from nvme_async.driver.events import Event
from nvme_async.driver.lifecycle import State
from nvme_async.driver.options import Options
from nvme_async.driver.plain_queues import PlainQueue
from nvme_async.driver.steps import Degraded, Step
from nvme_async.driver.tcp.address import Address
from nvme_async.driver.tcp.path_queues import LOST, PathQueues
from nvme_async.driver.tcp.paths import Path
from nvme_async.driver.tcp.properties import of_fabrics
from nvme_async.driver.transport import Owner, Transport
from nvme_async.errors import ConfigurationError, ControllerGone, NvmeError
from nvme_async.runtime.gate import Gate
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identity import ControllerIdentity
from nvme_async.spec.opcodes import AdminOpcode
from nvme_async.spec.registers import Register

log: logging.Logger = logging.getLogger("nvme_async")

_READING = frozenset({AdminOpcode.IDENTIFY, AdminOpcode.GET_LOG_PAGE, AdminOpcode.GET_FEATURES})
"""Admin commands that change nothing, and so may be sent again on another path."""
_CHANGING = frozenset(
    {
        AdminOpcode.NAMESPACE_MANAGEMENT,
        AdminOpcode.NAMESPACE_ATTACHMENT,
        AdminOpcode.FORMAT_NVM,
        AdminOpcode.SANITIZE,
    }
)
"""After these every path reads its namespaces again."""


class MultipathTransport(Transport):
    """Attributes:
    paths: in the order of the URI. gate: wakes those that wait for a path.
    """

    kind = "tcp"

    def __init__(self, addresses: Sequence[Address], options: Options) -> None:
        self.uri: str = "tcp:" + ",".join(one.endpoint for one in addresses) + f"/{addresses[0].nqn}"
        self.gate: Gate = Gate()
        self.paths: Sequence[Path] = [
            Path(address, options, on_change=self._changed, on_event=self._heard) for address in addresses
        ]
        self._events: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self._on_gone: Callable[[], None] | None = None
        self._last_chance: asyncio.TimerHandle | None = None
        self._trouble: str | None = None

    def attach(self, owner: Owner) -> None:
        if owner.options.keepalive:
            raise ConfigurationError(
                f"{self.uri}: keepalive needs a PCI function; over TCP, commands in flight are drained instead"
            )
        assert isinstance(owner, ControllerContext)
        self.owner: ControllerContext = owner
        self.queues: PathQueues = PathQueues(owner, self, self._admin)

    def _ready(self) -> list[Path]:
        return [path for path in self.paths if path.ready]

    @property
    def readable(self) -> Sequence[Register]:
        return of_fabrics(self.cap)

    async def read_property(self, register: Register) -> int:
        """Of the first usable path's controller."""
        for path in self._ready():
            if path.controller is not None:
                return await path.controller.transport.read_property(register)
        raise ControllerGone(f"{self.uri}: no path is usable")

    # -- bring-up and reset ------------------------------------------------------------------------

    def open_steps(self) -> Sequence[Step]:
        return [Step("Connect", self._open, repeatable=False)]

    def connect_steps(self, degraded: Degraded, error: NvmeError) -> Sequence[Step]:
        return [Step("paths", lambda: self._reset(error))]

    def queue_steps(self, degraded: Degraded, lost: set[str]) -> Sequence[Step]:
        return []

    def _known(self) -> ControllerIdentity | None:
        for path in self.paths:
            if path.controller is not None and path.controller.identity is not None:
                return path.controller.identity
        return self.owner.identity

    async def _open(self) -> None:
        """All at once; one is enough. The first of the URI that answers is what the others are
        compared with.
        """
        results = await asyncio.gather(*(path.open(None) for path in self.paths), return_exceptions=True)
        opened = [one for one in results if isinstance(one, Controller)]
        for path, result in zip(self.paths, results, strict=True):
            if isinstance(result, BaseException):
                if not isinstance(result, NvmeError):
                    raise result
                path.trouble = str(result)
                log.warning("%s: %s", path.uri, result)
        if not opened:
            first = next(one for one in results if isinstance(one, NvmeError))
            raise first
        first_identity = opened[0].identity
        assert first_identity is not None
        for path in self.paths:
            controller = path.controller
            if controller is None or controller.identity is None:
                continue
            if differences := first_identity.differences(controller.identity, connected_anew=True):
                raise ConfigurationError(f"{path.uri} is not a path to the same subsystem: {differences}")
        self.cap, self.vs = opened[0].cap, opened[0].vs
        self._all_command_sets = opened[0].transport.all_command_sets
        for path in self.paths:
            path.start(self._known)

    async def _reset(self, error: NvmeError) -> None:
        """A requested reset is one of each path."""
        if self.owner.state is not State.RESETTING:
            return
        self._end_event_request()
        controllers = [path.controller for path in self._ready() if path.controller is not None]
        results = await asyncio.gather(*(one.reset(str(error)) for one in controllers), return_exceptions=True)
        failures = [one for one in results if isinstance(one, BaseException)]
        if len(failures) == len(controllers):
            raise failures[0] if failures else ControllerGone(f"{self.uri}: no path is there")
        await self._any()

    @property
    def all_command_sets(self) -> bool:
        return self._all_command_sets

    @property
    def max_transfer(self) -> int:
        """What every path takes."""
        limits = [path.controller.transport.max_transfer for path in self.paths if path.controller is not None]
        return min(limits, default=self.owner.options.max_transfer)

    # -- health ------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """A path was lost, came back, or has other ANA states."""
        self.gate.wake()
        loop = self.owner.loop
        if self._ready():
            if self._last_chance is not None:
                self._last_chance.cancel()
                self._last_chance = None
        elif self._last_chance is None and not loop.is_closed():
            limit = self.owner.options.loss_limit
            log.warning("%s: no path is left; I/O waits for up to %g s", self.uri, limit)
            if limit != math.inf:
                self._last_chance = loop.call_later(limit, self._none_came_back)
        for namespace in self.owner.namespaces.values():
            if namespace.max_blocks * namespace.block_size > self.max_transfer:
                namespace._limit()

    def _none_came_back(self) -> None:
        self._last_chance = None
        troubles = "; ".join(f"{path.address.endpoint}: {path.trouble or 'lost'}" for path in self.paths)
        limit = self.owner.options.ctrl_loss_tmo
        self._trouble = f"all paths were lost, and none came back within {limit:g} s (ctrl_loss_tmo): {troubles}"
        if self._on_gone is not None:
            self._on_gone()

    def _heard(self, event: Event) -> None:
        if event.event is not None:
            self._events.put_nowait((event.event.to_dw0(), event.event.parameter))

    def _end_event_request(self) -> None:
        """The Asynchronous Event Request that nothing waits for any more must not take the next
        event.
        """
        ended, self._events = self._events, asyncio.Queue()
        ended.put_nowait((0, 0))

    async def lost(self) -> str:
        return ""

    async def has_failed(self) -> bool:
        if not self._ready():
            raise ControllerGone(f"{self.uri}: no path is there")
        return False

    @property
    def trouble(self) -> str | None:
        return self._trouble

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        self._on_gone = on_gone

    # -- the end -----------------------------------------------------------------------------------

    async def _close_paths(self) -> None:
        if self._last_chance is not None:
            self._last_chance.cancel()
            self._last_chance = None
        self._on_gone = None
        self._end_event_request()
        results = await asyncio.gather(*(path.close() for path in self.paths), return_exceptions=True)
        for path, result in zip(self.paths, results, strict=True):
            if isinstance(result, BaseException):
                log.warning("%s: %s", path.uri, result)

    async def shut_down(self, seconds: float) -> None:
        await self._close_paths()

    async def release(self, reason: NvmeError, *, keep: bool = False) -> Transport | None:
        await self._close_paths()
        await self.queues.fail(reason)
        return None

    async def cut_off(self) -> None:
        for path in self.paths:
            if path.controller is not None:
                await path.controller.transport.cut_off()

    def drop(self) -> None:
        for path in self.paths:
            controller, path.controller = path.controller, None
            if controller is not None:
                controller.abandon()

    def abandon(self) -> None:
        """Nothing is open before attach()."""

    # -- admin commands ----------------------------------------------------------------------------

    async def _admin(self, queue: PlainQueue, command: Command, buffer: memoryview | None, nbytes: int) -> Completion:
        if command.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
            dw0, dw1 = await self._events.get()
            return Completion(dw0=dw0, dw1=dw1)
        while True:
            controller = await self._any()
            try:
                if command.opcode in _READING:
                    return await controller._submit_admin(command, buffer)
                completion = await controller.admin(command, buffer)
                break
            except LOST:
                if command.opcode not in _READING or controller.state is State.READY:
                    raise
        if command.opcode in _CHANGING:
            others = [path.controller for path in self._ready() if path.controller not in (None, controller)]
            for result in await asyncio.gather(*(one.rescan() for one in others if one), return_exceptions=True):
                if isinstance(result, BaseException):
                    log.warning("%s: rescan of a path: %s", self.uri, result)
        return completion

    async def _any(self) -> Controller:
        """A controller that takes commands, waiting for one."""
        while True:
            future = self.gate.enter()
            try:
                for path in self._ready():
                    if path.controller is not None:
                        return path.controller
                if self._trouble is not None:
                    raise ControllerGone(f"{self.uri}: {self._trouble}")
                await asyncio.wait([future], timeout=1.0)
            finally:
                self.gate.leave(future)

    def inspect(self) -> dict[str, Any]:
        return {**self.queues.inspect(), "memory": None, "paths": [path.inspect() for path in self.paths]}
