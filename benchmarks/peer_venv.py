"""The virtual environment of benchmarks/peers.py: a Python that all peers have wheels for, the
peers, and this project.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 12)  # turbofile and urio need it
PACKAGES = ("uvloop", "caio", "aiofile", "liburing", "turbofile", "urio", "pyaio")
ONLY_CANDIDATES = ("pyaio",)  # has no release yet that pip would take without --pre


def folder(version: str) -> Path:
    return ROOT / "build" / f"peers-{version}"


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def existing() -> Path | None:
    """The newest one that is complete."""
    made = [venv for venv in (ROOT / "build").glob("peers-*") if (venv / "complete").exists()]
    return max(made, key=lambda venv: tuple(map(int, venv.name.partition("-")[2].split("."))), default=None)


def version_of(python: str) -> tuple[int, ...]:
    """(major, minor); () if that isn't a Python."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(map(int, done.stdout.split()))


def find_python() -> str:
    """A Python that is new enough: this one, one on PATH, or one of pyenv's."""
    found = [sys.executable]
    found += [path for minor in (14, 13, 12) if (path := shutil.which(f"python3.{minor}"))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found += [str(path) for path in sorted(pyenv.glob("3.1[2-9]*/bin/python"), reverse=True)]
    for python in found:
        if version_of(python) >= OLDEST:
            return python
    raise SystemExit(
        f"peers.py: turbofile and urio need Python {OLDEST[0]}.{OLDEST[1]} or newer, and there is none on PATH or in "
        f"{pyenv}; --python PATH names one"
    )


def pip(venv: Path, *arguments: str) -> str:
    """Why pip failed; "" if it did not."""
    command = [str(python_of(venv)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"


def install(python: str) -> Path:
    """Makes the environment, or completes it. A peer that can't be installed is named and left out;
    without this project there is nothing to compare, so that ends the program.
    """
    version = version_of(python)
    if version < OLDEST:
        raise SystemExit(f"peers.py: {python} is Python {'.'.join(map(str, version)) or '?'}, too old for turbofile")
    venv = folder(".".join(map(str, version)))
    if not python_of(venv).exists():
        subprocess.run([python, "-m", "venv", str(venv)], check=True)
    missing = []
    for package in PACKAGES:
        why = pip(venv, *(["--pre"] if package in ONLY_CANDIDATES else []), package)
        if why:
            missing.append(package)
            print(f"peers.py: {package} can't be installed: {why}", file=sys.stderr)
    if len(missing) == len(PACKAGES):
        raise SystemExit("peers.py: nothing could be installed: is there a network, or an index (PIP_INDEX_URL)?")
    print("peers.py: builds nvme_async for that Python, which takes some minutes", file=sys.stderr)
    if why := pip(venv, str(ROOT)):
        raise SystemExit(f"peers.py: nvme_async can't be built for {python}: {why}")
    (venv / "complete").touch()
    return venv


def enter(venv: Path, program: str, arguments: list[str]) -> None:
    """Runs `program` there instead of this process, unless this is that Python already."""
    if Path(sys.prefix).resolve() != venv.resolve():
        os.execv(str(python_of(venv)), [str(python_of(venv)), program, *arguments])
