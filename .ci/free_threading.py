"""Does the native half compile for a free-threaded interpreter? Syntax and types only: none was at
hand to run it with, but the headers of CPython 3.13 and later describe both builds.

python free_threading.py [INCLUDE]: the folder with Python.h; by default that of a python3.14 or
python3.13 on this machine. Exit code 1 if something doesn't compile, 2 without such headers.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASK = "import sysconfig; print(sysconfig.get_paths()['include'])"
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


def headers() -> str | None:
    """Where Python.h of 3.13 or later is."""
    interpreters = [found for found in map(shutil.which, ("python3.14", "python3.13")) if found]
    interpreters += sorted(map(str, PYENV.glob("3.1[34]*/bin/python3.1[34]")))
    for interpreter in interpreters:
        done = subprocess.run([interpreter, "-c", ASK], capture_output=True, text=True, check=False)
        folder = done.stdout.strip()
        if done.returncode == 0 and Path(folder, "Python.h").exists():
            return folder
    return None


def main() -> int:
    include = sys.argv[1] if sys.argv[1:] else headers()
    if include is None:
        print("free_threading: no headers of CPython 3.13 or later on this machine", file=sys.stderr)
        return 2
    sources = sorted((ROOT / "build" / "cython" / "ext").glob("*/_*.c"))
    if not sources:
        print("free_threading: nothing was built yet; run make all", file=sys.stderr)
        return 2
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    flags = ["-std=gnu11", "-fsyntax-only", "-w", "-DPy_GIL_DISABLED=1", f"-I{ROOT / 'ext'}", f"-I{include}"]
    failed = [path for path in sources if subprocess.run([*compiler, *flags, str(path)], check=False).returncode]
    print(f"free_threading: {len(sources) - len(failed)} of {len(sources)} extensions compile with {include}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
