"""The handle of a running emulated controller, and the reactor that such controllers share."""

from __future__ import annotations

import os
import socket
import threading
from types import TracebackType

from nvme_async.emulator.config import EmulatorConfig
from nvme_async.emulator.faults import Faults
from nvme_async.emulator.tcp import TcpConfig, listening_socket
from nvme_async.emulator.tls import TlsFront
from nvme_async.errors import ConfigurationError
from nvme_async.native._emulator import Controller, Reactor
from nvme_async.runtime.sockets import ListeningSocket


class _SharedReactor:
    """One reactor for the process, which exists while it is used."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._reactor: Reactor | None = None
        self._users = 0

    def acquire(self) -> Reactor:
        with self._lock:
            if self._reactor is None:
                self._reactor = Reactor()
            self._users += 1
            return self._reactor

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._reactor is not None:
                self._reactor.close()
                self._reactor = None


_shared = _SharedReactor()
# The reactor's thread isn't in a fork()ed child; a controller made there gets a new one.
os.register_at_fork(after_in_child=_shared._forget)


class EmulatedController:
    """An NVMe controller served by a thread of this process.

    Threads: every method may be called from any thread; none waits for a client. It owns the thread
        it starts
    (or a share of the common one), the medium, its sockets and descriptors; close() releases them
    all, and so does garbage collection eventually.

    faults: fault injection, counters and traces.

    patience: seconds that a client may leave something incomplete (the handshake, a message,
        reading a reply)
    before it is dropped; 0 = forever.
    """

    def __init__(self, config: EmulatorConfig | str = "", *, patience: float = 3.0) -> None:
        self.config: EmulatorConfig = EmulatorConfig.parse(config) if isinstance(config, str) else config
        self._pid = os.getpid()
        self._patience = patience
        self._listening: ListeningSocket | None = None
        self._front: TlsFront | None = None
        self._create_files()
        own = self.config.reactor == "own"
        self._reactor: Reactor | None = Reactor() if own else None
        try:
            self._controller = Controller(self.config, self._reactor or _shared.acquire(), patience=patience)
        except BaseException:
            self._release_reactor()
            raise
        self.faults: Faults = Faults(self._controller)

    def _create_files(self) -> None:
        media = self.config.media
        for medium in media:
            if medium.kind != "file":
                continue
            try:
                fd = os.open(medium.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    if os.fstat(fd).st_size < medium.nbytes:
                        os.ftruncate(fd, medium.nbytes)
                finally:
                    os.close(fd)
            except OSError as error:
                raise ConfigurationError(f"path={medium.path!r}: {error.strerror}") from None

    def _release_reactor(self) -> None:
        if self._pid != os.getpid():
            return
        if self._reactor is not None:
            self._reactor.close()
        else:
            _shared.release()

    def connect(self) -> socket.socket:
        """The client's end of a new connection, which the caller must close. OSError (EBUSY)
        while there is another.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._controller.attach(theirs.detach())
        except BaseException:
            ours.close()
            raise
        return ours

    def listen(self, path: str | os.PathLike[str]) -> None:
        """Serves clients that connect to the socket at `path`, one after another.

        Each waits until the previous one has disconnected. A socket file without a listener is
        replaced. ConfigurationError if the path isn't available.
        """
        if self._listening is not None:
            raise ConfigurationError(f"already listens on {self._listening.path}")
        listening = ListeningSocket(path)
        try:
            self._controller.listen(listening.detach())
        except BaseException:
            listening.unlink()
            raise
        self._listening = listening

    def serve_tcp(self, *endpoints: tuple[str, int], config: TcpConfig | None = None) -> list[tuple[str, int]]:
        """Serves NVMe/TCP too, on these (address, port)s: any number of hosts at once, each with
        its own controller in one subsystem, and the discovery service. May be called once.

        Returns the addresses with the actual ports (0 takes a free one). ConfigurationError if one
        of them isn't available.
        """
        config = config or TcpConfig()
        sockets: list[socket.socket] = []
        front: TlsFront | None = None
        try:
            for host, port in endpoints:
                sockets.append(listening_socket(host, port))
            names = [one.getsockname()[:2] for one in sockets]
            if config.tls_key:
                front = TlsFront(sockets, config, patience=self._patience)
            inner = front.take_inner() if front is not None else [one.detach() for one in sockets]
            self._controller.serve_tcp(config, inner, patience=self._patience, fronts=names if front else ())
        except BaseException:
            if front is not None:
                front.close()
            raise
        finally:
            for one in sockets:
                one.close()
        self._front = front
        return names

    def drop_tcp(self) -> None:
        """Cuts every NVMe/TCP connection; hosts may reconnect."""
        self._controller.drop_tcp()

    def tcp_port(self, port: int, *, is_open: bool) -> None:
        """Closes a port of serve_tcp(), or opens it again: its connections are cut, and new ones
        are closed at once. port: its position in the arguments of serve_tcp(), from 0.
        """
        self._controller.tcp_port(port, is_open)

    def tcp_ana_state(self, port: int, group: int, state: int) -> None:
        """Sets the state of an ANA group for the hosts that connect through one port (as for
        tcp_port()); states as for Faults.ana_state(), which concerns the PCI function.
        """
        self._controller.tcp_ana(port, group, state)

    def tcp_stats(self) -> dict[str, int]:
        """Counters of NVMe/TCP: connections, associations, commands, digest errors, …; and what is
        open now.
        """
        return self._controller.tcp_stats()

    def drop_client(self) -> None:
        """Closes the connection of the present client, if there is one."""
        self._controller.drop_client()

    def stats(self) -> dict[str, int | bool | str | None]:
        """Counters of the transport: clients, messages, refused, interrupts, connected, last_drop,
        …
        """
        return self._controller.stats()

    def reactor_stats(self) -> dict[str, int]:
        """Counters of the thread that serves it, possibly with others: cpu_ns, sleeps, naps,
        controllers, active.
        """
        return self._controller.reactor.stats()

    @property
    def closed(self) -> bool:
        return self._controller.closed

    def close(self) -> None:
        """Drops the client and releases everything. May be repeated, also in a fork()ed child."""
        if self._controller.closed or self._pid != os.getpid():
            return
        if self._listening is not None:
            self._listening.unlink()
            self._listening = None
        self._controller.close()
        if self._front is not None:
            self._front.close()
        self._release_reactor()

    def __enter__(self) -> EmulatedController:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_controller"):
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<EmulatedController {self.config.medium} {self.config.namespaces} namespaces, {state}>"
