#!/usr/bin/env python3
"""Coverage-guided fuzzing of everything that reads what others wrote (`make fuzz`).

    python tests/fuzz/run.py [--seconds 120] [--target NAME …] [--jobs 2] [--list]

Targets in C are built with gcc's -fsanitize-coverage=trace-pc and the sanitizers, and driven by
driver.c; targets in Python need atheris (`pip install .[fuzz]`), and are left out with a notice
where there is none for this Python. `--seconds` is for all targets together. Exit code 1: a
crash; its input is in build/fuzz/crashes/TARGET-….
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
sys.path[:0] = [str(FUZZ), str(FUZZ.parent)]

import native_build  # noqa: E402
import python_targets  # noqa: E402
import seeds  # noqa: E402

EXT = native_build.ROOT / "ext"
WORK = native_build.ROOT / "build" / "fuzz"
REGRESSIONS = FUZZ / "regressions"
SOURCES = {
    "rings": (),
    "link": tuple((EXT / "tcp").glob("link*.c")),
    "server": (*(EXT / "emulator").glob("*.c"), *(EXT / "pi").glob("*.c")),
    "target": (*(EXT / "emulator").glob("*.c"), *(EXT / "pi").glob("*.c")),
}


def program(target: str) -> Path:
    """The executable of a target in C."""
    sources = [FUZZ / f"fuzz_{target}.c", *(path for path in SOURCES[target] if not path.name.startswith("_"))]
    driver = native_build.object_of(FUZZ / "driver.c", "-O3")
    flags = ("-O1", *native_build.SANITIZERS, "-fsanitize-coverage=trace-pc")
    return native_build.program(sources, *flags, objects=[driver], libraries=("-lpthread", "-lm"))


def inputs(target: str) -> list[bytes]:
    """Seeds, and what has led to crashes before."""
    made = seeds.TARGETS[target]() if target in seeds.TARGETS else python_targets.seeds(target)
    return made + [path.read_bytes() for path in sorted(REGRESSIONS.glob(f"{target}-*"))]


def corpus(target: str) -> list[str]:
    """Files with a target's inputs."""
    folder = WORK / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(inputs(target)):
        (folder / f"seed-{index}").write_bytes(data)
    return [str(path) for path in sorted(folder.iterdir())]


def saved(target: str, data: bytes) -> str:
    path = WORK / "crashes" / f"{target}-{abs(hash(data)):016x}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def in_c(target: str, seconds: float) -> str | None:
    """Fuzzes a target in C; where its crash is, or None."""
    crash = WORK / f"current-{target}"
    command = [str(program(target)), "--seconds", str(seconds), "--seed", str(os.getpid()), "--crash", str(crash)]
    done = subprocess.run([*command, *corpus(target)], capture_output=True, text=True, errors="replace")
    print(f"{target}: {done.stdout.strip()}", flush=True)
    if done.returncode == 0:
        return None
    text = crash.read_bytes() if crash.exists() else b""
    crash.unlink(missing_ok=True)
    where = saved(target, text[8 : 8 + int.from_bytes(text[:8], "little")])
    return f"{target}: exit code {done.returncode}, input {where}\n{done.stderr[-6000:]}"


def in_python(target: str, seconds: float) -> str | None:
    """The same for a target in Python."""
    corpus(target)
    artifacts = WORK / "crashes" / f"{target}-"
    artifacts.parent.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={max(1, int(seconds))}", "-max_len=8192", "-timeout=20", "-rss_limit_mb=1500"]
    command = [sys.executable, str(FUZZ / "python_targets.py"), target, *options, f"-artifact_prefix={artifacts}"]
    done = subprocess.run(
        [*command, str(WORK / "corpus" / target)], capture_output=True, text=True, errors="replace", cwd=WORK
    )
    last = [line for line in done.stderr.splitlines() if line.startswith("Done ") or "cov:" in line][-1:]
    print(f"{target}: {' '.join(last)}", flush=True)
    return f"{target}: exit code {done.returncode}\n{done.stderr[-6000:]}" if done.returncode else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="for all targets together (120)")
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args(arguments)
    if native_build.COMPILER is None:
        parser.error("needs a C compiler (cc)")
    known = [*SOURCES, *python_targets.TARGETS]
    targets = chosen.target or known
    if unknown := set(targets) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if chosen.list:
        print("\n".join(known))
        return 0
    if importlib.util.find_spec("atheris") is None and not set(targets) <= set(SOURCES):
        left_out = [target for target in targets if target not in SOURCES]
        print(f"atheris is not installed for this Python: {', '.join(left_out)} are left out", flush=True)
        targets = [target for target in targets if target in SOURCES]
    for target in targets:
        if target in SOURCES:
            program(target)
    seconds = chosen.seconds * chosen.jobs / max(1, len(targets))
    with ThreadPoolExecutor(chosen.jobs) as pool:
        found = list(pool.map(lambda target: (in_c if target in SOURCES else in_python)(target, seconds), targets))
    crashes = [one for one in found if one]
    print("\n\n".join(crashes) if crashes else f"{len(targets)} targets, no crash")
    return bool(crashes)


if __name__ == "__main__":
    sys.exit(main())
