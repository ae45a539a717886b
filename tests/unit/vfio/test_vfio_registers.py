"""Registers whose mapping is refused, faults, or reads as if there were no device: system calls
replace it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from fake_pci import FakeSystem
from fake_vfio import FakeKernel, opened

from nvme_async.device import vfio_bar
from nvme_async.device.vfio import VfioDevice
from nvme_async.errors import ControllerGone
from nvme_async.native._mmio import Mmio

pytestmark = pytest.mark.usefixtures("descriptors_are_closed")

VERSION = 0x0001_0400


class Windows:
    """Makes windows of a separate file that can be truncated: the next access is a SIGBUS."""

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


def check_system_calls(device: VfioDevice, kernel: FakeKernel) -> None:
    assert device.mapped == ()
    assert device.doorbells().mmio is None
    assert device.read32(8) == VERSION
    device.write64(0x28, 0x1234_5678_9ABC)
    assert device.read64(0x28) == 0x1234_5678_9ABC
    device.ring(0x1000, 7, lambda: None)
    assert kernel.bar0(0x1000) == 7


def fill(windows: Windows, content: bytes) -> None:
    for file in windows.files:
        os.pwrite(file, content * os.fstat(file).st_size, 0)


@pytest.mark.parametrize("windows", [False], indirect=True)
@pytest.mark.parametrize("content", [b"\xff", b"\0"])
def test_a_mapping_that_reads_as_if_there_were_no_device_is_not_used(
    windows: Windows, kernel: FakeKernel, machine: FakeSystem, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Hypervisors that don't emulate a guest's user-mode accesses return this."""

    def filled(*arguments: int, **named: int) -> Mmio:
        window = windows(*arguments, **named)
        fill(windows, content)
        return window

    monkeypatch.setattr(vfio_bar, "Mmio", filled)
    with opened(kernel, machine) as device:
        check_system_calls(device, kernel)
        assert device.inspect()["faults"] == 1
        assert device.inspect()["refused"] == 0


@pytest.mark.parametrize("windows", [False], indirect=True)
@pytest.mark.parametrize(("content", "words"), [(b"\xff", "read all ones"), (b"\0", "read zero")])
def test_a_mapping_that_reads_so_later_is_replaced_with_a_message(
    windows: Windows, kernel: FakeKernel, machine: FakeSystem, content: bytes, words: str
) -> None:
    kernel.write_bar0(0x14, 5)
    kernel.write_bar0(0x28, 6)
    with opened(kernel, machine) as device:
        fill(windows, content)
        assert device.read32(0x14) == 5
        assert device.read64(0x28) == 6
        assert device.inspect()["faults"] == 1
        assert os.eventfd_read(device.gone_fd) == 1
        assert words in (device.trouble or "")


@pytest.mark.parametrize("windows", [False], indirect=True)
@pytest.mark.parametrize("removed", ["all ones", "no descriptor access"])
def test_a_missing_device_is_no_fault_of_its_mapping(
    windows: Windows, kernel: FakeKernel, machine: FakeSystem, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    with opened(kernel, machine) as device:
        fill(windows, b"\xff")
        if removed == "all ones":
            kernel.write_bar0(8, 0xFFFF_FFFF)
        else:

            def refused(*_: int) -> bytes:
                raise OSError(errno.EIO, "no")

            monkeypatch.setattr(vfio_bar.os, "pread", refused)
        with pytest.raises(ControllerGone, match="reads all ones, and VS too"):
            device.read32(0x14)
        assert device.inspect()["faults"] == 0
        monkeypatch.undo()


@pytest.mark.parametrize("windows", [False], indirect=True)
def test_a_device_that_comes_back_from_a_reset_keeps_its_mapping(
    windows: Windows, kernel: FakeKernel, machine: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its registers read all ones meanwhile; the second read of VS finds it again."""
    with opened(kernel, machine) as device:
        fill(windows, b"\xff")
        pread = os.pread

        def back(fd: int, nbytes: int, offset: int) -> bytes:
            for file in windows.files:
                os.pwrite(file, VERSION.to_bytes(4, "little"), 8)
            return pread(fd, nbytes, offset)

        monkeypatch.setattr(vfio_bar.os, "pread", back)
        assert device.read32(0x14) == 0xFFFF_FFFF
        monkeypatch.undo()
        assert device.mapped
        assert device.inspect()["faults"] == 0


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.ENODEV, errno.ENOMEM, errno.EAGAIN])
def test_registers_that_may_not_be_mapped_are_accessed_through_the_descriptor(
    kernel: FakeKernel,
    machine: FakeSystem,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    def refused(*_: int, **__: int) -> Mmio:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(vfio_bar, "Mmio", refused)
    with opened(kernel, machine) as device:
        check_system_calls(device, kernel)
        assert device.inspect()["faults"] == 0
        assert device.inspect()["refused"] == 1
        assert device.trouble == "the kernel requested its release (it is being unbound or removed)"
    assert f"can't be mapped ({os.strerror(code)}); system calls are used" in caplog.text
