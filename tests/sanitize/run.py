"""Builds ext/ with sanitizers into a separate environment, and runs tests there: with ASan and
UBSan (`make sanitize`), or with ThreadSanitizer (`make tsan`).

    python tests/sanitize/run.py VENV [--threads] [arguments for pytest]

VENV is a virtual environment with the build dependencies. Everything that is compiled goes to
build/sanitize/ (build/tsan/ with --threads) and is installed into VENV, so that no object, and no
extension module, of the ordinary build is used or replaced. An interpreter that wasn't built with
sanitizers needs their run-time libraries preloaded; the compiler reports their paths.

ThreadSanitizer doesn't see the interpreter's own accesses, but its locks, so the global lock orders
what is done under it. It sees memory by address: host and emulated controller, which map the same
file at two addresses, are not compared.
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
TSAN_FOUND = 66
TSAN = {
    "exitcode": str(TSAN_FOUND),
    "die_after_fork": "0",  # children of a process with threads go on
    "history_size": "4",
    "second_deadlock_stack": "1",
}
# Not here: programs that are built without the extension modules. The first and the third have
# sanitizers of their own; the second counts its instructions from the start, among which the
# preloaded libraries' would be.
LEFT_OUT = (
    "tests/unit/test_emulator_core.py",
    "tests/unit/test_adopt_instructions.py",
    "tests/unit/test_fuzz_seeds.py",
)


def libraries(*names: str) -> list[str]:
    """The sanitizers' run-time libraries of the compiler that builds ext/."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    found = []
    for name in names:
        path = subprocess.run(
            [*compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()
        if not os.path.isabs(path):
            sys.exit(
                f"{shlex.join(compiler)} has no {name}: install gcc's sanitizer libraries "
                "(Debian: libasan, libubsan, libtsan)"
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


def install(python: Path, environment: dict[str, str]) -> None:
    """The installed package may have the same version but other contents."""
    pip = [python, "-m", "pip", "--quiet"]
    subprocess.run(
        [*pip, "uninstall", "--yes", "nvme_async"], cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL
    )
    subprocess.run([*pip, "install", "--no-build-isolation", ".[test]"], cwd=ROOT, env=environment, check=True)


def memory_environment() -> dict[str, str]:
    return {
        "LD_PRELOAD": " ".join(libraries("libasan.so", "libubsan.so")),
        "ASAN_OPTIONS": settings(ASAN),
        "UBSAN_OPTIONS": settings(UBSAN),
        # Every object is a separate malloc(), so that overflows are detected.
        "PYTHONMALLOC": "malloc",
    }


def threads_environment(reports: Path) -> dict[str, str]:
    """pytest would show what is written to stderr with the tests that fail only."""
    for old in reports.parent.glob(f"{reports.name}.*"):
        old.unlink()
    suppressions = ROOT / "tests" / "sanitize" / "threads.txt"
    return {
        "LD_PRELOAD": " ".join(libraries("libtsan.so")),
        "TSAN_OPTIONS": settings({**TSAN, "log_path": str(reports), "suppressions": str(suppressions)}),
    }


def main() -> int:
    python = Path(os.path.abspath(sys.argv[1])) / "bin" / "python"
    arguments = sys.argv[2:]
    threads = arguments[:1] == ["--threads"]
    if threads:
        del arguments[0]
    # Not from ROOT: its directory nvme_async is not the installed package.
    folder = ROOT / "build" / ("tsan" if threads else "sanitize") / "run"
    folder.mkdir(parents=True, exist_ok=True)
    reports = folder / "report"
    more = threads_environment(reports) if threads else memory_environment()
    environment = {**os.environ, "NVME_ASYNC_SANITIZE": "thread" if threads else "1"}
    install(python, environment)
    environment |= {**more, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    active = ROOT / "tests" / "sanitize" / ("test_threads_active.py" if threads else "test_active.py")
    for paths in ([active], chosen(arguments)):
        status = subprocess.run([*pytest, *paths], cwd=folder, env=environment, check=False).returncode
        if status:
            break
    found = sorted(folder.glob("report.*")) if threads else []
    for path in found:
        print(path.read_text(errors="replace"), file=sys.stderr)
    return status or (TSAN_FOUND if found else 0)


if __name__ == "__main__":
    sys.exit(main())
