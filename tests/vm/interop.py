#!/usr/bin/env python3
"""Run the NVMe drivers of the Linux kernel and of UEFI firmware on our emulated controllers, in a
guest of a QEMU with `vfio-user-pci`; then examples/vm_disk, in a guest whose disk is an export.

    python tests/vm/interop.py                        everything
    python tests/vm/interop.py -- -k fio -x           with these pytest arguments
    python tests/vm/interop.py --command 'nvme list'  a shell command in the guest instead

Results (junit, the guest's kernel log, the console, the controllers' counters) are left in
results/interop. If that QEMU isn't available (no network, no Debian), the run is skipped with a
message and exits with 0; --require makes that a failure.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lab import arguments, emulated, firmware, image, initiator, machine, newqemu, packages, payload, results, vm_disk

KEPT = ("console.log", "qemu-stderr.log")
SENT = {
    "tests/vm/kernel": "tests/kernel",
    "tests/vm/suite/lab.py": "tests/kernel/lab.py",
    "pyproject.toml": "pyproject.toml",
}


def parse() -> argparse.Namespace:
    parser = arguments.parser_of(__doc__, timeout=900, results=image.TREE / "results" / "interop")
    parser.add_argument("--require", action="store_true", help="fail, not skip, where the QEMU can't be had")
    return parser.parse_args()


def skip(why: str) -> None:
    bar = "!" * 100
    print(
        f"{bar}\ninterop: SKIPPED, the kernel's driver was NOT tried on our controllers: {why}\n{bar}", file=sys.stderr
    )


def run(options: argparse.Namespace) -> int:
    cache = image.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="nvme-async-interop-") as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one lab at a time works in this cache
        try:
            packages.ensure({**firmware.TOOLS, **vm_disk.TOOLS})
            guest = image.ensure()
            qemu = newqemu.ensure()
        except packages.LabError as error:
            if options.require:
                raise
            skip(str(error))
            return 0
        folder = Path(scratch)
        command = options.command or "/payload/guest/run-kernel-tests.sh " + shlex.join(options.pytest)
        disk = payload.make(folder, None, command, SENT)
        boot = machine.prepare(folder)
        with emulated.running(folder) as emulators:

            def ask(role: str, op: str, arguments: dict[str, Any]) -> Any:
                return emulators[role].call(op, arguments)

            print(f"interop: {qemu.version()}, {len(emulators)} emulated controllers; booting", flush=True)
            boot = machine.launch(
                initiator.command_line(qemu, guest, disk, boot, emulators, options.accelerator),
                boot,
                timeout=options.timeout,
                verbose=options.verbose or bool(options.command),
                environment=qemu.environment,
                emulator=ask,
            )
            counters = {name: emulator.call("counters", {}) for name, emulator in emulators.items()}
        code = report(boot, counters, options)
        if options.command is None and not options.pytest:
            problems = firmware.run(qemu, guest.kernel, folder, options.results)
            problems += vm_disk.run(qemu, guest.kernel, options.results)
            print("".join(f"interop: {problem}\n" for problem in problems), end="", file=sys.stderr)
            code = 1 if problems else code
        return code


def complaints(counters: Mapping[str, Any]) -> list[str]:
    """What no controller may have seen from a correct driver, and what it must have seen at the
    end.
    """
    found = []
    for role, seen in counters.items():
        found += [f"{role}: {name} is {seen[name]}" for name in ("fatals", "invalid_doorbells") if seen[name]]
        if not seen["shutdowns"]:
            found.append(f"{role}: the driver never shut it down")
    return found


def report(boot: machine.Boot, counters: dict[str, Any], options: argparse.Namespace) -> int:
    """Keep the results, print a summary; return the process's exit code."""
    target: Path = options.results
    if target.exists():
        shutil.rmtree(target)
    complete = results.unpack(boot, target)
    for source in (*(boot.folder / name for name in KEPT), *boot.folder.glob("emulator-*.log")):
        shutil.copy(source, target / source.name)
    (target / "counters.json").write_text(json.dumps(counters, indent=1))
    problems = complaints(counters) if options.command is None else []
    if boot.timed_out:
        problems.append(f"the guest was killed after {boot.seconds:.0f} s")
    elif not complete:
        problems.append("the guest ended without writing its results")
    status = target / "status.json"
    code = json.loads(status.read_text())["exit"] if status.exists() else None
    if code:
        problems.append(f"the command in the guest ended with {code}")
    for name in ("first.xml", "second.xml") if options.command is None else ():
        if not (target / name).exists():
            problems.append(f"the guest left no {name}")
            continue
        summary = results.read_junit(target / name)
        print(
            f"interop: {name}: {summary.tests} tests ran inside the guest: {summary.passed} passed,"
            f" {summary.failures} failed, {summary.skipped} skipped, in {summary.seconds:.0f} s"
        )
        problems += [f"failed: {test}" for test in summary.failed]
    print(f"interop: boot to power-off {boot.seconds:.0f} s; {target}")
    if problems:
        if not options.verbose and options.command is None:
            print(f"interop: the end of the guest's console:\n{boot.console_tail()}")
        print("\n".join(f"interop: {problem}" for problem in problems), file=sys.stderr)
        return 1
    return 0


def main() -> int:
    try:
        return run(parse())
    except packages.LabError as error:
        print(f"interop: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
