"""Fixtures for tests in the guest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab import Host, rebind, take_baseline


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    with Host() as channel:
        yield channel


@pytest.fixture(scope="session")
def baseline() -> dict[str, Any]:
    """nvme-cli's words on every controller, by role, from before anything was taken from the
    kernel.
    """
    return take_baseline()


@pytest.fixture
def address(baseline: dict[str, Any]) -> Iterator[Callable[[str], str]]:
    """The PCI address of a role, bound to vfio-pci; given back to the kernel's driver afterwards."""
    taken: list[str] = []

    def take(role: str) -> str:
        place: str = baseline[role]["address"]
        rebind(place, "vfio-pci")
        taken.append(place)
        return place

    yield take
    for place in taken:
        rebind(place, "nvme")
