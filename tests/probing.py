"""The extension module that tests and benchmarks measure native code with (tests/native/probe).

It is built when it is first asked for, with the compiler flags of setup.py, into build/ (with
sanitizers into build/sanitize/); never into a wheel.

    python tests/probing.py    builds it now
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "setup.py",
    "tests/native/probe/_probe.pyx",
    "ext/hotpath/prp.h",
    "ext/hotpath/waiting.h",
    "ext/hotpath/layout.h",
)


def built() -> Path:
    """The compiled module, no older than its sources."""
    folder = (
        ROOT
        / "build"
        / {"1": "sanitize/probe", "thread": "tsan/probe"}.get(os.environ.get("NVME_ASYNC_SANITIZE", ""), "probe")
    )
    module = folder / f"_probe{sysconfig.get_config_var('EXT_SUFFIX')}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # one process builds, others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = max((ROOT / source).stat().st_mtime for source in SOURCES)
        if not module.exists() or module.stat().st_mtime < newest:
            # The compiler is no program to be sanitized.
            environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            subprocess.run(
                [sys.executable, "setup.py", "--quiet", "build_ext", "--force", "--build-lib", str(folder)],
                cwd=ROOT,
                env={**environment, "NVME_ASYNC_PROBE": "1"},
                check=True,
                stdout=subprocess.DEVNULL,
            )
    return module


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_probe", built())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(built())
