"""The tree's wheel for the guest: built with its compiler and Python, so the ABI is right."""

from __future__ import annotations

import shutil
from pathlib import Path

from .image import TREE, Image, as_root, in_guest_root, run
from .packages import LabError

SOURCE = "build/src"  # in the guest's files; kept, so that a second build compiles only what changed


def tracked_files() -> list[Path]:
    """The tree's files as git would commit them: tracked, and new ones that are not ignored."""
    listing = run(["git", "-C", TREE, "ls-files", "--cached", "--others", "--exclude-standard", "-z"], timeout=60)
    names = [Path(name) for name in listing.split("\0") if name]
    return [name for name in names if (TREE / name).is_file()]


def _stage(image: Image) -> None:
    """Bring the build's copy of the sources up to date, times included, touching only what
    changed.
    """
    target = image.rootfs / SOURCE
    run(as_root(["mkdir", "-p", target]))
    wanted = [name for name in tracked_files() if name.parts[0] in ("ext", "nvme_async") or len(name.parts) == 1]
    archive = image.folder / "source.tar"
    listing = image.folder / "source.list"
    listing.write_text("".join(f"{name}\0" for name in wanted))
    run(["tar", "--create", "--file", archive, "--directory", TREE, "--null", "--files-from", listing])
    known = {path.relative_to(target) for path in target.rglob("*") if path.is_file()}
    stale = [name for name in known - set(wanted) if name.parts[0] in ("ext", "nvme_async") or len(name.parts) == 1]
    if stale:
        run(as_root(["rm", "-f", *(target / name for name in stale)]))
    run(as_root(["tar", "--extract", "--no-same-owner", "--file", archive, "--directory", target]))
    archive.unlink()
    listing.unlink()


def build(image: Image) -> Path:
    """Build the wheel and return its path on the host."""
    _stage(image)
    in_guest_root(
        image.rootfs,
        "printf '[build_ext]\\nparallel = 4\\n' >/build/parallel.cfg; export DIST_EXTRA_CONFIG=/build/parallel.cfg;"
        f"rm -rf /build/dist /{SOURCE}/*.egg-info; cd /{SOURCE};"
        " python -m pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir /build/dist .",
        timeout=1200,
    )
    built = list((image.rootfs / "build/dist").glob("nvme_async-*.whl"))
    if len(built) != 1:
        raise LabError(f"expected one wheel in {image.rootfs / 'build/dist'}, found {len(built)}")
    copy = image.folder / built[0].name
    shutil.copy(built[0], copy)
    return copy
