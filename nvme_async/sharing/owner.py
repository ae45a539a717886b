"""The owner's side: lends queue pairs of one controller to worker processes, and takes them back.

Everything is on the controller's home loop. docs/sharing.md has the rules, protocol.py the
messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import secrets
import socket
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

import attrs

from nvme_async.driver.lifecycle import State
from nvme_async.driver.pcie.transport import PcieTransport, pcie
from nvme_async.errors import ConfigurationError, LeaseError
from nvme_async.keepalive.controller import Controller
from nvme_async.runtime.sockets import ListeningSocket
from nvme_async.runtime.tasks import finish
from nvme_async.sharing import transfer
from nvme_async.sharing.channel import Channel, check_peer, prepare
from nvme_async.sharing.connection import Connection
from nvme_async.sharing.grants import grant_of
from nvme_async.sharing.lease import Lease, QueueIs, process_of
from nvme_async.sharing.lease_set import LeaseSet
from nvme_async.sharing.policy import Policy
from nvme_async.sharing.protocol import MAX_QUEUES, Message
from nvme_async.sharing.requests import Requests
from nvme_async.sharing.stop_page import StopPage
from nvme_async.sharing.taking_back import TakingBack

log: logging.Logger = logging.getLogger("nvme_async")

_GRACE = 1.0
"""Seconds for a worker whose lease has ended to read why."""
_PATIENCE = 8.0
"""Seconds for which a new worker waits for the end of a command that changes namespaces."""
_WINDOW_FACTOR = 4
"""Addresses of a lease per byte that it may map: pools are aligned, created and closed."""


class Share(LeaseSet):
    """A controller that other processes may use: the result of `controller.share(path)`. An
    async context manager; await it instead if it should last as long as the controller.

    Attributes:
        path: of the socket. policy: the limits of workers.
        leases: {number: Lease}, the current ones.
        resumed: it continues a predecessor's leases.
        killed, revoked: how many leases ended because their process did, or were taken back.
    """

    revoked: int
    killed: int
    resumed: bool

    def __init__(self, controller: Controller, path: str | os.PathLike[str], options: dict[str, Any]) -> None:
        super().__init__(controller, Policy.of(options))
        self.path: str = os.path.abspath(os.fspath(path))
        self.killed = 0
        self.resumed = False
        self._numbers = itertools.count(1)
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listening: ListeningSocket | None = None
        self._events: asyncio.Task[None] | None = None
        self._requests = Requests(self)

    # -- beginning and end -------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Share]:
        return self._start().__await__()

    async def __aenter__(self) -> Share:
        return await self._start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def transport(self) -> PcieTransport:
        return pcie(self.controller.transport)

    async def _start(self) -> Share:
        await self.controller._at_home(lambda: finish(self._begin))
        return self

    async def _begin(self) -> None:
        controller, transport = self.controller, self.transport
        if self._stops is not None:
            return  # it has started, in a predecessor
        await controller._until_ready()
        doorbells, queues = transport.device.doorbells(), transport.queues
        if doorbells.window is None:
            raise ConfigurationError(f"{controller.uri}: its doorbells are not mapped memory, so it can't be shared")
        if queues.lender is not None:
            raise ConfigurationError(f"{controller.uri} is already shared")
        self._listening = ListeningSocket(self.path, socket.SOCK_SEQPACKET, backlog=self.policy.workers)
        self._stops = StopPage()
        queues.lender = self
        try:
            if queues.maker.shadow_offset is not None:
                # Doorbell Buffer Config applies to all queues and lies in the owner's own memory;
                # only a reset ends it.
                await controller.reset("its doorbells are shared, which needs the registers")
            controller._changed(strictly=True)
            if controller.depositor is not None:
                # Before there are leases, the holder of the controller must have the stop page.
                await controller.depositor.update()
        except BaseException:
            self.forget()
            queues.lender = None
            raise
        self._serve()

    def _serve(self) -> None:
        controller = self.controller
        assert self._listening is not None
        sock = self._listening.socket
        sock.setblocking(False)
        controller.loop.add_reader(sock.fileno(), self._accept)
        self._events = controller.loop.create_task(self._forward_events(), name=f"{controller.uri} shared events")
        controller._changed()
        log.info("%s: shared at %s", controller.uri, self.path)

    def resume(self, stops: StopPage, leases: list[Lease]) -> None:
        """Continues a predecessor's leases, which are unchanged."""
        queues, memory = self.transport.queues, self.transport.memory
        assert memory is not None
        self.resumed, self._stops = True, stops
        queues.lender = self
        loop = self.controller.loop
        for lease in leases:
            self.leases[lease.number] = lease
            queues.reserve_lent(lease.queues)
            memory.windows.append(lease.window)
            memory.lent_mappings += len(lease.mappings)
            self._numbers = itertools.count(max(self.leases) + 1)
            if lease.pidfd >= 0:
                loop.add_reader(lease.pidfd, self._died, lease)
                lease.absent_since = since = loop.time()
                loop.call_later(self.policy.absent_seconds, self._absent, lease, since)
            if lease.dead or lease.ending:
                self.spawn(functools.partial(self.take_back_one, lease, lease.ending or "its process has ended"))
        loop.call_soon(self._replace)

    def _replace(self) -> None:
        """Listens in place of the predecessor, once the controller was taken over."""
        if self.controller.state is not State.READY or self.transport.queues.lender is not self:
            return
        try:
            self._listening = ListeningSocket(
                self.path, socket.SOCK_SEQPACKET, backlog=self.policy.workers, replace=True
            )
        except ConfigurationError as error:
            # Workers continue, but can't send requests.
            log.error("%s: %s", self.controller.uri, error)
            return
        self._serve()

    @property
    def stop_fd(self) -> int:
        return self._stops.fd if self._stops is not None else -1

    def save(self) -> dict[str, Any]:
        if self._stops is None:
            return {}
        return {
            "path": self.path,
            "policy": attrs.asdict(self.policy),
            "leases": [lease.save() for lease in self.leases.values()],
        }

    async def close(self) -> None:
        """Takes all leases back, and ends sharing: workers' controllers fail with
        ControllerGone. The controller continues. Does nothing after the controller has ended.
        """
        await self.controller._at_home(lambda: finish(self._close))

    async def _close(self) -> None:
        queues = self.transport.queues
        if queues.lender is not self:
            return
        self._stop_listening()
        for lease in self.leases.values():
            lease.notify("closed", text=f"{self.controller.uri} is no longer shared")
        await self.stop(notify=False)
        await asyncio.gather(*(self.take_back_one(lease, "sharing has ended") for lease in list(self.leases.values())))
        queues.lender = None
        self.forget()
        self.controller._changed()
        self.controller._bundle_changed()

    def _stop_listening(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            if not self.controller.loop.is_closed() and listening.fileno() >= 0:
                self.controller.loop.remove_reader(listening.fileno())
            listening.unlink()

    # -- connections -------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listening is not None
        while True:
            try:
                sock, _ = self._listening.socket.accept()
            except OSError:  # BlockingIOError: that was all; or no descriptor is left
                return
            try:
                pid = check_peer(sock)
                if len(self._connections) >= 2 * self.policy.workers + 16:
                    raise LeaseError("too many connections", code="full")
                self._connections.add(Connection(self, prepare(sock), pid))
            except (LeaseError, OSError) as error:
                log.warning("%s: %s: %s", self.controller.uri, self.path, error)
                sock.close()

    def spawn(self, work: Callable[[], Any]) -> None:
        """Runs a coroutine in the background."""
        task = self.controller.loop.create_task(work(), name=f"{self.controller.uri} lease upkeep")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget_connection(self, connection: Connection) -> None:
        """It has ended."""
        self._connections.discard(connection)
        lease = connection.lease
        if lease is not None and lease.candidate is connection:
            lease.candidate = None
            if lease.dead and not lease.ending:
                self._ended(lease)
            return
        if lease is None or lease.channel is not connection.channel:
            return
        lease.channel = None
        self._changed.set()
        if lease.ending:
            return
        if not lease.present and not lease.mappings:
            self.spawn(lambda: self.take_back_one(lease, "the request was withdrawn before its answer"))
            return
        lease.absent_since = since = self.controller.loop.time()
        self.controller.loop.call_later(self.policy.absent_seconds, self._absent, lease, since)

    def drop_channel(self, channel: Channel) -> None:
        """Closes a connection from this side, and forgets it."""
        channel.close()
        self._connections = {one for one in self._connections if one.channel is not channel}

    def _absent(self, lease: Lease, since: float) -> None:
        if lease.absent_since == since and self.leases.get(lease.number) is lease and not lease.ending:
            self.spawn(lambda: self.take_back_one(lease, f"no connection for {self.policy.absent_seconds:g} s"))

    async def handle(self, connection: Connection, message: Message) -> tuple[dict[str, Any], bytes]:
        """The answer to a request. LeaseError and others of NvmeError for a refusal."""
        return await self._requests.handle(connection, message)

    def notice(self, connection: Connection, message: Message) -> None:
        """A message without an answer."""
        lease = connection.lease
        if lease is None:
            raise LeaseError(f"the notice {message.kind!r} needs a lease", code="invalid")
        if lease.channel is not connection.channel:
            return  # it has passed the lease on, or has not taken it yet
        if message.kind == "stopped":
            lease.confirmed = max(lease.confirmed, min(message.number("life"), lease.life))
            if lease.ending and lease.silent:
                self.spawn(functools.partial(self.take_back_one, lease, lease.ending))
        elif message.kind == "held":
            lease.held = message.number("hold")
        elif message.kind == "usage":
            lease.in_flight, lease.commands = message.number("in_flight"), message.number("commands")
            return
        self._changed.set()

    # -- leases ------------------------------------------------------------------------------------

    async def lend(self, connection: Connection, message: Message) -> tuple[dict[str, Any], list[int]]:
        """The answer to "lease", and its descriptors."""
        if connection.lease is not None:
            raise LeaseError("this connection already has a lease", code="invalid")
        wanted = min(message.number("queues", 1, MAX_QUEUES), self.policy.queues)
        await self._until_lendable()
        if connection.channel.closed:
            raise LeaseError("the request was withdrawn before its answer", code="invalid")
        transport, policy = self.transport, self.policy
        if len(self.leases) >= policy.workers:
            raise LeaseError(
                f"{policy.workers} workers have a lease; that is the limit (the option workers)", code="full"
            )
        memory, queues = transport.memory, transport.queues
        assert memory is not None
        with contextlib.ExitStack() as undo:
            qids = [qid for _ in range(wanted) if (qid := queues.lend()) is not None]
            for qid in qids:
                undo.callback(queues.return_lent, qid)
            if not qids:
                raise LeaseError(
                    f"all {queues.limit} I/O queue pairs are taken: {len(queues.lent)} are lent, the owner has "
                    f"{len(queues.io_queues())}",
                    code="full",
                )
            slot = self.stops.take()
            undo.callback(self.stops.give, slot)
            window = memory.reserve_window(max(64 << 20, _WINDOW_FACTOR * policy.pool_bytes))
            undo.callback(memory.release_window, window)
            try:
                pidfd = os.pidfd_open(connection.pid)
            except OSError:
                raise LeaseError(f"process {connection.pid} has ended", code="invalid") from None
            undo.pop_all()
        command, started = process_of(connection.pid)
        life = self.stops.life(slot)
        lease = Lease(
            number=next(self._numbers),
            token=secrets.token_hex(16),
            pid=connection.pid,
            command=command,
            started=started,
            window=window,
            slot=slot,
            life=life,
            confirmed=life,
            queues=dict.fromkeys(qids, QueueIs.ABSENT),
            pidfd=pidfd,
            channel=connection.channel,
        )
        self.leases[lease.number] = lease
        connection.lease = lease
        self.watch_process(lease)
        self.controller._changed()
        return grant_of(self.controller, transport, policy, self.stops, lease)

    async def _until_lendable(self) -> None:
        """Waits until the controller is ready, and no command that workers hold their I/O for is
        running: a new one would not know of it.
        """
        until = self.controller.loop.time() + _PATIENCE
        await self.controller._until_ready()
        while self.holding:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                running = ", ".join(self.controller.effects.running)
                raise LeaseError(f"namespaces are being changed ({running}); try again", code="busy") from None
            await self.controller._until_ready()

    async def join(self, connection: Connection, message: Message) -> tuple[dict[str, Any], list[int]]:
        """The answer to "join", and its descriptors."""
        return await transfer.join(self, connection, message)

    def named(self, message: Message) -> Lease:
        """The lease of a message with its number and secret. LeaseError if there is none."""
        lease = self.leases.get(message.number("lease"))
        token = message.text("token").encode(errors="replace")
        if lease is None or not secrets.compare_digest(lease.token.encode(), token):
            raise LeaseError("the owner has no such lease", code="unknown")
        return lease

    def watch_process(self, lease: Lease) -> None:
        """Takes the lease back when its process ends."""
        self.controller.loop.add_reader(lease.pidfd, self._died, lease)

    def _died(self, lease: Lease) -> None:
        """Its process has ended with all its threads, so no store can come from it any more."""
        self.controller.loop.remove_reader(lease.pidfd)
        os.close(lease.pidfd)
        lease.pidfd, lease.dead = -1, True
        lease.confirmed = lease.life
        self._changed.set()
        if lease.candidate is None:  # else that successor takes the lease, or ends
            self._ended(lease)

    def _ended(self, lease: Lease) -> None:
        self.killed += not lease.ending
        self.spawn(lambda: self.take_back_one(lease, f"process {lease.pid} has ended"))

    async def take_back_one(self, lease: Lease, why: str) -> None:
        """Ends a lease. Its ids may be lent again once its process has ended, or has confirmed
        that it rings no more.
        """
        first, lease.ending = not lease.ending, lease.ending or why
        if first:
            log.info("%s: the lease of process %d (%s) ends: %s", self.controller.uri, lease.pid, lease.command, why)
            lease.life = self.stops.end_life(lease.slot)
            if not lease.dead:
                lease.notify("revoked", text=why)
        taking_back = TakingBack(self.controller, self.transport)
        async with lease.lock:
            if self.leases.get(lease.number) is not lease or self._stops is None:
                return
            if not await taking_back.delete_queues(lease):
                return  # disabled() tries again
            await taking_back.unmap(lease)
            if not lease.silent:
                return  # _died() or notice() tries again
            del self.leases[lease.number]
            if lease.pidfd >= 0:
                self.controller.loop.remove_reader(lease.pidfd)
                os.close(lease.pidfd)
                lease.pidfd = -1
            taking_back.return_ids(lease)
            self.stops.give(lease.slot)
            transfer.dismiss(self, lease)
            channel, lease.channel = lease.channel, None
            if channel is not None:
                self.controller.loop.call_later(_GRACE, self.drop_channel, channel)
            self.controller._changed()

    # -- state changes of the controller (nvme_async.driver.pcie.lending.Lender) -------------------

    async def take_back(self) -> None:
        self._stop_listening()
        for lease in self.leases.values():
            lease.notify("closed", text=f"{self.controller.uri} is closed")
        await self.stop(notify=False)
        taking_back = TakingBack(self.controller, self.transport)
        for lease in list(self.leases.values()):
            async with lease.lock:
                await taking_back.delete_queues(lease)

    async def release(self) -> None:
        taking_back = TakingBack(self.controller, self.transport)
        for lease in list(self.leases.values()):
            await taking_back.unmap(lease)

    def forget(self) -> None:
        self._stop_listening()
        loop = self.controller.loop
        for task in [*self._tasks, self._events]:
            if task is not None and not loop.is_closed() and task is not asyncio.current_task():
                task.cancel()
        for lease in self.leases.values():
            if lease.pidfd >= 0:
                if not loop.is_closed():
                    loop.remove_reader(lease.pidfd)
                os.close(lease.pidfd)
                lease.pidfd = -1
            for mapping in lease.mappings:
                if mapping.view is not None:
                    mapping.view.close()
            lease.channel = None
        self.leases.clear()
        for connection in list(self._connections):
            connection.channel.close()
        self._connections.clear()
        stops, self._stops = self._stops, None
        if stops is not None:
            stops.close()


def share(controller: Controller, path: str | os.PathLike[str], **policy: Any) -> Share:
    """Lets other processes of this user open "shared:PATH":

        async with nvme_async.open("pci:0000:01:00.0") as controller:
            await controller.share("/run/nvme.sock")

    path: of the Unix socket to listen on, which only this user may use. policy: see Policy; unknown
    or invalid options raise ConfigurationError, as does a controller that is shared already, or one
    whose doorbells aren't memory. Sharing ends with the controller, or when the returned object's
    block is left. Doorbell Buffer Config is not used with a shared controller; if it is in use, the
    controller is reset once. A controller that was taken over while it was shared is still shared
    at the same path; then this returns the existing object, with the new policy.

    Workers of one controller trust each other and the owner: see docs/sharing.md.
    """
    chosen = Share(controller, path, policy)
    lender = controller.queues.lender
    if isinstance(lender, Share) and lender.resumed and lender.path == chosen.path:
        lender.policy = chosen.policy
        return lender
    return chosen
