"""A listening Unix socket that removes its path, and stale paths of predecessors; exact reads."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

from nvme_async.errors import ConfigurationError
from nvme_async.runtime import forks

BACKLOG = 16


def _remove_stale(path: str, kind: socket.SocketKind) -> None:
    """Unlinks a socket without a listener; ConfigurationError if it is anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass  # BlockingIOError: its backlog is full, so it has a listener
    raise ConfigurationError(f"{path} is in use: another process listens on it")


async def receive_exactly(sock: socket.socket, nbytes: int) -> bytes:
    """So many bytes from a non-blocking socket. EOFError if the peer closes it first; OSError."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < nbytes:
        part = await loop.sock_recv(sock, nbytes - len(data))
        if not part:
            raise EOFError(f"the connection was closed after {len(data)} of {nbytes} bytes")
        data += part
    return bytes(data)


class ListeningSocket:
    """Bound, for this user only, and listening. unlink() removes the path, unless it belongs to
    another socket by now.

    A loop may accept from `socket`, which this object still owns.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: socket.SocketKind = socket.SOCK_STREAM,
        *,
        backlog: int = BACKLOG,
        replace: bool = False,
    ) -> None:
        """replace: replaces a predecessor's socket, which may still listen; there is always one
        at the path.
        """
        self.path: str = os.fspath(path)
        place = f"{self.path}.{os.getpid()}" if replace else self.path
        try:
            _remove_stale(place, kind)
            self.socket: socket.socket = socket.socket(socket.AF_UNIX, kind)
            try:
                self.socket.bind(place)
                # No client can connect between bind() and listen(), so the mode is set before it
                # matters.
                os.chmod(place, 0o600)
                self.socket.listen(backlog)
                if replace:
                    os.rename(place, self.path)
            except BaseException:
                self.socket.close()
                raise
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {self.path}: {error.strerror or error}") from None
        self._identity = self._stat()
        forks.watch(self)

    def forget_in_child(self) -> None:
        self._identity = None  # the path belongs to the parent
        # Not close(), which waits until no loop refers to the socket.
        if self.socket.fileno() >= 0:
            os.close(self.socket.detach())

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def fileno(self) -> int:
        return self.socket.fileno()

    def accept(self) -> socket.socket:
        return self.socket.accept()[0]

    def detach(self) -> int:
        """The descriptor, which now belongs to the caller."""
        return self.socket.detach()

    def unlink(self) -> None:
        """Closes the socket if it wasn't detached, and removes its path."""
        self.socket.close()
        if self._identity is not None and self._stat() == self._identity:
            os.unlink(self.path)
        self._identity = None
