"""One controller's deposit with its holder: made, updated, ended or passed on as the controller
changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from nvme_async.errors import KeeperError, NvmeError
from nvme_async.keepalive.bundle import Bundle
from nvme_async.keepalive.custodian import Custodian

log: logging.Logger = logging.getLogger("nvme_async")


class Deposited(Protocol):
    """The part of a controller that its deposit needs."""

    uri: str
    loop: asyncio.AbstractEventLoop
    on_bundle_changed: Callable[[], None] | None

    @property
    def keepalive(self) -> bool: ...

    def bundle(self) -> Bundle: ...


class Depositor:
    """Owns the holder. On the controller's home loop.

    The deposit follows the controller's bundle: there is one while the controller is kept alive;
    none once it is being closed, has failed or was released, though the address stays reserved for
    this process until end() or pass_on().
    """

    def __init__(self, controller: Deposited, holder: Custodian) -> None:
        self._controller = controller
        self._holder = holder
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._suspended = False
        self._claiming = False
        self._ended = False
        self.stays = False
        """A save for this same process (an exec, or the next driver) keeps the deposit.
        """

    async def start(self) -> None:
        """The first deposit. Raises KeeperError if there can't be one."""
        await self._deposit()
        self._controller.on_bundle_changed = self._on_changed

    def follow(self) -> None:
        """start() where the holder still has the descriptors of a predecessor, which are those of
        the controller: they are replaced soon. Doesn't wait: callers' I/O comes first.
        """
        self._controller.on_bundle_changed = self._on_changed
        self._on_changed()

    def succeed(self, wait: float) -> None:
        """The controller was handed over by a process that may still live: it is deposited once
        that has passed the address on, for which it has `wait` seconds. Doesn't wait itself;
        should it come to nothing, a warning says so.
        """
        self._controller.on_bundle_changed = self._on_changed
        self._claiming = True
        self._task = self._controller.loop.create_task(self._claim(wait), name=f"{self._controller.uri} claim")

    async def _claim(self, wait: float) -> None:
        try:
            left = await self._holder.take(self._controller.uri, wait)
        except (NvmeError, OSError) as error:
            log.warning("%s: the deposit with %s failed: %s", self._controller.uri, self._holder.words, error)
            return
        finally:
            self._claiming = False
        if left is not None:
            left.close()  # of a predecessor that died before it could take it back: the controller is here
        await self._follow()

    def _on_changed(self) -> None:
        if self._ended:
            return
        self._suspended = False
        if self._task is None or self._task.done():
            self._task = self._controller.loop.create_task(self._follow(), name=f"{self._controller.uri} deposits")
        else:
            self._again = True

    async def update(self) -> None:
        """Deposits the bundle as it is now; returns once that was done, or has failed with a
        warning.
        """
        self._on_changed()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _follow(self) -> None:
        while True:
            self._again = False
            try:
                await self._deposit()
            except (NvmeError, OSError) as error:
                log.warning(
                    "%s: the deposit with %s could not be updated: %s",
                    self._controller.uri,
                    self._holder.words,
                    error,
                )
            if not self._again:
                return

    async def _deposit(self) -> None:
        controller = self._controller
        if self._suspended:
            return
        if controller.keepalive:
            with controller.bundle() as bundle:
                await self._holder.deposit(bundle)
        elif not self.stays:
            await self._holder.forget(controller.uri)

    async def suspend(self) -> None:
        """A successor is about to take over: if both die meanwhile, no process must get a
        deposit that may belong to either. Ended by pass_on(), or by the next change of the
        bundle.
        """
        self._suspended = True
        try:
            await self._holder.forget(self._controller.uri)
        except KeeperError as error:
            log.warning("%s: %s", self._controller.uri, error)

    def leave(self) -> None:
        """Another driver of this process has the controller, and makes its own deposit; this one
        stays until then.
        """
        self._ended = True
        self._controller.on_bundle_changed = None
        if self._task is not None:
            self._task.cancel()
        self._holder.close()

    async def pass_on(self, pid: int) -> None:
        """Process `pid` has the controller now; the address is reserved for it."""
        await self._finish(self._holder.release(self._controller.uri, pid))

    async def end(self) -> None:
        """The controller is closed or released. May be repeated, also after pass_on()."""
        await self._finish(self._holder.drop(self._controller.uri))

    async def _finish(self, last: Coroutine[Any, Any, None]) -> None:
        if self._ended:
            last.close()
            return
        self._ended = True
        self._controller.on_bundle_changed = None
        if self._task is not None:
            if self._claiming:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await last
        except KeeperError as error:
            log.warning("%s: %s", self._controller.uri, error)
        finally:
            self._holder.close()
