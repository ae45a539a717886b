"""Builds ext/ with ASan and UBSan into a separate environment, and runs the tests there
(`make sanitize`).

    python tests/sanitize/run.py VENV [arguments for pytest]

VENV is a virtual environment with the build dependencies. Everything that is compiled goes to
build/sanitize/ and is installed into VENV, so that no object, and no extension module, of the
ordinary build is used or replaced. An interpreter that wasn't built with sanitizers needs their
run-time libraries preloaded; the compiler reports their paths.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ASAN = {
    # CPython keeps interned and imported objects until the process ends.
    "detect_leaks": "0",
    "abort_on_error": "0",
    "exitcode": "99",
    # Freed memory is kept in quarantine for a while, as far as the machine has room.
    "quarantine_size_mb": "64",
    "strict_string_checks": "1",
    "detect_stack_use_after_return": "1",
    "allocator_may_return_null": "1",  # as malloc() does: callers must handle a failed allocation
}
UBSAN = {"print_stacktrace": "1", "halt_on_error": "1"}
# Not here: programs that are built without the extension modules. The first and the third have
# sanitizers of their own; the second counts its instructions from the start, among which the
# preloaded libraries' would be.
LEFT_OUT = (
    "tests/unit/test_emulator_core.py",
    "tests/unit/test_adopt_instructions.py",
    "tests/unit/test_fuzz_seeds.py",
)


def libraries() -> list[str]:
    """The sanitizers' run-time libraries of the compiler that builds ext/."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    found = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run(
            [*compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()
        if not os.path.isabs(path):
            sys.exit(
                f"{shlex.join(compiler)} has no {name}: install gcc's sanitizer libraries (Debian: libasan, libubsan)"
            )
        found.append(os.path.realpath(path))
    return found


def settings(options: dict[str, str]) -> str:
    return ":".join(f"{name}={value}" for name, value in options.items())


def chosen(arguments: list[str]) -> list[str | Path]:
    """pytest's arguments: paths and test ids are relative to ROOT; all tests if there are
    none.
    """
    ids = [argument for argument in arguments if (ROOT / argument.split("::")[0]).exists()]
    others = [argument for argument in arguments if argument not in ids]
    return [
        *others,
        *(f"--ignore={ROOT / path}" for path in LEFT_OUT),
        *([ROOT / name for name in ids] or [ROOT / "tests"]),
    ]


def main() -> int:
    python = Path(os.path.abspath(sys.argv[1])) / "bin" / "python"
    preload = libraries()
    environment = {**os.environ, "NVME_ASYNC_SANITIZE": "1"}
    pip = [python, "-m", "pip", "--quiet"]
    # The installed package may have the same version but other contents.
    subprocess.run(
        [*pip, "uninstall", "--yes", "nvme_async"], cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL
    )
    subprocess.run([*pip, "install", "--no-build-isolation", ".[test]"], cwd=ROOT, env=environment, check=True)
    environment |= {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": settings(ASAN),
        "UBSAN_OPTIONS": settings(UBSAN),
        # Every object is a separate malloc(), so that overflows are detected.
        "PYTHONMALLOC": "malloc",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment.pop("PYTHONPATH", None)
    # Not from ROOT: its directory nvme_async is not the installed package.
    folder = ROOT / "build" / "sanitize" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    for arguments in ([ROOT / "tests" / "sanitize"], chosen(sys.argv[2:])):
        status = subprocess.run([*pytest, *arguments], cwd=folder, env=environment, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
