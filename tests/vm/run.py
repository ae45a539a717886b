#!/usr/bin/env python3
"""Run the tests over VFIO in the virtual machine: build what is missing, boot, report.

    python tests/vm/run.py                            everything
    python tests/vm/run.py -- -k identify -x          with these pytest arguments
    python tests/vm/run.py --command 'lspci -nn'      a shell command in the guest instead

Results (junit.xml, the guest's dmesg, QEMU's trace, the console) are left in results/vm.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lab import arguments, image, machine, packages, payload, results, wheel

KEPT = ("console.log", "qemu-trace.log", "qemu-stderr.log")


def parse() -> argparse.Namespace:
    return arguments.parser_of(__doc__, timeout=1500, results=image.TREE / "results" / "vm").parse_args()


def run(options: argparse.Namespace) -> int:
    packages.ensure()
    cache = image.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="nvme-async-vm-") as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one lab at a time works in this cache
        guest = image.ensure()
        started = time.monotonic()
        built = wheel.build(guest)
        print(f"vm: {built.name} built in {time.monotonic() - started:.0f} s; booting", flush=True)
        folder = Path(scratch)
        command = options.command or "/payload/guest/run-tests.sh " + shlex.join(options.pytest)
        disk = payload.make(folder, built, command)
        boot = machine.run(
            guest,
            folder,
            disk,
            timeout=options.timeout,
            accelerator=options.accelerator,
            verbose=options.verbose or bool(options.command),
        )
        return report(boot, options)


def report(boot: machine.Boot, options: argparse.Namespace) -> int:
    """Keep the results, print a summary; return the process's exit code."""
    target: Path = options.results
    if target.exists():
        shutil.rmtree(target)
    complete = results.unpack(boot, target)
    for name in KEPT:
        shutil.copy(boot.folder / name, target / name)
    problems = []
    if boot.timed_out:
        problems.append(f"the guest was killed after {boot.seconds:.0f} s")
    elif not complete:
        said = (target / "qemu-stderr.log").read_text(errors="replace").strip()
        problems.append(f"the guest ended without writing its results{': ' if said else ''}{said}")
    status = target / "status.json"
    code = json.loads(status.read_text())["exit"] if status.exists() else None
    if code:
        problems.append(f"the command in the guest ended with {code}")
    if faults := results.iommu_faults(boot, target):
        problems.append("the IOMMU refused accesses by a device:\n" + "\n".join(faults[:20]))
    junit = target / "junit.xml"
    if junit.exists():
        summary = results.read_junit(junit)
        print(
            f"vm: {summary.tests} tests ran inside the guest: {summary.passed} passed,"
            f" {summary.failures} failed, {summary.skipped} skipped, in {summary.seconds:.0f} s"
            f" (boot to power-off {boot.seconds:.0f} s); {target}"
        )
        problems += [f"failed: {name}" for name in summary.failed]
    elif options.command is None:
        problems.append("the guest left no junit.xml")
    if problems:
        if not options.verbose and options.command is None:
            print(f"vm: the end of the guest's console:\n{boot.console_tail()}")
        print("\n".join(f"vm: {problem}" for problem in problems), file=sys.stderr)
        return 1
    return 0


def main() -> int:
    try:
        return run(parse())
    except packages.LabError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
