"""From a device address to a PCIe transport, off the event loop."""

from __future__ import annotations

import asyncio
import threading

from nvme_async.device import Device, open_device
from nvme_async.device.schemes import DEFAULT_TIMEOUT
from nvme_async.driver.options import Options
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.driver.transport import system_errors


class _Opening:
    """Opens a device in a thread. If the caller was cancelled meanwhile, the thread closes it
    again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = True
        self._device: Device | None = None

    def open(self, uri: str, timeout: float) -> Device:
        with system_errors(uri):
            device = open_device(uri, timeout=timeout)
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


async def open_device_async(uri: str, timeout: float = DEFAULT_TIMEOUT) -> Device:
    """open_device() in a thread. If the caller is cancelled, nothing stays open."""
    opening = _Opening()
    try:
        return await asyncio.to_thread(opening.open, uri, timeout)
    except asyncio.CancelledError:
        opening.give_up()
        raise


async def open_transport(uri: str, options: Options) -> PcieTransport:
    """Opens a URI of the device layer. Raises as open_device() does."""
    return PcieTransport(await open_device_async(uri, options.device_timeout))
