"""The transport of "shared:PATH" URIs: what SharedTransport does, and passing its queue pairs on to
another process, or taking them from one, while they are in use.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nvme_async.driver.options import Options
from nvme_async.errors import ControllerGone, NvmeError
from nvme_async.sharing.channel import Channel, connect
from nvme_async.sharing.leased_device import LeasedDevice
from nvme_async.sharing.places import parse
from nvme_async.sharing.protocol import MAX_QUEUES, Message
from nvme_async.sharing.worker import OPEN_SECONDS, SharedTransport
from nvme_async.spec.registers import PAGE

TAKE_SECONDS = 5.0
"""Limit for the owner, or its successor, to give a predecessor's lease to this process."""

_DOUBTFUL = frozenset({"event", "hold", "unhold", "rescan"})
"""Notices after which namespaces must be read again."""


async def open_transport(uri: str, options: Options) -> PassableTransport:
    """Takes a lease. Raises LeaseError if the owner refuses, ControllerGone if there is none,
    ControllerTimeout.
    """
    path = parse(uri.partition(":")[2])
    sock = await connect(path, OPEN_SECONDS)
    inbox: list[Message] = []
    channel = Channel(sock, inbox.append)
    try:
        wanted = {"queues": min(options.io_queues, MAX_QUEUES), "command": ""}
        try:
            answer = await channel.request("lease", wanted, seconds=OPEN_SECONDS)
        except ConnectionResetError as error:
            raise ControllerGone(f"{uri}: {error}") from None
        return PassableTransport(uri, LeasedDevice(path, answer), channel, inbox)
    except BaseException:
        channel.close()
        raise


async def join_transport(uri: str, secret: dict[str, Any]) -> PassableTransport:
    """Joins a lease that its worker is about to pass on; see take(). secret: the request's body.
    Raises as open_transport() does.
    """
    path = parse(uri.partition(":")[2])
    inbox: list[Message] = []
    channel = Channel(await connect(path, OPEN_SECONDS), inbox.append)
    try:
        try:
            answer = await channel.request("join", secret, seconds=OPEN_SECONDS)
        except ConnectionResetError as error:
            raise ControllerGone(f"{uri}: {error}") from None
        transport = PassableTransport(uri, LeasedDevice(path, answer), channel, inbox, joined=True)
        transport.secret = secret
        return transport
    except BaseException:
        channel.close()
        raise


class PassableTransport(SharedTransport):
    """On the controller's home loop.

    Attributes:
        secret: what it has joined a lease with.
    """

    secret: dict[str, Any]
    _rejoined = False

    def obstacle(self) -> str:
        """Why the queue pairs can't be passed on while they are in use; "": they can."""
        memory = self.memory
        if memory is None or self._joined:
            return "the controller is not open yet"
        if not self.device.grant.passes:
            return "the owner's release can't pass leases on"
        if len(memory.pools) != 1 or memory.is_growing:
            return "its memory has grown beyond the first pool (the option pool_bytes)"
        if self.queues.unsettled or not self.queues.io_queues():
            return "a queue pair is being created or deleted"
        return ""

    def let_go(self, error: NvmeError) -> None:
        """A successor has the lease, and suspension.release() has dropped the queue pairs."""
        self.queues.fail_messages(error)
        self.memory = None
        self._drop()

    def fits(self, max_transfer: int) -> bool:
        """Commands of the predecessor's queue pairs transfer at most that many bytes: so do this
        process's. Before there are queue pairs.
        """
        maker = self.queues.maker
        maker.capacity = max_transfer
        maker.limit_transfer(maker.max_transfer)
        for namespace in self._owner.namespaces.values():
            namespace._limit()
        return PAGE <= max_transfer <= maker.longest_transfer

    async def take(self) -> Message:
        """The predecessor stands still: the lease is this process's from now on. If the owner is
        being replaced, its successor is asked. LeaseError if the predecessor has withdrawn, or the
        controller was reset; ControllerGone, ControllerTimeout.
        """
        limit = self._owner.loop.time() + TAKE_SECONDS
        while True:
            left = max(0.01, limit - self._owner.loop.time())
            try:
                return await self._channel.request("take", {"life": self.life}, seconds=left)
            except ConnectionResetError as error:
                if left <= 0.01:
                    raise ControllerGone(f"{self.uri}: {error}") from None
            await self._join_again(left)

    async def _join_again(self, left: float) -> None:
        self._channel.close()
        self._early.clear()
        self._channel = Channel(await connect(self.device.path, left), self._early.append)
        self._rejoined = True  # notices may have been missed
        try:
            (await self._channel.request("join", self.secret, seconds=left)).close()
        except ConnectionResetError:
            await asyncio.sleep(0.01)

    def begin_holds(self, granted: Message) -> bool:
        """Before the predecessor's commands are adopted: whether its namespaces may differ from
        those that were read, because of notices since.
        """
        if granted.number("hold"):
            self.queues.hold_first("owner")
        before = self._early[: granted.number("announced")]
        return self._rejoined or bool(granted.number("hold")) or any(one.kind in _DOUBTFUL for one in before)

    def begin(self, granted: Message) -> None:
        """They are adopted: from now on notices are this process's to obey."""
        after, self._early = self._early[granted.number("announced") :], []
        self._joined = False
        self._spawn(self._report_usage, "usage")
        self._use(self._channel)
        hold = granted.number("hold")
        if hold:
            self.holds.begin(hold)
        for message in after:
            self._on_message(message)

    def withdraw(self, error: NvmeError) -> None:
        """The lease stays the predecessor's, or ends with it."""
        self.queues.fail_messages(error)
        self.memory = None
        self._drop()
