"""A vfio-user server that follows a script, for behaviour that no real server shows on request.

It plays a small NVMe function: 32 registers of memory, configuration space, a doorbell page.
`override` maps a command to a function (server, message) -> None that answers instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable

import attrs

from nvme_async.device.vfio_user import VfioUserDevice

HEADER = struct.Struct("<HHIII")
(
    VERSION,
    DMA_MAP,
    DMA_UNMAP,
    GET_INFO,
    REGION_INFO,
    IO_FDS,
    IRQ_INFO,
    SET_IRQS,
    REGION_READ,
    REGION_WRITE,
    DMA_READ,
    DMA_WRITE,
    RESET,
) = range(1, 14)
REPLY, ERROR = 1, 0x20
BAR0_SIZE = 0x2000
MSIX_CAPABILITY = 0x50


@attrs.frozen
class Message:
    msg_id: int
    command: int
    payload: bytes
    fds: list[int]


Answer = Callable[["FakeServer", Message], None]


class FakeServer:
    """Serves one end of a socket pair in a thread; `client` is the other end."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        if sock is None:
            self.client, sock = socket.socketpair()
        self.sock = sock
        self.override: dict[int, Answer] = {}
        self.version_json: bytes | None = b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}\0'
        self.n_vectors = 9
        self.mappable = True
        self.io_fds = True
        self.region_offset = 0
        self.masked: set[int] | None = None  # vectors, for a server that respects its MSI-X table's mask bits
        self.requests: list[Message] = []
        self.mappings: dict[int, tuple[int, int, int]] = {}
        self.vectors: dict[int, tuple[int, int]] = {}
        self.registers = bytearray(0x1000)
        self.page = os.memfd_create("bar0")
        os.truncate(self.page, BAR0_SIZE)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.config = bytearray(256)
        struct.pack_into("<HHHHBBBB", self.config, 0, 0x1B36, 0x0010, 0, 0x10, 2, 0x02, 0x08, 0x01)
        struct.pack_into("<HH", self.config, 0x2C, 0x1AF4, 0x1100)
        self.config[0x34] = 0x40
        self.config[0x40:0x42] = bytes([0x01, MSIX_CAPABILITY])
        self.config[MSIX_CAPABILITY : MSIX_CAPABILITY + 2] = bytes([0x11, 0])
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> FakeServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self.thread.join(10)
        assert not self.thread.is_alive()
        for message in self.requests:
            for fd in message.fds:
                os.close(fd)
        os.close(self.page)
        os.close(self.kick)
        self.sock.close()
        if hasattr(self, "client"):
            self.client.close()
        if self.failure is not None:
            raise self.failure

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def commands(self) -> list[int]:
        return [message.command for message in self.requests]

    def last(self, command: int) -> Message:
        return [message for message in self.requests if message.command == command][-1]

    # --- answering

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        self.sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)

    def message(self, request: Message, payload: bytes = b"", *, flags: int = REPLY, error: int = 0) -> bytes:
        return HEADER.pack(request.msg_id, request.command, 16 + len(payload), flags, error) + payload

    def reply(self, request: Message, payload: bytes = b"", fds: list[int] | None = None) -> None:
        self.send(self.message(request, payload), fds)

    def refuse(self, request: Message, error: int) -> None:
        self.send(self.message(request, flags=REPLY | ERROR, error=error))

    # --- serving

    def _serve(self) -> None:
        try:
            while (message := self._receive()) is not None:
                self.requests.append(message)
                self.override.get(message.command, FakeServer.answer)(self, message)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except BaseException as error:
            self.failure = error
            self.hang_up()

    def _receive(self) -> Message | None:
        """One sendmsg of the client is one recvmsg here, as peers expect it."""
        try:
            header = self.sock.recv(HEADER.size, socket.MSG_PEEK)
            if not header:
                return None
            data, fds, _, _ = socket.recv_fds(self.sock, HEADER.unpack(header)[2], 64)
        except OSError:
            return None
        msg_id, command, size, flags, error = HEADER.unpack_from(data)
        if flags & 0xF == REPLY:
            return Message(msg_id, -command, data[16:], fds)
        assert (size, flags, error) == (len(data), 0, 0), "a whole message, in one piece"
        return Message(msg_id, command, data[16:], fds)

    def answer(self, message: Message) -> None:
        handlers = {
            VERSION: self._version,
            DMA_MAP: self._dma_map,
            DMA_UNMAP: self._dma_unmap,
            GET_INFO: lambda m: self.reply(m, struct.pack("<IIII", 16, 3, 9, 5)),
            REGION_INFO: self._region_info,
            IO_FDS: self._io_fds,
            IRQ_INFO: lambda m: self.reply(m, struct.pack("<IIII", 16, 1, 2, self.n_vectors)),
            SET_IRQS: self._set_irqs,
            REGION_READ: self._region_read,
            REGION_WRITE: self._region_write,
            RESET: self.reply,
        }
        handler = handlers.get(message.command)
        if handler is None:
            self.refuse(message, errno.EINVAL)
        else:
            handler(message)

    def _version(self, message: Message) -> None:
        assert struct.unpack_from("<HH", message.payload) == (0, 1)
        assert message.payload.endswith(b"}\0")
        self.reply(message, struct.pack("<HH", 0, 1) + (self.version_json or b""))

    def _dma_map(self, message: Message) -> None:
        argsz, flags, offset, address, size = struct.unpack("<IIQQQ", message.payload)
        assert (argsz, flags, len(message.fds)) == (32, 3, 1)
        if address in self.mappings:
            self.refuse(message, errno.EEXIST)
        else:
            self.mappings[address] = (size, offset, os.fstat(message.fds[0]).st_ino)
            self.reply(message)

    def _dma_unmap(self, message: Message) -> None:
        argsz, flags, address, size = struct.unpack("<IIQQ", message.payload)
        assert (argsz, flags) == (24, 0)
        if self.mappings.get(address, (0,))[0] != size:
            self.refuse(message, errno.ENOENT)
        else:
            del self.mappings[address]
            self.reply(message, message.payload)

    def _region_info(self, message: Message) -> None:
        argsz, _, index, _, _, _ = struct.unpack("<IIIIQQ", message.payload)
        assert argsz >= 32
        if index != 0:
            self.reply(message, struct.pack("<IIIIQQ", 32, 3, index, 0, 0x100, 0))
        elif not self.mappable:
            self.reply(message, struct.pack("<IIIIQQ", 32, 3, 0, 0, BAR0_SIZE, 0))
        elif argsz < 64:
            self.reply(message, struct.pack("<IIIIQQ", 64, 0xF, 0, 0, BAR0_SIZE, 0))
        else:
            sparse = struct.pack("<HHIIIQQ", 1, 1, 0, 1, 0, 0x1000, 0x1000)
            info = struct.pack("<IIIIQQ", 64, 0xF, 0, 32, BAR0_SIZE, self.region_offset)
            self.reply(message, info + sparse, [self.page])

    def _io_fds(self, message: Message) -> None:
        argsz, flags, index, count = struct.unpack("<IIII", message.payload)
        assert (flags, index, count) == (0, 0, 0)
        if not self.io_fds:
            self.refuse(message, errno.EINVAL)
        elif argsz < 56:
            self.reply(message, struct.pack("<IIII", 56, 0, 0, 1))
        else:
            entry = struct.pack("<QQIIIIQ", 0x1000, 0, 0, 0, 0, 0, 0)
            self.reply(message, struct.pack("<IIII", 56, 0, 0, 1) + entry, [self.kick])

    def _set_irqs(self, message: Message) -> None:
        argsz, flags, index, start, count = struct.unpack("<IIIII", message.payload)
        assert (argsz, index) == (20, 2)
        if flags == 0x21:
            assert (start, count, message.fds) == (0, 0, [])
            self.vectors.clear()
        elif flags == 0x11:
            assert not message.fds
            if self.masked is None:
                self.refuse(message, errno.EINVAL)
                return
            self.masked.difference_update(range(start, start + count))
        else:
            assert flags == 0x24
            assert len(message.fds) in (0, count)
            for vector in range(start, start + count):
                self.vectors.pop(vector, None)
            for vector, fd in enumerate(message.fds, start):
                self.vectors[vector] = (fd, os.fstat(fd).st_ino)
        self.reply(message)

    def _memory(self, region: int) -> bytearray:
        return {0: self.registers, 7: self.config}[region]

    def _region_read(self, message: Message) -> None:
        offset, region, count = struct.unpack("<QII", message.payload)
        assert count in (4, 8)
        self.reply(message, message.payload + self._memory(region)[offset : offset + count])

    def _region_write(self, message: Message) -> None:
        offset, region, count = struct.unpack_from("<QII", message.payload)
        data = message.payload[16:]
        assert count == len(data)
        assert count in ((4, 8) if region == 0 else (2, 4))
        self._memory(region)[offset : offset + count] = data
        self.reply(message, struct.pack("<QII", offset, region, count))


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def attach(server: FakeServer, timeout: float = 10.0) -> VfioUserDevice:
    """`timeout` applies from then on, so that the bring-up doesn't fail on a busy machine."""
    device = VfioUserDevice.from_socket(server.client)
    device._channel.timeout = timeout
    return device
