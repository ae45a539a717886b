"""The kernel's events about PCI functions. Needs pyudev: nvme_async[hotplug].

The driver itself notices a missing or requested device, and the manager checks for a missing one.
This module reports at once that a function was bound to vfio-pci, including functions that were
never loaded.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable
from typing import Any

from nvme_async.errors import ConfigurationError
from nvme_async.manager.workers import Worker

log: logging.Logger = logging.getLogger("nvme_async")

NVME_CLASS = "10802"
"""PCI_CLASS as udev prints it: mass storage, non-volatile memory, NVMe I/O controller; without
leading zeroes.
"""


def _monitor() -> Any:
    try:
        pyudev = importlib.import_module("pyudev")
    except ImportError as error:
        raise ConfigurationError("hotplug='all' needs pyudev: install nvme_async[hotplug]") from error
    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    monitor.filter_by("pci")
    return monitor


class HotplugWatch:
    """Calls `appeared(uri)` on the worker's loop for each NVMe function that is bound to vfio-pci
    from start() on.

    Made and closed by the manager. ConfigurationError without pyudev.
    """

    def __init__(self, appeared: Callable[[str], None]) -> None:
        self._appeared = appeared
        self._monitor = _monitor()
        self._worker: Worker | None = None

    def start(self, worker: Worker) -> None:
        self._worker = worker
        self._monitor.start()
        worker.loop.call_soon_threadsafe(worker.loop.add_reader, self._monitor.fileno(), self._read)

    def _read(self) -> None:
        """One event at a time: the descriptor stays readable while there are more."""
        device = self._monitor.poll(timeout=0)
        if device is None:
            return
        if device.action == "bind" and device.driver == "vfio-pci" and device.properties.get("PCI_CLASS") == NVME_CLASS:
            log.info("pci:%s appeared", device.sys_name)
            self._appeared(f"pci:{device.sys_name}")

    async def close(self) -> None:
        """From any loop."""

        async def stop() -> None:
            assert self._worker is not None
            self._worker.loop.remove_reader(self._monitor.fileno())

        if self._worker is not None:
            await self._worker.call(stop)
            await asyncio.sleep(0)
