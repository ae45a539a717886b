"""The Persistent Event log and TCG discovery, byte by byte."""

from __future__ import annotations

import struct

import pytest

from nvme_async.spec.persistent import PersistentEventLog, PersistentEventType
from nvme_async.spec.tcg import Discovery0


def event(kind: int, data: bytes, vendor: bytes = b"", ehl: int = 21) -> bytes:
    head = struct.pack("<BBBBHQ6xHH", kind, 1, ehl, 0, 7, 123456, len(vendor), len(vendor) + len(data))
    assert len(head) == 24
    return head + bytes(ehl - 21) + vendor + data


def page(*events: bytes) -> bytes:
    body = b"".join(events)
    head = bytearray(512)
    head[0] = 0x0D
    struct.pack_into("<IQ", head, 4, len(events), 512 + len(body))
    head[16] = 3
    struct.pack_into("<H", head, 18, 492)
    head[56:76] = b"SERIAL".ljust(20)
    struct.pack_into("<H", head, 372, 9)
    head[480] = 0b1000_0010
    return bytes(head) + body


def test_events_of_any_length_and_header() -> None:
    data = page(event(0x07, b"formatted", b"vv"), event(0xDE, b"", ehl=25), event(0x55, b"x"))
    assert PersistentEventLog.length(data) == len(data)
    log = PersistentEventLog.decode(data)
    assert (log.header.sn, log.header.gen_number, log.header.supported) == ("SERIAL", 9, {1, 7})
    first, second, third = log.events
    assert (first.type, first.cntlid, first.timestamp) == (PersistentEventType.FORMAT_START, 7, 123456)
    assert (first.vendor, first.data, first.name) == (b"vv", b"formatted", "Format start")
    assert (second.type, second.data) == (PersistentEventType.VENDOR_SPECIFIC, b"")
    assert third.name == "event 0x55"


@pytest.mark.parametrize("cut", [1, 10, 24, 33])
def test_a_page_that_is_cut_off_is_refused(cut: int) -> None:
    data = page(event(0x07, b"formatted"))
    with pytest.raises(ValueError, match="extends beyond"):
        PersistentEventLog.decode(data[:-cut])


def test_a_wrong_page_is_refused() -> None:
    with pytest.raises(ValueError, match="not a persistent event log page"):
        PersistentEventLog.length(bytes(512))


def discovery(*features: tuple[int, int, bytes]) -> bytes:
    body = b"".join(struct.pack(">HBB", code, version << 4, len(data)) + data for code, version, data in features)
    return struct.pack(">II", 44 + len(body), 1).ljust(48, b"\0") + body


def test_level_0_discovery() -> None:
    data = discovery((0x0001, 1, bytes(12)), (0x0002, 2, bytes([0b0000_0111]) + bytes(11)), (0x4321, 0, b"")) + bytes(
        100
    )
    found = Discovery0.decode(data)
    assert [(feature.name, feature.version) for feature in found.features] == [
        ("TPer", 1),
        ("Locking", 2),
        ("feature 0x4321", 0),
    ]
    assert (found.locking_enabled, found.locked) == (True, True)
    assert not Discovery0.decode(discovery((0x0001, 1, bytes(12)))).locked


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(20), "48 bytes"),
        (discovery((1, 1, bytes(12)))[:-1], "the buffer"),
        (struct.pack(">II", 48, 1).ljust(48, b"\0") + b"\0\1\x10\x20", "extends beyond"),
    ],
)
def test_damaged_discovery(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Discovery0.decode(data)
