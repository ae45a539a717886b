"""A normal and a fused controller in one Manager, across a hand-over, an exec and a death with a
keeper: all writes are there, and neither controller noticed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fused_and_normal_process as process
import pytest
from keeper_site import Site, settings, site  # noqa: F401 - fixtures

from nvme_async.emulator import FOREVER, EmulatedController
from nvme_async.spec.opcodes import AdminOpcode, NvmOpcode

HELD = 3
"""A block whose write is held before each servicing: it is certainly in flight then."""


class Life:
    """One process."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-W", "error", process.__file__, *arguments]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def receive(self) -> list[str]:
        assert self.popen.stdout is not None
        words = self.popen.stdout.readline().split()
        assert words, f"the process ended with {self.popen.wait(60)}"
        return words

    def send(self, order: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(order + "\n")
        self.popen.stdin.flush()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate(timeout=60)


@pytest.fixture
def second(tmp_path: Path) -> Iterator[EmulatedController]:
    with EmulatedController("size=16MiB") as controller:
        controller.listen(tmp_path / "second")
        yield controller


def test_three_servicings(site: Site, second: EmulatedController, tmp_path: Path) -> None:  # noqa: F811
    emulators = [site.controller, second]
    journal = tmp_path / "journal"
    journal.write_bytes(bytes(2 * process.BLOCKS * process.ENTRY.size))
    arguments = [site.keeper_path, str(journal), str(tmp_path / "passing"), site.uri, f"vfio-user:{tmp_path}/second"]

    def acknowledged() -> list[int]:
        found = process.Journal(str(journal))
        return [sum(found.get(device, block)[1] for block in range(process.BLOCKS)) for device in range(2)]

    def counters() -> list[dict[str, Any]]:
        names = ("enables", "disables", "resets", "shutdowns", "invalid_doorbells")
        found = [emulator.faults.counters() for emulator in emulators]
        return [{name: one[name] for name in names} | {"identify": one["admin"][AdminOpcode.IDENTIFY]} for one in found]

    def hold_one_write() -> None:
        rules = [
            emulator.faults.add(queue="io", opcode=NvmOpcode.WRITE, cdw10=HELD, count=1, delay=FOREVER)
            for emulator in emulators
        ]
        for rule in rules:
            rule.wait(timeout=60)

    lives: list[Life] = []

    def check_successor(life: Life) -> None:
        assert life.receive() == ["up", "0", "1"]
        for emulator in emulators:
            emulator.faults.release()
        words = life.receive()
        assert words[0] == "verified"
        assert all(int(word) >= 1 for word in words[1:]), "nothing was in flight"
        assert counters() == before
        assert second.faults.counters()["admin"] == fused_admin

    try:
        life = Life("fresh", *arguments)
        lives.append(life)
        assert life.receive() == ["up", "0", "1"]
        assert life.receive() == ["verified", "0", "0"]
        before, fused_admin = counters(), second.faults.counters()["admin"]
        assert AdminOpcode.ASYNC_EVENT_REQUEST not in fused_admin

        hold_one_write()
        life.send("handover")
        assert life.receive() == ["listening"]
        successor = Life("handover", *arguments)
        lives.append(successor)
        check_successor(successor)
        assert life.receive() == ["closed"]

        hold_one_write()
        successor.send("exec")
        check_successor(successor)

        hold_one_write()
        done = acknowledged()
        successor.kill()
        last = Life("keeper", *arguments)
        lives.append(last)
        check_successor(last)
        assert all(now >= then > 0 for now, then in zip(acknowledged(), done, strict=True))
        last.send("close")
        assert last.receive() == ["closed"]
        assert [one["shutdowns"] for one in counters()] == [one["shutdowns"] + 1 for one in before]
    finally:
        for one in lives:
            one.kill()
