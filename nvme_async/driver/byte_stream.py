"""Reading a range of bytes part by part, with the next parts read ahead."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Self

DEFAULT_CHUNK = 1 << 20
DEFAULT_AHEAD = 4
MAX_AHEAD = 1024


def span(size: int, offset: int, nbytes: int | None) -> tuple[int, int]:
    """(start, end) of a range of `size` bytes; ValueError if it isn't inside."""
    end = size if nbytes is None else offset + nbytes
    if not 0 <= offset <= end <= size:
        raise ValueError(f"offset {offset}, nbytes {nbytes}: not inside the namespace of {size} bytes")
    return offset, end


class ByteStream:
    """Parts of a range of bytes, in order, as bytes; from ns.stream(). An async context manager
    and, inside, an async iterator, for one task at a time.
    """

    def __init__(
        self,
        pread: Callable[[int, int], Coroutine[object, None, bytes]],
        size: int,
        offset: int,
        nbytes: int | None,
        chunk: int,
        ahead: int,
    ) -> None:
        if chunk <= 0:
            raise ValueError(f"chunk is {chunk}, must be 1 or more")
        if not 1 <= ahead <= MAX_AHEAD:
            raise ValueError(f"ahead is {ahead}, must be 1 to {MAX_AHEAD}")
        self._at, self._end = span(size, offset, nbytes)
        self._pread, self._chunk, self._ahead = pread, chunk, ahead
        self._reads: deque[asyncio.Task[bytes]] = deque()
        self._entered = False

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a stream can be entered only once; ns.stream() makes another")
        self._entered = True
        self._fill()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels the reads in flight, and ends the iteration."""
        self._at = self._end
        reads = list(self._reads)
        self._reads.clear()
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._entered:
            raise RuntimeError("a stream reads only inside `async with`, which ends its reads")
        if not self._reads:
            raise StopAsyncIteration
        data = await asyncio.shield(self._reads[0])  # a cancelled call loses no part
        self._reads.popleft()
        self._fill()
        return data

    def _fill(self) -> None:
        while len(self._reads) < self._ahead and self._at < self._end:
            nbytes = min(self._chunk, self._end - self._at)
            self._reads.append(asyncio.create_task(self._pread(nbytes, self._at), name=f"read ahead at {self._at}"))
            self._at += nbytes
