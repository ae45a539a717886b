"""A controller of the device's own, in this process: what an `emulated:` URI names."""

from __future__ import annotations

from typing import Self

from nvme_async.device.vfio_user import DEFAULT_TIMEOUT, VfioUserDevice
from nvme_async.emulator import EmulatedController, EmulatorConfig


class EmulatedDevice(VfioUserDevice):
    """Reached as any vfio-user device is; close() ends the controller too, detach() does not.

    emulator: the controller, for faults and counters.
    """

    emulator: EmulatedController

    @classmethod
    def start(cls, options: str, *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """Starts a controller as `options` say (see EmulatorConfig.parse) and connects to it."""
        emulator = EmulatedController(EmulatorConfig.parse(options))
        try:
            device = cls.from_socket(emulator.connect(), uri=f"emulated:{options}", timeout=timeout)
        except BaseException:
            emulator.close()
            raise
        device.emulator = emulator
        return device

    def close(self) -> None:
        super().close()
        self.emulator.close()
