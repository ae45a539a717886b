"""Idle controllers: their cost on the host, and that they wake up."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable

import pytest
from drive import ROLES, Drive

Find = Callable[[str], Drive]


def test_an_idle_controller_costs_almost_nothing(drive: Find) -> None:
    """Its doorbells are stores to shared memory that wake no thread, so it has to poll
    occasionally.
    """
    drives = [drive(role) for role in ROLES]
    time.sleep(1.5)
    begin, before = time.monotonic(), {it.role: it.ask("cpu") for it in drives}
    time.sleep(6)
    after = {it.role: it.ask("cpu") for it in drives}
    share = {role: (after[role] - before[role]) / (time.monotonic() - begin) for role in before}
    assert all(part < 0.02 for part in share.values()), share


@pytest.mark.parametrize("role", ["ram-4k", "ram-512"])
def test_the_first_command_after_idling_is_not_late(drive: Find, role: str) -> None:
    """With and without shadow doorbells. A sleep is at most 2 ms; most of the measured time is
    the guest's own block layer and interrupt under emulation.
    """
    fd = os.open(drive(role).node(), os.O_RDONLY | os.O_DIRECT)
    try:
        page = mmap.mmap(-1, 4096)
        times = []
        for number in range(20):
            time.sleep(0.15)
            begin = time.monotonic()
            os.preadv(fd, [page], 4096 * number)
            times.append(time.monotonic() - begin)
    finally:
        os.close(fd)
    assert statistics.median(times) < 0.02, times
    assert max(times) < 1, times
