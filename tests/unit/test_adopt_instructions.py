"""A successor takes over from a driver that was killed between any two instructions:
tests/native/hotpath/check_kill.c.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from native_build import COMPILER, ROOT, program

INSTRUCTIONS = 60_000
NO_PTRACE = 77
SEEDS = (1, 2, 3)
DOORBELLS = ("register", "shadow")


@pytest.fixture(scope="module")
def check_kill() -> Path:
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    # Optimised like the extension, because the compiler may reorder stores where the code allows
    # it.
    return program([ROOT / "tests" / "native" / "hotpath" / "check_kill.c"], "-O3")


@pytest.fixture(scope="module")
def deaths(check_kill: Path) -> Iterator[dict[tuple[int, str], Future[subprocess.CompletedProcess[str]]]]:
    """All seeds and kinds of doorbells, one process per processor at a time; each process stops
    60 000 times.
    """

    def die(seed: int, doorbells: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [check_kill, str(seed), str(INSTRUCTIONS), doorbells], capture_output=True, text=True, timeout=120
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {(seed, doorbells): pool.submit(die, seed, doorbells) for seed in SEEDS for doorbells in DOORBELLS}


@pytest.mark.parametrize("doorbells", DOORBELLS)
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_between_any_two_instructions(
    deaths: dict[tuple[int, str], Future[subprocess.CompletedProcess[str]]], seed: int, doorbells: str
) -> None:
    result = deaths[seed, doorbells].result()
    if result.returncode == NO_PTRACE:
        pytest.skip("processes can't be traced here")
    assert result.returncode == 0, result.stderr
    states, _, died, _, commands, _ = result.stdout.split()
    assert (int(states) > 1000, int(died) > 10, int(commands) > 40) == (True, True, True)
