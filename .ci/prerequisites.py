"""Names what the build needs and this machine lacks, in one sentence, with exit code 2. `make`
runs it first.

Simple enough for any Python 3, so that an old one can report that it is too old.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile

PACKAGES = "apt install make gcc python3-dev python3-venv (Debian, Ubuntu), dnf install make gcc python3-devel (Fedora)"


def compiles(compiler, header):
    """Whether the compiler finds a header file."""
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "try.c")
        with open(source, "w") as file:
            file.write(f"#include <{header}>\n")
        command = [*compiler, "-fsyntax-only", "-I" + sysconfig.get_paths()["include"], source]
        return subprocess.call(command, stderr=subprocess.DEVNULL) == 0


def missing():
    """The missing requirements, as text."""
    found = []
    try:
        import ensurepip  # noqa: F401  (Debian has it in a separate package)
        import venv  # noqa: F401
    except ImportError:
        found.append("Python's venv module")
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        found.append(f"a C compiler ({compiler[0]})")
        header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
        if not os.path.exists(header):
            found.append("Python's header files (Python.h)")
    elif not compiles(compiler, "stdlib.h"):
        found.append("the C library's header files (stdlib.h)")
    elif not compiles(compiler, "Python.h"):
        found.append("Python's header files (Python.h)")
    return found


if __name__ == "__main__":
    lacks = missing()
    if lacks:
        verb = "is" if len(lacks) == 1 and "files" not in lacks[0] else "are"
        sentence = "The build cannot start: {} {} missing; {}."
        print(sentence.format(" and ".join(lacks), verb, PACKAGES), file=sys.stderr)
        sys.exit(2)
