"""All devices of a manager between two processes.

    with await manager.save() as saved:          # the predecessor; its handles raise HandedOver
        from now on saved.check() saved.send(sock)

    with SavedDevices.receive(sock) as saved:    # the successor
        manager = await Manager.restore(saved)

The controllers keep running meanwhile, as long as some process has the descriptors, in a
SavedDevices.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from types import TracebackType
from typing import Self

import attrs

from nvme_async.errors import ControllerTimeout, InvalidSavedState, NvmeError
from nvme_async.keepalive import Bundle, receive_bundle, send_bundle

# magic, version, number of bundles, bytes of the remaining data (JSON)
_HEADER = struct.Struct("<8sIII")
_MAGIC = b"NVMESAVE"
_VERSION = 1
_MAX_DEVICES = 65536
_MAX_WORDS = 64 << 20


@attrs.define
class SavedDevices:
    """The result of manager.save(); a context manager that closes the bundles' descriptors.

    Attributes:
        bundles: {uri: Bundle} of the controllers that keep running, owned by this object.
        shut_down: devices without keepalive, which were shut down; a successor opens them again.
        failures: {uri: exception} of devices that could not be saved. Those are in service as
            before.
    """

    bundles: dict[str, Bundle] = attrs.field(factory=dict)
    shut_down: list[str] = attrs.field(factory=list)
    failures: dict[str, NvmeError] = attrs.field(factory=dict)

    def check(self) -> None:
        """Raises the first failure, if there is one."""
        for error in self.failures.values():
            raise error

    @property
    def uris(self) -> list[str]:
        """The URIs of all devices for a successor."""
        return [*self.bundles, *self.shut_down]

    def send(self, sock: socket.socket, *, timeout: float = 30.0) -> None:
        """To another process, over a connected Unix stream socket. Blocks; the descriptors stay
        open here until close().

        ControllerTimeout, ControllerGone if there is no receiver.
        """
        words = json.dumps({"shut_down": self.shut_down}).encode()
        sock.settimeout(timeout)
        try:
            sock.sendall(_HEADER.pack(_MAGIC, _VERSION, len(self.bundles), len(words)) + words)
        except TimeoutError:
            raise ControllerTimeout(f"the successor received nothing for {timeout:g} s") from None
        for bundle in self.bundles.values():
            send_bundle(sock, bundle)

    @classmethod
    def receive(cls, sock: socket.socket, *, timeout: float = 30.0) -> Self:
        """Receives the data of send(). Blocks for at most `timeout` seconds. InvalidSavedState
        for anything else; then no descriptor stays open.
        """
        limit = time.monotonic() + timeout
        magic, version, count, nbytes = _HEADER.unpack(_exactly(sock, _HEADER.size, limit))
        if magic != _MAGIC or version != _VERSION or count > _MAX_DEVICES or nbytes > _MAX_WORDS:
            raise InvalidSavedState(
                f"the data are not saved devices of version {_VERSION} ({magic!r}, version {version}, {count} devices)"
            )
        try:
            shut_down = json.loads(_exactly(sock, nbytes, limit))["shut_down"]
            saved = cls(shut_down=[str(uri) for uri in shut_down])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidSavedState(f"the description of the saved devices is invalid: {error!r}") from None
        try:
            for _ in range(count):
                bundle = receive_bundle(sock, max(0.001, limit - time.monotonic()))
                saved.bundles[bundle.uri] = bundle
        except BaseException:
            saved.close()
            raise
        return saved

    def close(self) -> None:
        """Closes the descriptors. If this was a controller's last holder, its device resets it.
        May be repeated.
        """
        for bundle in self.bundles.values():
            bundle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _exactly(sock: socket.socket, nbytes: int, limit: float) -> bytes:
    data = b""
    while len(data) < nbytes:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if not poll.poll(max(0.0, limit - time.monotonic()) * 1000):
            raise ControllerTimeout("the predecessor sent nothing within the time limit")
        part = sock.recv(nbytes - len(data))
        if not part:
            raise InvalidSavedState(f"the saved devices are truncated: {len(data)} of {nbytes} bytes")
        data += part
    return data
