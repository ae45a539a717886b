"""A device with its own controller in this process, for `emulated:` URIs."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from typing import Self

from nvme_async.device.base import DeviceIds, Saved
from nvme_async.device.vfio_user import DEFAULT_TIMEOUT, VfioUserDevice
from nvme_async.emulator import EmulatedController, EmulatorConfig

# By the identity of the client's socket, which survives duplication: a device that is handed over
# within this process finds its controller.
_running: dict[tuple[int, int], EmulatedController] = {}


# In a forked child there is no thread to serve them.
os.register_at_fork(after_in_child=_running.clear)


def _end_all() -> None:
    """Those that were handed over and not taken by the end of this process, whose threads end
    with it.
    """
    while _running:
        _running.popitem()[1].close()


atexit.register(_end_all)


def end_abandoned() -> None:
    """Ends the controllers that were handed on and that no process holds any more, as a saved
    bundle's after its close(). Each start() does this; until then they stay idle.
    """
    for identity, emulator in list(_running.items()):
        if not emulator.closed and not emulator.stats()["connected"]:
            del _running[identity]
            emulator.close()


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class EmulatedDevice(VfioUserDevice):
    """Accessed like any vfio-user device; close() ends the controller too, detach() does not: it
    exists as long as this process.

    emulator: the controller, for faults and counters; None where it runs in another process, and
        after detach().
    """

    emulator: EmulatedController | None = None

    @classmethod
    def start(cls, options: str, *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """Starts a controller as `options` say (see EmulatorConfig.parse) and connects to it."""
        end_abandoned()
        emulator = EmulatedController(EmulatorConfig.parse(options))
        try:
            device = cls.from_socket(emulator.connect(), uri=f"emulated:{options}", timeout=timeout)
        except BaseException:
            emulator.close()
            raise
        device.emulator = emulator
        _running[_identity(device.descriptors()["socket"])] = emulator
        return device

    @classmethod
    def resume(
        cls,
        descriptors: Mapping[str, int],
        saved: Saved | None = None,
        *,
        uri: str = "emulated:",
        timeout: float = DEFAULT_TIMEOUT,
        ids: DeviceIds | None = None,
    ) -> Self:
        device = super().resume(descriptors, saved, uri=uri, timeout=timeout, ids=ids)
        device.emulator = _running.get(_identity(device.descriptors()["socket"]))
        return device

    def close(self) -> None:
        emulator = self.emulator
        super().close()
        self.emulator = emulator
        if self.emulator is not None:
            for identity in [identity for identity, running in _running.items() if running is self.emulator]:
                del _running[identity]
            self.emulator.close()

    def detach(self) -> None:
        self.emulator = None
        super().detach()


def open_uri(options: str, *, timeout: float = DEFAULT_TIMEOUT) -> EmulatedDevice:
    """Opens `emulated:OPTIONS`: a controller in this process."""
    return EmulatedDevice.start(options, timeout=timeout)


def resume_uri(
    options: str,
    descriptors: Mapping[str, int],
    saved: Saved | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    ids: DeviceIds | None = None,
) -> EmulatedDevice:
    """The `emulated:` half of resume_device(): a controller of this process or of another."""
    return EmulatedDevice.resume(descriptors, saved, uri=f"emulated:{options}", timeout=timeout, ids=ids)
