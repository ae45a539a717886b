"""list, bind, unbind and doctor on a machine made of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_pci import FakeSystem

from nvme_async.cli.doctor import Finding, Machine, examine
from nvme_async.cli.main import cli
from nvme_async.cli.pci import table
from nvme_async.device.pci import find
from nvme_async.device.pci_use import uses

DRIVE = "0000:00:05.0"
MIB = 1 << 20


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    fake = FakeSystem(tmp_path)
    fake.add_function(DRIVE, 5)
    fake.add_disk(fake.add_controller(DRIVE, "nvme0"), "nvme0n1", "259:0")
    return fake


def run(system: FakeSystem, *arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, obj=system)


def test_list_as_a_table(system: FakeSystem) -> None:
    system.mount("259:0", "/data", "/dev/nvme0n1")
    system.add_function("0000:00:06.0", None, driver=None)
    header, first, second, _, title, *ways = run(system, "list").output.splitlines()
    assert header.split() == ["ADDRESS", "IDS", "MODEL", "SERIAL", "DRIVER", "GROUP", "NUMA", "QUIRKS", "IN", "USE"]
    assert first.split()[:2] == [DRIVE, "1b36:0010"]
    assert first.endswith("plain   nvme        5     -  bogus-ids  /dev/nvme0n1 is mounted at /data (ext4)")
    assert second.split() == ["0000:00:06.0", "1b36:0010", *"-----", "bogus-ids", "-"]
    assert title == "To open them:"
    assert ways == [
        f"  kernel:/dev/nvme0n1 or kernel:nvme0; pci:{DRIVE} once it is bound to vfio-pci",
        "  pci:0000:00:06.0 once it is bound to vfio-pci",
    ]


def test_list_as_json(system: FakeSystem) -> None:
    system.mount("259:0", "/data", "/dev/nvme0n1")
    (entry,) = json.loads(run(system, "list", "-o", "json").output)
    assert entry["uri"] == f"pci:{DRIVE}"
    assert entry["kernel_uris"] == ["kernel:/dev/nvme0n1", "kernel:nvme0"]
    assert (entry["vendor"], entry["class_code"], entry["iommu_group"]) == ("1b36", "010802", 5)
    assert "NVME_QUIRK_BOGUS_NID" in entry["quirks"]["bogus-ids"]
    assert entry["in_use"] == [{"device": "/dev/nvme0n1", "what": "is mounted at /data (ext4)"}]


def test_list_without_drives(tmp_path: Path) -> None:
    result = run(FakeSystem(tmp_path), "list")
    assert result.exit_code == 0
    assert "no NVMe function" in result.output
    assert json.loads(run(FakeSystem(tmp_path / "other"), "list", "-o", "json").output) == []


def test_bind_and_unbind(system: FakeSystem) -> None:
    assert run(system, "bind", f"pci:{DRIVE}").output == f"pci:{DRIVE}: nvme -> vfio-pci\n"
    assert "already" in run(system, "bind", DRIVE).output
    back = json.loads(run(system, "unbind", "00:05.0", "-o", "json").output)
    assert (back["before"], back["driver"], back["changed"]) == ("vfio-pci", "nvme", True)


def test_list_on_a_narrow_terminal_drops_columns_but_no_use(system: FakeSystem) -> None:
    system.mount("259:0", "/data", "/dev/nvme0n1")
    rows = [(function, uses(system, function)) for function in find(system)]
    header, first, use = table(rows, 80).splitlines()
    assert header.split()[:2] == ["ADDRESS", "IDS"]
    assert "QUIRKS" not in header
    assert max(map(len, (header, first, use))) <= 80
    assert first.endswith("yes")
    assert use.strip() == "/dev/nvme0n1 is mounted at /data (ext4)"


def test_bind_refuses_and_force_reports_the_broken_uses(system: FakeSystem) -> None:
    system.mount("259:0", "/", "/dev/root")
    refused = run(system, "bind", DRIVE)
    assert refused.exit_code == 1
    assert "is mounted at /" in str(refused.exception)
    forced = run(system, "bind", DRIVE, "--force")
    assert forced.exit_code == 0
    assert "broke: /dev/nvme0n1 is mounted at / (ext4)" in forced.output


def test_an_invalid_address_is_a_usage_error(system: FakeSystem) -> None:
    result = run(system, "bind", "nvme0")
    assert result.exit_code == 2
    assert "is not a PCI address" in result.output
    assert run(system, "bind", DRIVE, "--owner", "no such user").exit_code == 2


def problems(system: FakeSystem, **limits: int) -> list[Finding]:
    settings = {"pool_bytes": 32 * MIB, "memlock": 64 * MIB, "uid": 1000} | limits
    return [found for found in examine(Machine(system, **settings)) if found.level == "problem"]


def healthy(system: FakeSystem) -> None:
    system.add_driver("vfio-pci")
    (system.sys / "module/vfio_iommu_type1").mkdir(parents=True)
    (system.proc / "meminfo").write_text("HugePages_Free:       64\n")


def test_doctor_has_no_complaint_about_a_good_machine(system: FakeSystem) -> None:
    healthy(system)
    run(system, "bind", DRIVE)
    good = Machine(system, 32 * MIB, memlock=64 * MIB, ring=lambda: "")
    assert [found for found in examine(good) if found.level != "ok"] == []
    assert run(system, "doctor", "--pool", "1").exit_code == 0


def test_doctor_says_why_there_is_no_io_uring(system: FakeSystem) -> None:
    healthy(system)
    machine = Machine(system, 32 * MIB, memlock=64 * MIB, ring=lambda: "io_uring: a seccomp filter forbids it")
    (found,) = [one for one in examine(machine) if one.check == "io_uring"]
    assert (found.level, found.message.partition("; ")[2]) == ("note", "io_uring: a seccomp filter forbids it")


def test_doctor_shows_what_would_be_decided_about_keepalive(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy(system)
    run(system, "bind", DRIVE)
    monkeypatch.setenv("OPENHCL_IGVM_VTL2_GPA_POOL_CONFIG", "release")
    monkeypatch.setenv("OPENHCL_VTL2_GPA_POOL_NUMA", "scatter")
    result = run(system, "doctor", "--pool", "1")
    assert result.exit_code == 1
    assert "OPENHCL_VTL2_GPA_POOL_NUMA: 'scatter' is not a way to spread" in result.stdout
    assert "-> unset OPENHCL_VTL2_GPA_POOL_NUMA" in result.stdout
    assert "pages (environment OPENHCL_IGVM_VTL2_GPA_POOL_CONFIG, release: 1 drive x (" in " ".join(
        result.stdout.split()
    )


def test_doctor_reads_the_lock_limit_of_the_machine_it_examines(system: FakeSystem) -> None:
    healthy(system)
    run(system, "bind", DRIVE)
    for limit, exit_code in (("65536", 1), ("unlimited", 0), (str(2 * MIB), 0)):
        (system.proc / "self/limits").write_text(f"Max locked memory         {limit}   unlimited   bytes\n")
        result = run(system, "doctor", "--pool", "1")
        assert result.exit_code == exit_code, result.output


def test_doctor_names_the_missing_module_and_the_command(system: FakeSystem) -> None:
    (system.dev / "vfio/vfio").unlink()
    checks = [(found.check, (found.fix or "").split(" &&")[0]) for found in problems(system)]
    assert checks == [
        ("module", "modprobe vfio-pci"),
        ("module", "modprobe vfio_iommu_type1"),
        ("container", "modprobe vfio"),
    ]
    result = run(system, "doctor", "-o", "json")
    assert result.exit_code == 1
    assert {"check", "level", "message", "fix"} == set(json.loads(result.output)[0])


@pytest.mark.parametrize(
    ("vendor", "options", "fix"),
    [
        ("GenuineIntel", "quiet", "intel_iommu=on iommu=pt"),
        ("GenuineIntel", "intel_iommu=on", "turn on VT-d in the firmware"),
        ("AuthenticAMD", "quiet", "turn on AMD-Vi"),
    ],
)
def test_doctor_explains_how_to_turn_the_iommu_on(tmp_path: Path, vendor: str, options: str, fix: str) -> None:
    system = FakeSystem(tmp_path)
    healthy(system)
    (system.proc / "cmdline").write_text(f"root=/dev/sda1 {options}\n")
    (system.proc / "cpuinfo").write_text(f"vendor_id : {vendor}\n")
    (found,) = problems(system)
    assert (found.check, fix in (found.fix or "")) == ("iommu", True)


def test_doctor_names_the_user_who_may_not_open_the_group(system: FakeSystem) -> None:
    healthy(system)
    run(system, "bind", DRIVE)
    system.denied.add("5")
    (found,) = problems(system)
    assert found.check == "permission"
    assert (found.fix or "").startswith(f"chown 1000 {system.dev}/vfio/5")


def test_doctor_names_the_blocking_sibling(system: FakeSystem) -> None:
    healthy(system)
    system.add_function("0000:00:05.1", 5)
    run(system, "bind", DRIVE)
    (found,) = problems(system)
    assert "shares IOMMU group 5 with 0000:00:05.1, which nvme drives" in found.message


def test_doctor_names_the_process_that_uses_a_group(system: FakeSystem) -> None:
    healthy(system)
    run(system, "bind", DRIVE)
    system.exclusive.add("5")
    assert problems(system) == []
    assert any("is in use by" in found.message for found in examine(Machine(system, MIB, memlock=MIB)))


def test_doctor_compares_the_memory_limit_with_the_pool(system: FakeSystem) -> None:
    healthy(system)
    (found,) = problems(system, memlock=8 * MIB)
    assert found.check == "memlock"
    assert "8 MiB" in found.message
    assert "32 MiB" in found.message
    assert "prlimit" in (found.fix or "")
    (system.proc / "self/status").write_text("Name:\tpython\nCapEff:\t0000000000004000\n")  # CAP_IPC_LOCK
    assert problems(system, memlock=8 * MIB) == []


def test_doctor_only_notes_missing_huge_pages(system: FakeSystem) -> None:
    healthy(system)
    (system.proc / "meminfo").write_text("HugePages_Free:        3\n")
    assert problems(system) == []
    (note,) = [found for found in examine(Machine(system, 32 * MIB, memlock=64 * MIB)) if found.check == "hugepages"]
    assert (note.level, note.fix) == ("note", "echo 16 > /proc/sys/vm/nr_hugepages")
