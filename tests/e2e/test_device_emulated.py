"""The device seam end to end, on the emulated controller: registers, DMA, doorbells, interrupts,
reset and takeover.

There is no driver here: commands are built by hand, so that a fault of the seam isn't mistaken for
a fault of the driver.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Iterator

import pytest

from nvme_async.device import Device, open_device, resume_device
from nvme_async.emulator.device import EmulatedDevice
from nvme_async.errors import ConfigurationError, ControllerGone, DeviceError
from nvme_async.native._dma import DmaBuffer, Pool

CAP, VS, CC, CSTS, AQA, ASQ, ACQ = 0x0, 0x8, 0x14, 0x1C, 0x24, 0x28, 0x30
ENTRIES = 8


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    device = open_device("emulated:size=16MiB")
    assert isinstance(device, EmulatedDevice)
    yield device
    device.close()


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(1 << 20, iova=1 << 32, name="seam") as pool:
        yield pool


class Admin:
    """An admin queue pair at its simplest: one command at a time, never more than ENTRIES - 1 in
    all.
    """

    def __init__(self, device: Device, pool: Pool) -> None:
        self.device, self.pool = device, pool
        self.sq: DmaBuffer = pool.alloc(ENTRIES * 64, owner="admin sq")
        self.cq: DmaBuffer = pool.alloc(ENTRIES * 16, owner="admin cq")
        self.data: DmaBuffer = pool.alloc(4096, owner="admin data")
        self.tail = 0

    def enable(self) -> None:
        self.device.write32(CC, 0)
        self.wait_ready(0)
        self.device.write32(AQA, (ENTRIES - 1) << 16 | ENTRIES - 1)
        self.device.write64(ASQ, self.sq.iova)
        self.device.write64(ACQ, self.cq.iova)
        self.device.write32(CC, 4 << 20 | 6 << 16 | 1)
        self.wait_ready(1)

    def wait_ready(self, ready: int) -> None:
        deadline = time.monotonic() + 10
        while self.device.read32(CSTS) & 1 != ready:
            assert time.monotonic() < deadline

    def ring(self) -> None:
        doorbells = self.device.doorbells()
        assert doorbells.mmio is not None
        doorbells.mmio.write32(doorbells.offset, self.tail)
        if doorbells.kick_fd >= 0:
            os.eventfd_write(doorbells.kick_fd, 1)

    def submit(self, dword0: int, dword10: int) -> None:
        command = struct.pack("<II16xQQI20x", dword0, 0, self.data.iova, 0, dword10)
        self.sq[self.tail * 64 : self.tail * 64 + 64] = command
        self.tail += 1

    def completion(self, index: int) -> tuple[int, int] | None:
        """(cid, status) of the next completion, once the phase bit shows it."""
        if not self.cq[index * 16 + 14] & 1:
            return None
        # Read only after the phase: the controller may have written between two reads.
        cid, status = struct.unpack("<HH", self.cq[index * 16 + 12 : index * 16 + 16])
        return cid, status >> 1

    def identify(self) -> bytes:
        index = self.tail
        self.submit(0x06 | 0x100 << 16, 1)
        self.ring()
        deadline = time.monotonic() + 10
        while (done := self.completion(index)) is None:
            assert time.monotonic() < deadline
        assert done == (0x100, 0)
        return bytes(self.data)


def test_open_and_close() -> None:
    device = open_device("emulated:size=16MiB,vectors=5")
    assert isinstance(device, EmulatedDevice)
    assert device.uri == "emulated:size=16MiB,vectors=5"
    assert device.n_vectors == 5
    assert device.ids.class_code == 0x010802
    assert device.read32(VS) >= 0x00010400
    assert device.read64(CAP) & 0xFFFFFFFF == device.read32(CAP)
    assert device.read64(CAP) >> 32 == device.read32(CAP + 4)
    device.close()
    assert device.emulator.closed
    device.close()
    with pytest.raises(ControllerGone):
        device.read32(VS)


def test_bad_options_leave_nothing_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigurationError):
        open_device("emulated:size=much")
    assert len(os.listdir("/proc/self/fd")) == before


def test_dma_doorbells_and_interrupts(device: EmulatedDevice, pool: Pool) -> None:
    device.map_dma(pool, iova=pool.iova, nbytes=pool.nbytes)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    device.set_interrupts([eventfd])
    admin = Admin(device, pool)
    admin.enable()
    data = admin.identify()
    assert struct.unpack_from("<H", data)[0] == device.ids.vendor
    poll = select.poll()
    poll.register(eventfd, select.POLLIN)
    assert poll.poll(5000), "the completion raised vector 0"
    os.close(eventfd)
    device.write32(CC, 0)
    admin.wait_ready(0)
    device.unmap_dma(pool.iova, pool.nbytes)
    with pytest.raises(DeviceError, match="DMA_UNMAP"):
        device.unmap_dma(pool.iova, pool.nbytes)


def test_reset_disables_the_controller(device: EmulatedDevice, pool: Pool) -> None:
    device.map_dma(pool, iova=pool.iova, nbytes=pool.nbytes)
    admin = Admin(device, pool)
    admin.enable()
    device.reset()
    assert device.read32(CSTS) & 1 == 0
    assert device.read64(ASQ) == 0
    admin = Admin(device, pool)
    admin.enable()
    assert admin.identify(), "the mapping is still there"


def test_takeover(device: EmulatedDevice, pool: Pool) -> None:
    """A command is in the ring, its doorbell not rung: the successor rings it and finds the
    completion.
    """
    device.map_dma(pool, iova=pool.iova, nbytes=pool.nbytes)
    admin = Admin(device, pool)
    admin.enable()
    admin.submit(0x06 | 0x77 << 16, 1)
    saved = device.save()
    descriptors = {name: os.dup(fd) for name, fd in device.descriptors().items()}
    offsets = {slot.owner: slot.offset for slot in pool.slots()}
    with Pool.attach(pool.fd, expect_iova=pool.iova) as successors_pool:
        device.detach()
        successor = resume_device("emulated:", descriptors, saved)
        assert successor.read32(CSTS) & 1 == 1, "the controller was stopped"
        doorbells = successor.doorbells()
        assert doorbells.mmio is not None
        doorbells.mmio.write32(doorbells.offset, 1)
        if doorbells.kick_fd >= 0:
            os.eventfd_write(doorbells.kick_fd, 1)
        cq = successors_pool.claim(offsets["admin cq"])
        deadline = time.monotonic() + 10
        while not cq[14] & 1:
            assert time.monotonic() < deadline
        assert struct.unpack("<H", cq[12:14])[0] == 0x77
        data = successors_pool.claim(offsets["admin data"])
        assert struct.unpack("<H", data[:2])[0] == successor.ids.vendor
        del cq, data
        successor.close()
