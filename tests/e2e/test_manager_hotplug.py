"""New PCI functions: udev's events, and how the manager handles them."""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from managed import Events, descriptors, eventually

from nvme_async.errors import ConfigurationError
from nvme_async.manager import Manager, hotplug
from nvme_async.manager.drivers import reachable


class FakeMonitor:
    """A pyudev.Monitor whose events come from the test."""

    def __init__(self) -> None:
        self.receive, self._send = socket.socketpair()
        self.events: deque[Any] = deque()
        self.started = False

    def start(self) -> None:
        self.started = True

    def fileno(self) -> int:
        return self.receive.fileno()

    def put(self, action: str, name: str, driver: str | None, pci_class: str) -> None:
        self.events.append(
            SimpleNamespace(action=action, sys_name=name, driver=driver, properties={"PCI_CLASS": pci_class})
        )
        self._send.send(b"x")

    def poll(self, timeout: float) -> Any:
        assert timeout == 0
        self.receive.recv(1)
        return self.events.popleft()

    def close(self) -> None:
        self.receive.close()
        self._send.close()


async def test_new_functions_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = FakeMonitor()
    monkeypatch.setattr(hotplug, "_monitor", lambda: monitor)
    before = descriptors()
    async with Manager(hotplug="all") as manager:
        events = Events(manager)
        assert monitor.started
        monitor.put("add", "0000:ff:1f.5", None, "10802")
        monitor.put("bind", "0000:ff:1f.6", "nvme", "10802")
        monitor.put("bind", "0000:ff:1f.6", "vfio-pci", "20000")
        monitor.put("bind", "0000:ff:1f.7", "vfio-pci", "10802")
        appeared = await events.wait("device-appeared")
        assert appeared.uri == "pci:0000:ff:1f.7"
        failed = await events.wait("device-failed")  # because there is no such function here
        assert failed.uri == "pci:0000:ff:1f.7"
        assert events.kinds() == ["device-appeared", "device-failed"]
        assert manager.devices == {}
        await events.close()
    assert descriptors() == before
    monitor.close()


def test_without_pyudev(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyudev", None)
    before = descriptors()
    with pytest.raises(ConfigurationError, match=r"nvme_async\[hotplug\]"):
        Manager(hotplug="all")
    assert descriptors() == before


async def test_with_pyudev() -> None:
    pytest.importorskip("pyudev")
    try:
        manager = Manager(hotplug="all")
    except (ImportError, OSError) as error:
        pytest.skip(f"no udev here: {error}")
    async with manager:
        await eventually(lambda: len(manager.inspect()["workers"]) == 1)


def test_which_addresses_are_reachable(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    assert not reachable(f"vfio-user:{path}")
    path.touch()
    assert not reachable(f"vfio-user:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        assert reachable(f"vfio-user:{path}")
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    assert not reachable("pci:01:00.0", tmp_path)
    for driver in ("nvme", "vfio-pci"):
        (tmp_path / driver).mkdir()
        (device / "driver").unlink(missing_ok=True)
        (device / "driver").symlink_to(tmp_path / driver)
        assert reachable("pci:01:00.0", tmp_path) == (driver == "vfio-pci")
    assert not reachable("emulated:size=1MiB")
