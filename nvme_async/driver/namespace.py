"""A namespace: blocks that can be read and written by awaiting.

The path of one I/O that fits one command is in ext/hotpath (NamespaceCore); this module has the
rest: requests over MDTS, byte addresses, the other commands, and loops that have no queue pair yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar, overload

import attrs

from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.batch import BatchError, Integers, Many, as_lbas
from nvme_async.driver.context import ControllerContext
from nvme_async.driver.delays import retry_delay, send_again
from nvme_async.driver.directed import write_directed
from nvme_async.driver.fused import compare_and_write
from nvme_async.driver.limits import MAX_BLOCKS, CommandLimits
from nvme_async.driver.metadata import format_of, move
from nvme_async.driver.placement import Placement
from nvme_async.driver.protection import PRACT, Format, Protect
from nvme_async.driver.range_commands import RangeCommands
from nvme_async.driver.settling import settled
from nvme_async.driver.streams import Streams
from nvme_async.driver.transport import BatchOfCommands, CommandQueue
from nvme_async.errors import (
    CommandError,
    ConfigurationError,
    InvalidNamespace,
    LbaOutOfRange,
    NamespaceChanged,
    NamespaceReplaced,
    NvmeError,
)
from nvme_async.native._hotpath import Geometry
from nvme_async.native._placement import byte_view
from nvme_async.runtime.tasks import together
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.identity import NamespaceIdentity
from nvme_async.spec.opcodes import Direction, NvmOpcode, ZnsOpcode, command_name

B = TypeVar("B", bound=BufferLike)

# Commands that transfer exactly the blocks that they name: with a buffer of another length the
# controller would access memory that doesn't belong to the command.
_MOVES_ITS_BLOCKS = (NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.COMPARE, ZnsOpcode.ZONE_APPEND)


def _format_of(identify: IdentifyNamespace) -> tuple[int, ...]:
    """The properties that a request's data depend on."""
    return (
        identify.block_size,
        identify.metadata_size,
        identify.flbas >> 4 & 1,  # metadata at the end of each block
        identify.dps,
    )


def _words(identify: IdentifyNamespace) -> str:
    metadata = f" and {identify.metadata_size} of metadata" if identify.metadata_size else ""
    return f"blocks of {identify.block_size} bytes{metadata}"


class Namespace(RangeCommands):
    """One namespace of a controller; from `controller.namespaces`. Usable from any of the process's
    event loops.

    Attributes:
        nsid, blocks (its size, NSZE), block_size and nbytes in bytes, max_blocks (of one command).
        limits: of commands without data. Larger requests are split.
        identify: Identify Namespace, with the specification's field names.
        identity: distinguishes it from any other namespace.
        controller: its controller.
        placement: where data go (Flexible Data Placement). write_streams: the Streams directive.

    All methods that transfer data raise CommandError and its subclasses for errors that the
    controller reports (LbaOutOfRange, MediaError, …), ControllerError if the controller failed as a
    whole, CommandTimeout, and ValueError for invalid arguments. Cancelling is safe at any time: the
    command's memory stays reserved until the controller no longer uses it. But it doesn't recall
    the command: a cancelled write, and one that ended with CommandTimeout, may still be executed,
    and overwrite a newer acknowledged write. settled() waits until that can't happen.
    """

    identify: IdentifyNamespace
    identity: NamespaceIdentity
    limits: CommandLimits
    controller: ControllerContext
    _format: tuple[IdentifyNamespace, Format] | None = None

    def __init__(self, controller: ControllerContext, nsid: int) -> None:
        self.controller = controller
        self._nsid = nsid
        self.placement = Placement(self)
        self.write_streams = Streams(self)

    def _update(self, identify: IdentifyNamespace, identity: NamespaceIdentity | None = None) -> bool:
        """Applies Identify; True if something relevant to I/O has changed. Requests that were
        made for another format end with NamespaceChanged.
        """
        controller = self.controller
        before = (self.blocks, self.block_size)
        if before[1] and _format_of(self.identify) != _format_of(identify):
            self._expire(
                NamespaceChanged(
                    f"namespace {self._nsid} of {controller.uri} was formatted: {_words(self.identify)} became "
                    f"{_words(identify)}; the request was made for the old format"
                )
            )
        self.identify = identify
        found = identity if identity is not None else NamespaceIdentity.of(identify)
        self.identity = found.merged(self.identity) if before[1] else found
        self._reconfigure()
        self._set_metadata(identify.metadata_size > 0)
        self._set_gone(None)
        return before != (self.blocks, self.block_size)

    def _reconfigure(self) -> None:
        controller, identify = self.controller, self.identify
        queues, block_size = controller.transport.queues, identify.block_size
        max_blocks = max(1, min(MAX_BLOCKS, controller.transport.max_transfer // block_size))
        self.limits = CommandLimits.of(
            controller.identify_nvm,
            block_size=block_size,
            min_page_size=controller.cap.min_page_size,
            max_blocks=max_blocks,
        )
        self._configure(self._nsid, identify.nsze, block_size, max_blocks, queues.hot)

    def _limit(self) -> None:
        """The controller's limits have changed. A namespace whose state is unknown gets them
        with _update().
        """
        if not self.geometry.expired:
            self._reconfigure()

    def _end(self, reason: NvmeError) -> None:
        """This handle is no longer usable: new, waiting and in-flight requests fail with
        `reason`. On the home loop; the queue pairs' go_on() wakes the waiters.
        """
        self._set_gone(reason)
        self._expire(reason)

    def _unknown(self) -> None:
        """A command that may have changed it was sent, and Identify could not be read
        afterwards: nothing is sent until _update().
        """
        self._end(
            NamespaceChanged(
                f"namespace {self._nsid} of {self.controller.uri} may have changed, and Identify has not been read yet"
            )
        )

    def _remove(self) -> None:
        self._end(InvalidNamespace(0, 0x0B, nsid=self._nsid, text="the namespace was removed", command="I/O"))

    def _replace(self, by: NamespaceIdentity) -> None:
        self._end(
            NamespaceReplaced(
                f"namespace {self._nsid} of {self.controller.uri} was replaced: {self.identity} became {by}"
            )
        )

    # -- the slow paths of NamespaceCore -----------------------------------------------------------

    def _out_of_range(self, opcode: int, lba: int, blocks: int) -> NvmeError:
        return LbaOutOfRange(
            0,
            0x80,
            dnr=True,
            opcode=opcode,
            nsid=self.nsid,
            lba=lba,
            blocks=blocks,
            text=f"LBA out of range: the namespace has {self.blocks} blocks",
            command=command_name(opcode, admin=False),
        )

    def _slow(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """This loop has no queue pair yet, or shares another loop's."""
        return self._slowly(self.geometry, method, arguments, options)

    async def _slowly(
        self, geometry: Geometry, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        queues = self.controller.transport.queues
        queue = await queues.for_this_loop()
        if queue is not None:
            geometry.check()
            return await queue.io(self, method, arguments, options)
        neighbour = queues.neighbours[asyncio.get_running_loop()]

        async def there() -> Any:
            geometry.check()
            return await getattr(self, method)(*arguments, **options)

        whose = "the event loop that lends its queue pair"
        return await self.controller._elsewhere(neighbour.loop, there, whose)

    def _moved(
        self, method: str, lba: int, what: Any, fua: bool, metadata: Any, protect: Protect | None
    ) -> Coroutine[Any, Any, Any]:
        """Blocks with metadata."""
        return self._with_metadata(self.geometry, method, lba, what, fua, metadata, protect)

    async def _with_metadata(
        self,
        geometry: Geometry,
        method: str,
        lba: int,
        what: Any,
        fua: bool,
        metadata: Any,
        protect: Protect | None,
    ) -> Any:
        if self._gone is not None:
            raise self._gone
        queues = self.controller.transport.queues
        if await queues.for_this_loop() is None:
            options = {"fua": fua, "metadata": metadata, "protect": protect}
            return await self._slowly(geometry, method, (lba, what), options)
        geometry.check()
        return await move(self, geometry, method, lba, what, fua=fua, metadata=metadata, protect=protect)

    def _directed(
        self, lba: int, data: BufferLike, fua: bool, metadata: Any, protect: Protect | None, placement: Any, stream: Any
    ) -> Coroutine[Any, Any, None]:
        return write_directed(
            self,
            self.geometry,
            lba,
            data,
            fua=fua,
            metadata=metadata,
            protect=protect,
            placement=placement,
            stream=stream,
        )

    def _split(self, method: str, lba: int, what: Any, fua: bool) -> Coroutine[Any, Any, Any]:
        """More than one command may transfer: the parts run at the same time."""
        return self._in_parts(self.geometry, method, lba, what, fua)

    async def _in_parts(self, geometry: Geometry, method: str, lba: int, what: Any, fua: bool) -> Any:
        geometry.check()
        step = self.max_blocks
        if method == "read":
            parts = [self.read(at, min(step, lba + what - at), fua=fua) for at in range(lba, lba + what, step)]
            return b"".join(await together(parts))
        view = byte_view(what, writable=method == "readinto")
        operation = getattr(self, method)
        nbytes = step * self.block_size
        await together(
            operation(lba + at // self.block_size, view[at : at + nbytes], fua=fua)
            for at in range(0, view.nbytes, nbytes)
        )
        return view.nbytes if method == "readinto" else None

    async def _own_queue(self) -> CommandQueue | None:
        return await self.controller.transport.queues.for_this_loop()

    async def _queue(self) -> CommandQueue:
        """The queue pair for commands of this loop."""
        queues = self.controller.transport.queues
        queue = await queues.for_this_loop()
        if queue is None:
            raise ConfigurationError(
                f"this event loop shares another loop's queue pair (the controller has {queues.limit}), "
                "so it can only read, write and flush"
            )
        return queue

    async def compare_and_write(self, lba: int, expected: BufferLike, data: BufferLike, *, fua: bool = False) -> None:
        """Writes `data` if the blocks from `lba` on hold `expected`, as one atomic operation of the
        controller: fused Compare and Write (NVM Command Set 1.1, 3.3.1; Base 2.1, 3.4.2).

        Both are multiples of the block size, of the same length, at most ACWU + 1 blocks.
        CompareFailure: the blocks hold something else, and nothing was written. A reset of the
        controller meanwhile raises its error: then it is unknown whether the blocks were written.
        ConfigurationError if the controller or the transport has no fused operations, or the
        namespace has metadata besides protection information. Cancelling: as for write().
        """
        if self._gone is not None:
            raise self._gone
        await compare_and_write(self, lba, expected, data, fua)

    # -- many at once ------------------------------------------------------------------------------

    @overload
    async def read_many(
        self,
        lbas: Integers,
        into: None = None,
        *,
        blocks: int = 1,
        depth: int = 0,
        fua: bool = False,
        check: bool = True,
    ) -> Many[bytearray]: ...
    @overload
    async def read_many(
        self, lbas: Integers, into: B, *, blocks: int = 1, depth: int = 0, fua: bool = False, check: bool = True
    ) -> Many[B]: ...

    async def read_many(
        self, lbas: Any, into: Any = None, *, blocks: int = 1, depth: int = 0, fua: bool = False, check: bool = True
    ) -> Many[Any]:
        """Reads `blocks` blocks at each of `lbas` with one await; element i goes to into[i * blocks
        * block_size:].

        lbas: a buffer of 64-bit integers (a NumPy array, array("Q")) or a sequence of ints. into:
        writable buffer of len(lbas) * blocks * block_size bytes; memory that the device
            reaches is filled in place. Without it the result's `data` is a new bytearray.
        depth: how many commands are in flight at once; 0 = as many as the queue pair holds.
        check: raise BatchError if any element failed; otherwise see the result's `statuses`.
            In both cases every element is executed.
        The GIL is released meanwhile, and other tasks of the loop get their turn.
        """
        return await self._many(NvmOpcode.READ, lbas, into, blocks, depth, fua, check)

    async def write_many(
        self, lbas: Integers, data: B, *, blocks: int = 1, depth: int = 0, fua: bool = False, check: bool = True
    ) -> Many[B]:
        """Writes `blocks` blocks at each of `lbas` with one await; element i comes from data[i *
        blocks * block_size:]. See read_many().
        """
        return await self._many(NvmOpcode.WRITE, lbas, data, blocks, depth, fua, check)

    async def _many(
        self, opcode: int, lbas: Integers, data: Any, blocks: int, depth: int, fua: bool, check: bool
    ) -> Many[Any]:
        if self._gone is not None:
            raise self._gone
        if self.has_metadata:
            raise ConfigurationError(
                f"namespace {self.nsid} has {self.identify.metadata_size} bytes of metadata per block: "
                "use read() and write()"
            )
        if not 1 <= blocks <= self.max_blocks:
            raise ValueError(f"blocks is {blocks}, must be 1 to {self.max_blocks} (one command of this controller)")
        if depth < 0:
            raise ValueError(f"depth is {depth}, must be 0 or more")
        geometry = self.geometry
        nbytes = blocks * self.block_size
        numbers = as_lbas(lbas)
        if data is None:
            if opcode != NvmOpcode.READ:
                raise TypeError("data is None, must be a bytes-like object")
            data = bytearray(byte_view(numbers).nbytes // 8 * nbytes)
        queue = await self._queue()
        batch = queue.batch(
            opcode,
            self.nsid,
            numbers,
            blocks,
            data,
            nbytes,
            to_host=opcode == NvmOpcode.READ,
            depth=min(depth, queue.entries),
            flags=fua << 30,
            geometry=geometry,
        )
        await batch
        failed = batch.failed and await self._again(batch, opcode, numbers, data, nbytes, fua)
        result = Many(batch, data, failed)
        if failed and check:
            raise BatchError(result)
        return result

    async def _again(
        self, batch: BatchOfCommands, opcode: int, lbas: BufferLike, data: Any, nbytes: int, fua: bool
    ) -> int:
        """Elements that the controller asks to be sent again. Returns how many have failed."""
        operation = self.readinto if opcode == NvmOpcode.READ else self.write
        options, identify = self.controller.options, self.controller.identify
        numbers, view = byte_view(lbas).cast("Q"), byte_view(data)

        def delay_of(status: int) -> float | None:
            if not options.retries:
                return None
            return retry_delay(identify, status, opcode, admin=False, longest=options.command_timeout)

        def one(at: int) -> Coroutine[Any, Any, object]:
            return operation(numbers[at], view[at * nbytes : (at + 1) * nbytes], fua=fua)

        return await send_again(batch, delay_of, one)

    # -- order -------------------------------------------------------------------------------------

    async def settled(self, lba: int = 0, blocks: int | None = None) -> None:
        """Waits until no command that was cancelled or timed out before this call, in any loop
        of this process, can still change these blocks (by default the whole namespace).

        A write whose caller was cancelled is not undone: the controller may execute it later, also
        after a newer write to the same blocks was acknowledged. To write such blocks again:

            try:
                await asyncio.wait_for(ns.write(lba, old), 0.1)
            except TimeoutError:
                await ns.settled(lba, blocks)
                await ns.write(lba, new)

        Commands with unknown ranges (Dataset Management, Copy, vendor-specific ones) count as well.
        Commands that are still awaited don't: await them to order them. It takes as long as such a
        command does: the driver's own limits end them (`command_timeout`, then an abort, then a
        reset). Cancelling it is safe.

        Raises HandedOver or QueueShutdown if another process has the controller now, which must
        wait for those commands.
        """
        if blocks is None:
            blocks = max(self.blocks - lba, 0)
        if lba < 0 or blocks < 0 or lba + blocks > 1 << 64:
            raise ValueError(f"lba {lba}, blocks {blocks}: not a valid range of blocks")
        await settled(self.controller, self._nsid, lba, blocks)

    # -- the other commands ------------------------------------------------------------------------

    @overload
    async def submit(self, command: Command, buffer: BufferLike | None = None, *, tag: int = 0) -> Completion: ...
    @overload
    async def submit(
        self, command: Sequence[Command], buffer: Sequence[BufferLike | None] | None = None, *, tag: int = 0
    ) -> list[Completion | CommandError]: ...

    async def submit(self, command: Any, buffer: Any = None, *, tag: int = 0) -> Any:
        """Sends any I/O command of nvme_async.spec.commands. Data are passed in `buffer`; the
        data of a read may also be returned as bytes.

        The command's nsid must be this namespace's. `tag` is the caller's and survives a servicing
        (keepalive).

        A sequence of commands (and of buffers, None if a command has none) is sent at once; the
        result is the list of completions, with CommandErrors in place of failed ones. Other errors
        are raised.
        """
        if not isinstance(command, Command):
            if not isinstance(command, Sequence) or not all(isinstance(one, Command) for one in command):
                raise TypeError(
                    f"command is {command!r:.50}, must be a Command of nvme_async.spec or a sequence of them"
                )
            buffers = buffer if buffer is not None else [None] * len(command)
            results = await asyncio.gather(
                *(self.submit(one, data, tag=tag) for one, data in zip(command, buffers, strict=True)),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, CommandError):
                    raise result
            return results
        return await self._send(self.geometry, command, buffer, tag)

    async def _send(
        self, geometry: Geometry, command: Command, buffer: BufferLike | None = None, tag: int = 0
    ) -> Completion:
        """One command that was sized for `geometry`."""
        if command.nsid != self.nsid:
            raise ValueError(f"the command is for namespace {command.nsid}, this is {self.nsid}")
        if self._gone is not None:
            raise self._gone
        geometry.check()
        if command.data_length is None and command.blocks and command.opcode in _MOVES_ITS_BLOCKS:
            step = self.block_size
            if self.has_metadata:
                step = (await format_of(self)).data_step(act=bool(command.cdw12 >> 26 & PRACT))
            nbytes = command.blocks * step
            if buffer is not None or command.direction is Direction.CONTROLLER_TO_HOST:
                command = attrs.evolve(command, data_length=nbytes)  # a buffer of another length is refused
        elif (
            buffer is None
            and command.data_length is None
            and command.direction is Direction.CONTROLLER_TO_HOST
            and command.blocks
        ):
            command = attrs.evolve(command, data_length=command.blocks * self.block_size)
        queue = await self._queue()
        return await queue.submit(command, buffer, tag=tag, geometry=geometry)

    def inspect(self) -> dict[str, Any]:
        return {
            "nsid": self.nsid,
            "blocks": self.blocks,
            "block_size": self.block_size,
            "nbytes": self.nbytes,
            "max_blocks": self.max_blocks,
            "identity": str(self.identity),
            "held": self.geometry.held,
            "gone": str(self._gone) if self._gone is not None else None,
        }

    def __repr__(self) -> str:
        return f"<Namespace {self.nsid} of {self.controller.uri}: {self.blocks} blocks of {self.block_size} bytes>"
