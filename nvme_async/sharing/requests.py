"""The owner's handling of a worker's requests. protocol.py has the requests and their
answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from nvme_async.driver.lifecycle import State
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.errors import LeaseError, NvmeError
from nvme_async.keepalive.controller import Controller
from nvme_async.runtime.tasks import in_thread
from nvme_async.sharing import transfer
from nvme_async.sharing.channel import Channel
from nvme_async.sharing.connection import Connection
from nvme_async.sharing.grants import MAX_MAPPINGS
from nvme_async.sharing.lease import Lease, Mapping, QueueIs, check_memory, map_memory
from nvme_async.sharing.passthrough import execute
from nvme_async.sharing.policy import Policy
from nvme_async.sharing.protocol import Message
from nvme_async.sharing.stop_page import StopPage
from nvme_async.sharing.taking_back import TakingBack
from nvme_async.spec import commands

Answer = tuple[dict[str, Any], bytes]


class Owner(Protocol):
    """The part of the Share that requests need."""

    controller: Controller
    policy: Policy
    leases: dict[int, Lease]

    @property
    def transport(self) -> PcieTransport: ...
    @property
    def stops(self) -> StopPage: ...
    async def take_back_one(self, lease: Lease, why: str) -> None: ...
    async def revoke(self, pid: int) -> int: ...
    def drop_channel(self, channel: Channel) -> None: ...
    def inspect(self) -> list[dict[str, Any]]: ...
    @property
    def holding(self) -> bool: ...
    def named(self, message: Message) -> Lease: ...
    def watch_process(self, lease: Lease) -> None: ...


class Requests:
    """On the controller's home loop."""

    def __init__(self, share: Owner) -> None:
        self._share = share
        self._admin = asyncio.Semaphore(16)
        self._handlers: dict[str, Callable[[Connection, Message], Awaitable[Answer]]] = {
            "attach": self._attach,
            "map": self._map,
            "unmap": self._unmap,
            "create": self._create,
            "delete": self._delete,
            "renew": self._renew,
            "admin": self._passthrough,
            "health": self._health,
            "detach": self._detach,
            "take": lambda connection, message: transfer.take(share, connection, message),
            "reclaim": lambda connection, message: transfer.reclaim(share, connection, message),
            "list": self._list,
            "revoke": self._revoke,
        }

    async def handle(self, connection: Connection, message: Message) -> Answer:
        """The answer to a request. LeaseError and others of NvmeError for a refusal."""
        handler = self._handlers.get(message.kind)
        if handler is None:
            raise LeaseError(f"unknown request {message.kind!r}", code="invalid")
        if message.kind not in ("list", "attach", "reclaim"):
            # While the controller is saved for a successor, nothing of the saved state may change.
            await self._share.controller._until_ready()
        return await handler(connection, message)

    def _lease(self, connection: Connection, message: Message) -> Lease:
        """The lease of a request: by the connection, or by its number and secret."""
        lease = connection.lease
        if lease is None or "token" in message.body:
            lease = self._share.named(message)
        if lease.ending:
            raise LeaseError(lease.ending, code="revoked")
        if lease.candidate is connection:
            if message.kind not in transfer.PERMITTED:
                raise LeaseError(f"{message.kind}: the lease is still process {lease.pid}'s", code="policy")
        elif connection.pid != lease.pid:
            raise LeaseError(f"the lease is of process {lease.pid}, not {connection.pid}", code="unknown")
        elif connection.lease is lease and connection.channel is not lease.channel:
            raise LeaseError("the lease has another connection", code="unknown")
        return lease

    async def _attach(self, connection: Connection, message: Message) -> Answer:
        lease = self._share.named(message)
        if connection.pid != lease.pid:
            raise LeaseError(f"the lease is of process {lease.pid}, not {connection.pid}", code="unknown")
        before, lease.channel, connection.lease = lease.channel, connection.channel, lease
        if before is not None and before is not connection.channel:
            self._share.drop_channel(before)
        if lease.ending:
            # It can only confirm that it no longer rings doorbells.
            raise LeaseError(lease.ending, code="revoked")
        lease.absent_since = None
        ready = self._share.controller.state is State.READY
        return {"life": lease.life, "ready": ready, "hold": lease.holding if self._share.holding else 0}, b""

    async def _map(self, connection: Connection, message: Message) -> Answer:
        lease = self._lease(connection, message)
        iova, nbytes, offset = (message.number(name) for name in ("iova", "nbytes", "offset"))
        fd = message.fds[0] if message.fds else message.take()
        check_memory(fd, iova, nbytes, offset)
        if iova < lease.window.start or iova + nbytes > lease.window.stop:
            raise LeaseError(f"map: {nbytes} bytes at {iova:#x} are outside the lease's window", code="invalid")
        memory = self._share.transport.memory
        async with lease.lock:
            self._lease(connection, message)
            if any(mapping.iova == iova and mapping.nbytes == nbytes for mapping in lease.mappings):
                return {}, b""  # the same request, through a connection that was lost
            if any(mapping.overlaps(iova, nbytes) for mapping in lease.mappings):
                raise LeaseError(f"map: {iova:#x} is already mapped", code="invalid")
            limit = self._share.policy.pool_bytes
            left = limit - lease.pool_bytes
            if nbytes > left or len(lease.mappings) >= MAX_MAPPINGS or memory is None:
                raise LeaseError(
                    f"map: {nbytes} bytes exceed what is left: {left} of {limit} (pool_bytes), "
                    f"{MAX_MAPPINGS - len(lease.mappings)} of {MAX_MAPPINGS} mappings",
                    code="quota",
                )
            mapping = Mapping(iova, nbytes)
            lease.mappings.append(mapping)
            memory.lent_mappings += 1
            self._share.controller._changed()
            try:
                await in_thread(map_memory, self._share.transport.device, mapping, fd, offset)
            except (NvmeError, OSError, ValueError) as error:
                lease.mappings.remove(mapping)
                memory.lent_mappings -= 1
                raise LeaseError(f"map: {error}", code="failed") from None
        return {}, b""

    async def _unmap(self, connection: Connection, message: Message) -> Answer:
        lease = self._lease(connection, message)
        iova, nbytes = message.number("iova"), message.number("nbytes")
        async with lease.lock:
            self._lease(connection, message)
            found = [mapping for mapping in lease.mappings if (mapping.iova, mapping.nbytes) == (iova, nbytes)]
            await TakingBack(self._share.controller, self._share.transport).unmap(lease, found)
        self._share.controller._changed()
        return {}, b""

    async def _create(self, connection: Connection, message: Message) -> Answer:
        lease = self._lease(connection, message)
        qid, life = message.number("qid"), message.number("life")
        entries = message.number("entries", 2, min(self._share.policy.entries, self._share.transport.cap.mqes + 1))
        cq, sq = message.number("cq"), message.number("sq")
        interrupts = message.body.get("interrupts") is not False
        if qid not in lease.queues:
            raise LeaseError(f"create: queue {qid} is not of this lease", code="invalid")
        controller = self._share.controller
        async with lease.lock, self._admin:
            lease.check_ring("completion", cq, 16 * entries)
            lease.check_ring("submission", sq, 64 * entries)
            await controller._until_ready()
            lease.check_life(life)
            wanted = (entries, cq, sq, interrupts, life)
            if lease.queues[qid] is QueueIs.PRESENT and qid in lease.created:
                if lease.created[qid] == wanted:
                    return {}, b""  # the same request, through a connection that was lost
                raise LeaseError(f"create: queue {qid} is already {lease.queues[qid]}", code="invalid")
            # Likewise, but it is uncertain how far that came, or for another owner.
            if lease.queues[qid] is not QueueIs.ABSENT:
                await self._delete_from(lease, [qid])
                lease.check_life(life)
            lease.confirmed, lease.rings = lease.life, True
            lease.queues[qid] = QueueIs.UNCERTAIN
            controller._changed()
            await controller._submit_admin(commands.create_io_cq(qid, entries, cq, qid, interrupts=interrupts))
            lease.check_life(life)
            await controller._submit_admin(commands.create_io_sq(qid, entries, sq, qid))
            lease.check_life(life)
            lease.queues[qid], lease.created[qid] = QueueIs.PRESENT, wanted
        controller._changed()
        return {}, b""

    async def _delete(self, connection: Connection, message: Message) -> Answer:
        lease = self._lease(connection, message)
        return await self._delete_of(connection, message, [message.number("qid")], lease)

    async def _renew(self, connection: Connection, message: Message) -> Answer:
        lease = self._lease(connection, message)
        return await self._delete_of(connection, message, list(lease.queues), lease)

    async def _delete_of(self, connection: Connection, message: Message, qids: list[int], lease: Lease) -> Answer:
        async with lease.lock:
            self._lease(connection, message)
            await self._delete_from(lease, qids)
        return {}, b""

    async def _delete_from(self, lease: Lease, qids: list[int]) -> None:
        """Within the lease's lock."""
        rest = {qid: what for qid, what in lease.queues.items() if qid not in qids}
        lease.queues = {qid: what for qid, what in lease.queues.items() if qid in qids}
        try:
            gone = await TakingBack(self._share.controller, self._share.transport).delete_queues(lease)
        finally:
            lease.queues |= rest
        self._share.controller._changed()
        if not gone:
            raise LeaseError("the queues could not be deleted, and the controller was not reset", code="failed")

    async def _passthrough(self, connection: Connection, message: Message) -> Answer:
        lease = self._lease(connection, message)
        async with self._admin:
            return await execute(self._share.controller, self._share.policy, set(lease.queues), message)

    async def _health(self, connection: Connection, message: Message) -> Answer:
        self._lease(connection, message)
        await self._share.controller._until_ready()
        return {"lost": await self._share.transport.lost()}, b""

    async def _detach(self, connection: Connection, message: Message) -> Answer:
        lease = self._lease(connection, message)
        lease.ending = "its worker has ended it"
        lease.life = lease.confirmed = self._share.stops.end_life(lease.slot)
        await self._share.take_back_one(lease, lease.ending)
        if lease.number in self._share.leases:
            raise LeaseError("the queues could not be deleted, and the controller was not reset", code="failed")
        return {}, b""

    async def _list(self, connection: Connection, message: Message) -> Answer:
        return {"uri": self._share.controller.uri, "leases": self._share.inspect()}, b""

    async def _revoke(self, connection: Connection, message: Message) -> Answer:
        return {"revoked": await self._share.revoke(message.number("pid"))}, b""
