"""The emulated controller's core, driven in C without a transport (tests/native/emulator/check*.c),
under sanitizers.

The program is compiled once and lists its tests, each of which runs as a separate process.
"""

import functools
import subprocess
from pathlib import Path

import pytest
from native_build import COMPILER, ROOT, SANITIZERS, program

EXT = ROOT / "ext"
CHECKS = ROOT / "tests" / "native" / "emulator"
BENCHMARK = ROOT / "benchmarks" / "native" / "emulator.c"

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


def compile_core(*programs: Path) -> Path:
    core = [*(EXT / "emulator").glob("nvme_*.c"), *(EXT / "pi").glob("*.c"), CHECKS / "fake_host.c"]
    return program([*programs, *core], "-O1", *SANITIZERS)


@functools.cache
def names() -> tuple[str, ...]:
    """The tests that the sources declare. A separate test checks that the program has exactly
    these.
    """
    texts = (path.read_text() for path in sorted(CHECKS.glob("check_*.c")))
    lines = (line for text in texts for line in text.splitlines())
    return tuple(line[len("TEST(") : -1] for line in lines if line.startswith("TEST("))


@pytest.fixture(scope="module")
def checks() -> Path:
    return compile_core(*CHECKS.glob("check*.c"))


def test_every_declared_test_is_in_the_program(checks: Path) -> None:
    listed = subprocess.run([checks, "--list"], check=True, capture_output=True, text=True).stdout.split()
    assert sorted(listed) == sorted(names())
    assert len(listed) > 40


@pytest.mark.parametrize("name", names())
def test_emulator_core(checks: Path, name: str) -> None:
    result = subprocess.run([checks, name], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_the_benchmark_runs() -> None:
    bench = compile_core(BENCHMARK)
    output = subprocess.run([bench, "0.05"], check=True, capture_output=True, text=True, timeout=60).stdout
    lines = [line.split() for line in output.splitlines()]
    expected = [(medium, depth) for medium in ("null", "ram") for depth in ("QD1", "QD32", "QD128")]
    assert [(line[0], line[4]) for line in lines] == expected
    assert all(float(line[5]) > 0 for line in lines)
