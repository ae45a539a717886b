"""Messages with descriptors on a SOCK_SEQPACKET socket. Standard library only; both sides use
it.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

MAX_MESSAGE = 64 << 10
MAX_FDS = 240  # of one message; the kernel takes 253
MAX_NAME = 512  # bytes
MAX_LABEL = 64  # characters, ASCII
MAX_WAIT = 86400.0  # seconds


class Misbehaved(Exception):
    """A peer that violates the protocol; its connection ends."""


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def send(sock: socket.socket, message: dict[str, Any], fds: Iterable[int] = ()) -> None:
    """Sends one message with copies of `fds`. Raises the socket's exceptions."""
    rights = array.array("i", fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    sock.sendmsg([json.dumps(message).encode()], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One message and its descriptors, now owned by the caller; None at the end of the
    connection. Misbehaved for an invalid message.
    """
    fds = array.array("i")
    room = socket.CMSG_SPACE(MAX_FDS * fds.itemsize)
    data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    try:
        if not data and not fds:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise Misbehaved(
                f"a message of more than {MAX_MESSAGE} bytes or {MAX_FDS} descriptors, or more than "
                "this process may open"
            )
        try:
            message = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Misbehaved(f"a message is not JSON: {error}") from None
        if not isinstance(message, dict):
            raise Misbehaved("a message is not a JSON object")
    except BaseException:
        close_all(fds)
        raise
    return message, list(fds)


def chunked(items: list[Any], size: int) -> Iterator[tuple[list[Any], bool]]:
    """(piece, whether more follow); at least one piece."""
    for at in range(0, max(1, len(items)), size):
        yield items[at : at + size], at + size < len(items)


def is_name(text: Any) -> bool:
    """A deposit's name: a device URI."""
    return isinstance(text, str) and text.isprintable() and 0 < len(text.encode(errors="replace")) <= MAX_NAME


def is_label(text: Any) -> bool:
    """A descriptor's."""
    return isinstance(text, str) and 0 < len(text) <= MAX_LABEL and text.isascii() and text.isprintable()
