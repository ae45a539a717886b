"""Completions, asynchronous events and status codes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_async import errors
from nvme_async.spec.completion import AsyncEvent, AsyncEventType, Completion, NoticeEvent
from nvme_async.spec.status import (
    CommandSpecificStatus,
    GenericStatus,
    MediaStatus,
    PathStatus,
    StatusCode,
    status_code,
    status_text,
)


def test_an_entry_byte_by_byte() -> None:
    # dw0 01020304h, dw1 0, sqhd 5, sqid 1, cid 1234h, DW3 31:16 = DNR, more, CRD 2, SCT 2, SC 81h,
    # phase 1
    status = 1 << 14 | 1 << 13 | 2 << 11 | 2 << 8 | 0x81
    entry = bytes.fromhex("0403020100000000050001003412") + (status << 1 | 1).to_bytes(2, "little")
    completion = Completion.unpack(entry)
    assert completion == Completion(0x01020304, 0, 5, 1, 0x1234, status, True)
    assert (completion.sct, completion.sc, completion.crd) == (2, 0x81, 2)
    assert completion.dnr
    assert completion.more
    assert not completion.ok
    assert completion.code is MediaStatus.UNRECOVERED_READ_ERROR
    assert completion.text == "Unrecovered Read Error"
    assert completion.pack() == entry


def test_success() -> None:
    completion = Completion(dw0=2, dw1=1)
    assert completion.ok
    assert completion.code is GenericStatus.SUCCESS
    assert completion.result == 0x1_0000_0002


def test_wrong_size() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        Completion.unpack(bytes(15))


@given(st.binary(min_size=16, max_size=16))
def test_any_entry_survives(entry: bytes) -> None:
    assert Completion.unpack(entry).pack() == entry


@given(st.integers(0, 0x7FFF))
def test_exceptions_read_the_status_alike(status: int) -> None:
    completion = Completion(status=status)
    error = errors.command_error(status, text=completion.text)
    assert (error.sct, error.sc, error.crd) == (completion.sct, completion.sc, completion.crd)
    assert (error.dnr, error.more) == (completion.dnr, completion.more)


@pytest.mark.parametrize(
    ("sct", "sc", "text"),
    [
        (0, 0x00, "Successful Completion"),
        (0, 0x0B, "Invalid Namespace or Format"),
        (0, 0x80, "LBA Out of Range"),
        (1, 0x01, "Invalid Queue Identifier"),
        (1, 0x05, "Asynchronous Event Request Limit Exceeded"),
        (1, 0xBC, "Zone Invalid Write"),
        (2, 0x85, "Compare Failure"),
        (3, 0x71, "Command Aborted By Host"),
        (0, 0x17, "Unknown status (sct 0x0, sc 0x17)"),
        (7, 0x01, "Vendor specific status (sct 0x7, sc 0x01)"),
        (2, 0xC1, "Vendor specific status (sct 0x2, sc 0xc1)"),
    ],
)
def test_texts(sct: int, sc: int, text: str) -> None:
    assert status_text(sct, sc) == text


@pytest.mark.parametrize("codes", [GenericStatus, CommandSpecificStatus, MediaStatus, PathStatus])
def test_codes_and_texts_are_unique(codes: type[StatusCode]) -> None:
    assert len({int(code) for code in codes}) == len({code.text for code in codes}) == len(codes.__members__)


def test_numbers_have_a_member() -> None:
    assert status_code(1, 0x02) is CommandSpecificStatus.INVALID_QUEUE_SIZE
    assert status_code(6, 0) is None
    assert GenericStatus(0x82) is GenericStatus.NAMESPACE_NOT_READY


def test_async_event() -> None:
    event = AsyncEvent.from_dw0(0x0004_0002)  # changed namespace list
    assert event == AsyncEvent(type=AsyncEventType.NOTICE, info=NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, lid=4)
    assert event.name == "namespace attribute changed"
    assert event.to_dw0() == 0x0004_0002
    assert AsyncEvent.from_dw0(0x00C0_1107).name == "asynchronous event type 0x7 information 0x11"
    assert AsyncEvent.from_dw0(0x0002_0101, 9).parameter == 9
