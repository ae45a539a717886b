"""The predecessor's commands: those outstanding when it ended, and their results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

from nvme_async.native._hotpath import AdoptedCommand
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import command_name


class Adopted(AdoptedCommand):
    """One command that the predecessor had sent, or was about to send.

    Attributes:
        tag: the caller's, as given to submit(tag=…); 0 if there was none.
        qid, cid: the queue pair (0 = admin) and command id.
        opcode, nsid, lba, blocks, sqe: the command; lba and blocks are None for commands without
            them. sqe: its 64 bytes.
        sent: False: the predecessor ended before the command reached the ring. It was not and will
            not be executed.
        orphan: it had no waiter any more.
        finished: it has ended. Then:
        status: the completion's 15-bit status field, 0 = success; None if it never completed. dw0,
            dw1: of the completion.
        data: the data of a successful read, as bytes (from the pool's pages); None for other
            commands, and if it was written to the predecessor's own memory outside the pool.
        data_offset, nbytes: the data's place in the pool (None: not there), and its length.
        error: the exception for a command that didn't succeed; CommandError, CommandTimeout,
            ControllerError.
    """

    @cached_property
    def command(self) -> Command:
        return Command.unpack(self.sqe, admin=self.qid == 0)

    @property
    def opcode(self) -> int:
        return self.sqe[0]

    @property
    def nsid(self) -> int:
        return int.from_bytes(self.sqe[4:8], "little")

    @property
    def lba(self) -> int | None:
        return self.command.lba

    @property
    def blocks(self) -> int | None:
        return self.command.blocks if self.command.lba is not None else None

    @property
    def name(self) -> str:
        """The command's name in the specification: "Read", "Write", "Identify", …"""
        return command_name(self.opcode, admin=self.qid == 0)

    def inspect(self) -> dict[str, Any]:
        return {
            "tag": self.tag,
            "qid": self.qid,
            "cid": self.cid,
            "name": self.name,
            "nsid": self.nsid,
            "lba": self.lba,
            "blocks": self.blocks,
            "sent": self.sent,
            "status": self.status,
            "error": str(self.error) if self.error is not None else None,
            "finished": self.finished,
        }

    def __repr__(self) -> str:
        where = "" if self.lba is None else f" lba {self.lba}+{self.blocks}"
        if not self.sent:
            what = "never sent"
        elif not self.finished:
            what = "out"
        elif self.error is not None:
            what = f"failed: {self.error}"
        else:
            what = "done"
        return f"<Adopted {self.name} on namespace {self.nsid}{where} tag {self.tag}: {what}>"


class AdoptedCommands(Sequence[Adopted]):
    """`controller.adopted`: a collection of all of them, in the order in which they were sent,
    queue by queue; and an async iterator that yields each when it is finished, and ends after
    the last.

    On the controller's home loop. Empty for a controller that was brought up afresh.
    """

    def __init__(self) -> None:
        self._commands: list[Adopted] = []
        self._own: list[Adopted] = []  # the driver's own, which have no caller
        self._out: set[int] = set()  # ids of I/O commands in flight
        self._changed = asyncio.Event()
        self.on_drained: Callable[[], None] | None = None
        self.pause: float | None = None
        """Seconds from the predecessor's standstill until this process had the controller, after
        a hand-over between two living processes.
        """
        self.lost: tuple[Adopted, ...] = ()
        """Commands of a predecessor whose controller had to be reset: it is unknown whether they
        were executed.
        """

    def _add(self, commands: list[Adopted], own: list[Adopted]) -> None:
        self._commands += commands
        self._own += own
        self._out.update(id(command) for command in commands if command.qid and not command.finished)
        self._changed.set()

    def _finished(self, command: Adopted) -> None:
        """One of _add(), which was in flight."""
        self._out.discard(id(command))
        self._changed.set()
        if not self._out and self.on_drained is not None:
            callback, self.on_drained = self.on_drained, None
            callback()

    @property
    def draining(self) -> bool:
        """Is an I/O command still in flight? New I/O waits until none is."""
        return bool(self._out)

    @property
    def settled(self) -> bool:
        """Has every admin command completed, including the predecessor's own?"""
        return all(command.finished for command in [*self._commands, *self._own] if command.qid == 0)

    @overload
    def __getitem__(self, index: int) -> Adopted: ...
    @overload
    def __getitem__(self, index: slice) -> list[Adopted]: ...
    def __getitem__(self, index: int | slice) -> Adopted | list[Adopted]:
        return self._commands[index]

    def __len__(self) -> int:
        return len(self._commands)

    def __iter__(self) -> Iterator[Adopted]:
        return iter(self._commands)

    async def __aiter__(self) -> AsyncIterator[Adopted]:
        told: set[int] = set()
        while True:
            self._changed.clear()
            ready = [command for command in self._commands if command.finished and id(command) not in told]
            for command in ready:
                told.add(id(command))
                yield command
            if len(told) == len(self._commands):
                return
            if not ready:
                await self._changed.wait()

    async def wait(self) -> None:
        """Waits until all of them are finished."""
        async for _ in self:
            pass

    def inspect(self) -> dict[str, Any]:
        return {
            "commands": len(self._commands),
            "out": [command.inspect() for command in self._commands if not command.finished],
            "never_sent": sum(not command.sent for command in self._commands),
            "failed": sum(command.error is not None for command in self._commands),
            "lost": len(self.lost),
            "pause": self.pause,
            "draining": self.draining,
        }
