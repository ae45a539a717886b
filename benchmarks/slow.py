#!/usr/bin/env python3
"""Waiting for a drive that takes its time: latency and processor time of a lone awaited read in
each mode, on an emulated controller with `latency=`.

    python benchmarks/slow.py [--latency 20us 80us 300us] [--rounds 5] [--count 3000] [-o json]

beyond: the median latency less the drive's. That of interrupt mode is mostly what this machine
takes to wake a sleeping thread, which adaptive and hybrid mode measure (wake-up). CPU: of the
loop's thread, per read. The modes take turns within each round; figures are medians over rounds.
The emulated controller keeps a processor busy; the loop needs another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import uvloop

import nvme_async
from nvme_async.driver.options import MODES, Mode
from nvme_async.emulator.config import EmulatorConfig


async def lone_reads(latency: str, mode: Mode, count: int) -> dict[str, float]:
    async with nvme_async.open(f"emulated:size=16MiB,latency={latency},reactor=own", mode=mode) as controller:
        namespace, clock = controller.namespaces[1], time.perf_counter_ns
        with controller.alloc(4096) as buffer:
            for _ in range(300):  # until it has learnt
                await namespace.readinto(0, buffer)
            first = controller.inspect()["io_queues"][0]
            times = []
            cpu = time.thread_time_ns()
            for _ in range(count):
                begin = clock()
                await namespace.readinto(0, buffer)
                times.append(clock() - begin)
            cpu = time.thread_time_ns() - cpu
            last = controller.inspect()["io_queues"][0]
    times.sort()
    drive = EmulatorConfig.parse(f"latency={latency}").extras.latency * 1e6
    return {
        "median_us": times[count // 2] / 1e3,
        "p99_us": times[count * 99 // 100] / 1e3,
        "beyond_us": times[count // 2] / 1e3 - drive,
        "cpu_us": cpu / count / 1e3,
        "interrupts": (last["interrupts"] - first["interrupts"]) / count,
        "naps": (last["naps"] - first["naps"]) / count,
        "spins": (last["spins"] - first["spins"]) / count,
        "wake_us": last["wake_ns"] / 1e3,
    }


async def table(latencies: list[str], modes: list[Mode], rounds: int, count: int) -> list[dict[str, Any]]:
    figures: dict[tuple[str, Mode], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for latency in latencies:
            for mode in modes:
                figures.setdefault((latency, mode), []).append(await lone_reads(latency, mode, count))
    return [
        {"latency": latency, "mode": mode, **{name: statistics.median(one[name] for one in found) for name in found[0]}}
        for (latency, mode), found in figures.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", nargs="+", default=["20us", "80us", "300us"], help="of the drive")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=3000, help="reads of each figure")
    parser.add_argument("-o", "--output-format", dest="output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    rows = uvloop.run(table(options.latency, options.mode, options.rounds, options.count))
    if options.output == "json":
        print(json.dumps(rows, indent=2))
        return
    print("drive  mode       median us  beyond  CPU us  of interrupt's  interrupts  naps  spins  wake-up us")
    for row in rows:
        base = next((one for one in rows if one["latency"] == row["latency"] and one["mode"] == "interrupt"), row)
        print(
            f"{row['latency']:6} {row['mode']:10} {row['median_us']:>9.1f} {row['beyond_us']:>7.1f} "
            f"{row['cpu_us']:>7.1f} {row['cpu_us'] / base['cpu_us']:>15.2f} {row['interrupts']:>11.2f} "
            f"{row['naps']:>5.2f} {row['spins']:>6.2f} {row['wake_us']:>11.1f}"
        )


if __name__ == "__main__":
    main()
