"""A QEMU that has `vfio-user-pci` (10.1 and newer), from Debian 13's backports, unpacked beside the
guest's image.

Nothing of it is installed or runs as root: its own dynamic loader starts its programs with its own
libraries, so they use the host's sockets and files.
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
FORMAT = 1  # increase it when the code below makes something else of the same packages


@dataclass(frozen=True)
class NewQemu:
    """The unpacked program: `command` starts its command line, `environment` is added to ours."""

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
        # The host may have its own QEMU, whose modules don't match.
        return {"QEMU_MODULE_DIR": f"{self.root}/{LIBRARIES}/qemu"}

    def version(self) -> str:
        return run([*self.command, "--version"], timeout=60, env=self.environment).splitlines()[0]


def ensure() -> NewQemu:
    """The cached program, fetched if necessary. LabError if it isn't available."""
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
            # It is only unpacked: no maintainer script runs, and no root is needed.
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
