#!/usr/bin/env python3
"""Instructions per I/O, counted by callgrind: the figure doesn't depend on the machine's load.

    python benchmarks/cost.py            compares with benchmarks/cost.json; exit code 1 if a
                                         figure grew by more than 10 %
    python benchmarks/cost.py --record   writes it

submit and reap are the C primitives (a 4 KiB read in a batch of 1 and of 32). The others are whole
awaited reads with a loop-back controller in the same process, and belong to one version of Python:
awaited is read(), readinto is readinto() into memory that the device reaches, 32 coroutines each,
on stock asyncio or uvloop; interrupt is a lone readinto() that sleeps until its eventfd is
readable, with the one callback of the loop in which the controller answers. --only readinto counts
those whose name contains it, besides the primitives.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import probing  # noqa: E402

RECORD = ROOT / "benchmarks" / "cost.json"
GROWTH = 1.10


def environment(folder: str) -> dict[str, str]:
    """Modules are compiled once: under callgrind that takes longer than what is counted."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPYCACHEPREFIX": f"{folder}/pycache"}


def callgrind(command: list[str], folder: str) -> str:
    """Path of the profile."""
    out = f"{folder}/callgrind.out"
    subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *command],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment(folder), "PYTHONHASHSEED": "0"},
    )
    return out


def inclusive(profile: str, function: str) -> int:
    """Instructions in `function` and its callees."""
    listing = subprocess.run(
        ["callgrind_annotate", "--inclusive=yes", profile], check=True, capture_output=True, text=True
    ).stdout
    for line in listing.splitlines():
        if function in line:
            return int(re.sub(r"[^0-9]", "", line.split("(")[0]))
    raise SystemExit(f"cost.py: {function} is not in callgrind's profile")


def total(profile: str) -> int:
    for line in Path(profile).read_text().splitlines():
        if line.startswith("summary:"):
            return int(line.split()[1])
    raise SystemExit("cost.py: no summary in callgrind's profile")


def primitives(folder: str) -> dict[str, float]:
    program = f"{folder}/cost"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        compiler = "cc"
    source = ROOT / "benchmarks" / "native" / "cost.c"
    subprocess.run([compiler, "-O3", "-std=gnu11", f"-I{ROOT / 'ext'}", str(source), "-o", program], check=True)
    figures = {}
    for depth in (1, 32):
        rounds = 2000
        profile = callgrind([program, str(rounds), str(depth)], folder)
        for name in ("submit", "reap"):
            figures[f"{name}_qd{depth}"] = round(inclusive(profile, f"cost_{name}") / (rounds * depth), 1)
    return figures


# Method, coroutines, by interrupt?
WORKLOADS = {
    "awaited_qd32": ("read", 32, False),
    "readinto_qd32": ("readinto", 32, False),
    "interrupt_qd1": ("readinto", 1, True),
}


def awaited(folder: str, only: str) -> dict[str, float]:
    # Far enough apart to hide the interpreter's start, which varies by some 10 million instructions
    # from run to run.
    counts = (4_000, 44_000)
    probing.built()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    figures = {}
    for workload in WORKLOADS:
        for loop in ("asyncio", "uvloop"):
            name = f"{workload}_python{version}" if loop == "asyncio" else f"{workload}_uvloop_python{version}"
            if only not in name:
                continue
            command = [sys.executable, __file__, "--loop", loop, "--workload", workload, "--count"]
            subprocess.run([*command, "32"], check=True, cwd=ROOT, env=environment(folder))
            totals = [total(callgrind([*command, str(count)], folder)) for count in counts]
            figures[name] = round((totals[1] - totals[0]) / (counts[1] - counts[0]), 0)
    return figures


def run(workload: str, loop: str, count: int) -> None:
    import asyncio

    import uvloop

    method, depth, by_interrupt = WORKLOADS[workload]

    async def main() -> None:
        running = asyncio.get_running_loop()
        event_fd = os.eventfd(0, os.EFD_NONBLOCK) if by_interrupt else -1
        device = probing.load().LoopBack(running, event_fd=event_fd)
        if by_interrupt:
            running.add_reader(event_fd, device.qp.on_interrupt)
        arguments = (0,) if method == "read" else (0, device.buffer)

        async def worker() -> None:
            call = getattr(device, method)
            for _ in range(count // depth):
                await call(*arguments)

        await asyncio.gather(*(worker() for _ in range(depth)))
        if by_interrupt:
            running.remove_reader(event_fd)
            os.close(event_fd)
        device.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT", help="only figures whose name contains it")
    parser.add_argument("--workload", choices=WORKLOADS, help=argparse.SUPPRESS)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.workload:
        run(options.workload, options.loop, options.count)
        return
    if shutil.which("valgrind") is None:
        raise SystemExit("cost.py: valgrind is not installed (apt-get install valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        figures = {**primitives(folder), **awaited(folder, options.only)}
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    worse = False
    for name, figure in figures.items():
        before = recorded.get(name)
        change = f"recorded {before}, {figure / before - 1:+.1%}" if before else "not recorded"
        print(f"{name}: {figure} instructions per I/O ({change})")
        worse = worse or bool(before and figure > before * GROWTH)
    if options.record:
        RECORD.write_text(json.dumps({**recorded, **figures}, indent=2, sort_keys=True) + "\n")
    elif worse:
        raise SystemExit("cost.py: a figure grew by more than 10 %")


if __name__ == "__main__":
    main()
