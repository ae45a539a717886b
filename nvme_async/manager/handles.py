"""The manager's namespace handle: it stays valid while the driver behind it is reset, serviced
or replaced.

A call is passed to the current driver's Namespace, on the caller's own loop and queue pair. Only if
that fails because the driver as a whole is gone, more happens here: the call waits for the next
driver, within the manager's limit, and is repeated if that is safe. Errors of the command itself go
directly to the caller.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar, overload

from nvme_async.dma import DmaBuffer
from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.batch import Integers, Many
from nvme_async.driver.byte_access import Views
from nvme_async.driver.byte_stream import DEFAULT_AHEAD, DEFAULT_CHUNK, ByteStream
from nvme_async.driver.copying import copy_commands
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.namespace_file import NamespaceFile
from nvme_async.driver.placement import Placement
from nvme_async.driver.protection import Protect
from nvme_async.driver.recovery import RETRYABLE
from nvme_async.driver.streams import Streams
from nvme_async.errors import (
    CommandError,
    ControllerError,
    ControllerTimeout,
    HandedOver,
    InvalidNamespace,
    NamespaceChanged,
    NamespaceReplaced,
    NvmeError,
    QueueShutdown,
)
from nvme_async.keepalive.adopted import Adopted
from nvme_async.keepalive.controller import Controller
from nvme_async.native._placement import byte_view
from nvme_async.runtime.gate import Gate
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.identity import NamespaceIdentity
from nvme_async.spec.opcodes import NvmOpcode

B = TypeVar("B", bound=BufferLike)

# The errors with which a driver ends, or a reset fails commands that it can't repeat.
LOST = (QueueShutdown, HandedOver, ControllerError)
BYTES = ("pread", "pwrite", "readv", "writev", "flush")  # these mean the same for every block size
# A controller in these states continues: its errors concern the command.
GOING_ON = ("ready", "resetting")
# Tags of commands without a caller's tag, by which their results are found again.
_tags = itertools.count(1 << 63)


class DriverSource(Protocol):
    """The part of a managed device that its namespaces' handles need."""

    uri: str
    failure: NvmeError | None
    gate: Gate

    @property
    def wait_limit(self) -> float: ...
    @property
    def state(self) -> str: ...
    def inspect(self) -> dict[str, Any]: ...
    async def adopted_result(self, controller: Controller, tag: int) -> Adopted | None: ...


class ManagedNamespace:
    """One namespace of a managed device; from `await manager.namespace(uri, nsid)`. Usable from any
    of the process's event loops.

    It has Namespace's methods and attributes. Calls made while the driver is serviced wait, up to
    the manager's `wait_limit` seconds, and idempotent in-flight commands (read, write, flush,
    compare, write zeroes, write uncorrectable, dataset management and verify, but not copy and
    others) are resent. The others keep their one result if the controller continued (keepalive),
    and otherwise fail with the reason. A removed namespace fails at once with InvalidNamespace; it
    works again if the same one comes back under its nsid.

    A handle belongs to one disk. If another controller answers at the address it fails with
    ControllerReplaced, if another namespace has the nsid with NamespaceReplaced; both are
    permanent, and manager.namespace() then gives a new handle. A call that waited while the
    namespace got another block size ends with NamespaceChanged.
    """

    retried: int

    def __init__(self, device: DriverSource, nsid: int) -> None:
        self._device = device
        self._nsid = nsid
        self._target: Namespace | None = None
        self._failure: NvmeError | None = None
        self._latest: Namespace | None = None  # the last one, for the attributes
        self.identity: NamespaceIdentity = NamespaceIdentity()
        """Of the disk that this handle is for."""
        self.retried = 0

    # -- the device's side, on its worker ----------------------------------------------------------

    def _bind(self, target: Namespace | None, failure: NvmeError | None) -> bool:
        """Sets a driver's namespace; without one, calls wait, or end with `failure`. The device
        wakes the waiters. False: the namespace belongs to another disk, and this handle has
        ended.
        """
        if target is not None and self.identity.is_other(target.identity):
            self._end(
                NamespaceReplaced(
                    f"namespace {self._nsid} of {self.uri} was replaced: {self.identity} became {target.identity}"
                )
            )
            return False
        self._failure = failure
        self._target = target
        if target is not None:
            if self._latest is not None and self._latest is not target:
                target.write_streams.wanted |= self._latest.write_streams.wanted
            self._latest = target
            self.identity = target.identity.merged(self.identity)
        return True

    def _end(self, reason: NvmeError) -> None:
        """Its disk was replaced by another one: calls fail with `reason`, permanently."""
        self._target, self._failure = None, reason

    # -- properties --------------------------------------------------------------------------------

    @property
    def nsid(self) -> int:
        return self._nsid

    @property
    def uri(self) -> str:
        return self._device.uri

    @property
    def device(self) -> DriverSource:
        return self._device

    def _known(self) -> Namespace:
        latest = self._latest
        if latest is None:
            raise self._failure or InvalidNamespace(
                0, 0x0B, nsid=self._nsid, text="there is no such namespace", command="I/O"
            )
        return latest

    @property
    def blocks(self) -> int:
        return self._known().blocks

    @property
    def block_size(self) -> int:
        return self._known().block_size

    @property
    def nbytes(self) -> int:
        return self._known().nbytes

    @property
    def max_blocks(self) -> int:
        return self._known().max_blocks

    @property
    def identify(self) -> IdentifyNamespace:
        return self._known().identify

    @property
    def placement(self) -> Placement:
        """See Namespace.placement: of the current driver's namespace, so don't keep it."""
        return self._known().placement

    @property
    def write_streams(self) -> Streams:
        """See Namespace.write_streams: of the current driver's namespace, so don't keep it. Once
        enabled, they are enabled again where the next driver writes to a stream.
        """
        return self._known().write_streams

    @property
    def available(self) -> bool:
        """Would a call start at once? False while the device is serviced, and if device or
        namespace are gone.
        """
        return self._target is not None and self._target._gone is None

    def alloc(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        """Zeroed memory that the device can access directly. It belongs to the current driver:
            after a servicing without keepalive its
        contents are still there, but I/O on it is copied; allocate again for speed.
        """
        target = self._target
        if target is None:
            raise self._failure or QueueShutdown(f"{self.uri}: the device is {self._device.state}")
        return target.controller.alloc(nbytes, tag=tag)

    # -- waiting for a driver ----------------------------------------------------------------------

    async def _usable(self, stale: Namespace | None, limit: float) -> Namespace:
        """The driver's namespace as soon as there is another than `stale`."""
        gate = self._device.gate
        loop = asyncio.get_running_loop()
        while True:
            future = gate.enter()
            try:
                target, failure = self._target, self._failure
                if target is not None and target is not stale:
                    return target
                if failure is not None:
                    raise failure
                remaining = limit - loop.time()
                if remaining <= 0:
                    raise ControllerTimeout(
                        f"{self.uri}: the device is {self._device.state} and did not return within "
                        f"{self._device.wait_limit:g} s"
                    )
                await asyncio.wait([future], timeout=remaining)
            finally:
                gate.leave(future)

    async def _again(
        self,
        method: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        stale: Namespace | None,
        error: NvmeError | None,
    ) -> Any:
        """The call that could not be made, or ended with its driver."""
        limit = asyncio.get_running_loop().time() + self._device.wait_limit
        made_for = stale if stale is not None else self._latest
        size = made_for.block_size if made_for is not None and method not in BYTES else 0
        while True:
            if stale is not None and error is not None:
                if stale.controller.state in GOING_ON:
                    raise error
                self.retried += 1
            target = await self._usable(stale, limit)
            self._check_size(target, size)
            try:
                return await getattr(target, method)(*arguments, **options)
            except LOST as lost:
                stale, error = target, lost

    def _check_size(self, target: Namespace, size: int) -> None:
        """A call that was made for blocks of `size` bytes (0: any) is not repeated with another
        size.
        """
        if size and target.block_size != size:
            raise NamespaceChanged(
                f"namespace {self._nsid} of {self.uri} was formatted while the call waited: blocks of {size} bytes "
                f"became blocks of {target.block_size} bytes"
            )

    async def _once(self, command: Command, buffer: BufferLike | None, tag: int) -> Completion:
        """For commands that must not be sent twice. If the driver was replaced on the running
        controller, an in-flight command ends there, and its result comes from the next driver;
        if the driver shut the controller down, it ends with the reason.
        """
        limit = asyncio.get_running_loop().time() + self._device.wait_limit
        target = self._target
        made_for = target if target is not None else self._latest
        size = made_for.block_size if made_for is not None else 0
        tag = tag or next(_tags)
        while True:
            if target is None or target._gone is not None:
                target = await self._usable(target, limit)
                self._check_size(target, size)
            try:
                return await target.submit(command, buffer, tag=tag)
            except HandedOver as lost:
                if lost.sent:
                    controller = (await self._usable(target, limit)).controller
                    assert isinstance(controller, Controller)
                    return await self._adopted(controller, command, buffer, tag, lost)

    async def _adopted(
        self, controller: Controller, command: Command, buffer: BufferLike | None, tag: int, lost: HandedOver
    ) -> Completion:
        found = await self._device.adopted_result(controller, tag)
        if found is None:
            raise lost
        if found.error is not None:
            raise found.error
        data = found.data
        if data is not None and buffer is not None:
            byte_view(buffer, writable=True)[: len(data)] = data
            data = None
        return Completion(dw0=found.dw0, dw1=found.dw1, sqid=found.qid, data=data)

    # -- data --------------------------------------------------------------------------------------
    # The common ones are written out: one frame more, and no other cost, in normal operation.

    async def read(self, lba: int, blocks: int = 1, *, fua: bool = False) -> bytes:
        """See Namespace.read()."""
        target = self._target
        error = None
        if target is not None:
            try:
                return await target.read(lba, blocks, fua=fua)
            except LOST as lost:
                error = lost
        return await self._again("read", (lba, blocks), {"fua": fua}, target, error)  # type: ignore[no-any-return]

    async def readinto(self, lba: int, buffer: BufferLike, *, fua: bool = False) -> int:
        """See Namespace.readinto()."""
        target = self._target
        error = None
        if target is not None:
            try:
                return await target.readinto(lba, buffer, fua=fua)
            except LOST as lost:
                error = lost
        return await self._again("readinto", (lba, buffer), {"fua": fua}, target, error)  # type: ignore[no-any-return]

    async def write(
        self,
        lba: int,
        data: BufferLike,
        *,
        fua: bool = False,
        placement: int | None = None,
        stream: int | None = None,
    ) -> None:
        """See Namespace.write(). The data must stay unchanged until it returns: they may have to
        be sent again.
        """
        if placement is not None or stream is not None:
            await self._call("write", lba, data, fua=fua, placement=placement, stream=stream)
            return
        target = self._target
        error = None
        if target is not None:
            try:
                await target.write(lba, data, fua=fua)
                return
            except LOST as lost:
                error = lost
        await self._again("write", (lba, data), {"fua": fua}, target, error)

    async def flush(self) -> None:
        """See Namespace.flush()."""
        target = self._target
        error = None
        if target is not None:
            try:
                await target.flush()
                return
            except LOST as lost:
                error = lost
        await self._again("flush", (), {}, target, error)

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        target = self._target
        error = None
        if target is not None:
            try:
                return await getattr(target, method)(*arguments, **options)
            except LOST as lost:
                error = lost
        return await self._again(method, arguments, options, target, error)

    async def compare(self, lba: int, data: BufferLike, *, fua: bool = False) -> None:
        """See Namespace.compare()."""
        await self._call("compare", lba, data, fua=fua)

    async def pread(self, nbytes: int, offset: int) -> bytes:
        """See Namespace.pread()."""
        return await self._call("pread", nbytes, offset)  # type: ignore[no-any-return]

    async def pwrite(self, data: BufferLike, offset: int, *, fua: bool = False) -> int:
        """See Namespace.pwrite()."""
        return await self._call("pwrite", data, offset, fua=fua)  # type: ignore[no-any-return]

    async def readv(
        self, buffers: Sequence[BufferLike], offset: int, *, metadata: Views = None, protect: Protect | None = None
    ) -> int:
        """See Namespace.readv()."""
        return int(await self._call("readv", buffers, offset, metadata=metadata, protect=protect))

    async def writev(
        self,
        buffers: Sequence[BufferLike],
        offset: int,
        *,
        fua: bool = False,
        metadata: Views = None,
        protect: Protect | None = None,
    ) -> int:
        """See Namespace.writev()."""
        return int(await self._call("writev", buffers, offset, fua=fua, metadata=metadata, protect=protect))

    def stream(
        self, offset: int = 0, nbytes: int | None = None, *, chunk: int = DEFAULT_CHUNK, ahead: int = DEFAULT_AHEAD
    ) -> ByteStream:
        """See Namespace.stream()."""
        return ByteStream(self.pread, self.nbytes, offset, nbytes, chunk, ahead)

    def file(self, offset: int = 0, nbytes: int | None = None) -> NamespaceFile:
        """See Namespace.file()."""
        return NamespaceFile(self, offset, nbytes)

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
    ) -> Any:
        """See Namespace.read_many(). If the driver ends meanwhile, all elements are read again."""
        return await self._call("read_many", lbas, into, blocks=blocks, depth=depth, fua=fua, check=check)

    async def write_many(
        self, lbas: Integers, data: B, *, blocks: int = 1, depth: int = 0, fua: bool = False, check: bool = True
    ) -> Many[B]:
        """See Namespace.write_many(). If the driver ends meanwhile, all elements are written
        again.
        """
        return await self._call("write_many", lbas, data, blocks=blocks, depth=depth, fua=fua, check=check)  # type: ignore[no-any-return]

    async def settled(self, lba: int = 0, blocks: int | None = None) -> None:
        """See Namespace.settled(). If a driver ended and shut the controller down, its commands
        have ended too.
        """
        await self._call("settled", lba, blocks)

    async def write_zeroes(self, lba: int, blocks: int, *, deallocate: bool = False, fua: bool = False) -> None:
        """See Namespace.write_zeroes()."""
        await self._call("write_zeroes", lba, blocks, deallocate=deallocate, fua=fua)

    async def verify(self, lba: int, blocks: int) -> None:
        """See Namespace.verify()."""
        await self._call("verify", lba, blocks)

    async def write_uncorrectable(self, lba: int, blocks: int) -> None:
        """See Namespace.write_uncorrectable()."""
        await self._call("write_uncorrectable", lba, blocks)

    async def deallocate(self, lba: int | Iterable[tuple[int, int]], blocks: int | None = None) -> None:
        """See Namespace.deallocate()."""
        ranges = lba if isinstance(lba, int) else list(lba)
        await self._call("deallocate", ranges, blocks)

    async def copy(self, sources: Iterable[tuple[int, int]], lba: int) -> None:
        """See Namespace.copy(). Not sent twice, because source and destination may overlap."""
        ranges = list(sources)
        known = self._known()
        for first, blocks in (*ranges, (lba, sum(blocks for _, blocks in ranges))):
            await known._ranges(NvmOpcode.COPY, first, blocks)
        for command, payload in await copy_commands(known, ranges, lba, known):
            await self.submit(command, payload)

    @overload
    async def submit(self, command: Command, buffer: BufferLike | None = None, *, tag: int = 0) -> Completion: ...
    @overload
    async def submit(
        self, command: Sequence[Command], buffer: Sequence[BufferLike | None] | None = None, *, tag: int = 0
    ) -> list[Completion | CommandError]: ...

    async def submit(self, command: Any, buffer: Any = None, *, tag: int = 0) -> Any:
        """See Namespace.submit(). Sent twice only if that does no harm (see the class)."""
        if not isinstance(command, Command):
            buffers = buffer if buffer is not None else [None] * len(command)
            parts = (self.submit(one, data, tag=tag) for one, data in zip(command, buffers, strict=True))
            results = await asyncio.gather(*parts, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, CommandError):
                    raise result
            return results
        if command.opcode in RETRYABLE:
            return await self._call("submit", command, buffer, tag=tag)
        return await self._once(command, buffer, tag)

    def inspect(self) -> dict[str, Any]:
        latest = self._latest
        state: dict[str, Any] = {"nsid": self._nsid} if latest is None else latest.inspect()
        state["retried"] = self.retried
        state["gone"] = str(self._failure) if self._failure is not None else state.get("gone")
        return state

    def __repr__(self) -> str:
        return f"<ManagedNamespace {self._nsid} of {self.uri}, {self._device.state}>"
