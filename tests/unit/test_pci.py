"""Finding, binding and unbinding NVMe functions, on a machine made of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_pci import FakeSystem

from nvme_async.device.pci import System, driver_of, find, function_at
from nvme_async.device.pci_bind import bind, unbind
from nvme_async.device.pci_use import openers, uses
from nvme_async.errors import ControllerGone, DeviceError

FIRST, SECOND = "0000:00:05.0", "0000:01:00.0"


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    """A drive with two partitions, and one without any."""
    fake = FakeSystem(tmp_path)
    fake.add_function(FIRST, 5)
    disk = fake.add_disk(fake.add_controller(FIRST, "nvme0"), "nvme0n1", "259:0")
    fake.add_partition(disk, "nvme0n1p1", "259:1")
    fake.add_partition(disk, "nvme0n1p2", "259:2")
    fake.add_function(SECOND, 7, numa_node="1")
    fake.add_disk(fake.add_controller(SECOND, "nvme1", serial="other"), "nvme1n1", "259:3")
    fake.add_function("0000:00:1f.0", 8, driver=None, **{"class": "0x060100"})
    return fake


def partition(system: FakeSystem, name: str) -> Path:
    return (system.sys / "class/block" / name).resolve()


def said(system: FakeSystem, address: str = FIRST) -> list[str]:
    return [str(use) for use in uses(system, function_at(system, address))]


def test_find_shows_nvme_functions_only(system: FakeSystem) -> None:
    first, second = find(system)
    assert (first.address, first.uri) == (FIRST, f"pci:{FIRST}")
    assert (first.vendor, first.device, first.class_code) == (0x1B36, 0x0010, 0x010802)
    assert (first.model, first.serial, first.firmware) == ("QEMU NVMe Ctrl", "plain", "7.2.22")
    assert (first.driver, first.iommu_group, first.numa_node) == ("nvme", 5, None)
    assert (first.controller, first.disks) == ("nvme0", ("nvme0n1",))
    assert (second.numa_node, second.disks) == (1, ("nvme1n1",))


def test_a_machine_without_pci_has_no_functions(tmp_path: Path) -> None:
    assert find(System(tmp_path)) == []


def test_disks_of_a_multipath_subsystem_belong_to_each_of_its_controllers(system: FakeSystem) -> None:
    system.add_function("0000:02:00.0", 9)
    controller = system.add_controller("0000:02:00.0", "nvme2")
    system.add_disk(controller, "nvme2c2n1", "259:9", hidden=True)
    subsystem = system.root / "sys/devices/virtual/nvme-subsystem/nvme-subsys2"
    subsystem.mkdir(parents=True)
    (subsystem / "nvme2").symlink_to(controller)
    system.add_disk(subsystem, "nvme2n1", "259:10")
    assert function_at(system, "0000:02:00.0").disks == ("nvme2n1",)
    assert function_at(system, FIRST).disks == ("nvme0n1",)


def test_an_idle_drive_has_no_uses(system: FakeSystem) -> None:
    system.mount("8:1", "/", "/dev/sda1")
    assert said(system) == []


def test_mounts_are_found_by_number_in_any_namespace(system: FakeSystem) -> None:
    system.mount("259:1", "/", "/dev/root")
    system.mount("259:2", r"/data\040base", "/dev/nvme0n1p2", kind="xfs", process="4711")
    assert said(system) == [
        "/dev/nvme0n1p1 is mounted at / (ext4)",
        "/dev/nvme0n1p2 is mounted at /data base (xfs)",
    ]


def test_a_file_system_with_its_own_device_number_is_found_by_its_source(system: FakeSystem) -> None:
    system.mount("0:45", "/pool", "/dev/nvme0n1p2", kind="btrfs")
    assert said(system) == ["/dev/nvme0n1p2 is mounted at /pool (btrfs)"]


def test_swap_is_a_use(system: FakeSystem) -> None:
    (system.proc / "swaps").write_text("Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 8 0 -2\n")
    assert said(system) == ["/dev/nvme0n1p2 is used as swap"]


def test_holders_are_followed_upwards(system: FakeSystem) -> None:
    below = system.add_virtual("md0", "9:0", partition(system, "nvme0n1p2"), md__level="raid1")
    system.add_virtual("dm-0", "253:0", below, dm__name="vg-home")
    system.mount("253:0", "/home", "/dev/mapper/vg-home")
    assert said(system) == [
        "/dev/nvme0n1p2 is held by md array md0 (raid1), which is held by device-mapper dm-0 (vg-home), "
        "which is mounted at /home (ext4)"
    ]


def test_holders_in_a_circle_end(system: FakeSystem) -> None:
    path = system.add_virtual("dm-0", "253:0", partition(system, "nvme0n1p1"), dm__name="loop")
    (path / "holders" / "dm-0").symlink_to(path)
    assert len(said(system)) == 1


@pytest.mark.parametrize("node", ["nvme0n1", "nvme0n1p1"])
def test_exclusive_use_of_a_disk_or_partition(system: FakeSystem, node: str) -> None:
    system.exclusive.add(node)
    assert said(system) == [f"/dev/{node} is opened exclusively by another process"]


def test_an_unreadable_use_is_ignored(system: FakeSystem) -> None:
    system.denied |= {"nvme0n1", "nvme0n1p1", "nvme0n1p2"}
    assert said(system) == []


def test_a_used_drive_stays_with_the_kernel(system: FakeSystem) -> None:
    system.mount("259:1", "/", "/dev/root")
    with pytest.raises(DeviceError, match=r"stays with nvme: /dev/nvme0n1p1 is mounted at / \(ext4\)"):
        bind(system, FIRST)
    assert system.writes == []
    assert driver_of(system, FIRST) == "nvme"


def test_force_takes_the_drive_and_reports_the_broken_uses(system: FakeSystem) -> None:
    system.mount("259:1", "/", "/dev/root")
    outcome = bind(system, FIRST, force=True)
    assert [str(use) for use in outcome.broken] == ["/dev/nvme0n1p1 is mounted at / (ext4)"]
    assert outcome.function.driver == "vfio-pci"


def test_bind_and_unbind_are_inverse_and_remember_the_model(system: FakeSystem) -> None:
    outcome = bind(system, SECOND)
    assert (outcome.before, outcome.changed, outcome.hints) == ("nvme", True, ())
    assert outcome.function.driver == "vfio-pci"
    # The fake keeps the kernel's controller in the tree; a real one is gone with its driver.
    assert system.record(SECOND) is not None
    assert system.writes == [
        (f"sys/bus/pci/devices/{SECOND}/driver/unbind", SECOND),
        (f"sys/bus/pci/devices/{SECOND}/driver_override", "vfio-pci\n"),
        ("sys/bus/pci/drivers_probe", SECOND),
    ]
    assert not bind(system, SECOND).changed
    back = unbind(system, SECOND)
    assert (back.before, back.function.driver, back.changed) == ("vfio-pci", "nvme", True)
    assert (system.function_path(SECOND) / "driver_override").read_text() == "(null)\n"
    assert system.record(SECOND) is None
    assert not unbind(system, SECOND).changed


def test_the_remembered_driver_and_override_come_back(system: FakeSystem) -> None:
    system.add_function("0000:03:00.0", 11, driver="special", driver_override="special")
    bind(system, "0000:03:00.0")
    assert driver_of(system, "0000:03:00.0") == "vfio-pci"
    assert unbind(system, "0000:03:00.0").function.driver == "special"
    assert (system.function_path("0000:03:00.0") / "driver_override").read_text() == "special\n"


def test_a_bound_function_shows_the_remembered_model(system: FakeSystem) -> None:
    bind(system, SECOND)
    controller = system.function_path(SECOND).resolve() / "nvme"
    controller.rename(controller.with_name("gone"))
    function = function_at(system, SECOND)
    assert (function.model, function.serial, function.controller) == ("QEMU NVMe Ctrl", "other", None)


def test_a_refusing_driver_leaves_everything_unchanged(system: FakeSystem) -> None:
    system.picky.add("vfio-pci")
    with pytest.raises(DeviceError, match=f"vfio-pci did not take pci:{SECOND}"):
        bind(system, SECOND)
    assert driver_of(system, SECOND) == "nvme"
    assert (system.function_path(SECOND) / "driver_override").read_text() == "(null)\n"


def test_without_the_module_nothing_is_touched(system: FakeSystem) -> None:
    system.loadable.clear()
    with pytest.raises(DeviceError, match=r"no driver vfio-pci: `modprobe vfio-pci`.*not found"):
        bind(system, SECOND)
    assert system.writes == []


def test_without_an_iommu_nothing_is_touched(system: FakeSystem) -> None:
    system.add_function("0000:04:00.0", None)
    with pytest.raises(DeviceError, match="no IOMMU group"):
        bind(system, "0000:04:00.0")
    assert system.writes == []


def test_a_sibling_in_the_group_is_hinted_at(system: FakeSystem) -> None:
    system.add_function("0000:01:00.1", 7)
    (hint,) = bind(system, SECOND).hints
    assert "0000:01:00.1, which is bound to nvme" in hint


def test_unbind_refuses_while_a_process_has_it(system: FakeSystem) -> None:
    bind(system, SECOND)
    system.exclusive.add("7")
    descriptors = system.proc / "321/fd"
    descriptors.mkdir(parents=True)
    (descriptors / "4").symlink_to(system.dev / "vfio/7")
    (system.proc / "321/comm").write_text("python\n")
    with pytest.raises(DeviceError, match=r"in use by python \(321\)"):
        unbind(system, SECOND)
    assert driver_of(system, SECOND) == "vfio-pci"
    assert openers(system, system.dev / "vfio/9") == []


def test_a_missing_or_non_nvme_function_is_refused(system: FakeSystem) -> None:
    with pytest.raises(ControllerGone, match="no PCI function"):
        bind(system, "0000:77:00.0")
    with pytest.raises(DeviceError, match="not an NVMe controller: its class is 060100"):
        bind(system, "0000:00:1f.0")


def test_a_real_write_reports_what_the_kernel_says(tmp_path: Path) -> None:
    system = System(tmp_path)
    target = tmp_path / "attribute"
    target.write_text("")
    system.write(target, "value")
    assert target.read_text() == "value"
    with pytest.raises(DeviceError, match="No such file or directory"):
        system.write(tmp_path / "missing", "value")


def test_a_damaged_record_is_ignored(system: FakeSystem) -> None:
    system.records.mkdir(parents=True)
    (system.records / SECOND).write_text('{"driver": ')
    assert system.record(SECOND) is None
    (system.records / SECOND).write_text('{"colour": "red"}')
    assert system.record(SECOND) is None
