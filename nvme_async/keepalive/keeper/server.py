"""The keeper's loop: connections, permissions, dying processes, misbehaving clients. Standard
library only.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import resource
import selectors
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any

from .ledger import Deposits, Process, Refused
from .wire import Misbehaved, close_all, receive, send

log: logging.Logger = logging.getLogger("keeper")

MAX_CLIENTS = 256
MAX_OUTGOING = 64  # unread answers of one client
PATIENCE = 30.0  # seconds for a client without deposits to send something, or to read its answers
SPARE_FDS = 64 + 2 * MAX_CLIENTS  # needed by the process itself


def permitted(peer_uid: int, own_uid: int) -> bool:
    """The users that the keeper serves."""
    return peer_uid in (own_uid, 0)


class Connection:
    """A client's connection, its socket, and its unread answers."""

    def __init__(self, sock: socket.socket, process: Process) -> None:
        self.sock = sock
        self.process = process
        self.upload: tuple[str, dict[str, int]] | None = None
        self.waiting: tuple[str, float] | None = None
        self.outgoing: collections.deque[tuple[dict[str, Any], list[int]]] = collections.deque()
        self.heard: float = time.monotonic()


class Keeper:
    """Serves one listening socket, which it owns, in the thread that calls run(). No client can
    make it wait.

    patience: seconds for a client without deposits to send something, or for any to read an answer
        or continue a deposit in parts.
    """

    def __init__(self, listening: socket.socket, *, patience: float = PATIENCE, uid: int | None = None) -> None:
        self._listening = listening
        self._patience = patience
        self._uid = os.geteuid() if uid is None else uid
        self._selector = selectors.DefaultSelector()
        self._clients: set[Connection] = set()
        self._processes: set[Process] = set()
        self._deposits = Deposits(
            self._answer,
            self._hang_up,
            self._process,
            max_fds=resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FDS,
        )
        self._paused_until = 0.0
        self._stopping = False
        self._wake, self._woken = socket.socketpair()
        for sock in (self._wake, self._woken, listening):
            sock.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_wake)

    def run(self) -> None:
        """Runs until stop(), then releases everything."""
        try:
            while not self._stopping:
                for key, events in self._selector.select(self._next_deadline()):
                    key.data(events)
                self._tend()
        finally:
            self._close()

    def stop(self) -> None:
        """From any thread, or a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def _on_wake(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(64)

    def _close(self) -> None:
        self._deposits.close()
        for client in list(self._clients):
            self._hang_up(client)
        for process in list(self._processes):
            self._forget(process)
        self._selector.close()
        for sock in (self._listening, self._wake, self._woken):
            sock.close()

    # -- timeouts ------------------------------------------------------------------------------

    def _deadline(self, client: Connection) -> float | None:
        if client.outgoing or client.upload is not None:
            return client.heard + self._patience
        if client.waiting is not None:
            return client.waiting[1]
        return None if self._deposits.owns(client.process) else client.heard + self._patience

    def _next_deadline(self) -> float | None:
        deadlines = [deadline for client in self._clients if (deadline := self._deadline(client)) is not None]
        if self._paused_until:
            deadlines.append(self._paused_until)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _tend(self) -> None:
        now = time.monotonic()
        if self._paused_until and now >= self._paused_until:
            self._paused_until = 0.0
            self._selector.register(self._listening, selectors.EVENT_READ, self._accept)
        for client in list(self._clients):
            deadline = self._deadline(client)
            if deadline is None or now < deadline or client not in self._clients:
                continue
            if client.waiting is not None and not client.outgoing and client.upload is None:
                client.heard = now
                self._guarded(client, lambda client=client: self._deposits.waited(client))
            else:
                log.info("process %d: silent for %g s", client.process.pid, self._patience)
                self._hang_up(client)

    # -- connections and processes -----------------------------------------------------------------

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            # Out of descriptors or memory: connections wait in the backlog for a moment instead of
            # waking the loop continuously.
            log.error("accept: %s", error)
            self._paused_until = time.monotonic() + 0.2
            self._selector.unregister(self._listening)
            return
        sock.setblocking(False)
        layout = struct.Struct("iII")
        pid, uid, _gid = layout.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))
        try:
            if not permitted(uid, self._uid):
                raise Refused("invalid", f"user {uid} may not use the keeper of user {self._uid}")
            if len(self._clients) >= MAX_CLIENTS:
                raise Refused("limit", f"the limit of {MAX_CLIENTS} connections is reached")
            process = self._process(pid)
        except (Refused, OSError) as error:
            log.warning("process %d: %s", pid, error)
            with contextlib.suppress(OSError):
                send(sock, error.answer() if isinstance(error, Refused) else Refused("limit", str(error)).answer())
            sock.close()
            return
        process.connections += 1
        client = Connection(sock, process)
        self._clients.add(client)
        self._selector.register(sock, selectors.EVENT_READ, lambda events: self._on_client(client, events))

    def _process(self, pid: int) -> Process:
        for process in self._processes:
            if process.pid == pid and process.pidfd >= 0:
                return process
        process = Process(pid)
        self._processes.add(process)
        if process.pidfd >= 0:
            self._selector.register(process.pidfd, selectors.EVENT_READ, lambda _: self._on_death(process))
        return process

    def _on_death(self, process: Process) -> None:
        if process not in self._processes:
            return
        self._forget(process)
        for client in [client for client in self._clients if client.process is process]:
            self._hang_up(client)  # one of its children may still have the connection open
        self._deposits.died(process)

    def _forget(self, process: Process) -> None:
        self._processes.discard(process)
        if process.pidfd >= 0:
            self._selector.unregister(process.pidfd)
            process.close()

    def _hang_up(self, client: Connection) -> None:
        if client not in self._clients:
            return
        self._clients.discard(client)
        self._selector.unregister(client.sock)
        client.sock.close()
        for _, fds in client.outgoing:
            close_all(fds)
        client.outgoing.clear()
        self._deposits.disconnected(client)
        process = client.process
        process.connections -= 1
        if process.connections or process not in self._processes:
            return
        if process.pidfd < 0:
            self._on_death(process)
        elif not self._deposits.owns(process):
            self._forget(process)

    # -- messages ----------------------------------------------------------------------------------

    def _guarded(self, client: Connection, function: Any) -> None:
        """One client's error ends only that client's connection."""
        try:
            function()
        except (OSError, Misbehaved) as error:
            log.info("process %d: %s", client.process.pid, error)
            self._hang_up(client)
        except Exception:
            log.exception("process %d", client.process.pid)
            self._hang_up(client)

    def _on_client(self, client: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE and client in self._clients:
            self._guarded(client, lambda: self._flush(client))
        if events & selectors.EVENT_READ and client in self._clients:
            self._guarded(client, lambda: self._read(client))

    def _read(self, client: Connection) -> None:
        try:
            received = receive(client.sock)
        except BlockingIOError:
            return
        if received is None:
            self._hang_up(client)
            return
        client.heard = time.monotonic()
        self._deposits.request(client, *received)

    def _answer(self, client: Connection, message: dict[str, Any], fds: Iterable[int]) -> None:
        """Sends; queues with copies of `fds` if the client has no room."""
        if not client.outgoing:
            try:
                send(client.sock, message, fds)
                return
            except BlockingIOError:
                pass
        if len(client.outgoing) >= MAX_OUTGOING:
            raise Misbehaved(f"{MAX_OUTGOING} answers to it are unread")
        copies: list[int] = []
        client.outgoing.append((message, copies))
        for fd in fds:
            copies.append(os.dup(fd))  # noqa: PERF401 - should one fail, those before are closed with the connection
        self._listen_to(client)

    def _flush(self, client: Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            while client.outgoing:
                send(client.sock, *client.outgoing[0])
                close_all(client.outgoing.popleft()[1])
                client.heard = time.monotonic()
        self._listen_to(client)

    def _listen_to(self, client: Connection) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outgoing else 0)
        key = self._selector.get_key(client.sock)
        if key.events != wanted:
            self._selector.modify(client.sock, wanted, key.data)
