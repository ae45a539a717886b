"""The descriptors that keep a controller alive without a driver, and how they are passed between
processes.

The pool's memfd holds everything else (rings, trackers, slot table, manifest), so a process that
has a bundle can continue with the controller.

On a stream socket a bundle is one frame: a header, one byte per chunk of descriptors (attached to
it as SCM_RIGHTS), and a JSON body.
"""

from __future__ import annotations

import array
import json
import os
import resource
import select
import socket
import struct
import time
from types import TracebackType
from typing import Any, Self

import attrs

from nvme_async.errors import ControllerTimeout, InvalidSavedState

# magic, version, number of descriptors, bytes of the body
_HEADER = struct.Struct("<8sIIQ")
_MAGIC = b"NVMEBNDL"
_VERSION = 1
# SCM_MAX_FD of Linux is 253.
_CHUNK = 200
# MSI-X has at most 2048 vectors.
_MAX_DESCRIPTORS = 4096
_MAX_BODY = 64 << 20


def duplicates(descriptors: dict[str, int]) -> dict[str, int]:
    """Duplicates of all of them, close-on-exec, owned by the caller; OSError, and none, if one
    fails.
    """
    made: dict[str, int] = {}
    try:
        for name, fd in descriptors.items():
            made[name] = os.dup(fd)
    except BaseException:
        for fd in made.values():
            os.close(fd)
        raise
    return made


@attrs.define
class Bundle:
    """A controller between two processes.

    uri: the device address that it was opened with.
    manifest: the saved state as it was when the bundle was made (JSON). The pool holds the current
        one, which a restore uses.
    descriptors: by name, owned by this object until close(): "pool" (the memfd), "device.…" (from
        Device.descriptors()), and "irq.N" (the eventfd of MSI-X vector N).
    """

    uri: str
    manifest: bytes
    descriptors: dict[str, int]

    @classmethod
    def of(cls, uri: str, manifest: bytes, descriptors: dict[str, int]) -> Self:
        """With duplicates of `descriptors`, close-on-exec."""
        return cls(uri, manifest, duplicates(descriptors))

    def duplicate(self) -> Bundle:
        """Another bundle with duplicated descriptors."""
        return Bundle.of(self.uri, self.manifest, self.descriptors)

    def part(self, prefix: str) -> dict[str, int]:
        """Descriptors whose names start with `prefix`, by the rest of their names. The bundle
        still owns them.
        """
        return {name[len(prefix) :]: fd for name, fd in self.descriptors.items() if name.startswith(prefix)}

    def close(self) -> None:
        """Closes the descriptors. Their files stay open as long as another process has them. May
        be repeated.
        """
        descriptors, self.descriptors = self.descriptors, {}
        for fd in descriptors.values():
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def send_bundle(sock: socket.socket, bundle: Bundle, *, timeout: float = 10.0) -> None:
    """Sends a bundle over a connected Unix stream socket; the receiver gets duplicates. Blocks
    up to `timeout` seconds.

    Raises ControllerTimeout if the other side doesn't receive it in time, ConnectionError if it is
    gone.
    """
    deadline = time.monotonic() + timeout
    names = list(bundle.descriptors)
    body = json.dumps({"uri": bundle.uri, "manifest": bundle.manifest.decode(), "descriptors": names}).encode()
    _send(sock, _HEADER.pack(_MAGIC, _VERSION, len(names), len(body)), (), deadline)
    fds = list(bundle.descriptors.values())
    for at in range(0, len(fds), _CHUNK):
        _send(sock, b"+", fds[at : at + _CHUNK], deadline)
    _send(sock, body, (), deadline)


def receive_bundle(sock: socket.socket, timeout: float = 10.0) -> Bundle:
    """The next bundle from a connected Unix stream socket; the caller owns its descriptors.
    Blocks up to `timeout` seconds.

    Raises InvalidSavedState for an invalid bundle, ControllerTimeout, ConnectionError if the other
    side is gone; then nothing stays open.
    """
    deadline = time.monotonic() + timeout
    magic, version, count, length = _HEADER.unpack(_receive(sock, _HEADER.size, deadline))
    if magic != _MAGIC:
        raise InvalidSavedState(f"this is not a bundle: it begins with {magic!r}")
    if version != _VERSION:
        raise InvalidSavedState(f"a bundle of version {version}; this release reads version {_VERSION}")
    if count > _MAX_DESCRIPTORS or length > _MAX_BODY:
        raise InvalidSavedState(
            f"a bundle of {count} descriptors and {length} bytes; the limits are {_MAX_DESCRIPTORS} and {_MAX_BODY}"
        )
    fds: list[int] = []
    try:
        while len(fds) < count:
            received = _receive_fds(sock, deadline)
            if not received:
                raise InvalidSavedState(f"a bundle announces {count} descriptors, but {len(fds)} arrived")
            fds += received
        uri, manifest, names = _body(_receive(sock, length, deadline))
        if len(names) != len(fds) or len(set(names)) != len(names):
            raise InvalidSavedState(f"a bundle names {len(set(names))} descriptors, but {len(fds)} arrived")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return Bundle(uri, manifest, dict(zip(names, fds, strict=True)))


def _body(raw: bytes) -> tuple[str, bytes, list[str]]:
    try:
        body: Any = json.loads(raw)
        uri, manifest, names = body["uri"], body["manifest"].encode(), body["descriptors"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidSavedState(f"a bundle's body is invalid: {error!r}") from None
    if not isinstance(uri, str) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidSavedState("a bundle's body is invalid: uri and descriptor names must be strings")
    return uri, manifest, names


def _wait(sock: socket.socket, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(sock, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise ControllerTimeout("the peer of a bundle's socket did not respond within the time limit")


def _send(sock: socket.socket, data: bytes, fds: list[int] | tuple[()], deadline: float) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    view = memoryview(data)
    while view:
        try:
            sent = sock.sendmsg([view], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            _wait(sock, select.POLLOUT, deadline)
        else:
            view, rights = view[sent:], []


def _receive(sock: socket.socket, nbytes: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        try:
            # recv(), not recvmsg(): the kernel closes unexpected descriptors.
            part = sock.recv(nbytes - len(data), socket.MSG_DONTWAIT)
        except BlockingIOError:
            _wait(sock, select.POLLIN, deadline)
            continue
        if not part:
            raise ConnectionResetError(f"the peer closed its socket after {len(data)} of {nbytes} bytes")
        data += part
    return bytes(data)


def _receive_fds(sock: socket.socket, deadline: float) -> list[int]:
    """One chunk of descriptors, close-on-exec."""
    room = socket.CMSG_SPACE(_CHUNK * array.array("i").itemsize)
    while True:
        try:
            data, ancillary, flags, _ = sock.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
            break
        except BlockingIOError:
            _wait(sock, select.POLLIN, deadline)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC or data != b"+":
        for fd in fds:
            os.close(fd)
        if not data:
            raise ConnectionResetError("the peer closed its socket before all of a bundle's descriptors had arrived")
        raise InvalidSavedState(
            "a bundle's descriptors were truncated: this process may not open that many "
            f"(RLIMIT_NOFILE is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
            if flags & socket.MSG_CTRUNC
            else "a bundle's descriptors were truncated: other data arrived between them"
        )
    return fds.tolist()
