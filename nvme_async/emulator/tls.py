"""TLS before the emulated NVMe/TCP target: a thread accepts connections, and a relay for each
passes its plain bytes on to the native target, over a Unix socket that only this process reaches.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import select
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from nvme_async.driver.tcp import tls
from nvme_async.driver.tcp.address import DISCOVERY_NQN
from nvme_async.emulator.tcp import TcpConfig
from nvme_async.errors import ConfigurationError
from nvme_async.runtime import forks
from nvme_async.runtime.tls_relay import TlsRelay
from nvme_async.spec.tls_psk import VERSIONS, InterchangeKey

log: logging.Logger = logging.getLogger("nvme_async")
_JOIN = 5.0
"""Seconds for a thread to end."""


def psk_of(key: InterchangeKey, identity: str | None, subsystems: Sequence[str]) -> bytes:
    """The TLS PSK of the host that names itself in `identity`; empty: none, which ends the
    handshake.
    """
    words = (identity or "").split(" ")
    if len(words) < 3 or words[2] not in subsystems:
        return b""
    for version in VERSIONS:
        try:
            psk = key.tls_psk(words[1], words[2], version)
        except ConfigurationError:
            continue  # a name too long for this version
        if hmac.compare_digest(psk.identity.encode(), (identity or "").encode()):
            return psk.key
    return b""


def _server_context(key: InterchangeKey, subsystems: Sequence[str]) -> ssl.SSLContext:
    """TLS 1.3 with this key alone: there is no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.set_psk_server_callback(  # type: ignore[attr-defined,unused-ignore]
        lambda identity: psk_of(key, identity, subsystems)
    )
    return context


class TlsFront:
    """Owner of the listening sockets, of the accepting thread and of the relays."""

    def __init__(self, listening: Sequence[socket.socket], config: TcpConfig, *, patience: float) -> None:
        """Takes the sockets if it succeeds. ConfigurationError. patience: seconds for a
        handshake.
        """
        tls.require()
        key = tls.configured(config.tls_key)
        for sock in listening:
            host = sock.getsockname()[0]
            if ipaddress.ip_address(host).is_unspecified:
                raise ConfigurationError(
                    f"{host} with tls_key: the discovery log of a TLS target names the address that it listens on, "
                    "so it must be one of this machine's"
                )
        self._context = _server_context(key, (config.nqn, DISCOVERY_NQN))
        self._patience = patience or 60.0
        self._lock = threading.Lock()
        self._relays: set[TlsRelay] = set()
        self._closed = False
        self._folder = Path(tempfile.mkdtemp(prefix="nvme-async-tls-"))  # for this user alone
        self._inner: list[socket.socket] = []
        self._outer: list[socket.socket] = []
        self._wake, self._woken = socket.socketpair()
        try:
            for number in range(len(listening)):
                inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._inner.append(inner)
                inner.setblocking(False)
                inner.bind(str(self._folder / str(number)))
                inner.listen(128)
        except BaseException:
            self._release()
            raise
        self._outer = [socket.socket(fileno=sock.detach()) for sock in listening]
        forks.watch(self)
        self._thread = threading.Thread(target=self._run, name="nvme-async TLS target", daemon=True)
        self._thread.start()

    def take_inner(self) -> list[int]:
        """The listening sockets for the native target, which belong to the caller now."""
        return [sock.detach() for sock in self._inner]

    def close(self) -> None:
        """Ends the threads and every connection. May be repeated."""
        self._closed = True
        self._wake.close()
        self._join(self._thread)
        with self._lock:
            relays = list(self._relays)
        for relay in relays:
            relay.abort()
        for relay in relays:
            self._join(relay.thread)

    @staticmethod
    def _join(thread: threading.Thread) -> None:
        if thread is not threading.current_thread():
            thread.join(_JOIN)

    def forget_in_child(self) -> None:
        for sock in (*self._outer, self._wake, self._woken):
            sock.detach()

    def _release(self) -> None:
        for sock in (*self._inner, *self._outer, self._wake, self._woken):
            sock.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        poll = select.poll()
        ports = {sock.fileno(): number for number, sock in enumerate(self._outer)}
        for fd in (*ports, self._woken.fileno()):
            poll.register(fd, select.POLLIN)
        try:
            while not self._closed:
                for fd, _ in poll.poll():
                    if fd in ports and not self._closed:
                        self._accept(ports[fd])
        finally:
            self._release()

    def _accept(self, number: int) -> None:
        try:
            connection, peer = self._outer[number].accept()
        except OSError as error:
            log.warning("accepting a TLS connection: %s", error)
            select.select([self._woken], [], [], 0.1)  # without descriptors the next attempt fails too
            return
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            inner.connect(str(self._folder / str(number)))
        except OSError as error:
            log.warning("a TLS connection of %s is refused: %s", peer[0], error)
            connection.close()
            inner.close()
            return
        with self._lock:
            relay = TlsRelay(
                connection,
                self._context,
                inner,
                name=f"target for {peer[0]}",
                seconds=self._patience,
                ended=self._ended,
            )
            self._relays.add(relay)

    def _ended(self, relay: TlsRelay) -> None:
        if (error := relay.established.exception(0)) is not None:
            log.info("%s: the TLS handshake failed: %s", relay.name, error)
        with self._lock:
            self._relays.discard(relay)
