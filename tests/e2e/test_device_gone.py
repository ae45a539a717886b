"""A device vanishes without notice: all waiters get an error within a limit, even if no I/O is
running.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from pathlib import Path

import pytest
from driving import eventually
from open_descriptors import open_descriptors

import nvme_async
from nvme_async.emulator import EmulatedController
from nvme_async.errors import ControllerError, ControllerGone


def descriptors() -> int:
    gc.collect()
    return len(open_descriptors())


async def test_a_closed_peer_is_noticed_without_io() -> None:
    with EmulatedController("size=16MiB") as emulator:
        before = descriptors()
        device = Path(f"/tmp/nvme-async-test-{os.getpid()}.sock")
        emulator.listen(device)
        async with nvme_async.open(f"vfio-user:{device}") as controller:
            namespace = controller.namespaces[1]
            await namespace.write(0, bytes(4096))
            emulator.drop_client()
            await eventually(lambda: controller.state == "failed")
            with pytest.raises(ControllerGone):
                await namespace.read(0)
            with pytest.raises(ControllerGone):
                await controller.reset()
        assert controller.state == "closed"
        assert descriptors() == before + 1  # the listening socket


async def test_a_closed_peer_fails_waiting_commands() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        emulator = controller.device.emulator  # type: ignore[attr-defined]
        rule = emulator.faults.add(opcode=2, queue="io", drop=True)
        reads = [
            asyncio.ensure_future(controller.namespaces[1].read(at)) for at in range(300)
        ]  # more than the queue takes
        await asyncio.to_thread(rule.wait, 200)
        emulator.drop_client()
        results = await asyncio.gather(*reads, return_exceptions=True)
        assert controller.inspect()["timeouts"] == 0
        assert {type(result) for result in results} == {ControllerGone}


async def test_a_peer_that_closes_during_bring_up_fails_open() -> None:
    with EmulatedController("size=16MiB") as emulator:
        path = f"/tmp/nvme-async-test-{os.getpid()}.sock"
        emulator.listen(path)
        before = descriptors()
        rule = emulator.faults.add(opcode=6, queue="admin", drop=True)
        opening = asyncio.ensure_future(nvme_async.open(f"vfio-user:{path}", admin_timeout=60.0)._open())
        await asyncio.to_thread(rule.wait, 1)
        began = time.monotonic()
        emulator.drop_client()
        with pytest.raises(ControllerGone):
            await opening
        assert time.monotonic() - began < 30.0
        assert descriptors() == before


async def test_all_ones_registers_are_noticed_before_the_command_times_out() -> None:
    async with nvme_async.open("emulated:size=16MiB", command_timeout=8.0) as controller:
        controller.device.emulator.faults.remove_device()  # type: ignore[attr-defined]
        with pytest.raises(ControllerGone):
            await controller.namespaces[1].read(0)
        assert controller.inspect()["timeouts"] == 0


async def test_a_fatal_status_is_noticed_before_the_command_times_out() -> None:
    async with nvme_async.open("emulated:size=16MiB", command_timeout=8.0) as controller:
        namespace = controller.namespaces[1]
        await namespace.write(3, b"f" * 4096)
        controller.device.emulator.faults.fatal()  # type: ignore[attr-defined]
        assert await namespace.read(3) == b"f" * 4096
        assert controller.inspect()["timeouts"] == 0
        assert controller.resets == 1


async def test_a_device_outlives_its_controller() -> None:
    """release() and a second Controller on the same device: written data stays, and the first
    leaves nothing behind.
    """
    async with nvme_async.open("emulated:size=16MiB") as first:
        await first.namespaces[1].write(7, b"x" * 4096)
        before = descriptors()
        transport = await first.release()
        assert transport is not None
        second = nvme_async.Controller(transport, first.options)
        await second.bring_up()
        assert await second.namespaces[1].read(7) == b"x" * 4096
        assert descriptors() == before
        await second.close()
        assert await second.release() is None


async def test_a_hanging_close_can_be_cut_short() -> None:
    async with nvme_async.open("emulated:size=16MiB", admin_timeout=60.0) as controller:
        controller.device.emulator.faults.add(queue="admin", discard=True)  # type: ignore[attr-defined]
        read = asyncio.ensure_future(controller.namespaces[1].read(0))
        closing = asyncio.ensure_future(controller.close())
        await asyncio.wait([closing], timeout=0.3)
        assert not closing.done()
        assert await read == bytes(4096)
        began = time.monotonic()
        await controller._cut_off(ControllerError("no time"))
        await closing
        assert time.monotonic() - began < 30.0
