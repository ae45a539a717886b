"""What a device of the manager is at the moment: its state, its driver, the handles that calls go
through, and whether they are still for the same controller and disks.

On the device's worker; other threads read single attributes.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any, Literal

from nvme_async.errors import (
    ControllerReplaced,
    InvalidNamespace,
    NvmeError,
    QueueShutdown,
)
from nvme_async.keepalive import Adopted
from nvme_async.keepalive.controller import Controller
from nvme_async.manager.events import Events, Kind, ManagerEvent
from nvme_async.manager.handles import ManagedNamespace
from nvme_async.runtime.gate import Gate
from nvme_async.spec.identity import ControllerIdentity

log: logging.Logger = logging.getLogger("nvme_async")

State = Literal["new", "loading", "ready", "servicing", "failed", "gone", "closed"]


class DeviceState(ABC):
    """Attributes: see ManagedDevice."""

    def __init__(self, uri: str, events: Events) -> None:
        self.uri = uri
        self.state: State = "new"
        self.failure: NvmeError | None = None
        self.controller: Controller | None = None
        self.gate: Gate = Gate()
        self.handles: dict[int, ManagedNamespace] = {}
        self.identity: ControllerIdentity | None = None
        self._events = events

    @property
    @abstractmethod
    def wait_limit(self) -> float:
        """Seconds that a call waits for a driver."""

    @abstractmethod
    def inspect(self) -> dict[str, Any]: ...

    @abstractmethod
    async def adopted_result(self, controller: Controller, tag: int) -> Adopted | None:
        """The result of a call that the last driver did not finish."""

    def _become(self, state: State, failure: NvmeError | None = None) -> None:
        """Handles first, then the callers that wait. Closed is final."""
        if self.state == "closed" and state != "closed":
            return
        self.state = state
        self.failure = failure
        replaced = [nsid for nsid in list(self.handles) if not self._bind(nsid)]
        self.gate.wake()
        for nsid in replaced:
            self._events.publish(ManagerEvent("namespace-replaced", self.uri, nsid))

    def forget_in_child(self, reason: NvmeError) -> None:
        self.gate = Gate()
        self._become("closed", reason)

    def _bind(self, nsid: int) -> bool:
        """False: another disk has the number; the handle has ended, and the next namespace()
        gives a new one.
        """
        handle = self.handles[nsid]
        if self.state != "ready":
            return handle._bind(None, self.failure)
        assert self.controller is not None
        target = self.controller.namespaces.get(nsid)
        if target is None and nsid in self.controller.scanner.unread:
            return handle._bind(None, None)  # not ready yet: calls wait for it, within their limit
        if target is None:
            return handle._bind(
                None, InvalidNamespace(0, 0x0B, nsid=nsid, text="there is no such namespace", command="I/O")
            )
        if handle._bind(target, None):
            return True
        del self.handles[nsid]
        return False

    def _publish(self, kind: Kind, reason: str = "") -> None:
        self._events.publish(ManagerEvent(kind, self.uri, reason=reason))

    async def _namespace(self, nsid: int) -> ManagedNamespace:
        if self.failure is not None:
            raise self.failure
        handle = self.handles.get(nsid)
        if handle is None:
            controller = self.controller
            if controller is None or nsid not in controller.namespaces:
                there = sorted(controller.namespaces) if controller is not None else "none"
                raise InvalidNamespace(
                    0, 0x0B, nsid=nsid, text=f"{self.uri} has no such namespace; active: {there}", command="I/O"
                )
            handle = self.handles[nsid] = ManagedNamespace(self, nsid)
            self._bind(nsid)
        return handle

    def _ready(self) -> Controller:
        if self.state != "ready" or self.controller is None:
            raise self.failure or QueueShutdown(f"{self.uri}: the device is {self.state}")
        return self.controller

    def _identify(self, controller: Controller) -> None:
        """Is it the handles' controller? If it isn't, they end here, and the next namespace()
        gives new ones.
        """
        before, self.identity = self.identity, controller.identity
        if before is None or controller.identity is None:
            return
        differences = before.differences(controller.identity, connected_anew=True)
        if not differences:
            return
        reason = ControllerReplaced(f"{self.uri}: the controller is another one: {differences}")
        log.warning("%s", reason)
        handles, self.handles = self.handles, {}
        for handle in handles.values():
            handle._end(reason)
        self.gate.wake()
        self._publish("device-replaced", str(reason))
