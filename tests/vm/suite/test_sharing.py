"""One controller, four processes, over VFIO: an owner and three workers that verify every block.
A worker is killed, then the owner. QEMU's trace is checked.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Host

WORKER = Path(__file__).resolve().parents[1] / "e2e" / "shared_worker.py"
PATIENCE = 240.0
NVME_ASYNC = [sys.executable, "-m", "nvme_async"]


class Worker:
    """A process that writes, reads and compares, and reports its progress."""

    def __init__(self, folder: Path, path: Path, seed: int) -> None:
        self._log = folder / f"worker-{seed}"
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, WORKER, path, str(seed), "pool_bytes=4194304"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def rounds(self) -> int:
        said = self._log.read_text()
        assert "wrong" not in said, said
        assert self.popen.poll() is None, said
        numbers = [line for line in said.splitlines()[:-1] if line.isdigit()]
        return int(numbers[-1]) if numbers else 0

    def progress(self) -> None:
        """Waits for rounds that start after now."""
        now = self.rounds()
        until(lambda: self.rounds() > now + 1)

    def end(self) -> tuple[int, int]:
        """(verified rounds, resets)."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        code = self.popen.wait(PATIENCE)
        said = self._log.read_text()
        assert code == 0, said
        words = said.split()
        return int(words[words.index("done") + 1]), int(words[words.index("resets") + 1])


def until(true: Callable[[], Any]) -> None:
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit, "it took too long"
        time.sleep(0.1)


def leases(path: Path) -> list[dict[str, Any]]:
    command = [*NVME_ASYNC, "share", "--socket", path, "--list", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["leases"]
    return found


@pytest.fixture
def start(tmp_path: Path, keeper: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts an owner of the device, and waits until it shares it."""
    owners: list[subprocess.Popen[str]] = []

    def start(uri: str) -> subprocess.Popen[str]:
        command = [*NVME_ASYNC, "--keeper", keeper, "share", uri, "--socket", tmp_path / "s", "--io-queues", "8"]
        owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        owners.append(owner)
        assert owner.stdout is not None
        assert "shared at" in owner.stdout.readline()
        return owner

    yield start
    for owner in owners:
        owner.kill()
        owner.communicate(timeout=PATIENCE)


@pytest.mark.timeout(900)  # Python's start alone takes long there, five times
def test_workers_survive_each_other_and_their_owner(
    address: Callable[[str], str], host: Host, tmp_path: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    uri, path = f"pci:{address('second')}", tmp_path / "s"
    owner = start(uri)
    workers: list[Worker] = []
    try:
        with host.witness() as seen:
            workers += [Worker(tmp_path, path, seed) for seed in (1, 2, 3)]
            for worker in workers:
                until(worker.rounds)
            created = seen.count("pci_nvme_create_sq")
            assert (created, seen.count("pci_nvme_del_sq")) == (3, 0)

            victim = workers.pop()
            victim.popen.kill()
            victim.popen.communicate()
            until(lambda: seen.count("pci_nvme_del_cq") == 1)
            until(lambda: len(leases(path)) == 2)
            for worker in workers:
                worker.progress()

            owner.kill()
            owner.wait()
            for worker in workers:
                worker.progress()  # there is no owner
            owner = start(uri)
            until(lambda: [lease["connected"] for lease in leases(path)] == [True, True])
            for worker in workers:
                worker.progress()
            # In all that time the controller was never stopped, reset or started, and no queue was
            # recreated.
            names = seen.names()
            for event in ("mmio_start_success", "mmio_stopped", "mmio_shutdown_set", "pci_reset"):
                assert f"pci_nvme_{event}" not in names
            assert names.count("pci_nvme_create_sq") == created
            assert names.count("pci_nvme_del_sq") == 1
            for worker in workers:
                rounds, resets = worker.end()
                assert (rounds > 5, resets) == (True, 0)
            until(lambda: not leases(path))
            assert seen.count("pci_nvme_del_sq") == 3
            owner.send_signal(signal.SIGTERM)
            assert owner.wait(PATIENCE) == 0
            assert seen.complaints() == []
    finally:
        for worker in workers:
            worker.popen.kill()
            worker.popen.communicate()
