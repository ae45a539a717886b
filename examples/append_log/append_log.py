#!/usr/bin/env python3
"""An append-only log on a namespace, which is found again after a crash.

    python append_log.py URI              # appends lines from standard input
    python append_log.py URI --read       # prints all records

A record is a header and its bytes, in whole blocks of its own, so that a torn write can't hurt an
older record. Reading begins at the first block and ends with the first record whose number or
checksum is not the next one's: what was torn was never acknowledged. Records that wait at the same
time are written together, and one flush commits all of them.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import zlib
from collections.abc import AsyncIterator

import nvme_async
from nvme_async import AsyncNamespace

# magic, id of this log, number of the record, bytes, checksum of all of that and of the bytes
HEADER = struct.Struct("<4sQQII")
MAGIC = b"ALOG"


class LogFull(Exception):
    """The record doesn't fit into what is left of the namespace."""


class AppendLog:
    """`log = await AppendLog.open(namespace)`. On one event loop; append() by any number of
    tasks.
    """

    def __init__(self, namespace: AsyncNamespace) -> None:
        self._namespace = namespace
        self._log_id = 0
        self._number = 0  # of the next record
        self._end = 0  # where it goes, in bytes
        self._waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, namespace: AsyncNamespace, log_id: int = 1) -> AppendLog:
        """The log `log_id` as it was left; another one's records don't count, so a new id is an
        empty log.
        """
        log = cls(namespace)
        log._log_id = log_id
        async for number, data in log.records():
            log._number = number + 1
            log._end += log._size(len(data))
        return log

    def __len__(self) -> int:
        return self._number

    def _size(self, nbytes: int) -> int:
        block = self._namespace.block_size
        return -(-(HEADER.size + nbytes) // block) * block

    async def records(self) -> AsyncIterator[tuple[int, bytes]]:
        """(number, bytes) of all records, in order."""
        kept, number = bytearray(), 0
        async with self._namespace.stream(chunk=1 << 20) as chunks:
            async for chunk in chunks:
                kept += chunk
                begin = 0
                while len(kept) - begin >= HEADER.size:
                    magic, log_id, found, nbytes, checksum = HEADER.unpack_from(kept, begin)
                    size = self._size(nbytes)
                    if (magic, log_id, found) != (MAGIC, self._log_id, number) or size > self._namespace.nbytes:
                        return
                    if len(kept) - begin < size:
                        break  # the rest is in the next chunk
                    data = bytes(kept[begin + HEADER.size : begin + HEADER.size + nbytes])
                    if checksum != self._checksum(number, data):
                        return
                    yield number, data
                    number += 1
                    begin += size
                del kept[:begin]

    def _checksum(self, number: int, data: bytes) -> int:
        return zlib.crc32(data, zlib.crc32(HEADER.pack(MAGIC, self._log_id, number, len(data), 0)))

    async def append(self, data: bytes) -> int:
        """The record's number. When it returns, the record survives a power failure."""
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((data, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await asyncio.shield(written)

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            begin, number, blocks = self._end, self._number, bytearray()
            done: list[tuple[asyncio.Future[int], int]] = []
            for data, written in batch:
                size = self._size(len(data))
                if begin + len(blocks) + size > self._namespace.nbytes:
                    written.set_exception(LogFull(f"{len(data)} bytes don't fit"))
                    continue
                header = HEADER.pack(MAGIC, self._log_id, number, len(data), self._checksum(number, data))
                blocks += (header + data).ljust(size, b"\0")
                done.append((written, number))
                number += 1
            try:
                if blocks:
                    await self._namespace.pwrite(blocks, begin)
                    await self._namespace.flush()
            except Exception as error:
                # Nothing of it was acknowledged, and the next batch goes to the same place.
                for written, _ in done:
                    if not written.done():
                        written.set_exception(error)
                continue
            self._end, self._number = begin + len(blocks), number
            for written, own in done:
                written.set_result(own)


async def main(uri: str, read: bool) -> None:
    async with nvme_async.open(uri) as controller:
        log = await AppendLog.open(controller.namespaces[1])
        if read:
            async for number, data in log.records():
                print(f"{number}: {data.decode(errors='replace')}")
            return
        for line in sys.stdin:
            print(await log.append(line.rstrip("\n").encode()))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], "--read" in sys.argv[2:]))
