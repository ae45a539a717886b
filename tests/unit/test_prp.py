"""PRP construction against a slow model that walks lists as NVMe Base 2.0, 4.1.1 requires."""

import struct

import probing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

probe = probing.load()
build_prp, list_bytes = probe.build_prp, probe.list_bytes

PAGE = 4096
POISON = 0xDEADBEEFDEADBEEF


def walk(prp1, prp2, nbytes, memory, list_iova):
    """Pieces (iova, length) as a controller finds them."""
    first = min(nbytes, PAGE - prp1 % PAGE)
    pieces, left = [(prp1, first)], nbytes - first
    if left == 0:
        return pieces
    if left <= PAGE:
        assert prp2 % PAGE == 0
        return [*pieces, (prp2, left)]
    at = prp2
    assert at % 8 == 0
    while left:
        (entry,) = struct.unpack_from("<Q", memory, at - list_iova)
        assert entry != POISON
        if at % PAGE == PAGE - 8 and left > PAGE:
            at = entry
            continue
        assert entry % PAGE == 0, "entries after the first carry no offset"
        pieces.append((entry, min(left, PAGE)))
        left -= pieces[-1][1]
        at += 8
    return pieces


@settings(max_examples=400, deadline=None)
@given(
    page=st.integers(0, (1 << 52) - 1 - (1 << 16)),
    offset=st.integers(0, PAGE // 4 - 1).map(lambda dword: dword * 4),
    nbytes=st.one_of(st.integers(1, 5 * PAGE), st.integers(1, 16 << 20)),
    list_start=st.integers(0, PAGE // 8 - 1).map(lambda qword: qword * 8),
)
def test_a_controller_finds_exactly_the_pages_in_order(page, offset, nbytes, list_start):
    iova = page * PAGE + offset
    list_iova = 0x7000_0000 + list_start
    memory = bytearray(((16 << 20) // PAGE + 64) * 8)
    prp1, prp2 = build_prp(iova, nbytes, memoryview(memory).cast("Q"), list_iova)
    pieces = walk(prp1, prp2, nbytes, memory, list_iova)
    assert sum(length for _, length in pieces) == nbytes
    at = iova
    for piece, length in pieces:
        assert piece == at
        at += length


@pytest.mark.parametrize(
    ("nbytes", "prp2"), [(1, 0), (PAGE, 0), (PAGE + 1, 0x2000), (2 * PAGE, 0x2000), (2 * PAGE + 1, 0x9000)]
)
def test_one_page_two_pages_and_a_list(nbytes, prp2):
    entries = memoryview(bytearray(64)).cast("Q")
    assert build_prp(0x1000, nbytes, entries, 0x9000) == (0x1000, prp2)


def test_the_entry_after_the_last_is_poisoned():
    entries = memoryview(bytearray(64)).cast("Q")
    build_prp(0x1000, 4 * PAGE, entries, 0x9000)
    assert list(entries[:4]) == [0x2000, 0x3000, 0x4000, POISON]


def test_the_last_entry_of_a_list_page_is_data_when_nothing_follows():
    """512 entries fit in a page exactly; only the 513th makes the last one a pointer."""
    memory = bytearray(2 * PAGE)
    entries = memoryview(memory).cast("Q")
    build_prp(0x10_0000, 513 * PAGE, entries, 0x8000)
    assert entries[511] == 0x10_0000 + 512 * PAGE
    build_prp(0x10_0000, 514 * PAGE, entries, 0x8000)
    assert entries[511] == 0x9000
    assert entries[512] == 0x10_0000 + 512 * PAGE


def test_a_list_without_room_is_refused():
    with pytest.raises(ValueError, match="no room"):
        build_prp(0x1000, 100 * PAGE, memoryview(bytearray(8 * 50)).cast("Q"), 0x9000)


@given(entries=st.integers(1, 5000))
def test_list_memory_suffices_and_small_lists_never_cross_a_page(entries):
    size = list_bytes(entries)
    if size <= PAGE:
        assert size & (size - 1) == 0
    memory = memoryview(bytearray(size)).cast("Q")
    build_prp(0x1000, (entries + 1) * PAGE, memory, 0x40_0000)
