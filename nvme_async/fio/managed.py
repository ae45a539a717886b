"""Several devices at once: a manager has them, and the jobs use its handles, each from its own loop
and queue pair.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from nvme_async.driver.options import mode_of
from nvme_async.errors import ControllerGone
from nvme_async.fio.device import BenchController
from nvme_async.keepalive.controller import Controller
from nvme_async.manager import ManagedDevice, ManagedNamespace, Manager


class ManagedController:
    """A managed device with the interface of the benchmark's controllers. The manager closes
    it.
    """

    def __init__(self, device: ManagedDevice, namespaces: Mapping[int, ManagedNamespace]) -> None:
        self.device = device
        self.namespaces = namespaces

    def alloc(self, nbytes: int) -> Any:
        return self._driver.alloc(nbytes)

    @property
    def _driver(self) -> Controller:
        controller = self.device.controller
        if controller is None:
            raise self.device.failure or ControllerGone(f"{self.device.uri}: the device is {self.device.state}")
        return controller

    def share(self, path: str, **policy: Any) -> Any:
        """As of a Controller."""
        return self._driver.share(path, **policy)

    def inspect(self) -> dict[str, Any]:
        return self._driver.inspect()

    async def __aenter__(self) -> ManagedController:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@asynccontextmanager
async def open_managed(modes: Mapping[str, str], **options: Any) -> AsyncIterator[dict[str, BenchController]]:
    """{uri: mode of waiting, or "" for the driver's own} → {uri: controller}, all brought up at the
    same time.

    A failed device stays failed: its jobs must report it, not measure the repair.
    """
    async with Manager(repairs=0, hotplug="off", **options) as manager:

        async def load(uri: str, mode: str) -> ManagedController:
            device = await (manager.load(uri, mode=mode_of(mode)) if mode else manager.load(uri))
            controller = device.controller
            active = sorted(controller.namespaces) if controller is not None else []
            return ManagedController(device, {nsid: await device.namespace(nsid) for nsid in active})

        # All of them, also if one fails: a half-open device can't be closed properly.
        tasks = [asyncio.ensure_future(load(uri, mode)) for uri, mode in modes.items()]
        await asyncio.wait(tasks)
        yield {uri: task.result() for uri, task in zip(modes, tasks, strict=True)}
