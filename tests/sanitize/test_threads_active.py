"""ThreadSanitizer is active: its code is in the modules of ext/, and a race ends in a report."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_active import MODULES, ROOT, origin

RACE = """
    #include <pthread.h>
    int counter;
    static void *count(void *unused) {
        for (int i = 0; i < 1000; i++) counter++;
        return unused;
    }
    void race(void) {
        pthread_t other;
        pthread_create(&other, 0, count, 0);
        count(0);
        pthread_join(other, 0);
    }
"""


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_instrumented_and_not_the_ordinary_build(module: str) -> None:
    path = origin(module)
    assert path.parent != ROOT / "nvme_async" / "native"
    text = path.read_bytes()
    assert b"__tsan_read" in text
    assert b"__tsan_func_entry" in text


def test_a_race_in_a_library_of_this_interpreter_is_reported(tmp_path: Path) -> None:
    source, library = tmp_path / "race.c", tmp_path / "race.so"
    source.write_text(textwrap.dedent(RACE))
    unloaded = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    compiler = ["cc", "-g", "-O0", "-shared", "-fPIC", "-fsanitize=thread"]
    subprocess.run([*compiler, "-o", library, source], check=True, env=unloaded, timeout=60)
    options = os.environ["TSAN_OPTIONS"] + f":log_path={tmp_path}/report"
    program = f"import ctypes; ctypes.PyDLL({str(library)!r}).race()"
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "TSAN_OPTIONS": options}, timeout=120)
    assert done.returncode == 66
    [report] = tmp_path.glob("report.*")
    assert "data race" in report.read_text()
