"""The VFIO device on a fake kernel in memory: every refusal, every kind of region, and what a
hand-over must not do.
"""

from __future__ import annotations

import os
import struct

import pytest
from fake_pci import FakeSystem
from fake_vfio import COMMAND, DRIVE, IOVA, FakeKernel, opened, wait_for_closing
from forking import in_child

from nvme_async.device import vfio_abi as abi
from nvme_async.device.vfio import VfioDevice
from nvme_async.dma import Pool
from nvme_async.errors import ConfigurationError, ControllerGone, DeviceError

pytestmark = pytest.mark.usefixtures("descriptors_are_closed")


def test_the_constants_are_the_kernels() -> None:
    """Numbers from linux/vfio.h, computed by its macros."""
    assert abi.VFIO_GET_API_VERSION == 0x3B64
    assert abi.VFIO_DEVICE_SET_IRQS == 0x3B6E
    assert abi.VFIO_IOMMU_MAP_DMA == 0x3B71
    assert abi.VFIO_IOMMU_UNMAP_DMA == 0x3B72


@pytest.mark.parametrize(
    ("iova", "nbytes", "message"),
    [
        (IOVA + 1, 4096, "multiples of 4096"),
        (IOVA, 0, "multiples of 4096"),
        (0xFEE0_0000, 4096, "outside the ranges that the IOMMU translates"),
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
    """Each answer is outdated when it is used."""
    offers = [6, 4, 1, 0]
    monkeypatch.setattr(abi, "set_eventfds", lambda *_: offers.pop(0))
    assert device.set_interrupts([10, 11, 12]) == 1
    offers = [6, 6]
    device.set_interrupts([])
    with pytest.raises(DeviceError, match="refused 6 vectors and offered 6"):
        device.set_interrupts([10, 11, 12])


def test_a_group_in_no_iommu_mode_is_refused_by_that_name(kernel: FakeKernel, machine: FakeSystem) -> None:
    (machine.sys / "kernel/iommu_groups/5/name").write_text("vfio-noiommu\n")
    with pytest.raises(DeviceError, match="no-IOMMU mode: it could access all memory"):
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
    with pytest.raises(ConfigurationError, match=r"missing to resume .*: container, group"):
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
    """Above all it keeps bus mastering on: the parent's commands are in flight."""
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
