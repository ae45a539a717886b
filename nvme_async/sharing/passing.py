"""The predecessor's side when a worker hands its queue pairs over: nvme_async.keepalive.offer has
the conversation, inheriting.py the successor's side, transfer.py the owner's.

Commands in flight are not waited for. The worker freezes, says "go", and touches nothing any more;
the successor then asks the owner for the lease. If no answer comes back, the owner knows who has
it.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from nvme_async.driver.lifecycle import State
from nvme_async.driver.pcie import suspension
from nvme_async.errors import ControllerGone, HandedOver, NvmeError, QueueShutdown, RestoreRefused
from nvme_async.keepalive.bundle import Bundle, send_bundle
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.handover_wire import READY_SECONDS, TAKEN_SECONDS, Wire
from nvme_async.keepalive.inheritance import passed_on
from nvme_async.keepalive.manifest import Recorder
from nvme_async.keepalive.phases import Phases
from nvme_async.keepalive.state import RegistrationState
from nvme_async.runtime.tasks import in_thread
from nvme_async.sharing.passable import PassableTransport
from nvme_async.sharing.passed_state import PassedState

log: logging.Logger = logging.getLogger("nvme_async")


def passing(controller: Controller) -> Passing | None:
    """How this controller's queue pairs are handed over while they are in use; None: they can't
    be.
    """
    transport = controller.transport
    if not isinstance(transport, PassableTransport) or transport.obstacle():
        return None
    return Passing(controller, transport)


class Passing:
    """One attempt. On the controller's home loop."""

    def __init__(self, controller: Controller, transport: PassableTransport) -> None:
        self._controller = controller
        self._transport = transport
        self._attempt = secrets.randbits(48)
        self._went = False
        self._taken: bool | None = None
        self._why = "no reason given"

    async def offer(self, wire: Wire) -> None:
        """The first message, and the pool's descriptor."""
        controller, memory = self._controller, self._transport.memory
        assert memory is not None
        options = passed_on(controller.options)
        await wire.send(offer="lease", uri=controller.uri, options=options, **self._secret)
        with Bundle.of(controller.uri, b"{}", {"pool": memory.pools[0].fd}) as bundle:
            await in_thread(lambda: send_bundle(wire.socket, bundle, timeout=READY_SECONDS))

    @property
    def _secret(self) -> dict[str, Any]:
        return {**self._transport.device.grant.secret(), "attempt": self._attempt}

    async def commit(self, wire: Wire) -> None:
        """From "ready" to the end; service continues if this raises. May be called again, and
        continues where it was: see finish().
        """
        controller = self._controller
        async with controller._lock:
            if self._taken is None:
                if not self._went:
                    await self._go(wire)
                self._taken = await self._is_taken(wire)
            if self._taken:
                suspension.release(controller)
                await controller.scanner.stop()
                self._transport.let_go(HandedOver(f"{controller.uri}: handed over to a successor", sent=True))
                return
            await suspension.resume(controller)
        raise RestoreRefused(f"the successor refused: {self._why}")

    async def _go(self, wire: Wire) -> None:
        controller = self._controller
        phases = controller.phases = Phases(controller.uri)
        found: list[PassedState] = []
        try:
            if controller.state is not State.READY:
                raise controller.failure or QueueShutdown(f"{controller.uri}: the controller is {controller.state}")
            with phases.of("suspend"):
                await suspension.suspend(controller, lambda: found.append(self._state()))
        except BaseException as error:
            self._withdraw(wire, error)
            raise
        self._went = True
        seconds = {"suspend": phases.seconds["suspend"]}
        try:
            wire.send_now(go={"frozen": time.monotonic(), "phases": seconds, "lease": found[0].encode()})
        except OSError as error:
            self._taken = False  # it didn't get all that it needs
            self._why = f"it is gone: {error}"

    @staticmethod
    def _withdraw(wire: Wire, error: BaseException) -> None:
        try:
            wire.send_now(withdrawn=str(error) or repr(error))
        except OSError:
            pass  # it is gone, and need not know

    def _state(self) -> PassedState:
        """All queue pairs are frozen."""
        transport = self._transport
        why = transport.obstacle()
        if why:
            raise ControllerGone(f"{self._controller.uri}: the queue pairs can't be passed on: {why}")
        memory, queues = transport.memory, transport.queues
        assert memory is not None
        return PassedState(
            pool_id=memory.pools[0].id,
            life=transport.life,
            max_transfer=queues.maker.capacity,
            queues=[Recorder._queue(queue) for queue in queues.io_queues()],
            registrations=[RegistrationState(iova=iova, nbytes=n) for iova, n in memory.foreign_mappings()],
        )

    async def _is_taken(self, wire: Wire) -> bool:
        if self._taken is not None:
            return self._taken
        answer: dict[str, Any] = {}
        try:
            answer = await wire.receive(TAKEN_SECONDS)
        except (NvmeError, OSError) as error:
            self._why = str(error)
        if answer.get("taken"):
            return True
        self._why = str(answer.get("refused", self._why))
        try:
            # From here on a successor that has not taken the lease can't do so any more.
            reply = await self._transport.request("reclaim", self._secret)
        except NvmeError as error:
            # No owner, or it has given the lease to another process: nothing may be touched.
            log.warning("%s: who has the lease is unknown (%s); it is given up", self._controller.uri, error)
            return True
        return bool(reply.body.get("taken", True))
