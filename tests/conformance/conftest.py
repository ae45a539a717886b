"""Tests of the driver that any controller must pass, written once.

Elsewhere a role is an emulated controller of that kind. In the virtual machine (tests/vm, NVME_ASYNC_LAB=1) it is QEMU's
NVMe controller of that serial number, over VFIO; then the kernel's IOMMU, QEMU's complaints and its trace are watched too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

IN_GUEST = os.environ.get("NVME_ASYNC_LAB") == "1"
EMULATED = {
    "plain": "size=256MiB,block=512,mdts=512KiB",
    "second": "size=256MiB,block=4096,mdts=512KiB",
    "mdts-1": "size=256MiB,block=512,mdts=8KiB",
    "one-queue": "size=256MiB,block=512,queues=1",
    "one-vector": "size=256MiB,block=512,vectors=1",
    "many": "size=64MiB,block=512,namespaces=3",
}
# What only QEMU has: no limit on transfers, a controller memory buffer.
GUEST_ONLY = ("mdts-none", "cmb")

if IN_GUEST:
    sys.path.insert(0, "/payload/tests/vm")
    import lab


@pytest.fixture(params=[*EMULATED, *(GUEST_ONLY if IN_GUEST else ())])
def role(request: pytest.FixtureRequest) -> str:
    """Each kind of controller in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def _witness() -> Iterator[Any]:
    if not IN_GUEST:
        yield None
        return
    with lab.Host() as host:
        yield host


@pytest.fixture
def provoked() -> None:
    """For a test that means to send what the controller refuses: its complaint is then no fault."""


@pytest.fixture(autouse=True)
def _no_complaints(_witness: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    """In the guest: QEMU found no fault with the driver, and the IOMMU refused nothing."""
    if _witness is None or "provoked" in request.fixturenames:
        yield
        return
    with _witness.witness() as seen:
        yield
        assert seen.complaints() == []


@pytest.fixture
def uri() -> Callable[[str], str]:
    """The address of a controller of a role, ready to be opened."""
    if not IN_GUEST:
        return lambda name: f"emulated:{EMULATED[name]}"

    def take(name: str) -> str:
        address: str = lab.take_baseline()[name]["address"]
        lab.rebind(address, "vfio-pci")
        return f"pci:{address}"

    return take
