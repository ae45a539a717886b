"""The devices: canonical URI → ManagedDevice, and whether more may be added."""

from __future__ import annotations

import threading

from nvme_async.driver.schemes import parse_uri
from nvme_async.errors import QueueShutdown
from nvme_async.manager.device import ManagedDevice


def canonical(uri: str) -> str:
    """The same for all ways to write one device's address. ConfigurationError for an invalid
    one.
    """
    scheme, rest = parse_uri(uri)
    return f"{scheme}:{rest}"


class Registry:
    """Its lock is held for dictionary operations only. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._devices: dict[str, ManagedDevice] = {}
        self._shut = False
        self._reason = "the manager is closed"

    def forget_in_child(self, reason: str) -> dict[str, ManagedDevice]:
        """shut(), in a forked child, where the lock may be held forever."""
        self._lock = threading.Lock()
        self._reason = reason
        return self.shut()

    def get(self, key: str) -> ManagedDevice | None:
        with self._lock:
            self.check()
            return self._devices.get(key)

    def add(self, key: str, device: ManagedDevice) -> ManagedDevice:
        """The device of that key: `device`, or the one that another thread added first."""
        with self._lock:
            self.check()
            return self._devices.setdefault(key, device)

    def check(self) -> None:
        """QueueShutdown once it is shut."""
        if self._shut:
            raise QueueShutdown(self._reason)

    def remove(self, key: str, device: ManagedDevice) -> bool:
        """False if it isn't there (any more)."""
        with self._lock:
            if self._devices.get(key) is not device:
                return False
            del self._devices[key]
            return True

    def all(self) -> dict[str, ManagedDevice]:
        with self._lock:
            return dict(self._devices)

    def shut(self) -> dict[str, ManagedDevice]:
        """From now on nothing is found or added. Returns the devices, the first time."""
        with self._lock:
            devices, self._devices = self._devices, {}
            self._shut = True
            return devices

    @property
    def closed(self) -> bool:
        return self._shut
