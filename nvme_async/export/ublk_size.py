"""A block device gets the size of its namespace, when that changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import attrs

from nvme_async.driver.namespace import Namespace
from nvme_async.errors import DeviceError
from nvme_async.export.ublk import DeviceInfo, Ublk
from nvme_async.export.ublk_geometry import SECTOR
from nvme_async.keepalive.controller import Controller
from nvme_async.native import _ublk
from nvme_async.runtime.tasks import in_thread

log = logging.getLogger("nvme_async")

SYSFS = Path("/sys/block")


@attrs.define
class DiskSize:
    """Of a device that is served: `queues` are its. On the controller's home loop."""

    namespace: Namespace
    ublk: Ublk
    info: DeviceInfo
    queues: Sequence[_ublk.Queue]
    _kept: int = 0
    """A size of the namespace that the disk could not get."""

    async def follow(self) -> None:
        """Until the controller ends. A change while nothing served the device is made up for."""
        controller = self.namespace.controller
        assert isinstance(controller, Controller)
        events = controller.events()
        waiting = asyncio.ensure_future(anext(events, None))
        try:
            await asyncio.sleep(0)  # from here on no event is missed
            while True:
                await self.update()
                if await waiting is None:
                    return
                waiting = asyncio.ensure_future(anext(events, None))
        finally:
            waiting.cancel()

    async def update(self) -> None:
        nbytes, shown = self.namespace.nbytes, await in_thread(self._shown)
        for queue in self.queues:
            queue.resize(nbytes)
        if shown in (None, nbytes) or nbytes == self._kept:
            return
        change = f"{self.namespace.controller.uri}: {self.namespace} has {nbytes} bytes instead of {shown}"
        try:
            if not self.info.resizable:
                raise DeviceError("this kernel can't resize it (Linux 6.16 and later can)")
            await in_thread(self.ublk.set_size, self.info.device, nbytes)
        except DeviceError as error:
            self._kept = nbytes
            log.warning("%s; %s keeps its size: %s", change, self.info.path, error)
        else:
            log.info("%s, and so has %s", change, self.info.path)

    def _shown(self) -> int | None:
        """What the disk has now; None: there is none."""
        try:
            return int((SYSFS / Path(self.info.path).name / "size").read_text()) * SECTOR
        except (OSError, ValueError):
            return None
