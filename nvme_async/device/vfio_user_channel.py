"""Request and reply on a vfio-user socket: bounded, from any thread, and ready for a takeover.

The process may be killed at any instruction, and a successor continues with the same socket. So no
relevant state is held outside the kernel between two system calls: a request is one sendmsg; a
reply is read with MSG_PEEK until it is complete, and then taken with one recvmsg. The socket always
holds a sequence of complete messages. (A peer that sends a message with descriptors in several
pieces loses that: the kernel ends a recvmsg there.) A reply without a waiter, from a call that
timed out or a killed predecessor, is taken and dropped.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nvme_async.device import vfio_user_protocol as wire
from nvme_async.errors import ControllerError, ControllerFatal, ControllerGone, DeviceError, DeviceTimeout
from nvme_async.runtime import forks
from nvme_async.runtime.limits import descriptors_cut_off

_NAP = 0.0005
"""Seconds between peeks while a peer is in the middle of a message: poll() reports readable and
can't wait for more.
"""
_IN_FLIGHT = 16
"""Requests that may be outstanding at once."""


class Channel:
    """One connection. Owns the socket.

    Calls may be made from any thread, one at a time: others wait within their own timeout. Each
    raises ControllerGone when the peer closed, DeviceTimeout, DeviceError for an error reply,
    and ControllerFatal when the peer breaks the protocol, after which the connection is closed.
    """

    stale_replies: int

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        sock.setblocking(False)
        self.timeout = timeout
        self.stale_replies = 0
        self._socket = sock
        self._lock = threading.Lock()
        # Distinguishes replies to a predecessor from ours; resume() also sends a request first to
        # be certain.
        self._msg_id = random.SystemRandom().randrange(1 << 16)
        self._gone: str | None = None
        self._parked = False
        forks.watch(self)

    @property
    def fd(self) -> int:
        """-1 once closed."""
        return self._socket.fileno()

    def call(
        self,
        command: wire.Command,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        timeout: float | None = None,
    ) -> bytes:
        """The reply's payload; descriptors that come with it are closed."""
        answer, received = self.call_fds(command, payload, fds, timeout=timeout)
        _close_all(received)
        return answer

    def call_fds(
        self,
        command: wire.Command,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        timeout: float | None = None,
    ) -> tuple[bytes, list[int]]:
        """The reply's payload and descriptors, which become the caller's."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        with self._turn(command, deadline):
            msg_id = self._request(command, payload, fds, deadline)
            return self._reply(msg_id, command, deadline)

    def call_all(self, requests: Sequence[tuple[wire.Command, bytes]], *, timeout: float | None = None) -> list[bytes]:
        """The replies' payloads: like as many calls, but with one wait for all.

        All of them are sent before the first reply is taken, so they must be few and short enough
        for a socket's buffer (16 here). The first refusal is raised; the replies to later requests
        are taken nevertheless.
        """
        answers: list[bytes] = []
        for begin in range(0, len(requests), _IN_FLIGHT):
            answers += self._call_all(requests[begin : begin + _IN_FLIGHT], timeout)
        return answers

    def _call_all(self, requests: Sequence[tuple[wire.Command, bytes]], timeout: float | None) -> list[bytes]:
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        answers: list[bytes] = []
        refused: DeviceError | None = None
        with self._turn(requests[0][0], deadline):
            ids = [self._request(command, payload, (), deadline) for command, payload in requests]
            for msg_id, (command, _) in zip(ids, requests, strict=True):
                try:
                    answer, received = self._reply(msg_id, command, deadline)
                except DeviceError as error:
                    refused = refused or error
                    continue
                _close_all(received)
                answers.append(answer)
        if refused is not None:
            raise refused
        return answers

    def _request(self, command: wire.Command, payload: bytes, fds: Sequence[int], deadline: float) -> int:
        """Sends it; returns its id."""
        self._msg_id = (self._msg_id + 1) & 0xFFFF
        header = wire.HEADER.pack(self._msg_id, command, wire.HEADER.size + len(payload), wire.TYPE_COMMAND, 0)
        self._send(header + payload, fds, command, deadline)
        return self._msg_id

    def _reply(self, expected: int, command: wire.Command, deadline: float) -> tuple[bytes, list[int]]:
        """The reply to that request: payload and descriptors. Messages before it are dropped, or
        refused if they are commands.
        """
        while True:
            header, answer, received = self._receive(command, deadline)
            msg_id, answered, _, flags, error = wire.HEADER.unpack(header)
            if flags & wire.TYPE_MASK == wire.TYPE_REPLY and msg_id == expected and answered == command:
                break
            _close_all(received)
            if time.monotonic() >= deadline:
                raise DeviceTimeout(f"vfio-user peer sends other messages instead of the reply to {command.name}")
            if flags & wire.TYPE_MASK == wire.TYPE_REPLY:
                self.stale_replies += 1
            else:
                self._refuse(header, command, deadline)
        if flags & wire.FLAG_ERROR:
            _close_all(received)
            if error in errno.errorcode:
                reason = f"{errno.errorcode[error]} ({os.strerror(error)})"
            else:
                reason = f"with the unknown error {error:#x}" if error else "no reason given"
            failure = DeviceError(f"vfio-user peer refused {command.name}: {reason}")
            failure.errno = error or errno.EIO
            raise failure
        return answer, received

    def park(self, parked: bool, *, wait: bool = True) -> bool:
        """While parked every call fails at once (DeviceError): another process uses the
        connection. Waits for a call in progress; without wait it returns False and changes
        nothing if there is one.
        """
        if not self._lock.acquire(timeout=self.timeout if wait else 0):
            if wait:
                raise DeviceTimeout("a vfio-user call in progress took too long")
            return False
        self._parked = parked
        self._lock.release()
        return True

    def shut_down(self) -> None:
        """Ends the connection for every holder of the socket; a call in progress fails. close()
        is still required.
        """
        self._gone = self._gone or "the device was closed"
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected any more

    def close(self) -> None:
        """Closes this process's descriptor. Waits for a call in progress, which ends within its
        timeout.
        """
        self._gone = self._gone or "the device was closed"
        with self._lock:
            self._socket.close()

    def forget_in_child(self) -> None:
        self._lock = threading.Lock()
        self._gone = f"it {forks.PARENTS}"
        self._socket.close()

    @contextmanager
    def _turn(self, command: wire.Command, deadline: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DeviceTimeout(f"vfio-user {command.name} waited too long for other calls")
        try:
            if self._gone is not None:
                raise ControllerGone(f"vfio-user {command.name}: {self._gone}")
            if self._parked:
                raise DeviceError(f"vfio-user {command.name}: the device is being handed to a successor")
            yield
        except ControllerFatal as error:
            # The stream can't be trusted any more.
            self._gone = str(error)
            self._socket.close()
            raise
        finally:
            self._lock.release()

    def _wait(self, event: int, command: wire.Command, deadline: float) -> int:
        remaining = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._socket, event | select.POLLRDHUP)
        ready = poll.poll(max(0.0, remaining) * 1000)
        if not ready:
            raise DeviceTimeout(f"vfio-user peer did not answer {command.name} in time")
        return ready[0][1]

    def _lost(self, command: wire.Command, why: str) -> ControllerGone:
        self._gone = self._gone or f"the vfio-user peer closed the connection ({why})"
        return ControllerGone(f"vfio-user {command.name}: {self._gone}")

    def _send(self, message: bytes, fds: Sequence[int], command: wire.Command, deadline: float) -> None:
        """Sends the whole message in one sendmsg; a peer, and a successor, rely on that."""
        ancillary = []
        if fds:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds)))
        while True:
            try:
                sent = self._socket.sendmsg([message], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait(select.POLLOUT, command, deadline)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise self._lost(command, str(error.strerror)) from None
            except OSError as error:
                raise DeviceError(f"vfio-user {command.name} could not be sent: {error}") from error
            else:
                if sent != len(message):
                    raise ControllerFatal(f"vfio-user {command.name}: only {sent} of {len(message)} bytes were sent")
                return

    def _available(self) -> int:
        """Bytes that can be received now."""
        return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.FIONREAD, bytes(4)))[0])

    def _await_bytes(self, nbytes: int, command: wire.Command, deadline: float) -> None:
        """Waits until that many bytes are available."""
        while (available := self._available()) < nbytes:
            events = self._wait(select.POLLIN, command, deadline)
            if self._available() != available:
                continue
            if events & (select.POLLHUP | select.POLLRDHUP | select.POLLERR):
                where = f"{available} bytes into a message" if available else "between messages"
                raise self._lost(command, where)
            if time.monotonic() >= deadline:
                raise DeviceTimeout(
                    f"vfio-user peer sent {available} of {nbytes} bytes of a message and then stopped; "
                    f"{command.name} waits for its reply"
                )
            time.sleep(_NAP)

    def _receive(self, command: wire.Command, deadline: float) -> tuple[bytes, bytes, list[int]]:
        """The next message: header, payload, descriptors (the caller's)."""
        try:
            self._await_bytes(wire.HEADER.size, command, deadline)
            # Without room for control data a peeked message leaves no descriptors behind.
            header = self._socket.recv(wire.HEADER.size, socket.MSG_PEEK)
            if len(header) < wire.HEADER.size:
                # The kernel peeks no further than a piece that carries descriptors: the peer split
                # its header.
                raise ControllerFatal(f"vfio-user peer split a message's header after {len(header)} bytes")
            size = wire.HEADER.unpack(header)[2]
            if not wire.HEADER.size <= size <= wire.MAX_MESSAGE_BYTES:
                raise ControllerFatal(
                    f"vfio-user peer sent a message of {size} bytes; "
                    f"the limits are {wire.HEADER.size} to {wire.MAX_MESSAGE_BYTES}"
                )
            self._await_bytes(size, command, deadline)
            message, fds = self._take(size)
        except ConnectionResetError as error:
            raise self._lost(command, str(error.strerror)) from None
        return message[: wire.HEADER.size], message[wire.HEADER.size :], fds

    def _take(self, size: int) -> tuple[bytes, list[int]]:
        """`size` available bytes, and their descriptors."""
        message = b""
        fds: list[int] = []
        room = socket.CMSG_SPACE(wire.MAX_MESSAGE_FDS * struct.calcsize("i"))
        try:
            while len(message) < size:  # once, unless the peer split the message
                part, ancillary, flags, _ = self._socket.recvmsg(size - len(message), room, socket.MSG_CMSG_CLOEXEC)
                for level, kind, data in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        fds += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
                if flags & socket.MSG_CTRUNC:
                    what = descriptors_cut_off(len(fds), wire.MAX_MESSAGE_FDS)
                    raise ControllerFatal(f"vfio-user peer sent {what}")
                message += part
        except BaseException:
            _close_all(fds)
            raise
        return message, fds

    def _refuse(self, header: bytes, command: wire.Command, deadline: float) -> None:
        """Answers a command of the peer, which has no reason to send one: it gets memory as
        descriptors.
        """
        msg_id, asked, _, flags, _ = wire.HEADER.unpack(header)
        if flags & wire.TYPE_MASK != wire.TYPE_COMMAND:
            raise ControllerFatal(f"vfio-user peer sent a message of unknown type {flags & wire.TYPE_MASK}")
        if flags & wire.FLAG_NO_REPLY:
            return
        reply = wire.HEADER.pack(msg_id, asked, wire.HEADER.size, wire.TYPE_REPLY | wire.FLAG_ERROR, errno.EOPNOTSUPP)
        self._send(reply, (), command, deadline)


def connect(path: str, timeout: float) -> Channel:
    """A connection to the server that listens at `path`, before any message."""
    deadline = time.monotonic() + timeout
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:  # its backlog is full
                if time.monotonic() >= deadline:
                    raise DeviceTimeout(
                        f"vfio-user socket {path} has not accepted a connection in {timeout:g} s{busy(path)}"
                    ) from None
                time.sleep(0.01)
            except OSError as error:
                raise ControllerGone(
                    f"cannot connect to vfio-user socket {path}: {error.strerror or error}{busy(path)}"
                ) from error
            else:
                return Channel(sock, timeout)
    except ControllerError:
        sock.close()
        raise


def busy(path: str, proc: str = "/proc/net/unix") -> str:
    """For messages: whether a server's socket has another client, which may be the only one it
    serves.
    """
    try:
        with open(proc, encoding="utf-8", errors="surrogateescape") as lines:
            # Num RefCount Protocol Flags Type St Inode Path; connections that wait in the backlog
            # have no inode.
            fields = [line.split(maxsplit=7) for line in lines]
    except OSError:
        return ""
    connected = [one for one in fields if len(one) == 8 and one[5] == "03" and one[6] != "0" and one[7].strip() == path]
    return ": another client is connected to it, and a server may take one at a time" if connected else ""


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
