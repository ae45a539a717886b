#!/usr/bin/env python3
"""Where the time of an awaited I/O goes: the benchmark under `perf record`, its job's thread by
group of symbols.

    python benchmarks/profile.py [options for benchmarks/fio.py]

Prints a Markdown table. Needs Linux' perf, and perf_event_paranoid of 2 or less.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

JOB = (
    "--filename=emulated:size=256MiB",
    "--name=r",
    "--rw=randread",
    "--bs=4k",
    "--iodepth=32",
    "--time_based",
    "--runtime=5",
    "--ioengine=await",
)
# The beginning of a shared object's name, and what it does on this thread.
GROUPS = {
    "libpython": "interpreter: the benchmark's coroutine, tasks, objects",
    "python": "interpreter: the benchmark's coroutine, tasks, objects",
    "loop.": "event loop: uvloop, asyncio's C half",
    "_asyncio.": "event loop: uvloop, asyncio's C half",
    "_hotpath.": "hot path",
    "_dma.": "hot path",
    "_fio.": "benchmark: offsets, histogram",
    "[vdso]": "clock readings, of the benchmark and the adaptive spin",
    "[kernel": "kernel: epoll, the interrupt's eventfd",
    "libc.": "C library, for all of these",
}
SAMPLE = re.compile(r"\s*(?P<comm>\S+)\s+(?P<tid>\d+)\s+[0-9a-f]+\s+(?P<symbol>.*?)\s+\((?P<dso>.*)\)$")


def record(arguments: list[str], data: Path) -> None:
    script = Path(__file__).with_name("fio.py")
    command = ["perf", "record", "--quiet", "-F", "1999", "-o", str(data), sys.executable, str(script), *arguments]
    subprocess.run(command, check=True, timeout=600)


def samples(data: Path) -> list[re.Match[str]]:
    command = ["perf", "script", "-i", str(data), "-F", "comm,tid,ip,sym,dso"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    return [match for line in text.splitlines() if (match := SAMPLE.match(line))]


def main() -> int:
    if shutil.which("perf") is None:
        sys.exit("profile.py: perf is not installed")
    with tempfile.TemporaryDirectory() as folder:
        record(sys.argv[1:] or list(JOB), data := Path(folder) / "perf.data")
        found = [one for one in samples(data) if not one["comm"].startswith("nvme-emulator")]
    ((job, total),) = Counter(one["tid"] for one in found).most_common(1)
    groups: Counter[str] = Counter()
    for one in found:
        if one["tid"] == job:
            name = Path(one["dso"]).name
            groups[
                next((group for start, group in GROUPS.items() if name.startswith(start)), f"anything else: {name}")
            ] += 1
    print("\n| share | where |\n| ---: | --- |")
    for group, count in groups.most_common():
        print(f"| {100 * count / total:.1f} % | {group} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
