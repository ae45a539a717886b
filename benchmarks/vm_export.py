#!/usr/bin/env python3
"""A block device of ublk beside the kernel's own NVMe driver, on one drive, in one run: the same
fio jobs. For the guest of `make test-disk`, with this as DISK:

    --command '/payload/guest/with-drive.sh exported python /payload/benchmarks/vm_export.py'

Under software emulation only the ratios of a row mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

JOBS = {
    "4 KiB random read, QD1": "--rw=randread --bs=4k --iodepth=1",
    "4 KiB random read, QD32": "--rw=randread --bs=4k --iodepth=32",
    "4 KiB random write, QD32": "--rw=randwrite --bs=4k --iodepth=32",
    "128 KiB read, QD8": "--rw=read --bs=128k --iodepth=8",
}
LIMIT = 120.0


def busy_seconds() -> float:
    """Processor time of the whole machine that was not idle."""
    words = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(words[:8]) - words[3] - words[4]) / os.sysconf("SC_CLK_TCK")


def bind(address: str, driver: str) -> None:
    function = Path("/sys/bus/pci/devices", address)
    if (function / "driver").exists():
        (function / "driver/unbind").write_text(address)
    (function / "driver_override").write_text(driver + "\n")
    Path("/sys/bus/pci/drivers_probe").write_text(address)


@contextmanager
def kernels(address: str) -> Iterator[Path]:
    """The disk of the kernel's driver."""
    bind(address, "nvme")
    end = time.monotonic() + LIMIT
    while True:
        found = [
            Path("/dev", disk.name)
            for disk in Path("/sys/block").glob("nvme*")
            if (disk / "device/address").exists() and (disk / "device/address").read_text().strip() == address
        ]
        if found and found[0].exists():
            break
        if time.monotonic() > end:
            sys.exit(f"the kernel shows no disk of {address}")
        time.sleep(0.1)
    yield found[0]


@contextmanager
def exported(address: str, queues: int) -> Iterator[Path]:
    """Ours."""
    bind(address, "vfio-pci")
    subprocess.run(["modprobe", "ublk_drv"], check=True)
    words = [sys.executable, "-m", "nvme_async", "export", f"pci:{address}", "--queues", str(queues)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if " is /dev/" not in line:
            sys.exit(f"the export doesn't start: {line}")
        yield Path(line.rpartition(" is ")[2].strip())
    finally:
        process.terminate()
        process.wait(LIMIT)


def measured(disk: Path, job: str, seconds: float) -> tuple[float, float]:
    """I/Os a second, and processor time of the machine for each, in microseconds."""
    words = ["fio", "--name=job", f"--filename={disk}", "--direct=1", "--ioengine=libaio", "--time_based"]
    before = busy_seconds()
    done = subprocess.run(
        [*words, f"--runtime={seconds}", *job.split(), "--output-format=json"],
        capture_output=True,
        text=True,
        check=True,
    )
    used = busy_seconds() - before
    [result] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    if result["error"]:
        sys.exit(f"fio failed with error {result['error']}: {done.stderr}")
    side = result["write"] if "write" in job else result["read"]
    return side["iops"], 1e6 * used / side["total_ios"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--uri", required=True, help="pci:ADDRESS; its data are lost")
    parser.add_argument("--seconds", type=float, default=5, help="for each job (default: %(default)s)")
    parser.add_argument("--queues", type=int, default=2, help="of the export (default: %(default)s)")
    options = parser.parse_args()
    address = options.uri.removeprefix("pci:")
    rows: dict[str, list[float]] = {name: [] for name in JOBS}
    for disk in (kernels(address), exported(address, options.queues)):
        with disk as path:
            for name, job in JOBS.items():
                rows[name] += measured(path, job, options.seconds)
    print("| job | kernel's driver: IOPS | us of processor | export: IOPS | us of processor | ratio of IOPS |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, row in rows.items():
        print(f"| {name} | {row[0]:.0f} | {row[1]:.0f} | {row[2]:.0f} | {row[3]:.0f} | {row[2] / row[0]:.2f} |")


if __name__ == "__main__":
    main()
