"""python repair_wheel.py WHEEL FOLDER DEBUG_FOLDER: a wheel that may be published.

The extensions' debug symbols go to DEBUG_FOLDER (a .debug file for each, found by its build id or
by gdb's `symbol-file`), the rest is stripped, and auditwheel checks what the extensions need of the
system and names the wheel after it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def strip(extension: Path, symbols: Path) -> None:
    symbols.parent.mkdir(parents=True, exist_ok=True)
    run("objcopy", "--only-keep-debug", extension, symbols)
    run("strip", "--strip-unneeded", extension)
    run("objcopy", f"--add-gnu-debuglink={symbols}", extension)


def repair(wheel: Path, folder: Path, debug: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        run(sys.executable, "-m", "wheel", "unpack", "--dest", scratch, wheel)
        (tree,) = Path(scratch).iterdir()
        for extension in sorted(tree.rglob("*.so")):
            strip(extension, debug / wheel.stem / f"{extension.name}.debug")
        run(sys.executable, "-m", "wheel", "pack", "--dest-dir", scratch, tree)
        (stripped,) = Path(scratch).glob("*.whl")
        run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder, stripped)


if __name__ == "__main__":
    wheel, folder, debug = map(Path, sys.argv[1:4])
    repair(wheel, folder, debug)
