"""The emulated controller's core, driven in C without a transport (tests/native/emulator/check*.c),
under sanitizers.

The program is compiled once and asked for the names of its tests, each of which runs as a process
of its own.
"""

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXT = ROOT / "ext"
CHECKS = ROOT / "tests" / "native" / "emulator"
BENCHMARK = ROOT / "benchmarks" / "native" / "emulator.c"
COMPILER = shutil.which("cc")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


def compile_program(target: Path, programs: list[Path], *flags: str) -> Path:
    assert COMPILER is not None
    sources = sorted(
        map(str, [*programs, CHECKS / "fake_host.c", *(EXT / "emulator").glob("nvme_*.c"), *(EXT / "pi").glob("*.c")])
    )
    command = [
        COMPILER,
        f"-I{EXT}",
        f"-I{CHECKS}",
        "-std=gnu11",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-parameter",
        *flags,
    ]
    subprocess.run([*command, "-o", str(target), *sources, "-lpthread"], check=True)
    return target


@functools.cache
def names() -> tuple[str, ...]:
    """The tests that the sources declare. That the program has just these is a test of its own."""
    texts = (path.read_text() for path in sorted(CHECKS.glob("check_*.c")))
    lines = (line for text in texts for line in text.splitlines())
    return tuple(line[len("TEST(") : -1] for line in lines if line.startswith("TEST("))


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield compile_program(Path(folder) / "check", sorted(CHECKS.glob("check*.c")), "-O1", *SANITIZERS)


def test_every_declared_test_is_in_the_program(program: Path) -> None:
    listed = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    assert sorted(listed) == sorted(names())
    assert len(listed) > 40


@pytest.mark.parametrize("name", names())
def test_emulator_core(program: Path, name: str) -> None:
    result = subprocess.run([program, name], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_the_benchmark_runs(tmp_path: Path) -> None:
    bench = compile_program(tmp_path / "bench", [BENCHMARK], "-O2")
    output = subprocess.run([bench, "0.05"], check=True, capture_output=True, text=True, timeout=60).stdout
    lines = [line.split() for line in output.splitlines()]
    expected = [(medium, depth) for medium in ("null", "ram") for depth in ("QD1", "QD32", "QD128")]
    assert [(line[0], line[4]) for line in lines] == expected
    assert all(float(line[5]) > 0 for line in lines)
