"""The VFIO device alone, against QEMU's controller: raw registers, without the driver above."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Host, driver

from nvme_async.device.vfio import VfioDevice, open_uri
from nvme_async.dma import Pool
from nvme_async.errors import ConfigurationError, ControllerGone, DeviceError

CAP, VS, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x08, 0x14, 0x1C, 0x24, 0x28, 0x30
IOVA = 0x1_0000_0000
ENTRIES = 16
IDENTIFY = 0x06


@pytest.fixture
def device(address: Callable[[str], str]) -> Iterator[VfioDevice]:
    with open_uri(address("plain")) as opened:
        yield opened


@pytest.fixture
def pool(device: VfioDevice) -> Iterator[Pool]:
    with Pool(2 << 20, iova=IOVA, name="raw") as made:
        device.map_dma(made, iova=made.iova, nbytes=made.nbytes)
        yield made


class Admin:
    """A minimal admin queue in three pages of a pool."""

    def __init__(self, device: VfioDevice, pool: Pool) -> None:
        self.device = device
        self.sq, self.cq, self.data = (pool.alloc(4096, owner="raw") for _ in range(3))
        self.tail = 0

    def enable(self) -> None:
        wait(self.device, 0)
        self.device.write32(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1))
        self.device.write64(ASQ, self.sq.iova)
        self.device.write64(ACQ, self.cq.iova)
        self.device.write32(CC, 4 << 20 | 6 << 16 | 1)
        wait(self.device, 1)

    def identify(self, cid: int) -> bytes:
        """Identify Controller; returns the first 64 bytes of its page, which start with the PCI
        vendor id.
        """
        self.submit(cid)
        self.complete(cid)
        return bytes(self.data[:64])

    def submit(self, cid: int) -> None:
        entry = struct.pack("<IIQQQQ6I", cid << 16 | IDENTIFY, 0, 0, 0, self.data.iova, 0, 1, 0, 0, 0, 0, 0)
        self.sq[64 * self.tail : 64 * self.tail + 64] = entry
        self.tail = (self.tail + 1) % ENTRIES
        place = self.device.doorbells()
        assert place.mmio is not None
        place.mmio.write32(place.offset, self.tail)

    def complete(self, cid: int) -> None:
        index = (self.tail - 1) % ENTRIES
        deadline = time.monotonic() + 10
        while True:
            identifier, status = struct.unpack_from("<HH", bytes(self.cq[16 * index : 16 * index + 16]), 12)
            if status & 1:
                break
            assert time.monotonic() < deadline, "no completion within 10 s"
            time.sleep(0.001)
        assert (identifier, status >> 1) == (cid, 0)
        place = self.device.doorbells()
        assert place.mmio is not None
        place.mmio.write32(place.offset + 4, (index + 1) % ENTRIES)


def wait(device: VfioDevice, ready: int) -> None:
    deadline = time.monotonic() + 10
    while device.read32(CSTS) & 1 != ready:
        assert time.monotonic() < deadline, f"CSTS.RDY is not {ready} within 10 s"
        time.sleep(0.005)


def disable(device: VfioDevice) -> None:
    device.write32(CC, 0)
    wait(device, 0)


def test_identity_and_registers(device: VfioDevice, baseline: dict[str, Any]) -> None:
    assert (device.ids.vendor, device.ids.device, device.ids.class_code) == (0x1B36, 0x0010, 0x010802)
    assert device.read32(VS) == baseline["plain"]["controller"]["ver"]
    capabilities = device.read64(CAP)
    assert capabilities & 0xFFFF == 2047  # MQES
    assert device.read32(CAP) == capabilities & 0xFFFF_FFFF
    assert device.n_vectors == 65


def test_the_doorbells_are_mapped_and_the_msix_table_is_not(device: VfioDevice) -> None:
    doorbells = device.doorbells()
    assert doorbells.mmio is not None
    assert doorbells.offset == 0x1000
    assert doorbells is device.doorbells()
    assert [window.start for window in device.mapped] == [0]
    assert device.mapped[0].stop == 0x2000  # where QEMU has its table


def test_the_iommus_limits_are_reported(device: VfioDevice) -> None:
    assert device.max_mappings == 65535
    assert device.iova_ranges
    # x86's window of message-signalled interrupts is never a valid address.
    assert not any(window.start <= 0xFEE0_0000 < window.stop for window in device.iova_ranges)
    with pytest.raises(DeviceError, match="outside the ranges that the IOMMU translates"):
        device.map_dma(-1, iova=0xFEE0_0000, nbytes=4096, address=0x1000)


def test_a_mapping_is_taken_from_the_free_ranges_and_comes_back(device: VfioDevice, pool: Pool) -> None:
    assert not any(window.start <= IOVA < window.stop for window in device.iova_ranges)
    with pytest.raises(DeviceError, match="another mapping already exists"):
        device.map_dma(pool, iova=IOVA, nbytes=pool.nbytes)
    device.unmap_dma(IOVA, pool.nbytes)
    assert any(window.start <= IOVA < window.stop for window in device.iova_ranges)
    with pytest.raises(DeviceError, match="unmapped 0"):
        device.unmap_dma(IOVA, pool.nbytes)


def test_memory_of_a_descriptor_stays_accessible_without_a_local_mapping(device: VfioDevice) -> None:
    with Pool(2 << 20, iova=IOVA, name="raw", hugepages="never") as pool:
        device.map_dma(pool.fd, iova=IOVA, nbytes=pool.nbytes)
        admin = Admin(device, pool)
        admin.enable()
        assert admin.identify(1)[:2] == b"\x36\x1b"
        disable(device)
        device.unmap_dma(IOVA, pool.nbytes)


def test_a_command_over_dma_with_an_interrupt(device: VfioDevice, pool: Pool, host: Host) -> None:
    with host.witness() as witness:
        admin = Admin(device, pool)
        signal = os.eventfd(0, os.EFD_CLOEXEC)
        device.set_interrupts([signal])
        admin.enable()
        first = admin.identify(7)
        assert struct.unpack_from("<H", first)[0] == 0x1B36
        assert first[4:24].rstrip() == b"plain"
        assert os.eventfd_read(signal) == 1
        other = os.eventfd(0, os.EFD_CLOEXEC)
        device.set_interrupts([other, None, signal])
        os.close(signal)  # the kernel keeps its target
        admin.identify(8)
        assert os.eventfd_read(other) == 1
        device.set_interrupts([])
        disable(device)
        assert witness.count("pci_nvme_mmio_start_success") == 1
        assert witness.complaints() == []
        os.close(other)


def test_too_many_interrupts_are_refused(device: VfioDevice) -> None:
    with pytest.raises(ConfigurationError, match=r"66 interrupts .* 65 vectors"):
        device.set_interrupts([None] * 66)


def test_a_reset_disables_the_controller(device: VfioDevice, pool: Pool) -> None:
    admin = Admin(device, pool)
    admin.enable()
    device.reset()
    if device.can_reset:
        assert device.read32(CC) & 1 == 0
    else:
        assert device.read32(CC) & 1 == 1
        disable(device)


def test_a_successor_continues_without_a_reset(address: Callable[[str], str], host: Host) -> None:
    place = address("plain")
    device = VfioDevice(place)
    with Pool(2 << 20, iova=IOVA, name="raw") as pool, host.witness() as witness:
        device.map_dma(pool, iova=IOVA, nbytes=pool.nbytes)
        admin = Admin(device, pool)
        admin.enable()
        admin.identify(1)
        copies = {name: os.dup(fd) for name, fd in device.descriptors().items()}
        saved = device.save()
        admin.submit(2)  # in flight without a driver
        device.detach()
        with pytest.raises(ControllerGone, match="closed"):
            device.read32(CSTS)
        successor = VfioDevice.resume(place, copies, saved)
        admin.device = successor
        assert successor.read32(CSTS) & 1 == 1
        admin.complete(2)
        signal = os.eventfd(0, os.EFD_CLOEXEC)
        successor.set_interrupts([signal])
        assert admin.identify(3)[:2] == b"\x36\x1b"
        assert os.eventfd_read(signal) == 1
        assert not any(window.start <= IOVA < window.stop for window in successor.iova_ranges)
        assert witness.count("pci_nvme_mmio_start_success") == 1
        assert witness.count("pci_nvme_mmio_stopped") == 0
        assert witness.count("pci_nvme_pci_reset") == 0
        disable(successor)
        successor.unmap_dma(IOVA, pool.nbytes)
        successor.close()
        os.close(signal)


def test_one_function_of_a_shared_group_names_the_other(address: Callable[[str], str], baseline: Any) -> None:
    first, second = address("twin-a"), baseline["twin-b"]["address"]
    with pytest.raises(DeviceError, match=rf"not viable: it holds {second} \(bound to nvme\)"):
        open_uri(first)


def test_two_functions_of_one_group_share_a_container(address: Callable[[str], str]) -> None:
    with open_uri(_both(address)) as first:
        second = open_uri(address("twin-b"))
        with second, Pool(2 << 20, iova=IOVA, name="raw") as pool:
            first.map_dma(pool, iova=IOVA, nbytes=pool.nbytes)
            assert not any(window.start <= IOVA < window.stop for window in second.iova_ranges)
            assert first.read32(VS) == second.read32(VS)
        assert first.read32(VS) != 0


def _both(address: Callable[[str], str]) -> str:
    first = address("twin-a")
    address("twin-b")
    return first


def test_a_function_of_the_kernel_is_refused_with_the_command(baseline: dict[str, Any]) -> None:
    place = baseline["plain"]["address"]
    assert driver(place) == "nvme"
    with pytest.raises(DeviceError, match=f"bound to nvme, not to vfio-pci: `nvme-async bind pci:{place}`"):
        open_uri(place)
    with pytest.raises(ControllerGone, match=r"no PCI function 0000:7f:00\.0"):
        open_uri("0000:7f:00.0")


def test_an_open_group_is_refused_to_another_process(device: VfioDevice) -> None:
    child = os.fork()
    if child == 0:
        from nvme_async.device import vfio_container

        vfio_container._groups.clear()  # as in an unrelated process
        try:
            open_uri(device.uri.removeprefix("pci:"))
        except DeviceError as error:
            os._exit(0 if "another process has it open" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_kernel_asks_for_the_function_back(address: Callable[[str], str]) -> None:
    place = address("plain")
    device = open_uri(place)
    assert device.request_fd >= 0
    # No fork: a child with copies of the descriptors would itself keep the device open.
    script = f"from lab import rebind; rebind({place!r}, 'nvme')"
    child = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent)
    deadline = time.monotonic() + 20
    while True:
        try:
            os.eventfd_read(device.request_fd)
            break
        except BlockingIOError:
            assert time.monotonic() < deadline, "no request within 20 s"
            time.sleep(0.05)
    device.close()
    assert child.wait(30) == 0
    assert driver(place) == "nvme"
