"""Bytes of a namespace behind the methods of an asynchronous file (aiofiles' names)."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Protocol, Self

from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.byte_stream import span
from nvme_async.native._placement import byte_view


class ByteAddressed(Protocol):
    """The calls that a file uses: ns.pread, ns.pwrite, ns.readv, ns.flush."""

    @property
    def nbytes(self) -> int: ...
    def pread(self, nbytes: int, offset: int) -> Coroutine[object, None, bytes]: ...
    def pwrite(self, data: BufferLike, offset: int, *, fua: bool = False) -> Coroutine[object, None, int]: ...
    def readv(self, buffers: Sequence[BufferLike], offset: int) -> Coroutine[object, None, int]: ...
    def flush(self) -> Coroutine[object, None, None]: ...


class NamespaceFile:
    """A part of a namespace as a file with a position; from ns.file(). Its size is fixed.

    On one event loop. Calls of several tasks are executed one after another, as with a file object.
    Nothing is buffered: write() returns when the controller has the data, flush() when they are on
    non-volatile media. Closing waits for nothing and flushes nothing. io.UnsupportedOperation for
    what only a file can (truncate, fileno); ValueError on a closed file.
    """

    def __init__(self, namespace: ByteAddressed, offset: int, nbytes: int | None) -> None:
        self._namespace = namespace
        self._begin, end = span(namespace.nbytes, offset, nbytes)
        self.nbytes: int = end - self._begin
        """Its size in bytes."""
        self._position = 0
        self._closed = False
        self._turn = asyncio.Lock()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def mode(self) -> str:
        return "rb+"

    def _usable(self) -> None:
        if self._closed:
            raise ValueError("I/O operation on closed file")

    def _left(self) -> int:
        return max(self.nbytes - self._position, 0)

    async def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, fewer only at the end of the file; all the rest by default."""
        async with self._turn:
            self._usable()
            nbytes = self._left() if size is None or size < 0 else min(size, self._left())
            data = await self._namespace.pread(nbytes, self._begin + self._position) if nbytes else b""
            self._position += nbytes
            return data

    async def readinto(self, buffer: BufferLike) -> int:
        """Fills a writable buffer; fewer bytes than it has only at the end of the file."""
        async with self._turn:
            self._usable()
            view = byte_view(buffer, writable=True)
            nbytes = min(view.nbytes, self._left())
            if nbytes:
                await self._namespace.readv([view[:nbytes]], self._begin + self._position)
            self._position += nbytes
            return nbytes

    async def write(self, data: BufferLike) -> int:
        """All of `data`. OSError (ENOSPC) if they don't fit, and nothing is written."""
        async with self._turn:
            self._usable()
            nbytes = byte_view(data).nbytes
            if nbytes > self._left():
                raise OSError(errno.ENOSPC, f"{nbytes} bytes at {self._position} do not fit into {self.nbytes}")
            if nbytes:
                await self._namespace.pwrite(data, self._begin + self._position)
            self._position += nbytes
            return nbytes

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The new position. It may lie beyond the end, where there is nothing to read."""
        async with self._turn:
            self._usable()
            if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
                raise ValueError(f"whence is {whence}, not 0, 1 or 2")
            position = (0, self._position, self.nbytes)[whence] + offset
            if position < 0:
                raise ValueError(f"position {position} is before the file's first byte")
            self._position = position
            return position

    async def tell(self) -> int:
        self._usable()
        return self._position

    async def flush(self) -> None:
        """Commits written data to non-volatile media: the namespace's flush()."""
        self._usable()
        await self._namespace.flush()

    async def close(self) -> None:
        self._closed = True

    async def readable(self) -> bool:
        return True

    async def writable(self) -> bool:
        return True

    async def seekable(self) -> bool:
        return True

    async def truncate(self, size: int | None = None) -> int:
        raise io.UnsupportedOperation("the size of a namespace is fixed: truncate() is not possible")

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a namespace has no file descriptor")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
