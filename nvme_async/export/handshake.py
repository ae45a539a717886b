"""The server's half of NBD's fixed newstyle handshake, up to the transmission phase.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct

import attrs

from nvme_async.errors import NvmeError
from nvme_async.runtime.sockets import receive_exactly

MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
REPLY_MAGIC = 0x3E889045565A9
FIXED_NEWSTYLE = 1 << 0
NO_ZEROES = 1 << 1
MAX_OPTION = 4096
"""Bytes of one option's data. An export name has at most 4096, and no other option needs more."""
MAX_OPTIONS = 64
"""Options of one handshake: a client that sends more never gets to an end."""


class Option(enum.IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8


class Reply(enum.IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_UNKNOWN = 0x80000006
    ERR_TOO_BIG = 0x80000009


class Info(enum.IntEnum):
    EXPORT = 0
    NAME = 1
    BLOCK_SIZE = 3


class Flag(enum.IntFlag):
    """Transmission flags: what the export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    CAN_MULTI_CONN = 1 << 8


class HandshakeError(NvmeError):
    """The client has ended the handshake or broken the protocol."""


@attrs.frozen(kw_only=True)
class Export:
    """What a client learns of the export. Sizes are in bytes; a request has a multiple of
    block_size.
    """

    name: str
    nbytes: int
    flags: Flag
    block_size: int
    preferred: int
    max_nbytes: int


@attrs.frozen
class Agreed:
    structured: bool
    """Answers are structured replies."""


async def shake_hands(sock: socket.socket, export: Export) -> Agreed:
    """Until the client has chosen the export. HandshakeError, EOFError, OSError."""
    loop = asyncio.get_running_loop()

    async def reply(option: int, kind: Reply, data: bytes = b"") -> None:
        await loop.sock_sendall(sock, struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)

    await loop.sock_sendall(sock, MAGIC + OPTION_MAGIC + struct.pack(">H", FIXED_NEWSTYLE | NO_ZEROES))
    (flags,) = struct.unpack(">I", await receive_exactly(sock, 4))
    if flags & ~(FIXED_NEWSTYLE | NO_ZEROES):
        raise HandshakeError(f"the client sets unknown flags: {flags:#x}")
    structured = False
    for _ in range(MAX_OPTIONS):
        magic, option, nbytes = struct.unpack(">8sII", await receive_exactly(sock, 16))
        if magic != OPTION_MAGIC:
            raise HandshakeError("the client sent an option without its magic number")
        if nbytes > MAX_OPTION:
            raise HandshakeError(f"the client sent an option of {nbytes} bytes; the limit is {MAX_OPTION}")
        data = await receive_exactly(sock, nbytes)
        if option == Option.EXPORT_NAME:
            if data.decode(errors="replace") not in ("", export.name):
                raise HandshakeError(f"no export is named {data!r}")
            zeroes = b"" if flags & NO_ZEROES else bytes(124)
            await loop.sock_sendall(sock, struct.pack(">QH", export.nbytes, export.flags) + zeroes)
            return Agreed(structured)
        if option == Option.ABORT:
            await reply(option, Reply.ACK)
            raise HandshakeError("the client ended the handshake")
        if option == Option.LIST:
            if data:
                await reply(option, Reply.ERR_INVALID)
                continue
            name = export.name.encode()
            await reply(option, Reply.SERVER, struct.pack(">I", len(name)) + name)
            await reply(option, Reply.ACK)
        elif option == Option.STRUCTURED_REPLY:
            structured = structured or not data
            await reply(option, Reply.ERR_INVALID if data else Reply.ACK)
        elif option in (Option.INFO, Option.GO):
            name_read = _name_of(data)
            if name_read is None:
                await reply(option, Reply.ERR_INVALID)
                continue
            if name_read not in ("", export.name):
                await reply(option, Reply.ERR_UNKNOWN)
                continue
            await reply(option, Reply.INFO, struct.pack(">HQH", Info.EXPORT, export.nbytes, export.flags))
            sizes = (export.block_size, export.preferred, export.max_nbytes)
            await reply(option, Reply.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, *sizes))
            await reply(option, Reply.ACK)
            if option == Option.GO:
                return Agreed(structured)
        else:
            await reply(option, Reply.ERR_POLICY if option == Option.STARTTLS else Reply.ERR_UNSUP)
    raise HandshakeError(f"the client sent {MAX_OPTIONS} options and chose no export")


def _name_of(data: bytes) -> str | None:
    """The export name in the data of INFO and GO; None where they are malformed."""
    if len(data) < 6:
        return None
    (length,) = struct.unpack_from(">I", data)
    if length > len(data) - 6:
        return None
    (requests,) = struct.unpack_from(">H", data, 4 + length)
    if len(data) != 6 + length + 2 * requests:
        return None
    return data[4 : 4 + length].decode(errors="replace")
