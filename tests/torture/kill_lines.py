"""kill -9 at a line: drivers are killed at a random line of nvme_async, and each successor must
get a working controller and its data.

    python tests/torture/kill_lines.py --rounds 200

While kill9.py kills a busy driver at random instants, this covers every phase of a driver:
bring-up, takeover, creation and deletion of queue pairs, registered memory, controller reset,
close. Each process is the successor of the one killed before it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import lines
from journal import BLOCK, BLOCKS, UNITS, Journal
from kill9 import PATIENCE, Driver, Failure, serving

import nvme_async.keepalive.keeper as keeper_program
from nvme_async.emulator.control import ControlClient


def live(task: lines.Task, journal: Journal) -> Driver:
    """A process from start to end."""
    driver = Driver(task, journal, lines.main)
    limit = time.monotonic() + PATIENCE
    while driver.listen(limit - time.monotonic()):
        pass
    if time.monotonic() >= limit:
        driver.kill()
        raise Failure(f"{task} is stuck; its reports: {driver.events}")
    driver.kill()
    return driver


def run(uri: str, keeper: str, control: ControlClient, rounds: int) -> str:
    """Returns the summary. Failure describes the error."""
    journal = Journal()
    totals: Counter[str] = Counter()
    for unit in UNITS[:12:3]:  # slow, so that they are in flight while many lines are executed
        control.call("add", queue="io", cdw10=unit.lba, delay_post=0.02)
    length = 1000  # lines of the last process that ran to its end
    for number in range(1, rounds + 1):
        task = lines.Task(
            uri,
            keeper,
            dies_at=random.randint(1, length) if number % 10 else 0,
            resets=random.random() < 0.2,
            closes=random.random() < 0.2,
            seed=number,
        )
        try:
            driver = live(task, journal)
        except Failure as failure:
            raise Failure(f"round {number}, {task}: {failure}") from None
        opened, closed = driver["opened"], driver["closed"]
        totals["lived to the end" if closed else "killed after opening" if opened else "killed before"] += 1
        totals["commands adopted"] += opened["adopted"] if opened else 0
        length = closed["lines"] if closed else length
        if number % 10 == 0 and closed is None:
            raise Failure(f"round {number}, {task}: it ended early, its reports: {driver.events}")
    counters = control.call("counters")
    if counters["invalid_doorbells"]:
        raise Failure(f"the controller saw {counters['invalid_doorbells']} invalid doorbells")
    what = ", ".join(f"{count} {name}" for name, count in sorted(totals.items()))
    return f"{rounds} rounds, lives of about {length} lines: {what}; controller enabled {counters['enables']} times"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="of the lines")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    print(f"seed {seed}", flush=True)
    random.seed(seed)
    with tempfile.TemporaryDirectory(prefix="lines-") as folder, contextlib.ExitStack() as stack:
        device, control, keeper = (Path(folder) / name for name in ("device", "control", "keeper"))
        emulate = ["-m", "nvme_async.cli.main", "emulate", "--socket", str(device), "--control", str(control)]
        stack.enter_context(serving([*emulate, "--size", f"{(BLOCKS * BLOCK >> 20) + 1}MiB"], device))
        stack.enter_context(
            serving(["-I", "-S", os.path.dirname(keeper_program.__file__), "--socket", str(keeper), "--quiet"], keeper)
        )
        try:
            print(
                run(
                    f"vfio-user:{device}", str(keeper), stack.enter_context(ControlClient(str(control))), options.rounds
                ),
                flush=True,
            )
        except Failure as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
