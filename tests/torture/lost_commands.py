"""Fault injection: any admin command of bring-up, reset, rescan, repair or shutdown is lost,
fails once, or always fails.

    python tests/torture/lost_commands.py --rounds 1000 --seed 1

Each round opens an emulated controller with two namespaces, does one of those things while reads
are in flight, with one or two faults from KINDS and HOW in force, and checks:

    - every call ends within HANG seconds;
    - everything that can work does: only a required command that always fails may cost the
      controller, and only a namespace's own Identify that namespace;
    - a successful read has the right data;
    - without the faults one more reset repairs everything, and nothing is missing any more;
    - at the end everything is closed, and no descriptor is left.

Many controllers are driven at once, each with timeouts of a fraction of a second. The first failed
check ends the run, with the round's number: `--seed S --only N` repeats that round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import attrs

from nvme_async.device.vfio_user import VfioUserDevice
from nvme_async.driver.controller import Controller
from nvme_async.driver.options import Options
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.emulator import EmulatedController
from nvme_async.errors import ControllerError, NvmeError

T = TypeVar("T")

BLOCK = 512
HANG = 60.0
LIMIT = 0.3
OPTIONS: dict[str, Any] = {
    "admin_timeout": LIMIT,
    "command_timeout": 0.6,
    "abort_timeout": 0.15,
    "drain_timeout": 0.1,
    "shutdown_timeout": 0.3,
    "pool_bytes": 1 << 20,
    "hugepages": "never",
    "io_queues": 2,
    "queue_entries": 16,
    "admin_entries": 32,
    "max_transfer": 8192,
    "open_timeout": 0,
    # Each reset of a round may interrupt the same read.
    "retries": 20,
}
MEDIUM = f"size=64KiB,block={BLOCK},namespaces=2,queues=2,depth=32"


@attrs.frozen
class Kind:
    """Which command. required: nothing works without it. nsid: its namespace."""

    match: dict[str, Any]
    required: bool = False
    nsid: int = 0


KINDS = {
    "Identify Controller": Kind({"opcode": 0x06, "cdw10": 1}, required=True),
    "Identify Controller, NVM command set": Kind({"opcode": 0x06, "cdw10": 6}),
    "active namespaces": Kind({"opcode": 0x06, "cdw10": 2}),
    "Identify Namespace 1": Kind({"opcode": 0x06, "cdw10": 0, "nsid": 1}, nsid=1),
    "Identify Namespace 2": Kind({"opcode": 0x06, "cdw10": 0, "nsid": 2}, nsid=2),
    "identifiers of namespace 2": Kind({"opcode": 0x06, "cdw10": 3, "nsid": 2}, nsid=2),
    "I/O command set combinations": Kind({"opcode": 0x06, "match": {40: b"\x1c"}}),
    "Number of Queues": Kind({"opcode": 0x09, "cdw10": 7}),
    "event configuration, get": Kind({"opcode": 0x0A, "cdw10": 0x0B}),
    "event configuration, set": Kind({"opcode": 0x09, "cdw10": 0x0B}),
    "effects log": Kind({"opcode": 0x02, "match": {40: b"\x05"}}),
    "Doorbell Buffer Config": Kind({"opcode": 0x7C}),
    "Create I/O Completion Queue": Kind({"opcode": 0x05}, required=True),
    "Create I/O Submission Queue": Kind({"opcode": 0x01}, required=True),
    "Delete I/O Submission Queue": Kind({"opcode": 0x00}),
    "Delete I/O Completion Queue": Kind({"opcode": 0x04}),
    "Asynchronous Event Request": Kind({"opcode": 0x0C}),
    "Abort": Kind({"opcode": 0x08}),
}
STATUSES = (0x002, 0x006, 0x082, 0x101, 0x302, 0x7FF)
HOW = ("lost once", "lost for ever", "fails once", "fails for ever", "late", "fatal once", "nth lost", "nth fails")
WHEN = ("open", "reset", "rescan", "repair", "close")


class WrongError(AssertionError):
    """A check that failed."""


@attrs.define
class Fault:
    name: str
    how: str

    @property
    def for_ever(self) -> bool:
        return self.how.endswith("for ever")

    def may_cost_all(self) -> bool:
        return self.for_ever and KINDS[self.name].required

    def add(self, emulator: EmulatedController, chance: random.Random) -> None:
        what: dict[str, Any] = dict(KINDS[self.name].match)
        count = 0 if self.for_ever else 1
        skip = 0
        if self.how.startswith("nth"):
            what, skip = {}, chance.randrange(16)
        action: dict[str, Any]
        if "lost" in self.how:
            action = {chance.choice(("drop", "discard")): True}
        elif "fails" in self.how:
            action = {"fail": chance.choice(STATUSES), "dnr": chance.random() < 0.5}
        elif self.how == "late":
            action = {chance.choice(("delay", "delay_post")): LIMIT * chance.choice((0.5, 1.5, 4))}
        else:
            action = {"fatal": True}
        emulator.faults.add(queue="admin", count=count, skip=skip, **what, **action)


def block(nsid: int, lba: int) -> bytes:
    return (nsid << 32 | lba).to_bytes(8, "little") * (BLOCK // 8)


async def within(what: str, awaitable: Awaitable[T], longest: Counter[str]) -> T:
    """Returns its result or exception; WrongError if it hangs."""
    began = time.monotonic()
    task = asyncio.ensure_future(awaitable)
    await asyncio.wait([task], timeout=HANG)
    longest[what] = max(longest[what], round(1000 * (time.monotonic() - began)))
    if not task.done():
        raise WrongError(f"{what} has not ended after {HANG:g} s")
    return task.result()


class Round:
    """One controller from open() to close(). seed: of all random choices."""

    def __init__(self, seed: str, emulator: EmulatedController, tally: Counter[str], longest: Counter[str]) -> None:
        self._chance = random.Random(seed)
        self._emulator = emulator
        self._tally = tally
        self._longest = longest
        self._controller: Controller | None = None
        self.when = self._chance.choice(WHEN)
        self.faults = [
            Fault(self._chance.choice(list(KINDS)), self._chance.choice(HOW))
            for _ in range(1 if self._chance.random() < 0.8 else 2)
        ]

    def __str__(self) -> str:
        return f"{self.when}: {', '.join(f'{fault.name} {fault.how}' for fault in self.faults)}"

    async def run(self) -> None:
        emulator = self._emulator
        try:
            if self.when == "open":
                self._inject()
            controller = await self._open()
            if controller is None:
                return
            if self.when != "open":
                # On a busy machine an Identify may have been late, and a namespace is found a
                # little later.
                await self._until(controller, 1)
                await self._until(controller, 2)
            if self.when == "open":
                await self._works(controller)
            elif self.when == "close":
                self._inject()
            else:
                await self._disturb(controller)
            if self.when != "close":
                await self._whole_again(controller)
            await within("close()", controller.close(), self._longest)
            self._check(controller.state == "closed", f"after close() it is {controller.state}")
        finally:
            emulator.faults.clear()
            emulator.faults.release()
            if self._controller is not None:
                await within("close()", self._controller.close(), self._longest)
            limit = time.monotonic() + HANG
            while emulator.stats()["connected"]:
                self._check(time.monotonic() < limit, "the connection is still there")
                await asyncio.sleep(0.001)

    def _check(self, true: object, what: str) -> None:
        if not true:
            raise WrongError(what)

    def _inject(self) -> None:
        for fault in self.faults:
            fault.add(self._emulator, self._chance)

    async def _open(self) -> Controller | None:
        transport = PcieTransport(VfioUserDevice.from_socket(self._emulator.connect(), uri="emulated:torture"))
        controller = Controller(transport, Options.of(OPTIONS))
        try:
            await within("open()", controller.bring_up(), self._longest)
        except ControllerError as error:
            refused: NvmeError = error
        except NvmeError as error:
            refused = error
        else:
            self._controller = controller
            return controller
        self._check(controller.state == "closed", f"open() has failed, and it is {controller.state}")
        self._check(
            self.when == "open" and (any(fault.may_cost_all() for fault in self.faults) or len(self.faults) > 1),
            f"open() failed: {refused!r}",
        )
        self._tally["open() refused"] += 1
        return None

    async def _disturb(self, controller: Controller) -> None:
        reads = [asyncio.ensure_future(self._read(controller, nsid)) for nsid in (1, 2)]
        if self.when == "repair":
            self._emulator.faults.add(queue="io", opcode=0x02, count=1, drop=True)
            reads.append(asyncio.ensure_future(self._read(controller, 1)))
        self._inject()
        await asyncio.sleep(0)
        try:
            if self.when == "reset":
                await within("reset()", controller.reset("a round"), self._longest)
            elif self.when == "rescan":
                await within("rescan()", controller.rescan(), self._longest)
        except NvmeError as error:
            self._check(
                self.when == "rescan" or any(fault.may_cost_all() for fault in self.faults) or len(self.faults) > 1,
                f"{self.when} failed: {error!r}",
            )
            self._tally[f"{self.when}() failed"] += 1
        for read in reads:
            with contextlib.suppress(NvmeError):
                await within("a read", read, self._longest)
        await self._works(controller)

    async def _read(self, controller: Controller, nsid: int) -> None:
        namespace = controller.namespaces.get(nsid)
        if namespace is None:
            return
        for lba in (0, 5, 127):
            data = await namespace.read(lba)
            self._check(data == block(nsid, lba), f"wrong data: namespace {nsid}, block {lba}")

    async def _works(self, controller: Controller) -> None:
        """With the faults in force, as far as they allow."""
        if any(fault.may_cost_all() for fault in self.faults) or len(self.faults) > 1:
            with contextlib.suppress(NvmeError):
                await within("a read", self._read(controller, 1), self._longest)
            return
        (fault,) = self.faults
        for nsid in (1, 2):
            if KINDS[fault.name].nsid == nsid and not (fault.how.startswith("nth") or self.when != "open"):
                continue
            await self._until(controller, nsid)
        self._check(controller.state != "failed", f"it has failed: {controller.failure!r}")

    async def _until(self, controller: Controller, nsid: int) -> None:
        """Waits until the namespace works: it may be read again, or be reset once more."""
        limit = time.monotonic() + HANG
        while True:
            try:
                if nsid in controller.namespaces:
                    await within("a read", self._read(controller, nsid), self._longest)
                    return
                error: NvmeError | str = "it is not there"
            except NvmeError as trouble:
                error = trouble
            self._check(
                time.monotonic() < limit and controller.state != "failed", f"namespace {nsid} doesn't work: {error!r}"
            )
            await asyncio.sleep(0.02)

    async def _whole_again(self, controller: Controller) -> None:
        """Without the faults."""
        self._emulator.faults.clear()
        self._emulator.faults.release()
        limit = time.monotonic() + HANG
        while controller.state != "failed":
            try:
                await within("reset()", controller.reset("without faults"), self._longest)
            except NvmeError as error:
                self._check(controller.state == "failed", f"a reset without faults: {error!r}")
                break
            if not controller.inspect()["degraded"] and sorted(controller.namespaces) == [1, 2]:
                break
            self._check(time.monotonic() < limit, f"still without {controller.inspect()['degraded']}")
            await asyncio.sleep(0.05)
        if controller.state == "failed":
            self._check(
                any(fault.may_cost_all() for fault in self.faults) or len(self.faults) > 1,
                f"it has failed: {controller.failure!r}",
            )
            self._tally["failed"] += 1
            return
        for nsid in (1, 2):
            await within("a read", self._read(controller, nsid), self._longest)
        self._tally["whole"] += 1


async def torture(
    rounds: int, seed: int, *, parallel: int = 32, only: int | None = None, report: Callable[[str], None] = print
) -> None:
    """WrongError for the first round in which something is wrong."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(16))
    tally: Counter[str] = Counter()
    longest: Counter[str] = Counter()
    failures: list[WrongError] = []
    numbers = iter([only] if only is not None else range(rounds))
    began = time.monotonic()

    async def work() -> None:
        with EmulatedController(MEDIUM) as emulator:
            async with await fresh(emulator) as controller:
                for nsid in (1, 2):
                    for lba in (0, 5, 127):
                        await controller.namespaces[nsid].write(lba, block(nsid, lba))
            while emulator.stats()["connected"]:
                await asyncio.sleep(0.001)
            for number in numbers:
                this = Round(f"{seed}/{number}", emulator, tally, longest)
                try:
                    await this.run()
                except Exception as error:
                    failures.append(WrongError(f"round {number} of seed {seed}: {this}: {error!r}"))
                if failures:
                    return
                tally["rounds"] += 1
                tally[this.when] += 1
                if tally["rounds"] % 1000 == 0:
                    report(
                        f"{tally['rounds']} rounds, {time.monotonic() - began:.0f} s; longest in ms: {dict(longest)}"
                    )

    await asyncio.gather(*(work() for _ in range(1 if only is not None else min(parallel, rounds))))
    if failures:
        raise failures[0]
    report(f"{time.monotonic() - began:.0f} s: {dict(tally)}; longest in ms: {dict(longest)}")


async def fresh(emulator: EmulatedController) -> Controller:
    transport = PcieTransport(VfioUserDevice.from_socket(emulator.connect(), uri="emulated:torture"))
    controller = Controller(transport, Options.of({"pool_bytes": 1 << 20, "hugepages": "never"}))
    await controller.bring_up()
    return controller


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=32, help="controllers at once")
    parser.add_argument("--only", type=int, help="this round, with the driver's log")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG if arguments.only is not None else logging.CRITICAL)
    before = len(os.listdir("/proc/self/fd"))
    try:
        asyncio.run(torture(arguments.rounds, arguments.seed, parallel=arguments.parallel, only=arguments.only))
    except WrongError as error:
        sys.exit(str(error))
    after = len(os.listdir("/proc/self/fd"))
    if after > before:
        sys.exit(f"{after - before} descriptors were left")


if __name__ == "__main__":
    main()
