"""The NVMe/TCP transport: an association with a remote controller, one connection per queue.

A lost connection leads to a reset, as a timed-out command does: a new association is made, with
back-off and for at most `ctrl_loss_tmo`; then in-flight commands that may be resent go over the new
connections, before anything newer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from nvme_async.driver import command_sets
from nvme_async.driver.options import Options
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.queues.queue_set import QueueSet
from nvme_async.driver.queues.queue_transport import QueueTransport
from nvme_async.driver.recovery import RETRYABLE
from nvme_async.driver.steps import Degraded, Step
from nvme_async.driver.tcp import handshake
from nvme_async.driver.tcp.address import Address
from nvme_async.driver.tcp.handshake import Connection, Wishes
from nvme_async.driver.tcp.host import Host, this_host
from nvme_async.driver.tcp.keep_alive import KeepAlive
from nvme_async.driver.tcp.properties import Properties, of_fabrics
from nvme_async.driver.tcp.queues import TcpQueue, TcpQueueMaker
from nvme_async.driver.transport import Owner, Transport
from nvme_async.errors import (
    CommandError,
    ConfigurationError,
    ControllerError,
    ControllerFatal,
    ControllerGone,
    ControllerTimeout,
    NvmeError,
    QueueShutdown,
)
from nvme_async.spec.registers import Cap, Register, Vs

log: logging.Logger = logging.getLogger("nvme_async")

FIRST_PAUSE = 0.05
"""Seconds before the second attempt to reach a lost controller; each pause is twice the previous
one, up to reconnect_delay.
"""


class TcpQueueSet(QueueSet):
    """Queues over connections."""

    def __init__(self, owner: Owner, transport: TcpTransport) -> None:
        super().__init__(owner, transport, TcpQueueMaker(owner, transport))
        self._tcp = transport

    async def go(self) -> None:
        if self._tcp.fails_over:
            await self.on_each(lambda queue: queue.hot.refuse(None), admin=False)
        await super().go()
        self._tcp.serves()

    async def give_back(self, error: NvmeError) -> None:
        """All commands of the I/O queues end with `error`, sent or not, and new ones do until go().
        The connections are closed.
        """

        def end(queue: LoopQueue) -> None:
            queue.hot.refuse(error)
            queue.hot.fail_waiters(error)

        await self.on_each(end, admin=False)
        await self.restart(frozenset(), error)


class TcpTransport(QueueTransport):
    """Attributes:
    address: of the controller. host: our identity.
    cntlid: of the controller, from Connect on; it may change at each reset.
    reconnects: associations after the first.
    """

    kind = "tcp"

    reconnects: int

    def __init__(self, address: Address, options: Options, *, fails_over: bool = False) -> None:
        """fails_over: this is one of several paths. When it is lost, commands end with an error at
        once, and none is resent here: another path may have executed it, and newer ones, meanwhile.
        """
        self.fails_over = fails_over
        self.address = address
        self.uri: str = f"tcp:{address}"
        self.host: Host = this_host(options.hostnqn, options.hostid)
        self.cntlid: int = handshake.ANY_CONTROLLER
        self.reconnects = -1
        self.wishes: Wishes = Wishes.of(options, kato=options.keep_alive_tmo)
        self.properties: Properties = Properties(self.uri, self._admin)
        self.keep_alive: KeepAlive = KeepAlive(options.keep_alive_tmo)
        self._timeout = options.connect_timeout
        self._fresh = False  # the association is new, and nothing was in flight on it
        self._all_command_sets = False
        self._lost_at: float | None = None
        self._served = False  # it was ready once
        self._gone = ""  # why an I/O queue of this association could not be connected
        self._next_pause = min(FIRST_PAUSE, options.reconnect_delay)

    def attach(self, owner: Owner) -> None:
        if owner.options.keepalive:
            raise ConfigurationError(
                f"{self.uri}: keepalive needs a PCI function; over TCP, commands in flight are drained instead"
            )
        self.owner = owner
        self.queues: TcpQueueSet = TcpQueueSet(owner, self)

    def _admin(self) -> TcpQueue:
        queue = self.queues.admin
        assert isinstance(queue, TcpQueue)
        return queue

    # -- bring-up and reset ------------------------------------------------------------------------

    def open_steps(self) -> Sequence[Step]:
        return [
            Step("Connect", self._first_association, repeatable=False),
            Step("properties", self._read_properties, repeatable=False),
        ]

    def connect_steps(self, degraded: Degraded, error: NvmeError) -> Sequence[Step]:
        return [
            Step("Connect", lambda: self._association(error), repeatable=False),
            Step("CC.EN=1", lambda: self._enable(degraded)),
        ]

    def queue_steps(self, degraded: Degraded, lost: set[str]) -> Sequence[Step]:
        return [
            Step("Number of Queues", self.queues.negotiate, self.queues.assume),
            Step("I/O queues", lambda: self.queues.create_all(degraded)),
        ]

    async def _first_association(self) -> None:
        self.queues.prepare_admin()
        try:
            await self._associate()
        except CommandError as error:
            raise ControllerError(str(error)) from error

    async def _associate(self) -> None:
        """An admin connection; the admin queue, at its start, goes over it."""
        queue = self._admin()
        queue.silence(True)
        queue.hot.refuse(None)
        connection = await handshake.connect(
            self.address, self.host, self.wishes, qid=0, entries=queue.entries, seconds=self._timeout
        )
        try:
            queue.connect(connection)
        except BaseException:
            connection.sock.close()
            raise
        self.cntlid = connection.cntlid
        self._gone = ""
        self.reconnects += 1
        self._fresh = True
        queue.silence(False)

    async def _association(self, error: NvmeError) -> None:
        """A new association, unless the current one was made for this. With back-off, for
        ctrl_loss_tmo.
        """
        if self._fresh:
            self._fresh = False
            return
        await self._end_association(error)
        while True:
            await self._pause()
            try:
                await self._associate()
                self._fresh = False
                return
            except (ControllerError, CommandError) as failure:
                if isinstance(failure, CommandError) and failure.dnr:
                    raise ControllerError(str(failure)) from failure
                if not self._served:
                    raise
                if not self._in_time():
                    raise ControllerGone(
                        f"{self.uri}: the connection was lost and not restored within "
                        f"{self.owner.options.ctrl_loss_tmo:g} s "
                        f"(ctrl_loss_tmo): {failure}"
                    ) from None
                log.info("%s: %s", self.uri, failure)

    def _in_time(self) -> bool:
        lost_at = self._lost_at
        return lost_at is not None and time.monotonic() - lost_at < self.owner.options.loss_limit

    def another_attempt(self, usual: bool) -> bool:
        """A connection that is lost again doesn't count, within ctrl_loss_tmo of the first
        loss.
        """
        return usual or (self._served and bool(self._broken() or self._gone) and self._in_time())

    async def _pause(self) -> None:
        """No pause before the first attempt, then each twice the previous one, until the
        controller serves again.
        """
        lifecycle = self.owner.lifecycle
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._next_pause = min(FIRST_PAUSE, self.owner.options.reconnect_delay)
            return
        until = time.monotonic() + self._next_pause
        self._next_pause = min(2 * self._next_pause, self.owner.options.reconnect_delay)
        while (left := until - time.monotonic()) > 0 and not lifecycle.closing:
            await asyncio.sleep(min(left, 0.1))
        if lifecycle.closing:
            raise QueueShutdown(f"{self.uri}: the controller is closed")

    def serves(self) -> None:
        """Bring-up or reset has ended. Connections that broke meanwhile are noticed now."""
        self._lost_at = None
        self._served = True
        if broken := self._broken():
            self.owner.loop.call_soon(self.owner._request_reset, broken)

    async def _end_association(self, error: NvmeError) -> None:
        """Commands that the controller still executes would come after resent ones: if it can be
        reached, it is disabled first, which ends them.
        """
        self.keep_alive.stop()
        admin = self._admin()
        disabled = False
        if admin.connected:
            try:
                admin.silence(False)
                async with asyncio.timeout(self._timeout if self.fails_over else None):
                    await self.properties.disable(self.cap)
                disabled = True
            except (NvmeError, TimeoutError) as failure:
                log.warning("%s: disabling the controller: %s", self.uri, str(failure) or "no answer")
            finally:
                admin.silence(True)
        await self.queues.on_each(_disconnect)
        if not disabled and self._served:
            await self._quiesced()
        if self.fails_over:
            await self.queues.give_back(error)
        else:
            await self.queues.restart(RETRYABLE, error)

    async def _quiesced(self) -> None:
        """Waits until a controller that could not be disabled has ended its commands, if it reports
        how long that takes (Command Quiesce Time, Base 2.1, 9.6). It notices the loss of a
        connection after the Keep Alive Timeout at the latest.
        """
        identify = self.owner.identify
        cqt = identify.cqt / 1000 if identify is not None else 0.0
        if not cqt:
            return
        until = time.monotonic() + self.keep_alive.seconds + cqt
        log.info("%s: commands of the lost connection end within %g s (CQT)", self.uri, cqt + self.keep_alive.seconds)
        while (left := until - time.monotonic()) > 0 and not self.owner.lifecycle.closing:
            await asyncio.sleep(min(left, 0.1))

    async def _read_properties(self) -> None:
        self.cap: Cap = await self.properties.cap()
        self.vs: Vs = await self.properties.vs()
        if not self.cap.nvm_command_set and not self.cap.multiple_command_sets:
            raise ControllerError(f"{self.uri}: the NVM command set is not supported (CAP.CSS {self.cap.css:#x})")

    async def _enable(self, degraded: Degraded) -> None:
        for all_command_sets in command_sets.to_try(self.cap):
            try:
                await self.properties.enable(self.cap, all_command_sets=all_command_sets)
                self._all_command_sets = all_command_sets
                break
            except (ControllerFatal, ControllerTimeout, CommandError) as error:
                if not all_command_sets or not self.cap.nvm_command_set:
                    raise
                degraded.add("CC.CSS=110b", error, "the NVM command set alone")
                await self.properties.disable(self.cap)
        self.keep_alive.start(self._admin(), self.owner)

    async def connect_io(self, qid: int, entries: int) -> Connection:
        """A connection for an I/O queue. ControllerTimeout, ControllerError, CommandError."""
        identify = self.owner.identify
        if identify.icdoff:
            raise ControllerError(f"{self.uri}: ICDOFF is {identify.icdoff}, must be 0 over TCP")
        try:
            return await handshake.connect(
                self.address,
                self.host,
                self.wishes,
                qid=qid,
                entries=entries,
                seconds=self._timeout,
                cntlid=self.cntlid,
                in_capsule=max(0, identify.ioccsz * 16 - 64),
            )
        except (CommandError, ControllerError) as error:
            if isinstance(error, CommandError) and (error.sct, error.sc) != handshake.INVALID_PARAMETERS:
                raise  # this queue alone is refused
            # The association is gone, though its admin connection may not show it yet.
            self._gone = f"queue {qid}: {error}"
            self.owner._request_reset(self._gone)
            raise ControllerError(f"{self.uri}: {self._gone}") from error

    @property
    def all_command_sets(self) -> bool:
        return self._all_command_sets

    @property
    def _most_bytes(self) -> int:
        return self.owner.options.max_transfer

    # -- health ------------------------------------------------------------------------------------

    def connection_lost(self, queue: TcpQueue, why: str) -> None:
        """From a queue's loop."""
        error = ControllerError(f"{self.uri}: queue {queue.qid}: {why}")
        home = self.owner.loop
        if queue.qid == 0:
            # An admin command is never resent: its waiters, including a reset, get the error now.
            queue.hot.refuse(error)
            queue.hot.fail_waiters(error)
        if not home.is_closed():
            home.call_soon_threadsafe(self._lost, str(error))

    def _lost(self, why: str) -> None:
        log.warning("%s", why)
        self.owner._request_reset(why)

    def _broken(self) -> str:
        for queue in self.queues.all():
            if isinstance(queue, TcpQueue) and not queue.connected and not queue.closed:
                return queue.link.error or f"queue {queue.qid} has no connection"
        return ""

    async def lost(self) -> str:
        if broken := self._broken():
            return broken
        try:
            csts = await self.properties.csts()
        except ControllerTimeout as error:
            return str(error)  # a new association may be possible, for ctrl_loss_tmo
        if csts.cfs:
            return "CSTS.CFS is set"
        return (
            ""
            if csts.rdy
            else f"CSTS.RDY became 0 although the driver did not reset the controller (CSTS {csts.to_int():#x})"
        )

    @property
    def readable(self) -> Sequence[Register]:
        return of_fabrics(self.cap)

    async def read_property(self, register: Register) -> int:
        if register not in self.readable:
            self._cannot(f"property {register.name}")
        return await self.properties.get(register)

    async def has_failed(self) -> bool:
        if broken := self._broken():
            raise ControllerError(f"{self.uri}: {broken}")
        try:
            return bool((await self.properties.csts()).cfs)
        except ControllerTimeout:
            return False  # unknown: the command that is missing leads to a reset

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """A lost connection is not the end: see connection_lost()."""

    # -- the end -----------------------------------------------------------------------------------

    async def shut_down(self, seconds: float) -> None:
        self.keep_alive.stop()
        await self.queues.on_each(_disconnect, admin=False)
        if self._admin().connected:
            await self.properties.shut_down(seconds)

    async def release(self, reason: NvmeError, *, keep: bool = False) -> Transport | None:
        self.keep_alive.stop()
        try:
            await self.queues.on_each(_disconnect)
        except NvmeError as error:
            # A stuck thread's connection is cut from here; the thread does the rest itself once it
            # continues.
            log.warning("%s: %s", self.uri, error)
            await self.cut_off()
        await self.queues.release(reason)
        return None

    async def cut_off(self) -> None:
        self._cut()

    def _cut(self) -> None:
        for queue in [*self.queues.all(), *self.queues.unsettled]:
            if isinstance(queue, TcpQueue):
                queue.cut()

    def drop(self) -> None:
        self._cut()
        for queue in [*self.queues.all(), *self.queues.unsettled]:
            if isinstance(queue, TcpQueue):
                queue.disconnect()

    def abandon(self) -> None:
        """Nothing is open before attach()."""

    def inspect(self) -> dict[str, Any]:
        return {
            **self.queues.inspect(),
            "memory": None,
            "association": {
                "cntlid": self.cntlid,
                "hostnqn": self.host.nqn,
                "reconnects": max(0, self.reconnects),
                "keep_alives": self.keep_alive.sent,
            },
        }


def _disconnect(queue: LoopQueue) -> None:
    if isinstance(queue, TcpQueue):
        queue.disconnect()
