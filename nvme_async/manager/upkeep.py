"""The manager's automatic work for a device: passing its events on, giving it a new driver after
a failure, and checking for it when it is gone.

On the device's worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from nvme_async.driver.controller import Controller
from nvme_async.errors import ControllerGone, NvmeError
from nvme_async.manager.drivers import reachable
from nvme_async.manager.mailbox import Mailbox

log: logging.Logger = logging.getLogger("nvme_async")

# The window in seconds in which repairs are counted.
REPAIR_WINDOW = 60.0
# Seconds between failed repairs: first, and maximum.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
# Seconds between checks for a missing device: first, and maximum.
FIRST_LOOK, SLOWEST_LOOK = 0.1, 2.0


class RepairLimit:
    """When the next repair may start: no more than `most` within REPAIR_WINDOW, and with growing
    pauses while they fail.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.failed = 0
        """Consecutive failed repairs."""
        self._clock = clock
        self._begun: list[float] = []

    def _recent(self) -> list[float]:
        now = self._clock()
        self._begun = [then for then in self._begun if now - then < REPAIR_WINDOW]
        return self._begun

    @property
    def used_up(self) -> bool:
        """Must the next one wait for the window?"""
        return len(self._recent()) >= self.most

    def pause(self) -> float:
        """Seconds until the next one may start."""
        pause = min(FIRST_PAUSE * 2 ** (self.failed - 1), LONGEST_PAUSE) if self.failed else 0.0
        recent = self._recent()
        if len(recent) >= self.most:
            pause = max(pause, recent[len(recent) - self.most] + REPAIR_WINDOW - self._clock())
        return pause

    def begin(self) -> None:
        self._recent().append(self._clock())


class Kept(Protocol):
    """The part of a managed device that its upkeep needs."""

    uri: str
    controller: Any
    mailbox: Mailbox
    repairs: int

    @property
    def state(self) -> str: ...
    async def load(self) -> None: ...
    def pass_on(self, event: Any) -> None: ...
    def out_of_order(self, state: Any, failure: NvmeError, kind: Any = None) -> None: ...
    async def replace_driver(self) -> None: ...
    async def drop_driver(self) -> bool: ...


class Upkeep:
    """The upkeep of one device. repairs: how many within a minute; reload: a missing device is
    loaded again when it is back.
    """

    def __init__(self, device: Kept, *, repairs: int, reload: bool) -> None:
        self._device = device
        self._reload = reload
        self.limit: RepairLimit = RepairLimit(repairs)
        self._followed: Controller | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def _task(self, name: str, make: Callable[[], Any]) -> None:
        running = self._tasks.get(name)
        if running is None or running.done() or running is asyncio.current_task():
            self._tasks[name] = asyncio.ensure_future(make())

    def stop(self) -> None:
        for task in self._tasks.values():
            if task is not asyncio.current_task():
                task.cancel()

    def follow(self, controller: Controller) -> None:
        """This is its driver from now on."""
        if self._followed is not controller:
            self._followed = controller
            self._tasks["follow"] = controller.loop.create_task(
                self._follow(controller), name=f"{self._device.uri} follower"
            )

    async def _follow(self, controller: Controller) -> None:
        """Passes the driver's events on; if they end because it failed, provides a new one."""
        device = self._device
        async for event in controller.events():
            device.pass_on(event)
        if controller is device.controller and controller.failure is not None and device.state == "ready":
            self.limit.failed = 0
            self._failed(controller.failure)

    def _failed(self, failure: NvmeError) -> None:
        device = self._device
        if isinstance(failure, ControllerGone):
            device.out_of_order("gone", failure, "device-gone")
            device.mailbox.post("reclaim", self._reclaim)
            return
        # Calls wait while a repair is expected soon; otherwise they fail.
        waits = self.limit.most and not self.limit.used_up
        device.out_of_order("servicing" if waits else "failed", failure, "device-failed")
        if not waits:
            device.mailbox.post("reclaim", self._reclaim)
        if self.limit.most:
            self._task("repair", self._repair_until_it_works)

    async def _repair_until_it_works(self) -> None:
        device = self._device
        while True:
            await asyncio.sleep(self.limit.pause())
            try:
                await device.mailbox.call("repair", self._repair)
            except NvmeError as error:
                log.error("%s: %s", device.uri, error)
            if device.state not in ("servicing", "failed") or device.controller is not None:
                return

    async def _repair(self) -> None:
        """One attempt."""
        device = self._device
        if device.state not in ("servicing", "failed"):
            return  # another operation was first
        device.repairs += 1
        self.limit.begin()
        try:
            await device.replace_driver()
        except NvmeError as error:
            self.limit.failed += 1
            self._failed(error)
            raise
        self.limit.failed = 0

    async def _reclaim(self) -> None:
        """A missing device accesses no memory: everything is freed."""
        device = self._device
        if device.state not in ("gone", "failed"):
            return  # another operation was first
        await device.drop_driver()
        if device.state == "gone" and self._reload:
            self._task("search", self._search)

    async def _search(self) -> None:
        """Checks for a missing device until it is back."""
        device = self._device
        pause = FIRST_LOOK
        while device.state == "gone":
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, SLOWEST_LOOK)
            if device.state == "gone" and await asyncio.to_thread(reachable, device.uri) and device.state == "gone":
                try:
                    await device.load()
                except (NvmeError, OSError) as error:
                    log.info("%s: not available yet: %s", device.uri, error)
