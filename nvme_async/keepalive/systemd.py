"""systemd's file descriptor store: the service manager keeps a controller's descriptors while the
service restarts.

The protocol of sd_notify(3) and sd_listen_fds(3), implemented directly: state lines with
descriptors are sent to the datagram socket $NOTIFY_SOCKET; stored descriptors are passed to the
next start from number 3 on, counted by $LISTEN_FDS, named by $LISTEN_FDNAMES, intended for
$LISTEN_PID. The unit needs FileDescriptorStoreMax= (vectors + 5 per controller); systemd 254 and
later report it in $FDSTORE.
"""

from __future__ import annotations

import array
import ctypes
import functools
import hashlib
import os
import platform
import re
import select
import socket
import threading
import time
from collections.abc import Iterable, Mapping

from nvme_async.errors import ConfigurationError, KeeperError
from nvme_async.keepalive.bundle import Bundle

FIRST_FD = 3  # SD_LISTEN_FDS_START
MAX_FDNAME = 255
TIMEOUT = 5.0
PREFIX = "nvme-async/"

_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}
_KCMP_FILE = 0


def check_fdname(name: str) -> str:
    """As FDNAME= allows it: 1 to 255 ASCII characters without control characters and colons.
    ConfigurationError otherwise.
    """
    if not re.fullmatch(r"[ -9;-~]{1,255}", name):
        raise ConfigurationError(
            f"{name!r} is not a descriptor name: it must have 1 to {MAX_FDNAME} printable ASCII characters "
            "without a colon"
        )
    return name


def fdname(uri: str, label: str) -> str:
    """The name of one descriptor of a controller. URIs contain colons and may be long, so a digest
    stands for them.
    """
    return check_fdname(f"{PREFIX}{hashlib.sha256(uri.encode(errors='surrogateescape')).hexdigest()[:16]}/{label}")


# -- sd_notify(3) ----------------------------------------------------------------------------------


def notify(
    state: str, fds: Iterable[int] = (), *, environ: Mapping[str, str] | None = None, timeout: float = TIMEOUT
) -> bool:
    """Sends state lines ("READY=1") and copies of `fds` to the service manager. False if there is
    none ($NOTIFY_SOCKET is unset).

    KeeperError if it can't be reached or accepts nothing for `timeout` seconds.
    """
    address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address[0] not in "/@":
        raise KeeperError(f"NOTIFY_SOCKET={address!r} must be a path or an abstract address")
    target = "\0" + address[1:] if address[0] == "@" else address
    rights = array.array("i", fds)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.settimeout(timeout)
            sock.connect(target)
            sock.sendmsg(
                [state.encode()],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [],
                socket.MSG_NOSIGNAL,
            )
        except OSError as error:
            raise KeeperError(f"the service manager at {address}: {error.strerror or error}") from None
    return True


def barrier(*, environ: Mapping[str, str] | None = None, timeout: float = TIMEOUT) -> bool:
    """Waits until the service manager has processed everything sent before. False if there is
    none, or if it doesn't confirm in time.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            if not notify("BARRIER=1", [writer], environ=environ, timeout=timeout):
                return False
        finally:
            os.close(writer)
        # The last copy of the writing end is closed when the message has been processed.
        poll = select.poll()
        poll.register(reader, select.POLLHUP)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(reader)


# -- sd_listen_fds(3) ------------------------------------------------------------------------------


def listen_fds(environ: Mapping[str, str] | None = None) -> list[tuple[str, int]]:
    """(name, descriptor) of the descriptors that this process was started with. Changes nothing:
    some may be the application's own sockets.
    """
    environ = os.environ if environ is None else environ
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environ.get("LISTEN_FDS", "")
    if not re.fullmatch(r"\d{1,6}", count, re.ASCII):
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return [(names[index] if index < len(names) else "unknown", FIRST_FD + index) for index in range(int(count))]


def _same_file(one: int, other: int) -> bool:
    """Whether two descriptors refer to one open file, by which the store distinguishes them.
    False if that is unknown.
    """
    number = _KCMP.get(platform.machine())
    if number is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(number, os.getpid(), os.getpid(), _KCMP_FILE, one, other) == 0)


class SystemdStore:
    """The controllers in this service's descriptor store. Calls block up to a few seconds; any
    thread, one at a time.

    Owns the inherited descriptors until they are taken, and copies of stored ones.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *, timeout: float = TIMEOUT) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._found: dict[str, int] = {}
        self._stored: dict[str, dict[str, int]] = {}  # uri → label → our copy
        for name, fd in listen_fds(self._environ):
            if name.startswith(PREFIX) and name not in self._found:
                try:
                    os.set_inheritable(fd, False)
                except OSError:
                    continue  # the list was wrong, or it was closed
                self._found[name] = fd

    @property
    def available(self) -> bool:
        """The service manager has announced that it keeps descriptors for this service, or has
        kept some.
        """
        size = self._environ.get("FDSTORE", "")
        return bool(self._environ.get("NOTIFY_SOCKET")) and (bool(self._found) or (size.isdecimal() and int(size) > 0))

    def take(self, uri: str) -> Bundle | None:
        """The bundle that the predecessor stored for this controller; the caller owns its
        descriptors. None if there is none, or only a part.
        """
        prefix = fdname(uri, "")
        with self._lock:
            labels = {name[len(prefix) :]: name for name in self._found if name.startswith(prefix)}
            if not labels:
                return None
            stored = self._stored.setdefault(uri, {})
            for label, name in labels.items():
                stored[label] = self._found.pop(name)
            if "pool" not in stored:
                # Stored or removed in part: useless.
                self._remove(uri, list(stored))
                return None
            return Bundle.of(uri, b"", stored)

    def deposit(self, bundle: Bundle) -> None:
        """Stores copies of the bundle's descriptors. Unchanged ones aren't touched; a changed
        one is missing from the store between its removal and its replacement. KeeperError if the
        service manager doesn't accept them.
        """
        with self._lock:
            stored = self._stored.setdefault(bundle.uri, {})
            changed = [
                label
                for label, fd in stored.items()
                if label not in bundle.descriptors or not _same_file(fd, bundle.descriptors[label])
            ]
            self._remove(bundle.uri, changed)
            for label, fd in bundle.descriptors.items():
                if label not in stored:
                    # FDPOLL=0: a hang-up of a socket must not remove one descriptor of a bundle.
                    self._notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={fdname(bundle.uri, label)}", [fd])
                    stored[label] = os.dup(fd)
            self._flush()

    def drop(self, uri: str) -> None:
        """Removes everything of this controller."""
        with self._lock:
            self._remove(uri, list(self._stored.get(uri, ())))
            self._stored.pop(uri, None)
            self._flush()

    def close(self) -> None:
        """Closes this process's copies; the store keeps its own."""
        with self._lock:
            copies = [fd for stored in self._stored.values() for fd in stored.values()] + list(self._found.values())
            self._stored.clear()
            self._found.clear()
            for fd in copies:
                os.close(fd)

    def _remove(self, uri: str, labels: list[str]) -> None:
        for label in labels:
            self._notify(f"FDSTOREREMOVE=1\nFDNAME={fdname(uri, label)}")
            os.close(self._stored[uri].pop(label))

    def _notify(self, state: str, fds: Iterable[int] = ()) -> None:
        if not notify(state, fds, environ=self._environ, timeout=self._timeout):
            raise KeeperError("no service manager: NOTIFY_SOCKET is not set")

    def _flush(self) -> None:
        began = time.monotonic()
        if not barrier(environ=self._environ, timeout=self._timeout):
            raise KeeperError(f"the service manager did not confirm within {time.monotonic() - began:.1f} s")


@functools.cache
def store() -> SystemdStore:
    """This process's."""
    return SystemdStore()
