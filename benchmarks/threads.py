#!/usr/bin/env python3
"""What the global interpreter lock costs threads of one interpreter: 4 KiB random reads of one
emulated controller, by 1, 2, 4, … threads with an event loop and a queue pair each.

    python benchmarks/threads.py [--threads 1 2 4] [--depth 32] [--seconds 1] [--rounds 5] [-o json]

awaited: a coroutine per read in flight; only one thread at a time runs Python. many: read_many(),
which releases the lock while it transfers. Processes are benchmarks/sharing.py scale.

On two cores one thread and the emulated controller's are all that run at the same time; so the rows
to compare are processor time per I/O and how often a thread gave its processor away (waits) for
the lock or for others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import threading
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

import nvme_async

URI = "emulated:size=256MiB,medium=null,queues=17"
BLOCK = 4096
KINDS = ("awaited", "many")


async def awaited(controller: Any, namespace: Any, depth: int, stop: Callable[[], bool]) -> int:
    done = 0
    lbas = random.Random(depth).choices(range(namespace.blocks), k=1024)

    async def reader(at: int, buffer: Any) -> None:
        nonlocal done
        while not stop():
            for index in range(at, at + 16):
                await namespace.readinto(lbas[index & 1023], buffer)
            at += 16
            done += 16

    buffers = [controller.alloc(BLOCK) for _ in range(depth)]
    await asyncio.gather(*(reader(index * 32, buffer) for index, buffer in enumerate(buffers)))
    for buffer in buffers:
        buffer.free()
    return done


async def many(controller: Any, namespace: Any, depth: int, stop: Callable[[], bool]) -> int:
    done = 0
    lbas = array("Q", random.Random(depth).choices(range(namespace.blocks), k=1024))
    with controller.alloc(len(lbas) * BLOCK) as buffer:
        while not stop():
            await namespace.read_many(lbas, into=buffer, depth=depth)
            done += len(lbas)
    return done


def measure(controller: Any, kind: str, threads: int, depth: int, seconds: float) -> dict[str, float]:
    """One figure of each column. On a thread that runs no loop."""
    namespace = controller.namespaces[1]
    run: Callable[..., Awaitable[int]] = awaited if kind == "awaited" else many
    ready = threading.Barrier(threads + 1)
    over = threading.Event()
    results: list[tuple[int, float, int]] = []

    def thread() -> None:
        async def work() -> None:
            await namespace.read(0)  # makes the queue pair
            ready.wait()
            cpu, waits = time.thread_time(), resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            done = await run(controller, namespace, depth, over.is_set)
            given = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - waits
            results.append((done, time.thread_time() - cpu, given))

        uvloop.run(work())

    workers = [threading.Thread(target=thread) for _ in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    begin = time.perf_counter()
    over.wait(seconds)
    over.set()
    elapsed = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    done = sum(result[0] for result in results)
    return {
        "kiops": done / elapsed / 1e3,
        "us_cpu": sum(result[1] for result in results) / done * 1e6,
        "waits": sum(result[2] for result in results) / done,
    }


async def table(counts: list[int], depth: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    figures: dict[tuple[str, int], list[dict[str, float]]] = {}
    async with nvme_async.open(URI, io_queues=max(counts) + 1) as controller:
        for _ in range(rounds):
            for kind in KINDS:
                for threads in counts:
                    one = await asyncio.to_thread(measure, controller, kind, threads, depth, seconds)
                    figures.setdefault((kind, threads), []).append(one)
    return [
        {
            "kind": kind,
            "threads": threads,
            **{name: statistics.median(one[name] for one in found) for name in found[0]},
            "kiops_spread": [min(one["kiops"] for one in found), max(one["kiops"] for one in found)],
        }
        for (kind, threads), found in figures.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--depth", type=int, default=32, help="I/Os in flight of each thread")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each figure in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output-format", dest="output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    rows = uvloop.run(table(options.threads, options.depth, options.seconds, options.rounds))
    if options.output == "json":
        print(json.dumps(rows, indent=2))
        return
    print("         threads   k IOPS (min to max)   µs CPU per I/O   of one thread's   waits per I/O")
    for row in rows:
        one = next(other for other in rows if other["kind"] == row["kind"])
        low, high = row["kiops_spread"]
        print(
            f"{row['kind']:8} {row['threads']:>7} {row['kiops']:>8.0f} ({low:.0f} to {high:.0f})".ljust(40)
            + f"{row['us_cpu']:>14.2f} {row['us_cpu'] / one['us_cpu']:>17.2f} {row['waits']:>15.3f}"
        )


if __name__ == "__main__":
    main()
