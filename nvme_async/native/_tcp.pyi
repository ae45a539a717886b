"""NVMe/TCP's hot path: one connection as the transport of a queue pair. See ext/tcp/link.h."""

import socket as _socket
from typing import Any, final

from typing_extensions import Buffer

def crc32c(data: Buffer, crc: int = 0, *, software: bool = False) -> int: ...
def crc32c_in_hardware() -> bool: ...

@final
class Link:
    """A connection. QueuePair.set_transport() makes it that queue pair's; then attach().

    Threads: the queue pair's.
    """

    binding: Any
    def attach(
        self,
        socket: _socket.socket,
        *,
        in_capsule: int,
        max_h2c: int,
        alignment: int,
        header_digest: bool,
        data_digest: bool,
    ) -> None:
        """A non-blocking socket over which Connect has completed; held, not closed, until
        detach().

        in_capsule: bytes of data that a command capsule may carry. max_h2c: MAXH2CDATA in bytes.
        alignment: of data that the host sends, in bytes, (CPDA + 1) * 4. The queue pair is silent
            meanwhile. OSError, ValueError for limits that no controller may have.
        """

    def detach(self) -> _socket.socket | None:
        """The socket is not used any more, and is returned."""

    def flush(self) -> None:
        """room_fd is readable: the socket takes data again."""

    @property
    def connected(self) -> bool: ...
    @property
    def broken(self) -> bool:
        """The connection has failed, and was shut down: the socket is readable, and delivers
        nothing more.
        """

    @property
    def room_fd(self) -> int:
        """The loop must watch it; readable when flush() has something to do."""

    @property
    def error(self) -> str | None:
        """Why the connection failed."""

    def inspect(self) -> dict[str, Any]:
        """Counters and limits. From any thread; then a glance, not a snapshot."""
