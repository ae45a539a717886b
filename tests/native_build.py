"""C programs of the tests. What was compiled is kept in build/tests, by what it was made from, so
that tests share it: with others of the same run, in any process, and with those of later runs.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILER = shutil.which("cc")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
FLAGS = ("-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")


@functools.cache
def folder() -> Path:
    """Where objects and programs are kept: build/tests, or a folder of this process."""
    path = ROOT / "build" / "tests"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        pass
    return path if os.access(path, os.W_OK) else Path(tempfile.mkdtemp(prefix="nvme_async-tests-"))


@functools.cache
def headers() -> bytes:
    """A digest of every header file: a change of one makes all objects anew."""
    found = sorted([*(ROOT / "ext").rglob("*.h"), *(ROOT / "tests" / "native").rglob("*.h")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in found)).digest()


@contextmanager
def _alone() -> Iterator[None]:
    with open(folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _named(suffix: str, *parts: bytes) -> Path:
    return folder() / (hashlib.sha256(b"\0".join(parts)).hexdigest()[:24] + suffix)


def _compiled(source: Path, flags: Sequence[str]) -> Path:
    assert COMPILER is not None
    target = _named(".o", COMPILER.encode(), headers(), "\0".join(flags).encode(), source.read_bytes())
    if not target.exists():
        subprocess.run([COMPILER, *flags, "-c", "-o", f"{target}.new", str(source)], check=True)
        os.rename(f"{target}.new", target)
    return target


def _options(flags: Sequence[str]) -> list[str]:
    return [f"-I{ROOT / 'ext'}", f"-I{ROOT / 'tests' / 'native' / 'emulator'}", *FLAGS, *flags]


def object_of(source: Path, *flags: str) -> Path:
    """A source file, compiled."""
    with _alone():
        return _compiled(source, _options(flags))


def program(
    sources: Sequence[Path], *flags: str, objects: Sequence[Path] = (), libraries: Sequence[str] = ("-lpthread",)
) -> Path:
    """An executable made of `sources`, compiled on all processors, and `objects`. It stays where it
    is.
    """
    assert COMPILER is not None
    with _alone(), ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda source: _compiled(source, _options(flags)), sorted(sources)))
        objects = [*compiled, *objects]
        names = "\0".join(path.name for path in objects)
        target = _named("", names.encode(), "\0".join([*flags, *libraries]).encode())
        if not target.exists():
            subprocess.run([COMPILER, *flags, "-o", f"{target}.new", *map(str, objects), *libraries], check=True)
            os.rename(f"{target}.new", target)
    return target
