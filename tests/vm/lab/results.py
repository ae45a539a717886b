"""The guest's results: files, junit, and a short summary."""

from __future__ import annotations

import tarfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from .channel import trace_events
from .machine import Boot


@dataclass(frozen=True)
class Summary:
    """The tests that ran inside."""

    tests: int
    failures: int
    skipped: int
    seconds: float
    failed: tuple[str, ...]

    @property
    def passed(self) -> int:
        return self.tests - self.failures - self.skipped


def unpack(boot: Boot, target: Path) -> bool:
    """Extract the guest's files from its results disk; False if it never wrote them (then the
    disk is all zeroes).
    """
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(boot.results, "r:") as archive:  # not compressed: zeroes are five million empty lzma files
            if hasattr(tarfile, "data_filter"):
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(target)  # without filter=: Debian 12's Python is too old for it
    except tarfile.TarError:
        return False
    return (target / "status.json").exists()


def read_junit(junit: Path) -> Summary:
    """The counts, and the names of the failures."""
    root = ElementTree.parse(junit).getroot()
    suites = list(root.iter("testsuite"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in root.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]

    def total(name: str) -> float:
        return sum(float(suite.get(name, 0)) for suite in suites)

    return Summary(
        tests=int(total("tests")),
        failures=int(total("failures") + total("errors")),
        skipped=int(total("skipped")),
        seconds=total("time"),
        failed=tuple(failed),
    )


def iommu_faults(boot: Boot, target: Path) -> list[str]:
    """All complaints of the guest's kernel and of QEMU's IOMMU about a device's access."""
    faults = [f"{event} {text}" for event, text in trace_events(boot.trace) if event.startswith("vtd_")]
    stderr = (boot.folder / "qemu-stderr.log").read_text(errors="replace")
    faults += [line for line in stderr.splitlines() if "vtd" in line]
    log = target / "dmesg.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return faults + [line for line in lines if "DMAR:" in line and ("fault" in line or "[DMA" in line)]
