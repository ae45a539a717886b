"""The VFIO device on a kernel made of memory: every refusal, every kind of region, and what
hand-over must not do.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_pci import FakeSystem
from fake_vfio import BAR0_NBYTES, FakeKernel
from forking import in_child

from nvme_async.device import Device, vfio_bar
from nvme_async.device import vfio_abi as abi
from nvme_async.device.vfio import VfioDevice
from nvme_async.dma import Pool
from nvme_async.errors import ConfigurationError, ControllerGone, DeviceError
from nvme_async.native._mmio import Mmio

DRIVE = "0000:00:05.0"
IOVA = 0x1_0000_0000
COMMAND = 0x04


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


def opened(kernel: FakeKernel, machine: FakeSystem) -> VfioDevice:
    return VfioDevice(DRIVE, kernel=kernel, root=machine.root)


@pytest.fixture
def device(kernel: FakeKernel, machine: FakeSystem) -> Iterator[VfioDevice]:
    with opened(kernel, machine) as made:
        yield made


def wait_for_closing() -> None:
    """A device that is gone is closed by a thread."""
    for thread in threading.enumerate():
        if thread.name == f"close pci:{DRIVE}":
            thread.join(10)


@pytest.fixture(autouse=True)
def descriptors_are_closed() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    wait_for_closing()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_constants_are_the_kernels() -> None:
    """Numbers from linux/vfio.h, computed by its macros."""
    assert abi.VFIO_GET_API_VERSION == 0x3B64
    assert abi.VFIO_DEVICE_SET_IRQS == 0x3B6E
    assert abi.VFIO_IOMMU_MAP_DMA == 0x3B71
    assert abi.VFIO_IOMMU_UNMAP_DMA == 0x3B72


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
    with pytest.raises(DeviceError, match="speaks VFIO version 1"):
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
        (errno.ENOSPC, "takes 100"),
        (errno.EEXIST, "mapped there already"),
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


@pytest.mark.parametrize(
    ("iova", "nbytes", "message"),
    [
        (IOVA + 1, 4096, "multiples of 4096"),
        (IOVA, 0, "multiples of 4096"),
        (0xFEE0_0000, 4096, "outside of what the IOMMU translates"),
        ((1 << 39) - 4096, 8192, "outside"),
    ],
)
def test_an_impossible_mapping_is_refused_before_the_kernel(
    device: VfioDevice, iova: int, nbytes: int, message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        device.map_dma(-1, iova=iova, nbytes=nbytes, address=0x10000)


def test_unmapping_what_is_not_mapped_is_an_error(device: VfioDevice) -> None:
    with pytest.raises(DeviceError, match="unmapped 0"):
        device.unmap_dma(IOVA, 4096)


# Interrupts


def vectors(kernel: FakeKernel) -> list[int]:
    return kernel.irqs.get(abi.VFIO_PCI_MSIX_IRQ_INDEX, [])


def test_all_vectors_are_enabled_at_once_and_changed_later(device: VfioDevice, kernel: FakeKernel) -> None:
    device.set_interrupts([10, None, 12])
    assert vectors(kernel) == [10, -1, 12, -1, -1, -1, -1, -1]
    device.set_interrupts([10, 11])
    assert vectors(kernel) == [10, 11, -1, -1, -1, -1, -1, -1]
    device.set_interrupts([])
    assert vectors(kernel) == []
    with pytest.raises(ConfigurationError, match=r"9 interrupts .* 8 vectors"):
        device.set_interrupts([1] * 9)


@pytest.mark.parametrize(("free", "given"), [(8, 5), (5, 5), (4, 4), (2, 2), (1, 1)])
def test_a_kernel_short_of_vectors_grants_fewer(device: VfioDevice, kernel: FakeKernel, free: int, given: int) -> None:
    kernel.free_vectors = free
    assert device.set_interrupts([10, 11, 12, 13, 14]) == given
    assert vectors(kernel)[:given] == [10, 11, 12, 13, 14][:given]
    assert device.set_interrupts([20]) == 1
    assert device.set_interrupts([]) == 0


def test_vectors_taken_by_others_meanwhile(
    device: VfioDevice, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer is out of date when it is used."""
    offers = [6, 4, 1, 0]
    monkeypatch.setattr(abi, "set_eventfds", lambda *_: offers.pop(0))
    assert device.set_interrupts([10, 11, 12]) == 1
    offers = [6, 6]
    device.set_interrupts([])
    with pytest.raises(DeviceError, match="refused 6 vectors and offered 6"):
        device.set_interrupts([10, 11, 12])


def test_a_group_in_no_iommu_mode_is_refused_by_that_name(kernel: FakeKernel, machine: FakeSystem) -> None:
    (machine.sys / "kernel/iommu_groups/5/name").write_text("vfio-noiommu\n")
    with pytest.raises(DeviceError, match="no-IOMMU mode: nothing would keep it"):
        opened(kernel, machine)
    (machine.sys / "kernel/iommu_groups/5/name").unlink()
    (machine.dev / "vfio/noiommu-5").write_text("")
    with pytest.raises(DeviceError, match="no-IOMMU mode"):
        opened(kernel, machine)


def test_the_kernels_request_has_an_eventfd(device: VfioDevice, kernel: FakeKernel) -> None:
    assert kernel.irqs[abi.VFIO_PCI_REQ_IRQ_INDEX] == [device.request_fd]


# End and hand-over


def test_closing_ends_dma_and_interrupts(kernel: FakeKernel, machine: FakeSystem) -> None:
    device = opened(kernel, machine)
    device.set_interrupts([10])
    device.close()
    device.close()
    assert kernel.config(COMMAND, 2) == struct.pack("<H", 0x402)
    assert vectors(kernel) == []
    assert device.request_fd == -1
    with pytest.raises(ControllerGone, match="closed by this process"):
        device.read32(0)
    with pytest.raises(ControllerGone, match="closed by this process"):
        device.set_interrupts([])


def test_a_missing_function_is_closed_by_its_own_thread(kernel: FakeKernel, machine: FakeSystem) -> None:
    device = opened(kernel, machine)
    config = kernel.config(0, 256)
    kernel.write_bar0(0x08, 0xFFFF_FFFF)
    device.close()
    assert device.closed
    wait_for_closing()
    assert kernel.config(0, 256) == config


def test_handing_over_changes_nothing_about_the_device(kernel: FakeKernel, machine: FakeSystem) -> None:
    first = opened(kernel, machine)
    with Pool(2 << 20, iova=IOVA, hugepages="never") as pool:
        first.map_dma(pool, iova=IOVA, nbytes=pool.nbytes)
        first.set_interrupts([10])
        copies = {name: os.dup(fd) for name, fd in first.descriptors().items()}
        saved = first.save()
        config = kernel.config(0, 256)
        kernel.calls.clear()
        first.detach()
        assert kernel.calls == []
        second = VfioDevice.resume(DRIVE, copies, saved, kernel=kernel)
        changing = {
            abi.VFIO_DEVICE_RESET,
            abi.VFIO_IOMMU_UNMAP_DMA,
            abi.VFIO_IOMMU_MAP_DMA,
            abi.VFIO_SET_IOMMU,
        }
        assert not changing & set(kernel.calls)
        assert kernel.config(0, 256) == config
        assert vectors(kernel)[0] == 10
        assert not any(window.start <= IOVA < window.stop for window in second.iova_ranges)
        second.set_interrupts([20, 21])
        assert vectors(kernel)[:2] == [20, 21]
        second.unmap_dma(IOVA, pool.nbytes)
        second.close()


def test_a_successor_with_more_vectors_sets_them_up_again(kernel: FakeKernel, machine: FakeSystem) -> None:
    first = opened(kernel, machine)
    kernel.irqs[abi.VFIO_PCI_MSIX_IRQ_INDEX] = [10, 11]
    copies = {name: os.dup(fd) for name, fd in first.descriptors().items()}
    first.detach()
    with VfioDevice.resume(DRIVE, copies, kernel=kernel) as second:
        second.set_interrupts([20, 21, 22])
        assert vectors(kernel)[:3] == [20, 21, 22]


def test_a_successor_without_all_descriptors_is_refused_and_leaks_none(kernel: FakeKernel) -> None:
    with pytest.raises(ConfigurationError, match="missing: container, group"):
        VfioDevice.resume(DRIVE, {"device": os.dup(kernel.device)}, kernel=kernel)


def test_two_functions_of_a_group_share_its_container(kernel: FakeKernel, machine: FakeSystem) -> None:
    machine.add_function("0000:00:05.1", 5, driver="vfio-pci")
    with opened(kernel, machine) as first:
        with VfioDevice("0000:00:05.1", kernel=kernel, root=machine.root) as second:
            assert second.descriptors()["container"] == first.descriptors()["container"]
            first.map_dma(-1, iova=IOVA, nbytes=4096, address=0x10000)
            assert second.iova_ranges == first.iova_ranges
        assert kernel.calls.count(abi.VFIO_SET_IOMMU) == 1
        assert first.read32(0x08) == 0x0001_0400


def test_a_forked_child_closes_only_its_copies(kernel: FakeKernel, machine: FakeSystem) -> None:
    """Above all not the right to DMA: the parent's commands are out."""
    with opened(kernel, machine) as device:
        window = device.doorbells().mmio
        assert window is not None
        config = kernel.config(0, 256)
        descriptors = device.descriptors().values()

        def act() -> None:
            kernel.calls.clear()
            for fd in descriptors:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(fd)
            for attempt in (lambda: device.read32(0), device.reset, device.descriptors):
                with pytest.raises(ControllerGone, match="forked"):
                    attempt()
            device.close()
            window.write32(0x1000, 0xDEAD)  # a doorbell
            assert kernel.calls == []

        assert os.waitstatus_to_exitcode(os.waitpid(in_child(act), 0)[1]) == 0
        assert kernel.config(0, 256) == config
        assert kernel.bar0(0x1000) == 0
        assert device.read32(0x08) == 0x0001_0400


def test_reset_if_the_function_supports_it(kernel: FakeKernel, machine: FakeSystem) -> None:
    with opened(kernel, machine) as device:
        device.reset()
        assert kernel.resets == 1
    kernel.device_flags = abi.VFIO_DEVICE_FLAGS_PCI
    with opened(kernel, machine) as device:
        device.reset()
        assert (kernel.resets, device.can_reset) == (1, False)


def test_a_capability_chain_that_loops_or_leaves_the_buffer_ends() -> None:
    looping = struct.pack("=HHI", 1, 1, 8) * 3
    assert len(list(abi.capabilities(looping, 8))) == 64
    assert list(abi.capabilities(looping, 20)) == []
    assert list(abi.capabilities(b"", 4)) == []


# Registers whose mapping faults


class Windows:
    """Makes windows of a file of their own, which can be cut off below them: the next access is a
    SIGBUS.
    """

    def __init__(self, *, lost: bool) -> None:
        self.files: list[int] = []
        self.lost = lost

    def __call__(self, fd: int, file_offset: int, nbytes: int, **named: int) -> Mmio:
        file = os.memfd_create("window")
        self.files.append(file)
        os.truncate(file, nbytes)
        os.pwrite(file, os.pread(fd, nbytes, file_offset), 0)
        window = Mmio(file, 0, nbytes, **named)
        if self.lost:
            self.lose()
        return window

    def lose(self) -> None:
        for file in self.files:
            os.truncate(file, 0)

    def close(self) -> None:
        for file in self.files:
            os.close(file)


@pytest.fixture
def windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Windows]:
    windows = Windows(lost=request.param)
    monkeypatch.setattr(vfio_bar, "Mmio", windows)
    yield windows
    windows.close()


@pytest.mark.parametrize("windows", [True], indirect=True)
def test_faulting_registers_are_accessed_through_the_descriptor(
    windows: Windows, kernel: FakeKernel, machine: FakeSystem
) -> None:
    """A confidential virtual machine: mapped, and SIGBUS at the first access."""
    with opened(kernel, machine) as device:
        assert windows.files
        assert device.mapped == ()
        assert device.doorbells().mmio is None
        assert device.inspect()["faults"] == 1
        assert device.read32(8) == 0x0001_0400
        device.write64(0x28, 0x1234_5678_9ABC)
        assert device.read64(0x28) == 0x1234_5678_9ABC
        device.ring(0x1000, 7, lambda: None)
        assert kernel.bar0(0x1000) == 7


@pytest.mark.parametrize("windows", [False], indirect=True)
def test_registers_that_fault_later_use_the_descriptor_with_a_message(
    windows: Windows, kernel: FakeKernel, machine: FakeSystem
) -> None:
    with opened(kernel, machine) as device:
        assert device.doorbells().mmio is not None
        assert device.inspect()["faults"] == 0
        windows.lose()
        device.write32(0x14, 5)
        assert kernel.bar0(0x14) == 5
        assert device.read32(0x14) == 5
        assert device.read64(0x08) == 0x0001_0400
        assert device.inspect()["faults"] == len(windows.files)
        assert os.eventfd_read(device.gone_fd) >= 1
        assert "SIGBUS" in (device.trouble or "")
