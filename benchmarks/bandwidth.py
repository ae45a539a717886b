#!/usr/bin/env python3
"""128 KiB sequential reads into memory that the device can access, compared with memcpy of the
same size in the same run; and many 4 KiB commands.

    python benchmarks/bandwidth.py [--rounds 7] [--json]

The emulated controller copies each read once, from its RAM to the buffer, so one core's memcpy is
the ceiling of its bandwidth. memcpy copies between two areas as large as the medium and the
buffers, so that both work outside the caches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from array import array
from typing import Any

import uvloop

import nvme_async

BLOCK = 4096
PART = 128 * 1024
SIZE = 256 << 20


def memcpy(source: memoryview, target: memoryview) -> float:
    """Bytes per second, PART at a time; slice assignment between contiguous views is one
    memcpy.
    """
    places = target.nbytes // PART
    begin = time.perf_counter()
    for index in range(source.nbytes // PART):
        at = index % places * PART
        target[at : at + PART] = source[index * PART : index * PART + PART]
    return source.nbytes / (time.perf_counter() - begin)


async def sequential(namespace: nvme_async.Namespace, target: memoryview) -> float:
    """Bytes per second of reading the namespace once, eight 128 KiB reads at a time."""
    blocks = PART // BLOCK
    depth = target.nbytes // PART

    async def worker(index: int) -> None:
        place = target[index * PART : index * PART + PART]
        for lba in range(index * blocks, namespace.blocks, depth * blocks):
            await namespace.readinto(lba, place)

    begin = time.perf_counter()
    await asyncio.gather(*(worker(index) for index in range(depth)))
    return namespace.nbytes / (time.perf_counter() - begin)


async def many(namespace: nvme_async.Namespace, target: memoryview, depth: int) -> float:
    """4 KiB random reads per second through read_many, over the whole namespace."""
    each = target.nbytes // BLOCK
    generator = random.Random(depth)
    chunks = [array("Q", generator.choices(range(namespace.blocks), k=each)) for _ in range(256)]
    rounds = max(1, 400_000 // each)
    begin = time.perf_counter()
    for turn in range(rounds):
        await namespace.read_many(chunks[turn % len(chunks)], into=target, depth=depth)
    return rounds * each / (time.perf_counter() - begin)


async def measure(rounds: int) -> dict[str, Any]:
    figures: dict[str, list[float]] = {}
    async with (
        nvme_async.open(f"emulated:size={SIZE}") as controller,
        nvme_async.open(f"emulated:size={SIZE},medium=null") as nothing,
    ):
        with controller.alloc(8 * PART) as buffer, nothing.alloc(8 * PART) as other:
            target, idle = memoryview(buffer), memoryview(other)
            source = memoryview(bytearray(SIZE))
            for lba in range(0, SIZE // BLOCK, PART // BLOCK):
                await controller.namespaces[1].write(lba, source[:PART])  # allocate the medium's pages
            for _ in range(rounds):
                for name, figure in (
                    ("memcpy", memcpy(source, target)),
                    ("sequential", await sequential(controller.namespaces[1], target)),
                    ("many_ram_qd32", await many(controller.namespaces[1], target, 32)),
                    ("many_null_qd32", await many(nothing.namespaces[1], idle, 32)),
                    ("many_null_qd128", await many(nothing.namespaces[1], idle, 128)),
                ):
                    figures.setdefault(name, []).append(figure)
            target.release()
            idle.release()
    ratios = [s / m for s, m in zip(figures["sequential"], figures["memcpy"], strict=True)]
    return {
        "median": {name: statistics.median(values) for name, values in figures.items()},
        "spread": {name: [min(values), max(values)] for name, values in figures.items()},
        "bandwidth_ratio": statistics.median(ratios),
        "bandwidth_ratio_spread": [min(ratios), max(ratios)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = uvloop.run(measure(options.rounds))
    if options.json:
        print(json.dumps(result, indent=2))
        return
    median, spread = result["median"], result["spread"]
    low, high = result["bandwidth_ratio_spread"]
    print(
        f"128 KiB sequential reads: {median['sequential'] / 2**30:.1f} GiB/s, memcpy "
        f"{median['memcpy'] / 2**30:.1f} GiB/s: "
        f"ratio {result['bandwidth_ratio']:.2f} ({low:.2f} to {high:.2f})"
    )
    for name in ("many_ram_qd32", "many_null_qd32", "many_null_qd128"):
        print(f"{name}: {median[name] / 1e6:.2f} M IOPS ({spread[name][0] / 1e6:.2f} to {spread[name][1] / 1e6:.2f})")


if __name__ == "__main__":
    main()
