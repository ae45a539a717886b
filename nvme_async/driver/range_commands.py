"""Commands that name ranges of blocks and transfer none of them: Write Zeroes, Verify, Write
Uncorrectable, Dataset Management, Copy. What exceeds the limits of one command is sent as several
(limits.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.byte_access import ByteAccess
from nvme_async.driver.context import ControllerContext
from nvme_async.driver.copying import copy_commands
from nvme_async.driver.limits import CommandLimits, dsm_groups, pieces
from nvme_async.driver.metadata import format_of, protected
from nvme_async.driver.protection import Format
from nvme_async.driver.transport import CommandQueue
from nvme_async.errors import ConfigurationError, NvmeError
from nvme_async.native._hotpath import Geometry
from nvme_async.runtime.tasks import together
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.opcodes import NvmOpcode


class RangeCommands(ByteAccess):
    """Blocks are counted from the start of the namespace. Errors, cancelling and loops: as for
    read() and write().
    """

    controller: ControllerContext
    limits: CommandLimits
    identify: IdentifyNamespace
    _format: tuple[IdentifyNamespace, Format] | None

    @abstractmethod
    async def _queue(self) -> CommandQueue:
        """The running loop's."""

    @abstractmethod
    async def _send(
        self, geometry: Geometry, command: Command, buffer: BufferLike | None = None, tag: int = 0
    ) -> Completion:
        """One command that was sized for `geometry`."""

    @abstractmethod
    def _out_of_range(self, opcode: int, lba: int, blocks: int) -> NvmeError:
        """What a call for blocks that don't exist raises."""

    async def _ranges(self, opcode: int, lba: int, blocks: int) -> None:
        if blocks <= 0 or lba < 0:
            raise ValueError(f"lba {lba}, blocks {blocks}: must name one or more existing blocks")
        if lba + blocks > self.blocks:
            raise self._out_of_range(opcode, lba, blocks)

    async def write_zeroes(self, lba: int, blocks: int, *, deallocate: bool = False, fua: bool = False) -> None:
        """Makes the blocks read as zeroes without a data transfer (NVM Command Set 1.0, 3.2.8).
        deallocate: the controller may deallocate them.
        """
        geometry = self.geometry
        await self._ranges(NvmOpcode.WRITE_ZEROES, lba, blocks)
        form = await format_of(self)
        await together(
            self._send(
                geometry, protected(form, commands.write_zeroes(self.nsid, at, count, deac=deallocate, fua=fua), at)
            )
            for at, count in pieces(lba, blocks, self.limits.write_zeroes)
        )

    async def verify(self, lba: int, blocks: int) -> None:
        """Makes the controller read and check the blocks, without a data transfer (NVM Command
        Set 1.0, 3.2.5).
        """
        geometry = self.geometry
        await self._ranges(NvmOpcode.VERIFY, lba, blocks)
        form = await format_of(self)
        await together(
            self._send(geometry, protected(form, commands.verify(self.nsid, at, count), at))
            for at, count in pieces(lba, blocks, self.limits.verify)
        )

    async def write_uncorrectable(self, lba: int, blocks: int) -> None:
        """Marks blocks as invalid: reading them fails until they are written (NVM Command Set 1.0,
        3.2.7).
        """
        geometry = self.geometry
        await self._ranges(NvmOpcode.WRITE_UNCORRECTABLE, lba, blocks)
        await together(
            self._send(geometry, commands.write_uncorrectable(self.nsid, at, count))
            for at, count in pieces(lba, blocks, self.limits.write_uncorrectable)
        )

    async def deallocate(self, lba: int | Iterable[tuple[int, int]], blocks: int | None = None) -> None:
        """Declares blocks as unused: deallocate(lba, blocks), or deallocate([(lba, blocks), …])
        for any number of ranges (Dataset Management, NVM Command Set 1.0, 3.2.3). DLFEAT in
        Identify says what they read as afterwards.
        """
        if isinstance(lba, int):
            if blocks is None:
                raise ValueError("deallocate() of an lba also needs blocks")
            ranges = [(lba, blocks)]
        else:
            ranges = list(lba)
        geometry = self.geometry
        for first, count in ranges:
            await self._ranges(NvmOpcode.DATASET_MANAGEMENT, first, count)
        await together(
            self._send(geometry, commands.dataset_management(self.nsid, len(part)), commands.dsm_ranges(part))
            for part in dsm_groups(ranges, self.limits)
        )

    async def copy(
        self,
        sources: Iterable[tuple[int, int]],
        lba: int,
        *,
        source: RangeCommands | None = None,
        fua: bool = False,
    ) -> None:
        """Copies the source ranges [(lba, blocks), …] one after the other to `lba` on, inside the
        controller (NVM Command Set 1.1, 3.3.2).

        source: another namespace of this controller that has the ranges, with blocks of the same
        format; the controller needs the Copy descriptor formats for that (Identify Controller,
        OCFS), else ConfigurationError. A request over the limits of one command (MSSRL, MCL, MSRC)
        is split into several, one after another. Protection information is checked and made anew.
        """
        source = self if source is None else source
        ranges = list(sources)
        geometry = self.geometry
        if source.controller is not self.controller:
            raise ConfigurationError("the source of a copy is a namespace of another controller")
        total = sum(count for _, count in ranges)
        for first, count in ranges:
            await source._ranges(NvmOpcode.COPY, first, count)
        await self._ranges(NvmOpcode.COPY, lba, total)
        for command, payload in await copy_commands(self, ranges, lba, source, fua=fua):
            await self._send(geometry, command, payload)
