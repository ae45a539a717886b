"""A drive is unplugged while it works. This test is last because the drive does not come back.

It is not opened again: the kernel is busy with it for another minute.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lab import rebind

import nvme_async
from nvme_async.device import Device
from nvme_async.device.vfio import VfioDevice
from nvme_async.errors import ControllerError, ControllerGone

VS = 0x08


def pull(address: str) -> None:
    """Cut the power of the slot: QEMU removes the drive at once, without a request."""
    port = Path(f"/sys/bus/pci/devices/{address}").resolve().parent.name
    # PCI Express 5.0, 7.5.3.10: Slot Control, Power Controller Control off and Power Indicator off
    subprocess.run(["setpci", "-s", port, "CAP_EXP+18.w=0700:0700"], check=True, timeout=30)


def answers(device: Device) -> bool:
    try:
        device.read32(VS)
    except ControllerGone:
        return False
    return True


async def test_an_unplugged_drive_is_gone(baseline: dict[str, Any]) -> None:
    address = baseline["pullable"]["address"]
    rebind(address, "vfio-pci")
    controller = await nvme_async.open(f"pci:{address}", mode="interrupt", command_timeout=2, abort_timeout=1)
    namespace = controller.namespaces[1]
    assert len(await namespace.read(0)) == 512
    await asyncio.to_thread(pull, address)
    deadline = time.monotonic() + 30
    while answers(controller.device):
        assert time.monotonic() < deadline, "the registers still answer 30 s after the drive was pulled out"
        await asyncio.sleep(0.1)
    with pytest.raises((ControllerError, TimeoutError)):
        await namespace.read(0)
    started = time.monotonic()
    await controller.close()
    assert time.monotonic() - started < 30
    assert isinstance(controller.device, VfioDevice)
    assert controller.device.closed
    assert controller.state == "closed"
