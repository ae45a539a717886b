from socket import socket as Socket
from typing import Any, final

@final
class Connection:
    """One NBD connection after its handshake: a source of commands for _hotpath.Stream.

    socket: non-blocking; stays the caller's, and open while the stream runs.
    memory: a writable buffer that the device reaches at `iova`, held for the connection's lifetime.
        offset: where it lies in its pool; None: in none. It is cut into cells of cell_nbytes, a
        multiple of 4096 and of block_size.
    nbytes: of the export. max_nbytes: of one read or write, at most what all cells hold.
    zero_blocks, trim_blocks: of one Write Zeroes command and one range of Dataset Management; 0:
    there is none.
    """

    source: Any
    """The capsule that Stream takes."""
    fd: int
    why: str | None
    """Why the connection has ended; None: the client asked for it."""
    def __new__(
        cls,
        socket: Socket,
        memory: Any,
        *,
        iova: int,
        offset: int | None,
        cell_nbytes: int,
        nbytes: int,
        nsid: int,
        block_size: int,
        zero_blocks: int,
        trim_blocks: int,
        max_nbytes: int,
        read_only: bool,
        structured: bool,
    ) -> Connection: ...
    def inspect(self) -> dict[str, Any]:
        """Counters since the connection began, and requests that are not answered yet
        ("in_flight").
        """
