"""The host's Debian packages: the only step that needs root."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Package → a program that shows it is there (none: ask dpkg).
NEEDED = {
    "git": "git",
    "python3-venv": None,
    "qemu-system-x86": "qemu-system-x86_64",
    "seabios": None,
    "mmdebstrap": "mmdebstrap",
    "e2fsprogs": "mke2fs",
    "uidmap": "newuidmap",
    "kmod": "depmod",
    "util-linux": "unshare",
    "tar": "tar",
}
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class LabError(Exception):
    """The lab can't work; the message says what to fix."""


def path() -> str:
    """PATH with the sbin directories, which an ordinary user's PATH lacks."""
    return os.environ.get("PATH", os.defpath) + ":" + SBIN


def _installed(package: str, program: str | None) -> bool:
    if package == "python3-venv" and importlib.util.find_spec("ensurepip") is not None:
        return True  # however this Python was installed
    if program is not None:
        return shutil.which(program, path=path()) is not None
    query = ["dpkg-query", "--show", "--showformat=${Status}", package]
    try:
        status = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise LabError("the VM lab needs a Debian-like system: there is no dpkg here") from None
    return status.stdout.endswith(" installed")


def ensure(also: Mapping[str, str | None] = {}) -> None:
    """Install what is missing, of NEEDED and `also`, with apt-get, through sudo if we are not
    root.
    """
    missing = [package for package, program in {**NEEDED, **also}.items() if not _installed(package, program)]
    if not missing:
        return
    if shutil.which("apt-get", path=path()) is None:
        raise LabError(
            f"the VM lab needs these programs, and there is no apt-get to install them: {', '.join(missing)}"
        )
    if os.geteuid() != 0 and shutil.which("sudo", path=path()) is None:
        names = " ".join(missing)
        raise LabError(
            "the VM lab needs packages; once, as root: apt-get update && apt-get install "
            f"--no-install-recommends {names}"
        )
    print(f"vm: installing {' '.join(missing)}", flush=True)
    update()
    _apt(["install", "--no-install-recommends", *missing])


def update() -> None:
    """apt-get update, as root or through sudo."""
    _apt(["update"])


def _apt(arguments: Sequence[str]) -> None:
    # sudo asks on the terminal, if there is one.
    prefix = [] if os.geteuid() == 0 else ["sudo"] if sys.stdin.isatty() else ["sudo", "--non-interactive"]
    if prefix and shutil.which("sudo", path=path()) is None:
        raise LabError(f"this has to be done once as root: apt-get {' '.join(arguments)}")
    command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes", *arguments]
    # An unreachable archive is an error, not only a warning that keeps the old lists.
    command += ["--option", "APT::Update::Error-Mode=any", "--option", "Acquire::Retries=3"]
    try:
        done = subprocess.run(
            command,
            timeout=900,
            check=False,
            text=True,
            errors="replace",
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(command)} took longer than 900 s: is there a network?") from None
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise LabError(
            f"{' '.join(command)} failed with {done.returncode} (is there a network? are you root?):\n{said}"
        )
