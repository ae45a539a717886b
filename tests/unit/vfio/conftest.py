"""A kernel with VFIO and a machine's sysfs, both scripted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_pci import FakeSystem
from fake_vfio import DRIVE, FakeKernel, opened, wait_for_closing

from nvme_async.device.vfio import VfioDevice


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    fake = FakeKernel()
    yield fake
    fake.close()


@pytest.fixture
def machine(tmp_path: Path) -> FakeSystem:
    system = FakeSystem(tmp_path)
    system.add_function(DRIVE, 5, driver="vfio-pci")
    return system


@pytest.fixture
def device(kernel: FakeKernel, machine: FakeSystem) -> Iterator[VfioDevice]:
    with opened(kernel, machine) as made:
        yield made


@pytest.fixture
def descriptors_are_closed() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    wait_for_closing()
    assert len(os.listdir("/proc/self/fd")) <= before
