"""Release 0.1, built from the project's history, and drivers of either release in processes of
their own.

The build is kept in build/releases, which git ignores. `make releases` makes it, once: it takes the
compiler and Cython, as the project's own does. Tests that need it are skipped where it is missing,
and where the history isn't there, as in a source archive.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from keeper_site import PREAMBLE, Driver, Site

ROOT = Path(__file__).parents[2]
RELEASE_0_1 = "387f736"
"""The commit that is release 0.1: the state of main before servicing was speeded up."""


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)


def folder_of(commit: str) -> Path:
    """Where that release is, or would be, for this interpreter."""
    return ROOT / "build" / "releases" / f"{commit}-{sys.implementation.cache_tag}"


def release(commit: str = RELEASE_0_1) -> Path:
    """The folder to import that release's nvme_async from. Skips the test where it is missing."""
    built = folder_of(commit)
    if not built.exists():
        pytest.skip(f"release 0.1 (commit {commit}) is not built: make releases")
    return built


def build(commit: str = RELEASE_0_1) -> Path:
    """Builds the release, unless it is there. SystemExit says why it can't be had."""
    if shutil.which("git") is None or _git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise SystemExit(f"release 0.1 (commit {commit}) is not in this tree's git history")
    built = folder_of(commit)
    built.parent.mkdir(parents=True, exist_ok=True)
    with open(built.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _build(commit, built)
    return built


def _build(commit: str, to: Path) -> None:
    source, wheels, unpacked = (to.with_suffix(suffix) for suffix in (".source", ".wheels", ".unpacked"))
    for folder in (source, wheels, unpacked):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir()
    archive = _git("archive", commit)
    assert archive.returncode == 0, archive.stderr
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    done = subprocess.run([*command, str(wheels), str(source)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"release 0.1 cannot be built here: {done.stderr[-2000:]}")
    [wheel] = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archived:
        archived.extractall(unpacked)
    unpacked.rename(to)
    shutil.rmtree(source)
    shutil.rmtree(wheels)


class ReleaseDriver(Driver):
    """A driver of the release in `folder`; None: of this tree. Its program is as of Driver."""

    def __init__(self, site: Site, body: str, folder: Path | None) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", program(site, body)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=site.folder,  # not this tree, which would be imported from
            env={**os.environ, "PYTHONPATH": str(folder or ROOT)},
        )
        self.pid = self.popen.pid
        site.drivers.append(self)


def program(site: Site, body: str) -> str:
    text = PREAMBLE + f"uri, keeper = {site.uri!r}, {site.keeper_path!r}\nasync def main():\n"
    return text + textwrap.indent(textwrap.dedent(body), "    ") + "\nasyncio.run(main())\n"


if __name__ == "__main__":
    print(build())
