"""Asynchronous events of a controller: one Asynchronous Event Request is always outstanding, and
its results become Event objects.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Literal

import attrs

from nvme_async.driver.context import ControllerContext
from nvme_async.errors import CommandError, InvalidOpcode, NvmeError
from nvme_async.runtime.tasks import cancel_other
from nvme_async.spec import commands
from nvme_async.spec.completion import AsyncEvent, AsyncEventType, NoticeEvent
from nvme_async.spec.opcodes import Feature, LogPage
from nvme_async.spec.reservations import ReservationNotification, ReservationNotificationType

log: logging.Logger = logging.getLogger("nvme_async")

Kind = Literal[
    "namespace-added",
    "namespace-removed",
    "namespace-changed",
    "namespace-replaced",
    "reservation-notification",
    "controller-event",
]
# Delay in seconds of the next request after one that failed: first, maximum, and how many in a row.
FIRST_PAUSE, LONGEST_PAUSE, RETRIES = 0.1, 5.0, 10

# Bytes of the log pages whose reading clears an event (Base 2.0, 5.2.1). Others are read with 512
# bytes.
_LOG_BYTES = {LogPage.ERROR_INFORMATION: 64, LogPage.CHANGED_NAMESPACES: 4096}
# Namespace Attribute, Firmware Activation, ANA and Zone Descriptor notices: the same bits in
# Identify's OAES and in the feature.
_NOTICES = 1 << 8 | 1 << 9 | 1 << 11 | 1 << 27
# SMART / health critical warnings: every controller has them.
_SMART = 0x1F
# Reservation notifications that one event may bring: reading the log page returns one at a time.
_MOST_NOTIFICATIONS = 256
# If a subscriber leaves more events than this unread, the oldest are dropped.
BACKLOG = 1024
_NOTIFICATIONS = frozenset(ReservationNotificationType) - {ReservationNotificationType.EMPTY}


@attrs.frozen
class Event:
    """An event of a controller.

    Attributes:
        kind: the kind of event. Namespace events are sent after `controller.namespaces` was
            updated. "namespace-replaced": another namespace has the number; its handle is a new
            one.
        nsid: of the namespace, else 0.
        event: the controller's event (type, information, log page), for "controller-event" and
            those that led to a rescan.
        uri: the controller's.
        reservation: of "reservation-notification": that this host's registration was preempted, or
            a reservation was released or preempted (Base 2.0, 8.19).
    """

    kind: Kind
    uri: str
    nsid: int = 0
    event: AsyncEvent | None = None
    reservation: ReservationNotificationType | None = None


class EventListener:
    """Owner of the Asynchronous Event Request (Base 2.0, 5.2). On the controller's home loop."""

    seen: int
    failures: int

    def __init__(self, controller: ControllerContext) -> None:
        self._controller = controller
        self._task: asyncio.Task[None] | None = None
        self._subscribers: set[asyncio.Queue[Event | None]] = set()
        self._ended = False
        self.seen = 0
        self.failures = 0
        self.refusal: str = ""
        """Why there are no events (any more), or the error of the last failed request."""

    async def enable(self) -> None:
        """Enables SMART warnings and notices of namespaces, firmware, ANA and zones
        (Asynchronous Event Configuration, 5.27.1.8); other events stay at the controller's
        choice. Called after each reset.
        """
        controller = self._controller
        if controller.fused:
            return
        wanted = controller.identify.oaes & _NOTICES | _SMART
        now = (await controller._submit_admin(commands.get_features(Feature.ASYNC_EVENT_CONFIGURATION))).dw0
        if now & wanted != wanted:
            await controller._submit_admin(commands.set_features(Feature.ASYNC_EVENT_CONFIGURATION, now | wanted))

    def start(self, adopted: Sequence[Awaitable[Any]] | None = None) -> None:
        """adopted: the requests that a predecessor left with the controller, so that there is
        never a second one. An empty list: the predecessor was processing an event that is known
        to no other process.
        """
        if self._controller.fused:
            self.refusal = "in fused mode no Asynchronous Event Request is sent"
        elif not self._controller.transport.has_events:
            self.refusal = f"{self._controller.transport.kind} has no events"
        elif self._task is None:
            self._task = self._controller.loop.create_task(self._listen(adopted), name=f"{self._controller.uri} events")

    async def stop(self) -> None:
        """Stops waiting for the request. The request itself stays with the controller; only a
        reset or an event ends it.
        """
        task = self.cancel()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def cancel(self) -> asyncio.Task[None] | None:
        """stop() without waiting for its end. Returns what ends."""
        task, self._task = self._task, None
        return cancel_other(task)

    def forget(self) -> None:
        """The loop that it ran on was closed, and its task and its subscribers with it."""
        self._task = None
        self._subscribers.clear()

    def end(self) -> None:
        """Subscribers' iterations end."""
        self._ended = True
        for queue in self._subscribers:
            queue.put_nowait(None)

    async def _listen(self, adopted: Sequence[Awaitable[Any]] | None) -> None:
        controller = self._controller
        left = list(adopted or ())
        catch_up = adopted is not None and not adopted
        in_a_row = 0
        self.refusal = ""
        while True:
            try:
                if catch_up:
                    catch_up = False
                    await self._catch_up()
                if left:
                    dw0, dw1, _ = await left.pop(0)
                else:
                    completion = await controller._submit_admin(commands.async_event_request(), internal=True)
                    dw0, dw1 = completion.dw0, completion.dw1
            except CommandError as error:
                self.failures += 1
                in_a_row += 1
                self.refusal = str(error)
                # A controller without the command says so twice; one that has it may say it once.
                if in_a_row > RETRIES or (isinstance(error, InvalidOpcode) and in_a_row > 1):
                    log.error("%s: no more asynchronous events: %s", controller.uri, error)
                    return
                log.warning("%s: an Asynchronous Event Request failed: %s", controller.uri, error)
                await asyncio.sleep(min(FIRST_PAUSE * 2 ** (in_a_row - 1), LONGEST_PAUSE))
                catch_up = True  # possibly an event was lost with it
                continue
            except NvmeError as error:
                # The controller is being reset or closed.
                log.debug("%s: no more asynchronous events: %s", controller.uri, error)
                return
            in_a_row = 0
            self.refusal = ""
            event = AsyncEvent.from_dw0(dw0, dw1)
            self.seen += 1
            log.info("%s: %s", controller.uri, event.name)
            try:
                await self._handle(event)
            except NvmeError as error:
                log.warning("%s: %s: %s", controller.uri, event.name, error)

    def inspect(self) -> dict[str, Any]:
        return {
            "waiting": self._task is not None and not self._task.done(),
            "failures": self.failures,
            "refusal": self.refusal or None,
        }

    async def _catch_up(self) -> None:
        """An event may have been lost: a predecessor ended between it and its next request, or a
        request ended with an error. Every log page that may block an event is read, and the
        namespaces are read again.
        """
        controller = self._controller
        for lid in (LogPage.ERROR_INFORMATION, LogPage.SMART_HEALTH, LogPage.CHANGED_NAMESPACES):
            try:
                await controller._submit_admin(commands.get_log_page(lid, _LOG_BYTES.get(lid, 512)))
            except CommandError as error:
                log.warning("%s: log page %#x: %s", controller.uri, lid, error)
        await self._rescan(None)

    async def _rescan(self, event: AsyncEvent | None) -> None:
        """A scan that fails isn't dropped."""
        controller = self._controller
        try:
            await controller.rescan(event)
        except CommandError as error:
            log.warning("%s: rescan: %s", controller.uri, error)
            controller._rescan_later(str(error))

    async def _handle(self, event: AsyncEvent) -> None:
        controller = self._controller
        # ZonedNamespace.changed() reads which zones changed: that clears list and event.
        if event.type == AsyncEventType.IMMEDIATE or event.lid == LogPage.CHANGED_ZONES:
            self.publish(Event("controller-event", controller.uri, event=event))
            return
        activation = event.type == AsyncEventType.NOTICE and event.info == NoticeEvent.FIRMWARE_ACTIVATION_STARTING
        if activation:
            # Command processing pauses meanwhile, also for the next command (5.12.1).
            await controller._sit_out()
        if event.lid == LogPage.RESERVATION_NOTIFICATION:
            await self._read_notifications(event)
            return
        # Reading the log page clears the event; otherwise there won't be another of its kind.
        nbytes = _LOG_BYTES.get(event.lid, 512)  # type: ignore[call-overload]
        try:
            await controller._submit_admin(commands.get_log_page(event.lid, nbytes))
        except CommandError as error:
            log.warning("%s: %s: log page %#x: %s", controller.uri, event.name, event.lid, error)
        if activation:
            await controller._identify_again()
        if event.type == AsyncEventType.NOTICE and event.info == NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED:
            # The list names the namespaces, or FFFFFFFFh for too many; the active list is
            # authoritative in both cases, and covers changes made meanwhile.
            await self._rescan(event)
        else:
            self.publish(Event("controller-event", controller.uri, event=event))

    async def _read_notifications(self, event: AsyncEvent) -> None:
        """Each is an event of its own; the last one read clears the controller's event."""
        controller = self._controller
        for _ in range(_MOST_NOTIFICATIONS):
            try:
                answer = await controller._submit_admin(
                    commands.get_log_page(LogPage.RESERVATION_NOTIFICATION, ReservationNotification.SIZE)
                )
            except CommandError as error:
                log.warning("%s: %s: log page %#x: %s", controller.uri, event.name, event.lid, error)
                return
            assert answer.data is not None
            page = ReservationNotification.decode(answer.data)
            if page.rnlpt in _NOTIFICATIONS:
                kind = ReservationNotificationType(page.rnlpt)
                self.publish(
                    Event("reservation-notification", controller.uri, page.nsid, event=event, reservation=kind)
                )
            if not page.nalp:
                return

    def publish(self, event: Event) -> None:
        for queue in self._subscribers:
            if queue.qsize() >= BACKLOG:
                queue.get_nowait()
            queue.put_nowait(event)

    async def subscribe(self) -> AsyncIterator[Event]:
        """Events from now on, until the controller is closed or has failed. On the home loop."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        if self._ended:
            return
        self._subscribers.add(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._subscribers.discard(queue)
