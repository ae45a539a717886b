"""A vfio-user server is stopped at some point: the options' limits hold, and the loop continues."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import FAST, pattern, within

import nvme_async
from nvme_async.device import Doorbells
from nvme_async.emulator.device import EmulatedDevice
from nvme_async.errors import ControllerGone, DeviceTimeout, NvmeError
from nvme_async.keepalive import restore

pytestmark = pytest.mark.alone  # measures times

LIMITS = {
    **FAST,
    "command_timeout": 0.5,
    "admin_timeout": 0.5,
    "abort_timeout": 0.3,
    "drain_timeout": 0.3,
    "shutdown_timeout": 0.5,
    "device_timeout": 1.0,
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    path = tmp_path / "controller.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "nvme_async", "emulate", "--socket", str(path), "--size", "64MiB", "--block", "4096"]
    )
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)
    yield f"vfio-user:{path}", process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait(10)


async def beats(stop: asyncio.Event) -> float:
    longest, last = 0.0, time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(0.005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def stop_it(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with I/O out"])
async def test_close(server: tuple[str, subprocess.Popen[bytes]], busy: bool) -> None:
    uri, process = server
    controller = await nvme_async.open(uri, **LIMITS)
    await controller.namespaces[1].write(0, pattern(4096))
    stop_it(process)
    reads = [asyncio.create_task(controller.namespaces[1].read(0)) for _ in range(3 * busy)]
    stop = asyncio.Event()
    gap = asyncio.create_task(beats(stop))
    await asyncio.sleep(0)
    began = time.monotonic()
    await within(30, controller.close())
    took = time.monotonic() - began
    stop.set()
    # drain, deleting the queues, one register access; and room for a busy machine
    assert took < 0.3 + 0.5 + 0.5 + 6.0
    assert await gap < 1.0
    for read in reads:
        with pytest.raises(NvmeError):
            await read


async def test_open(server: tuple[str, subprocess.Popen[bytes]]) -> None:
    uri, process = server
    stop_it(process)
    began = time.monotonic()
    with pytest.raises(DeviceTimeout, match="did not answer VERSION in time"):
        await within(30, nvme_async.open(uri, **LIMITS))
    assert time.monotonic() - began < 1.0 + 8.0


async def test_command_timeout_abort_and_reset_have_their_own_limits(
    server: tuple[str, subprocess.Popen[bytes]],
) -> None:
    """A command times out, then its Abort, and the reset gets no answer: each within its own
    limit.
    """
    uri, process = server
    async with nvme_async.open(uri, **LIMITS) as controller:
        stop_it(process)
        began = time.monotonic()
        with pytest.raises(NvmeError):
            await within(60, controller.namespaces[1].read(0))
        assert time.monotonic() - began < 0.5 + 0.5 + 0.3 + 1.0 + 10.0


async def test_a_server_that_resumes_in_time_loses_nothing(server: tuple[str, subprocess.Popen[bytes]]) -> None:
    uri, process = server
    async with nvme_async.open(uri, **{**LIMITS, "command_timeout": 10.0}) as controller:
        ns = controller.namespaces[1]
        await ns.write(0, pattern(4096))
        stop_it(process)
        read = asyncio.create_task(ns.read(0))
        await asyncio.sleep(0.3)
        assert not read.done()
        os.kill(process.pid, signal.SIGCONT)
        assert await within(20, read) == pattern(4096)


# -- doorbells by message --------------------------------------------------------------------------


@pytest.fixture
def by_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmulatedDevice, "doorbells", lambda self: Doorbells(None, 0x1000))


@pytest.mark.usefixtures("by_message")
@pytest.mark.parametrize("shadow", [False, True])
async def test_a_takeover_with_doorbells_by_message(shadow: bool) -> None:
    data = pattern(1 << 20)
    options = {**FAST, "keepalive": True, "hugepages": "never", "shadow_doorbells": shadow}
    controller = await nvme_async.open("emulated:size=64MiB,block=4096", **options)
    for round_ in range(3):
        ns = controller.namespaces[1]
        await within(20, asyncio.gather(*(ns.write(i * 32, data[i << 17 : (i + 1) << 17]) for i in range(8))))
        out = [asyncio.create_task(ns.read(i * 32, 32)) for i in range(8)]
        await asyncio.sleep(0)
        with await controller.save() as bundle:
            results = await asyncio.gather(*out, return_exceptions=True)
            controller = await within(20, restore(bundle))
        assert all(isinstance(result, (bytes, NvmeError)) for result in results)
        ns = controller.namespaces[1]
        parts = await within(20, asyncio.gather(*(ns.read(i * 32, 32) for i in range(8))))
        assert b"".join(parts) == data, f"round {round_}"
    assert controller.resets == 0
    await controller.close()


@pytest.mark.usefixtures("by_message")
async def test_a_reset_with_doorbells_by_message() -> None:
    async with nvme_async.open("emulated:size=64MiB,block=4096", hugepages="never", **FAST) as controller:
        ns = controller.namespaces[1]
        for _ in range(5):
            reads = [asyncio.create_task(ns.read(i)) for i in range(50)]
            await asyncio.sleep(0)
            await within(20, controller.reset())
            await within(20, asyncio.gather(*reads))
        assert controller.inspect()["device"]["doorbells"] == "mapped, with an eventfd"


async def test_a_truncated_doorbell_file_fails_the_controller() -> None:
    """The driver's view: the page is truncated, and the next command notices it."""
    controller = await nvme_async.open("emulated:size=64MiB,block=4096", hugepages="never", **FAST)
    mmio = controller.device.doorbells().mmio
    assert mmio is not None
    os.eventfd_write(mmio.lost_fd, 1)  # as the SIGBUS handler does
    with pytest.raises(ControllerGone):
        await within(10, asyncio.create_task(_until_it_fails(controller)))
    await controller.close()


async def _until_it_fails(controller: nvme_async.Controller) -> None:
    while True:
        await controller.namespaces[1].read(0)
        await asyncio.sleep(0.01)
