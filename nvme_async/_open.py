"""nvme_async.open(): from a device address to a controller that is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import TracebackType
from typing import Any

from nvme_async.controller import Controller
from nvme_async.device import Device, open_device
from nvme_async.options import Options


def _close_late(opening: asyncio.Future[Device]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class Opening:
    """What open() returns: `async with` it, or await it and call close() later."""

    def __init__(self, uri: str, options: Options) -> None:
        self._uri = uri
        self._options = options
        self._controller: Controller | None = None

    async def _open(self) -> Controller:
        opening = asyncio.ensure_future(asyncio.to_thread(open_device, self._uri))
        try:
            device = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on; what it opens is closed again.
            opening.add_done_callback(_close_late)
            raise
        try:
            controller = Controller(device, self._options)
        except BaseException:
            device.close()
            raise
        await controller.bring_up()
        return controller

    def __await__(self) -> Generator[Any, None, Controller]:
        return self._open().__await__()

    async def __aenter__(self) -> Controller:
        self._controller = await self._open()
        return self._controller

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._controller is not None
        await self._controller.close()


def open(uri: str, **options: Any) -> Opening:
    """Takes a controller over and brings it up: `async with nvme_async.open("emulated:size=1GiB") as controller: …`.

    uri: "pci:0000:01:00.0" (bound to vfio-pci), "vfio-user:/run/controller.sock", or "emulated:size=1GiB,block=4096".
    options: see nvme_async.Options.

    The controller belongs to the running loop; other loops of the process may use its namespaces. Leaving the block shuts it down.
    Raises ConfigurationError for a URI or option that makes no sense, ControllerError (ControllerGone, ControllerTimeout, ControllerFatal,
    DeviceError) when the device can't be brought up; then nothing is left behind.
    """
    return Opening(uri, Options.of(options))
