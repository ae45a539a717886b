"""From a device address to a controller that was brought up, without a thought of predecessors."""

from __future__ import annotations

import asyncio
import threading
from typing import TypeVar

from nvme_async.device import Device, open_device
from nvme_async.driver.controller import Controller
from nvme_async.driver.options import Options

C = TypeVar("C", bound=Controller)


class _Opened:
    """A device that is opened in a thread for somebody who may have gone meanwhile; then the thread
    closes it again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = True
        self._device: Device | None = None

    def open(self, uri: str) -> Device:
        device = open_device(uri)
        with self._lock:
            self._device = device
            wanted = self._wanted
        if not wanted:
            device.close()
        return device

    def give_up(self) -> None:
        with self._lock:
            self._wanted = False
            device = self._device
        if device is not None:
            device.close()


async def open_device_async(uri: str) -> Device:
    """open_device() in a thread. If the caller is cancelled, nothing stays open."""
    opened = _Opened()
    try:
        return await asyncio.to_thread(opened.open, uri)
    except asyncio.CancelledError:
        opened.give_up()
        raise


async def open_controller(uri: str, options: Options, make: type[C] = Controller) -> C:  # type: ignore[assignment]
    """A controller that was brought up. make: its class."""
    device = await open_device_async(uri)
    try:
        controller = make(device, options)
    except BaseException:
        device.close()
        raise
    await controller.bring_up()
    return controller
