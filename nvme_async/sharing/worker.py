"""The worker's side: the transport of "shared:PATH" URIs, and this process's lease.

I/O goes through native queue pairs in this process's memory, without a message. Everything else
uses the connection to the owner. It may be lost because the owner is being replaced: then I/O
continues, and the worker reconnects; admin commands and resets wait for that.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from nvme_async.device import DeviceIds
from nvme_async.device.quirks import Quirks, quirks_of
from nvme_async.driver.context import ControllerContext
from nvme_async.driver.lifecycle import State
from nvme_async.driver.options import DEFAULT_POOL
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.pcie.pooled_transport import PassedDevice, PooledTransport
from nvme_async.driver.recovery import RETRYABLE
from nvme_async.driver.steps import Degraded, Step
from nvme_async.driver.transport import Owner
from nvme_async.errors import (
    CommandError,
    ConfigurationError,
    ControllerError,
    ControllerGone,
    ControllerTimeout,
    LeaseError,
    NvmeError,
)
from nvme_async.runtime.tasks import in_thread
from nvme_async.sharing.channel import Channel, connect
from nvme_async.sharing.holds import Holds
from nvme_async.sharing.leased_device import LeasedDevice
from nvme_async.sharing.leased_queues import LeasedQueues
from nvme_async.sharing.protocol import Message
from nvme_async.spec.registers import Cap, Vs

log: logging.Logger = logging.getLogger("nvme_async")

OPEN_SECONDS = 10.0
"""Limit for the owner to listen, and to answer."""
OWNER_SECONDS = 60.0
"""Limit for an owner to exist and be ready, if it is needed: in a reset, or for an admin
command.
"""

_USAGE_SECONDS = 1.0

_unreturned: list[Any] = []
"""Memory of leases whose owner could not be asked to unmap it: kept until this process ends."""


class SharedTransport(PooledTransport):
    """Attributes:
    device: doorbells, vectors and addresses of the lease.
    memory: this process's pools, after the connect steps; None before.
    life: the epoch in which the queues were created last; stopped: the latest epoch that the owner
        has announced;
    ready: the latest in which it accepts requests for queues.
    """

    kind = "shared"
    configured = False
    coexists = True
    unmaps_by_request = True
    _owner: ControllerContext
    queues: LeasedQueues

    reconnections: int

    def __init__(
        self, uri: str, device: LeasedDevice, channel: Channel, inbox: list[Message], *, joined: bool = False
    ) -> None:
        """joined: the lease is still a predecessor's, until take()."""
        grant = device.grant
        self.uri = uri
        self.device = device
        cap = Cap.from_int(grant.cap)
        self.cap: Cap = Cap.from_int(grant.cap & ~0xFFFF | min(cap.mqes, grant.entries - 1))
        self.vs: Vs = Vs.from_int(grant.vs)
        self.memory: DeviceMemory | None = None
        self.life = self.stopped = self.ready = grant.life
        self._changed = asyncio.Event()
        self._stale_since = -math.inf  # the loop's time at which the owner refused a request of an earlier epoch
        self._connected = asyncio.Event()
        self._connected.set()
        self._ending = False
        self._on_gone: Callable[[], None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._early = inbox
        self.holds = Holds(self)
        self._joined = joined
        self._channel = channel
        self.reconnections = 0

    def attach(self, owner: Owner) -> None:
        self._owner = cast(ControllerContext, owner)
        self.owners_quirks = self.device.grant.quirks
        self.quirks: Quirks = quirks_of(self.device.ids, override=owner.options.quirks, owner=self.device.grant.quirks)
        self.queues = LeasedQueues(owner, self)
        if self._joined:
            return  # notices are the predecessor's to obey; begin() goes on
        self._use(self._channel)
        for message in self._early:
            self._on_message(message)
        self._early = []

    @property
    def passed_device(self) -> PassedDevice:
        return self.device

    @property
    def ids(self) -> DeviceIds:
        return self.device.ids

    @property
    def all_command_sets(self) -> bool:
        return self.device.grant.all_command_sets

    # -- the connection ----------------------------------------------------------------------------

    def _use(self, channel: Channel) -> None:
        self._channel = channel
        channel._on_message = self._on_message
        channel._on_closed = self._on_closed
        if channel.closed:
            self._on_closed("it was closed")

    def _spawn(self, work: Callable[[], Any], name: str) -> None:
        task = self._owner.loop.create_task(work(), name=f"{self.uri} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_closed(self, reason: str) -> None:
        if self._ending or self._owner.loop.is_closed():
            return
        log.info("%s: the owner is not available (%s); I/O continues", self.uri, reason)
        self._connected.clear()
        self._spawn(self._reconnect, "reconnection")

    async def _reconnect(self) -> None:
        grant = self.device.grant
        while not self._ending:
            try:
                channel = Channel(await connect(self.device.path, 3600.0), self._on_message, self._on_closed_early)
            except (LeaseError, ControllerGone, ConfigurationError) as error:
                log.warning("%s: %s", self.uri, error)
                await asyncio.sleep(1.0)
                continue
            try:
                body = {"lease": grant.lease, "token": grant.token}
                answer = await channel.request("attach", body, seconds=OPEN_SECONDS)
            except LeaseError as error:
                if error.code == "revoked":
                    # The owner waits for the confirmation that no doorbell is rung any more.
                    self._use(channel)
                    self._lost(error)
                    return
                channel.close()
                if error.code in ("unknown", "version"):
                    self._lost(error)
                    return
                await asyncio.sleep(0.1)
                continue
            except (ConnectionError, ControllerTimeout):
                channel.close()
                await asyncio.sleep(0.01)
                continue
            self._use(channel)
            if channel.closed:
                return
            self.reconnections += 1
            self._connected.set()
            self._stop(answer.number("life"))
            if answer.body.get("ready"):
                self._set_ready(answer.number("life"))
            # Notices in the meantime were missed.
            if not self.holds.again(answer) and self._owner.state is State.READY:
                self._owner._rescan_later("the owner was not available")
            return

    @staticmethod
    def _on_closed_early(reason: str) -> None:
        """The outstanding request ends with it."""

    async def request(
        self, kind: str, body: dict[str, Any] | None = None, *, data: bytes = b"", repeatable: bool = True
    ) -> Message:
        """The owner's answer, from any owner within OWNER_SECONDS.

        repeatable: if the connection is lost before the answer, it may be sent again, although it
            may have been executed. Otherwise ControllerError.
        """
        limit = self._owner.loop.time() + OWNER_SECONDS
        while True:
            left = limit - self._owner.loop.time()
            if left <= 0 or self._ending:
                raise ControllerTimeout(f"{self.uri}: no owner answered {kind!r} within {OWNER_SECONDS:g} s")
            try:
                async with asyncio.timeout(left):
                    await self._connected.wait()
            except TimeoutError:
                continue
            try:
                return await self._channel.request(kind, body, data=data, seconds=left)
            except ConnectionResetError as error:
                if self._joined:
                    raise ControllerGone(f"{self.uri}: {error}") from None
                if not repeatable:
                    raise ControllerError(
                        f"{self.uri}: the connection to the owner was lost; the request may have been executed"
                    ) from None
                await asyncio.sleep(0)
            except LeaseError as error:
                if error.code == "stale":
                    self._stale_since = self._owner.loop.time()
                    raise ControllerError(f"{self.uri}: {error}") from error
                if error.code == "failed":
                    raise ControllerError(f"{self.uri}: {error}") from error
                raise

    def _on_message(self, message: Message) -> None:
        message.close()
        try:
            self._heed(message)
        except LeaseError as error:
            log.warning("%s: %s", self.uri, error)

    def _heed(self, message: Message) -> None:
        kind = message.kind
        if kind == "stop":
            self._stop(message.number("life"))
        elif kind == "ready":
            self._set_ready(message.number("life"))
        elif kind == "event":
            self.queues.event(message.number("dw0"), message.number("dw1"))
        elif kind == "hold":
            self.holds.begin(message.number("hold"))
        elif kind == "unhold":
            self.holds.end()
        elif kind in ("failed", "closed"):
            self._lost(ControllerGone(f"{self.uri}: {message.text('text', 1000)}"))
        elif kind == "revoked":
            self._lost(LeaseError(f"{self.uri}: the owner revoked the lease: {message.text('text')}", code=kind))

    # -- stop and resume ---------------------------------------------------------------------

    def _lost(self, error: NvmeError) -> None:
        """There is no lease any more: all callers get `error`, and no doorbell is rung."""
        if self._ending:
            return
        if self._owner.state not in (State.CLOSING, State.CLOSED):
            self._owner._fail(error)
        self._spawn(self._confirm, "end")

    async def _confirm(self) -> None:
        """Each thread has noticed the stop: the owner may lend the ids again."""
        try:
            await self.queues.silence()
            self._channel.send("stopped", {"life": 0xFFFF_FFFF})
        except NvmeError as error:
            log.warning("%s: %s", self.uri, error)

    def _stop(self, life: int) -> None:
        if life > self.stopped:
            self.stopped = life
            self._changed.set()
            self._spawn(self._obey, "stop")

    def _set_ready(self, life: int) -> None:
        self.ready = max(self.ready, life)
        self._changed.set()

    async def _obey(self) -> None:
        """The owner resets the controller: no queue pair rings any more, then that is confirmed,
        and then this driver goes through its own reset, in which its queues are created again.
        """
        owner = self._owner
        resets = owner.resets
        try:
            await self.queues.silence()
            self._confirm_life()
            if await owner.lifecycle.settled() is State.READY and self.life < self.stopped:
                await owner._reset_once("the owner is resetting the controller", max(resets, owner.resets))
        except NvmeError as error:
            log.warning("%s: %s", self.uri, error)

    def _confirm_life(self) -> None:
        if self._connected.is_set():
            self._channel.send("stopped", {"life": self.stopped})

    async def _new_life(self) -> None:
        """The controller knows none of this lease's queues, and no longer accesses their memory.
        All are silent.
        """
        while True:
            if self.stopped > self.life:
                self._confirm_life()
                try:
                    async with asyncio.timeout(OWNER_SECONDS):
                        while self.ready < self.stopped:
                            self._changed.clear()
                            await self._changed.wait()
                except TimeoutError:
                    raise ControllerTimeout(
                        f"{self.uri}: the owner's controller is not ready again after {OWNER_SECONDS:g} s"
                    ) from None
                self.life = self.ready
                return
            life = self.life
            (await self.request("renew")).close()
            if self.stopped == life:
                return

    async def _report_usage(self) -> None:
        """For the owner's inspect(): each second, if anything has changed."""
        said = (0, 0)
        while not self._ending:
            await asyncio.sleep(_USAGE_SECONDS)
            found = [queue.hot.inspect() for queue in self.queues.io_queues() if not queue.hot.closed]
            usage = (sum(one["outstanding"] for one in found), sum(one["cq"]["reaped"] for one in found))
            if usage != said and self._connected.is_set():
                said = usage
                self._channel.send("usage", {"in_flight": usage[0], "commands": usage[1]})

    # -- bring-up and reset ------------------------------------------------------------------------

    def open_steps(self) -> Sequence[Step]:
        return []

    def another_attempt(self, usual: bool) -> bool:
        """The owner may reset the controller again while the queues are recreated: that costs no
        attempt, as long as the owner answers.
        """
        return usual or self._owner.loop.time() - self._stale_since < 1.0

    def connect_steps(self, degraded: Degraded, error: NvmeError) -> Sequence[Step]:
        if self._joined:
            return []
        return [Step("queue pairs of the lease", lambda: self._prepare(error), repeatable=False)]

    async def _prepare(self, error: NvmeError) -> None:
        if self.memory is None:
            await in_thread(self._make_memory)
            self.queues.maker.open_vectors()
            self._spawn(self._report_usage, "usage")
            return
        await self._new_life()
        await self.queues.restart(RETRYABLE, error)

    @property
    def memory_limit(self) -> int:
        """Bytes of this process's pools together."""
        granted = self.device.grant.pool_bytes
        return min(self._owner.options.memory_limit or granted, granted)

    def _make_memory(self) -> None:
        options = self._owner.options
        self.memory = DeviceMemory(
            self.device,  # type: ignore[arg-type]  # less of a device is enough
            pool_bytes=options.pool_bytes,
            hugepages=options.hugepages,
            numa=options.numa,
            limit=self.memory_limit,
            flexible=options.pool_bytes == DEFAULT_POOL,
        )
        self.memory.in_use = self.queues.uses

    def queue_steps(self, degraded: Degraded, lost: set[str]) -> Sequence[Step]:
        if self._joined:
            return []
        return [
            Step("queues of the lease", self.queues.negotiate),
            Step("I/O queue pairs", lambda: self.queues.create_all(degraded)),
        ]

    @property
    def _most_bytes(self) -> int:
        return min(super()._most_bytes, self.device.grant.max_transfer)

    # -- health ------------------------------------------------------------------------------------

    async def lost(self) -> str:
        if not self._connected.is_set():
            return ""  # this is unknown
        answer = await self.request("health")
        return str(answer.body.get("lost", ""))

    async def has_failed(self) -> bool:
        return False

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        self._on_gone = on_gone

    # -- the end -----------------------------------------------------------------------------------

    async def shut_down(self, seconds: float) -> None:
        await self.queues.silence()
        async with asyncio.timeout(seconds):
            await self._detach()

    async def _detach(self) -> None:
        if not self.device.ended:
            try:
                (await self.request("detach")).close()
            except (LeaseError, CommandError) as error:
                if not isinstance(error, LeaseError) or error.code not in ("unknown", "revoked"):
                    raise
            self.device.ended = True

    async def release(self, reason: NvmeError, *, keep: bool = False) -> None:
        try:
            await self.queues.silence()
            if self._connected.is_set():
                async with asyncio.timeout(5.0):
                    await self._detach()
        except Exception as error:
            log.warning("%s: %s", self.uri, str(error) or "the owner has not answered")
        self._ending = True
        if not self.device.ended and self.memory is not None:
            # The controller may still write to it.
            _unreturned.append(self.memory)
            self.memory = None
        await self.queues.release(reason)
        if self.memory is not None:
            await in_thread(self.memory.close)
        self._drop()

    def _drop(self) -> None:
        self._ending = True
        for task in self._tasks:
            if task is not asyncio.current_task() if not self._owner.loop.is_closed() else True:
                task.cancel()
        self._channel.close()
        self.queues.maker.close_vectors()
        self.device.close()

    async def cut_off(self) -> None:
        self._ending = True
        self._channel.close()

    def drop(self) -> None:
        self._ending = True
        self._channel.close()
        self.queues.maker.close_vectors()
        self.device.close()

    def abandon(self) -> None:
        self._channel.close()
        self.device.close()

    def inspect(self) -> dict[str, Any]:
        grant = self.device.grant
        return {
            **self.queues.inspect(),
            "memory": self.memory.inspect() if self.memory else None,
            "lease": {
                "number": grant.lease,
                "owner_uri": grant.uri,
                "life": self.life,
                "connected": self._connected.is_set(),
                "reconnections": self.reconnections,
                "pool_bytes": grant.pool_bytes,
            },
        }
