"""vfio-user and NVMe by hand, for tests that replay other projects' clients: nothing here comes
from the package.

`Wire` is the socket, `Memory` the memory that a client shares with the controller, `Queue` a
submission and a completion queue in it.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IO_FDS, IRQ_INFO, SET_IRQS = range(1, 9)
REGION_READ, REGION_WRITE, RESET = 9, 10, 13
REPLY, ERROR = 1, 0x20
BAR0, MSIX_BAR, CONFIG = 0, 4, 7
INTX, MSI, MSIX, ERR, REQ = range(5)
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
CAP, VS, CC, CSTS, AQA, ASQ, ACQ = 0x0, 0x8, 0x14, 0x1C, 0x24, 0x28, 0x30
TIMEOUT = 10.0
VECTORS = 4  # of the controller in conftest.py
IDENTIFY, SET_FEATURES, GET_FEATURES, AER, GET_LOG = 0x06, 0x09, 0x0A, 0x0C, 0x02
CREATE_SQ, CREATE_CQ, DELETE_SQ, DELETE_CQ, DBBUF = 0x01, 0x05, 0x00, 0x04, 0x7C
WRITE, READ = 0x01, 0x02


@dataclass
class Reply:
    msg_id: int
    command: int
    flags: int
    errno: int
    payload: bytes
    fds: list[int]

    @property
    def size(self) -> int:
        return 16 + len(self.payload)


class Wire:
    """One connection. Descriptors received are closed with it."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)
        self.fds: list[int] = []
        self.pages: list[mmap.mmap] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        for page in self.pages:
            page.close()
        for fd in self.fds:
            os.close(fd)

    def send(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), *, msg_id: int = 0, flags: int = 0
    ) -> None:
        """One sendmsg, as every peer does."""
        message = struct.pack("<HHIII", msg_id, command, 16 + len(payload), flags, 0) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self.socket.sendmsg([message], ancillary) == len(message)

    def receive(self) -> Reply:
        """Reads the header with the descriptors, then the payload by one read, as SPDK and QEMU
        do.
        """
        header, fds, _, _ = socket.recv_fds(self.socket, 16, 16)
        self.fds += fds
        assert len(header) == 16
        msg_id, command, size, flags, error = struct.unpack("<HHIII", header)
        assert flags & 0xF == REPLY
        assert (error != 0) == bool(flags & ERROR)
        payload, late, _, _ = socket.recv_fds(self.socket, size - 16, 16) if size > 16 else (b"", [], 0, None)
        self.fds += late
        assert not late, "descriptors have to come with the header"
        assert len(payload) == size - 16
        return Reply(msg_id, command, flags, error, payload, fds)

    def call(self, command: int, payload: bytes = b"", fds: Sequence[int] = (), *, msg_id: int = 0) -> Reply:
        self.send(command, payload, fds, msg_id=msg_id)
        reply = self.receive()
        assert (reply.msg_id, reply.command) == (msg_id, command)
        return reply

    def read(self, region: int, offset: int, count: int) -> bytes:
        asked = struct.pack("<QII", offset, region, count)
        reply = self.call(REGION_READ, asked)
        assert reply.errno == 0
        assert reply.payload[:16] == asked
        assert len(reply.payload) == 16 + count
        return reply.payload[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        head = struct.pack("<QII", offset, region, len(data))
        reply = self.call(REGION_WRITE, head + data)
        assert reply.errno == 0
        assert reply.payload == head, "the reply is the access without its data"

    def get32(self, offset: int) -> int:
        return int.from_bytes(self.read(BAR0, offset, 4), "little")

    def set32(self, offset: int, value: int) -> None:
        self.write(BAR0, offset, value.to_bytes(4, "little"))

    def wait32(self, offset: int, mask: int, value: int) -> None:
        end = time.monotonic() + TIMEOUT
        while self.get32(offset) & mask != value:
            assert time.monotonic() < end, f"register {offset:#x} does not become {value:#x}"

    def region_info(self, index: int, argsz: int, nbytes: int) -> Reply:
        return self.call(REGION_INFO, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0).ljust(nbytes, b"\0"))

    def set_irqs(
        self, flags: int, index: int, start: int, count: int, fds: Sequence[int] = (), data: bytes = b""
    ) -> Reply:
        return self.call(SET_IRQS, struct.pack("<5I", 20 + len(data), flags, index, start, count) + data, fds)

    def map_page(self, fd: int, offset: int, nbytes: int) -> mmap.mmap:
        page = mmap.mmap(fd, nbytes, offset=offset)
        self.pages.append(page)
        return page


class Memory:
    """A memfd that starts at `iova` for the controller; handed out page by page."""

    def __init__(self, iova: int, nbytes: int) -> None:
        self.iova, self.nbytes = iova, nbytes
        self.fd = os.memfd_create("client", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, nbytes)
        self.map = mmap.mmap(self.fd, nbytes)
        self._used = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.map.close()
        os.close(self.fd)

    def alloc(self, nbytes: int) -> int:
        """The offset of zeroed pages."""
        offset = self._used
        self._used += -(-nbytes // 4096) * 4096
        assert self._used <= self.nbytes
        return offset

    def message(self, flags: int = 3, offset: int = 0) -> bytes:
        return struct.pack("<IIQQQ", 32, flags, offset, self.iova, self.nbytes)


def command(opcode: int, *, nsid: int = 0, prp1: int = 0, prp2: int = 0, cdw: dict[int, int] | None = None) -> bytes:
    """64 bytes with CID 0; cdw: command dwords 10 to 15 by number."""
    dwords = [(cdw or {}).get(number, 0) for number in range(10, 16)]
    return struct.pack("<BBHIQQQQ6I", opcode, 0, 0, nsid, 0, 0, prp1, prp2, *dwords)


def store32(memory: mmap.mmap, offset: int, value: int) -> None:
    """One store, as doorbells require: struct writes byte by byte, and the controller may read in
    between.
    """
    memoryview(memory).cast("I")[offset // 4] = value


class Queue:
    """ring: called with the doorbell's offset in BAR0 and its value."""

    def __init__(self, memory: Memory, qid: int, entries: int, ring: Callable[[int, int], None]) -> None:
        self.memory, self.qid, self.entries, self._ring = memory, qid, entries, ring
        self.sq, self.cq = memory.alloc(64 * entries), memory.alloc(16 * entries)
        self.tail = self.head = 0
        self.phase, self._next = 1, 0

    def submit(self, sqe: bytes) -> int:
        """Writes and announces the command; its CID."""
        self._next = cid = self._next + 1 & 0xFFFF
        at = self.sq + 64 * self.tail
        self.memory.map[at : at + 64] = sqe[:2] + cid.to_bytes(2, "little") + sqe[4:]
        self.tail = (self.tail + 1) % self.entries
        self._ring(0x1000 + 8 * self.qid, self.tail)
        return cid

    def completion(self) -> tuple[int, int, int] | None:
        """(CID, status, dword 0) of the next completion, which is consumed, or None."""
        at = self.cq + 16 * self.head
        (word,) = struct.unpack_from("<H", self.memory.map, at + 14)
        if word & 1 != self.phase:
            return None
        result, _, _, sqid, cid, status = struct.unpack_from("<IIHHHH", self.memory.map, at)
        assert sqid == self.qid
        self.head = (self.head + 1) % self.entries
        self.phase ^= self.head == 0
        self._ring(0x1004 + 8 * self.qid, self.head)
        return cid, status >> 1 & 0x7FF, result

    def wait(self) -> tuple[int, int, int]:
        end = time.monotonic() + TIMEOUT
        while (done := self.completion()) is None:
            assert time.monotonic() < end, "no completion"
        return done

    def do(self, sqe: bytes, status: int = 0) -> int:
        """Dword 0 of the completion, which must have that status."""
        cid = self.submit(sqe)
        done = self.wait()
        assert done[0] == cid
        assert done[1] == status, f"status {done[1]:#x}"
        return done[2]


def capabilities(payload: bytes, minor: int = 1) -> dict[str, object]:
    """The JSON of a VERSION reply, checked as all these clients check it."""
    assert struct.unpack_from("<HH", payload) == (0, minor)
    assert payload.endswith(b"\0")
    assert payload.count(b"\0", 4) == 1
    parsed = json.loads(payload[4:-1])
    assert isinstance(parsed["capabilities"], dict)
    return parsed["capabilities"]


def sparse_areas(payload: bytes) -> list[tuple[int, int]]:
    """Walks the capability chain as SPDK and QEMU do: offsets from the start of the region info."""
    flags, _, at = struct.unpack_from("<III", payload, 4)
    assert flags & 8
    while at:
        assert 32 <= at <= len(payload) - 8
        identity, version, following = struct.unpack_from("<HHI", payload, at)
        if identity == 1:
            assert version == 1
            count, _ = struct.unpack_from("<II", payload, at + 8)
            return [struct.unpack_from("<QQ", payload, at + 16 + 16 * i) for i in range(count)]
        at = following
    raise AssertionError("no sparse mmap capability")
