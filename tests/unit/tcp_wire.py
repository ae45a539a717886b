"""NVMe/TCP's PDUs written by hand for tests, byte by byte from the specification's figures:
nothing here uses the package's codec.
"""

from __future__ import annotations

import socket
import struct

from nvme_async.driver.completions import error_from
from nvme_async.native import _hotpath, _placement, _tcp


def crc(data: bytes) -> int:
    """CRC32C bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def pdu(
    kind: int, body: bytes, data: bytes = b"", *, flags: int = 0, hdgst: bool = False, ddgst: bool = False, pad: int = 0
) -> bytes:
    """A PDU with `body` behind the common header; `pad` bytes of padding before the data."""
    hlen = 8 + len(body)
    head = hlen + (4 if hdgst else 0) + pad
    ddgst = ddgst and bool(data)
    length = head + len(data) + (4 if ddgst else 0)
    header = struct.pack("<BBBBI", kind, flags | hdgst | ddgst << 1, hlen, head if data else 0, length) + body
    if hdgst:
        header += struct.pack("<I", crc(header))
    return header + bytes(pad) + data + (struct.pack("<I", crc(data)) if ddgst else b"")


def response(cid: int, status: int = 0, dw0: int = 0, dw1: int = 0, **options: bool) -> bytes:
    return pdu(0x05, struct.pack("<IIHHHH", dw0, dw1, 0, 0, cid, status << 1), **options)


def c2h_data(
    cid: int, data: bytes, offset: int = 0, *, flags: int = 0x0C, length: int | None = None, **options
) -> bytes:
    """flags: LAST_PDU 4, SUCCESS 8."""
    count = len(data) if length is None else length
    return pdu(0x07, struct.pack("<HHIII", cid, 0, offset, count, 0), data, flags=flags, **options)


def r2t(cid: int, ttag: int, offset: int, length: int, **options: bool) -> bytes:
    return pdu(0x09, struct.pack("<HHIII", cid, ttag, offset, length, 0), **options)


def take(peer: socket.socket, nbytes: int) -> bytes:
    """Exactly that many bytes, which must arrive within a second."""
    peer.settimeout(1)
    data = b""
    while len(data) < nbytes:
        part = peer.recv(nbytes - len(data))
        if not part:
            raise EOFError(f"closed after {len(data)} of {nbytes} bytes")
        data += part
    return data


def take_pdu(peer: socket.socket) -> bytes:
    header = take(peer, 8)
    return header + take(peer, struct.unpack_from("<I", header, 4)[0] - 8)


class Wired:
    """A queue pair on a link, whose other end is `peer`; on the running loop."""

    def __init__(self, loop, *, hdgst=False, ddgst=False, in_capsule=4096, max_h2c=8192, alignment=4, entries=32):
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.loop = loop
        self.faults: list[str] = []
        self.qp = _hotpath.QueuePair(
            _placement.HostMemory(_hotpath.queue_memory(entries, entries - 1, 1 << 20)),
            qid=1,
            entries=entries,
            n_trackers=entries - 1,
            max_transfer=1 << 20,
            address_map=_placement.AddressMap(),
            bounce=_placement.BounceCache(None),
            create_future=loop.create_future,
            call_soon=loop.call_soon,
            command_error=error_from,
            on_stray=lambda *stray: self.faults.append(str(stray)),
        )
        self.link = _tcp.Link()
        self.qp.set_transport(self.link)
        self.qp.bind(loop)
        self.limits = {
            "in_capsule": in_capsule,
            "max_h2c": max_h2c,
            "alignment": alignment,
            "header_digest": hdgst,
            "data_digest": ddgst,
        }
        self.ours = ours
        self.link.attach(ours, **self.limits)
        self.listen()

    def listen(self) -> None:
        self.loop.add_reader(self.ours.fileno(), self.readable)
        self.loop.add_reader(self.link.room_fd, self.link.flush)

    def readable(self) -> None:
        self.qp.more()
        if self.link.broken:
            self.faults.append(self.link.error)
            self.loop.remove_reader(self.ours.fileno())

    def request(self, opcode: int, lba: int = 0, blocks: int = 1, buffer=None, read_nbytes: int = -1):
        sqe = bytearray(64)
        sqe[0] = opcode
        struct.pack_into("<IQI", sqe, 4, 1, 0, 0)
        struct.pack_into("<QI", sqe, 40, lba, blocks - 1)
        to_host = opcode & 3 == 2
        return self.qp.request(bytes(sqe), buffer, read_nbytes=read_nbytes, to_host=to_host)

    def cut(self) -> None:
        """The connection ends, and the queue is reset."""
        self.loop.remove_reader(self.ours.fileno())
        self.loop.remove_reader(self.link.room_fd)
        self.ours.close()

    def close(self) -> None:
        if self.ours.fileno() >= 0:
            self.cut()
        self.qp.release_all()
        self.qp.close()
        self.peer.close()
