#!/usr/bin/env python3
"""This driver compared with what a Python user would use today: 4 KiB random reads of the same
64 MiB, awaited, on one event loop.

    python benchmarks/peers.py --install     makes build/peers-3.13 (any Python from 3.12) with all
                                             peers and this project, and measures there
    python benchmarks/peers.py [--rounds 5] [--seconds 0.5] [--disk DIRECTORY] [--json]

The peers, and nvme_async's file: device, read one file through the kernel, in four places: on tmpfs
and on a disk's file system (--disk), through the page cache and past it (O_DIRECT). What a place or
a peer does not offer is named and left out. "emulated:" is nvme_async without the kernel: NVMe
queues to the emulated controller's RAM.

Through the page cache no device is read: the figures are what a library costs, on top of a copy of
4 KiB. Past it they are the device's, up to the rate at which the library becomes the limit.

All take turns within each round; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peer_venv

# Before what only the environment of the peers may have.
if __name__ == "__main__" and "--attempt" not in sys.argv and "--here" not in sys.argv and "-h" not in sys.argv:
    at = sys.argv.index("--python") + 1 if "--python" in sys.argv else 0
    made = peer_venv.install(sys.argv[at] if at else peer_venv.find_python()) if "--install" in sys.argv else None
    if venv := made or peer_venv.existing():
        peer_venv.enter(venv, __file__, [argument for argument in sys.argv[1:] if argument != "--install"])

import uvloop
from peer_readers import BLOCK, CONTENDERS, EMULATED, OURS, SIZE, Read

PLACES = ("tmpfs, cached", "tmpfs, O_DIRECT", "disk, cached", "disk, O_DIRECT")


async def rate(read: Read, depth: int, seconds: float, seed: int) -> float:
    """Reads per second at `depth`."""
    blocks = random.Random(seed).choices(range(SIZE // BLOCK), k=4096)
    clock = time.perf_counter
    begin = clock()
    end = begin + seconds
    done = 0

    async def worker(at: int) -> None:
        nonlocal done
        while True:
            for _ in range(64):
                data = await read(blocks[at & 4095])
                at += 1
            assert len(data) == BLOCK
            done += 64
            if clock() > end:
                return

    await asyncio.gather(*(worker(index * 128) for index in range(depth)))
    return done / (clock() - begin)


async def check(read: Read, path: str) -> None:
    with open(path, "rb") as file:
        for block in (0, 1, 777, SIZE // BLOCK - 1):
            file.seek(block * BLOCK)
            if bytes(await read(block)) != file.read(BLOCK):
                raise RuntimeError(f"block {block} is not what the file holds")


async def attempt(name: str, path: str, direct: bool) -> None:
    async with CONTENDERS[name](path, direct) as read:
        await check(read, path)


def works(name: str, path: str, direct: bool, loop: str) -> str:
    """Why a contender can't read the file correctly here; "" if it can. It tries in a separate
    process, because it may die of an instruction that this processor doesn't have.
    """
    command = [sys.executable, __file__, "--loop", loop, "--attempt", name, path, str(int(direct))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "no answer within 60 s"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


async def measure_in(
    directory: str, direct: bool, loop: str, rounds: int, seconds: float, depths: list[int]
) -> dict[str, Any]:
    """One place: k IOPS of each contender, and why others are left out."""
    results: dict[str, dict[int, list[float]]] = {}
    missing: dict[str, str] = {}
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        generator = random.Random(0)
        for _ in range(SIZE >> 20):
            file.write(generator.randbytes(1 << 20))
        file.flush()
        async with contextlib.AsyncExitStack() as stack:
            readers = {}
            for name, make in CONTENDERS.items():
                if why := works(name, file.name, direct, loop):
                    missing[name] = why  # isn't installed, or this kernel or processor refuses it
                    continue
                readers[name] = await stack.enter_async_context(make(file.name, direct))
            for turn in range(rounds + 1):
                for name, read in readers.items():
                    for depth in depths:
                        figure = await rate(read, depth, seconds if turn else seconds / 5, turn)
                        if turn:  # the first round warms up
                            results.setdefault(name, {}).setdefault(depth, []).append(figure)
    table = {
        name: {depth: statistics.median(figures) for depth, figures in row.items()} for name, row in results.items()
    }
    spread = {
        name: {depth: [min(figures), max(figures)] for depth, figures in row.items()} for name, row in results.items()
    }
    peers = [name for name in table if name not in (OURS, EMULATED)]
    best = {depth: max(peers, key=lambda name: table[name][depth]) for depth in depths} if peers else {}
    ratios = {
        name: {depth: table[name][depth] / table[peer][depth] for depth, peer in best.items()}
        for name in (EMULATED, OURS)
        if name in table
    }
    return {"iops": table, "spread": spread, "missing": missing, "best_peer": best, "ratio": ratios}


def show(place: str, result: dict[str, Any], depths: list[int]) -> None:
    print(f"\n{place:22}" + "".join(f"{f'QD{depth}':>26}" for depth in depths))
    for name, row in result["iops"].items():
        cells = "".join(
            f"{row[d] / 1e3:>10.1f} ({result['spread'][name][d][0] / 1e3:.1f} to "
            f"{result['spread'][name][d][1] / 1e3:.1f})".rjust(26)
            for d in depths
        )
        print(f"{name:22}{cells}")
    for name, ratios in result["ratio"].items():
        for depth, ratio in ratios.items():
            print(f"{name} QD{depth}: {ratio:.2f} times the best peer ({result['best_peer'][depth]})")
    for name, error in result["missing"].items():
        print(f"left out: {name}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="the peers, into a virtual environment; needs a network")
    parser.add_argument("--python", metavar="PATH", help="for that environment; default: any from 3.12 that is found")
    parser.add_argument("--here", action="store_true", help="in this Python, though there is such an environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each figure in each round")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--disk", default=".", help="a directory on the disk's file system (default: this one)")
    parser.add_argument("--place", choices=PLACES, action="append", help="only there; several are possible")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--attempt", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    run = uvloop.run if options.loop == "uvloop" else asyncio.run
    if options.attempt:
        name, path, direct = options.attempt
        run(attempt(name, path, direct == "1"))
        return
    results = {}
    for place in options.place or PLACES:
        where, _, how = place.partition(", ")
        directory = "/dev/shm" if where == "tmpfs" else options.disk
        if not Path(directory).is_dir():
            print(f"left out: {place}: there is no {directory}", file=sys.stderr)
            continue
        measured = measure_in(
            directory, how == "O_DIRECT", options.loop, options.rounds, options.seconds, options.depths
        )
        results[place] = run(measured)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    version = ".".join(map(str, sys.version_info[:2]))
    print(f"4 KiB random reads, awaited on {options.loop}, Python {version}, k IOPS: median (min to max) of", end=" ")
    print(f"{options.rounds} rounds")
    for place, result in results.items():
        show(place, result, options.depths)
    if any("No module named" in why for result in results.values() for why in result["missing"].values()):
        print("\nsome are not installed here: python benchmarks/peers.py --install", file=sys.stderr)


if __name__ == "__main__":
    main()
