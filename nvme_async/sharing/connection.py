"""One connection to the owner: requests become tasks, bounded in number; silent peers are
disconnected.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, Protocol

from nvme_async.errors import LeaseError, NvmeError
from nvme_async.sharing.channel import Channel
from nvme_async.sharing.lease import Lease
from nvme_async.sharing.protocol import MAX_PENDING, Message

log: logging.Logger = logging.getLogger("nvme_async")

SILENT_SECONDS = 5.0
"""Limit for its first message."""


class Server(Protocol):
    """Who answers."""

    async def lend(self, connection: Connection, message: Message) -> tuple[dict[str, Any], list[int]]: ...
    async def join(self, connection: Connection, message: Message) -> tuple[dict[str, Any], list[int]]: ...
    async def handle(self, connection: Connection, message: Message) -> tuple[dict[str, Any], bytes]: ...
    def notice(self, connection: Connection, message: Message) -> None: ...
    def spawn(self, work: Any) -> None: ...
    def forget_connection(self, connection: Connection) -> None: ...


class Connection:
    """Attributes:
    pid: of the process that connected.
    lease: the lease of this connection, or the one that it has joined; or None.
    """

    def __init__(self, server: Server, sock: socket.socket, pid: int) -> None:
        self._server = server
        self.pid = pid
        self.lease: Lease | None = None
        self._pending = 0
        self._spoke = False
        self.channel: Channel = Channel(sock, self._on_message, self._on_closed)
        asyncio.get_running_loop().call_later(SILENT_SECONDS, self._silent)

    def _silent(self) -> None:
        if not self._spoke and not self.channel.closed:
            self.hang_up(f"it has sent nothing for {SILENT_SECONDS:g} s")

    def hang_up(self, reason: str) -> None:
        """Ends the connection."""
        log.warning("sharing: process %d is disconnected: %s", self.pid, reason)
        self.channel.close()
        self._server.forget_connection(self)

    def _on_closed(self, reason: str) -> None:
        self._server.forget_connection(self)

    def _on_message(self, message: Message) -> None:
        self._spoke = True
        if message.id == 0:
            try:
                self._server.notice(self, message)
            except LeaseError as error:
                self.hang_up(str(error))
            finally:
                message.close()
            return
        if self._pending >= MAX_PENDING:
            message.close()
            self.hang_up(f"more than {MAX_PENDING} requests at a time")
            return
        self._pending += 1
        self._server.spawn(lambda: self._answer(message))

    async def _answer(self, message: Message) -> None:
        fds: list[int] = []
        try:
            data = b""
            if message.kind == "lease":
                body, fds = await self._server.lend(self, message)
            elif message.kind == "join":
                body, fds = await self._server.join(self, message)
            else:
                body, data = await self._server.handle(self, message)
            self.channel.send("answer", body, id=message.id, data=data, fds=fds)
        except LeaseError as error:
            self.channel.send("refused", {"code": error.code, "text": str(error)[:1000]}, id=message.id)
        except (NvmeError, OSError, ValueError) as error:
            self.channel.send("refused", {"code": "failed", "text": str(error)[:1000]}, id=message.id)
        finally:
            self._pending -= 1
            message.close()
