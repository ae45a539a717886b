#!/usr/bin/env python3
"""What sharing a controller costs and gives: workers against a private controller, many workers,
and a worker's longest gap while the owner is replaced.

    python benchmarks/sharing.py cost                 instructions per awaited read (perf, otherwise
                                                      callgrind)
    python benchmarks/sharing.py scale [--seconds 2]  1, 2, 4, 8 workers on one controller
    python benchmarks/sharing.py gaps [--rounds 100]  handed over, exec'd, killed: the longest gap
                                                      of a worker

The controller is an emulated one in a process of its own, with a medium that stores nothing. `cost`
counts what one await of a 4 KiB read executes in user space, on a loop-back controller, with and
without a lease's stop word: all that differs in a worker. In `gaps` windows with and without an
event alternate; in those without, a process of the same kind starts and ends, so that both have the
same company. The figure is the ratio of the two 99th percentiles.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

import nvme_async
from nvme_async.keepalive import keeper as keeper_program

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import probing

PATIENCE = 60.0
DEPTH = 32
BATCH = 1024


# -- processes
# ---------------------------------------------------------------------------------------


class Role:
    """A process of this program with another role; lines to and fro."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, "--role", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"a process ended: {self.process.args}")
        return line

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def serving(arguments: list[str], path: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + PATIENCE
        while not path.exists():
            if process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"{arguments} did not start")
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def site(keeper: bool) -> Iterator[Path]:
    """A folder with the sockets of an emulated controller ("device") and, if wanted, a keeper."""
    with tempfile.TemporaryDirectory(prefix="sharing-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        emulate = ["-m", "nvme_async", "emulate", "--medium", "null", "--queues", "16", "--socket"]
        stack.enter_context(serving([*emulate, str(folder / "device")], folder / "device"))
        if keeper:
            program = os.path.dirname(keeper_program.__file__)
            arguments = ["-I", "-S", program, "--quiet", "--socket", str(folder / "keeper")]
            stack.enter_context(serving(arguments, folder / "keeper"))
        yield folder


async def lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def owner(folder: str, how: str) -> None:
    """Opens the controller and shares it; releases it as the commands on stdin say."""
    place = Path(folder)
    orders = await lines()
    print("begun", flush=True)
    if how.startswith("take="):
        await orders.readline()
        opening = nvme_async.take_over(how.removeprefix("take="))
    else:
        kept = str(place / "keeper") if (place / "keeper").exists() else "none"
        opening = nvme_async.open(
            f"vfio-user:{place}/device", keeper=kept, keeper_wait=PATIENCE, keepalive=True, io_queues=16
        )
    controller = await opening
    await controller.share(place / "shared", workers=16)
    print("ready", flush=True)
    what, _, where = (await orders.readline()).decode().strip().partition(" ")
    if what == "handover":
        async with controller.handover(where) as offer:
            print("offering", flush=True)
            await offer
    elif what == "exec":
        await controller.exec([sys.executable, __file__, "--role", "owner", folder, "open"])
    else:
        await controller.close()
    print("left", flush=True)


async def gap_worker(folder: str) -> None:
    """Awaits one read after the other; says the longest time between two when it is asked, and
    begins anew.
    """
    orders = await lines()
    longest, done = 0, 0
    async with nvme_async.open(f"shared:{folder}/shared") as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)
        print("ready", flush=True)
        order = asyncio.ensure_future(orders.readline())
        last = time.monotonic_ns()
        while True:
            await namespace.read(done % 1024)
            now = time.monotonic_ns()
            longest, last, done = max(longest, now - last), now, done + 1
            if done % 16 == 0:
                await asyncio.sleep(0)  # for its own connection to the owner, and orders
            if order.done():
                if not order.result():
                    return
                print(longest, flush=True)
                order = asyncio.ensure_future(orders.readline())
                longest, last = 0, time.monotonic_ns()


async def rate_worker(uri: str, what: str, seconds: float) -> None:
    """As many reads as there can be; says how many, and its CPU seconds."""
    orders = await lines()
    async with nvme_async.open(uri) as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)
        print("ready", flush=True)
        await orders.readline()
        before, end, done = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() + seconds, 0

        async def one() -> None:
            nonlocal done
            buffer = controller.alloc(4096)
            while time.monotonic() < end:
                await namespace.readinto(done % 4096, buffer)
                done += 1

        if what == "await":
            await asyncio.gather(*(one() for _ in range(DEPTH)))
        else:
            lbas = array("Q", range(BATCH))
            into = controller.alloc(BATCH * 4096)
            while time.monotonic() < end:
                await namespace.read_many(lbas, into=into, depth=DEPTH)
                done += BATCH
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"done": done, "cpu": cpu}), flush=True)


# -- gaps
# --------------------------------------------------------------------------------------------


class Gaps:
    """One kind of replacement, again and again, beside a worker."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind, self._number = folder, kind, 0
        self._owner = Role("owner", str(folder), "open")
        self._wait(self._owner, "ready")
        self._worker = Role("gap", str(folder))
        self._wait(self._worker, "ready")

    @staticmethod
    def _wait(role: Role, word: str) -> None:
        while role.hear() != word:
            pass

    def longest(self) -> float:
        """Milliseconds, since it was asked last."""
        self._worker.say("")
        return int(self._worker.hear()) / 1e6

    def event(self) -> None:
        self._number += 1
        if self._kind == "exec":
            self._owner.say("exec")
            self._wait(self._owner, "ready")
            return
        how = f"take={self._folder}/offer-{self._number}" if self._kind == "hand-over" else "open"
        successor = Role("owner", str(self._folder), how)
        self._wait(successor, "begun")
        if self._kind == "hand-over":
            self._owner.say(f"handover {self._folder}/offer-{self._number}")
            self._wait(self._owner, "offering")
            successor.say("go")
            self._wait(successor, "ready")
            self._owner.process.communicate()
        else:
            self._owner.kill()
            self._wait(successor, "ready")
        self._owner = successor

    def sham(self) -> None:
        """The same company: a process that starts as a successor does."""
        process = Role("sham")
        process.hear()
        process.process.communicate()

    def run(self, rounds: int) -> dict[str, Any]:
        found: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(rounds):
            for name, what in (("with", self.event), ("without", self.sham)):
                self.longest()
                began = time.monotonic()
                what()
                time.sleep(max(0.2, 0.5 - (time.monotonic() - began)))
                found[name].append(self.longest())
        self._worker.process.communicate()
        self._owner.say("close")
        self._owner.process.communicate()
        p99 = {name: sorted(values)[min(len(values) - 1, len(values) * 99 // 100)] for name, values in found.items()}
        return {
            "kind": self._kind,
            "rounds": rounds,
            **{f"median_{name}": round(statistics.median(values), 2) for name, values in found.items()},
            **{f"p99_{name}": round(value, 2) for name, value in p99.items()},
            "ratio": round(p99["with"] / p99["without"], 2),
        }


def gaps(options: argparse.Namespace) -> None:
    print(f"longest gap of a worker, milliseconds, {options.rounds} windows with and without:")
    for kind in options.kinds.split(","):
        with site(keeper=kind == "kill -9") as folder:
            print(json.dumps(Gaps(folder, kind).run(options.rounds)), flush=True)


# -- scale
# -------------------------------------------------------------------------------------------


def scale(options: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, of which the emulated controller takes one; 4 KiB reads, {DEPTH} at a time in each worker")
    for what in ("await", "many"):
        with site(keeper=False) as folder:
            private = measure([f"vfio-user:{folder}/device"], what, options.seconds)
            show(f"{what}: private controller", private)
            has = Role("owner", str(folder), "open")
            Gaps._wait(has, "ready")
            for count in (1, 2, 4, 8):
                show(f"{what}: {count} workers", measure([f"shared:{folder}/shared"] * count, what, options.seconds))
            has.say("close")
            has.process.communicate()


def measure(uris: list[str], what: str, seconds: float) -> list[dict[str, float]]:
    workers = [Role("rate", uri, what, str(seconds)) for uri in uris]
    for worker in workers:
        Gaps._wait(worker, "ready")
    for worker in workers:
        worker.say("go")
    found = [json.loads(worker.hear()) for worker in workers]
    for worker in workers:
        worker.process.communicate()
    return [{**one, "seconds": seconds} for one in found]


def show(name: str, found: list[dict[str, float]]) -> None:
    done, cpu = sum(one["done"] for one in found), sum(one["cpu"] for one in found)
    print(f"{name}: {done / found[0]['seconds'] / 1000:.0f} k IOPS, {1e6 * cpu / done:.2f} us of CPU each", flush=True)


# -- cost
# --------------------------------------------------------------------------------------------


def cost(options: argparse.Namespace) -> None:
    probing.built()
    figures = {}
    for name, lent in (("private", "0"), ("worker", "1")):
        totals = [instructions([sys.executable, __file__, "--role", "cost", lent, str(n)]) for n in options.counts]
        figures[name] = (totals[1] - totals[0]) / (options.counts[1] - options.counts[0])
        print(f"{name}: {figures[name]:.1f} instructions per awaited 4 KiB read", flush=True)
    print(f"ratio {figures['worker'] / figures['private']:.4f}")


def instructions(command: list[str]) -> int:
    """Of the whole process, in user space."""
    if shutil.which("valgrind") is None:
        raise SystemExit("cost needs valgrind")
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out"
        subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *command],
            check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        return next(int(line.split()[1]) for line in Path(out).read_text().splitlines() if line.startswith("summary:"))


def cost_workload(lent: bool, count: int) -> None:
    from nvme_async.native._mmio import Mmio

    async def main() -> None:
        device = probing.load().LoopBack(asyncio.get_running_loop())
        if lent:
            fd = os.memfd_create("stop")
            os.ftruncate(fd, 4096)
            device.qp.set_stop_word(Mmio(fd, 0, 4096, writable=False), 2048, 0)
            os.close(fd)

        async def worker() -> None:
            read = device.read
            for _ in range(count // DEPTH):
                await read(0)

        await asyncio.gather(*(worker() for _ in range(DEPTH)))
        device.close()

    asyncio.run(main())


def role(arguments: list[str]) -> None:
    name, *rest = arguments
    if name == "owner":
        uvloop.run(owner(*rest))
    elif name == "gap":
        uvloop.run(gap_worker(*rest))
    elif name == "rate":
        uvloop.run(rate_worker(rest[0], rest[1], float(rest[2])))
    elif name == "cost":
        cost_workload(rest[0] == "1", int(rest[1]))
    else:
        print("begun", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "scale", "gaps"))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of scale")
    parser.add_argument("--rounds", type=int, default=100, help="of gaps")
    parser.add_argument("--kinds", default="hand-over,exec,kill -9", help="of gaps")
    parser.add_argument("--counts", type=int, nargs=2, default=(4_000, 44_000), help="reads of the two runs of cost")
    options = parser.parse_args()
    {"cost": cost, "scale": scale, "gaps": gaps}[options.what](options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        role(sys.argv[2:])
    else:
        main()
