"""Tests of the driver that any controller must pass, written once.

Elsewhere a role is an emulated controller of that kind. In the virtual machine (tests/vm,
NVME_ASYNC_LAB=1) it is QEMU's NVMe controller of that serial number, over VFIO; then the tests also
check the kernel's IOMMU, QEMU's complaints and its trace. With
NVME_ASYNC_QEMU_SERVER=/path/to/qemu-system-x86_64 it is QEMU's controller behind QEMU's vfio-user
server (qemu_server.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

IN_GUEST = os.environ.get("NVME_ASYNC_LAB") == "1"
QEMU = os.environ.get("NVME_ASYNC_QEMU_SERVER")
EMULATED = {
    "plain": "size=256MiB,block=512,mdts=512KiB",
    "second": "size=256MiB,block=4096,mdts=512KiB",
    "mdts-1": "size=256MiB,block=512,mdts=8KiB",
    "one-queue": "size=256MiB,block=512,queues=1",
    "one-vector": "size=256MiB,block=512,vectors=1",
    "many": "size=64MiB,block=512,namespaces=3",
}
# Features that only QEMU has: no limit on transfers (until version 10), a controller memory buffer.
QEMU_ONLY = ("mdts-none", "cmb") if IN_GUEST else ("cmb",) if QEMU else ()

if IN_GUEST:
    sys.path.insert(0, "/payload/tests/vm")
    import lab
elif QEMU:
    sys.path.insert(0, str(Path(__file__).parent))
    from qemu_server import QemuServer


@pytest.fixture(params=[*EMULATED, *QEMU_ONLY])
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
    """For a test that sends invalid commands on purpose: the controller's complaint is not a
    failure.
    """


@pytest.fixture(autouse=True)
def _no_complaints(_witness: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    """In the guest: QEMU logged no complaint about the driver, and the IOMMU refused no
    access.
    """
    if _witness is None or "provoked" in request.fixturenames:
        yield
        return
    with _witness.witness() as seen:
        yield
        assert seen.complaints() == []


@pytest.fixture
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """The address of a controller with this role, ready to be opened."""
    if IN_GUEST:
        yield take_for_vfio
    elif QEMU:
        yield from behind_qemu_servers(QEMU, tmp_path, watched="provoked" not in request.fixturenames)
    else:
        yield lambda name: f"emulated:{EMULATED[name]}"


def take_for_vfio(name: str) -> str:
    address: str = lab.take_baseline()[name]["address"]
    lab.rebind(address, "vfio-pci")
    return f"pci:{address}"


def behind_qemu_servers(qemu: str, folder: Path, *, watched: bool) -> Iterator[Callable[[str], str]]:
    servers: list[QemuServer] = []

    def start(name: str) -> str:
        servers.append(QemuServer(qemu, name, folder / f"{name}-{len(servers)}"))
        return f"vfio-user:{servers[-1].socket}"

    try:
        yield start
        if watched:
            assert [line for server in servers for line in server.complaints()] == []
    finally:
        for server in servers:
            server.end()
