"""Opening a function over VFIO: what is mapped, and what is refused with which reason."""

from __future__ import annotations

import errno
import struct

import pytest
from fake_pci import FakeSystem
from fake_vfio import BAR0_NBYTES, COMMAND, DRIVE, IOVA, FakeKernel, opened

from nvme_async.device import Device
from nvme_async.device import vfio_abi as abi
from nvme_async.device.vfio import VfioDevice
from nvme_async.dma import Pool
from nvme_async.errors import ConfigurationError, ControllerGone, DeviceError

pytestmark = pytest.mark.usefixtures("descriptors_are_closed")


def test_opening_enables_memory_and_mastering_and_turns_intx_off(device: VfioDevice, kernel: FakeKernel) -> None:
    assert isinstance(device, Device)
    assert kernel.config(COMMAND, 2) == struct.pack("<H", 0x406)
    assert kernel.resets == 0
    assert str(device.ids) == "1b36:0010 class 010802 revision 02"
    assert (device.ids.subsystem_vendor, device.ids.subsystem) == (0x1AF4, 0x1100)
    assert (device.uri, device.direct, device.n_vectors) == (f"pci:{DRIVE}", True, 8)


def test_registers_are_mapped_around_the_msix_table(device: VfioDevice, kernel: FakeKernel) -> None:
    assert device.mapped == (range(0x2000),)
    device.write32(0x14, 0x460001)
    assert kernel.bar0(0x14) == 0x460001
    device.write64(0x28, 0x1_2345_6000)
    assert device.read64(0x28) == 0x1_2345_6000
    assert device.read32(0x2C) == 1
    doorbells = device.doorbells()
    assert doorbells.mmio is not None
    doorbells.mmio.write32(doorbells.offset + 4, 7)
    assert kernel.bar0(0x1004) == 7
    assert device.doorbells() is doorbells


def test_a_table_in_another_bar_leaves_bar0_mapped_completely(kernel: FakeKernel, machine: FakeSystem) -> None:
    kernel.set_msix(table=0x2000 | 4, pending=0x3000 | 4)
    with opened(kernel, machine) as device:
        assert device.mapped == (range(BAR0_NBYTES),)


def test_only_sparse_areas_are_mapped(kernel: FakeKernel, machine: FakeSystem) -> None:
    kernel.sparse = [(0, 0x1000), (0x3000, 0x1000)]
    kernel.set_msix(table=0x2000, pending=0x2800)
    with opened(kernel, machine) as device:
        assert device.mapped == (range(0x1000), range(0x3000, 0x4000))
        assert device.doorbells().mmio is None
        device.write32(0x1008, 5)  # between the areas: by pwrite
        assert kernel.bar0(0x1008) == 5
        assert device.read64(0x1008) == 5


def test_a_region_without_mmap_goes_through_system_calls(kernel: FakeKernel, machine: FakeSystem) -> None:
    kernel.bar0_flags &= ~abi.VFIO_REGION_INFO_FLAG_MMAP
    with opened(kernel, machine) as device:
        assert device.mapped == ()
        device.write64(0x30, 0xABC0_0000_0000)
        assert device.read64(0x30) == 0xABC0_0000_0000
        assert device.doorbells().mmio is None


@pytest.mark.parametrize(("offset", "width"), [(-4, 4), (2, 4), (4, 8), (BAR0_NBYTES, 4), (BAR0_NBYTES - 4, 8)])
def test_accesses_outside_bar0_are_refused(device: VfioDevice, offset: int, width: int) -> None:
    with pytest.raises(ConfigurationError, match="misaligned or outside"):
        (device.read32 if width == 4 else device.read64)(offset)


def test_all_ones_or_zeroes_mean_gone_only_if_the_version_reads_so_too(device: VfioDevice, kernel: FakeKernel) -> None:
    kernel.write_bar0(0x0C, 0xFFFF_FFFF)
    assert device.read32(0x0C) == 0xFFFF_FFFF
    kernel.write_bar0(0x08, 0xFFFF_FFFF)
    with pytest.raises(ControllerGone, match="gone: register 0xc reads all ones"):
        device.read32(0x0C)
    with pytest.raises(ControllerGone, match="gone"):
        device.read64(0x08)
    kernel.write_bar0(0x08, 0)
    with pytest.raises(ControllerGone, match="gone: register 0x1c reads zero"):
        device.read32(0x1C)


def test_a_function_that_does_not_answer_is_gone(kernel: FakeKernel, machine: FakeSystem) -> None:
    kernel.write_config(0, b"\xff" * 4)
    with pytest.raises(ControllerGone, match="all ones"):
        opened(kernel, machine)


# Opening fails


def test_a_group_that_is_not_viable_names_the_sibling(kernel: FakeKernel, machine: FakeSystem) -> None:
    machine.add_function("0000:00:05.1", 5, driver="nvme")
    machine.add_function("0000:00:05.2", 5, driver="pcieport")
    kernel.viable = False
    with pytest.raises(
        DeviceError, match=r"group 5 of 0000:00:05\.0 is not viable: it holds 0000:00:05\.1 \(bound to nvme\)"
    ):
        opened(kernel, machine)


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        ("vfio", errno.ENOENT, "modprobe vfio-pci"),
        ("5", errno.ENOENT, "nvme-async bind pci:0000:00:05.0"),
        ("5", errno.EACCES, "chown"),
        ("5", errno.EBUSY, "another process has it open"),
        ("5", errno.EPERM, "no-IOMMU mode"),
        ("5", errno.EIO, "Input/output error"),
    ],
)
def test_a_node_that_can_not_be_opened_says_why(
    kernel: FakeKernel, machine: FakeSystem, node: str, error: int, message: str
) -> None:
    kernel.open_errors[node] = error
    with pytest.raises(DeviceError, match=message):
        opened(kernel, machine)


def test_an_old_or_strange_kernel_is_refused(kernel: FakeKernel, machine: FakeSystem) -> None:
    kernel.version = 1
    with pytest.raises(DeviceError, match="has VFIO version 1"):
        opened(kernel, machine)
    kernel.version = 0
    kernel.extensions = {abi.VFIO_TYPE1_IOMMU}
    with pytest.raises(DeviceError, match="no type 1 v2"):
        opened(kernel, machine)


def test_an_invalid_function_or_non_controller_is_refused(kernel: FakeKernel, machine: FakeSystem) -> None:
    kernel.bar0_nbytes = 0x1000
    with pytest.raises(DeviceError, match="4096 bytes, too few"):
        opened(kernel, machine)
    kernel.bar0_nbytes = 0
    with pytest.raises(DeviceError, match="no BAR0"):
        opened(kernel, machine)
    kernel.device_flags = 0
    with pytest.raises(DeviceError, match="not a PCI function"):
        opened(kernel, machine)
    kernel.device_error = errno.EINVAL
    with pytest.raises(DeviceError, match="VFIO_GROUP_GET_DEVICE_FD in group 5: Invalid argument"):
        opened(kernel, machine)


def test_no_group_means_no_iommu(kernel: FakeKernel, machine: FakeSystem) -> None:
    machine.add_function("0000:00:09.0", None, driver="vfio-pci")
    with pytest.raises(DeviceError, match="the IOMMU is off"):
        VfioDevice("0000:00:09.0", kernel=kernel, root=machine.root)
    with pytest.raises(ControllerGone, match="no PCI function"):
        VfioDevice("0000:00:0a.0", kernel=kernel, root=machine.root)


# DMA


def test_ranges_are_the_iommus_minus_existing_mappings(device: VfioDevice) -> None:
    assert device.iova_ranges == (range(0xFEE0_0000), range(0xFEF0_0000, 1 << 39))
    assert device.max_mappings == 100
    with Pool(2 << 20, iova=IOVA, hugepages="never") as pool:
        device.map_dma(pool, iova=IOVA, nbytes=pool.nbytes)
        assert device.iova_ranges == (
            range(0xFEE0_0000),
            range(0xFEF0_0000, IOVA),
            range(IOVA + pool.nbytes, 1 << 39),
        )
        device.unmap_dma(IOVA, pool.nbytes)
    assert device.iova_ranges == (range(0xFEE0_0000), range(0xFEF0_0000, 1 << 39))


def test_an_old_kernel_without_ranges_gets_conservative_ones(kernel: FakeKernel, machine: FakeSystem) -> None:
    kernel.ranges, kernel.dma_avail = None, None
    with opened(kernel, machine) as device:
        assert not any(window.start <= 0xFEE0_0000 < window.stop for window in device.iova_ranges)
        assert device.max_mappings == 65535


def test_a_pool_is_mapped_where_it_lies(device: VfioDevice, kernel: FakeKernel) -> None:
    with Pool(2 << 20, iova=IOVA, hugepages="never") as pool:
        device.map_dma(pool, iova=IOVA, nbytes=4096, file_offset=8192)
        assert kernel.mapped == {IOVA: (pool.address + 8192, 4096)}
        device.unmap_dma(IOVA, 4096)
        device.map_dma(pool.fd, iova=IOVA, nbytes=pool.nbytes)
        address, nbytes = kernel.mapped[IOVA]
        assert (address == pool.address, nbytes) == (False, pool.nbytes)
        device.unmap_dma(IOVA, pool.nbytes)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errno.ENOMEM, r"limit of locked memory .*ulimit -l"),
        (errno.ENOSPC, "limit is 100"),
        (errno.EEXIST, "another mapping already exists"),
        (errno.EFAULT, "not writable"),
        (errno.EINVAL, "Invalid argument"),
    ],
)
def test_a_mapping_that_the_kernel_refuses_says_why(
    device: VfioDevice, kernel: FakeKernel, error: int, message: str
) -> None:
    kernel.map_error = error
    with pytest.raises(DeviceError, match=message):
        device.map_dma(-1, iova=IOVA, nbytes=4096, address=0x10000)
