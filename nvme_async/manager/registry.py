"""The devices: canonical URI → ManagedDevice, and whether more may be added. A device is found by
every way to write its address.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable

from nvme_async.driver.schemes import location, parse_uri
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
        self._locations: dict[Hashable, str] = {}
        self._shut = False
        self._reason = "the manager is closed"

    def forget_in_child(self, reason: str) -> dict[str, ManagedDevice]:
        """shut(), in a forked child, where the lock may be held forever."""
        self._lock = threading.Lock()
        self._reason = reason
        return self.shut()

    def find(self, uri: str) -> ManagedDevice | None:
        """The device at that address. Its own `uri` is as it was first written."""
        key = canonical(uri)
        with self._lock:
            self.check()
            if (device := self._devices.get(key)) is not None:
                return device
            several = bool(self._devices)
        if not several:
            return None
        where = location(uri)
        with self._lock:
            known = self._locations.get(where)
        if known is None:
            return None
        if location(known) != where:  # a link leads elsewhere since then
            with self._lock:
                if self._locations.get(where) == known:
                    del self._locations[where]
            return None
        with self._lock:
            return self._devices.get(known)

    def add(self, device: ManagedDevice) -> ManagedDevice:
        """The device at that address: `device`, or the one that another thread added first."""
        where = location(device.uri)
        with self._lock:
            self.check()
            if (known := self._devices.get(self._locations.get(where, device.uri))) is not None:
                return known
            self._locations[where] = device.uri
            return self._devices.setdefault(device.uri, device)

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
            self._locations = {where: known for where, known in self._locations.items() if known != key}
            return True

    def all(self) -> dict[str, ManagedDevice]:
        with self._lock:
            return dict(self._devices)

    def shut(self) -> dict[str, ManagedDevice]:
        """From now on nothing is found or added. Returns the devices, the first time."""
        with self._lock:
            devices, self._devices = self._devices, {}
            self._locations = {}
            self._shut = True
            return devices

    @property
    def closed(self) -> bool:
        return self._shut
