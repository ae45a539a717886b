"""The guest reboots: the kernel shuts the controllers down, firmware and kernel find them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from drive import KEEPS_DATA, ROLES, Drive

Find = Callable[[str], Drive]
NOTES = Path("/results/before-reboot.json")
LENGTH = 2 << 20


def digest(it: Drive) -> str:
    with it.node().open("rb") as device:
        device.seek(4 << 20)
        return hashlib.sha256(device.read(LENGTH)).hexdigest()


def test_take_notes_before(drive: Find) -> None:
    notes = {role: {"digest": digest(drive(role)), "counters": drive(role).ask("counters")} for role in ROLES}
    NOTES.write_text(json.dumps(notes))


@pytest.mark.after_reboot
@pytest.mark.parametrize("role", ROLES)
def test_the_driver_shut_the_controller_down_before_the_reboot(drive: Find, role: str) -> None:
    before, now = json.loads(NOTES.read_text())[role]["counters"], drive(role).ask("counters")
    assert now["shutdowns"] > before["shutdowns"]
    assert now["enables"] > before["enables"]


@pytest.mark.after_reboot
@pytest.mark.parametrize("role", KEEPS_DATA)
def test_data_outlives_the_reboot(drive: Find, role: str) -> None:
    assert digest(drive(role)) == json.loads(NOTES.read_text())[role]["digest"]
