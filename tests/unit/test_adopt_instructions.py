"""A successor takes over whatever a driver leaves that is killed between any two instructions:
tests/native/hotpath/check_kill.c.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

EXT = Path(__file__).parents[2] / "ext"
INSTRUCTIONS = 60_000
NO_PTRACE = 77
SEEDS = (1, 2, 3)
DOORBELLS = ("register", "shadow")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    target = tmp_path_factory.mktemp("kill") / "check_kill"
    source = Path(__file__).parents[1] / "native" / "hotpath" / "check_kill.c"
    # Optimised as the extension is: the order of the stores is the compiler's choice where the code
    # leaves it one.
    flags = ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", f"-I{EXT}"]
    subprocess.run([compiler, *flags, "-o", str(target), str(source)], check=True)
    return target


@pytest.fixture(scope="module")
def deaths(program: Path) -> Iterator[dict[tuple[int, str], Future[subprocess.CompletedProcess[str]]]]:
    """Of all seeds and kinds of doorbells, as many at a time as there are processors: each has a
    process that stops 60 000 times.
    """

    def die(seed: int, doorbells: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, str(seed), str(INSTRUCTIONS), doorbells], capture_output=True, text=True, timeout=120
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
