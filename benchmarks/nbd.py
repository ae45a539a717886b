#!/usr/bin/env python3
"""NBD beside nbdkit's memory plugin, in one run: the same fio jobs on both servers.

    python benchmarks/nbd.py                    3 seconds for each job
    python benchmarks/nbd.py --seconds 10 --threads 2

It takes fio with its nbd engine, and nbdkit (Debian: `apt install fio nbdkit`). The namespace is
that of the emulated controller, which runs in the server's process: its work is in the server's
processor time, while nbdkit only copies memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZE = 256 << 20
JOBS = {
    "4 KiB random read, QD1": "--rw=randread --bs=4k --iodepth=1",
    "4 KiB random read, QD32": "--rw=randread --bs=4k --iodepth=32",
    "4 KiB random write, QD32": "--rw=randwrite --bs=4k --iodepth=32",
    "128 KiB read, QD8": "--rw=read --bs=128k --iodepth=8",
}


def processor_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(command: list[str], path: Path) -> Iterator[int]:
    """The server's process id, once it listens at `path`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not path.exists():
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{command[0]} doesn't listen at {path}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def fio(path: Path, *words: str) -> dict[str, Any]:
    """What it reports of its job."""
    words = ("fio", "--name=job", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}", f"--size={SIZE}", *words)
    done = subprocess.run([*words, "--output-format=json"], capture_output=True, text=True, check=True)
    [result] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    if result["error"]:
        sys.exit(f"fio failed with error {result['error']}: {done.stderr}")
    return dict(result)


def measured(path: Path, pid: int, job: str, seconds: float) -> tuple[float, float]:
    """I/Os a second, and the server's processor time for each, in microseconds."""
    before = processor_seconds(pid)
    result = fio(path, "--time_based", f"--runtime={seconds}", *job.split())
    used = processor_seconds(pid) - before
    side = result["write"] if "write" in job else result["read"]
    return side["iops"], 1e6 * used / side["total_ios"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3, help="for each job (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each server (default: %(default)s)")
    options = parser.parse_args()
    for program in ("fio", "nbdkit"):
        if shutil.which(program) is None:
            sys.exit(f"there is no {program}: apt install fio nbdkit")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.nbd"), Path(folder, "nbdkit.nbd")
        export = [sys.executable, "-m", "nvme_async", "export", f"emulated:size={SIZE >> 20}MiB", "--nbd", str(ours)]
        nbdkit = ["nbdkit", "--foreground", "--unix", str(theirs), "--threads", str(options.threads)]
        print("| job | nvme-async: IOPS | µs of processor | nbdkit memory: IOPS | µs of processor |")
        print("| --- | ---: | ---: | ---: | ---: |")
        with (
            serving([*export, "--queues", str(options.threads)], ours) as our_pid,
            serving([*nbdkit, "memory", str(SIZE)], theirs) as their_pid,
        ):
            for path in (ours, theirs):  # the first write to memory is the kernel's work
                fio(path, "--rw=write", "--bs=128k", "--iodepth=8")
            for name, job in JOBS.items():
                row = [*measured(ours, our_pid, job, options.seconds)]
                row += measured(theirs, their_pid, job, options.seconds)
                print(f"| {name} | {row[0]:.0f} | {row[1]:.1f} | {row[2]:.0f} | {row[3]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
