"""Byte addresses on top of blocks: any offset, any length.

Whole blocks go straight to read() and write(). A read of part of a block reads the block and cuts
it. A write of part of a block reads the block, changes it and writes it back: not atomic, neither
for other processes nor over a power failure, which leaves each block old or new. Within the process
the guard of the Namespace object (byte_guard.py) keeps byte accesses to one block apart.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, cast

from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.byte_guard import ByteGuard
from nvme_async.driver.byte_stream import DEFAULT_AHEAD, DEFAULT_CHUNK, ByteStream
from nvme_async.driver.metadata import WithMetadata, move_scattered_blocks
from nvme_async.driver.namespace_file import NamespaceFile
from nvme_async.driver.protection import Protect
from nvme_async.driver.scattered import move_scattered
from nvme_async.driver.transport import CommandQueue
from nvme_async.native._hotpath import NamespaceCore
from nvme_async.native._placement import Scatter, byte_view
from nvme_async.runtime.tasks import together

Views = Sequence[BufferLike] | None
"""The places of metadata."""


class ByteAccess(NamespaceCore):
    """Blocks and bytes of a namespace. The calls for blocks are native (ext/hotpath/namespace.pxi).

    Offsets and lengths are bytes. Nothing is shortened at the end of the namespace: a request that
    doesn't fit raises LbaOutOfRange and transfers nothing. Negative numbers raise ValueError,
    lengths of 0 transfer nothing. Other errors, cancelling and loops: as for read() and write().
    """

    if TYPE_CHECKING:  # how type checkers and editors see the native calls

        def read(
            self,
            lba: int,
            blocks: int = 1,
            *,
            fua: bool = False,
            metadata: BufferLike | None = None,
            protect: Protect | None = None,
        ) -> Coroutine[object, None, bytes]:
            """Reads `blocks` logical blocks from `lba` (NVM Command Set 1.0, 3.2.4); the result
            is a new bytes object of blocks * block_size bytes.

            fua: Force Unit Access. metadata: a writable buffer for the blocks' metadata. protect:
            for namespaces with protection information; without it the controller checks and strips
            it. More than max_blocks are read by several commands at once. Raises LbaOutOfRange,
            MediaError and other CommandErrors, ControllerError, CommandTimeout.
            """

        def readinto(
            self,
            lba: int,
            buffer: BufferLike,
            *,
            fua: bool = False,
            metadata: BufferLike | None = None,
            protect: Protect | None = None,
        ) -> Coroutine[object, None, int]:
            """Fills `buffer` (writable, C-contiguous, a multiple of the block size) from `lba`
            on; the result is its length in bytes.

            The device itself writes memory from controller.alloc() or registered with the
            controller; other memory goes through a bounce page and is changed only on success. The
            buffer is held until the controller is done with it, also if the awaiter is cancelled.
            """

        def write(
            self,
            lba: int,
            data: BufferLike,
            *,
            fua: bool = False,
            metadata: BufferLike | None = None,
            protect: Protect | None = None,
            placement: int | None = None,
            stream: int | None = None,
        ) -> Coroutine[object, None, None]:
            """Writes `data` (a multiple of the block size) from `lba` on (NVM Command Set 1.0,
            3.2.6).

            Memory that the device can access is read in place and must not be changed meanwhile;
            other memory is copied when the write starts. Cancelling doesn't recall the write: it
            may still be executed, also after a newer write to the same blocks was acknowledged.
            Await settled(lba, blocks) before writing them again.

            placement: a placement identifier of the namespace (Flexible Data Placement), see
            Namespace.placement. stream: an identifier of the Streams directive, 1 to 65535, see
            Namespace.write_streams. ValueError for one that the namespace doesn't have,
            ConfigurationError if the controller has no such directive: both before anything is
            sent.
            """

        def compare(
            self,
            lba: int,
            data: BufferLike,
            *,
            fua: bool = False,
            metadata: BufferLike | None = None,
            protect: Protect | None = None,
        ) -> Coroutine[object, None, None]:
            """Compares `data` with the media from `lba` on (NVM Command Set 1.0, 3.2.1).
            CompareFailure if they differ.
            """

        def flush(self) -> Coroutine[object, None, None]:
            """Commits writes that were acknowledged before this call to non-volatile media (Base
            2.0, 7.1).
            """

        async def settled(self, lba: int = 0, blocks: int | None = None) -> None: ...
        async def _own_queue(self) -> CommandQueue | None: ...

    def _guard(self) -> ByteGuard:
        guard: ByteGuard = self.__dict__.setdefault("_byte_guard", ByteGuard())
        return guard

    def _blocks_around(self, opcode: int, offset: int, nbytes: int) -> tuple[int, int]:
        """The blocks that `nbytes` (more than 0) from `offset` touch: (first, count)."""
        first = offset // self.block_size
        count = (offset + nbytes - 1) // self.block_size - first + 1
        self._check(opcode, first, count)
        return first, count

    async def pread(self, nbytes: int, offset: int) -> bytes:
        """Reads `nbytes` bytes from byte `offset`, like os.pread. Whole blocks are read without a
        copy in between.
        """
        _natural(offset, nbytes)
        if nbytes == 0:
            return b""
        size = self.block_size
        first, count = self._blocks_around(READ, offset, nbytes)
        data = await self.read(first, count)
        skip = offset - first * size
        return data if len(data) == nbytes else data[skip : skip + nbytes]

    async def pwrite(self, data: BufferLike, offset: int, *, fua: bool = False) -> int:
        """Writes `data` at byte `offset`, like os.pwrite. Returns the bytes written: all of them.

        If `data` starts or ends inside a block, that block is read, changed and written back. This
        isn't atomic; but byte accesses (pwrite, writev, files) of this process through one
        controller object wait for each other if they share such a block, and for a cancelled or
        timed-out one until it can't land any more. write() and other processes are not excluded.
        """
        view = byte_view(data)
        _natural(offset, view.nbytes)
        if view.nbytes == 0:
            return 0
        size = self.block_size
        first, count = self._blocks_around(WRITE, offset, view.nbytes)
        whole = offset % size == 0 and view.nbytes % size == 0
        async with self._guard().writing(first, count, alone=not whole, settled=self.settled):
            await self.write(first, view if whole else await self._merged(view, offset, first, count), fua=fua)
        return view.nbytes

    async def _merged(self, view: memoryview, offset: int, first: int, count: int) -> bytearray:
        """Whole blocks: `view` at its place, surrounded by the disk's content."""
        size = self.block_size
        blocks = bytearray(count * size)
        edges = memoryview(blocks)
        begin = offset - first * size
        end = begin + view.nbytes
        head, tail = begin > 0, end < len(blocks)
        last = (count - 1) * size
        parts: list[Coroutine[object, None, int]] = []
        if head or (tail and count == 1):
            parts.append(self.readinto(first, edges[:size]))
        if tail and count > 1:
            parts.append(self.readinto(first + count - 1, edges[last:]))
        await together(parts)
        edges[begin:end] = view
        return blocks

    async def readv(
        self, buffers: Sequence[BufferLike], offset: int, *, metadata: Views = None, protect: Protect | None = None
    ) -> int:
        """Fills writable buffers one after the other from byte `offset`, like os.preadv. Returns
        the bytes read: the sum of their lengths.

        Buffers may be views with any strides (NumPy), and are filled in C order of their items. If
        offset and lengths are multiples of the block size, each contiguous buffer is filled as by
        readinto(), without a copy if the device can access it; all at the same time. Other lengths
        and strides are filled in place too if offset and sum are multiples of the block size, the
        device can access all of it, and the controller has Scatter Gather Lists (Identify
        Controller, SGLS); else they are copied. ValueError for data in more than 1,048,576 places.

        metadata: buffers, likewise, for the metadata of whole blocks; in place if the controller
        takes lists for them too (SGLS bit 19), and the namespace has them in a separate buffer.
        protect: as for read().
        """
        views = [view for view in _views(buffers, writable=True) if view.nbytes]
        total = sum(view.nbytes for view in views)
        _natural(offset, total)
        if total == 0:
            return 0
        if metadata is not None or protect is not None:
            data, extra = _with_metadata(views, metadata, total, offset, self.block_size, writable=True)
            await self._blocks_with_metadata("readinto", offset // self.block_size, data, extra, protect)
            return total
        size = self.block_size
        first, _ = self._blocks_around(READ, offset, total)
        if offset % size == 0 and all(_is_plain(view, size) for view in views):
            await together([self.readinto(lba, view) for lba, view in _placed(first, views, size)])
            return total
        data = Scatter(views, writable=True)
        if offset % size or total % size or not await move_scattered(self, first, data, write=False):
            data.fill(await self.pread(total, offset))
        return total

    async def writev(
        self,
        buffers: Sequence[BufferLike],
        offset: int,
        *,
        fua: bool = False,
        metadata: Views = None,
        protect: Protect | None = None,
    ) -> int:
        """Writes buffers one after the other from byte `offset`, like os.pwritev. Returns the bytes
        written: the sum of their lengths.

        If offset and lengths are multiples of the block size, contiguous buffers are written as by
        write(), all at the same time. What readv() fills in place is written in place; otherwise
        buffers are joined, and written as by pwrite(). metadata, protect: as for readv().
        """
        views = [view for view in _views(buffers, writable=False) if view.nbytes]
        total = sum(view.nbytes for view in views)
        _natural(offset, total)
        if total == 0:
            return 0
        size = self.block_size
        if metadata is not None or protect is not None:
            data, extra = _with_metadata(views, metadata, total, offset, size, writable=False)
            first, count = self._blocks_around(WRITE, offset, total)
            async with self._guard().writing(first, count, alone=False, settled=self.settled):
                await self._blocks_with_metadata("write", first, data, extra, protect, fua)
            return total
        plain = all(_is_plain(view, size) for view in views)
        if offset % size or total % size:
            return await self.pwrite(Scatter(views).gather(), offset, fua=fua)
        first, count = self._blocks_around(WRITE, offset, total)
        async with self._guard().writing(first, count, alone=False, settled=self.settled):
            if plain:
                await together([self.write(lba, view, fua=fua) for lba, view in _placed(first, views, size)])
                return total
            data = Scatter(views)
            if not await move_scattered(self, first, data, write=True, fua=fua):
                await self.write(first, data.gather(), fua=fua)
        return total

    async def _blocks_with_metadata(
        self, method: str, lba: int, data: Scatter, metadata: Scatter | None, protect: Protect | None, fua: bool = False
    ) -> None:
        namespace, geometry = cast(WithMetadata, self), self.geometry
        if namespace._gone is not None:
            raise namespace._gone
        geometry.check()
        await move_scattered_blocks(namespace, geometry, method, lba, data, metadata=metadata, protect=protect, fua=fua)

    def stream(
        self, offset: int = 0, nbytes: int | None = None, *, chunk: int = DEFAULT_CHUNK, ahead: int = DEFAULT_AHEAD
    ) -> ByteStream:
        """Reads one part after another, and the next ones ahead:

            async with ns.stream(0, 1 << 30, chunk=1 << 20) as chunks:
                async for data in chunks:
                    ...

        offset, nbytes: the range to read; None: to the end of the namespace. chunk: bytes of each
        part except the last; a multiple of the block size is fastest. ahead: how many parts are
        read at the same time, which bounds the memory: ahead * chunk bytes. Nothing new is read
        while the consumer keeps `ahead` parts waiting. Leaving the block cancels reads in flight.
        """
        return ByteStream(self.pread, self.nbytes, offset, nbytes, chunk, ahead)

    def file(self, offset: int = 0, nbytes: int | None = None) -> NamespaceFile:
        """Bytes of the namespace as a file with a position, with aiofiles' methods: `read`,
        `readinto`, `write`, `seek`, `tell`, `flush`, `close`; `async with` closes it. It never
        grows.

        offset, nbytes: which part it is; None: to the end of the namespace.
        """
        return NamespaceFile(self, offset, nbytes)


# Opcodes of NVM Command Set 1.0, 3.2, for requests that are refused before anything is sent.
READ, WRITE = 0x02, 0x01


def _natural(offset: int, nbytes: int) -> None:
    for name, value in (("offset", offset), ("length", nbytes)):
        if value < 0:
            raise ValueError(f"{name} {value} is negative")


def _views(buffers: Sequence[BufferLike], *, writable: bool) -> list[memoryview]:
    """Bytes of those that are contiguous; the others as they are. ValueError for one that is
    read-only although it is to be filled.
    """
    views = []
    for buffer in buffers:
        view = memoryview(buffer)  # type: ignore[arg-type]  # ArrayInterface stands for NumPy's arrays
        views.append(byte_view(buffer, writable=writable) if view.c_contiguous else view)
        if writable and view.readonly:
            raise ValueError(f"the {type(buffer).__name__} is read-only, and data were to be read into it")
    return views


def _is_plain(view: memoryview, size: int) -> bool:
    """Whole blocks that follow one another."""
    return view.c_contiguous and view.nbytes % size == 0


def _placed(first: int, views: Sequence[memoryview], size: int) -> Iterator[tuple[int, memoryview]]:
    """Each view, and the block where it starts."""
    for view in views:
        yield first, view
        first += view.nbytes // size


def _with_metadata(
    views: list[memoryview],
    metadata: Sequence[BufferLike] | None,
    total: int,
    offset: int,
    size: int,
    *,
    writable: bool,
) -> tuple[Scatter, Scatter | None]:
    """ValueError for parts of blocks: metadata belong to whole ones."""
    if offset % size or total % size:
        raise ValueError(
            f"offset {offset} and {total} bytes: with metadata or protect both must be multiples of {size}"
        )
    extra = (
        None
        if metadata is None
        else Scatter([view for view in _views(metadata, writable=writable) if view.nbytes], writable)
    )
    return Scatter(views, writable), extra
