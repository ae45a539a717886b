#!/usr/bin/env python3
"""kernel: beside fio and caio on the same NVMe drive, which the kernel keeps; with --tcp, `tcp:`
beside the kernel's NVMe/TCP host, both on the kernel's target, which has that drive.

    python benchmarks/kernel_compare.py --disk nvme1n1
    python tests/vm/run.py --command 'python /payload/benchmarks/kernel_compare.py --role bench'
    python tests/vm/run.py --command \
        'python /payload/benchmarks/kernel_compare.py --role bench --tcp'

4 KiB random reads at QD1 and QD32. All take turns within each round; figures are medians. CPU time
is the whole machine's (user, system and interrupts from /proc/stat), with --tcp the target's too.
So a run needs a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

import nvme_async

BLOCK = 4096
SPAN = 256 << 20
FIO_MARGIN = 2.0
"""Seconds of fio's run before and after the part that is measured."""
NQN = "nqn.2024-01.io.example:compare"
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
    """fio's own count. CPU time is read in the middle of its run, so that its start and end don't
    count.
    """
    engine = "--ioengine=io_uring_cmd --cmd_type=nvme" if passthrough else "--ioengine=io_uring --direct=1"
    node = f"/dev/ng{disk.removeprefix('nvme')}" if passthrough else f"/dev/{disk}"
    options = f"{engine} --filename={node} --name=x --rw=randread --bs=4k --iodepth={depth} --fixedbufs=0"
    command = (
        f"fio {options} --time_based --runtime={seconds + 2 * FIO_MARGIN:g} --size=256m --output-format=json --thread"
    )
    with subprocess.Popen(command.split(), stdout=subprocess.PIPE) as process:
        time.sleep(FIO_MARGIN)
        begin, busy = time.perf_counter(), busy_seconds()
        time.sleep(seconds)
        elapsed, busy = time.perf_counter() - begin, busy_seconds() - busy
        report, _ = process.communicate(timeout=seconds + 60)
    read = json.loads(report)["jobs"][0]["read"]
    return Figures(read["iops"], busy / (read["iops"] * elapsed) * 1e6)


async def measured(depth: int, seconds: float, read: Callable[[int, int], Awaitable[Any]]) -> Figures:
    """`depth` coroutines that await read(slot, number of a block)."""
    numbers = random.Random(1)
    done = 0
    begin, busy = time.perf_counter(), busy_seconds()
    end = begin + seconds

    async def worker(slot: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await read(slot, numbers.randrange(SPAN // BLOCK))
            done += 1

    await asyncio.gather(*(worker(slot) for slot in range(depth)))
    elapsed, busy = time.perf_counter() - begin, busy_seconds() - busy
    return Figures(done / elapsed, busy / done * 1e6)


def ours(uri: str, depth: int, seconds: float, *, many: bool) -> Figures:
    """`depth` coroutines that await readinto(), or one that awaits read_many()."""

    async def run() -> Figures:
        async with nvme_async.open(uri) as controller:
            namespace = next(iter(controller.namespaces.values()))
            per_io = BLOCK // namespace.block_size
            if not many:
                buffers = [memoryview(bytearray(BLOCK + 4096))[:BLOCK] for _ in range(depth)]
                return await measured(
                    depth, seconds, lambda slot, block: namespace.readinto(block * per_io, buffers[slot])
                )
            into = bytearray(BLOCK * 32 * depth)
            numbers = random.Random(1)

            async def batch(slot: int, block: int) -> None:
                lbas = array("Q", [numbers.randrange(SPAN // BLOCK) * per_io for _ in range(32 * depth)])
                await namespace.read_many(lbas, into, blocks=per_io, depth=depth)

            figures = await measured(1, seconds, batch)
            return Figures(figures.iops * 32 * depth, figures.cpu / (32 * depth))

    return asyncio.run(run())


def caio(disk: str, depth: int, seconds: float, module: str) -> Figures:
    """caio with O_DIRECT."""

    async def run() -> Figures:
        context = importlib.import_module(f"caio.{module}").AsyncioContext(max_requests=256)
        fd = os.open(f"/dev/{disk}", os.O_RDONLY | os.O_DIRECT)
        try:
            return await measured(depth, seconds, lambda slot, block: context.read(BLOCK, fd, block * BLOCK))
        finally:
            closing = context.close()
            if closing is not None:
                await closing
            os.close(fd)

    return asyncio.run(run())


@contextlib.contextmanager
def over_tcp(disk: str) -> Iterator[str]:
    """The kernel's target has the drive, and the kernel's host is connected: its disk's name."""
    here = Path(__file__).resolve().parents[1] / "tests/vm"
    sys.path[:0] = [str(here), str(here / "suite")]  # in the guest, and in the tree
    nvmet = importlib.import_module("nvmet")
    if why := nvmet.prepare():
        raise SystemExit(f"this kernel has no NVMe/TCP: {why}")
    target = nvmet.Target(NQN)
    try:
        target.add(1, Path("/dev") / disk)
        target.up()
        before = set(os.listdir("/sys/block"))
        nvmet.sh(*f"nvme connect -t tcp -a 127.0.0.1 -s {nvmet.PORT} -n {NQN}".split())
        limit = time.monotonic() + 30
        while not (new := [name for name in set(os.listdir("/sys/block")) - before if "c" not in name]):
            if time.monotonic() > limit:
                raise SystemExit("the kernel shows no namespace of its own target")
            time.sleep(0.05)
        yield new[0]
    finally:
        nvmet.sh("nvme", "disconnect", "-n", NQN, check=False)
        target.close()


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
    parser.add_argument("--tcp", action="store_true", help="over NVMe/TCP on lo, from the kernel's target")
    arguments = parser.parse_args()
    disk = arguments.disk or disk_of(arguments.role)
    with contextlib.ExitStack() as stack:
        contenders = of_tcp(stack.enter_context(over_tcp(disk))) if arguments.tcp else of_kernel(disk)
        compare(contenders, arguments.rounds, arguments.seconds)


Contenders = dict[str, Callable[[int, float], Figures]]


def of_kernel(disk: str) -> Contenders:
    generic, block = f"kernel:/dev/ng{disk.removeprefix('nvme')}", f"kernel:/dev/{disk}"
    return {
        "fio io_uring_cmd": lambda depth, seconds: fio(disk, depth, seconds, True),
        "fio io_uring": lambda depth, seconds: fio(disk, depth, seconds, False),
        "await, passthrough": lambda depth, seconds: ours(generic, depth, seconds, many=False),
        "read_many, passthrough": lambda depth, seconds: ours(generic, depth, seconds, many=True),
        "await, block device": lambda depth, seconds: ours(block, depth, seconds, many=False),
        "read_many, block device": lambda depth, seconds: ours(block, depth, seconds, many=True),
        "await, threads": lambda depth, seconds: ours(f"{block}?engine=threads", depth, seconds, many=False),
        "await, caio linux-aio": lambda depth, seconds: caio(disk, depth, seconds, "linux_aio_asyncio"),
        "await, caio threads": lambda depth, seconds: caio(disk, depth, seconds, "thread_aio_asyncio"),
    }


def of_tcp(connected: str) -> Contenders:
    uri = f"tcp:127.0.0.1:4420/{NQN}"
    return {
        "nvme-tcp, fio io_uring": lambda depth, seconds: fio(connected, depth, seconds, False),
        "nvme-tcp, fio io_uring_cmd": lambda depth, seconds: fio(connected, depth, seconds, True),
        "nvme-tcp, await caio linux-aio": lambda depth, seconds: caio(connected, depth, seconds, "linux_aio_asyncio"),
        "tcp:, await": lambda depth, seconds: ours(uri, depth, seconds, many=False),
        "tcp:, read_many": lambda depth, seconds: ours(uri, depth, seconds, many=True),
    }


def compare(contenders: Contenders, rounds: int, seconds: float) -> None:
    found: dict[tuple[str, int], list[Figures]] = {}
    for number in range(rounds):
        for depth in (1, 32):
            for name, contender in contenders.items():
                found.setdefault((name, depth), []).append(contender(depth, seconds))
        print(f"round {number + 1} of {rounds}", flush=True)
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
