"""NVMe/TCP's PDUs (TCP Transport 1.0, 3.6.2) for the handshake: ICReq, ICResp, and the few
capsules before the native link takes the socket over.
"""

from __future__ import annotations

import asyncio
import socket
import struct

import attrs

from nvme_async.errors import ControllerError, ControllerGone
from nvme_async.native._tcp import crc32c
from nvme_async.runtime.sockets import receive_exactly

ICREQ, ICRESP, H2C_TERM, C2H_TERM, COMMAND, RESPONSE, H2C_DATA, C2H_DATA, R2T = 0, 1, 2, 3, 4, 5, 6, 7, 9
HDGSTF, DDGSTF, LAST_PDU, SUCCESS = 1, 2, 4, 8
COMMON = struct.Struct("<BBBBI")
HEADER_BYTES = {ICRESP: 128, RESPONSE: 24, C2H_DATA: 24, R2T: 24, C2H_TERM: 24}
LONGEST = 1 << 20
"""Of a PDU during the handshake."""

FES = {
    1: "invalid PDU header field",
    2: "PDU sequence error",
    3: "header digest error",
    4: "data transfer out of range",
    5: "data transfer limit exceeded",
    6: "unsupported parameter",
}


@attrs.frozen
class Limits:
    """The parameters agreed between host and controller, in bytes.

    Attributes:
        in_capsule: write data that a command capsule of this queue may carry.
        max_h2c: MAXH2CDATA. alignment: of data that the host sends, (CPDA + 1) * 4.
    """

    in_capsule: int
    max_h2c: int
    alignment: int
    header_digest: bool
    data_digest: bool


def icreq(*, header_digest: bool, data_digest: bool, maxr2t: int = 0) -> bytes:
    """PFV 0, HPDA 0; maxr2t: zero-based."""
    body = struct.pack("<HBBI", 0, 0, header_digest | data_digest << 1, maxr2t)
    return (COMMON.pack(ICREQ, 0, 128, 0, 128) + body).ljust(128, b"\0")


def command(sqe: bytes, data: bytes, limits: Limits, *, expects: int = 0) -> bytes:
    """A command capsule with `data` in it, or for one that expects so many bytes; the SGL is
    filled in here.
    """
    head = 72 + (4 if limits.header_digest else 0)
    pdo = -(-head // limits.alignment) * limits.alignment if data else 0
    ddgst = bool(data) and limits.data_digest
    length = (pdo + len(data) if data else head) + (4 if ddgst else 0)
    sgl = struct.pack("<QI3xB", 0, len(data) or expects, 0x01 if data else 0x5A)
    flags = (HDGSTF if limits.header_digest else 0) | (DDGSTF if ddgst else 0)
    header = COMMON.pack(COMMAND, flags, 72, pdo, length) + sqe[:1] + b"\x40" + sqe[2:24] + sgl + sqe[40:]
    capsule = header + (struct.pack("<I", crc32c(header)) if limits.header_digest else b"")
    if data:
        capsule = capsule.ljust(pdo, b"\0") + data
    return capsule + (struct.pack("<I", crc32c(data)) if ddgst else b"")


@attrs.frozen
class Pdu:
    """Attributes:
    header: with the common header. data: without digest.
    """

    kind: int
    flags: int
    header: bytes
    data: bytes


class Stream:
    """The socket during the handshake. On the running loop."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock = sock
        self.name = name
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        try:
            await self._loop.sock_sendall(self.sock, data)
        except OSError as error:
            raise ControllerGone(f"{self.name}: sending: {error.strerror or error}") from None

    async def _exactly(self, nbytes: int) -> bytes:
        try:
            return await receive_exactly(self.sock, nbytes)
        except OSError as error:
            raise ControllerGone(f"{self.name}: receiving: {error.strerror or error}") from None
        except EOFError:
            raise ControllerGone(f"{self.name}: the controller closed the connection") from None

    async def receive(self, *, header_digest: bool = False, data_digest: bool = False) -> Pdu:
        """The next PDU. ControllerError for an invalid one, or one that ends the connection."""
        common = await self._exactly(8)
        kind, flags, hlen, pdo, plen = COMMON.unpack(common)
        expected = HEADER_BYTES.get(kind)
        if expected is None or hlen != expected or not hlen <= plen <= LONGEST:
            raise ControllerError(f"{self.name}: a PDU of type {kind:#x} with HLEN {hlen} and PLEN {plen}")
        rest = await self._exactly(plen - 8)
        whole = common + rest
        header = whole[:hlen]
        if kind == C2H_TERM:
            fes, fei = struct.unpack_from("<HI", header, 8)
            raise ControllerError(
                f"{self.name}: the controller ended the connection: {FES.get(fes, 'unknown reason')} "
                f"(FES {fes:#x}, FEI {fei:#x})"
            )
        head = hlen
        if header_digest and kind != ICRESP:
            if whole[hlen : hlen + 4] != struct.pack("<I", crc32c(header)):
                raise ControllerError(f"{self.name}: header digest error in a PDU of type {kind:#x}")
            head += 4
        data = b""
        if kind == C2H_DATA:
            length = struct.unpack_from("<I", header, 16)[0]
            tail = 4 if data_digest else 0
            if pdo < head or pdo + length + tail != plen:
                raise ControllerError(f"{self.name}: C2HData with PDO {pdo}, PLEN {plen} and {length} bytes of data")
            data = whole[pdo : pdo + length]
            if data_digest and whole[pdo + length :] != struct.pack("<I", crc32c(data)):
                raise ControllerError(f"{self.name}: data digest error during the handshake")
        elif head != plen:
            raise ControllerError(f"{self.name}: a PDU of type {kind:#x} with PLEN {plen}")
        return Pdu(kind, flags, header, data)
