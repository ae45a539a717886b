#!/usr/bin/env python3
"""Run the tests of block devices (ublk) in a guest with Debian 13's kernel: build what is missing,
boot, report.

    python tests/vm/disk.py                            everything
    python tests/vm/disk.py --kills 200 --handovers 100
                                                       so many of them under a mounted file system
    python tests/vm/disk.py --backports                with the kernel of Debian 13's backports
    python tests/vm/disk.py -- -k kills -x             with these pytest arguments
    python tests/vm/disk.py --command 'uname -r'       a shell command in the guest instead

Results (junit.xml, the guest's dmesg, QEMU's trace, the console) are left in results/disk.
"""

from __future__ import annotations

import argparse
import fcntl
import shlex
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lab import arguments, disk_guest, image, machine, newkernel, newqemu, packages, payload, wheel
from run import report

# Linux numbers NVMe controllers in the order in which their asynchronous probes begin. Another than
# the root disk's may become nvme0: the guest can't mount its root then, and boots again.
ATTEMPTS = 8
SENT = {
    "tests/vm/disk": "tests/disk",
    "tests/vm/suite/lab.py": "tests/disk/lab.py",
    "tests/vm/suite/conftest.py": "tests/disk/conftest.py",
    "tests/vm/suite/values.py": "tests/disk/values.py",
    "tests/vm/suite/test_zoned.py": "tests/disk/test_zoned.py",
    "benchmarks": "benchmarks",
    "pyproject.toml": "pyproject.toml",
}


def parse() -> argparse.Namespace:
    parser = arguments.parser_of(__doc__, timeout=900, results=image.TREE / "results" / "disk")
    parser.add_argument("--kills", type=int, default=8, help="of the disk's server (default: %(default)s)")
    parser.add_argument("--resets", type=int, default=2, help="kills without a keeper (default: %(default)s)")
    parser.add_argument("--handovers", type=int, default=4, help="and execs, in turn (default: %(default)s)")
    parser.add_argument("--backports", action="store_true", help="the kernel of Debian 13's backports")
    return parser.parse_args()


def run(options: argparse.Namespace) -> int:
    packages.ensure()
    cache = image.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="nvme-async-disk-") as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one lab at a time works in this cache
        guest = image.ensure()
        kernel = newkernel.ensure(backports=options.backports)
        qemu = newqemu.ensure()
        started = time.monotonic()
        built = wheel.build(guest)
        print(f"disk: {built.name} built in {time.monotonic() - started:.0f} s; {qemu.version()}; booting", flush=True)
        folder = Path(scratch)
        counts = f"DISK_KILLS={options.kills} DISK_RESETS={options.resets} DISK_HANDOVERS={options.handovers}"
        tests = f"{counts} /payload/guest/run-disk-tests.sh {shlex.join(options.pytest)}"
        disk = payload.make(folder, built, options.command or tests, SENT)
        for _ in range(ATTEMPTS):
            boot = machine.prepare(folder)
            boot = machine.launch(
                disk_guest.command_line(qemu, kernel, guest, folder, disk, boot, options.accelerator),
                boot,
                timeout=options.timeout,
                verbose=options.verbose or bool(options.command),
                environment=qemu.environment,
            )
            if "Unable to mount root fs" not in boot.console_tail():
                break
        return report(boot, options)


def main() -> int:
    try:
        return run(parse())
    except packages.LabError as error:
        print(f"disk: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
