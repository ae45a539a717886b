"""Bundles are passed over a socket completely or not at all."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from nvme_async.errors import ControllerTimeout, InvalidSavedState
from nvme_async.keepalive.bundle import Bundle, receive_bundle, send_bundle


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def a_bundle(count: int, manifest: bytes = b"{}") -> Bundle:
    fd = os.memfd_create("bundle")
    try:
        return Bundle.of("emulated:", manifest, {f"irq.{i}": fd for i in range(count)})
    finally:
        os.close(fd)


@pytest.mark.parametrize("count", [0, 1, 200, 201, 700])
def test_a_bundle_arrives_with_its_own_descriptors(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    before = open_descriptors()
    with a_bundle(count, b'{"x": 1}') as sent:
        send_bundle(pair[0], sent)
        with receive_bundle(pair[1], 5) as received:
            assert received.uri == sent.uri
            assert received.manifest == sent.manifest
            assert list(received.descriptors) == list(sent.descriptors)
            assert not set(received.descriptors.values()) & set(sent.descriptors.values())
            for name, fd in received.descriptors.items():
                assert os.path.sameopenfile(fd, sent.descriptors[name])
                assert not os.get_inheritable(fd)
    assert open_descriptors() == before


def test_a_body_larger_than_the_socket_buffer_arrives(pair: tuple[socket.socket, socket.socket]) -> None:
    manifest = b'"' + b"x" * (4 << 20) + b'"'
    with a_bundle(3, manifest) as sent:
        thread = threading.Thread(target=send_bundle, args=(pair[0], sent))
        thread.start()
        with receive_bundle(pair[1], 10) as received:
            assert received.manifest == manifest
        thread.join()


def test_a_sender_that_stops_halfway_leaves_nothing_open(pair: tuple[socket.socket, socket.socket]) -> None:
    gc.collect()  # what earlier tests dropped is not counted
    before = open_descriptors()
    collected = bytearray()
    with a_bundle(1) as sent:
        send_bundle(pair[0], sent)
        size = struct.calcsize("<8sIIQ")
        collected += pair[1].recv(size)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(bytes(collected))
        ours.close()
        with pytest.raises(ConnectionError):
            receive_bundle(theirs, 5)
    pair[1].recv(1 << 16)
    assert open_descriptors() == before


def test_a_receiver_times_out(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ControllerTimeout):
        receive_bundle(pair[1], 0.05)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        struct.pack("<8sIIQ", b"NVMEBNDL", 99, 0, 2),
        struct.pack("<8sIIQ", b"NVMEBNDL", 1, 1 << 30, 2),
        struct.pack("<8sIIQ", b"NVMEBNDL", 1, 0, 2) + b"[]",
        struct.pack("<8sIIQ", b"NVMEBNDL", 1, 0, 3) + b"}}}",
        struct.pack("<8sIIQ", b"NVMEBNDL", 1, 1, 2) + b"+",
    ],
)
def test_an_invalid_bundle_is_refused(pair: tuple[socket.socket, socket.socket], raw: bytes) -> None:
    pair[0].sendall(raw)
    with pytest.raises(InvalidSavedState):
        receive_bundle(pair[1], 1)


def test_parts_are_found_by_prefix() -> None:
    with Bundle("x", b"", {}) as bundle:
        bundle.descriptors = {"pool": -5, "device.socket": -6, "device.kick": -7}
        assert bundle.part("device.") == {"socket": -6, "kick": -7}
        bundle.descriptors = {}
