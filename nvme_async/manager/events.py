"""Events of the manager's devices, for any event loop."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from typing import Literal

import attrs

from nvme_async.runtime.gate import wake
from nvme_async.spec.completion import AsyncEvent
from nvme_async.spec.reservations import ReservationNotificationType

BACKLOG = 1024
"""Unread events of a subscriber before the oldest are dropped."""

Kind = Literal[
    "device-loaded",
    "device-unloaded",
    "device-failed",
    "device-gone",
    "device-serviced",
    "device-appeared",
    "device-replaced",
    "namespace-added",
    "namespace-removed",
    "namespace-changed",
    "namespace-replaced",
    "reservation-notification",
    "controller-event",
]


@attrs.frozen
class ManagerEvent:
    """An event of one of the manager's devices.

    Attributes:
        kind: the kind of event. Handles are up to date before it is published.
        uri: of the device.
        nsid: of the namespace, for namespace events, otherwise 0.
        reason: for people: why a device failed or is gone.
        event: the controller's event, for "controller-event" and for namespace events that it
            caused.
        reservation: of "reservation-notification", what happened.
    """

    kind: Kind
    uri: str
    nsid: int = 0
    reason: str = ""
    event: AsyncEvent | None = None
    reservation: ReservationNotificationType | None = None


class Subscription:
    """An asynchronous iterator of events from the moment it was made until the manager is closed.
    On the loop that made it.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._queue: deque[ManagerEvent] = deque(maxlen=BACKLOG)
        self._future: asyncio.Future[None] | None = None
        self._ended = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> ManagerEvent:
        while True:
            future = self._future = self._loop.create_future()
            # From now on a publisher finds the future.
            if self._queue:
                return self._queue.popleft()
            if self._ended:
                raise StopAsyncIteration
            await future

    def _put(self, event: ManagerEvent | None) -> None:
        if event is None:
            self._ended = True
        else:
            self._queue.append(event)
        future = self._future
        if future is not None:
            wake(self._loop, future)

    def close(self) -> None:
        """No more events; the iteration ends when the remaining ones were taken."""
        self._events.discard(self)
        self._put(None)


class Events:
    """The subscribers. Publishing is possible from any thread; the lock is held for set
    operations only.
    """

    published: int

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._ended = False
        self.published = 0

    def subscribe(self) -> Subscription:
        subscription = Subscription(self)
        with self._lock:
            if not self._ended:
                self._subscriptions.add(subscription)
                return subscription
        subscription._put(None)
        return subscription

    def discard(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions.discard(subscription)

    def publish(self, event: ManagerEvent) -> None:
        with self._lock:
            subscriptions = list(self._subscriptions)
            self.published += 1
        for subscription in subscriptions:
            subscription._put(event)

    def end(self) -> None:
        with self._lock:
            self._ended = True
            subscriptions = list(self._subscriptions)
            self._subscriptions.clear()
        for subscription in subscriptions:
            subscription._put(None)
