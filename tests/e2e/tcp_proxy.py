"""A proxy between an NVMe/TCP host and its target that damages the stream as networks and bugs
do.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading

import attrs


@attrs.define
class Mischief:
    """The faults of one connection, in bytes from its start, including the handshake. None: no
    fault.

    Attributes:
        piece: the stream is passed on in separate pieces of at most this size.
        delay: seconds before each piece.
        cut_after: the connection ends when so many bytes have gone towards the host.
        flip_after: one bit is flipped in the stream towards the host ("down") or the target ("up"),
            so many bytes after the handshake.
        flip_every: another bit is flipped after each so many further bytes.
    """

    piece: int = 1 << 16
    delay: float = 0.0
    cut_after: int | None = None
    flip_after: int | None = None
    flip_every: int | None = None
    flip: str = "down"


HANDSHAKE = 2048  # more than ICReq and Connect, or ICResp and its response


class Proxy:
    """Listens on `port` of 127.0.0.1, in its own thread.

    mischief: the faults of the next connection; a callable that takes its number, or None.
    """

    def __init__(self, target: tuple[str, int], mischief=None) -> None:
        self.target = target
        self.mischief = mischief
        self.connections = self.cuts = self.flips = 0
        self.silent_up_to = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in list(self._tasks):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._server.close()
        self._loop.close()

    async def _serve(self, reader, writer) -> None:
        self._tasks.add(asyncio.current_task())
        self.connections += 1
        number = self.connections
        mischief = (self.mischief(number) if self.mischief else None) or Mischief()
        try:
            up_reader, up_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        try:
            pumps = [
                asyncio.ensure_future(self._pump(reader, up_writer, mischief, "up", number)),
                asyncio.ensure_future(self._pump(up_reader, writer, mischief, "down", number)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for one in (writer, up_writer):
                self._writers.discard(one)
                one.transport.abort()
            self._tasks.discard(asyncio.current_task())

    async def _pump(self, reader, writer, mischief: Mischief, way: str, number: int) -> None:
        passed = 0
        flip_at = None if mischief.flip_after is None or mischief.flip != way else HANDSHAKE + mischief.flip_after
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if number <= self.silent_up_to:
                    continue
                for at in range(0, len(data), mischief.piece):
                    part = bytearray(data[at : at + mischief.piece])
                    if mischief.delay:
                        await asyncio.sleep(mischief.delay)
                    while flip_at is not None and passed <= flip_at < passed + len(part):
                        part[flip_at - passed] ^= 1 << (flip_at % 8)
                        self.flips += 1
                        flip_at = flip_at + mischief.flip_every if mischief.flip_every else None
                    passed += len(part)
                    if way == "down" and mischief.cut_after is not None and passed > mischief.cut_after:
                        self.cuts += 1
                        return
                    writer.write(part)
                    await writer.drain()

    def silence(self) -> None:
        """From now on the present connections stay open, but nothing arrives over them."""
        self.silent_up_to = self.connections

    def cut_all(self) -> None:
        """Ends every connection now."""

        def cut() -> None:
            self.cuts += len(self._writers) // 2
            for writer in list(self._writers):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(cut)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


def some_mischief(random: random.Random, number: int) -> Mischief | None:
    """One of each kind, and sometimes none."""
    kind = random.randrange(5)
    if kind == 0:
        return Mischief(cut_after=random.randrange(100, 60_000))
    if kind == 1:
        return Mischief(flip_after=random.randrange(40_000), flip=random.choice(["up", "down"]))
    if kind == 2:
        return Mischief(piece=random.choice([1, 3, 7, 100]), cut_after=random.randrange(2000, 20_000))
    if kind == 3:
        return Mischief(piece=4096, delay=0.0005, cut_after=random.randrange(30_000, 200_000))
    return None
