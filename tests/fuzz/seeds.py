"""Inputs that the fuzz targets in C begin with: what a peer that keeps to the protocol sends."""

from __future__ import annotations

import struct
from itertools import pairwise


def record(command: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """A message as fuzz_server.c reads it."""
    return struct.pack("<BBH", command, flags, len(payload)) + payload


def server() -> list[bytes]:
    map_dma = record(2, struct.pack("<IIQQQ", 32, 3, 0, 1 << 32, 1 << 20), 2)
    unmap = record(3, struct.pack("<IIQQ", 24, 0, 1 << 32, 1 << 20))
    irqs = record(8, struct.pack("<IIIII", 20, 0b100100, 2, 0, 1), 4)
    whole = [
        [record(4, struct.pack("<IIII", 16, 0, 0, 0))],
        [record(5, struct.pack("<IIIIQQ", 64, 0, index, 0, 0, 0) + bytes(32)) for index in (0, 4, 7)],
        [record(6, struct.pack("<IIII", 256, 0, 0, 8)), record(7, struct.pack("<IIII", 16, 0, 2, 0))],
        [map_dma, unmap, record(3, struct.pack("<IIQQ", 24, 2, 0, 0))],
        [irqs, record(8, struct.pack("<IIIII", 20, 0b100001, 2, 0, 0))],
        [
            record(9, struct.pack("<QII", offset, region, width))
            for offset, region, width in [(0, 0, 8), (28, 0, 4), (0, 7, 64)]
        ],
        [
            map_dma,
            irqs,
            register(0x24, 4, 0x000F000F),
            register(0x28, 8, 1 << 32),
            register(0x30, 8, (1 << 32) + 4096),
            register(0x14, 4, 0x00460001),
            record(10, struct.pack("<QII", 0x1000, 0, 4) + struct.pack("<I", 1)),
            record(9, struct.pack("<QII", 0x1C, 0, 4)),
        ],
        [record(15, struct.pack("<Q", 1) + struct.pack("<QIIQ", 0x14, 0, 4, 0))],
        [record(13), record(16, struct.pack("<II", 8, 0x20000))],
        [record(1, struct.pack("<HHHHIIHH", 0, 1, 36, 0, 0, 0, 0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0', 1)],
    ]
    return [b"".join(messages) for messages in whole]


def register(offset: int, width: int, value: int) -> bytes:
    return record(10, struct.pack("<QII", offset, 0, width) + value.to_bytes(width, "little"))


def pdu(kind: int, header: bytes, data: bytes = b"", flags: int = 0) -> bytes:
    hlen = 8 + len(header)
    return struct.pack("<BBBBI", kind, flags, hlen, hlen if data else 0, hlen + len(data)) + header + data


def link() -> list[bytes]:
    """Command ids: 16, 1, 2 and 3, in the order of fuzz_link.c."""

    def data(cid: int, offset: int, nbytes: int, flags: int) -> bytes:
        return pdu(7, struct.pack("<HHIII", cid, 0, offset, nbytes, 0), bytes(nbytes), flags)

    def response(cid: int, status: int = 0) -> bytes:
        return pdu(5, struct.pack("<IIHHHH", 0, 0, 1, 1, cid, status << 1))

    def r2t(cid: int, offset: int, nbytes: int) -> bytes:
        return pdu(9, struct.pack("<HHIII", cid, 7, offset, nbytes, 0))

    everything = [data(16, 0, 512, 4), response(16), r2t(2, 0, 8192), r2t(2, 8192, 4096), response(2), response(3)]
    everything += [data(1, at, 8192, 12 if at == 57344 else 0) for at in range(0, 65536, 8192)]
    parts = [[one] for one in everything[:6]] + [list(pair) for pair in pairwise(everything[:6])] + [everything]
    parts.append([pdu(3, struct.pack("<HI10x", 1, 0), b"wrong")])
    return [bytes([how]) + b"".join(part) for part in parts for how in (0x28, 0x0C)]


def target() -> list[bytes]:
    hello = pdu(0, struct.pack("<HBBI", 0, 0, 0, 0) + bytes(112))
    ours, subsystem = b"nqn.2014-08.org.nvmexpress:uuid:fuzz", b"nqn.2024-01.test:fuzz"

    def command(sqe: bytes, data: bytes = b"") -> bytes:
        return pdu(4, sqe.ljust(64, b"\0"), data)

    def fabrics(kind: int, cid: int, rest: bytes, nbytes: int = 0) -> bytes:
        sgl = struct.pack("<QI3xB", 0, nbytes, 1)
        return struct.pack("<BBHB19x", 0x7F, 0x40, cid, kind) + sgl + rest

    def identify(cid: int, cns: int) -> bytes:
        return struct.pack("<BBHI16x", 6, 0x40, cid, 0) + struct.pack("<QI3xBI", 0, 4096, 0x5A, cns)

    connect = bytes(16) + struct.pack("<H", 0xFFFF) + bytes(238) + subsystem.ljust(256, b"\0") + ours.ljust(256, b"\0")
    connect = command(fabrics(1, 1, struct.pack("<HHHBBI", 0, 0, 31, 0, 0, 0), 1024), connect.ljust(1024, b"\0"))
    set_property = command(fabrics(0, 2, struct.pack("<B3xIQ", 0, 0x14, 0x460001)))
    get_property = command(fabrics(4, 3, struct.pack("<B3xI", 1, 0)))
    whole = [
        [hello],
        [hello, connect],
        [hello, connect, get_property, set_property],
        [hello, connect, set_property, command(identify(4, 1)), command(identify(5, 2))],
        [hello, pdu(2, struct.pack("<HI10x", 1, 0), b"wrong")],
        [hello, connect, pdu(6, struct.pack("<HHIII", 1, 0, 0, 512, 0), bytes(512), 4)],
    ]
    return [b"".join(messages) for messages in whole]


def rings() -> list[bytes]:
    """Changes to the header's positions, to trackers and to completions."""

    def change(*records: tuple[int, int]) -> bytes:
        return b"".join(struct.pack("<IQ", offset, value) for offset, value in records)

    header = [
        (0, 0),
        (8, 2),
        (12, 1 << 20),
        (16, 15),
        (128, 7),
        (136, 9),
        (144, 9),
        (152, 3),
        (160, 5),
        (168, 1),
        (56, 128),
    ]
    trackers = [
        (0x3000 + 128 * slot + offset, value)
        for slot in (0, 3)
        for offset in (0, 64, 72, 88, 96, 100)
        for value in (0, 2, ~0 % 2**64)
    ]
    return [
        b"",
        *(change(one) for one in header + trackers),
        change((128, 6), (136, 6)),
        change((0x2000 + 24, 1 << 48)),
    ]


TARGETS = {"server": server, "link": link, "target": target, "rings": rings}
