"""A TLS connection for code that works on a plain socket: a thread moves the bytes between the
connection and a socket pair, of which the other end is given out.

The native NVMe/TCP link sends and receives on its socket itself, without Python's ssl module.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from nvme_async.runtime import forks

log: logging.Logger = logging.getLogger("nvme_async")
BUFFER = 256 << 10
"""Most bytes in flight in each direction, besides those in the sockets."""
RECORD = 16384
"""Most bytes of a TLS record (RFC 8446, 5.1)."""
LINGER = 5.0
"""Seconds for the last bytes of a plain end that was closed by other code than RelayedSocket."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class _Bytes:
    """Bytes on their way in one direction; true if there are any."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(BUFFER))
        self._start = self._end = 0

    def __bool__(self) -> bool:
        return self._start < self._end

    def room(self) -> memoryview:
        return self._view[self._end :]

    def rest(self) -> memoryview:
        return self._view[self._start : self._end]

    def added(self, n: int) -> None:
        self._end += n

    def taken(self, n: int) -> None:
        self._start += n
        if self._start == self._end:
            self._start = self._end = 0

    def fill(self, sock: socket.socket) -> bool:
        """Receives what there is. False: the other end is closed."""
        n = sock.recv_into(self.room())
        self.added(n)
        return n > 0

    def drain(self, sock: socket.socket) -> None:
        """Sends what the socket accepts."""
        while self:
            try:
                self.taken(sock.send(self.rest()))
            except BlockingIOError:
                return


class RelayedSocket(socket.socket):
    """The plain end of a relay. Its holder must close it, which ends the relay.

    Attributes:
        established: done when the TLS handshake is; its exception is the reason of a failure.
    """

    established: Future[None]
    _relay: TlsRelay

    def close(self) -> None:
        """Nothing is sent after this; the connection is reset. From any thread."""
        super().close()
        self._relay.abort()

    def shutdown(self, how: int) -> None:
        """Ends the connection, whatever `how` is. From any thread."""
        super().shutdown(how)
        self._relay.abort()


class TlsRelay:
    """Owner of the connection, of one end of the pair, and of the thread. All three are released
    when either side ends.

    The lock is held for each access to the connection. So it is closed at a defined point: Python's
    SSLSocket falls back to plain text while it is being closed.
    """

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        plain: socket.socket,
        *,
        name: str,
        seconds: float,
        check: Callable[[ssl.SSLSocket], None] | None = None,
        ended: Callable[[TlsRelay], None] | None = None,
    ) -> None:
        """Takes both sockets, also on failure. The side of TLS follows from `context`.

        seconds: for the handshake. check: raises ssl.SSLError if the connection may not be used.
        ended: called by the thread at its end.
        """
        self.name = name
        self.established: Future[None] = Future()
        self.established.set_running_or_notify_cancel()
        self._plain = plain
        self._seconds = seconds
        self._check = check
        self._ended = ended
        self._lock = threading.Lock()
        self._aborted = False
        self._raw = connection
        try:
            connection.setblocking(False)
            plain.setblocking(False)
            self._tls = context.wrap_socket(
                connection,
                server_side=context.protocol == ssl.PROTOCOL_TLS_SERVER,
                do_handshake_on_connect=False,
            )
        except BaseException:
            connection.close()
            plain.close()
            raise
        forks.watch(self)
        self.thread = threading.Thread(target=self._run, name=f"{name} TLS", daemon=True)
        self.thread.start()

    def abort(self) -> None:
        """Closes the connection with a reset. Nothing is sent after this. From any thread."""
        with self._lock:
            self._aborted = True
            if self._tls.fileno() < 0:
                return
            with contextlib.suppress(OSError):
                self._tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                socket.socket.shutdown(self._tls, socket.SHUT_RDWR)  # which wakes the thread
            self._tls.close()

    def forget_in_child(self) -> None:
        for sock in (self._tls, self._plain):
            sock.detach()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._handshake()
            self.established.set_result(None)
            self._pump()
            with self._lock, contextlib.suppress(OSError):
                if not self._aborted:
                    self._tls.unwrap()  # sends close_notify, and waits for none
        except BaseException as error:
            if not self.established.done():
                self.established.set_exception(error)
            elif not self._aborted:
                level = logging.WARNING if isinstance(error, ssl.SSLError) else logging.INFO
                log.log(level, "%s: the TLS connection ended: %s", self.name, error)
            if not isinstance(error, OSError):
                raise
        finally:
            with self._lock:
                self._tls.close()
            self._plain.close()
            if self._ended is not None:
                self._ended(self)

    def _handshake(self) -> None:
        until = time.monotonic() + self._seconds
        poll = select.poll()
        poll.register(self._plain.fileno(), 0)  # its end ends the handshake too
        while True:
            with self._lock:
                if self._aborted:
                    raise ConnectionAbortedError("the connection was closed during the TLS handshake")
                try:
                    self._tls.do_handshake()
                    if self._check is not None:
                        self._check(self._tls)
                    return
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
                poll.register(self._tls.fileno(), wanted)
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no TLS handshake within {self._seconds:g} s")
            for fd, events in poll.poll(left * 1000):
                if fd == self._plain.fileno() and events & _GONE:
                    raise ConnectionAbortedError("the connection was closed during the TLS handshake")

    def _pump(self) -> None:
        """Until one side has ended and the other has what came before."""
        plain, plain_fd, tls_fd = self._plain, self._plain.fileno(), self._tls.fileno()
        out, into = _Bytes(), _Bytes()
        poll = select.poll()
        plain_wants, tls_wants = select.POLLIN, select.POLLIN
        until = None  # the plain end is closed: what it has left is sent until then
        ended = False  # the TLS connection: what came before is passed on
        while True:
            poll.register(tls_fd, tls_wants)
            if until is None:
                poll.register(plain_fd, plain_wants)
                ready = dict(poll.poll())
            else:
                ready = dict(poll.poll(max(0.0, until - time.monotonic()) * 1000))
                if time.monotonic() >= until:
                    return
            plain_events, tls_events = ready.get(plain_fd, 0), ready.get(tls_fd, 0)
            if plain_events & _GONE:
                until = time.monotonic() + LINGER
                poll.unregister(plain_fd)
            tls_wants = plain_wants = 0
            if not out and (until is not None or plain_events & select.POLLIN) and not out.fill(plain):
                return
            if out:
                tls_wants = self._encrypt(out)
            if until is not None:
                tls_wants = tls_wants or select.POLLOUT
            else:
                if not into and not ended and tls_events:
                    wants, ended = self._decrypt(into)
                    tls_wants |= wants
                into.drain(plain)
                if ended and not into:
                    return
                plain_wants = (0 if out else select.POLLIN) | (select.POLLOUT if into else 0)
                tls_wants |= 0 if into else select.POLLIN
            if tls_events & _GONE and (into or until is not None):
                return

    def _encrypt(self, data: _Bytes) -> int:
        """Sends what the connection accepts; then the events that it waits for."""
        while data:
            with self._lock:
                self._check_open()
                try:
                    data.taken(self._tls.send(data.rest()))
                except ssl.SSLWantWriteError:
                    return select.POLLOUT
                except ssl.SSLWantReadError:
                    return select.POLLIN
        return 0

    def _decrypt(self, data: _Bytes) -> tuple[int, bool]:
        """Receives what there is, as far as there is room for a whole record: then OpenSSL keeps
        nothing back. Returns the events that it waits for, and whether the connection has ended.
        """
        while len(room := data.room()) >= RECORD:
            with self._lock:
                self._check_open()
                try:
                    n = self._tls.recv_into(room)
                except ssl.SSLWantReadError:
                    return select.POLLIN, False
                except ssl.SSLWantWriteError:
                    return select.POLLOUT, False
            if n == 0:
                return 0, True
            data.added(n)
        return 0, False

    def _check_open(self) -> None:
        if self._aborted:
            raise ConnectionAbortedError("closed")


def relay(
    connection: socket.socket,
    context: ssl.SSLContext,
    *,
    name: str,
    seconds: float,
    check: Callable[[ssl.SSLSocket], None] | None = None,
) -> RelayedSocket:
    """The plain end for a connected socket, which the relay takes, also on failure. Does not wait:
    see `established`. Arguments as for TlsRelay.
    """
    try:
        ours, theirs = socket.socketpair()
        plain = RelayedSocket(fileno=ours.detach())
    except BaseException:
        connection.close()
        raise
    try:
        plain.setblocking(False)
        plain._relay = TlsRelay(connection, context, theirs, name=name, seconds=seconds, check=check)
        plain.established = plain._relay.established
    except BaseException:
        socket.socket.close(plain)
        raise
    return plain
