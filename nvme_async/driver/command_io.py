"""Reads and writes as plain commands, for transports whose queues have submit() and no fast path
in C.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Generator
from typing import Any

from nvme_async.driver.transport import CommandQueue
from nvme_async.errors import CommandError
from nvme_async.native._placement import byte_view
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import Direction, NvmOpcode

_FUA = 1 << 30

_OPCODES = {
    "read": NvmOpcode.READ,
    "readinto": NvmOpcode.READ,
    "write": NvmOpcode.WRITE,
    "compare": NvmOpcode.COMPARE,
    "flush": NvmOpcode.FLUSH,
}


def blocks_in(nbytes: int, block_size: int) -> int:
    """The blocks of a transfer. ValueError if the buffer doesn't hold whole ones."""
    if not nbytes or nbytes % block_size:
        raise ValueError(f"a buffer of {nbytes} bytes is not a positive multiple of the block size of {block_size}")
    return nbytes // block_size


def block_command(opcode: int, nsid: int, lba: int, blocks: int, nbytes: int, flags: int = 0) -> Command:
    """Read, Write or Compare of `blocks` blocks and `nbytes` bytes (NVM Command Set 1.0, 3.2).

    flags: of command dword 12, above the number of blocks.
    """
    return Command(
        opcode=opcode,
        nsid=nsid,
        cdw10=lba & 0xFFFF_FFFF,
        cdw11=lba >> 32,
        cdw12=blocks - 1 | flags,
        data_length=nbytes,
    )


async def io(
    queue: CommandQueue, namespace: Any, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Namespace.read, readinto, write, compare or flush on `queue`, with the same checks and
    splitting.
    """
    if namespace._gone is not None:
        raise namespace._gone
    opcode = _OPCODES[method]
    if method == "flush":
        await queue.submit(Command(opcode=opcode, nsid=namespace.nsid, data_length=0), geometry=namespace.geometry)
        return None
    lba, what = arguments
    if method == "read":
        blocks, buffer = what, None
    else:
        buffer = byte_view(what, writable=method == "readinto")
        blocks = blocks_in(buffer.nbytes, namespace.block_size)
    if blocks < 1:
        raise ValueError(f"blocks is {blocks}, must be 1 or more")
    if not 0 <= lba <= namespace.blocks - blocks:
        raise namespace._out_of_range(opcode, lba, blocks)
    fua = options.get("fua", False)
    if blocks > namespace.max_blocks:
        return await namespace._split(method, lba, what, fua)
    command = block_command(opcode, namespace.nsid, lba, blocks, blocks * namespace.block_size, _FUA if fua else 0)
    completion = await queue.submit(command, buffer, geometry=namespace.geometry)
    if method == "read":
        return completion.data
    return buffer.nbytes if method == "readinto" and buffer is not None else None


class Batch:
    """Many block commands, sent one by one, at most `depth` at once. See
    transport.BatchOfCommands.
    """

    def __init__(
        self,
        queue: CommandQueue,
        opcode: int,
        nsid: int,
        lbas: Any,
        blocks: int,
        data: Any,
        nbytes: int,
        *,
        to_host: bool,
        depth: int = 0,
        flags: int = 0,
        geometry: Any = None,
    ) -> None:
        self._queue = queue
        self._lbas = memoryview(lbas).cast("B").cast("Q")
        self._view = byte_view(data, writable=to_host)
        if self._view.nbytes != len(self._lbas) * nbytes:
            raise ValueError(
                f"{len(self._lbas)} elements of {nbytes} bytes need a buffer of {len(self._lbas) * nbytes} bytes, "
                f"not {self._view.nbytes}"
            )
        self._command = (opcode, nsid, blocks, nbytes, flags)
        self._depth = depth or queue.entries - 1
        self._geometry = geometry
        self.statuses: array[int] = array("H", bytes(2 * len(self._lbas)))
        self.failed = 0

    def __len__(self) -> int:
        return len(self._lbas)

    def _of(self, element: int) -> Command:
        opcode, nsid, blocks, nbytes, flags = self._command
        return block_command(opcode, nsid, self._lbas[element], blocks, nbytes, flags)

    def command(self, element: int) -> bytes:
        """The 64 bytes of one element's command."""
        return self._of(element).pack()

    def __await__(self) -> Generator[Any, None, Batch]:
        return self._run().__await__()

    async def _run(self) -> Batch:
        elements = iter(range(len(self)))
        step = self._command[3]

        async def some() -> None:
            for element in elements:
                part = self._view[element * step : (element + 1) * step]
                try:
                    await self._queue.submit(self._of(element), part, geometry=self._geometry)
                except CommandError as error:
                    self.statuses[element] = error.status
                    self.failed += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._depth, len(self))):
                group.create_task(some(), name="part of a batch")
        return self


def check_buffer(command: Command, buffer: Any) -> tuple[memoryview | None, int]:
    """The buffer of a command as bytes, and how many bytes it transfers. ValueError if they
    don't match.
    """
    if not isinstance(command, Command):
        raise TypeError(f"command is a {type(command).__name__}, must be a Command of nvme_async.spec")
    to_host = command.direction is Direction.CONTROLLER_TO_HOST
    if command.direction not in (Direction.CONTROLLER_TO_HOST, Direction.HOST_TO_CONTROLLER):
        return None, 0
    nbytes = command.data_length
    if buffer is None:
        if nbytes is None or (nbytes and not to_host):
            raise ValueError(f"{command.name} transfers data, but no buffer was given")
        return None, nbytes
    view = byte_view(buffer, writable=to_host)
    if nbytes and view.nbytes != nbytes:
        raise ValueError(f"{command.name} transfers {nbytes} bytes, but the buffer has {view.nbytes}")
    return view, view.nbytes
