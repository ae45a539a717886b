"""A QEMU that has `vfio-user-pci` (10.1 and newer), from Debian 13's backports, unpacked beside the
guest's image.

Nothing of it is installed or runs as root: its programs are started by its own dynamic loader with
its own
libraries, so sockets and files are the host's.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from .image import cache_folder, run
from .packages import LabError

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
WANTED = "qemu-system-x86,qemu-system-data,seabios,ovmf"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
DEVICE = "vfio-user-pci"
FORMAT = 1  # to be counted up when the code below makes something else of the same packages


@dataclass(frozen=True)
class NewQemu:
    """The unpacked program: `command` begins its command line, `environment` is to be added to
    ours.
    """

    root: Path

    @property
    def command(self) -> list[str]:
        return [
            *(f"{self.root}/usr/lib64/ld-linux-x86-64.so.2", "--library-path", f"{self.root}/{LIBRARIES}"),
            *(f"{self.root}/usr/bin/qemu-system-x86_64", "-L", f"{self.root}/usr/share/seabios"),
            *("-L", f"{self.root}/usr/share/qemu"),
        ]

    @property
    def environment(self) -> dict[str, str]:
        # The host may have a QEMU of its own, whose modules don't fit.
        return {"QEMU_MODULE_DIR": f"{self.root}/{LIBRARIES}/qemu"}

    def version(self) -> str:
        return run([*self.command, "--version"], timeout=60, env=self.environment).splitlines()[0]


def ensure() -> NewQemu:
    """The cached program, fetched if it isn't there. LabError when it can't be had."""
    digest = hashlib.sha256(f"{FORMAT} {SUITE} {WANTED}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"qemu-{digest}"
    if not (folder / "done").exists():
        _fetch(folder)
    return NewQemu(folder / "root")


def _fetch(folder: Path) -> None:
    print(f"vm: fetching a QEMU with {DEVICE} into {folder} (half a minute, once)", flush=True)
    if folder.exists():
        shutil.rmtree(folder)
    root, archive = folder / "root", folder / "root.tar"
    root.mkdir(parents=True)
    run(
        [
            # Unpacked only: no maintainer script runs, and no root is needed.
            *("mmdebstrap", "--variant=extract", f"--include={WANTED}", "--skip=output/dev"),
            *('--aptopt=APT::Install-Recommends "false"', f'--aptopt=APT::Default-Release "{SUITE}-backports"'),
            *(SUITE, archive, f"deb {MIRROR} {SUITE} main", f"deb {MIRROR} {SUITE}-backports main"),
        ]
    )
    run(["tar", "--extract", "--no-same-owner", "--file", archive, "--directory", root])
    archive.unlink()
    qemu = NewQemu(root)
    try:
        run([*qemu.command, "-device", f"{DEVICE},help"], timeout=60, env=qemu.environment)
    except LabError as error:
        raise LabError(f"the QEMU of {SUITE}-backports has no {DEVICE}: {error}") from None
    (folder / "done").write_text(qemu.version() + "\n")
