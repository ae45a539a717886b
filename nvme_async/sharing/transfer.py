"""A worker's lease passes to another process, with its queues, memory and commands in flight.

    join      the successor announces itself, by the lease's number and secret. It gets the
              descriptors, may send read-only requests, and gets the worker's notices too
    take      the worker stands still: from the answer on the lease is the successor's. This is the
              only instant at which it changes hands; the owner decides, and knows who has it
    reclaim   the worker asks, after a successor that gave no answer: who has the lease? If it is
              still the worker's, that successor can't take it any more, not from another owner
              either

Until "take" the lease ends with the worker, unless that has ended and a successor is about to take
it; from then on with the successor. On the controller's home loop.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from nvme_async.errors import LeaseError
from nvme_async.keepalive.controller import Controller
from nvme_async.sharing.channel import Channel
from nvme_async.sharing.connection import Connection
from nvme_async.sharing.grants import grant_of
from nvme_async.sharing.lease import Lease, process_of
from nvme_async.sharing.policy import Policy
from nvme_async.sharing.protocol import Message
from nvme_async.sharing.stop_page import StopPage

JOINED_SECONDS = 60.0
"""Limit from "join" to "take"."""
_REMEMBERED = 16
"""Withdrawn attempts of a lease. A successor tries again for seconds only."""
PERMITTED = frozenset({"admin", "health", "take"})
"""Requests of a successor that has joined."""


class Owner(Protocol):
    """The part of the Share that a transfer needs."""

    controller: Controller
    policy: Policy

    @property
    def transport(self) -> Any: ...
    @property
    def stops(self) -> StopPage: ...
    @property
    def holding(self) -> bool: ...
    def named(self, message: Message) -> Lease: ...
    def drop_channel(self, channel: Channel) -> None: ...
    def watch_process(self, lease: Lease) -> None: ...


async def join(share: Owner, connection: Connection, message: Message) -> tuple[dict[str, Any], list[int]]:
    """The answer to "join", and its descriptors. LeaseError if the lease can't be passed on now."""
    if connection.lease is not None:
        raise LeaseError("this connection already has a lease", code="invalid")
    await share.controller._until_ready()
    if connection.channel.closed:
        raise LeaseError("the request was withdrawn before its answer", code="invalid")
    lease = share.named(message)
    if lease.ending:
        raise LeaseError(lease.ending, code="revoked")
    if message.number("attempt") in lease.withdrawn:
        raise LeaseError("join: the worker has withdrawn this attempt", code="unknown")
    if not lease.rings:
        raise LeaseError("the lease has no queue yet", code="invalid")
    body, fds = grant_of(share.controller, share.transport, share.policy, share.stops, lease)
    dismiss(share, lease)
    connection.lease, lease.candidate, lease.announced = lease, connection, 0
    share.controller.loop.call_later(JOINED_SECONDS, _expire, share, lease, connection)
    return body, fds


def _expire(share: Owner, lease: Lease, connection: Connection) -> None:
    if lease.candidate is connection:
        connection.hang_up(f"it has joined a lease, and not taken it for {JOINED_SECONDS:g} s")


def dismiss(share: Owner, lease: Lease) -> None:
    """The successor that has joined can't take the lease any more."""
    candidate, lease.candidate = lease.candidate, None
    if candidate is not None:
        share.drop_channel(candidate.channel)


async def take(share: Owner, connection: Connection, message: Message) -> tuple[dict[str, Any], bytes]:
    """The answer to "take". LeaseError with code "stale" if the controller was reset since the
    worker stood still: its queues are not what it has saved.
    """
    lease = connection.lease
    life = message.number("life")
    if lease is None or lease.candidate is not connection:
        raise LeaseError("take: this connection has not joined a lease, or another process has it", code="unknown")
    async with lease.lock:
        await share.controller._until_ready()
        if lease.candidate is not connection:  # or its own connection has ended
            raise LeaseError("take: the worker has withdrawn", code="unknown")
        lease.check_life(life)
        try:
            pidfd = os.pidfd_open(connection.pid)
        except OSError:
            raise LeaseError(f"process {connection.pid} has ended", code="invalid") from None
        # No await from here on: the lease is one process's, or the other's.
        if lease.pidfd >= 0:
            share.controller.loop.remove_reader(lease.pidfd)
            os.close(lease.pidfd)
        lease.pid, lease.pidfd, lease.dead = connection.pid, pidfd, False
        lease.command, lease.started = process_of(connection.pid)
        lease.channel, lease.candidate, lease.absent_since = connection.channel, None, None
        share.watch_process(lease)
    share.controller._changed()
    holding = lease.holding if share.holding and lease.held < lease.holding else 0
    return {"life": lease.life, "hold": holding, "announced": lease.announced}, b""


async def reclaim(share: Owner, connection: Connection, message: Message) -> tuple[dict[str, Any], bytes]:
    """The answer to "reclaim"."""
    lease = share.named(message)
    if lease.channel is not connection.channel:
        return {"taken": True}, b""
    dismiss(share, lease)
    # A successor of the owner must know it too.
    lease.withdrawn = [*lease.withdrawn, message.number("attempt")][-_REMEMBERED:]
    share.controller._changed()
    return {"taken": False}, b""
