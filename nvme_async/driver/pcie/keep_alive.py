"""Keep Alive of a PCI function (Base 2.1, 3.9 and 5.1.16), which an option asks for: a controller
that gets none in time stops with a fatal status (CSTS.CFS), so a host that has stopped is noticed.

On the controller's home loop.
"""

from __future__ import annotations

import asyncio
import logging
import math

from nvme_async.driver.lifecycle import FINAL, State
from nvme_async.driver.transport import Owner
from nvme_async.errors import CommandError, ConfigurationError, NvmeError
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature

log: logging.Logger = logging.getLogger("nvme_async")

PER_TIMEOUT = 3
"""Keep Alives within each timeout, so that one may be late on a busy loop."""


class PcieKeepAlive:
    """sent: how many, by this process."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._task: asyncio.Task[None] | None = None
        self._inherited = False
        self.sent = 0

    @property
    def _seconds(self) -> float:
        return self._owner.options.pcie_keep_alive_tmo

    def inherit(self, seconds: float) -> None:
        """A predecessor has set this timeout, and no reset has ended it."""
        self._inherited = bool(seconds)

    async def set(self) -> None:
        """Sets the timer (feature 0Fh); after a reset it is off. ConfigurationError if the
        controller has no Keep Alive, or fused mode allows none.
        """
        owner = self._owner
        if self._seconds and not owner.identify.kas:
            raise ConfigurationError(f"{owner.uri}: the controller has no Keep Alive (KAS)")
        if owner.fused:
            raise ConfigurationError(f"{owner.uri}: fused mode sends no admin commands after the bring-up")
        await owner._submit_admin(commands.set_features(Feature.KEEP_ALIVE_TIMER, math.ceil(self._seconds * 1000)))

    def start(self) -> None:
        """Sends them from now on, while the controller is ready."""
        self.stop()
        if self._seconds or self._inherited:
            owner = self._owner
            self._task = owner.loop.create_task(self._run(), name=f"{owner.uri} Keep Alive")

    def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None and not task.get_loop().is_closed():
            task.cancel()

    async def _run(self) -> None:
        owner = self._owner
        while owner.lifecycle.state not in FINAL:
            try:
                if owner.lifecycle.state is State.READY and self._inherited:
                    await self.set()  # with this process's timeout
                    self._inherited = False
                elif owner.lifecycle.state is State.READY:
                    await owner._submit_admin(commands.keep_alive())
                    self.sent += 1
            except CommandError as error:
                log.warning("%s: Keep Alive: %s", owner.uri, error)
            except NvmeError as error:
                log.debug("%s: Keep Alive: %s", owner.uri, error)  # a reset, or the end: others handle it
            if not self._seconds and not self._inherited:
                return
            await asyncio.sleep((self._seconds or 1.0) / PER_TIMEOUT)
