"""The guest: a Debian 12 root disk and kernel, built once, cached by a hash of all that goes into
them.

The cache holds one directory per recipe: `rootfs/` (where wheels for the guest are also built),
`root.img`, `vmlinuz`. Without root the same steps run in a user namespace, in which this user
appears as root.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .packages import LabError, path, update

TREE = Path(__file__).resolve().parents[3]
GUEST = Path(__file__).resolve().parents[1] / "guest"

SUITE = "bookworm"
# gcc and python3-dev build the wheel; mdadm and dmsetup hold drives in the tests; fio and nvme-cli
# are what we compare with.
GUEST_PACKAGES = (
    "python3,python3-venv,python3-dev,gcc,libc6-dev,kmod,pciutils,procps,util-linux,"
    "fio,nvme-cli,mdadm,dmsetup,e2fsprogs"
)
# Debian 13's nvme-cli, whose JSON ours has to equal; it runs with its own libraries, as NVME_CLI.
NVME_CLI_SUITE = "trixie"
NVME_CLI_MIRROR = "http://deb.debian.org/debian"
NVME_CLI = "nvme-2.13"
# In addition to pyproject.toml's own dependencies and its test extra.
GUEST_PYTHON = ("caio", "Cython>=3.0", "setuptools>=77", "wheel")
NOT_IN_GUEST = ("mypy", "ruff")
IMAGE_SIZE = "1600M"
# Wheels are fetched for the guest's Python whatever the host's is.
PYTHON_VERSION = "3.11"
PLATFORMS = ["manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(17, 37))]
FORMAT = 1  # increase it when the code below makes something else from the same recipe


@dataclass(frozen=True)
class Image:
    """A built guest."""

    folder: Path

    @property
    def rootfs(self) -> Path:
        return self.folder / "rootfs"

    @property
    def disk(self) -> Path:
        return self.folder / "root.img"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"


def cache_folder() -> Path:
    """NVME_ASYNC_VM_CACHE, or .cache/vm in the tree."""
    return Path(os.environ.get("NVME_ASYNC_VM_CACHE") or TREE / ".cache" / "vm").resolve()


def requirements() -> list[str]:
    """What pip installs in the guest: the tree's run-time and test dependencies, and the lab's
    own.
    """
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"], *GUEST_PYTHON]
    return [line for line in wanted if re.split(r"[<>=!~\[ ]", line)[0] not in NOT_IN_GUEST]


def recipe() -> str:
    """Everything that decides what is in the image, as text."""
    init = (GUEST / "init.sh").read_text()
    return "\n".join(
        [
            str(FORMAT),
            SUITE,
            NVME_CLI_SUITE,
            NVME_CLI,
            GUEST_PACKAGES,
            *requirements(),
            IMAGE_SIZE,
            PYTHON_VERSION,
            init,
        ]
    )


def as_root(command: Sequence[str | Path]) -> list[str]:
    """The command as root, or as the root of a user namespace that maps this user."""
    plain = [str(part) for part in command]
    return plain if os.geteuid() == 0 else ["unshare", "--map-root-user", "--map-auto", "--", *plain]


def run(command: Sequence[str | Path], *, timeout: float = 900, env: dict[str, str] | None = None) -> str:
    """Run a command; return its output, or raise LabError with the end of it."""
    plain = [str(part) for part in command]
    try:
        done = subprocess.run(
            plain,
            timeout=timeout,
            check=False,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path(), "LC_ALL": "C.UTF-8", **(env or {})},
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(plain[:6])} … took longer than {timeout:.0f} s") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise LabError(f"{' '.join(plain[:8])} … failed with {done.returncode}:\n{tail}")
    return done.stdout


def in_guest_root(rootfs: Path, script: str, *, timeout: float = 900) -> str:
    """Run a shell script with the guest's files as its root (no network, no /proc)."""
    # The host's environment (CC, CFLAGS, PYTHONPATH, …) names programs and directories that the
    # guest doesn't have.
    environment = ["env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", "PATH=/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    return run(as_root(["chroot", rootfs, *environment, "/bin/sh", "-euc", script]), timeout=timeout)


def ensure() -> Image:
    """The cached image for the present recipe, built if it isn't there."""
    digest = hashlib.sha256(recipe().encode()).hexdigest()[:16]
    image = Image(cache_folder() / digest)
    if (image.folder / "done").exists():
        return image
    try:
        _build(image)
    except LabError as error:
        raise LabError(
            f"the guest can't be built (it takes Debian's archive and PyPI, by network, once): {error}"
        ) from None
    return image


def _build(image: Image) -> None:
    print(f"vm: building the guest in {image.folder} (about a minute, once)", flush=True)
    _remove(image.folder)
    image.folder.mkdir(parents=True)
    image.rootfs.mkdir()
    _bootstrap(image)
    _nvme_cli(image)
    _kernel(image)
    _python(image)
    shutil.copy(GUEST / "init.sh", image.rootfs / "init.sh")
    (image.rootfs / "init.sh").chmod(0o755)
    run(
        as_root(
            [
                "mke2fs",
                "-q",
                "-F",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                "-d",
                image.rootfs,
                image.disk,
                IMAGE_SIZE,
            ]
        )
    )
    (image.folder / "done").write_text(recipe())
    _forget_older(image)


def _bootstrap(image: Image) -> None:
    # Through a tar archive: without root mmdebstrap can only write archives, whose owners it maps
    # by itself.
    archive = image.folder / "rootfs.tar"
    run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={GUEST_PACKAGES}",
            "--skip=output/dev",
            SUITE,
            archive,
        ]
    )
    run(as_root(["tar", "--extract", "--numeric-owner", "--file", archive, "--directory", image.rootfs]))
    archive.unlink()
    in_guest_root(image.rootfs, "useradd --create-home --uid 1000 --shell /bin/sh tester")


def _nvme_cli(image: Image) -> None:
    """Unpack Debian 13's nvme-cli beside the guest's own, with its loader and libraries."""
    archive = image.folder / "nvme-cli.tar"
    # It is only unpacked: no maintainer script runs.
    command = ["mmdebstrap", "--variant=extract", "--include=nvme-cli", "--skip=output/dev"]
    command += ['--aptopt=APT::Install-Recommends "false"', NVME_CLI_SUITE, str(archive)]
    run([*command, f"deb {NVME_CLI_MIRROR} {NVME_CLI_SUITE} main"])
    place = image.rootfs / "opt" / NVME_CLI
    run(as_root(["mkdir", place]))
    libraries = ("./usr/lib/x86_64-linux-gnu", "./usr/lib64", "./usr/sbin/nvme")
    unpack = ["tar", "--extract", "--no-same-owner", "--file", archive, "--directory", place]
    run(as_root([*unpack, *libraries]))
    archive.unlink()
    root = f"/opt/{NVME_CLI}/usr"
    start = f"{root}/lib64/ld-linux-x86-64.so.2 --library-path {root}/lib/x86_64-linux-gnu {root}/sbin/nvme"
    script = f'#!/bin/sh\nexec {start} "$@"\n'
    in_guest_root(image.rootfs, f"printf '%s' {shlex.quote(script)} > /usr/local/bin/{NVME_CLI}")
    said = in_guest_root(image.rootfs, f"chmod 755 /usr/local/bin/{NVME_CLI} && /usr/local/bin/{NVME_CLI} version")
    if "nvme version 2.13" not in said:
        raise LabError(f"the nvme-cli of {NVME_CLI_SUITE} is not 2.13: {said}")


def _kernel(image: Image) -> None:
    """Unpack Debian's cloud kernel: NVMe and ext4 are built in (no initramfs), VFIO and virtio
    modules.
    """
    name = _kernel_package()
    if name is None:
        update()
        name = _kernel_package()
    if name is None:
        raise LabError("apt knows no linux-image-cloud-amd64: add Debian 12's main archive to /etc/apt/sources.list")
    folder = image.folder / "kernel"
    folder.mkdir()
    fetch = ["sh", "-c", 'cd "$1" && exec apt-get download --quiet "$2"', "sh", str(folder), name]
    try:
        run(fetch, timeout=600)
    except LabError:
        update()  # the lists were old: that version has been replaced
        run([*fetch[:-1], _kernel_package() or name], timeout=600)
    run(["dpkg", "--extract", next(folder.glob("*.deb")), folder / "files"])
    shutil.copy(next((folder / "files/boot").glob("vmlinuz-*")), image.kernel)
    modules = next((folder / "files/lib/modules").iterdir())
    run(as_root(["mkdir", "-p", image.rootfs / "lib/modules"]))
    run(as_root(["cp", "--recursive", modules, image.rootfs / "lib/modules"]))
    run(as_root(["depmod", "--basedir", image.rootfs, modules.name]))
    shutil.rmtree(folder)


def _kernel_package() -> str | None:
    """The package that Debian's cloud kernel is in; None if apt's lists don't say (yet)."""
    try:
        listing = run(["apt-cache", "depends", "linux-image-cloud-amd64"])
    except LabError:
        return None
    found = re.search(r"Depends: (linux-image-\S+)", listing)
    return found.group(1) if found else None


def _pip(image: Image) -> list[str | Path]:
    """A pip on the host: this Python's, or that of a virtual environment."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    venv = image.folder / "pip"
    run([sys.executable, "-m", "venv", venv])
    return [venv / "bin/python", "-m", "pip"]


def _python(image: Image) -> None:
    """A virtual environment in the image, of wheels fetched on the host (the guest has no net)."""
    wheels = image.folder / "wheels"
    run(
        [
            *(*_pip(image), "download", "--quiet", "--dest", wheels, "--only-binary=:all:"),
            *(
                "--implementation",
                "cp",
                "--python-version",
                PYTHON_VERSION,
                "--abi",
                "cp311",
                "--abi",
                "abi3",
            ),
            *("--abi", "none", *(part for name in PLATFORMS for part in ("--platform", name))),
            *requirements(),
        ]
    )
    run(as_root(["cp", "--recursive", wheels, image.rootfs / "wheels"]))
    names = " ".join(sorted(name.name for name in wheels.glob("*.whl")))
    in_guest_root(
        image.rootfs,
        "python3 -m venv /venv; cd /wheels; /venv/bin/python -m pip install --quiet --no-index "
        f"--no-deps {names}; cd /; rm -r /wheels",
    )
    shutil.rmtree(wheels)
    shutil.rmtree(image.folder / "pip", ignore_errors=True)


def _remove(folder: Path) -> None:
    if folder.exists():
        run(as_root(["rm", "-rf", folder]))


def _forget_older(image: Image) -> None:
    """Keep two recipes, so that switching between branches doesn't rebuild, and the cache stays
    small.
    """
    others = [folder for folder in image.folder.parent.iterdir() if folder != image.folder and folder.is_dir()]
    others = [folder for folder in others if re.fullmatch(r"[0-9a-f]{16}", folder.name)]
    for folder in sorted(others, key=lambda entry: entry.stat().st_mtime, reverse=True)[1:]:
        _remove(folder)
