"""A made-up drive for comparisons with nvme-cli: the answer to each command is a page of patterned
bytes, in which counts and lengths make sense.

No controller reports all of these pages, so the recordings of nvme-cli's output
(tests/data/nvme-cli-2.13.json) are made from this one, and our command line is tested on it.
"""

from __future__ import annotations

import struct
from typing import Any

Piece = tuple[Any, ...]
INVALID_FIELD = 0x2


def page(nbytes: int, seed: int, *pieces: Piece) -> bytes:
    """A pattern, with (offset, struct format or "raw", values…) put over it."""
    data = bytearray((index * 37 + seed * 11 + 5) & 0xFF for index in range(nbytes))
    for offset, form, *values in pieces:
        packed = values[0] if form == "raw" else struct.pack("<" + form, *values)
        data[offset : offset + len(packed)] = packed
    return bytes(data)


def words(*values: int, size: str = "H", nbytes: int = 4096) -> bytes:
    return struct.pack(f"<{len(values)}{size}", *values).ljust(nbytes, b"\0")


def _controller() -> bytes:
    return page(
        4096,
        1,
        (4, "raw", b"SERIAL-01".ljust(20)),
        (24, "raw", b"A model of a drive".ljust(40)),
        (64, "raw", b"FW 1.0".ljust(8)),
        (77, "B", 0),
        (263, "B", 1),
        (338, "HH", 3, 2),
        (344, "II", 4, 3),
        (516, "I", 16),
        (540, "I", 16),
        (768, "raw", b"nqn.2014-08.org.example:subsystem".ljust(256, b"\0")),
    )


def _namespace(nlbaf: int = 2, nsfeat: int = 0x35) -> bytes:
    return page(4096, 2, (24, "BBB", nsfeat, nlbaf, 1), (82, "B", 1), (384, "raw", b"vendor words\0\0\0\0"))


def _descriptors() -> bytes:
    return (
        bytes([1, 8, 0, 0, *range(1, 9)])
        + bytes([2, 16, 0, 0, *range(16, 32)])
        + bytes([3, 16, 0, 0, *range(32, 48)])
        + bytes([4, 1, 0, 0, 2])
    ).ljust(4096, b"\0")


def _zns_namespace() -> bytes:
    return page(4096, 3, (2816, "QB", 0x1000, 2), (2832, "QB", 0x80000, 0))


IDENTIFY = {
    0x00: _namespace(),
    0x01: _controller(),
    0x02: words(1, 2, 0x10, size="I"),
    0x03: _descriptors(),
    0x04: page(4096, 4, (0, "B", 2)),
    0x05: page(4096, 5),
    0x06: page(4096, 6),
    0x07: words(1, size="I"),
    0x08: page(4096, 8),
    0x09: _namespace(),
    0x0A: page(4096, 10),
    0x10: words(1, 2, 5, 9, size="I"),
    0x11: _namespace(),
    0x12: words(2, 1, 3),
    0x13: words(3, 1, 3, 4),
    0x14: page(4096, 20),
    0x15: page(4096, 21, (0, "B", 2)),
    0x16: page(4096, 22, (4, "B", 1)),
    0x17: struct.pack("<B31x", 0) + page(16, 1).rjust(32, b"\1") + bytes(4032),
    0x18: page(4096, 24, (0, "B", 2)),
    0x19: words(2, 1, 7),
    0x1A: words(4, size="I"),
    0x1C: words(0x1, 0x5, 0, 0x3, size="Q"),
}
BY_COMMAND_SET = {(0x05, 2): _zns_namespace(), (0x06, 2): page(4096, 9)}


def _errors() -> bytes:
    return page(64, 31) + page(64, 32) + bytes(62 * 64)


def _self_test() -> bytes:
    results = [
        page(28, seed, (0, "BBBB", code << 4 | outcome, 3, valid, 0))
        for seed, (code, outcome, valid) in enumerate([(1, 0, 0), (2, 7, 0xF), (1, 2, 3)])
    ]
    unused = page(28, 9, (0, "B", 0xF))
    return bytes([1, 40, 0, 0]) + b"".join(results) + unused * 17


def _ana() -> bytes:
    header = struct.pack("<QH6x", 77, 3)
    groups = [(1, (1, 2), 1), (2, (), 2), (9, (5,), 0xF)]
    body = b"".join(
        struct.pack("<IIQB15x", group, len(nsids), 40 + group, state) + struct.pack(f"<{len(nsids)}I", *nsids)
        for group, nsids, state in groups
    )
    return (header + body).ljust(4096, b"\0")


def _support(mark: int, *entries: int) -> bytes:
    found = [0] * 256
    for entry in entries:
        found[entry] = mark | entry << 16 | 1
    return struct.pack("<256I", *found)


def _effects() -> bytes:
    return _support(0x100, 0, 1, 2, 4, 6, 9, 0xD, 0x80, 0xC1) + _support(2, 0, 1, 2, 5, 8, 9, 0x19, 0xC5) + bytes(2048)


def _event(kind: int, revision: int, body: bytes, vendor: bytes = b"") -> bytes:
    head = struct.pack("<BBBBHQH4xHH", kind, revision, 21, 1, 5, 0x123456789A, 7, len(vendor), len(vendor) + len(body))
    return head + vendor + body


def _persistent() -> bytes:
    events = b"".join(
        (
            _event(1, 1, page(512, 41)),
            _event(2, 1, b"FW1.0   FW2.0   " + page(6, 42)),
            _event(3, 1, struct.pack("<QQ", 1234567, 890)),
            _event(5, 1, struct.pack("<H2x", 4)),
            _event(6, 1, page(48, 46)),
            _event(7, 1, page(12, 47)),
            _event(8, 1, page(16, 48)),
            _event(9, 1, page(12, 49)),
            _event(10, 1, page(8, 50)),
            _event(0xD, 1, struct.pack("<BB2x", 90, 80)),
        )
    )
    header = page(
        512,
        40,
        (0, "B", 0x0D),
        (4, "IQBBH", 10, 512 + len(events), 3, 0, 492),
        (56, "raw", b"SERIAL-01".ljust(20)),
        (76, "raw", b"A model of a drive".ljust(40)),
        (116, "raw", b"nqn.2014-08.org.example:subsystem".ljust(256, b"\0")),
        (480, "raw", bytes([0xFE, 0x3F]) + bytes(29) + bytes([0xC0])),
    )
    return header + events


def _lba_status_log() -> bytes:
    first = struct.pack("<IIB7x", 1, 2, 0x10) + struct.pack("<QI4x", 100, 8) + struct.pack("<QI4x", 900, 1)
    second = struct.pack("<IIB7x", 2, 0xFFFF_FFFF, 0x11)
    body = first + second
    return (struct.pack("<IIIHH", 16 + len(body), 2, 33, 0, 7) + body).ljust(4096, b"\0")


def _phy_eom() -> bytes:
    lane = page(64, 61)
    return page(64, 60, (0, "BBHI", 0x19, 2, 64, 64 + 2 * len(lane)), (10, "B", 0), (20, "IH", len(lane), 2)) + lane * 2


def _capacity() -> bytes:
    channel = struct.pack("<HHHHHH", 1, 2, 11, 1, 12, 2)
    group = struct.pack("<HH12x", 3, 250) + page(32, 63) + page(16, 64)[:0]
    group += struct.pack("<HHH", 2, 5, 6) + struct.pack("<H", 1) + channel
    return (struct.pack("<B15x", 1) + struct.pack("<HHH26x", 7, 2, 1) + group).ljust(4096, b"\0")


def _media_units() -> bytes:
    return (struct.pack("<HHH10x", 2, 3, 4) + page(16, 65) + page(16, 66)).ljust(4096, b"\0")


def _addresses() -> bytes:
    one = struct.pack("<B3x", 1) + b"https://bmc.example".ljust(508, b"\0")
    two = struct.pack("<B3x", 2) + b"192.0.2.7".ljust(508, b"\0")
    return one + two + b"\xff" + bytes(511) + bytes(5 * 512)


def _fdp_configurations() -> bytes:
    def one(seed: int, handles: int) -> bytes:
        size = (64 + 4 * handles + 7) // 8 * 8
        return page(size, seed, (0, "H", size), (8, "H", handles), (3, "B", 0))

    body = one(70, 2) + one(71, 3)
    return struct.pack("<HBBI8x", 1, 0, 0, 16 + len(body)) + body


def _fdp_events() -> bytes:
    events = page(64, 73, (0, "BB", 0, 7)) + page(64, 74, (0, "BB", 0x80, 1), (16, "B", 1))
    return (struct.pack("<I60x", 2) + events).ljust(4096, b"\0")


LOGS = {
    0x00: _support(0, 0, 1, 2, 5, 0x80),
    0x01: _errors(),
    0x02: page(512, 30),
    0x03: bytes([0x21]) + bytes(7) + b"FW 1.0  " + b"FW2\0\0\0\0\0" + bytes(512 - 24),
    0x04: words(1, 2, 0x20, size="I"),
    0x05: _effects(),
    0x06: _self_test(),
    0x09: page(512, 33),
    0x0A: page(512, 34),
    0x0B: words(3, 0, 0, 0, 1, 2, 5),
    0x0C: _ana(),
    0x0D: _persistent(),
    0x0E: _lba_status_log(),
    0x0F: words(2, 0, 0, 0, 4, 6),
    0x10: _media_units(),
    0x11: _capacity(),
    0x12: _support(0x40, 1, 2, 4, 0x0D, 0x78),
    0x13: _support(0x80, 0, 5),
    0x15: bytes([0x15, 0, 0, 0]) + struct.pack("<I8x", 1 << 31 | 1) + page(128 << 10, 35),
    0x16: page(512, 36),
    0x18: _addresses(),
    0x19: _phy_eom(),
    0x1A: struct.pack("<QHH4x", 5, 2, 0)[:16]
    + struct.pack("<IIQ16x", 3, 2, 8)
    + struct.pack("<II", 1, 2)
    + struct.pack("<IIQ16x", 4, 1, 9)
    + struct.pack("<I", 5),
    0x1B: struct.pack("<QH6x", 6, 1) + struct.pack("<IIQB15x", 3, 2, 8, 1) + struct.pack("<II", 1, 2),
    0x1C: words(3, 4, size="I"),
    0x20: _fdp_configurations(),
    0x21: struct.pack("<H6x", 3) + b"".join(struct.pack("<B7x", kind) for kind in (1, 2, 0)),
    0x22: page(64, 72),
    0x23: _fdp_events(),
    0x80: page(16, 37),
    0x81: page(512, 38, (0, "B", 0x81), (10, "H", 3), (38, "H", 0)),
    0xBF: struct.pack("<H6x", 2) + struct.pack("<QQ", 0x400, 0x800) + bytes(4080),
}


def _metadata_descriptor() -> bytes:
    element = b"driver"
    return (struct.pack("<BBBBH", 1, 0, 2, 1, len(element)) + element).ljust(4096, b"\0")


# Completion dword 0, and the data structure.
FEATURES: dict[int, tuple[int, bytes]] = {
    0x01: (0x04030203, b""),
    0x02: (0x21, b""),
    0x04: (0x00410157, b""),
    0x05: (0x10007, b""),
    0x06: (1, b""),
    0x07: (0x003F001F, b""),
    0x08: (0x0A03, b""),
    0x09: (0x10002, b""),
    0x0A: (1, b""),
    0x0B: (0x8800_0F1F, b""),
    0x0C: (1, struct.pack("<32Q", *(index << 8 | 3 << 3 for index in range(32)))),
    0x0D: (0x5, struct.pack("<IIII", 64, 0x1000, 2, 4).ljust(4096, b"\0")),
    0x0F: (30000, b""),
    0x10: (0x0141_0150, b""),
    0x11: (1, b""),
    0x12: (4, b""),
    0x13: (1, words(3, nbytes=32) + struct.pack("<QQQ", 7, 8, 9) + bytes(512 - 56)),
    0x14: (2, b""),
    0x15: (0x00100020, b""),
    0x16: (0, bytes([1, 0, 1, 0, 0xC]) + bytes(507)),
    0x17: (1, b""),
    0x18: (0x70003, b""),
    0x19: (1, b""),
    0x1A: (1, b""),
    0x1D: (0x301, b""),
    0x1E: (2, bytes([0, 1, 0x80, 0])),
    0x80: (0x55, b""),
    0x82: (0xA, b""),
    0x83: (1, b""),
    0x84: (1, b""),
}
PROPERTIES = {
    0x00: 0x1859_0030_1E01_07FF,
    0x08: 0x20100,
    0x14: 0x00460001,
    0x1C: 0x1,
    0x20: 0,
    0x24: 0x1F001F,
    0x28: 0x1234_5000,
    0x30: 0x1234_6000,
    0x38: 0x102,
    0x3C: 0x1021D,
    0x64: 0,
    0x68: 0x00140028,
}
RESERVATIONS = struct.pack("<IBHHB14x", 9, 1, 1, 0, 1)[:24] + page(24, 80) + bytes(4048)
RESERVATIONS_EXTENDED = struct.pack("<IBHHB14x", 9, 1, 1, 0, 1)[:24].ljust(64, b"\0") + page(64, 81) + bytes(3968)


def _zones(start: int) -> bytes:
    zones = [
        page(64, 90 + index, (0, "BBBB", 2, state << 4, 0, 0), (8, "QQQ", 0xC00, index * 0x1000, index * 0x1000 + 5))
        for index, state in enumerate((1, 2, 3, 4, 0xD, 0xE, 0xF))
        if (index + 1) * 0x1000 > start
    ]
    return struct.pack("<Q56x", len(zones)) + b"".join(zones)


DIRECTIVES = {(0, 1): bytes([7]) + bytes(31) + bytes([3]) + bytes(31) + bytes([1]) + bytes(4031), (1, 1): page(32, 85)}
RUH_STATUS = struct.pack("<14xH", 2) + page(32, 75) + page(32, 76)
LBA_STATUS = (
    struct.pack("<IBBBB", 2, 0, 0, 2, 0)[:8] + struct.pack("<QIBB2x", 7, 3, 0, 1) + struct.pack("<QIBB2x", 99, 1, 0, 2)
)


def answer(admin: bool, opcode: int, nsid: int, dwords: dict[str, int], nbytes: int) -> tuple[int, int, bytes]:
    """(status, 64-bit result, data) of a command."""
    status, result, data = _answer(admin, opcode, nsid, dwords)
    return status, result, data[:nbytes].ljust(nbytes, b"\0") if not status else b""


def _answer(admin: bool, opcode: int, nsid: int, dwords: dict[str, int]) -> tuple[int, int, bytes]:
    low = dwords["cdw10"] & 0xFF
    if admin and opcode == 0x06:
        found = BY_COMMAND_SET.get((low, dwords["cdw11"] >> 24)) or IDENTIFY.get(low)
        return (0, 0, found) if found is not None else (INVALID_FIELD, 0, b"")
    if admin and opcode == 0x02:
        offset = dwords["cdw12"] | dwords["cdw13"] << 32
        return (0, 0, LOGS[low][offset:]) if low in LOGS else (0x109, 0, b"")
    if admin and opcode == 0x0A and low in FEATURES:
        if dwords["cdw10"] >> 8 & 7 == 3:
            return 0, 5, b""
        return 0, *FEATURES[low]
    if admin and opcode == 0x7F and nsid & 0xFF == 4:
        return (0, PROPERTIES[dwords["cdw11"]], b"") if dwords["cdw11"] in PROPERTIES else (INVALID_FIELD, 0, b"")
    if admin and opcode == 0x1A:
        kind = (dwords["cdw11"] >> 8 & 0xFF, dwords["cdw11"] & 0xFF)
        return (0, 0, DIRECTIVES[kind]) if kind in DIRECTIVES else (INVALID_FIELD, 0, b"")
    if admin and opcode == 0x86:
        return 0, 0, LBA_STATUS
    if not admin and opcode == 0x0E:
        return 0, 0, RESERVATIONS_EXTENDED if dwords["cdw11"] & 1 else RESERVATIONS
    if not admin and opcode == 0x7A:
        return 0, 0, _zones(dwords["cdw10"])
    if not admin and opcode == 0x12:
        return 0, 0, RUH_STATUS
    return 0x1, 0, b""
