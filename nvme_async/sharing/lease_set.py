"""The leases of one controller, and what they go through with it: reset, holds, failure, events.

On the controller's home loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from nvme_async.driver.events import Event
from nvme_async.errors import NvmeError
from nvme_async.keepalive.controller import Controller
from nvme_async.sharing.lease import Lease, QueueIs
from nvme_async.sharing.policy import Policy
from nvme_async.sharing.stop_page import StopPage
from nvme_async.spec.completion import AsyncEvent, AsyncEventType
from nvme_async.spec.opcodes import LogPage

_NAMESPACES_CHANGED = AsyncEvent(type=AsyncEventType.NOTICE, info=0, lid=LogPage.CHANGED_NAMESPACES)


class LeaseSet(ABC):
    """Attributes:
    leases: {number: Lease}, the current ones.
    policy: what workers may have. revoked: how many leases were taken back.
    """

    revoked: int

    def __init__(self, controller: Controller, policy: Policy) -> None:
        self.controller = controller
        self.policy = policy
        self.leases: dict[int, Lease] = {}
        self.revoked = 0
        self._changed = asyncio.Event()
        self._holding = itertools.count(1)
        self._is_held = False
        self._stops: StopPage | None = None

    @property
    def holding(self) -> bool:
        """Do workers hold their I/O, because an admin command changes namespaces?"""
        return self._is_held

    @abstractmethod
    def spawn(self, work: Callable[[], Any]) -> None:
        """Runs a coroutine in the background."""

    @abstractmethod
    async def take_back_one(self, lease: Lease, why: str) -> None:
        """Ends a lease."""

    @property
    def stops(self) -> StopPage:
        assert self._stops is not None
        return self._stops

    async def revoke(self, pid: int) -> int:
        """Takes the process's leases back and returns their number. Its controllers fail with
        LeaseError.
        """
        leases = [lease for lease in self.leases.values() if lease.pid == pid and not lease.ending]
        self.revoked += len(leases)
        await asyncio.gather(*(self.take_back_one(lease, "revoked") for lease in leases))
        return len(leases)

    # -- see nvme_async.driver.pcie.lending.Lender ------------------------------------------------

    async def stop(self, notify: bool = True) -> None:
        for lease in self.leases.values():
            lease.life = self.stops.end_life(lease.slot)
            if lease.dead:
                lease.confirmed = lease.life
            elif notify:
                lease.notify("stop", life=lease.life, reason="the controller is being reset")
        await self._until(lambda lease: lease.silent or lease.channel is None, self.policy.stop_seconds)

    async def _until(self, true: Callable[[Lease], bool], seconds: float) -> bool:
        """Waits until that holds for every lease; False if it took too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(true(lease) for lease in list(self.leases.values())):
                    self._changed.clear()
                    await self._changed.wait()
                return True
        return False

    def disabled(self) -> None:
        for lease in list(self.leases.values()):
            for qid in lease.queues:
                lease.queues[qid] = QueueIs.ABSENT
            lease.settled.set()
            if lease.ending:
                self.spawn(functools.partial(self.take_back_one, lease, lease.ending))

    async def go(self) -> None:
        for lease in self.leases.values():
            lease.notify("ready", life=lease.life)

    async def hold(self, nsids: frozenset[int] | None, seconds: float) -> bool:
        number = next(self._holding)
        self._is_held = True
        for lease in self.leases.values():
            lease.holding = number
            lease.notify("hold", hold=number, nsids=sorted(nsids) if nsids is not None else None)
        # One without a connection is notified when it has one again.
        return await self._until(lambda lease: lease.held >= number or lease.dead or bool(lease.ending), seconds)

    async def unhold(self) -> None:
        if self._is_held:
            self._is_held = False
            self._changed.set()
            for lease in self.leases.values():
                lease.notify("unhold")

    async def fail(self, error: NvmeError) -> None:
        for lease in self.leases.values():
            lease.life = self.stops.end_life(lease.slot)
            lease.notify("failed", text=str(error))

    def inspect(self) -> list[dict[str, Any]]:
        return [lease.inspect() for lease in list(self.leases.values())]

    # -- events ------------------------------------------------------------------------------------

    async def _forward_events(self) -> None:
        async for event in self.controller.events():
            self._forward(event)

    def _forward(self, event: Event) -> None:
        told = event.event or _NAMESPACES_CHANGED
        for lease in self.leases.values():
            lease.notify("event", dw0=told.to_dw0(), dw1=told.parameter)
