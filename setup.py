"""Builds the native code of nvme_async; everything else is in pyproject.toml.

Environment:
  NVME_ASYNC_SANITIZE=1   ASan and UBSan, built in build/sanitize (what `make sanitize` sets);
                          thread: ThreadSanitizer, in build/tsan (`make tsan`)
  NVME_ASYNC_WERROR=1     warnings in our own C are errors (what CI sets)
  NVME_ASYNC_DEBUG_SYMBOLS=1   debug symbols, which .ci/repair_wheel.py puts into files of their own
  NVME_ASYNC_FREE_THREADING=1  the extensions say that they need no global lock: a free-threaded
                               interpreter leaves it off. The job for 3.14t sets it; nothing else
                               does
  NVME_ASYNC_PROBE=1      only the extension that tests use (what tests/probing.py sets)
"""

import os
import re
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

CFLAGS = ["-O3", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
# Generated code is exempt from these warnings.
CYTHON_NOISE = [
    "-Wno-unused-function",
    "-Wno-missing-field-initializers",
    "-Wno-sign-compare",
    "-Wno-cast-function-type",
]
LDFLAGS: list[str] = []
FREE_THREADING = os.environ.get("NVME_ASYNC_FREE_THREADING") == "1"
BUILD = "build"
# Where the repository is published, as https://host/owner/name. Who publishes it sets this: the
# repository itself names no address. Without it the metadata have no URLs, and the README no links
# to files.
SOURCE = os.environ.get("NVME_ASYNC_SOURCE_URL", "").rstrip("/")

if os.environ.get("NVME_ASYNC_WERROR") == "1":
    CFLAGS.append("-Werror")
if os.environ.get("NVME_ASYNC_DEBUG_SYMBOLS") == "1":
    CFLAGS.append("-g")
if os.environ.get("NVME_ASYNC_SANITIZE") == "1":
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
    CFLAGS = [flag for flag in CFLAGS if flag != "-O3"] + ["-O1", *sanitizers]
    LDFLAGS += sanitizers
    BUILD = "build/sanitize"  # objects of the builds are never mixed
elif os.environ.get("NVME_ASYNC_SANITIZE") == "thread":
    # It doesn't model fences, and warns of them: they order what controllers see, in memory that
    # it doesn't compare.
    races = ["-fsanitize=thread", "-Wno-tsan", "-fno-omit-frame-pointer", "-g"]
    CFLAGS = [flag for flag in CFLAGS if flag != "-O3"] + ["-O1", *races]
    LDFLAGS += ["-fsanitize=thread"]
    BUILD = "build/tsan"


def shared() -> list[tuple[str, list[str]]]:
    """Man pages and shell completion, if `make man` has made them."""
    files = [path for path in glob("share/**/*", recursive=True) if os.path.isfile(path)]
    folders = sorted({os.path.dirname(path) for path in files})
    return [(folder, sorted(path for path in files if os.path.dirname(path) == folder)) for folder in folders]


def extension(name: str, folder: str) -> Extension:
    """nvme_async.native.NAME from every .pyx and .c in ext/FOLDER (NAME.c is what Cython makes of
    NAME.pyx).
    """
    sources = [f"ext/{folder}/{name}.pyx"]
    sources += [source for source in sorted(glob(f"ext/{folder}/*.c")) if not source.endswith(f"/{name}.c")]
    sources += sorted(glob("ext/pi/*.c")) if folder == "emulator" else []
    sources += ["ext/kernel/ring.c"] if folder == "ublk" else []
    return compiled(f"nvme_async.native.{name}", sources)


def compiled(name: str, sources: list[str]) -> Extension:
    return Extension(
        name,
        sources,
        depends=glob("ext/**/*.h", recursive=True)
        + glob("ext/**/*.pxi", recursive=True)
        + glob("nvme_async/native/*.pxd"),
        include_dirs=["ext"],
        extra_compile_args=CFLAGS + CYTHON_NOISE,
        extra_link_args=LDFLAGS,
        libraries=["pthread"],
    )


def readme() -> str:
    """README.md with links that work on PyPI too."""
    with open("README.md") as file:
        text = file.read()
    if SOURCE:
        return re.sub(r"\]\((?!https?:|#)", f"]({SOURCE}/blob/main/", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


def urls() -> dict[str, str]:
    """The project's URLs, as far as they are known."""
    files = f"{SOURCE}/blob/main"
    return (
        {
            "Source": SOURCE,
            "Issues": f"{SOURCE}/issues",
            "Documentation": f"{files}/docs/index.md",
            "Changelog": f"{files}/CHANGELOG.md",
        }
        if SOURCE
        else {}
    )


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls=urls(),
    ext_modules=cythonize(
        [compiled("_probe", ["tests/native/probe/_probe.pyx"])]
        if os.environ.get("NVME_ASYNC_PROBE") == "1"
        else [
            extension(name, folder)
            for name, folder in [
                ("_dma", "dma"),
                ("_mmio", "device"),
                ("_placement", "hotpath"),
                ("_hotpath", "hotpath"),
                ("_emulator", "emulator"),
                ("_fio", "fio"),
                ("_tcp", "tcp"),
                ("_kernel", "kernel"),
                ("_pi", "pi"),
                ("_nbd", "nbd"),
                ("_ublk", "ublk"),
            ]
            if glob(f"ext/{folder}/{name}.pyx")
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            "cdivision": True,
            "embedsignature": True,
            **({"freethreading_compatible": True} if FREE_THREADING else {}),
        },
        # Generated C stays outside the source tree, and two builds may run at once.
        build_dir=f"{BUILD}/cython",
    ),
    options={"build": {"build_base": BUILD}},
    data_files=shared(),
)
