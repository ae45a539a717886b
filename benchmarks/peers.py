#!/usr/bin/env python3
"""This driver compared with what a Python user would use today: 4 KiB random reads of the same
RAM-backed data, awaited, on one event loop.

    pip install caio aiofile liburing      (missing ones are left out)
    python benchmarks/peers.py [--rounds 5] [--seconds 0.5] [--json]

The peers read a file on tmpfs through the kernel; nvme_async reads the emulated controller's RAM
through NVMe queues, copying 4 KiB in the controller and 4 KiB into the bytes object, as in the
peers' reads. All take turns within each round; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvloop

import nvme_async

BLOCK = 4096
SIZE = 64 << 20
Read = Callable[[int], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def ours(path: str) -> AsyncIterator[Read]:
    async with nvme_async.open(f"emulated:size={SIZE},block={BLOCK}") as controller:
        namespace = controller.namespaces[1]
        with open(path, "rb") as file:
            step = 1 << 20
            for lba in range(0, SIZE // BLOCK, step // BLOCK):
                await namespace.write(lba, file.read(step))
        yield namespace.read


def caio_with(module: str) -> Callable[[str], contextlib.AbstractAsyncContextManager[Read]]:
    @contextlib.asynccontextmanager
    async def opened(path: str) -> AsyncIterator[Read]:
        import importlib

        context = importlib.import_module(f"caio.{module}").AsyncioContext(max_requests=256)
        fd = os.open(path, os.O_RDONLY)
        try:
            yield lambda block: context.read(BLOCK, fd, block * BLOCK)
        finally:
            context.close()
            os.close(fd)

    return opened


@contextlib.asynccontextmanager
async def aiofile_(path: str) -> AsyncIterator[Read]:
    import aiofile

    file = aiofile.AIOFile(path, "rb")
    await file.open()
    try:
        yield lambda block: file.read_bytes(BLOCK, block * BLOCK)
    finally:
        await file.close()


@contextlib.asynccontextmanager
async def liburing_(path: str) -> AsyncIterator[Read]:
    """The binding has no asyncio interface: an eventfd, one Future per read, one submission per
    read.
    """
    import liburing

    loop = asyncio.get_running_loop()
    ring, cqe = liburing.Ring(), liburing.Cqe()
    liburing.io_uring_queue_init(256, ring)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    liburing.io_uring_register_eventfd(ring, event)
    fd = os.open(path, os.O_RDONLY)
    waiting: dict[int, tuple[asyncio.Future[bytes], bytearray]] = {}
    number = 0

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event)
        while True:
            try:
                liburing.io_uring_peek_cqe(ring, cqe)
            except BlockingIOError:
                return
            future, buffer = waiting.pop(cqe[0].user_data)
            liburing.io_uring_cqe_seen(ring, cqe[0])
            future.set_result(bytes(buffer))

    def read(block: int) -> asyncio.Future[bytes]:
        nonlocal number
        number += 1
        sqe = liburing.io_uring_get_sqe(ring)
        buffer = bytearray(BLOCK)
        liburing.io_uring_prep_read(sqe, fd, buffer, block * BLOCK)
        sqe.user_data = number
        future = loop.create_future()
        waiting[number] = future, buffer
        liburing.io_uring_submit(ring)
        return future

    loop.add_reader(event, readable)
    try:
        yield read
    finally:
        loop.remove_reader(event)
        liburing.io_uring_queue_exit(ring)
        os.close(event)
        os.close(fd)


@contextlib.asynccontextmanager
async def threads(path: str) -> AsyncIterator[Read]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield lambda block: asyncio.to_thread(os.pread, fd, BLOCK, block * BLOCK)
    finally:
        os.close(fd)


CONTENDERS: dict[str, Callable[[str], contextlib.AbstractAsyncContextManager[Read]]] = {
    "nvme_async": ours,
    "caio linux-aio": caio_with("linux_aio_asyncio"),
    "caio io_uring": caio_with("linux_uring_asyncio"),
    "caio threads": caio_with("thread_aio_asyncio"),
    "aiofile": aiofile_,
    "liburing": liburing_,
    "to_thread(os.pread)": threads,
}


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


async def attempt(name: str, path: str) -> None:
    async with CONTENDERS[name](path) as read:
        await check(read, path)


def works(name: str, path: str, loop: str) -> str:
    """Why a contender can't read the file correctly here; "" if it can. It tries in a separate
    process, because it may die of an instruction that this processor doesn't have.
    """
    command = [sys.executable, __file__, "--loop", loop, "--attempt", name, path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "no answer within 30 s"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


async def measure(loop: str, rounds: int, seconds: float, depths: list[int]) -> dict[str, Any]:
    results: dict[str, dict[int, list[float]]] = {}
    missing: dict[str, str] = {}
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        generator = random.Random(0)
        for _ in range(SIZE >> 20):
            file.write(generator.randbytes(1 << 20))
        file.flush()
        async with contextlib.AsyncExitStack() as stack:
            readers = {}
            for name, make in CONTENDERS.items():
                if name != "nvme_async" and (why := works(name, file.name, loop)):
                    missing[name] = why  # isn't installed, or this kernel or processor refuses it
                    continue
                readers[name] = await stack.enter_async_context(make(file.name))
                await check(readers[name], file.name)
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
    peers = [name for name in table if name != "nvme_async"]
    best = {depth: max(peers, key=lambda name: table[name][depth]) for depth in depths} if peers else {}
    ratios = {depth: table["nvme_async"][depth] / table[name][depth] for depth, name in best.items()}
    return {"iops": table, "spread": spread, "missing": missing, "best_peer": best, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each figure in each round")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--attempt", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    run = uvloop.run if options.loop == "uvloop" else asyncio.run
    if options.attempt:
        run(attempt(*options.attempt))
        return
    result = run(measure(options.loop, options.rounds, options.seconds, options.depths))
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"4 KiB random reads, awaited on {options.loop}, k IOPS: median (min to max) of {options.rounds} rounds")
    print(f"{'':22}" + "".join(f"{f'QD{depth}':>26}" for depth in options.depths))
    for name, row in result["iops"].items():
        cells = "".join(
            f"{row[d] / 1e3:>10.1f} ({result['spread'][name][d][0] / 1e3:.1f} to "
            f"{result['spread'][name][d][1] / 1e3:.1f})".rjust(26)
            for d in options.depths
        )
        print(f"{name:22}{cells}")
    for depth, ratio in result["ratio"].items():
        print(f"QD{depth}: {ratio:.1f} times the best peer ({result['best_peer'][depth]})")
    for name, error in result["missing"].items():
        print(f"left out: {name}: {error}")


if __name__ == "__main__":
    main()
