"""The relay between a TLS connection and a plain socket. With anonymous TLS 1.2, which every
Python has, in place of a pre-shared key.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from forking import in_child
from open_descriptors import open_descriptors

from nvme_async.runtime.tls_relay import RelayedSocket, TlsRelay, relay

LONG = 20.0


def context(server: bool) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("AECDH-AES128-SHA:@SECLEVEL=0")
    return made


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other = listening.accept()[0]
    other.settimeout(LONG)
    return one, other


@contextlib.contextmanager
def connected() -> Iterator[tuple[RelayedSocket, ssl.SSLSocket]]:
    """The plain end, and the peer's end of the TLS connection."""
    near, far = tcp_pair()
    plain = relay(near, context(False), name="test", seconds=LONG)
    try:
        with context(True).wrap_socket(far, server_side=True) as peer:
            plain.established.result(LONG)
            plain.settimeout(LONG)
            yield plain, peer
    finally:
        plain.close()
        ended(plain)


def ended(plain: RelayedSocket) -> None:
    thread = plain._relay.thread
    thread.join(LONG)
    assert not thread.is_alive()


def everything(sock: socket.socket) -> bytes:
    """Until the end, or a reset."""
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            got += part
    return bytes(got)


@pytest.mark.parametrize("piece", [1, 100, 16384, 1 << 20])
def test_bytes_go_both_ways_unchanged(piece):
    data = os.urandom(min(4 << 20, piece * 3000))
    with connected() as (plain, peer):

        def echo() -> None:
            with contextlib.suppress(ConnectionError):  # the relay ends with a reset
                while part := peer.recv(65536):
                    peer.sendall(part)

        echoing = threading.Thread(target=echo)
        echoing.start()
        sending = threading.Thread(
            target=lambda: [plain.sendall(data[at : at + piece]) for at in range(0, len(data), piece)]
        )
        sending.start()
        got = bytearray()
        while len(got) < len(data):
            got += plain.recv(1 << 16)
        assert bytes(got) == data
        plain.close()
        sending.join(LONG)
        echoing.join(LONG)


def test_the_peers_end_comes_after_its_bytes():
    data = os.urandom(3 << 20)
    with connected() as (plain, peer):

        def send() -> None:
            peer.sendall(data)
            with contextlib.suppress(OSError):
                peer.unwrap()

        sending = threading.Thread(target=send)
        sending.start()
        assert everything(plain) == data
        plain.close()
        sending.join(LONG)
    ended(plain)


def test_close_releases_thread_and_descriptors_and_sends_nothing_more():
    before = sorted(open_descriptors())
    with connected() as (plain, peer):
        plain.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 64 << 20:  # the peer does not read, so the way fills
                sent += plain.send(bytes(65536))
        plain.close()
        ended(plain)
        assert plain._relay._tls.fileno() == -1
        got = b""
        with contextlib.suppress(OSError):  # a reset discards what the peer has not read
            got = everything(peer)
        assert len(got) < sent
    assert sorted(open_descriptors()) == before


def test_shutdown_ends_it_too_from_another_thread():
    with connected() as (plain, peer):
        cutting = threading.Thread(target=plain.shutdown, args=(socket.SHUT_RDWR,))
        cutting.start()
        assert everything(plain) == b""
        cutting.join(LONG)
        assert everything(peer) == b""
        ended(plain)


def test_a_plain_end_without_a_relayed_socket_has_its_last_bytes_sent():
    """The target's side: the native code closes its end after a last PDU."""
    data = os.urandom(2 << 20)
    near, far = tcp_pair()
    ours, theirs = socket.socketpair()
    over = threading.Event()
    running = TlsRelay(near, context(True), theirs, name="test", seconds=LONG, ended=lambda _: over.set())
    with context(False).wrap_socket(far) as peer:
        running.established.result(LONG)
        sending = threading.Thread(target=lambda: (ours.sendall(data), ours.close()))
        sending.start()
        assert everything(peer) == data
        sending.join(LONG)
        assert over.wait(LONG)
        running.thread.join(LONG)


def test_a_peer_that_says_nothing_is_a_timeout():
    near, far = tcp_pair()
    with far:
        plain = relay(near, context(False), name="test", seconds=0.05)
        with pytest.raises(TimeoutError, match=r"no TLS handshake within 0\.05 s"):
            plain.established.result(LONG)
        plain.close()
        ended(plain)


def test_a_peer_without_tls_is_an_ssl_error():
    near, far = tcp_pair()
    with far:
        far.sendall(b"\x01\x00\x80\x00 this is not TLS")
        plain = relay(near, context(False), name="test", seconds=LONG)
        with pytest.raises(ssl.SSLError):
            plain.established.result(LONG)
        plain.close()
        ended(plain)


def test_close_during_the_handshake():
    before = sorted(open_descriptors())
    near, far = tcp_pair()
    with far:
        plain = relay(near, context(False), name="test", seconds=LONG)
        assert select.select([far], [], [], LONG)[0]  # its hello
        plain.close()
        with pytest.raises(ConnectionAbortedError):
            plain.established.result(LONG)
        ended(plain)
    assert sorted(open_descriptors()) == before


def test_a_connection_that_the_check_refuses_is_closed():
    def refuse(_: ssl.SSLSocket) -> None:
        raise ssl.SSLError("not this one")

    near, far = tcp_pair()
    plain = relay(near, context(False), name="test", seconds=LONG, check=refuse)
    with context(True).wrap_socket(far, server_side=True) as peer:
        with pytest.raises(ssl.SSLError, match="not this one"):
            plain.established.result(LONG)
        with contextlib.suppress(OSError):
            assert everything(peer) == b""
    plain.close()
    ended(plain)


def test_a_damaged_record_ends_the_connection():
    """Nothing of it arrives."""
    near, far = tcp_pair()
    plain = relay(near, context(False), name="test", seconds=LONG)
    with context(True).wrap_socket(far, server_side=True) as peer:
        plain.established.result(LONG)
        plain.settimeout(LONG)
        socket.socket.send(peer, b"\x17\x03\x03\x00\x40" + bytes(64))  # past the TLS of that side
        assert everything(plain) == b""
    plain.close()
    ended(plain)


def test_a_forked_child_has_none_of_its_descriptors():
    with connected() as (plain, peer):

        def child() -> None:
            assert plain._relay._tls.fileno() == -1
            assert plain._relay._plain.fileno() == -1

        pid = in_child(child)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        plain.sendall(b"still there")
        assert peer.recv(100) == b"still there"
