#!/usr/bin/env python3
"""kernel: beside fio's io_uring_cmd and io_uring on the same NVMe drive, which the kernel keeps.

    python benchmarks/kernel_compare.py --disk nvme1n1
    python tests/vm/run.py --command 'python /payload/benchmarks/kernel_compare.py --role bench'

4 KiB random reads at QD1 and QD32. All take turns within each round; figures are medians. CPU time
is the whole machine's (user, system and interrupts from /proc/stat), so a run needs a quiet
machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import attrs

import nvme_async

BLOCK = 4096
CLOCK_TICK = os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Figures:
    """Of one contender: operations a second, microseconds of CPU for each."""

    iops: float
    cpu: float


def busy_seconds() -> float:
    """CPU time that this machine has spent on anything but idling and waiting."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / CLOCK_TICK


def fio(disk: str, depth: int, seconds: float, passthrough: bool) -> Figures:
    """fio's own count; the time that it takes to begin and end is not measured."""
    engine = "--ioengine=io_uring_cmd --cmd_type=nvme" if passthrough else "--ioengine=io_uring --direct=1"
    node = f"/dev/ng{disk.removeprefix('nvme')}" if passthrough else f"/dev/{disk}"
    options = f"{engine} --filename={node} --name=x --rw=randread --bs=4k --iodepth={depth} --fixedbufs=0"
    command = f"fio {options} --time_based --runtime={seconds} --size=256m --output-format=json --thread"
    busy = busy_seconds()
    report = subprocess.run(command.split(), capture_output=True, check=True, timeout=seconds + 60).stdout
    busy = busy_seconds() - busy
    job = json.loads(report)["jobs"][0]["read"]
    return Figures(job["iops"], busy / job["total_ios"] * 1e6)


def ours(uri: str, depth: int, seconds: float, *, many: bool) -> Figures:
    """`depth` coroutines that await readinto(), or one that awaits read_many()."""

    async def run() -> Figures:
        async with nvme_async.open(uri) as controller:
            namespace = next(iter(controller.namespaces.values()))
            per_io = BLOCK // namespace.block_size
            count = (256 << 20) // BLOCK
            buffers = [memoryview(bytearray(BLOCK + 4096))[:BLOCK] for _ in range(depth)]
            numbers = random.Random(1)
            done = 0
            end = time.perf_counter() + seconds

            async def worker(slot: int) -> None:
                nonlocal done
                while time.perf_counter() < end:
                    await namespace.readinto(numbers.randrange(count) * per_io, buffers[slot])
                    done += 1

            async def batches() -> None:
                nonlocal done
                into = bytearray(BLOCK * 32 * depth)
                while time.perf_counter() < end:
                    lbas = array("Q", [numbers.randrange(count) * per_io for _ in range(32 * depth)])
                    await namespace.read_many(lbas, into, blocks=per_io, depth=depth)
                    done += len(lbas)

            begin, busy = time.perf_counter(), busy_seconds()
            if many:
                await batches()
            else:
                await asyncio.gather(*(worker(slot) for slot in range(depth)))
            elapsed, busy = time.perf_counter() - begin, busy_seconds() - busy
            return Figures(done / elapsed, busy / done * 1e6)

    return asyncio.run(run())


def disk_of(role: str) -> str:
    """The kernel's name of the first namespace of the controller with that serial number."""
    for controller in sorted(Path("/sys/class/nvme").iterdir()):
        if (controller / "serial").read_text().strip() == role:
            return sorted(entry.name for entry in controller.glob("nvme*n*"))[0]
    raise SystemExit(f"there is no controller with the serial number {role}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--disk", help="the kernel's name, as nvme1n1; it is only read")
    which.add_argument("--role", help="the serial number of its controller")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    disk = arguments.disk or disk_of(arguments.role)
    generic, block = f"kernel:/dev/ng{disk.removeprefix('nvme')}", f"kernel:/dev/{disk}"
    contenders: dict[str, Callable[[int, float], Figures]] = {
        "fio io_uring_cmd": lambda depth, seconds: fio(disk, depth, seconds, True),
        "fio io_uring": lambda depth, seconds: fio(disk, depth, seconds, False),
        "await, passthrough": lambda depth, seconds: ours(generic, depth, seconds, many=False),
        "read_many, passthrough": lambda depth, seconds: ours(generic, depth, seconds, many=True),
        "await, block device": lambda depth, seconds: ours(block, depth, seconds, many=False),
        "await, threads": lambda depth, seconds: ours(f"{block}?engine=threads", depth, seconds, many=False),
    }
    found: dict[tuple[str, int], list[Figures]] = {}
    for number in range(arguments.rounds):
        for depth in (1, 32):
            for name, contender in contenders.items():
                found.setdefault((name, depth), []).append(contender(depth, arguments.seconds))
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    print("| | QD1: IOPS | CPU, us per I/O | QD32: IOPS | CPU, us per I/O |\n| --- | ---: | ---: | ---: | ---: |")
    for name in contenders:
        cells = []
        for depth in (1, 32):
            figures = found[name, depth]
            cells += [f"{statistics.median(one.iops for one in figures):,.0f}"]
            cells += [f"{statistics.median(one.cpu for one in figures):.1f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
