"""A small NBD client, written from the protocol's text and not from the server."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

REQUEST = 0x25609513
SIMPLE = 0x67446698
CHUNK = 0x668E33EF
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES = range(7)
FUA, NO_HOLE = 1, 2


class Refused(Exception):
    """An option was answered with an error."""


class NbdError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class NbdClient:
    """Requests may be awaited concurrently; answers come in any order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.waiting: dict[int, tuple[asyncio.Future[bytes], int]] = {}
        self.cookie = 0
        self.nbytes = self.flags = 0
        self.sizes: tuple[int, ...] = ()
        self.structured = False
        self._receiver: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, path: str, *, name: str = "", structured: bool = True) -> NbdClient:
        self = cls(*await asyncio.open_unix_connection(path))
        try:
            await self._shake_hands(name, structured)
        except BaseException:
            await self.close(politely=False)
            raise
        self._receiver = asyncio.create_task(self._receive())
        return self

    async def _shake_hands(self, name: str, structured: bool) -> None:
        assert await self.reader.readexactly(16) == b"NBDMAGICIHAVEOPT"
        (flags,) = struct.unpack(">H", await self.reader.readexactly(2))
        assert flags & 3 == 3
        self.writer.write(struct.pack(">I", 3))
        if structured:
            await self.option(8)
            self.structured = True
        data = struct.pack(">I", len(name)) + name.encode() + struct.pack(">HH", 1, 3)
        for info in await self.option(7, data):
            kind = struct.unpack_from(">H", info)[0]
            if kind == 0:
                self.nbytes, self.flags = struct.unpack_from(">QH", info, 2)
            elif kind == 3:
                self.sizes = struct.unpack_from(">III", info, 2)

    async def option(self, number: int, data: bytes = b"") -> list[bytes]:
        """The answers but for the last, which is an acknowledgement; Refused."""
        self.writer.write(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        answers = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", await self.reader.readexactly(20))
            assert (magic, option) == (0x3E889045565A9, number)
            payload = await self.reader.readexactly(length)
            if kind == 1:
                return answers
            if kind & 1 << 31:
                raise Refused(kind)
            answers.append(payload)

    async def _receive(self) -> None:
        parts: dict[int, bytearray] = {}
        try:
            while True:
                (magic,) = struct.unpack(">I", await self.reader.readexactly(4))
                if magic == SIMPLE:
                    error, cookie = struct.unpack(">IQ", await self.reader.readexactly(12))
                    future, nbytes = self.waiting.pop(cookie)
                    self._answer(future, error, b"" if error else await self.reader.readexactly(nbytes))
                    continue
                assert magic == CHUNK, hex(magic)
                flags, kind, cookie, length = struct.unpack(">HHQI", await self.reader.readexactly(16))
                payload = await self.reader.readexactly(length)
                future, nbytes = self.waiting[cookie]
                error = 0
                if kind == 1:
                    (offset,) = struct.unpack_from(">Q", payload)
                    begin = offset - future.offset  # type: ignore[attr-defined]
                    data = parts.setdefault(cookie, bytearray(nbytes))
                    data[begin : begin + length - 8] = payload[8:]
                elif kind & 1 << 15:
                    (error,) = struct.unpack_from(">I", payload)
                else:
                    assert (kind, length) == (0, 0)
                if flags & 1 or error:
                    assert flags & 1, "an error chunk of this server is the last one"
                    del self.waiting[cookie]
                    self._answer(future, error, bytes(parts.pop(cookie, b"")))
        except (asyncio.IncompleteReadError, ConnectionError) as ended:
            for future, _ in self.waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError(str(ended)))
                    future.exception()  # it need not be awaited
            self.waiting.clear()

    @staticmethod
    def _answer(future: asyncio.Future[bytes], error: int, data: bytes) -> None:
        if not future.done():
            if error:
                future.set_exception(NbdError(error))
            else:
                future.set_result(data)

    def send(self, type_: int, offset: int = 0, nbytes: int = 0, data: bytes = b"", flags: int = 0) -> Any:
        """Sends a request; the future has the data of its answer."""
        if self._receiver is None or self._receiver.done():
            raise ConnectionError("the server has ended the connection")
        self.cookie += 1

        class Answer(asyncio.Future):  # type: ignore[type-arg]
            pass

        future = Answer()
        future.offset = offset  # type: ignore[attr-defined]
        self.waiting[self.cookie] = (future, nbytes if type_ == READ else 0)
        self.writer.write(struct.pack(">IHHQQI", REQUEST, flags, type_, self.cookie, offset, nbytes) + data)
        return future

    async def read(self, offset: int, nbytes: int) -> bytes:
        return await self.send(READ, offset, nbytes)

    async def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        await self.send(WRITE, offset, len(data), data, flags)
        await self.writer.drain()

    async def close(self, *, politely: bool = True) -> None:
        if politely:
            self.writer.write(struct.pack(">IHHQQI", REQUEST, 0, DISC, 0, 0, 0))
        self.writer.close()
        if self._receiver is not None:
            await asyncio.wait([self._receiver])
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
