"""Fixtures for the tests of the kernel's own NVMe driver on emulated controllers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from drive import Drive, find
from lab import Host

# Messages that the tests cause themselves, and the root disk after the reboot.
HARMLESS = re.compile(r"rescanning namespaces|resetting controller|mounting unchecked fs")
SERIOUS = re.compile(r"nvme|EXT4|I/O error|BUG|WARNING|rcu|hung task|lockup", re.IGNORECASE)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "after_reboot: runs once the guest has been rebooted")


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    with Host() as channel:
        yield channel


@pytest.fixture(scope="session")
def drive(host: Host) -> Callable[[str], Drive]:
    """A controller by its role; looked up each time, because the kernel renumbers."""
    return lambda role: find(host, role)


def kernel_log() -> list[str]:
    """The kernel's warnings and errors so far, about drives and about itself, without the
    harmless ones.
    """
    done = subprocess.run(
        ["dmesg", "--level=emerg,alert,crit,err,warn", "--notime"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if SERIOUS.search(line) and not HARMLESS.search(line)]


@pytest.fixture(autouse=True)
def quiet_kernel() -> Iterator[None]:
    """The kernel must have no complaint after any test."""
    before = len(kernel_log())
    yield
    new = kernel_log()[before:]
    assert not new, "the kernel said:\n" + "\n".join(new)
