"""mypy --strict accepts right.py, reports every mistake of mistakes.py, and accepts the examples.

The same with pyright, by hand: npx pyright -p tests/typing; and how complete the public types are:
npx pyright --verifytypes nvme_async --ignoreexternal.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import nvme_async
from nvme_async.driver.options import DriverOptions, Options, TakeOverOptions
from nvme_async.keepalive.opening import KeepaliveOptions, OpenOptions, ServiceOptions
from nvme_async.manager.settings import ManagerOptions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def mypy(*paths: Path, version: str = "3.12") -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--explicit-package-bases"]
    command += ["--python-version", version, *map(str, paths)]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "examples" / "kvstore")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_mypy_accepts_what_is_right_and_reports_each_mistake() -> None:
    examples = list((ROOT / "examples").rglob("*.py"))
    assert mypy(HERE / "right.py", HERE / "mistakes.py", *examples) == ""


def test_a_mistake_that_went_unnoticed_would_fail(tmp_path: Path) -> None:
    """The method itself: a comment that isn't needed is reported."""
    program = tmp_path / "fine.py"
    program.write_text("import nvme_async\nnvme_async.open('emulated:', mode='poll')  # type: ignore[arg-type]\n")
    assert "unused-ignore" in mypy(program)


def fields(cls: type) -> set[str]:
    return {field.name for field in attrs.fields(cls)}


def test_the_typed_keywords_are_those_there_are() -> None:
    own = {"keepalive", "always_flr"}
    assert set(DriverOptions.__annotations__) == fields(Options) - own
    assert set(TakeOverOptions.__annotations__) - set(DriverOptions.__annotations__) == own
    assert set(OpenOptions.__annotations__) == fields(Options) | fields(KeepaliveOptions)
    assert set(ServiceOptions.__annotations__) == set(OpenOptions.__annotations__) - {"keepalive"}
    explicit = {n for n, p in inspect.signature(nvme_async.open).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert explicit == fields(KeepaliveOptions)
    manager = {n for n, p in inspect.signature(nvme_async.Manager).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert set(ManagerOptions.__annotations__) == set(OpenOptions.__annotations__) | manager
    for name, annotation in DriverOptions.__annotations__.items():
        assert str(annotation.__forward_arg__) == Options.__annotations__[name], name


PUBLIC = [
    nvme_async.Namespace,
    nvme_async.ManagedNamespace,
    nvme_async.AsyncNamespace,
    nvme_async.Controller,
    nvme_async.Manager,
    nvme_async.ManagedDevice,
    nvme_async.ByteStream,
    nvme_async.NamespaceFile,
    nvme_async.Many,
]
# Plain data for people and tools; and methods whose overloads say what they take.
LOOSE = {"inspect", "inspect_with_registers", "submit", "read_many"}


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_nothing_is_any(cls: type) -> None:
    """Coroutines' first two parameters, which asyncio leaves open, don't count."""
    for name, function in inspect.getmembers(cls, inspect.isfunction):
        if name.startswith("_") or name in LOOSE:
            continue
        text = " ".join(str(value) for value in function.__annotations__.values())
        assert "Any" not in re.sub(r"Coroutine\[Any, Any,", "Coroutine[", text), f"{cls.__name__}.{name}: {text}"
