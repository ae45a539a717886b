"""kill -9 torture: drivers that write on four queues are killed at random instants, and their
successors check what they left.

    python tests/torture/kill9.py --rounds 200                  # with a keeper; stops at an error
    python tests/torture/kill9.py --rounds 50 --keepalive off   # without; shows the difference

The emulated controller runs in a separate process; a keeper holds it between two drivers. Each
round SIGKILL ends a driver, mostly while it writes, sometimes during its takeover; the next one,
already started and waiting, takes the controller over. It checks that every acknowledged write is
there, that no block is torn or stale, that in-flight commands are reported correctly, that each
page of the pool has exactly one owner, and (from the emulator's counters) that the controller was
never reset and got no second Identify.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import victim
from journal import BLOCK, BLOCKS, UNITS, Journal

import nvme_async.keepalive.keeper as keeper_program
from nvme_async.emulator.control import ControlClient
from nvme_async.keepalive.keeper.client import KeeperClient
from nvme_async.spec.opcodes import AdminOpcode

PATIENCE = 60.0  # seconds for anything to happen
SLACK = 1 << 20  # bytes by which the pool's use may differ between rounds: bounce pages are allocated on demand


class Failure(Exception):
    """A check failed."""


class Driver:
    """A forked process and its reports."""

    def __init__(
        self, plan: Any, journal: Journal, main: Callable[[Any, Journal, int, int], None] = victim.main
    ) -> None:
        self._reader, report = os.pipe()
        go, self._go = os.pipe()
        self._text = b""
        self.events: list[dict[str, Any]] = []
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            os.close(self._go)
            main(plan, journal, report, go)
        os.close(report)
        os.close(go)

    def __getitem__(self, event: str) -> dict[str, Any] | None:
        return next((entry for entry in self.events if entry["event"] == event), None)

    def listen(self, seconds: float) -> bool:
        """Waits for a report within a limit. False if there was none; Failure if it reports an
        error.
        """
        if not select.select([self._reader], [], [], max(0.0, seconds))[0]:
            return False
        data = os.read(self._reader, 65536)
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            entry = json.loads(line)
            if entry["event"] == "error":
                raise Failure(entry["text"])
            self.events.append(entry)
        return bool(data)

    def wait_for(self, event: str, seconds: float = PATIENCE) -> dict[str, Any]:
        limit = time.monotonic() + seconds
        while self[event] is None:
            if not self.listen(limit - time.monotonic()):
                told = [entry["event"] for entry in self.events]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGUSR1)
                    time.sleep(1)
                raise Failure(f"process {self.pid} never told {event!r}, only {told}")
        entry = self[event]
        assert entry is not None
        return entry

    def go(self) -> None:
        os.write(self._go, b"\0")

    def end(self) -> None:
        """Makes it stop writing, close its controller and exit."""
        os.kill(self.pid, signal.SIGTERM)
        self.wait_for("closed")

    def kill(self) -> int:
        """Kills it; returns the time in CLOCK_MONOTONIC nanoseconds. May be repeated."""
        instant = time.monotonic_ns()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
            while self.listen(0):
                pass
            os.close(self._reader)
            os.close(self._go)
        return instant


@contextlib.contextmanager
def serving(arguments: list[str], path: Path) -> Iterator[None]:
    """A server process, once its socket exists."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + PATIENCE
        while not path.exists():
            if process.poll() is not None or time.monotonic() > limit:
                raise Failure(f"{arguments} didn't start")
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


class Torture:
    """One run."""

    def __init__(self, plan: victim.Plan, control: ControlClient, options: argparse.Namespace) -> None:
        self._plan = plan
        self._control = control
        self._options = options
        self._journal = Journal()
        self.phases: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.opened: list[float] = []  # milliseconds from the kill until open() has returned
        self.pauses: list[float] = []  # and until the successor's first I/O has completed, after the adopted commands
        self.pool: list[int] = []
        self.number = 0
        self._line: deque[Driver] = deque()
        self._before: dict[str, Any] = {}  # the emulator's counters when the controller was first ready
        self._last: dict[str, Any] = {}  # and while the last driver was running

    @property
    def _kept(self) -> bool:
        return self._plan.keeper is not None

    def _slow(self) -> None:
        """Some commands are slow, before or after their data transfer, so that many are in
        flight when their driver dies.
        """
        for unit in random.sample(UNITS, len(UNITS) // 4):
            kind = random.choice(("delay", "delay_post"))
            self._control.call("add", queue="io", cdw10=unit.lba, **{kind: random.choice((0.002, 0.005, 0.02))})

    def _check_controller(self) -> None:
        counters = self._control.call("counters")
        if not self._before:
            self._before = counters
        if not self._kept:
            return
        for name in ("enables", "disables", "resets", "shutdowns", "fatals", "invalid_doorbells"):
            if counters[name] != self._before[name]:
                raise Failure(
                    f"the controller has {counters[name]} {name}, and had {self._before[name]} when it was first up"
                )
        for opcode in [AdminOpcode.IDENTIFY] + ([] if self._plan.visitors else [AdminOpcode.CREATE_IO_CQ]):
            now, then = (found["admin"].get(str(int(opcode)), 0) for found in (counters, self._before))
            if now != then:
                raise Failure(
                    f"the controller has had {now} {opcode.name} commands, and had {then} when it was first up"
                )

    def _count(self, driver: Driver, killed_at: int) -> None:
        """The reports of a driver that has got this far."""
        opened, verified = driver["opened"], driver["verified"]
        if opened is not None:
            self.totals.update({name: opened[name] for name in ("adopted", "unsent", "failed")})
            if opened["resets"]:
                raise Failure(f"process {driver.pid} reset the controller")
        if verified is not None:
            self.totals["checked"] += 1
            self.totals["unreported"] += verified["unreported"]
            if killed_at and opened is not None:
                self.opened.append((opened["took"] - killed_at) / 1e6)
                self.pauses.append((verified["first_io"] - killed_at) / 1e6)
            self.pool.append(verified["pool"])

    def _queue_up(self, n: int) -> None:
        """So many successors are started, and wait in a known order: the keeper serves the
        first.
        """
        while len(self._line) < n:
            successor = Driver(self._plan, self._journal)
            self._line.append(successor)
            successor.wait_for("standby")
            if self._plan.keeper is None:
                continue
            limit = time.monotonic() + PATIENCE
            with KeeperClient(self._plan.keeper) as keeper:
                while [deposit.waiting for deposit in keeper.deposits()] != [len(self._line)]:
                    if time.monotonic() > limit:
                        raise Failure(f"process {successor.pid} isn't in line at the keeper: {keeper.deposits()}")
                    time.sleep(0.001)

    def _kill_sometime(self, driver: Driver) -> int:
        """Most die while they write; some during the takeover or the checks."""
        if random.random() < self._options.early:
            self._queue_up(1)
            time.sleep(random.uniform(0, self._options.takeover / 1000))
        else:
            self._queue_up(2)
            driver.wait_for("running")
            time.sleep(random.uniform(0.005, self._options.run / 1000))
        while driver.listen(0):
            pass
        told = driver.events[-1]["event"]
        self.phases[{"standby": "taking over", "opened": "checking", "verified": "checking"}.get(told, "writing")] += 1
        return driver.kill()

    def run(self) -> None:
        self._slow()
        driver = Driver(self._plan, self._journal)
        try:
            driver.go()
            driver.wait_for("running")
            self._check_controller()
            driver, killed_at = self._rounds(driver)
            driver.wait_for("running")
            self._check_controller()
            self._last = self._control.call("counters")
            driver.end()
            self._count(driver, killed_at)
            self._check_pool()
        finally:
            for process in (driver, *self._line):
                process.kill()

    def _rounds(self, driver: Driver) -> tuple[Driver, int]:
        """The last driver, and when the previous one was killed."""
        rounds = self._options.rounds
        began = time.monotonic()
        killed_at = 0
        for self.number in range(1, rounds + 1):
            instant = self._kill_sometime(driver)
            self._count(driver, killed_at)
            killed_at = instant
            driver = self._line.popleft()
            driver.go()
            if self.number % 10 == 0:
                self._check_controller()
            if sys.stderr.isatty():
                each = (time.monotonic() - began) / self.number
                print(f"\r{self.number} of {rounds} rounds, {each:.2f} s each ", end="", file=sys.stderr)
        self.totals["seconds"] = round(time.monotonic() - began)
        return driver, killed_at

    def _check_pool(self) -> None:
        """Nothing leaks: the pool's use after the checks doesn't grow with the rounds."""
        third = len(self.pool) // 3
        if third >= 5:
            early, late = max(self.pool[third : 2 * third]), max(self.pool[2 * third :])
            if late > early + SLACK:
                raise Failure(
                    f"the pool's use grows: {early} bytes in the second third of the rounds, {late} in the last"
                )

    def summary(self) -> str:
        counters = self._last

        def times(milliseconds: list[float]) -> str:
            p99 = sorted(milliseconds)[min(len(milliseconds) - 1, int(len(milliseconds) * 0.99))]
            return f"median {statistics.median(milliseconds):.1f} ms, p99 {p99:.1f} ms, max {max(milliseconds):.1f} ms"

        identify = str(int(AdminOpcode.IDENTIFY))
        created = str(int(AdminOpcode.CREATE_IO_CQ))
        total = self.totals
        rows = [
            ("rounds", f"{self._options.rounds} in {total['seconds']} s"),
            ("killed while", ", ".join(f"{phase} {count}" for phase, count in sorted(self.phases.items()))),
            ("acknowledged writes", f"{sum(self._journal.writes)}; lost 0, torn 0, stale 0"),
            (
                "commands out at death",
                f"{total['adopted']} given to successors ({total['unsent']} never sent, {total['failed']} failed)",
            ),
            ("unreported writes", f"{total['unreported']} had happened"),
            (
                "pool in use",
                f"{self.pool[0] >> 10} KiB first, {self.pool[-1] >> 10} KiB last"
                if self._kept
                else "a new one each time",
            ),
            (
                "controller",
                f"enabled {counters['enables']} times, reset {counters['resets'] - self._before['resets']} times since",
            ),
            ("Identify, Create I/O CQ", f"{counters['admin'].get(identify, 0)}, {counters['admin'].get(created, 0)}"),
            ("invalid doorbells", str(counters["invalid_doorbells"])),
            ("from kill to open controller", times(self.opened)),
            ("from kill to first new I/O", times(self.pauses)),
        ]
        title = f"keepalive {'on' if self._kept else 'off'}"
        return "\n".join([title] + [f"  {name:<30} {value}" for name, value in rows])


def torture(options: argparse.Namespace, *, kept: bool) -> str:
    """One run; returns the summary. Failure describes the error."""
    with tempfile.TemporaryDirectory(prefix="kill9-") as folder, contextlib.ExitStack() as stack:
        device, control, keeper = (Path(folder) / name for name in ("device", "control", "keeper"))
        size = (-(-BLOCKS * BLOCK >> 20)) + 1
        emulate = [
            "-m",
            "nvme_async.cli.main",
            "emulate",
            "--socket",
            str(device),
            "--control",
            str(control),
            "--size",
            f"{size}MiB",
        ]
        stack.enter_context(serving(emulate, device))
        if kept:
            stack.enter_context(
                serving(
                    ["-I", "-S", os.path.dirname(keeper_program.__file__), "--socket", str(keeper), "--quiet"], keeper
                )
            )
        plan = victim.Plan(f"vfio-user:{device}", str(keeper) if kept else None, options.visitors)
        run = Torture(plan, stack.enter_context(ControlClient(str(control))), options)
        try:
            run.run()
        except Failure as failure:
            held = subprocess.run(
                [sys.executable, "-m", "nvme_async.cli.main", "keeper", "--socket", str(keeper), "--status"],
                capture_output=True,
                text=True,
                check=False,
            )
            raise Failure(f"round {run.number}: {failure}\nkeeper: {held.stdout}{held.stderr}") from None
        return run.summary()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--keepalive", choices=("on", "off", "both"), default="on")
    parser.add_argument(
        "--run", type=float, default=250, metavar="MS", help="longest run time after the checks (%(default)s)"
    )
    parser.add_argument(
        "--takeover",
        type=float,
        default=150,
        metavar="MS",
        help="longest run time of drivers that die early (%(default)s)",
    )
    parser.add_argument(
        "--early", type=float, default=0.3, metavar="SHARE", help="how many die before they write (%(default)s)"
    )
    parser.add_argument(
        "--visitors", action="store_true", help="event loops come and go, and their queue pairs with them"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of the instants; what happens at them is never the same twice"
    )
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    print(f"seed {seed}", flush=True)
    for kept in {"on": [True], "off": [False], "both": [True, False]}[options.keepalive]:
        random.seed(seed)
        try:
            print("\n" + torture(options, kept=kept), flush=True)
        except Failure as failure:
            print(f"\nFAILED: {failure}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
