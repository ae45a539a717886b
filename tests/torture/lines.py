"""A driver process that is killed at a given line. It does everything that a driver can do, and
each line of nvme_async is a place to die.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import random
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
from journal import BLOCK, UNIT_AT, UNITS, Broken, Journal, Unit, content, sequence_of
from victim import KNOWN_OWNERS, WAIT, Reporter

import nvme_async
from nvme_async.spec.opcodes import NvmOpcode

_PACKAGE = str(Path(nvme_async.__file__).parent)
_OTHERS = tuple(f"{_PACKAGE}/{name}" for name in ("spec", "emulator", "cli", "bench", "manager"))


@attrs.frozen
class Task:
    """The task of one process."""

    uri: str
    keeper: str
    dies_at: int
    """The number of lines after which it is killed; 0: it survives."""
    resets: bool = False
    closes: bool = False
    """Closes its controller at the end; otherwise it just exits."""
    seed: int = 0


class Killer:
    """Counts the executed lines of the driver, on all threads."""

    def __init__(self, dies_at: int) -> None:
        self.lines = 0
        self._dies_at = dies_at

    def start(self) -> None:
        threading.settrace(self._call)
        sys.settrace(self._call)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE) or name.startswith(_OTHERS):
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self._dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._line


class LineVictim:
    """Executes one task."""

    def __init__(self, task: Task, journal: Journal, report: int) -> None:
        self._task = task
        self._journal = journal
        self.tell = Reporter(report)
        self._random = random.Random(task.seed)
        self._killer = Killer(task.dies_at)
        self._adopted: dict[int, Any] = {}

    async def run(self) -> None:
        task = self._task
        self._killer.start()
        controller = await nvme_async.open(
            task.uri, keeper=task.keeper, keeper_wait=WAIT, pool_pages=4096, command_timeout=10.0
        )
        await self._inherit(controller)
        first, second, rest = UNITS[:4], UNITS[4:8], UNITS[8:12]
        await self._use(controller, first + second + rest, write=False)
        await self._use(controller, first, write=True)
        # A queue pair is created, and deleted for the next one.
        for units in (second, rest):
            await asyncio.to_thread(lambda units=units: asyncio.run(self._use(controller, units, write=True)))
        if task.resets:
            await controller.reset()
        await self._registered(controller, first[0])
        await self._use(controller, first + second + rest, write=False)
        self._check_pool(controller)
        if task.closes:
            await controller.close()
        self.tell("closed", lines=self._killer.lines, resets=controller.resets)

    async def _inherit(self, controller: nvme_async.Controller) -> None:
        async for command in controller.adopted:
            if command.opcode == NvmOpcode.WRITE and command.qid and command.lba in UNIT_AT:
                self._adopted[command.lba] = command
        for slot in controller.unclaimed():
            controller.claim(slot).free()
        leaked = await controller.validate_restore()
        if leaked:
            raise Broken(f"pages without an owner: {leaked}")
        self.tell("opened", adopted=len(controller.adopted), enabled=controller.state)

    def _check_pool(self, controller: nvme_async.Controller) -> None:
        assert controller.memory is not None
        for slot in controller.memory.pools[0].slots():
            if slot.state != "allocated" or not slot.owner.startswith(KNOWN_OWNERS):
                raise Broken(
                    f"{slot.nbytes} bytes of the pool at {slot.offset:#x} are {slot.state}, owner {slot.owner!r}"
                )

    async def _use(self, controller: nvme_async.Controller, units: list[Unit], *, write: bool) -> None:
        await asyncio.gather(
            *(self._write(controller, unit) if write else self._read(controller, unit) for unit in units)
        )

    async def _read(self, controller: nvme_async.Controller, unit: Unit) -> None:
        """An acknowledged write is there; one in flight is there completely or not at all."""
        journal, index = self._journal, unit.index
        data = await controller.namespaces[1].read(unit.lba, unit.blocks)
        issued, acked = journal.issued[index], journal.acked[index]
        command = self._adopted.get(unit.lba) if issued != acked else None
        if command is not None and command.error is None:
            found = sequence_of(unit, data, issued if command.sent else acked)
        else:
            found = sequence_of(unit, data, acked, issued)
        journal.acked[index] = journal.issued[index] = found

    async def _write(self, controller: nvme_async.Controller, unit: Unit) -> None:
        journal, index = self._journal, unit.index
        sequence = journal.highest[index] = journal.highest[index] + 1
        data: Any = content(unit, sequence)
        journal.issued[index] = sequence
        if unit.index % 2:
            with controller.alloc(unit.blocks * BLOCK) as buffer:
                buffer[: len(data)] = data
                await controller.namespaces[1].write(unit.lba, buffer)
        else:
            await controller.namespaces[1].write(unit.lba, data)
        journal.acked[index] = sequence

    async def _registered(self, controller: nvme_async.Controller, unit: Unit) -> None:
        """From memory that is registered for it."""
        fd = os.memfd_create("registered", os.MFD_CLOEXEC)
        os.ftruncate(fd, unit.blocks * BLOCK)
        with mmap.mmap(fd, unit.blocks * BLOCK) as memory:
            journal, index = self._journal, unit.index
            sequence = journal.highest[index] = journal.highest[index] + 1
            memory[:] = content(unit, sequence)
            with controller.register(memory):
                journal.issued[index] = sequence
                await controller.namespaces[1].write(unit.lba, memory)
                journal.acked[index] = sequence
        os.close(fd)


def main(task: Task, journal: Journal, report: int, go: int) -> None:
    """In a forked process; doesn't return."""
    logging.disable(logging.WARNING)  # of requested resets
    victim = LineVictim(task, journal, report)
    try:
        asyncio.run(victim.run())
    except BaseException:
        victim.tell.fail()
    os._exit(0)
