"""A broken or hostile vfio-user peer neither ends this process nor blocks an event loop."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from fake_vfio_user import GET_INFO, REGION_INFO, REGION_READ, REGION_WRITE, VERSION, FakeServer
from ring_controller import flush, started

from nvme_async.device import open_device, resume_device
from nvme_async.device.vfio_user import VfioUserDevice
from nvme_async.device.vfio_user_channel import busy
from nvme_async.errors import ControllerGone, DeviceError, DeviceTimeout, NvmeError

FULL = 0xFFFFFFFFFFFFFFFE


def nothing() -> None:
    pass


def readable(fd: int, seconds: float = 0.0) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


# -- memory that is taken away ---------------------------------------------------------------------


def test_a_truncated_doorbell_file(server: FakeServer) -> None:
    with VfioUserDevice.from_socket(server.client) as device:
        mmio = device.doorbells().mmio
        assert mmio is not None
        mmio.write32(0, 1)
        assert not readable(device.gone_fd)
        os.truncate(server.page, 0)
        for value in range(3):
            mmio.write32(0, value)
        assert mmio.lost
        assert readable(device.gone_fd)
        assert "the memory of its doorbells" in (device.trouble or "")
    mmio.write32(4, 9)  # a queue pair that rings once more has no effect


def test_a_bus_error_elsewhere_still_ends_the_process() -> None:
    """A fault outside register windows goes to the previous handler, or is fatal."""
    program = """
import faulthandler, mmap, os, sys
from nvme_async.native._mmio import Mmio
if sys.argv[1] == "faulthandler": faulthandler.enable()
page = os.memfd_create("page"); os.truncate(page, 4096)
window = Mmio(page, 0, 4096)
other = os.memfd_create("other"); os.truncate(other, 4096)
view = mmap.mmap(other, 4096)
os.truncate(page, 0)
window.write32(0, 1)
assert window.lost
print("alive", flush=True)
os.truncate(other, 0)
view[0] = 1
"""
    for handler in ("none", "faulthandler"):
        options = f"{os.environ.get('ASAN_OPTIONS', '')}:handle_sigbus=0"  # the signal is this test's
        result = subprocess.run(
            [sys.executable, "-c", program, handler],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "ASAN_OPTIONS": options},
        )
        assert result.stdout == "alive\n"
        assert result.returncode == -7, result.stderr
        assert ("Bus error" in result.stderr) == (handler == "faulthandler")


# -- the eventfd that announces doorbells --------------------------------------------------------


WAYS = pytest.mark.parametrize("way", ["ring", "asynchronous I/O"])


def kicking(ring, kick: int, way: str) -> None:
    if way != "ring":
        # A window has one ring, for the eventfd that comes with it.
        other = os.eventfd(0)
        ring.qp.set_doorbells(ring.doorbells, 0, 4, kick_fd=other)
        os.close(other)
    ring.qp.set_doorbells(ring.doorbells, 0, 4, kick_fd=kick)


@WAYS
@pytest.mark.parametrize("how", ["blocking", "changed later"])
async def test_a_full_eventfd_does_not_block(ring, how: str, way: str) -> None:
    kick = os.eventfd(0, 0 if how == "blocking" else os.EFD_NONBLOCK)
    kicking(ring, kick, way)
    os.eventfd_write(kick, FULL)
    os.set_blocking(kick, True)

    async def go() -> None:
        for _ in range(300):
            (task,) = await started(ring.qp.request(flush()))
            for sqe in ring.fetch():
                ring.post(ring.cid(sqe))
            ring.qp.reap()
            await task

    watchdog = threading.Timer(20, os._exit, (9,))  # a blocked loop could not end this test
    watchdog.start()
    await go()
    watchdog.cancel()
    assert os.eventfd_read(kick) >= FULL
    os.close(kick)


@WAYS
async def test_every_kick_counts(ring, way: str) -> None:
    """More kicks than the kernel's completion queue holds."""
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    kicking(ring, kick, way)
    rung = 0
    for _ in range(400):
        (task,) = await started(ring.qp.request(flush()))
        for sqe in ring.fetch():
            ring.post(ring.cid(sqe))
        ring.qp.reap()
        await task
    queue = ring.qp.inspect()
    rung = queue["sq"]["doorbells"] + queue["cq"]["doorbells"]
    assert rung >= 400
    assert os.eventfd_read(kick) == rung
    os.close(kick)


def test_a_kick_that_is_no_eventfd_is_not_written(server: FakeServer) -> None:
    reading, writing = os.pipe()
    kick, server.kick = server.kick, writing
    with VfioUserDevice.from_socket(server.client) as device:
        assert device.doorbells().kick_fd == -1
        assert device.inspect()["doorbells"] == "mapped"
    os.close(reading)
    os.close(kick)


# -- doorbells that are messages -------------------------------------------------------------------


@pytest.fixture
def slow(server: FakeServer) -> Iterator[VfioUserDevice]:
    """A device without mapped doorbells."""
    server.mappable = False
    with VfioUserDevice.from_socket(server.client) as device:
        assert device.doorbells().mmio is None
        yield device


def doorbell_writes(server: FakeServer) -> list[tuple[int, int]]:
    found = []
    for message in list(server.requests):
        if message.command == REGION_WRITE:
            offset, region, _ = struct.unpack_from("<QII", message.payload)
            if region == 0 and offset >= 0x1000:
                found.append((offset, int.from_bytes(message.payload[16:], "little")))
    return found


def acknowledge(server: FakeServer, message) -> None:
    server.reply(message, message.payload[:16])


def test_doorbells_by_message_do_not_block(server: FakeServer, slow: VfioUserDevice) -> None:
    go_on = threading.Event()
    server.override[REGION_WRITE] = lambda server, message: (go_on.wait(60), acknowledge(server, message))
    began = time.monotonic()
    for value in range(1, 100):
        slow.ring(0x1000, value, nothing)
        slow.ring(0x1004, value, nothing)
    assert time.monotonic() - began < 30
    done: list[int] = []
    slow.ring(0x1008, 5, lambda: done.append(5))
    assert not done
    go_on.set()
    slow.read32(8)  # a register access comes after all that was rung before it
    writes = doorbell_writes(server)
    assert writes[0][0] == 0x1000
    assert done == [5]
    assert {(0x1000, 99), (0x1004, 99), (0x1008, 5)} <= set(writes[-3:])
    assert len(writes) < 20, "values that were overtaken are not sent"
    for offset in (0x1000, 0x1004):
        values = [value for at, value in writes if at == offset]
        assert values == sorted(values)


def test_a_peer_that_answers_no_doorbell_counts_as_gone(server: FakeServer, slow: VfioUserDevice) -> None:
    server.override[REGION_WRITE] = lambda server, message: None
    slow.timeout = 0.3
    slow.ring(0x1000, 1, nothing)
    assert readable(slow.gone_fd, 10)
    assert "did not answer REGION_WRITE" in (slow.trouble or "")
    slow.ring(0x1000, 2, nothing)  # dropped
    server.override[REGION_READ] = lambda server, message: pytest.fail("it is waited for once more")
    for access in (lambda: slow.read32(8), lambda: slow.read_many([(8, 4)]), lambda: slow.write32(0x14, 0)):
        with pytest.raises(ControllerGone, match="did not answer REGION_WRITE"):
            access()


def test_a_refused_doorbell_is_survived(server: FakeServer, slow: VfioUserDevice) -> None:
    server.override[REGION_WRITE] = lambda server, message: server.refuse(message, 22)
    slow.ring(0x1000, 1, nothing)
    slow.read32(8)
    assert not readable(slow.gone_fd)


def test_parking_waits_for_the_doorbells(server: FakeServer, slow: VfioUserDevice) -> None:
    server.override[REGION_WRITE] = lambda server, message: (time.sleep(0.1), acknowledge(server, message))
    for value in range(3):
        slow.ring(0x1000 + 4 * value, value, nothing)
    slow.park(True)
    assert len(doorbell_writes(server)) == 3
    slow.park(False)


# -- busy sockets, unsuitable machines -----------------------------------------------


def test_a_busy_socket_is_reported(tmp_path) -> None:
    path = str(tmp_path / "controller.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(4)
        assert busy(path) == ""
        with pytest.raises(DeviceTimeout) as alone:
            VfioUserDevice.connect(path, timeout=0.2)
        assert "another client" not in str(alone.value)
        listener.accept()[0].close()
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(path)
            with listener.accept()[0], pytest.raises(DeviceTimeout, match="another client is connected to it"):
                VfioUserDevice.connect(path, timeout=0.2)
            other.close()
    with pytest.raises(ControllerGone, match=r"Connection refused$"):
        VfioUserDevice.connect(path, timeout=0.2)


def test_pages_of_another_size_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "PAGESIZE", 65536)
    for refuse in (
        lambda: open_device("emulated:size=1MiB"),
        lambda: resume_device("vfio-user:/x", {}),
    ):
        with pytest.raises(DeviceError, match="pages have 65536 bytes; this driver supports only pages of 4096"):
            refuse()


# -- anything at all -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_replies_of_random_bytes(seed: int) -> None:
    """Any reply leads to a device, or to an error of this package, within the limit."""
    import random

    rng = random.Random(seed)
    victim = rng.choice([VERSION, GET_INFO, REGION_INFO, REGION_READ, 6, 7, 8])
    hit = rng.randrange(1, 4)
    seen = [0]

    def answer(server: FakeServer, message) -> None:
        seen[0] += 1
        if seen[0] != hit:
            server.answer(message)
            return
        payload = bytearray(rng.randbytes(rng.choice([0, 3, 4, 8, 16, 20, 32, 64, 100])))
        if rng.random() < 0.5 and len(payload) >= 4:
            struct.pack_into("<I", payload, 0, rng.choice([0, 16, 64, len(payload), 1 << 31]))
        flags = rng.choice([1, 1, 1, 0x21, 0, 2, 0xFFFFFFFF])
        server.send(
            server.message(message, bytes(payload), flags=flags, error=rng.choice([0, 22, 0xFFFFFFFF, 1 << 31]))
        )

    with FakeServer() as server:
        server.override[victim] = answer
        server.override[-victim] = lambda server, message: None  # our refusal of its request
        before = len(os.listdir("/proc/self/fd"))
        device = None
        try:
            device = VfioUserDevice.from_socket(server.client, timeout=1.0)
            device.timeout = 1.0
            device.read32(8)
            device.read_many([(0, 8), (8, 4)])
            device.set_interrupts([None] * min(device.n_vectors, 3))
        except NvmeError:
            pass
        finally:
            if device is not None:
                device.close()
        assert len(os.listdir("/proc/self/fd")) <= before
