#!/usr/bin/env python3
"""How long I/O pauses when a worker of a shared controller hands over to its successor.

    python benchmarks/worker_handover.py [--uri URI] [--rounds 100] [--iodepth 32] [--drained]
                                         [--json]

An owner in a process of its own shares the controller (--uri, by default emulated). In this process
a worker reads random 4 KiB blocks with --iodepth out, and hands over to a successor in the same
process, which continues with its queue pair; --drained: with a lease of its own, once the
predecessor's commands have completed. "pause" is from the instant at which the predecessor stands
still to the end of take_over(); "gap" from the predecessor's last completion to the successor's
first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from typing import Any

import nvme_async


class Load:
    """Readers of one worker; they end with its controller."""

    def __init__(self, controller: nvme_async.Controller, depth: int) -> None:
        self.first = self.last = 0
        self.done = 0
        namespace = next(iter(controller.namespaces.values()))
        blocks = max(1, 4096 // namespace.block_size)
        self._tasks = [asyncio.create_task(self._read(namespace, number, blocks)) for number in range(depth)]

    async def _read(self, namespace: nvme_async.Namespace, number: int, blocks: int) -> None:
        places = random.Random(number)
        with contextlib.suppress(nvme_async.QueueShutdown, nvme_async.HandedOver):
            while True:
                await namespace.read(places.randrange(4096) * blocks, blocks)
                self.last = time.monotonic_ns()
                self.first = self.first or self.last
                self.done += 1

    async def answered(self, commands: int) -> None:
        while self.done < commands:
            await asyncio.sleep(0)

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)


def milliseconds(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    rank = max(0, -(-len(values) * 99 // 100) - 1)
    return {
        "rounds": len(values),
        "median_ms": round(statistics.median(values), 3),
        "p99_ms": round(values[rank], 3),
        "max_ms": round(values[-1], 3),
    }


async def measure(path: str, folder: str, rounds: int, depth: int, drained: bool) -> dict[str, Any]:
    pauses, gaps = [], []
    options: dict[str, Any] = {"keepalive": False} if drained else {}
    controller = await nvme_async.open(f"shared:{path}")
    load = Load(controller, depth)
    for number in range(rounds + 2):
        await load.answered(4 * depth)
        where = f"{folder}/{number % 2}"
        async with controller.handover(where) as offer:
            successor = await nvme_async.take_over(where, **options)
            following = Load(successor, depth)
            await following.answered(1)
            await offer
        await load.ended()
        if number >= 2 and successor.adopted.pause is not None:
            pauses.append(successor.adopted.pause * 1e3)
            gaps.append((following.first - load.last) / 1e6)
        controller, load = successor, following
    await controller.close()
    return {"iodepth": depth, "drained": drained, "pause": milliseconds(pauses), "gap": milliseconds(gaps)}


async def run(uri: str, rounds: int, depth: int, drained: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nvme-async-") as folder:
        path = f"{folder}/shared"
        owner = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nvme_async", "share", uri, "--socket", path, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert owner.stdout is not None
            if b"shared at" not in await asyncio.wait_for(owner.stdout.readline(), 60):
                raise SystemExit("the owner did not start")
            return {"uri": uri, **await measure(path, folder, rounds, depth, drained)}
        finally:
            if owner.returncode is None:
                owner.terminate()
            await owner.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uri", default="emulated:size=64MiB,block=4096")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--iodepth", type=int, default=32)
    parser.add_argument("--drained", action="store_true", help="the successor has queue pairs of its own")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = asyncio.run(run(arguments.uri, arguments.rounds, arguments.iodepth, arguments.drained))
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"{report['uri']}: a worker with {report['iodepth']} reads out, {report['pause']['rounds']} hand-overs")
    for name in ("pause", "gap"):
        figures = report[name]
        print(f"{name:<6} median {figures['median_ms']:8.3f} ms   p99 {figures['p99_ms']:8.3f} ms")


if __name__ == "__main__":
    main()
