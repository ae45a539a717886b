"""The successor's side when a worker hands its queue pairs over: see passing.py.

join      the lease's descriptors from the owner, and Identify data, by messages. The predecessor
          serves
build     the predecessor stands still: the objects for its memory and queue pairs; nothing is
          changed
take      the lease is this process's; until then a refusal leaves everything as it was
adopt     the predecessor's commands are this process's; new I/O waits until they have ended
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from nvme_async.dma import Pool
from nvme_async.driver.lifecycle import State
from nvme_async.driver.pcie.memory import DeviceMemory, let_go
from nvme_async.errors import (
    ControllerError,
    ControllerGone,
    ControllerTimeout,
    InvalidSavedState,
    LeaseError,
    RestoreRefused,
)
from nvme_async.keepalive.bundle import Bundle, receive_bundle
from nvme_async.keepalive.cleanup import PredecessorCleanup
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.handover_wire import READY_SECONDS, Wire
from nvme_async.keepalive.inheritance import merge_offered
from nvme_async.keepalive.phases import Phases
from nvme_async.keepalive.successor import Successor
from nvme_async.native import _hotpath
from nvme_async.runtime.tasks import finish, in_thread
from nvme_async.sharing.passable import PassableTransport, join_transport
from nvme_async.sharing.passed_state import PassedState

log: logging.Logger = logging.getLogger("nvme_async")


async def inherit(wire: Wire, offer: dict[str, Any], options: dict[str, Any]) -> Controller:
    """The controller of the worker that offers it. On failure the predecessor continues, if "take"
    has not happened; nothing stays behind.
    """
    bundle = await in_thread(receive_bundle, wire.socket, READY_SECONDS)
    try:
        return await _Inheriting(wire, bundle, offer, options).run()
    except (InvalidSavedState, LeaseError, _hotpath.QueueStateError) as error:
        raise RestoreRefused(f"{offer.get('uri')}: {error}") from error
    finally:
        bundle.close()


class LeaseSuccessor(Successor):
    """The objects for a worker's queue pairs; the controller itself is made by messages."""

    state: PassedState  # type: ignore[assignment]  # the part of a saved state that a lease has

    def build_lease(self, controller: Controller, transport: PassableTransport) -> None:
        """Ends with adopt() or drop(). Changes nothing."""
        state, queues = self.state, transport.queues
        self.controller = controller
        transport.life = transport.stopped = transport.ready = state.life
        memory = transport.memory = DeviceMemory(
            transport.device,  # type: ignore[arg-type]  # less of a device is enough
            pool_bytes=controller.options.pool_bytes,
            hugepages=controller.options.hugepages,
            adopt=self.pool,
            grows=True,
            limit=transport.memory_limit,
        )
        memory.in_use = queues.uses
        memory.inherit([(registration.iova, registration.nbytes) for registration in state.registrations])
        queues.maker.open_vectors()
        queues.hold_first("drain")
        self._queues = [self._queue(description) for description in state.queues]
        queues.grant_rest()

    def _drop_lender(self) -> None:
        """A worker lends nothing."""

    def _resume_admin(self) -> None:
        """Admin commands are messages."""

    def _go_on_sharing(self, bundle: Bundle) -> None:
        """A worker shares nothing."""


class _Inheriting:
    """One attempt, on the loop that becomes the controller's home."""

    def __init__(self, wire: Wire, bundle: Bundle, offer: dict[str, Any], options: dict[str, Any]) -> None:
        self._wire = wire
        self._bundle = bundle
        self._offer = offer
        self._options = merge_offered(offer.get("options"), options)
        self._transport: PassableTransport | None = None
        self._controller: Controller | None = None
        self._successor: LeaseSuccessor | None = None
        self._pool: Pool | None = None
        self._doubtful = False

    async def run(self) -> Controller:
        try:
            controller, transport = await self._join()
            await self._wire.send(ready=True)
            answer = await self._wire.receive(READY_SECONDS)
            if "go" not in answer:
                raise ControllerError(f"the predecessor withdrew: {answer.get('withdrawn', 'no reason given')}")
            go = answer["go"]
            self._build(controller, transport, go)
            granted = await transport.take()
        except BaseException as error:
            await finish(self._give_up)
            try:
                self._wire.send_now(refused=str(error) or repr(error), touched=False)
            except OSError:
                pass  # the predecessor is gone
            raise
        self._adopt(controller, transport, granted)
        try:
            self._wire.send_taken(short=True)
        except OSError as error:
            log.warning("%s: the predecessor has ended (%s); this process continues", controller.uri, error)
        controller.adopted.pause = max(0.0, time.monotonic() - float(go.get("frozen", 0.0)))
        return controller

    async def _join(self) -> tuple[Controller, PassableTransport]:
        transport = self._transport = await join_transport(
            str(self._offer.get("uri")), {name: self._offer.get(name) for name in ("lease", "token", "attempt")}
        )
        fd = self._bundle.descriptors.get("pool")
        if fd is None:
            raise RestoreRefused(f"{transport.uri}: the predecessor sent no pool")
        self._pool = await in_thread(Pool.attach, fd)
        controller = self._controller = Controller(transport, self._options)
        limit = self._options.open_timeout or None
        try:
            async with asyncio.timeout(limit):
                await controller.bringup.first()
        except TimeoutError:
            raise ControllerTimeout(
                f"{transport.uri}: reading Identify took longer than {limit} s (open_timeout)"
            ) from None
        return controller, transport

    def _build(self, controller: Controller, transport: PassableTransport, go: Any) -> None:
        state = PassedState.of(go.get("lease") if isinstance(go, dict) else None)
        pool = self._pool
        assert pool is not None
        if pool.id != state.pool_id:
            raise RestoreRefused(
                f"{transport.uri}: the predecessor's queues are in pool {state.pool_id}, not {pool.id}"
            )
        if not transport.fits(state.max_transfer):
            raise RestoreRefused(f"{transport.uri}: commands of {state.max_transfer} bytes are not what was read")
        phases = Phases(transport.uri)
        with phases.of("build"):
            pool.refresh()
            pool.verify()
            self._successor = LeaseSuccessor(transport.uri, pool, transport.device, state, phases)  # type: ignore[arg-type]
            self._successor.build_lease(controller, transport)
        with phases.of("verify"):
            self._successor.check(self._bundle)

    def _adopt(self, controller: Controller, transport: PassableTransport, granted: Any) -> None:
        """The lease is this process's. Waits for nothing."""
        successor = self._successor
        assert successor is not None
        successor.state.unverified = transport.begin_holds(granted)
        phases = controller.phases = successor._phases
        with phases.of("adopt"):
            successor.adopt()
        controller.cleanup = PredecessorCleanup(controller, controller.adopted, successor.state)
        controller.cleanup.begin(verify=successor.in_doubt)
        transport.begin(granted)
        transport.watch(controller._on_gone)
        controller.listener.start([])  # an event may have gone to the predecessor
        log.info("%s: the lease was taken over: %s", controller.uri, phases)

    async def _give_up(self) -> None:
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.drop()
        pool, self._pool = self._pool, None
        if pool is not None:
            if not pool.detached:
                pool.detach()
            let_go([pool])
        controller, transport = self._controller, self._transport
        if controller is not None:
            await controller.recovery.stop()
            await controller.scanner.stop()
            if controller.state is State.NEW:
                controller.lifecycle.to(State.CLOSING)
                controller.lifecycle.to(State.CLOSED)
        if transport is not None:
            transport.withdraw(ControllerGone(f"{transport.uri}: the lease was not taken over"))
