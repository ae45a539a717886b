"""Successive drivers of a running controller, with verified writes across each change. QEMU's
trace must show one start, no stop, no reset and no recreated queue; the writers' journal must
show no acknowledged write lost, no block torn or stale.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import Host, Witness

KEPT = Path(__file__).with_name("kept.py")
PATIENCE = 90.0  # seconds, for anything
# What a controller sees of a driver that brings it up, resets it or shuts it down.
LIVES = ("start_success", "stopped", "shutdown_set")
CYCLES = 3


class Process:
    """A driver and its reports."""

    def __init__(self, uri: str, journal: Path, how: str, *more: str) -> None:
        self._log = journal.with_name(f"{how}-{time.monotonic_ns()}.log")
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, KEPT, uri, journal, how, *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._text = b""

    def wait_for(self, event: str) -> dict[str, Any]:
        """Waits for this event, which must be its next report."""
        assert self.popen.stdout is not None
        limit = time.monotonic() + PATIENCE
        while b"\n" not in self._text:
            ready, _, _ = select.select([self.popen.stdout], [], [], max(0.0, limit - time.monotonic()))
            data = os.read(self.popen.stdout.fileno(), 65536) if ready else b""
            if not data:
                self.kill()
                pytest.fail(f"{event!r} never came ({'ended' if ready else 'silent'}): {self._log.read_text()}")
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        entry: dict[str, Any] = json.loads(line)
        assert entry["event"] == event, entry.get("text", entry)
        return entry

    def tell(self, line: str) -> None:
        assert self.popen.stdin is not None
        os.write(self.popen.stdin.fileno(), line.encode() + b"\n")

    def kill(self) -> int:
        """The time in CLOCK_MONOTONIC nanoseconds."""
        instant = time.monotonic_ns()
        self.popen.kill()
        self.end()
        return instant

    def end(self) -> int:
        """Its exit status."""
        status = self.popen.wait(PATIENCE)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()
        return status


class Line:
    """The successive drivers of one controller."""

    def __init__(self, uri: str, folder: Path, keeper: Path) -> None:
        self._uri, self._journal, self._keeper = uri, folder / "journal", keeper
        self._sockets = 0
        self._processes: list[Process] = []
        self.pauses: list[float] = []  # milliseconds
        self.adopted = 0

    def start(self, how: str, *more: str) -> Process:
        process = Process(self._uri, self._journal, how, *more)
        self._processes.append(process)
        process.wait_for("standby")
        return process

    def first(self, way: str) -> Process:
        driver = self.start("new", *(["--keeper", str(self._keeper)] if way == "death" else []))
        opened = driver.wait_for("opened")
        assert opened["adopted"] == 0
        driver.wait_for("verified")
        return driver

    def next(self, way: str, driver: Process) -> Process:
        """A new driver has the controller, and has checked what the previous one left."""
        if way == "handover":
            self._sockets += 1
            place = self._journal.with_name(f"offer-{self._sockets}")
            driver.tell(f"handover {place}")
            driver.wait_for("offering")
            successor = self.start("take", "--socket", str(place))
            end = driver.wait_for("left")["last_ack"]
            driver.wait_for("closed")
            assert driver.end() == 0
        elif way == "exec":
            driver.tell("exec")
            successor, pid = driver, driver.popen.pid
            assert successor.wait_for("standby")["pid"] == pid
            end = 0
        else:
            successor = self.start("open", "--keeper", str(self._keeper))
            end = driver.kill()
        opened = successor.wait_for("opened")
        assert (opened["state"], opened["resets"], opened["failed"]) == ("ready", 0, 0)
        self.adopted += opened["adopted"]
        verified = successor.wait_for("verified")
        if end:
            self.pauses.append((verified["first_io"] - end) / 1e6)
        return successor

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def lives(seen: Witness) -> dict[str, int]:
    """From when the controller was enabled; opening a function of vfio-pci resets it before
    that.
    """
    names = seen.names()
    names = names[names.index("pci_nvme_mmio_start_success") :]
    return {name: names.count(f"pci_nvme_mmio_{name}") for name in LIVES} | {
        "pci_reset": names.count("pci_nvme_pci_reset")
    }


@pytest.mark.parametrize("way", ["handover", "exec", "death"])
def test_three_consecutive_takeovers(
    way: str, address: Callable[[str], str], host: Host, tmp_path: Path, keeper: Path
) -> None:
    line = Line(f"pci:{address('second')}", tmp_path, keeper)
    with host.witness() as seen:
        try:
            driver = line.first(way)
            created = seen.count("pci_nvme_create_cq")
            assert created == 5  # the home loop's, and one for each writing thread
            for _ in range(CYCLES):
                driver.tell("write")
                driver.wait_for("running")
                time.sleep(1)  # of I/O
                driver = line.next(way, driver)
            assert lives(seen) == {"start_success": 1, "stopped": 0, "shutdown_set": 0, "pci_reset": 0}
            assert seen.count("pci_nvme_create_cq") == created
            assert seen.count("pci_nvme_del_sq") == 0
            driver.tell("write")
            driver.wait_for("running")
            driver.tell("close")
            driver.wait_for("left")
            driver.wait_for("closed")
            assert driver.end() == 0
        finally:
            line.close()
        after = lives(seen)
        assert (after["start_success"], after["shutdown_set"], after["stopped"]) == (1, 1, 1)
        assert seen.complaints() == []
    print(
        f"{way}: {line.adopted} commands taken over; milliseconds from the last I/O or the kill to the "
        f"next: {line.pauses}"
    )
    assert line.adopted > 0


def test_without_a_keeper_death_is_a_reset(address: Callable[[str], str], host: Host, tmp_path: Path) -> None:
    """The kernel resets the function once no process holds it, before its memory is unmapped: no
    stray DMA, and no lost acknowledged write.
    """
    line = Line(f"pci:{address('second')}", tmp_path, tmp_path / "none")
    with host.witness() as seen:
        try:
            driver = line.first("handover")
            driver.tell("write")
            driver.wait_for("running")
            time.sleep(0.5)  # of I/O
            driver.kill()
            successor = line.start("open")
            assert successor.wait_for("opened")["adopted"] == 0
            successor.wait_for("verified")
            after = lives(seen)
            assert after["start_success"] == 2
            assert after["pci_reset"] >= 1
            successor.tell("write")
            successor.wait_for("running")
            successor.tell("close")
            successor.wait_for("left")
            successor.wait_for("closed")
            assert successor.end() == 0
        finally:
            line.close()
        assert seen.complaints() == []
