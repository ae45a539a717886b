"""VFIO on real machines: late device nodes, reset methods, interrupts that follow a CPU."""

from __future__ import annotations

import errno
import os

import pytest
from fake_pci import FakeSystem
from fake_vfio import DRIVE, FakeKernel

from nvme_async.device import affinity, patience, pci_bind
from nvme_async.device import vfio_abi as abi
from nvme_async.device.vfio import VfioDevice
from nvme_async.errors import DeviceError


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("code", sorted(patience.TRANSIENT))
@pytest.mark.parametrize("where", ["group", "device"])
def test_a_missing_node_is_retried(
    kernel: FakeKernel,
    machine: FakeSystem,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    where: str,
) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            kernel.open_errors.clear()
            kernel.device_error = 0

    monkeypatch.setattr(patience.time, "sleep", sleep)
    if where == "group":
        kernel.open_errors["5"] = code
    else:
        kernel.device_error = code
    with VfioDevice(DRIVE, kernel=kernel, root=machine.root) as device:
        assert device.n_vectors == 8
    assert pauses == [0.01, 0.02, 0.04]
    assert "attempt 4 succeeded" in caplog.text


def test_retries_end_at_the_limit(kernel: FakeKernel, machine: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SECONDS", 0.05)
    before = descriptors()
    kernel.open_errors["5"] = errno.EBUSY
    with pytest.raises(DeviceError, match="another process has it open"):
        VfioDevice(DRIVE, kernel=kernel, root=machine.root)
    assert descriptors() == before


def test_a_permanent_refusal_is_not_retried(
    kernel: FakeKernel, machine: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience.time, "sleep", lambda _: pytest.fail("it waits"))
    kernel.open_errors["5"] = errno.EACCES
    with pytest.raises(DeviceError, match="chown"):
        VfioDevice(DRIVE, kernel=kernel, root=machine.root)


def test_a_late_udev_node_gets_its_owner(machine: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    node = machine.dev / "vfio/5"
    node.unlink(missing_ok=True)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        node.write_text("")

    monkeypatch.setattr(patience.time, "sleep", sleep)
    pci_bind.bind(machine, DRIVE, owner=os.getuid())
    assert pauses == [0.01]
    node.unlink()
    monkeypatch.setattr(patience, "SECONDS", 0.0)
    with pytest.raises(DeviceError, match="can't be changed to user"):
        pci_bind.bind(machine, DRIVE, owner=os.getuid())


@pytest.mark.parametrize(
    ("methods", "during"),
    [("bus flr\n", "flr\n"), ("flr bus\n", "flr bus\n"), ("bus pm\n", "bus pm\n"), ("\n", "\n"), (None, None)],
)
def test_a_reset_is_an_flr_if_supported(
    kernel: FakeKernel, machine: FakeSystem, monkeypatch: pytest.MonkeyPatch, methods: str | None, during: str | None
) -> None:
    path = machine.function_path(DRIVE) / "reset_method"
    if methods is not None:
        path.write_text(methods)
    seen: list[str | None] = []
    ioctl = kernel.ioctl

    def watched(fd: int, request: int, argument: bytearray | int = 0) -> int:
        if request == abi.VFIO_DEVICE_RESET:
            seen.append(path.read_text() if path.exists() else None)
        return ioctl(fd, request, argument)

    monkeypatch.setattr(kernel, "ioctl", watched)
    with VfioDevice(DRIVE, kernel=kernel, root=machine.root) as device:
        device.reset()
    assert seen == [during]
    assert (path.read_text() if path.exists() else None) == methods


def test_the_reset_method_is_restored_after_a_failure(
    kernel: FakeKernel, machine: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine.function_path(DRIVE) / "reset_method"
    path.write_text("bus flr\n")
    with VfioDevice(DRIVE, kernel=kernel, root=machine.root) as device:
        ioctl = kernel.ioctl

        def failing(fd: int, request: int, argument: bytearray | int = 0) -> int:
            if request == abi.VFIO_DEVICE_RESET:
                raise OSError(errno.ENOTTY, "no")
            return ioctl(fd, request, argument)

        monkeypatch.setattr(kernel, "ioctl", failing)
        with pytest.raises(DeviceError, match="VFIO_DEVICE_RESET"):
            device.reset()
    assert path.read_text() == "bus flr\n"


INTERRUPTS = f"""            CPU0       CPU1
   1:          0          9   IO-APIC   1-edge      i8042
  40:          5          0   IR-PCI-MSIX-{DRIVE}   0-edge      vfio-msix[0]({DRIVE})
  41:         17          0   IR-PCI-MSIX-{DRIVE}   1-edge      vfio-msix[1]({DRIVE})
  51:          1          0   IR-PCI-MSIX-0000:00:06.0   1-edge      vfio-msix[1](0000:00:06.0)
 NMI:          0          0   Non-maskable interrupts
"""


def test_an_interrupt_follows_the_cpu(kernel: FakeKernel, machine: FakeSystem) -> None:
    (machine.proc / "interrupts").write_text(INTERRUPTS)
    for number in (40, 41, 51):
        (machine.proc / f"irq/{number}").mkdir(parents=True)
        (machine.proc / f"irq/{number}/smp_affinity_list").write_text("0-1\n")
    with VfioDevice(DRIVE, kernel=kernel, root=machine.root) as device:
        assert device.steer(1, {1, 0})
        assert device.steer(0, {1})
        assert not device.steer(7, {1})
    assert (machine.proc / "irq/41/smp_affinity_list").read_text() == "0,1"
    assert (machine.proc / "irq/40/smp_affinity_list").read_text() == "1"
    assert (machine.proc / "irq/51/smp_affinity_list").read_text() == "0-1\n"
    assert affinity.interrupt_of("0000:00:06.0", 1, machine.root) == 51
    assert affinity.interrupt_of(DRIVE, 1, machine.root / "nowhere") is None


def test_an_immovable_interrupt_is_accepted(machine: FakeSystem) -> None:
    (machine.proc / "interrupts").write_text(INTERRUPTS)
    assert not affinity.steer(DRIVE, 1, {0}, machine.root)
