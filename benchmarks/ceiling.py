#!/usr/bin/env python3
"""How close an awaited I/O comes to the cost of the event loop itself.

The ceiling: the same number of coroutines awaiting plain futures, which a C loop resolves in
batches, once per event-loop iteration. Compared with it: the same coroutines awaiting random 4 KiB
reads of the null medium; and lone reads, eager and by interrupt. All alternate in one run; each
figure is the median of the rounds.

    python benchmarks/ceiling.py [--depth 32] [--rounds 7] [--loop asyncio|uvloop|both] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

import nvme_async
from nvme_async.dma import DmaBuffer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import probing

NULL = "emulated:size=1GiB,medium=null"


async def together(workers: list[Any], count: int) -> float:
    """Operations per second."""
    begin = time.perf_counter()
    await asyncio.gather(*workers)
    return count / (time.perf_counter() - begin)


async def futures(mill: Any, depth: int, count: int) -> float:
    async def worker() -> None:
        get = mill.get
        for _ in range(count // depth):
            await get()

    return await together([worker() for _ in range(depth)], count)


async def reads(namespace: nvme_async.Namespace, depth: int, count: int) -> float:
    """read(): a new bytes object each time, so one allocation and one copy of 4 KiB more than
    readinto().
    """
    blocks = random.Random(0).choices(range(namespace.blocks), k=4096)

    async def worker(at: int) -> None:
        read = namespace.read
        for index in range(at, at + count // depth):
            await read(blocks[index & 4095])

    return await together([worker(index * 128) for index in range(depth)], count)


async def reads_into(namespace: nvme_async.Namespace, buffers: list[DmaBuffer], count: int) -> float:
    """readinto() buffers that the device can access, as --ioengine=await does."""
    blocks = random.Random(0).choices(range(namespace.blocks), k=4096)

    async def worker(at: int, buffer: DmaBuffer) -> None:
        readinto = namespace.readinto
        for index in range(at, at + count // len(buffers)):
            await readinto(blocks[index & 4095], buffer)

    return await together([worker(index * 128, buffer) for index, buffer in enumerate(buffers)], count)


async def bare_round_trip(count: int) -> float:
    """Median microseconds of eventfd → reader → future → task."""
    loop = asyncio.get_running_loop()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    waiting: list[asyncio.Future[None]] = []
    clock = time.perf_counter_ns
    times = []

    def readable() -> None:
        os.eventfd_read(fd)
        waiting.pop().set_result(None)

    loop.add_reader(fd, readable)
    for _ in range(count):
        begin = clock()
        future = loop.create_future()
        waiting.append(future)
        os.eventfd_write(fd, 1)
        await future
        times.append(clock() - begin)
    loop.remove_reader(fd)
    os.close(fd)
    return statistics.median(times) / 1e3


async def single(namespace: nvme_async.Namespace, count: int) -> tuple[float, float]:
    """(median, p99) microseconds of a lone awaited read."""
    read, clock = namespace.read, time.perf_counter_ns
    times = []
    for lba in range(count):
        begin = clock()
        await read(lba)
        times.append(clock() - begin)
    times.sort()
    return times[count // 2] / 1e3, times[count * 99 // 100] / 1e3


async def measure(depth: int, rounds: int, count: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    mill = probing.load().FutureMill(loop)
    ceilings, awaited, into, eager, interrupt, bare = [], [], [], [], [], []
    async with nvme_async.open(NULL) as adaptive, nvme_async.open(NULL, mode="interrupt") as sleeping:
        namespace, sleeper = adaptive.namespaces[1], sleeping.namespaces[1]
        buffers = [adaptive.alloc(4096) for _ in range(depth)]
        await reads(namespace, depth, count // 4)
        for _ in range(rounds):
            ceilings.append(await futures(mill, depth, count))
            awaited.append(await reads(namespace, depth, count))
            into.append(await reads_into(namespace, buffers, count))
            eager.append(await single(namespace, count // 10))
            bare.append(await bare_round_trip(count // 20))
            interrupt.append(await single(sleeper, count // 20))
        for buffer in buffers:
            buffer.free()
    ratios = [a / c for a, c in zip(awaited, ceilings, strict=True)]
    into_ratios = [a / c for a, c in zip(into, ceilings, strict=True)]
    return {
        "loop": type(loop).__module__.split(".")[0],
        "depth": depth,
        "ceiling_iops": statistics.median(ceilings),
        "awaited_iops": statistics.median(awaited),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "into_iops": statistics.median(into),
        "into_ratio": statistics.median(into_ratios),
        "into_ratio_spread": [min(into_ratios), max(into_ratios)],
        "eager_us": statistics.median(e[0] for e in eager),
        "eager_p99_us": statistics.median(e[1] for e in eager),
        "bare_interrupt_us": statistics.median(bare),
        "interrupt_us": statistics.median(i[0] for i in interrupt),
        "interrupt_ratio": statistics.median(i[0] / b for i, b in zip(interrupt, bare, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=200_000, help="operations of one round")
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "both"], default="both")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for name in ["asyncio", "uvloop"] if options.loop == "both" else [options.loop]:
        run = uvloop.run if name == "uvloop" else asyncio.run
        result = run(measure(options.depth, options.rounds, options.count))
        results.append(result)
        if not options.json:
            low, high = result["ratio_spread"]
            into_low, into_high = result["into_ratio_spread"]
            print(
                f"{name}: ceiling {result['ceiling_iops'] / 1e3:.0f} k/s at QD{options.depth}\n"
                f"  readinto(): {result['into_iops'] / 1e3:.0f} k/s, ratio {result['into_ratio']:.2f} "
                f"({into_low:.2f} to {into_high:.2f})\n"
                f"  read(): {result['awaited_iops'] / 1e3:.0f} k/s, ratio {result['ratio']:.2f} "
                f"({low:.2f} to {high:.2f})\n"
                f"  lone read, eager: {result['eager_us']:.2f} us median, {result['eager_p99_us']:.2f} us p99\n"
                f"  lone read, interrupt: {result['interrupt_us']:.1f} us, bare eventfd round trip "
                f"{result['bare_interrupt_us']:.1f} us: "
                f"ratio {result['interrupt_ratio']:.2f}",
                flush=True,
            )
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
