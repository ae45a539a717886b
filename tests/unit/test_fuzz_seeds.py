"""Every seed of the fuzz targets, and every input that once led to a crash
(tests/fuzz/regressions), runs once.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"


@pytest.fixture(scope="module")
def run() -> ModuleType:
    sys.path.insert(0, str(FUZZ))
    return importlib.import_module("run")


C_TARGETS = ["rings", "link", "server", "target"]
PYTHON_TARGETS = [
    "pages", "saved_state", "manifest", "jobs", "arguments", "sharing", "vfio_user", "tcp_address", "tcp_handshake",
]  # fmt: skip


def test_every_target_is_replayed(run: ModuleType) -> None:
    assert list(run.SOURCES) == C_TARGETS
    assert list(run.python_targets.TARGETS) == PYTHON_TARGETS
    targets = {*C_TARGETS, *PYTHON_TARGETS}
    assert {path.name.split("-")[0] for path in run.REGRESSIONS.iterdir()} <= targets


@pytest.mark.parametrize("target", PYTHON_TARGETS)
def test_seeds_of_a_python_target(run: ModuleType, target: str) -> None:
    inputs = run.inputs(target)
    assert inputs
    for data in inputs:
        run.python_targets.once(target, data)


@pytest.mark.parametrize("target", C_TARGETS)
def test_seeds_of_a_target_in_c(run: ModuleType, target: str, tmp_path: Path) -> None:
    if run.native_build.COMPILER is None:
        pytest.skip("needs a C compiler")
    inputs = run.inputs(target)
    for index, data in enumerate(inputs):
        (tmp_path / f"{index}").write_bytes(data)
    command = [run.program(target), *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(inputs)} runs")
