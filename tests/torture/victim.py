"""A driver process of the torture tests: takes the controller over, checks everything that its
predecessor left, then writes until it is killed.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import attrs
import uvloop
from journal import BLOCK, BLOCKS, THREADS, UNIT_AT, UNITS, Broken, Journal, Unit, content, sequence_of

import nvme_async
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature, NvmOpcode

TASKS = 8  # of a thread; the I/Os that it has out
WAIT = 60.0  # seconds for the predecessor to die
KNOWN_OWNERS = ("queue ", "bounce ", "manifest", "shadow doorbells", "application")


@attrs.frozen
class Plan:
    """The parameters of a torture process."""

    uri: str
    keeper: str | None
    """None: keepalive is off."""
    visitors: bool = False
    """A thread that starts and ends event loops, each with its own queue pair."""
    pool_pages: int = 16384


class Reporter:
    """A pipe for JSON lines about what happens."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, event: str, **more: Any) -> None:
        os.write(self._fd, json.dumps({"event": event, **more}).encode() + b"\n")

    def fail(self) -> NoReturn:
        """Reports the current exception, and ends the process."""
        self("error", text=traceback.format_exc(limit=-6))
        os._exit(1)


class Victim:
    """Everything happens once; `report` is a pipe for JSON lines, `go` one that becomes readable
    when the predecessor has died.
    """

    def __init__(self, plan: Plan, journal: Journal, report: int, go: int) -> None:
        self.plan = plan
        self.journal = journal
        self.tell = Reporter(report)
        self._go = go
        self._first_io = 0
        self._adopted: dict[int, Any] = {}  # writes, by LBA
        self._verified = threading.Barrier(THREADS + 1)
        self._stop = threading.Event()
        self._mixed = 0  # units that hold an unreported write

    async def run(self) -> None:
        self.tell("standby")
        if self.plan.keeper is None:
            await asyncio.to_thread(os.read, self._go, 1)
            opening = nvme_async.open(self.plan.uri, keepalive=False, command_timeout=5.0)
        else:
            opening = nvme_async.open(
                self.plan.uri,
                keeper=self.plan.keeper,
                keeper_wait=WAIT,
                pool_pages=self.plan.pool_pages,
                command_timeout=5.0,
            )
        async with opening as controller:
            try:
                await self._serve(controller)
            except BaseException:
                # Before close(), which leads to errors in the threads.
                self.tell.fail()
        self.tell("closed")

    async def _serve(self, controller: nvme_async.Controller) -> None:
        """Until SIGTERM."""
        await self._take_stock(controller)
        threads = [
            threading.Thread(target=self._thread, name=f"writer {number}", args=(controller, number))
            for number in range(THREADS)
        ]
        if self.plan.visitors:
            threads.append(threading.Thread(target=self._visit, name="visitors", args=(controller,)))
        for thread in threads:
            thread.start()
        await asyncio.to_thread(self._verified.wait)
        self.tell("verified", first_io=self._first_io, unreported=self._mixed, **self._pool(controller))
        await asyncio.to_thread(self._verified.wait)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        self.tell("running")
        while not self._stop.is_set():
            # The admin queue gets commands too, so that processes also die with admin commands
            # in flight.
            await controller.admin(commands.get_features(Feature.TEMPERATURE_THRESHOLD))
            await asyncio.sleep(random.uniform(0, 0.005))
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)
        self.tell("checked", **self._pool(controller))

    async def _take_stock(self, controller: nvme_async.Controller) -> None:
        """The predecessor's commands."""
        took = time.monotonic_ns()
        counts = {"adopted": 0, "unsent": 0, "failed": 0}
        if self.plan.keeper is not None:
            async for command in controller.adopted:
                counts["adopted"] += 1
                counts["unsent"] += not command.sent
                unit = UNIT_AT.get(command.lba) if command.lba is not None else None
                if command.error is not None:
                    counts["failed"] += 1
                elif (
                    command.sent and command.opcode == NvmOpcode.READ and unit is not None and command.data is not None
                ):
                    # The blocks being read were not being written; a check may have been running,
                    # of a write that may have happened.
                    sequence_of(unit, command.data, self.journal.acked[unit.index], self.journal.issued[unit.index])
                if command.opcode == NvmOpcode.WRITE and unit is not None:
                    self._adopted[unit.lba] = command
        for slot in controller.unclaimed():
            controller.claim(slot).free()
        self.tell("opened", took=took, state=controller.state, resets=controller.resets, **counts)

    def _pool(self, controller: nvme_async.Controller) -> dict[str, Any]:
        """The owners of the pool's pages; pages without an owner or with an unknown one are an
        error.
        """
        assert controller.memory is not None
        if self.plan.keeper is None:
            return {"pool": 0}
        [pool] = controller.memory.pools
        slots = pool.slots()
        end = 0
        for slot in sorted(slots, key=lambda slot: slot.offset):
            if slot.offset < end:
                raise Broken(f"the pool's pages at {slot.offset:#x} belong to {slot.owner!r} and to another")
            end = slot.offset + slot.nbytes
            if slot.state != "allocated" or not slot.owner.startswith(KNOWN_OWNERS):
                raise Broken(
                    f"{slot.nbytes} bytes of the pool at {slot.offset:#x} are {slot.state}, owner {slot.owner!r}"
                )
        return {"pool": pool.used_bytes, "slots": len(slots)}

    # -- one of the threads ------------------------------------------------------------------------

    def _thread(self, controller: nvme_async.Controller, number: int) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._work(controller, number))
        except BaseException:
            self.tell.fail()

    def _visit(self, controller: nvme_async.Controller) -> None:
        async def look() -> None:
            for lba in random.sample(range(BLOCKS, controller.namespaces[1].blocks), 4):
                if any(await controller.namespaces[1].read(lba)):
                    raise Broken(f"block {lba}, which was never written, isn't zeroes")

        try:
            while not self._stop.is_set():
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(look())
                time.sleep(random.uniform(0, 0.01))
        except BaseException:
            self.tell.fail()

    async def _work(self, controller: nvme_async.Controller, number: int) -> None:
        namespace = controller.namespaces[1]
        units = [unit for unit in UNITS if unit.thread == number]
        for unit in units:
            await self._verify(namespace, unit)
        await asyncio.to_thread(self._verified.wait)
        await asyncio.to_thread(self._verified.wait)
        async with asyncio.TaskGroup() as tasks:
            for task in range(TASKS):
                tasks.create_task(self._write(controller, units[task::TASKS]))

    async def _verify(self, namespace: nvme_async.Namespace, unit: Unit) -> None:
        """An acknowledged write is there; one in flight happened completely or not at all."""
        journal, index = self.journal, unit.index
        data = await namespace.read(unit.lba, unit.blocks)
        if not self._first_io:
            self._first_io = time.monotonic_ns()
        issued, acked = journal.issued[index], journal.acked[index]
        command = self._adopted.get(unit.lba) if issued != acked else None
        if command is None:
            found = sequence_of(unit, data, acked, issued)
            self._mixed += found != acked
        elif command.error is not None:
            found = sequence_of(unit, data, acked, issued)
        else:
            found = sequence_of(unit, data, issued if command.sent else acked)
        if found == issued:
            journal.acked[index] = found
        else:
            journal.issued[index] = found

    async def _write(self, controller: nvme_async.Controller, units: list[Unit]) -> None:
        """Writes and reads its units, one command at a time, until it is killed."""
        namespace = controller.namespaces[1]
        journal = self.journal
        direct = {unit: controller.alloc(unit.blocks * BLOCK) for unit in units if unit.index % 2}
        while not self._stop.is_set():
            unit = random.choice(units)
            index = unit.index
            buffer = direct.get(unit)
            dice = random.random()
            if dice < 0.6:
                sequence = journal.highest[index] = journal.highest[index] + 1
                data: Any = content(unit, sequence)
                if buffer is not None:
                    buffer[: len(data)] = data
                    data = buffer[: len(data)]
                journal.issued[index] = sequence
                await namespace.write(unit.lba, data, fua=dice < 0.05)
                journal.acked[index] = sequence
                journal.writes[unit.thread] += 1
            elif dice < 0.98:
                if buffer is not None:
                    view = buffer[: unit.blocks * BLOCK]
                    await namespace.readinto(unit.lba, view)
                    sequence_of(unit, view, journal.acked[index])
                else:
                    sequence_of(unit, await namespace.read(unit.lba, unit.blocks), journal.acked[index])
            else:
                await namespace.flush()
            journal.last_ack[unit.thread] = time.monotonic_ns()


def main(plan: Plan, journal: Journal, report: int, go: int) -> None:
    """In a forked process; doesn't return."""
    random.seed()
    faulthandler.register(signal.SIGUSR1)  # prints all threads' stacks if it gets stuck
    victim = Victim(plan, journal, report, go)
    try:
        uvloop.run(victim.run())
    except BaseException:
        victim.tell.fail()
    sys.stdout.flush()
    os._exit(0)
