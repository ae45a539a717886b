"""A successor takes over whatever a driver leaves that is killed between any two instructions: ext/hotpath/bench/check_kill.c."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

EXT = Path(__file__).parents[2] / "ext"
INSTRUCTIONS = 60_000
NO_PTRACE = 77


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    target = tmp_path_factory.mktemp("kill") / "check_kill"
    source = EXT / "hotpath" / "bench" / "check_kill.c"
    # Optimised as the extension is: the order of the stores is the compiler's choice where the code leaves it one.
    flags = ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", f"-I{EXT}"]
    subprocess.run([compiler, *flags, "-o", str(target), str(source)], check=True)
    return target


@pytest.mark.parametrize("doorbells", ["register", "shadow"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_between_any_two_instructions(program: Path, seed: int, doorbells: str) -> None:
    result = subprocess.run([program, str(seed), str(INSTRUCTIONS), doorbells], capture_output=True, text=True, timeout=120)
    if result.returncode == NO_PTRACE:
        pytest.skip("processes can't be traced here")
    assert result.returncode == 0, result.stderr
    states, _, deaths, _, commands, _ = result.stdout.split()
    assert (int(states) > 1000, int(deaths) > 10, int(commands) > 40) == (True, True, True)
