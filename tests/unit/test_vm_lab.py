"""The host's half of the VM lab: what counts as a failure, and that it is reported."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import pytest

LAB = Path(__file__).parents[1] / "vm"


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The files that a guest left."""
    monkeypatch.syspath_prepend(str(LAB))
    for name in [name for name in sys.modules if name == "lab" or name.startswith("lab.")]:
        monkeypatch.delitem(sys.modules, name)
    from lab import machine

    boot = machine.prepare(tmp_path)
    (tmp_path / "qemu-stderr.log").touch()
    return boot


def leave(boot, **files: str) -> Path:
    """The guest's files as they arrive; names have _ instead of the dot."""
    from lab import results

    source = boot.folder / "guest"
    source.mkdir()
    for name, text in files.items():
        (source / name.replace("_", ".")).write_text(text)
    with tarfile.open(boot.results, "w") as archive:
        archive.add(source, ".")
    target = boot.folder / "target"
    assert results.unpack(boot, target) == ("status_json" in files)
    return target


def test_a_quiet_run_has_no_faults(boot) -> None:
    from lab import results

    boot.trace.write_text("12@1.5:pci_nvme_mmio_start_success setting controller enable bit succeeded\n")
    target = leave(boot, status_json="{}", dmesg_log="[ 0.1] DMAR: IOMMU enabled\n[ 0.2] DMAR: Host address width 39\n")
    assert results.iommu_faults(boot, target) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("dmesg", "[ 9.1] DMAR: DRHD: handling fault status reg 2"),
        ("dmesg", "[ 9.1] DMAR: [DMA Write NO_PASID] Request device [00:05.0] fault addr 0x100000000"),
        ("trace", "12@1.5:vtd_dmar_fault sid 0x28 fault 5 addr 0x100000000 write 1"),
        ("stderr", "qemu-system-x86_64: vtd_iova_to_slpte: detected IOVA overflow"),
    ],
)
def test_every_report_of_a_dma_fault_counts(boot, where: str, line: str) -> None:
    from lab import results

    target = leave(boot, status_json="{}", dmesg_log=f"{line}\n" if where == "dmesg" else "")
    if where == "trace":
        boot.trace.write_text(line + "\n")
    elif where == "stderr":
        (boot.folder / "qemu-stderr.log").write_text(line + "\n")
    assert len(results.iommu_faults(boot, target)) == 1


def test_a_guest_that_wrote_nothing_is_recognized(boot) -> None:
    from lab import results

    assert not results.unpack(boot, boot.folder / "empty")  # a disk of zeroes
    leave(boot, dmesg_log="")


def test_failures_and_errors_are_counted_by_name(boot) -> None:
    from lab import results

    junit = boot.folder / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite tests="4" failures="1" errors="1" skipped="1" time="2.5">'
        '<testcase classname="m" name="good"/>'
        '<testcase classname="m" name="bad"><failure/></testcase>'
        '<testcase classname="m" name="broken"><error/></testcase>'
        '<testcase classname="m" name="left"><skipped/></testcase></testsuite></testsuites>'
    )
    summary = results.read_junit(junit)
    assert (summary.tests, summary.passed, summary.failures, summary.skipped) == (4, 1, 2, 1)
    assert summary.failed == ("m::bad", "m::broken")


def test_missing_packages_are_named(boot, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab import packages

    monkeypatch.setattr(packages, "NEEDED", {"no-such-package": "no-such-program"})
    monkeypatch.setattr(packages, "path", lambda: "/nowhere")
    with pytest.raises(packages.LabError, match="no apt-get to install them: no-such-package"):
        packages.ensure()
