"""The queues of an NVMe/TCP controller: the same native queue pairs as for PCIe, whose transport
is a connection each.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Protocol

from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.queues.queue_maker import CarriedQueueMaker
from nvme_async.driver.tcp.handshake import Connection
from nvme_async.driver.transport import Owner
from nvme_async.native import _tcp
from nvme_async.spec.registers import Cap

log: logging.Logger = logging.getLogger("nvme_async")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TcpQueue(LoopQueue):
    """A queue pair over a connection, which may be lost and replaced.

    on_broken(queue, why): called on the queue's loop, once per failed connection.
    """

    def __init__(self, *arguments: Any, link: _tcp.Link, on_broken: Callable[[TcpQueue, str], None], **options: Any):
        super().__init__(*arguments, event_fd=link.room_fd, **options)
        self.link = link
        self._on_broken = on_broken
        self._socket: socket.socket | None = None
        self._reading = False

    @property
    def connected(self) -> bool:
        """Is there a connection that has not failed? From any thread."""
        return self.link.connected and not self.link.broken

    def listen(self, *others: LoopQueue) -> None:
        self.worker: str = threading.current_thread().name
        self._on_interrupt = self.link.flush
        self.loop.add_reader(self.event_fd, self.link.flush)
        self._read(True)

    def _read(self, on: bool) -> None:
        sock = self._socket
        if sock is None or self.loop.is_closed() or on == self._reading:
            return
        self._reading = on
        if on:
            self.loop.add_reader(sock.fileno(), self._readable)
        else:
            self.loop.remove_reader(sock.fileno())

    def _readable(self) -> None:
        self.hot.on_readable()
        if self.link.broken:
            self._read(False)
            self._on_broken(self, self.link.error or "the connection is lost")

    def connect(self, connection: Connection) -> None:
        """The queue uses this connection from now on, and owns it. In the loop's thread;
        silent.
        """
        limits = connection.limits
        self.link.attach(
            connection.sock,
            in_capsule=limits.in_capsule,
            max_h2c=limits.max_h2c,
            alignment=limits.alignment,
            header_digest=limits.header_digest,
            data_digest=limits.data_digest,
        )
        self._socket = connection.sock
        if self._on_interrupt is not None:
            self._read(True)

    def disconnect(self) -> None:
        """Nothing more is sent over the connection; the controller won't read the rest. In the
        loop's thread, or after the loop has ended.
        """
        sock = self._socket
        if sock is None:
            return
        self._read(False)
        self.link.detach()
        self._socket = None
        self._reading = False
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        except OSError:
            pass
        sock.close()

    def cut(self) -> None:
        """Ends the connection, from any thread; the queue's loop notices."""
        sock = self._socket
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        self.disconnect()
        super().close()

    def inspect(self) -> dict[str, Any]:
        return {**super().inspect(), "connection": self.link.inspect()}


class TcpPieces(Protocol):
    """The part of the TCP transport that its queues need."""

    cap: Cap

    async def connect_io(self, qid: int, entries: int) -> Connection: ...
    def connection_lost(self, queue: TcpQueue, why: str) -> None: ...


class TcpQueueMaker(CarriedQueueMaker):
    """Each queue pair has a connection; a stray completion ends it."""

    def __init__(self, controller: Owner, transport: TcpPieces) -> None:
        super().__init__(controller)
        self._transport = transport

    def make(self, qid: int, entries: int, loop: asyncio.AbstractEventLoop) -> TcpQueue:
        """Rings and link, without a connection. Ends with forget()."""
        link = _tcp.Link()
        hot = self._rings(qid, entries, loop)
        hot.set_transport(link)
        self._set_waiting(hot)
        return TcpQueue(
            hot,
            loop,
            vector=qid,
            interrupts=True,
            link=link,
            on_broken=self._transport.connection_lost,
            **self._watching(qid),
        )

    def _on_stray(self, qid: int, n: int, n_sqid: int, cid: int, sqid: int) -> None:
        log.error(
            "%s: queue %d: the link passed on a completion with the unknown id %#06x", self._controller.uri, qid, cid
        )

    async def create(self, queue: LoopQueue) -> None:
        """Connect (Base 2.0, 6.3) on a connection of its own."""
        assert isinstance(queue, TcpQueue)
        await self.on(queue, queue.disconnect)
        connection = await self._transport.connect_io(queue.qid, queue.entries)
        try:
            await self.on(queue, lambda: queue.connect(connection))
        except BaseException:
            connection.sock.close()
            raise

    async def delete(self, queue: LoopQueue) -> None:
        """The end of its connection is the end of a queue."""
        assert isinstance(queue, TcpQueue)
        await self.on(queue, queue.disconnect)
