#!/usr/bin/env python3
"""This driver over VFIO compared with fio and caio on the kernel's driver: the same drive of the
same virtual machine, in one run.

    make vm-compare                                  boots the guest, runs this inside;
                                                     results/vm/vm-compare.md
    python benchmarks/vm_compare.py --role bench     what it runs inside

All take turns within each round; figures are medians over the rounds. CPU time is the whole guest's
(user, system and interrupts from /proc/stat, without the idle loop), not the process's, so it
includes interrupt handlers and kernel threads that work for a contender.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import uvloop

import nvme_async

MIB = 1 << 20
SPAN = 256 * MIB  # the part of the drive that is written before, and read
CLOCK_TICK = os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Workload:
    name: str
    nbytes: int
    depth: int
    sequential: bool = False


WORKLOADS = (
    Workload("4 KiB random read, QD1", 4096, 1),
    Workload("4 KiB random read, QD32", 4096, 32),
    Workload("4 KiB random read, QD128", 4096, 128),
    Workload("128 KiB sequential read, QD4", 128 << 10, 4, sequential=True),
)


@attrs.frozen
class Figures:
    """One contender on one workload: operations per second, latency in microseconds, CPU per I/O
    in microseconds.
    """

    iops: float
    mean: float
    p99: float
    cpu: float


def busy_seconds() -> float:
    """CPU time that this machine has spent on anything except idling and waiting."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / CLOCK_TICK


# A contender reads `nbytes` at `offset` into the slot's own buffer each time that it is awaited.
Read = Callable[[int, int, int], Awaitable[Any]]
Opener = Callable[[Workload], contextlib.AbstractAsyncContextManager[Read]]


async def awaited(opener: Opener, load: Workload, seconds: float, seed: int) -> Figures:
    """`depth` coroutines, each with one I/O at a time: the same loop for all awaited
    contenders.
    """
    latencies: list[int] = []
    clock = time.perf_counter_ns
    count = SPAN // load.nbytes
    numbers = random.Random(seed)
    offsets = [index * load.nbytes for index in range(count)]
    if not load.sequential:
        numbers.shuffle(offsets)
    place = 0

    async with opener(load) as read:
        end = clock() + int(seconds * 1e9)

        async def worker(slot: int) -> None:
            nonlocal place
            while True:
                offset = offsets[place]
                place = (place + 1) % count
                begin = clock()
                await read(slot, offset, load.nbytes)
                now = clock()
                latencies.append(now - begin)
                if now > end:
                    return

        begin, busy = clock(), busy_seconds()
        await asyncio.gather(*(worker(slot) for slot in range(load.depth)))
        elapsed, busy = (clock() - begin) / 1e9, busy_seconds() - busy
    latencies.sort()
    number = len(latencies)
    return Figures(
        iops=number / elapsed,
        mean=statistics.fmean(latencies) / 1e3,
        p99=latencies[min(number - 1, number * 99 // 100)] / 1e3,
        cpu=busy / number * 1e6,
    )


def ours(uri: str, mode: str) -> Opener:
    @contextlib.asynccontextmanager
    async def opened(load: Workload) -> AsyncIterator[Read]:
        async with nvme_async.open(uri, mode=mode) as controller:
            namespace = controller.namespaces[1]
            size = namespace.block_size
            buffers = [controller.alloc(load.nbytes) for _ in range(load.depth)]
            readinto = namespace.readinto
            yield lambda slot, offset, nbytes: readinto(offset // size, buffers[slot])
            for buffer in buffers:
                buffer.free()

    return opened


def caio(module: str, device: str) -> Opener:
    @contextlib.asynccontextmanager
    async def opened(load: Workload) -> AsyncIterator[Read]:
        context = importlib.import_module(f"caio.{module}").AsyncioContext(max_requests=256)
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
        try:
            yield lambda slot, offset, nbytes: context.read(nbytes, fd, offset)
        finally:
            closing = context.close()
            if closing is not None:
                await closing
            os.close(fd)

    return opened


def reads_done(device: str) -> int:
    """Reads that the kernel's block layer has completed on a device."""
    return int(Path("/sys/class/block", Path(device).name, "stat").read_text().split()[0])


def fio(engine: str, device: str, load: Workload, seconds: float, seed: int) -> Figures:
    """fio's own IOPS and latencies. Its CPU time is read while it runs, so that its start and
    end don't count.
    """
    command = [
        *("fio", "--name=compare", f"--filename={device}", f"--ioengine={engine}", "--direct=1", "--thread"),
        *(f"--rw={'read' if load.sequential else 'randread'}", f"--bs={load.nbytes}", f"--iodepth={load.depth}"),
        *(f"--size={SPAN}", "--time_based", f"--runtime={seconds + 1:.0f}", f"--randseed={seed}", "--norandommap"),
        "--output-format=json",
    ]
    idle = reads_done(device)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while reads_done(device) < idle + 100 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        busy, reads = busy_seconds(), reads_done(device)
        time.sleep(seconds * 0.8)
        busy, reads = busy_seconds() - busy, reads_done(device) - reads
        output, _ = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    read = json.loads(output[output.index("{") :])["jobs"][0]["read"]
    return Figures(
        iops=read["iops"],
        mean=read["lat_ns"]["mean"] / 1e3,
        p99=read["clat_ns"]["percentile"]["99.000000"] / 1e3,
        cpu=busy / max(1, reads) * 1e6,
    )


async def prepare(uri: str) -> None:
    """Write the data that is read later, so that no contender reads holes."""
    async with nvme_async.open(uri) as controller:
        namespace = controller.namespaces[1]
        data = random.Random(0).randbytes(MIB)
        for offset in range(0, SPAN, MIB):
            await namespace.pwrite(data, offset)
        await namespace.flush()


def run_awaited(opener: Opener, load: Workload, seconds: float, seed: int) -> Figures:
    return uvloop.run(awaited(opener, load, seconds, seed))


OURS = ("nvme_async adaptive", "nvme_async interrupt")


def contenders(uri: str, device: str) -> dict[str, Callable[[Workload, float, int], Figures]]:
    """The contenders by name; the awaited ones run on uvloop."""

    def await_(opener: Opener) -> Callable[[Workload, float, int], Figures]:
        return lambda load, seconds, seed: run_awaited(opener, load, seconds, seed)

    def fio_(engine: str) -> Callable[[Workload, float, int], Figures]:
        return lambda load, seconds, seed: fio(engine, device, load, seconds, seed)

    return {
        "nvme_async adaptive": await_(ours(uri, "adaptive")),
        "nvme_async interrupt": await_(ours(uri, "interrupt")),
        "fio io_uring": fio_("io_uring"),
        "fio libaio": fio_("libaio"),
        "caio linux-aio": await_(caio("linux_aio_asyncio", device)),
        "caio io_uring": await_(caio("linux_uring_asyncio", device)),
    }


class Drive:
    """The drive under test, bound to the kernel's driver or to ours."""

    def __init__(self, role: str) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/vm"))
        import lab

        self._lab = lab
        self.address: str = lab.take_baseline()[role]["address"]
        self.uri = f"pci:{self.address}"

    def to_us(self) -> None:
        self._lab.rebind(self.address, "vfio-pci")

    def to_kernel(self) -> str:
        self._lab.rebind(self.address, "nvme")
        return str(self._lab.block_device(self.address, 1))


def measure(role: str, rounds: int, seconds: float) -> dict[str, dict[str, list[Figures]]]:
    """{workload: {contender: figures of each round}}; a contender that can't run here is left
    out with a message.
    """
    drive = Drive(role)
    drive.to_us()
    asyncio.run(prepare(drive.uri))
    device = drive.to_kernel()
    runners = contenders(drive.uri, device)
    result: dict[str, dict[str, list[Figures]]] = {load.name: {} for load in WORKLOADS}
    for turn in range(rounds):
        for name in list(runners):
            if name in OURS:
                drive.to_us()
            else:
                drive.to_kernel()
            for load in WORKLOADS:
                try:
                    figures = runners[name](load, seconds, turn)
                except Exception as error:  # a contender that this kernel refuses
                    if name in OURS:
                        raise
                    print(f"{name} is left out: {error!r}", file=sys.stderr, flush=True)
                    del runners[name]
                    break
                result[load.name].setdefault(name, []).append(figures)
                print(f"round {turn + 1}: {load.name}: {name}: {figures.iops:.0f} IOPS", file=sys.stderr, flush=True)
    return result


def median(figures: list[Figures]) -> Figures:
    return Figures(
        *(statistics.median(values) for values in zip(*(attrs.astuple(one) for one in figures), strict=True))
    )


def table(result: dict[str, dict[str, list[Figures]]]) -> Iterator[str]:
    """Markdown: a table for each workload, ratios against this driver's adaptive mode."""
    for workload, rows in result.items():
        medians = {name: median(figures) for name, figures in rows.items()}
        base = medians[OURS[0]]
        yield f"### {workload}\n"
        yield "| | IOPS | spread | mean µs | p99 µs | CPU µs per I/O | IOPS of ours / its | CPU of its / ours |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        for name, row in medians.items():
            rounds = sorted(figures.iops for figures in rows[name])
            yield (
                f"| {name} | {row.iops:.0f} | {rounds[0]:.0f}-{rounds[-1]:.0f} | {row.mean:.0f} | "
                f"{row.p99:.0f} | {row.cpu:.1f}"
                f" | {base.iops / row.iops:.2f} | {row.cpu / base.cpu if base.cpu else 0:.2f} |"
            )
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--role", default="bench", help="the drive's serial number (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here, else it is printed")
    options = parser.parse_args()
    result = measure(options.role, options.rounds, options.seconds)
    versions = subprocess.run(
        ["fio", "--version"], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
    lines = [
        f"Linux {platform.release()}, Python {platform.python_version()}, {versions}, caio "
        f"{importlib.metadata.version('caio')},"
        f" {os.cpu_count()} CPUs; {options.rounds} rounds of {options.seconds:g} s.\n",
        *table(result),
    ]
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    load: {name: [attrs.asdict(one) for one in rows] for name, rows in row.items()}
                    for load, row in result.items()
                },
                indent=2,
            )
        )
    if options.markdown:
        options.markdown.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
