"""Debian 13's kernel for the guest, which has modules that Debian 12's lacks (ublk_drv).

It boots the same root disk: the kernel's modules are a drive of their own, which init.sh mounts.
Nothing is installed, and the host's apt is left as it is: the package comes through lists in a
folder of ours.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .image import as_root, cache_folder, run
from .packages import LabError

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# The cloud flavour: NVMe and ext4 are built in, so it needs no initramfs.
PACKAGE = "linux-image-cloud-amd64"
SIZE = "300M"
FORMAT = 1  # increase it when the code below makes something else of the same package


@dataclass(frozen=True)
class NewKernel:
    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def modules(self) -> Path:
        """A file system whose root is /lib/modules."""
        return self.folder / "modules.img"


def ensure(*, backports: bool = False) -> NewKernel:
    """The cached kernel, fetched if necessary. LabError if it isn't available."""
    suite = f"{SUITE}-backports" if backports else SUITE
    digest = hashlib.sha256(f"{FORMAT} {suite} {PACKAGE}".encode()).hexdigest()[:12]
    found = NewKernel(cache_folder() / f"kernel-{digest}")
    if not (found.folder / "done").exists():
        _fetch(found, suite)
    return found


def _fetch(wanted: NewKernel, suite: str) -> None:
    print(f"vm: fetching {suite}'s kernel into {wanted.folder} (20 seconds, once)", flush=True)
    if wanted.folder.exists():
        shutil.rmtree(wanted.folder)
    apt = wanted.folder / "apt"
    (apt / "lists/partial").mkdir(parents=True)
    (apt / "archives/partial").mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {suite} main\n")
    options = [
        *("-o", f"Dir::Etc::SourceList={apt}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null"),
        *("-o", f"Dir::State={apt}", "-o", f"Dir::State::Lists={apt}/lists", "-o", f"Dir::State::Status={apt}/status"),
        *("-o", f"Dir::Cache={apt}", "-o", f"Dir::Cache::Archives={apt}/archives", "-o", "Acquire::Languages=none"),
        *("-o", "APT::Update::Error-Mode=any", "-o", "Acquire::Retries=3"),
        # Its own user can't write to a folder of ours.
        *(("-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()),
    ]
    run(["apt-get", *options, "--quiet", "update"])
    listing = run(["apt-cache", *options, "depends", PACKAGE])
    package = re.search(r"Depends: (linux-image-\S+)", listing)
    if package is None:
        raise LabError(f"{suite} has no {PACKAGE}")
    fetch = ["sh", "-c", 'cd "$1" && shift && exec apt-get "$@"', "sh", apt, *options, "--quiet", "download"]
    # Debian's newer kernels are in packages of their own.
    parts = re.findall(r"Depends: (linux-(?:binary|modules)-\S+)", run(["apt-cache", *options, "depends", package[1]]))
    run([*fetch, package[1], *parts])
    files = wanted.folder / "files"
    for part in apt.glob("*.deb"):
        run(["dpkg", "--extract", part, files])
    kernel = next((path for path in files.rglob("vmlinuz*") if path.is_file()), None)
    if kernel is None:
        raise LabError(f"{package[1]} has no kernel")
    shutil.copy(kernel, wanted.kernel)
    modules = next(path for path in (files / "lib/modules", files / "usr/lib/modules") if path.exists())
    base = wanted.folder / "base"
    (base / "lib").mkdir(parents=True)
    shutil.move(modules, base / "lib/modules")
    run(["depmod", "--basedir", base, next((base / "lib/modules").iterdir()).name])
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0"]
    run(as_root([*make, "-d", base / "lib/modules", wanted.modules, SIZE]))
    for folder in (apt, files, base):
        shutil.rmtree(folder)
    (wanted.folder / "done").write_text(package[1] + "\n")
