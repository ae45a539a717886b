"""Opening and closing a device's driver, each within a limit. Knows nothing of handles and
states.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from nvme_async.driver.kernel.address import parse_address
from nvme_async.driver.options import Options
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.driver.schemes import open_transport, parse_uri
from nvme_async.driver.transport import Transport
from nvme_async.errors import ControllerError, ControllerGone
from nvme_async.keepalive.config import Decision
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.custodian import Custodian
from nvme_async.keepalive.opening import settle_in

log: logging.Logger = logging.getLogger("nvme_async")


def reachable(uri: str, root: Path = Path("/")) -> bool:
    """Might open() succeed? Checks without touching the device."""
    scheme, rest = parse_uri(uri)
    if scheme in ("vfio-user", "shared"):
        return Path(rest).is_socket()
    if scheme == "pci":
        driver = root / "sys/bus/pci/devices" / rest / "driver"
        return driver.exists() and driver.resolve().name == "vfio-pci"
    if scheme in ("kernel", "file"):
        return (root / parse_address(scheme, rest).path.lstrip("/")).exists()
    return scheme == "tcp"  # only a connection shows; an emulated: controller ends with its device


class Drivers:
    """Of one device, one after the other; on its worker. close_limit: seconds for an orderly
    shutdown before the device is taken away.
    """

    def __init__(self, uri: str, close_limit: float) -> None:
        self.uri = uri
        self.close_limit = close_limit

    async def open(self, uri: str, options: Options) -> Controller:
        return await self.bring_up(await open_transport(uri, options), options)

    async def settled(
        self, opening: Coroutine[Any, Any, Controller], decision: Decision, custodian: Custodian | None
    ) -> Controller:
        """Opens the driver and deposits it with its holder."""
        controller: Controller | None = None
        try:
            controller = await opening
            await settle_in(controller, decision, custodian)
        except BaseException:
            if controller is not None:
                await controller.close()
            if custodian is not None:
                custodian.close()
            raise
        return controller

    async def transport_again(self, left: Transport | None, options: Options) -> Transport:
        """The transport that the last driver left, with its function reset; if it left none,
        opened again.
        """
        if left is not None and left.kind == "shared":
            # A lease ends with its driver; the next one has another.
            left.abandon()
            left = None
        if left is None:
            if parse_uri(self.uri)[0] == "emulated":
                raise ControllerGone(f"{self.uri}: the emulated controller ended with its device")
            return await open_transport(self.uri, options)
        if isinstance(left, PcieTransport):
            await left.reset_function()
        return left

    async def bring_up(self, transport: Transport, options: Options) -> Controller:
        """A driver for the device. If this is cancelled, everything is released, by force if
        necessary.
        """
        try:
            controller = Controller(transport, options)
        except BaseException:
            transport.abandon()
            raise
        task = asyncio.ensure_future(controller.bring_up())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task], timeout=self.close_limit)
            await self.by_force(controller, task)
            raise
        return controller

    async def within_limit(self, controller: Controller, closing: Coroutine[Any, Any, Any]) -> Any:
        """Awaits `controller`'s close() or release(); if that takes longer than the policy's limit,
        by force.
        """
        task = asyncio.ensure_future(closing)
        try:
            await asyncio.wait([task], timeout=self.close_limit)
        except asyncio.CancelledError:
            await self.by_force(controller, task)
            raise
        await self.by_force(controller, task)
        return task.result()

    async def by_force(self, controller: Controller, task: asyncio.Future[Any]) -> None:
        """Takes the device from a controller that doesn't end `task` by itself. Raises if even
        that doesn't help.
        """
        if task.done():
            return
        limit = self.close_limit
        reason = ControllerError(f"{self.uri}: the controller was not shut down in time, its device was closed")
        log.error("%s", reason)
        forced = asyncio.ensure_future(controller._cut_off(reason))
        await asyncio.wait([forced, task], timeout=limit, return_when=asyncio.ALL_COMPLETED)
        if not task.done():
            raise reason
