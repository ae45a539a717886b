"""A connection of the sharing protocol on an event loop, and single requests from any thread."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import itertools
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from nvme_async.errors import ConfigurationError, ControllerGone, ControllerTimeout, LeaseError
from nvme_async.runtime.limits import descriptors_cut_off
from nvme_async.sharing.protocol import (
    MAX_BACKLOG,
    MAX_FDS,
    MAX_MESSAGE,
    VERSION,
    Message,
    decode,
    encode,
    refusal,
)

_BUFFER = 2 * MAX_MESSAGE
_PER_TURN = 16
_ABSENT = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.ECONNRESET)
"""The errors of connect() while an owner is being replaced, or its backlog is full."""


def receive(sock: socket.socket) -> Message | None:
    """One message; None at the end of the connection. LeaseError for an invalid one,
    BlockingIOError, OSError.
    """
    packet, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE + 1, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(packet) > MAX_MESSAGE:
        for fd in fds:
            os.close(fd)
        if flags & socket.MSG_CTRUNC:
            raise LeaseError(f"a message with {descriptors_cut_off(len(fds), MAX_FDS)}", code="invalid")
        raise LeaseError("a message that exceeds the limits of the protocol", code="invalid")
    if not packet:
        for fd in fds:
            os.close(fd)
        return None
    return decode(packet, list(fds))


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that connected, from the kernel (SO_PEERCRED)."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def check_peer(sock: socket.socket) -> int:
    """The peer's pid. LeaseError for a process of another user than this one or root."""
    pid, uid = peer_of(sock)
    if uid not in (os.geteuid(), 0):
        raise LeaseError(
            f"process {pid} is of user {uid}; a controller is shared among processes of one user (here "
            f"{os.geteuid()}), or with root",
            code="policy",
        )
    return pid


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return sock


def prepare(sock: socket.socket) -> socket.socket:
    """An accepted socket: large enough for the largest message."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return sock


def _try(path: str) -> socket.socket | None:
    sock = _socket()
    try:
        sock.setblocking(False)
        sock.connect(path)
        check_peer(sock)
    except OSError as error:
        sock.close()
        if isinstance(error, LeaseError):
            raise
        if error.errno in _ABSENT:
            return None
        raise ConfigurationError(f"shared:{path}: {error.strerror or error}") from None
    return sock


async def connect(path: str, seconds: float) -> socket.socket:
    """A connected socket. ControllerGone if no owner listens within `seconds`;
    ConfigurationError if `path` can't be one; LeaseError for an owner of another user.
    """
    limit = time.monotonic() + seconds
    pause = 0.002
    while (sock := _try(path)) is None:
        if time.monotonic() >= limit:
            raise ControllerGone(f"shared:{path}: no process shares a controller at this path")
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.1)
    return sock


def call_once(
    path: str, kind: str, body: dict[str, Any] | None = None, fds: Sequence[int] = (), *, seconds: float = 10.0
) -> Message:
    """One request on a separate connection; from any thread, which waits up to `seconds`.

    Raises LeaseError for a refusal, ControllerGone if no owner listens, ControllerTimeout without
    an answer.
    """
    limit = time.monotonic() + seconds
    while True:
        try:
            return _call(path, encode(kind, body, id=1), fds, limit)
        except (ConnectionError, BrokenPipeError) as error:
            # The owner is being replaced. The request may have been executed: both map and unmap
            # may be repeated.
            if isinstance(error, ControllerGone) or time.monotonic() >= limit:
                raise ControllerGone(f"shared:{path}: {error}") from None
            time.sleep(0.01)


def _call(path: str, packet: bytes, fds: Sequence[int], limit: float) -> Message:
    while (sock := _try(path)) is None:
        if time.monotonic() >= limit:
            raise ControllerGone("no process shares a controller at this path")
        time.sleep(0.01)
    with sock:
        sock.settimeout(max(0.01, limit - time.monotonic()))
        try:
            socket.send_fds(sock, [packet], list(fds))
            answer = receive(sock)
        except TimeoutError:
            raise ControllerTimeout(f"shared:{path}: the owner did not answer within the time limit") from None
    if answer is None:
        raise ConnectionResetError("the owner closed the connection")
    if answer.version != VERSION:
        raise other_version(path, answer)
    if answer.kind == "refused":
        raise refusal(answer)
    return answer


def other_version(where: str, message: Message) -> LeaseError:
    """The exception for a peer with another protocol version."""
    message.close()
    return LeaseError(
        f"{where}: the peer has version {message.version} of the sharing protocol, this release has version {VERSION}",
        code="version",
    )


class Channel:
    """One connection, on the running loop, which owns the socket until close().

    on_message(message): for each message that is no answer; it must close the message.
    on_closed(reason): once, when the connection has ended by itself, not after close().
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message], None],
        on_closed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._sock = sock
        self._on_message = on_message
        self._on_closed = on_closed
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._backlog: deque[tuple[bytes, list[int]]] = deque()
        self.closed: bool = False
        sock.setblocking(False)
        self.loop.add_reader(sock.fileno(), self._readable)

    # -- sending -----------------------------------------------------------------------------------

    def send(
        self,
        kind: str,
        body: dict[str, Any] | None = None,
        *,
        id: int = 0,
        data: bytes = b"",
        fds: Sequence[int] = (),
    ) -> None:
        """Sends now, or once the peer has room. The caller still owns the descriptors. Does
        nothing after close().
        """
        if self.closed:
            return
        packet = encode(kind, body, id=id, data=data)
        if self._backlog:
            self._later(packet, fds)
            return
        try:
            socket.send_fds(self._sock, [packet], list(fds))
        except BlockingIOError:
            self._later(packet, fds)
            self.loop.add_writer(self._sock.fileno(), self._writable)
        except OSError as error:
            self._end(str(error))

    def _later(self, packet: bytes, fds: Sequence[int]) -> None:
        if len(self._backlog) >= MAX_BACKLOG:
            self._end("the peer does not read its messages")
            return
        self._backlog.append((packet, [os.dup(fd) for fd in fds]))

    def _writable(self) -> None:
        while self._backlog:
            packet, fds = self._backlog[0]
            try:
                socket.send_fds(self._sock, [packet], fds)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(str(error))
                return
            self._backlog.popleft()
            for fd in fds:
                os.close(fd)
        self.loop.remove_writer(self._sock.fileno())

    async def request(
        self,
        kind: str,
        body: dict[str, Any] | None = None,
        *,
        data: bytes = b"",
        fds: Sequence[int] = (),
        seconds: float | None = None,
    ) -> Message:
        """The answer; the caller closes it if it has descriptors.

        Raises LeaseError for a refusal, ConnectionResetError if the connection ends,
        ControllerTimeout after `seconds`.
        """
        if self.closed:
            raise ConnectionResetError("the connection to the owner has ended")
        number = next(self._ids)
        future: asyncio.Future[Message] = self.loop.create_future()
        self._waiting[number] = future
        try:
            self.send(kind, body, id=number, data=data, fds=fds)
            async with asyncio.timeout(seconds):
                answer = await future
        except TimeoutError as error:
            if isinstance(error, ControllerTimeout):
                raise
            raise ControllerTimeout(f"the owner has not answered {kind!r} for {seconds:g} s") from None
        finally:
            self._waiting.pop(number, None)
        if answer.kind == "refused":
            raise refusal(answer)
        return answer

    # -- receiving ---------------------------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(_PER_TURN):
            if self.closed:
                return
            try:
                message = receive(self._sock)
            except BlockingIOError:
                return
            except OSError as error:  # LeaseError too
                self._end(str(error))
                return
            if message is None:
                self._end("the peer closed the connection")
                return
            if message.version != VERSION:
                self._other_version(message)
                return
            future = self._waiting.pop(message.id, None) if message.id else None
            if future is None:
                self._on_message(message)
            elif future.done():
                message.close()
            else:
                future.set_result(message)

    def _other_version(self, message: Message) -> None:
        error = other_version("sharing", message)
        if not self._waiting:
            self.send("refused", {"code": "version", "text": f"this process has version {VERSION}"}, id=0)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
        self._end(str(error))

    # -- the end -----------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        if not self.closed:
            self.close(reason)
            self._on_closed(reason)

    def close(self, reason: str = "closed") -> None:
        """Waiting requests end with ConnectionResetError."""
        if self.closed:
            return
        self.closed = True
        if not self.loop.is_closed():
            self.loop.remove_reader(self._sock.fileno())
            self.loop.remove_writer(self._sock.fileno())
        with contextlib.suppress(OSError):
            self._sock.close()
        for _, fds in self._backlog:
            for fd in fds:
                os.close(fd)
        self._backlog.clear()
        for future in self._waiting.values():
            if not future.done() and not self.loop.is_closed():
                future.set_exception(ConnectionResetError(reason))
