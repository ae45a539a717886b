"""Workers that share a controller are killed at random, while others verify every block.

    python tests/torture/killed_workers.py --rounds 1000

An owner has an emulated controller; steady workers write and read their own blocks and check each
byte. Each round one more worker is killed, alternating between SIGKILL at a random instant, a
random line of nvme_async, and a random machine instruction, to which it is single-stepped (ptrace).
Some of its commands are slow, so that they are in flight when it dies, and its addresses and queue
ids are lent to the worker of the next round. Afterwards

    - no worker has read a wrong byte, and none was reset;
    - the owner has the leases of the steady workers and no additional queue id, window, mapping,
      stop word, descriptor or memory map;
    - the controller saw no invalid doorbell and was not reset.

The last line reports the time from a worker's death until its queue ids can be lent again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import logging
import mmap
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import shared_worker
from lines import Killer

import nvme_async
from nvme_async.sharing.taking_back import TakingBack

PATIENCE = 60.0
STEADY = 4
MEDIUM = "emulated:size=64MiB,block=4096"
BLOCKS = shared_worker.BLOCKS
OPTIONS: dict[str, Any] = {"pool_bytes": 2 << 20, "hugepages": "never", "queue_entries": 64}
_SLOW = 0.02
_PTRACE_ATTACH, _PTRACE_SINGLESTEP = 16, 9


class Failure(Exception):
    """A check failed."""


class Process:
    """A forked process: lines of JSON from it, lines of text to it."""

    def __init__(self, main: Any, *arguments: Any) -> None:
        self._reader, report = os.pipe()
        orders, self._orders = os.pipe()
        self._text = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            os.close(self._orders)
            code = 1
            try:
                asyncio.run(main(*arguments, report, orders))
                code = 0
            except BaseException as error:
                os.write(report, json.dumps({"event": "error", "text": repr(error)}).encode() + b"\n")
            finally:
                os._exit(code)
        os.close(report)
        os.close(orders)

    def hear(self, seconds: float = PATIENCE) -> dict[str, Any] | None:
        """Its next line; None at its end. Failure for an error or a timeout."""
        limit = time.monotonic() + seconds
        while b"\n" not in self._text:
            if not select.select([self._reader], [], [], max(0.0, limit - time.monotonic()))[0]:
                raise Failure(f"process {self.pid} says nothing")
            data = os.read(self._reader, 65536)
            if not data:
                return None
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        entry: dict[str, Any] = json.loads(line)
        if entry["event"] == "error":
            raise Failure(entry["text"])
        return entry

    def order(self, line: str) -> None:
        os.write(self._orders, line.encode() + b"\n")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Waits for its end; returns its status."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._reader)
        os.close(self._orders)
        return status


# -- the owner -------------------------------------------------------------------------------------


async def owner(path: str, report: int, orders: int) -> None:
    """Shares a controller until its input ends. "check": what it holds; "times": {pid: when its
    ids were released}.
    """
    returned: dict[int, float] = {}
    original = TakingBack.return_ids

    def return_ids(self: TakingBack, lease: Any) -> None:
        original(self, lease)
        returned[lease.pid] = time.monotonic()

    TakingBack.return_ids = return_ids  # type: ignore[method-assign]
    logging.disable(logging.WARNING)
    async with nvme_async.open(MEDIUM, io_queues=32, pool_bytes=4 << 20) as controller:
        faults = controller.device.emulator.faults  # type: ignore[attr-defined]
        # Blocks of the victims, of which every fourth is slow.
        for lba in range((STEADY + 1) * BLOCKS, (STEADY + 3) * BLOCKS, 4):
            faults.add(queue="io", cdw10=lba, delay_post=_SLOW)
        share = await controller.share(path, workers=32, queues=3)
        stream = asyncio.StreamReader()
        await controller.loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(orders, "rb", buffering=0)
        )
        os.write(report, b'{"event": "shared"}\n')
        while line := (await stream.readline()).strip():
            memory, counters = controller.memory, faults.counters()
            assert memory is not None
            found: dict[str, Any] = {
                "event": "check",
                "leases": len(share.leases),
                "ids": len(controller.queues.lent),
                "windows": len(memory.windows),
                "mappings": memory.lent_mappings,
                "stop words": 1024 - 16 - len(share.stops._free),
                "connections": len(share._connections),
                "descriptors": len(os.listdir("/proc/self/fd")),
                "maps": sum("memfd:" in text for text in Path("/proc/self/maps").read_text().splitlines()),
                "vectors": len(controller.queues.maker.event_fds),
                "resets": controller.resets,
                "invalid_doorbells": counters["invalid_doorbells"],
            }
            if line == b"who":
                found["who"] = [
                    (one.pid, one.channel.closed, one.lease and one.lease.number, one._spoke, one._pending)
                    for one in share._connections
                ]
            if line == b"times":
                found["times"] = {str(pid): when for pid, when in returned.items()}
            os.write(report, json.dumps(found).encode() + b"\n")


# -- a victim --------------------------------------------------------------------------------------


async def victim(path: str, number: int, dies_at: int, report: int, orders: int) -> None:
    """Everything that a worker does. dies_at: the number of the executed line at which it dies;
    0: it survives.
    """
    logging.disable(logging.WARNING)

    def tell(event: str, **more: Any) -> None:
        os.write(report, json.dumps({"event": event, **more}).encode() + b"\n")

    killer = Killer(dies_at)
    killer.start()
    # Two alternating ranges: a successor never writes where a predecessor's last command may still
    # write.
    first = (STEADY + 1 + number % 2) * BLOCKS
    began = time.monotonic()
    async with nvme_async.open(f"shared:{path}", io_queues=2, **OPTIONS) as controller:
        tell("opened")
        namespace = controller.namespaces[1]
        size = namespace.block_size

        async def use(part: int) -> None:
            lbas = range(first + 16 * part, first + 16 * part + 16)
            blocks = {lba: shared_worker.block(number, lba, part, size) for lba in lbas}
            await asyncio.gather(*(namespace.write(lba, data) for lba, data in blocks.items()))
            got = await asyncio.gather(*(namespace.read(lba) for lba in lbas))
            for data, wanted in zip(got, blocks.values(), strict=True):
                if data != wanted:
                    raise Failure(f"wrong: {data[:32].hex()} instead of {wanted[:32].hex()}")

        await use(0)
        await use(1)
        # A queue pair is created and deleted.
        await asyncio.to_thread(lambda: asyncio.run(use(2)))
        fd = os.memfd_create("registered", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as memory:
            memory[:] = shared_worker.block(number, first + 48, 3, size)
            with await asyncio.to_thread(controller.register, memory):
                await namespace.write(first + 48, memory)
                await namespace.readinto(first + 48, memory)
        os.close(fd)
        await use(3)
        resets = controller.resets
    tell("closed", lines=killer.lines, seconds=time.monotonic() - began, resets=resets)


class Tracer:
    """Single-steps a process that it forked."""

    def __init__(self) -> None:
        self._ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self._ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._ptrace.restype = ctypes.c_long

    def step_and_kill(self, pid: int, steps: int) -> int:
        """Its first thread executes so many instructions, then it is killed. Returns how many it
        has executed: fewer if it waited in the kernel or exited; -1 if it can't be traced.
        """
        done = 0
        if self._ptrace(_PTRACE_ATTACH, pid, None, None):
            done = -1
        elif self._stops(pid, PATIENCE):
            while done < steps and not self._ptrace(_PTRACE_SINGLESTEP, pid, None, None) and self._stops(pid, 0.02):
                done += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return done

    def _stops(self, pid: int, seconds: float) -> bool:
        """Whether it stops within that time. A process that exited is left for wait()."""
        limit = time.monotonic() + seconds
        while True:
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                if found.si_code != os.CLD_TRAPPED and found.si_code != os.CLD_STOPPED:
                    return False
                os.waitpid(pid, 0)
                return True
            if time.monotonic() >= limit:
                return False


# -- the run ---------------------------------------------------------------------------------------


class Torture:
    """One run. ways: the ways of killing, alternating."""

    steady = STEADY

    def __init__(self, folder: Path, ways: tuple[str, ...]) -> None:
        self._folder = folder
        self._path = str(folder / "shared")
        self._ways = ways
        self._tracer = Tracer()
        self._totals: Counter[str] = Counter()
        self._deaths: dict[int, float] = {}
        self._seconds, self._lines = 0.2, 1000

    def run(self, rounds: int) -> str:
        """Returns the summary. Failure describes the error."""
        with self.owned(), self._steady() as steady:
            # The first two show how long a worker runs, and trigger all one-time growth.
            for number in (0, 1):
                self._live(number, "lives")
            before = self._settled()
            for number in range(2, rounds + 2):
                way = self._ways[number % len(self._ways)] if number % 10 else "lives"
                try:
                    self._live(number, way)
                    self._still(steady)
                except Failure as failure:
                    raise Failure(f"round {number - 1}, {way}: {failure}") from None
                if number % 50 == 0:
                    self._compare(before, self._settled())
            after = self._settled()
            self._compare(before, after)
            self._owner.order("times")
            told = self._owner.hear()
            assert told is not None
        return self._summary(rounds, {int(pid): when for pid, when in told["times"].items()}, steady)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """While the owner runs, which must end without an error."""
        self._owner = Process(owner, self._path)
        self._owner.hear()
        try:
            yield
            self._owner.order("")
            if self._owner.hear() is not None or self._owner.end():
                raise Failure("the owner did not end well")
        except BaseException:
            self._owner.kill()
            raise

    def _live(self, number: int, way: str) -> None:
        dies_at = random.randint(1, self._lines) if way == "line" else 0
        process = Process(victim, self._path, number, dies_at)
        closed: dict[str, Any] | None = None
        opened = False
        if way in ("instant", "instruction"):
            time.sleep(random.random() * 1.1 * self._seconds)
            if way == "instruction":
                steps = self._tracer.step_and_kill(process.pid, random.randint(0, 3000))
                self._totals["instructions stepped"] += max(steps, 0)
                self._totals["not traced"] += steps < 0
            process.kill()
        died = time.monotonic()
        while (entry := process.hear()) is not None:
            opened = opened or entry["event"] == "opened"
            closed = entry if entry["event"] == "closed" else closed
        if way in ("instant", "instruction") and closed is None:
            self._deaths[process.pid] = died
        status = process.end()
        if closed is not None:
            self._lines = closed["lines"] or self._lines
            self._seconds = closed["seconds"] if way == "lives" else self._seconds
            if closed["resets"]:
                raise Failure(f"a victim was reset {closed['resets']} times")
        elif way == "lives" or not os.WIFSIGNALED(status):
            raise Failure(f"a victim that should live ended with {status:#x}")
        name = "lived to the end" if closed else "killed after opening" if opened else "killed before"
        self._totals[f"{way}: {name}"] += 1

    def _check(self) -> dict[str, int]:
        self._owner.order("check")
        found = self._owner.hear()
        assert found is not None
        del found["event"]
        return found

    def _settled(self) -> dict[str, int]:
        """Waits until the owner has only the resources of the steady workers."""
        limit = time.monotonic() + PATIENCE
        while True:
            found = self._check()
            names = ("leases", "ids", "windows", "stop words", "connections")
            if all(found[name] == self.steady for name in names):
                return found
            if time.monotonic() > limit:
                self._owner.order("who")
                raise Failure(f"the owner still has {found}: {self._owner.hear()}")
            time.sleep(0.05)

    def _compare(self, before: dict[str, int], after: dict[str, int]) -> None:
        if before != after:
            raise Failure(f"the owner has {after}, and before it had {before}")

    @contextlib.contextmanager
    def _steady(self) -> Iterator[list[subprocess.Popen[bytes]]]:
        processes = []
        try:
            for seed in range(1, self.steady + 1):
                with (self._folder / f"steady-{seed}").open("wb") as log:
                    command = [
                        sys.executable,
                        shared_worker.__file__,
                        self._path,
                        str(seed),
                        "pool_bytes=2097152",
                        "io_queues=1",
                    ]
                    processes.append(
                        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
                    )
            limit = time.monotonic() + PATIENCE
            while any("ready" not in self._said(seed) for seed in range(1, self.steady + 1)):
                if time.monotonic() > limit:
                    raise Failure("the steady workers did not begin")
                time.sleep(0.02)
            yield processes
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            for process in processes:
                process.wait(PATIENCE)
            self._still(processes, ended=True)
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def _said(self, seed: int) -> str:
        return (self._folder / f"steady-{seed}").read_text()

    def _still(self, processes: list[subprocess.Popen[bytes]], *, ended: bool = False) -> None:
        for seed, process in enumerate(processes, 1):
            if process.poll() is not None and (not ended or process.returncode):
                raise Failure(f"steady worker {seed} ended: {self._said(seed)[-500:]}")

    def _verified(self, steady: list[subprocess.Popen[bytes]]) -> int:
        """The number of rounds that the steady workers have verified. Failure if one of them was
        reset.
        """
        verified = 0
        for seed in range(1, len(steady) + 1):
            words = self._said(seed).split()
            if int(words[words.index("resets") + 1]):
                raise Failure(f"steady worker {seed} was reset")
            verified += int(words[words.index("done") + 1])
        return verified

    def _summary(self, rounds: int, times: dict[int, float], steady: list[subprocess.Popen[bytes]]) -> str:
        verified = self._verified(steady)
        waits = sorted(times[pid] - died for pid, died in self._deaths.items() if pid in times)
        what = ", ".join(f"{count} {name}" for name, count in sorted(self._totals.items()) if count)
        text = f"{rounds} rounds: {what}; {verified} rounds of 8 blocks verified beside them, 0 wrong, 0 left"
        if len(waits) > 1:
            p99 = waits[min(len(waits) - 1, len(waits) * 99 // 100)]
            text += (
                f"; from a death to its queue ids being free: median {1000 * statistics.median(waits):.1f} ms, "
                f"p99 {1000 * p99:.1f} ms, most {1000 * waits[-1]:.1f} ms of {len(waits)}"
            )
        return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--ways", default="instant,line,instruction", help="of killing, in turn")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    print(f"seed {seed}", flush=True)
    random.seed(seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="workers-") as folder:
        try:
            print(Torture(Path(folder), tuple(options.ways.split(","))).run(options.rounds), flush=True)
        except Failure as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
