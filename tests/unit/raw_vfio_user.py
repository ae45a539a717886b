"""A minimal vfio-user client for tests of the server: nothing here comes from the package."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
import struct
import time

import pytest

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, REGION_IO_FDS, IRQ_INFO, SET_IRQS = range(1, 9)
REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET, WRITE_MULTI, FEATURE = 9, 10, 11, 12, 13, 15, 16

HEADER = struct.Struct("<HHIII")
NO_REPLY, ERROR = 0x10, 0x20
BAR0, MSIX_BAR, CONFIG = 0, 4, 7
CC, CSTS, AQA, ASQ, ACQ = 0x14, 0x1C, 0x24, 0x28, 0x30
SQ0_TAIL, CQ0_HEAD = 0x1000, 0x1004


class Refused(Exception):
    """An error reply; errno is its code."""

    def __init__(self, errno: int) -> None:
        super().__init__(os.strerror(errno))
        self.errno = errno


class RawClient:
    """Owns its socket and the descriptors that it received."""

    def __init__(self, sock: socket.socket, *, handshake: bool = True) -> None:
        self.sock = sock
        self.sock.settimeout(10)
        self.msg_id = 0
        self.received: list[int] = []
        self.exits = contextlib.ExitStack()
        if handshake:
            self.version()

    @classmethod
    def dial(cls, path: str, *, handshake: bool = True) -> RawClient:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(10)
        try:
            sock.connect(path)
            return cls(sock, handshake=handshake)
        except BaseException:
            sock.close()
            raise

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()
        for fd in self.received:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.received.clear()
        self.exits.close()

    def send(self, command: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0) -> None:
        header = HEADER.pack(self.msg_id, command, HEADER.size + len(payload), flags, 0)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([header + payload], ancillary)
        if sent < len(header + payload):
            self.sock.sendall((header + payload)[sent:])  # more than the socket's buffer holds

    def _exactly(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            more, fds, _, _ = socket.recv_fds(self.sock, nbytes - len(data), 16)
            self.received += fds
            if not more:
                raise ConnectionError("closed by the server")
            data += more
        return data

    def receive(self) -> tuple[int, int, int, int, bytes]:
        """(msg_id, command, flags, error, payload) of one message."""
        msg_id, command, size, flags, error = HEADER.unpack(self._exactly(HEADER.size))
        return msg_id, command, flags, error, self._exactly(size - HEADER.size)

    def call(self, command: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> bytes:
        self.msg_id = self.msg_id + 1 & 0xFFFF
        self.send(command, payload, fds)
        msg_id, answered, flags, error, answer = self.receive()
        assert (msg_id, answered, flags & 0xF) == (self.msg_id, command, 1)
        if flags & ERROR:
            assert answer == b""
            raise Refused(error)
        assert error == 0
        return answer

    def closed_by_peer(self, timeout: float = 5.0) -> bool:
        """Whether the server closes the connection within that time; its remaining output is
        discarded.
        """
        self.sock.settimeout(timeout)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def version(self, json: bytes = b"") -> bytes:
        return self.call(VERSION, struct.pack("<HH", 0, 1) + json)

    def region_info(self, index: int, argsz: int = 32, pad: int = 32) -> bytes:
        return self.call(REGION_INFO, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0).ljust(pad, b"\0"))

    def read(self, region: int, offset: int, count: int) -> bytes:
        answer = self.call(REGION_READ, struct.pack("<QII", offset, region, count))
        assert answer[:16] == struct.pack("<QII", offset, region, count)
        assert len(answer) == 16 + count
        return answer[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        head = struct.pack("<QII", offset, region, len(data))
        assert self.call(REGION_WRITE, head + data) == head

    def reg32(self, offset: int, value: int | None = None) -> int:
        if value is None:
            return int.from_bytes(self.read(BAR0, offset, 4), "little")
        self.write(BAR0, offset, value.to_bytes(4, "little"))
        return value

    def reg64(self, offset: int, value: int | None = None) -> int:
        if value is None:
            return int.from_bytes(self.read(BAR0, offset, 8), "little")
        self.write(BAR0, offset, value.to_bytes(8, "little"))
        return value

    def dma_map(self, iova: int, nbytes: int, fd: int | None, *, offset: int = 0, flags: int = 3) -> None:
        payload = struct.pack("<IIQQQ", 32, flags, offset, iova, nbytes)
        assert self.call(DMA_MAP, payload, () if fd is None else (fd,)) == b""

    def dma_unmap(self, iova: int, nbytes: int, flags: int = 0) -> bytes:
        return self.call(DMA_UNMAP, struct.pack("<IIQQ", 24, flags, iova, nbytes))

    def set_irqs(
        self, index: int, start: int, count: int, flags: int, *, data: bytes = b"", fds: tuple[int, ...] = ()
    ) -> None:
        payload = struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data
        assert self.call(SET_IRQS, payload, fds) == b""

    def doorbell_page(self) -> mmap.mmap:
        """The doorbells, mapped as the sparse area of BAR0 requires."""
        before = len(self.received)
        info = self.region_info(BAR0, argsz=64)
        offset, size = struct.unpack_from("<QQ", info, 48)
        (region_offset,) = struct.unpack_from("<Q", info, 24)
        (fd,) = self.received[before:]
        page = mmap.mmap(fd, size, offset=region_offset + offset)
        self.exits.callback(page.close)
        return page

    def kick_fd(self) -> int:
        before = len(self.received)
        self.call(REGION_IO_FDS, struct.pack("<IIII", 56, 0, BAR0, 0))
        (fd,) = self.received[before:]
        return fd


class Admin:
    """A controller brought up over a RawClient with only an admin queue pair; one command at a
    time.

    ring: how the doorbell is rung: "message", "page" (a silent store) or "kick" (store, then the
        eventfd).
    """

    IOVA = 0x10_0000_0000
    ENTRIES = 16

    def __init__(self, client: RawClient, ring: str = "message") -> None:
        self.client = client
        self.fd = os.memfd_create("admin", os.MFD_CLOEXEC)
        client.exits.callback(os.close, self.fd)
        os.ftruncate(self.fd, 16 * 4096)
        self.memory = mmap.mmap(self.fd, 16 * 4096)
        client.exits.callback(self.memory.close)
        self.page = client.doorbell_page() if ring != "message" else None
        self.kick = client.kick_fd() if ring == "kick" else -1
        client.dma_map(self.IOVA, len(self.memory), self.fd)
        self.interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        client.exits.callback(os.close, self.interrupt)
        client.set_irqs(2, 0, 1, 0x24, fds=(self.interrupt,))
        client.write(CONFIG, 4, (0x406).to_bytes(2, "little"))
        self.enable()

    def enable(self) -> None:
        client = self.client
        client.reg32(CC, 0)
        self.wait_ready(0)
        self.memory[0 : 2 * 4096] = bytes(2 * 4096)
        self.tail = self.head = 0
        self.phase = 1
        self.cid = 0
        client.reg32(AQA, (self.ENTRIES - 1) << 16 | (self.ENTRIES - 1))
        client.reg64(ASQ, self.IOVA)
        client.reg64(ACQ, self.IOVA + 4096)
        client.reg32(CC, 6 << 16 | 4 << 20 | 1)
        self.wait_ready(1)

    def wait_ready(self, ready: int) -> None:
        end = time.monotonic() + 10
        while self.client.reg32(CSTS) & 1 != ready:
            assert time.monotonic() < end, "CSTS.RDY does not follow"
            time.sleep(0.001)

    def submit(self, opcode: int, *, nsid: int = 0, prp1: int = 0, cdw10: int = 0, cdw11: int = 0) -> None:
        self.cid = self.cid + 1 & 0x7FFF
        sqe = struct.pack("<BBHIQQQQIIIIII", opcode, 0, self.cid, nsid, 0, 0, prp1, 0, cdw10, cdw11, 0, 0, 0, 0)
        self.memory[64 * self.tail : 64 * self.tail + 64] = sqe
        self.tail = (self.tail + 1) % self.ENTRIES
        self._ring(SQ0_TAIL, self.tail)

    def _ring(self, doorbell: int, value: int) -> None:
        if self.page is None:
            self.client.reg32(doorbell, value)
            return
        self.page[doorbell - 0x1000 : doorbell - 0xFFC] = value.to_bytes(4, "little")
        if self.kick >= 0:
            os.eventfd_write(self.kick, 1)

    def completion(self) -> tuple[int, int] | None:
        """(dw0, status without phase) of the next completion, if there is one."""
        at = 4096 + 16 * self.head
        (status,) = struct.unpack_from("<H", self.memory, at + 14)
        if status & 1 != self.phase:
            return None
        # The rest is read only now: read at the same time as the phase it might belong to the
        # previous entry.
        dw0, _, _, _, cid, status = struct.unpack_from("<IIHHHH", self.memory, at)
        assert cid == self.cid
        self.head += 1
        if self.head == self.ENTRIES:
            self.head, self.phase = 0, self.phase ^ 1
        self._ring(CQ0_HEAD, self.head)
        return dw0, status >> 1

    def wait(self, timeout: float = 10.0) -> tuple[int, int]:
        end = time.monotonic() + timeout
        while (done := self.completion()) is None:
            left = end - time.monotonic()
            assert left > 0, "no completion"
            if select.select([self.interrupt], [], [], min(left, 0.05))[0]:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.interrupt)
        return done

    def command(self, opcode: int, **fields: int) -> tuple[int, int]:
        self.submit(opcode, **fields)
        return self.wait()

    def identify(self) -> bytes:
        """Identify Controller, 4096 bytes."""
        assert self.command(0x06, prp1=self.IOVA + 8192, cdw10=1)[1] == 0
        return self.memory[8192 : 8192 + 4096]


MSIX, INTX, MSI, ERR = 2, 0, 1, 3
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32


@contextlib.contextmanager
def eventfds(n):
    fds = tuple(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(n))
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def count(fd):
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@contextlib.contextmanager
def refused_with(code):
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.errno == code
