"""The driver's side of the keeper: a blocking client. Call it from a thread."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import attrs

from nvme_async.errors import ConfigurationError, KeeperError
from nvme_async.keepalive.keeper import wire

TIMEOUT = 5.0


@attrs.frozen
class Deposit:
    """The keeper's report on one deposit.

    Attributes:
        name: the device URI. state: "owned", "orphaned", "claimed" or "reserved". pid: the owner's
            process, None if it is orphaned.
        fds: how many descriptors. seconds: since the state or the owner last changed.
        deposits: how often it was put. successors: how many successors got it. waiting:
            how many wait for it.
    """

    name: str
    state: str
    pid: int | None
    fds: int
    seconds: float
    deposits: int
    successors: int
    waiting: int


class KeeperClient:
    """A connection to a keeper. Every call is bounded by `timeout` seconds (plus the wait of a
    get), and raises KeeperError when the keeper is gone, doesn't answer, or refuses; after the
    first two the connection is closed.

    Threads: any, one call at a time; a waiting get makes others wait. After a fork() it belongs to
        the parent.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = TIMEOUT) -> None:
        self.path: str = os.fspath(path)
        self._timeout = timeout
        self._lock = threading.Lock()
        if not self.path or len(os.fsencode(self.path)) > 107:
            raise ConfigurationError(f"keeper socket {self.path!r}: the path must have 1 to 107 bytes")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(self.path)
        except OSError as error:
            self._socket.close()
            raise KeeperError(f"no keeper at {self.path}: {error.strerror or error}") from None
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Readable when the keeper has closed the connection. -1 once closed."""
        return self._socket.fileno()

    def put(self, name: str, fds: Mapping[str, int]) -> None:
        """Deposits copies of `fds`, by label, in place of an earlier deposit. Without any: only
        reserves the name.
        """
        with self._lock:
            deadline = time.monotonic() + self._timeout
            for labels, more in wire.chunked(list(fds), wire.MAX_FDS):
                self._send(
                    {"op": "put", "name": name, "fds": labels, "more": more}, [fds[label] for label in labels], deadline
                )
            self._answer(deadline)

    def get(self, name: str, *, wait: float = 0) -> dict[str, int]:
        """Its descriptors by label, close-on-exec, owned by the caller, who owns the deposit
        now. {} if there is nothing: then the name is reserved for the caller. KeeperError with
        code "owned" when another process has it, and still has it after `wait` seconds.
        """
        with self._lock:
            deadline = time.monotonic() + self._timeout + wait
            self._send({"op": "get", "name": name, "wait": wait}, [], deadline)
            fds: dict[str, int] = {}
            try:
                while True:
                    answer, received = self._answer(deadline)
                    labels = answer["fds"]
                    if len(labels) != len(received):
                        wire.close_all(received)
                        raise self._broken(f"{len(labels)} descriptors announced, {len(received)} arrived")
                    fds |= zip(labels, received, strict=True)
                    if not answer["more"]:
                        return fds
            except BaseException:
                wire.close_all(fds.values())
                raise

    def release(self, name: str) -> None:
        """Releases it for any successor."""
        self._call({"op": "release", "name": name})

    def give(self, name: str, pid: int) -> None:
        """Releases it for process `pid`."""
        self._call({"op": "give", "name": name, "pid": pid})

    def drop(self, name: str, *, force: bool = False) -> bool:
        """Ends the deposit; with force also one that is orphaned. False if there was none."""
        return bool(self._call({"op": "drop", "name": name, "force": force})["dropped"])

    def deposits(self) -> list[Deposit]:
        """All deposits of the keeper, by name."""
        with self._lock:
            deadline = time.monotonic() + self._timeout
            self._send({"op": "list"}, [], deadline)
            deposits: list[Deposit] = []
            while True:
                answer, _ = self._answer(deadline)
                deposits += [Deposit(**entry) for entry in answer["deposits"]]
                if not answer["more"]:
                    return deposits

    def close(self) -> None:
        """The deposit still belongs to this process until it releases it or dies. May be
        repeated.
        """
        self._socket.close()

    def abort(self) -> None:
        """Ends the connection under a call in another thread, which raises KeeperError."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- one message -------------------------------------------------------------------------------

    def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            deadline = time.monotonic() + self._timeout
            self._send(message, [], deadline)
            return self._answer(deadline)[0]

    def _broken(self, text: str) -> KeeperError:
        self._socket.close()
        return KeeperError(f"keeper {self.path}: {text}")

    def _wait(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._socket, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise self._broken("no answer in time")

    def _send(self, message: dict[str, Any], fds: list[int], deadline: float) -> None:
        if self._socket.fileno() < 0:
            raise KeeperError(f"keeper {self.path}: the connection is closed")
        while True:
            try:
                wire.send(self._socket, message, fds)
                return
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            except ConnectionError as error:
                # It has disconnected, possibly after sending the reason.
                try:
                    self._answer(deadline)
                except KeeperError:
                    self._socket.close()
                    raise
                raise self._broken(str(error)) from None
            except OSError as error:
                raise self._broken(f"{len(fds)} descriptors can't be sent: {error.strerror}") from None

    def _answer(self, deadline: float) -> tuple[dict[str, Any], list[int]]:
        while True:
            try:
                received = wire.receive(self._socket)
                break
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
            except (OSError, wire.Misbehaved) as error:
                raise self._broken(str(error)) from None
        if received is None:
            raise self._broken("the peer closed the connection")
        answer, fds = received
        if answer.get("ok") is not True:
            wire.close_all(fds)
            raise KeeperError(
                f"keeper {self.path}: {answer.get('error')}", code=str(answer.get("code", "")), pid=answer.get("pid")
            )
        return answer, fds
