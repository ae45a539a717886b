#!/usr/bin/env python3
"""How long I/O pauses when a running controller is handed from one process to another, compared
with a fresh bring-up; and the cost of a save.

    python benchmarks/keepalive.py [--uri URI] [--rounds 100] [--queues 4] [--iodepth 32] [--json]

Two processes hand one controller to and fro. Each has --queues event loops, and so queue pairs: the
controller's home loop, and threads; with --iodepth random 4 KiB reads out on each. The pause of a
hand-over is from the last completion that the old process got to the first command that the new one
has sent, so with the predecessor's commands drained in between. "Answered" is until that load's
first completion, "all queues" until each of the new process's loops has had one. "floor" is a bare
exchange of two messages between the two processes under the same load, a few before each hand-over:
what no hand-over can be quicker than. "fresh" is the same without keepalive: a clean shutdown and a
bring-up (--fresh rounds).

--uri: a vfio-user: or pci: device whose contents may be read; by default an emulated controller in
a process of its own.

--deaths: a process that has the load is killed, and one that called nvme_async.stand_by() takes
over. The save is timed in one process, with one queue pair and with as many as the controller
grants (--save-queues, each with a thread).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop
from keepalive_load import BLOCK, WAIT, Loop
from keepalive_report import milliseconds, text

import nvme_async
from nvme_async.errors import NvmeError
from nvme_async.keepalive import restore

EXCHANGES = 5
"""Exchanges of two messages before each hand-over."""
SHOWN = 3
"""Slowest hand-overs of which the phases are shown."""


# -- one of the two processes ----------------------------------------------------------------------


class Driver:
    """Answers each line on standard input with one JSON line: open, offer, take, close."""

    def __init__(self, queues: int, depth: int) -> None:
        self._depth = depth
        home = asyncio.get_running_loop()
        self._loops = [Loop(number, depth, None if number else home) for number in range(queues)]
        self._others = [loop.loop for loop in self._loops[1:]]
        self._controller: nvme_async.Controller | None = None
        self._data = bytearray(queues * depth * BLOCK)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(4))
        await asyncio.gather(
            *(asyncio.to_thread(time.sleep, 0.01) for _ in range(4))
        )  # a prepared successor has its threads
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        print(json.dumps({"ready": os.getpid()}), flush=True)
        while line := await reader.readline():
            message = json.loads(line)
            try:
                answer = await getattr(self, "do_" + message.pop("do"))(**message)
            except (NvmeError, OSError, TimeoutError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer or {}), flush=True)

    async def _run(self, controller: nvme_async.Controller) -> dict[str, Any]:
        """Runs the load until each loop has had a completion."""
        self._controller = controller
        began = time.monotonic_ns()
        namespace = next(iter(controller.namespaces.values()))
        view = memoryview(self._data)
        for number, loop in enumerate(self._loops):
            places = range(number * self._depth, (number + 1) * self._depth)
            buffers = [view[place * BLOCK : (place + 1) * BLOCK] for place in places]
            if number:
                loop.start(namespace, buffers)
            else:
                loop.start_here(namespace, buffers)
                await asyncio.sleep(0)  # the readers' first step posts, unless the predecessor's commands are in flight
        await self._until(lambda: all(loop.first for loop in self._loops))
        adopted = controller.adopted
        return {
            "sent": min(sent for queue in controller.queues.io.values() if (sent := queue.hot.busy_ns) >= began),
            "first": min(loop.first for loop in self._loops),
            "all": max(loop.first for loop in self._loops),
            "standstill": adopted.pause,
            "adopted": len(adopted),
            "lost": sum(one.error is not None for one in adopted),
            "phases": dict(controller.phases.seconds) if controller.phases else {},
        }

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                await asyncio.sleep(0.001)

    async def do_open(self, uri: str, options: dict[str, Any]) -> dict[str, Any]:
        return await self._run(await nvme_async.open(uri, **options))

    async def do_take(self, path: str, options: dict[str, Any]) -> dict[str, Any]:
        return await self._run(await nvme_async.take_over(path, loops=self._others, **options))

    async def do_answer(self, path: str) -> None:
        """The other side of _exchange()."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, path)
            while message := await loop.sock_recv(sock, 64):
                sock.send(message)

    async def _exchange(self, path: str) -> list[int]:
        """Nanoseconds of some exchanges of two messages with the other process, which does
        do_answer().
        """
        loop = asyncio.get_running_loop()
        times = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.setblocking(False)
            listening.bind(path)
            listening.listen(1)
            print(json.dumps({"listening": path}), flush=True)
            sock, _ = await loop.sock_accept(listening)
            os.unlink(path)
        with sock:
            for _ in range(EXCHANGES):
                await asyncio.sleep(0.001)
                began = time.monotonic_ns()
                sock.send(b"go".ljust(32))
                await loop.sock_recv(sock, 64)
                times.append(time.monotonic_ns() - began)
        return times

    async def do_offer(self, path: str, each: int) -> dict[str, Any]:
        """Offers, once every loop has had `each` completions; answers when it was taken."""
        controller = self._controller
        assert controller is not None
        await self._until(lambda: all(loop.done >= each for loop in self._loops))
        floor = await self._exchange(f"{path}.floor")
        async with controller.handover(path) as offer:
            print(json.dumps({"offered": path}), flush=True)
            async with asyncio.timeout(WAIT):
                await offer
        for loop in self._loops:
            await loop.ended()
        self._controller = None
        return {"last": max(loop.last for loop in self._loops), "floor": floor}

    async def do_stand_by(self, keeper: str) -> dict[str, Any]:
        """Answers when it has the controller and all loops an answer; says before that it waits."""
        opening = asyncio.ensure_future(self._stand_by(keeper))
        await asyncio.sleep(1.0)  # rehearsed, and in line at the keeper
        print(json.dumps({"waiting": keeper}), flush=True)
        return await opening

    async def _stand_by(self, keeper: str) -> dict[str, Any]:
        return await self._run(await nvme_async.stand_by(keeper, wait=WAIT, loops=self._others))

    async def do_close(self) -> None:
        if self._controller is not None:
            await self._controller.close()


async def drive(queues: int, depth: int) -> None:
    await Driver(queues, depth).serve()


class Process:
    """A Driver in another process."""

    def __init__(self, queues: int, depth: int) -> None:
        arguments = [
            sys.executable,
            os.path.abspath(__file__),
            "--driver",
            "--queues",
            str(queues),
            "--iodepth",
            str(depth),
        ]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def tell(self, what: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a driver's process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SystemExit(answer["error"])
        return answer

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        self.tell(what, **arguments)
        return self.answer()

    def kill(self) -> tuple[int, int]:
        """By SIGKILL. When, and when the kernel says that it has ended: it tears memory and
        asynchronous I/O down first. Both of time.monotonic_ns().
        """
        fd = os.pidfd_open(self._process.pid)
        ended = select.poll()
        ended.register(fd, select.POLLIN)
        began = time.monotonic_ns()
        self._process.kill()
        ended.poll(WAIT * 1000)
        os.close(fd)
        return began, time.monotonic_ns()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()


# -- the figures -----------------------------------------------------------------------------------


def hand_to_and_fro(
    holder: Process, other: Process, folder: str, rounds: int, each: int, options: dict[str, Any]
) -> tuple[Any, ...]:
    """({name: nanoseconds of each round}, the slowest rounds, commands adopted, commands lost, the
    current owner)
    """
    times: dict[str, list[float]] = {"pause": [], "answered": [], "all_queues": [], "standstill": [], "floor": []}
    slowest: list[dict[str, float]] = []
    adopted = lost = 0
    for number in range(rounds):
        path = f"{folder}/{number % 2}.sock"
        holder.tell("offer", path=path, each=each)
        other.tell("answer", path=holder.answer()["listening"])
        holder.answer()  # offered
        other.answer()
        came = other.ask("take", path=path, options=options)
        left = holder.answer()
        for name, key in (("pause", "sent"), ("answered", "first"), ("all_queues", "all")):
            times[name].append(came[key] - left["last"])
        times["floor"] += left["floor"]
        if came["standstill"] is not None:
            times["standstill"].append(came["standstill"] * 1e9)
        for phase, seconds in came["phases"].items():
            times.setdefault(f"phase {phase}", []).append(seconds * 1e9)
        one = {name: came[key] - left["last"] for name, key in (("pause", "sent"), ("all queues", "all"))}
        one |= {phase: seconds * 1e9 for phase, seconds in came["phases"].items()}
        slowest.append({name: round(value / 1e6, 3) for name, value in one.items()})
        slowest = sorted(slowest, key=lambda one: -one["pause"])[:SHOWN]
        adopted += came["adopted"]
        lost += came["lost"]
        holder, other = other, holder
    return times, slowest, adopted, lost, holder, other


def handovers(uri: str, arguments: argparse.Namespace) -> dict[str, Any]:
    fresh: list[float] = []
    processes = [Process(arguments.queues, arguments.iodepth) for _ in range(2)]
    options = {"keepalive": True, "io_queues": arguments.queues, "pool_bytes": 64 << 20}
    try:
        with tempfile.TemporaryDirectory(prefix="nvme-async-") as folder:
            processes[0].ask("open", uri=uri, options=options)
            warm = hand_to_and_fro(*processes, folder, 4, arguments.each, {})
            times, slowest, adopted, lost, *who = hand_to_and_fro(
                *warm[-2:], folder, arguments.rounds, arguments.each, {}
            )
            for _ in range(arguments.fresh):
                found, _, _, _, *who = hand_to_and_fro(*who, folder, 1, arguments.each, {**options, "keepalive": False})
                fresh += found["pause"]
            who[0].ask("close")
    finally:
        for process in processes:
            process.close()
    result: dict[str, Any] = {
        "queues": arguments.queues,
        "iodepth": arguments.iodepth,
        **{name: milliseconds(values) for name, values in times.items() if values},
        "slowest": slowest,
        "commands_adopted": adopted,
        "commands_lost": lost,
    }
    result["pause_over_floor_median"] = round(result["pause"]["median_ms"] / result["floor"]["median_ms"], 2)
    if fresh:
        result["fresh"] = milliseconds(fresh)
        result["fresh_over_handover_median"] = round(result["fresh"]["median_ms"] / result["pause"]["median_ms"], 1)
    return result


async def _touch(namespace: nvme_async.Namespace) -> None:
    await namespace.read(0)


async def saves(uri: str, queues: int, rounds: int) -> dict[str, Any]:
    """save() of a controller with `queues` queue pairs, each of a running loop."""
    controller = await nvme_async.open(uri, keepalive=True, io_queues=queues, pool_bytes=256 << 20)
    loops = [Loop(number, 1) for number in range(queues - 1)]
    times = []
    try:
        for _ in range(rounds):
            namespace = next(iter(controller.namespaces.values()))
            await namespace.read(0)
            for loop in loops:
                await asyncio.to_thread(loop.call, _touch(namespace))
            used = len(controller.queues.io)
            begin = time.perf_counter_ns()
            bundle = await controller.save()
            times.append(float(time.perf_counter_ns() - begin))
            with bundle:
                controller = await restore(bundle)
    finally:
        await controller.close()
    return {"queue_pairs": used, **milliseconds(times)}


def deaths(uri: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """From SIGKILL to the first I/O that a successor sends which has stood by at a keeper."""
    times: dict[str, list[float]] = {"sent": [], "first": [], "kernel": [], "after": []}
    options = {"keepalive": True, "io_queues": arguments.queues, "pool_bytes": 64 << 20}
    with tempfile.TemporaryDirectory(prefix="nvme-async-") as folder:
        keeper = f"{folder}/keeper.sock"
        command = [sys.executable, "-m", "nvme_async.cli.main", "keeper", "--socket", keeper]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as holding:
            processes: list[Process] = []
            try:
                until = time.monotonic() + WAIT
                while not os.path.exists(keeper) and time.monotonic() < until:
                    time.sleep(0.01)
                holder = Process(arguments.queues, arguments.iodepth)
                processes.append(holder)
                holder.ask("open", uri=uri, options={**options, "keeper": keeper})
                for _ in range(arguments.deaths):
                    successor = Process(arguments.queues, arguments.iodepth)
                    processes.append(successor)
                    successor.tell("stand_by", keeper=keeper)
                    successor.answer()
                    killed, ended = holder.kill()
                    came = successor.answer()
                    for name in ("sent", "first"):
                        times[name].append(came[name] - killed)
                    times["kernel"].append(ended - killed)
                    times["after"].append(max(0, came["sent"] - ended))
                    for phase, seconds in came["phases"].items():
                        times.setdefault(f"phase {phase}", []).append(seconds * 1e9)
                    holder = successor
                holder.ask("close")
            finally:
                for process in processes:
                    process.close()
                holding.terminate()
    return {name: milliseconds(values) for name, values in times.items()}


@contextlib.contextmanager
def emulated() -> Iterator[str]:
    """A controller in a separate process."""
    with tempfile.TemporaryDirectory(prefix="nvme-async-") as folder:
        path = f"{folder}/controller.sock"
        command = [
            sys.executable,
            "-m",
            "nvme_async.cli.main",
            "emulate",
            "--socket",
            path,
            "--size",
            "64MiB",
            "--mdts",
            "128KiB",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                yield f"vfio-user:{path}"
            finally:
                process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uri", help="a vfio-user: or pci: device; default: an emulated controller")
    parser.add_argument("--rounds", type=int, default=100, help="hand-overs [%(default)s]")
    parser.add_argument("--fresh", type=int, default=20, help="fresh bring-ups, 0 for none [%(default)s]")
    parser.add_argument("--queues", type=int, default=4, help="queue pairs under load [%(default)s]")
    parser.add_argument("--iodepth", type=int, default=32, help="reads out on each [%(default)s]")
    parser.add_argument(
        "--each", type=int, default=200, help="reads on each queue between two hand-overs [%(default)s]"
    )
    parser.add_argument("--deaths", type=int, default=20, help="kill -9 with a warm successor [%(default)s]")
    parser.add_argument("--save-queues", default="1,4,64", help="queue pairs to time a save with [%(default)s]")
    parser.add_argument("--save-rounds", type=int, default=20, help="saves [%(default)s]")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    parser.add_argument("--driver", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.driver:
        # Several loops in one process: by default a thread keeps the interpreter for 5 ms before
        # another one gets it.
        sys.setswitchinterval(0.0002)
        gc.freeze()  # imported objects needn't be scanned again
        uvloop.run(drive(arguments.queues, arguments.iodepth))
        return
    with contextlib.ExitStack() as stack:
        uri = arguments.uri or stack.enter_context(emulated())
        report: dict[str, Any] = {
            "uri": arguments.uri or "emulated, in a process of its own",
            "handovers": handovers(uri, arguments),
        }
        if arguments.deaths:
            report["deaths"] = deaths(uri, arguments)
        counts = [int(count) for count in arguments.save_queues.split(",") if count]
        report["saves"] = [uvloop.run(saves(uri, count, arguments.save_rounds)) for count in counts]
    print(json.dumps(report, indent=2) if arguments.json else text(report))


if __name__ == "__main__":
    main()
