"""The host's Debian packages: the only step that needs root."""

from __future__ import annotations

import os
import shutil
import subprocess

# Package → a program that shows it is there (none: ask dpkg).
NEEDED = {
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
    """The lab can't do its work; the message says what to mend."""


def path() -> str:
    """PATH with the sbin folders, which an ordinary user's lacks."""
    return os.environ.get("PATH", os.defpath) + ":" + SBIN


def _installed(package: str, program: str | None) -> bool:
    if program is not None:
        return shutil.which(program, path=path()) is not None
    query = ["dpkg-query", "--show", "--showformat=${Status}", package]
    try:
        status = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise LabError("the VM lab needs a Debian-like system: there is no dpkg here") from None
    return status.stdout.endswith(" installed")


def ensure() -> None:
    """Install what is missing with apt-get, through sudo if we are not root."""
    missing = [package for package, program in NEEDED.items() if not _installed(package, program)]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise LabError(f"the VM lab needs these programs, and there is no apt-get to install them: {', '.join(missing)}")
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    if prefix and shutil.which("sudo") is None:
        raise LabError(f"as root: apt-get install --no-install-recommends {' '.join(missing)}")
    print(f"vm: installing {' '.join(missing)}", flush=True)
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes"]
    for command in ([*apt, "update"], [*apt, "install", "--no-install-recommends", *missing]):
        try:
            subprocess.run(command, check=True, timeout=900, stdout=subprocess.DEVNULL)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise LabError(f"{' '.join(command)} failed: {error}") from None
