"""Fixtures for tests in the guest."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nvme_async.keepalive.keeper

sys.path.insert(0, str(Path(__file__).parent))

from lab import Host, rebind, take_baseline


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    with Host() as channel:
        yield channel


@pytest.fixture(scope="session")
def baseline() -> dict[str, Any]:
    """nvme-cli's output for every controller, by role, from before any was taken from the
    kernel.
    """
    return take_baseline()


@pytest.fixture
def address(baseline: dict[str, Any]) -> Iterator[Callable[[str], str]]:
    """The PCI address of a role, bound to vfio-pci; returned to the kernel's driver
    afterwards.
    """
    taken: list[str] = []

    def take(role: str) -> str:
        place: str = baseline[role]["address"]
        rebind(place, "vfio-pci")
        taken.append(place)
        return place

    yield take
    for place in taken:
        rebind(place, "nvme")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "keeper"
    folder = Path(nvme_async.keepalive.keeper.__file__).parent
    with subprocess.Popen([sys.executable, "-I", "-S", folder, "--socket", place, "--quiet"]) as process:
        limit = time.monotonic() + 60.0
        while not place.exists():
            assert process.poll() is None, "the keeper ended"
            assert time.monotonic() < limit, "the keeper made no socket"
            time.sleep(0.05)
        yield place
        process.send_signal(signal.SIGTERM)
        assert process.wait(60.0) == 0
