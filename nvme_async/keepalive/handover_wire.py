"""Messages between the two processes of a hand-over.

On a Unix stream socket; every message is a length (4 bytes, little endian) and a JSON object, or
one of the two structures between "go" and "taken".

    successor    {"hello": 1, "pid": …, "keepalive": true, "short": true, "beside": true,
                  "lease": true}
    predecessor  {"offer": "live", "uri": …, "direct": …, "registers": {…}} + a bundle (bundle.py),
                 or {"offer": "fresh", "uri": …, "options": …} after a clean shutdown,
                 or {"offer": "beside", "uri": …, "options": …}
                 or {"offer": "lease", "uri": …, "options": …, "lease": …, "token": …,
                     "attempt": …} + a bundle of the pool
    successor    {"ready": true}                  it has built all that it will need
    predecessor  "go": frozen, phases, sequence   queues are frozen and rung, the saved state final;
                 or {"withdrawn": reason}
    successor    "taken"                          or {"refused": reason, "touched": …}

Release 0.1 knows none of "short", "registers", "options" and the structures. To a successor that
does not say "short" a predecessor sends {"go": {"frozen": seconds, "phases": {name: seconds, …}}},
and gets {"taken": true}. A successor that gets no registers connects only after "go" to a
device that is accessed by messages.

"beside", where the transport has queues for both processes (Transport.coexists) and the successor
said that it knows it: the successor opens the controller with queues of its own, and then says
"ready", or {"full": reason} where there are none left: then "fresh" follows. "go" follows once the
predecessor holds new I/O and has none in flight; after "taken" it closes. Without "taken" it serves
again: nothing of it was touched.

"lease": a worker's queue pairs (nvme_async.sharing.passing). "go" has {"lease": …}, a PassedState.
The successor asks the owner for the lease before it touches anything. After another answer than
"taken", or none, the predecessor asks the owner who has it.

Until "go" the predecessor serves. From "go" to "taken" it touches nothing; after "refused" without
"touched" it serves again. If the successor ends in between, or refuses after it had started, its
actions are unknown: then the predecessor resets the controller and continues (resending the
commands that can be resent).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from typing import Any

from nvme_async.errors import ConfigurationError, ControllerTimeout
from nvme_async.runtime.sockets import receive_exactly

VERSION = 1
READY_SECONDS = 30.0
"""Limit of each step during which both sides may still serve."""
TAKEN_SECONDS = 10.0
"""From "go" to "taken"."""

_LENGTH = struct.Struct("<I")
_GO = struct.Struct("<cQddd")  # b"G", the saved state's sequence, seconds: frozen, suspend, write
_TAKEN = b"T"
_MOST = 1 << 20


def _decode(data: bytes) -> Any:
    if data == _TAKEN:
        return {"taken": True}
    if len(data) == _GO.size and data[:1] == b"G":
        _, sequence, frozen, suspend, write = _GO.unpack(data)
        return {"go": {"frozen": frozen, "phases": {"suspend": suspend, "write": write}, "sequence": sequence}}
    return json.loads(data)


class Wire:
    """Messages on one socket. On the loop that made it; owner of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, **message: Any) -> None:
        data = json.dumps(message).encode()
        async with asyncio.timeout(READY_SECONDS):
            await self._loop.sock_sendall(self.socket, _LENGTH.pack(len(data)) + data)

    def send_now(self, **message: Any) -> None:
        """send() without a wait: for a message that fits the socket's buffer, which is empty
        between request and answer.
        """
        self._send_now(json.dumps(message).encode())

    def _send_now(self, data: bytes) -> None:
        self.socket.send(_LENGTH.pack(len(data)) + data, socket.MSG_NOSIGNAL)

    def send_go(self, phases: dict[str, float], sequence: int, *, short: bool) -> None:
        """The predecessor stands still as of now. phases: its own, in seconds."""
        frozen = time.monotonic()
        if short:
            self._send_now(_GO.pack(b"G", sequence, frozen, phases.get("suspend", 0.0), phases.get("write", 0.0)))
        else:
            self.send_now(go={"frozen": frozen, "phases": phases})

    def send_taken(self, *, short: bool) -> None:
        """The controller is this process's."""
        if short:
            self._send_now(_TAKEN)
        else:
            self.send_now(taken=True)

    async def receive(self, seconds: float, *, alone: bool = False) -> dict[str, Any]:
        """The next message. ConnectionError if the other side is gone, ControllerTimeout. alone:
        nothing follows it before an answer, so that a short one takes one system call.
        """
        try:
            async with asyncio.timeout(seconds):
                message = _decode(await (self._alone() if alone else self._framed()))
        except TimeoutError:
            raise ControllerTimeout(f"the peer of the hand-over sent nothing for {seconds:g} s") from None
        except (ValueError, RecursionError) as error:
            raise ConnectionError(f"the peer of the hand-over uses another protocol: {error}") from None
        if not isinstance(message, dict):
            raise ConnectionError("the peer of the hand-over uses another protocol")
        return message

    async def _framed(self) -> bytes:
        return await self._exactly(self._length(await self._exactly(_LENGTH.size)))

    async def _alone(self) -> bytes:
        data = await self._loop.sock_recv(self.socket, _LENGTH.size + _GO.size)
        if len(data) < _LENGTH.size:
            if not data:
                raise ConnectionResetError("the peer of the hand-over is gone")
            data += await self._exactly(_LENGTH.size - len(data))
        missing = _LENGTH.size + self._length(data) - len(data)
        if missing < 0:
            raise ConnectionError("the peer of the hand-over uses another protocol: it sent two messages")
        return data[_LENGTH.size :] + (await self._exactly(missing) if missing else b"")

    @staticmethod
    def _length(data: bytes) -> int:
        (length,) = _LENGTH.unpack_from(data)
        if length > _MOST:
            raise ConnectionError(f"a message of {length} bytes: the peer of the hand-over uses another protocol")
        return int(length)

    async def _exactly(self, nbytes: int) -> bytes:
        try:
            return await receive_exactly(self.socket, nbytes)
        except EOFError:
            raise ConnectionResetError("the peer of the hand-over is gone") from None

    def close(self) -> None:
        self.socket.close()


def check_peer(sock: socket.socket, what: str) -> None:
    """Each side accepts only this user and root: a bundle controls the controller, and a process
    that restores one trusts its memory. ConfigurationError for any other user.
    """
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (os.geteuid(), 0):
        raise ConfigurationError(
            f"a process of user {uid} {what}; a hand-over is between processes of one user (here {os.geteuid()}), or "
            "with root"
        )
