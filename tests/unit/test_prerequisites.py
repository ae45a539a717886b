"""The build's message on a machine that lacks something: one sentence, before anything is
built.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(compiler: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "prerequisites.py")]
    return subprocess.run(command, env={**os.environ, "CC": compiler}, capture_output=True, text=True)


def test_a_complete_machine_gets_no_message() -> None:
    done = run(os.environ.get("CC", "cc"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_compiler_is_named_with_the_packages() -> None:
    done = run("/nonexistent/cc -pthread")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "a C compiler (/nonexistent/cc)" in line
    assert "apt install make gcc python3-dev python3-venv" in line


@pytest.mark.parametrize(
    ("without", "named"),
    [("Python.h", "Python's header files (Python.h) are missing"), ("stdlib.h", "the C library's header files")],
)
def test_missing_headers_are_named(tmp_path: Path, without: str, named: str) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nfor source; do :; done\n! grep -q "{without}" "$source"\n')
    compiler.chmod(0o755)
    done = run(str(compiler))
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1
