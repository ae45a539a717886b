"""The data of a verify job must reveal every kind of damage."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_async.fio.verify import VERIFY_KINDS, Verifier, header_size
from nvme_async.fio.written import Written

INTERVAL = 512


def written_block(
    kind: str = "crc32c", *, offset: int = 8192, sequence: int = 7
) -> tuple[Verifier, bytearray, Written]:
    verifier = Verifier(kind, INTERVAL, run=0x1234, job=3, pattern=b"\x5a\xa5" if "pattern" in kind else b"")
    block = bytearray(4 * INTERVAL)
    verifier.stamp(memoryview(block), offset, sequence)
    table = Written(4096, 64 * INTERVAL, INTERVAL)
    table.note(offset, len(block), sequence)
    return verifier, block, table


@pytest.mark.parametrize("kind", [kind for kind in VERIFY_KINDS if kind != "null"])
def test_an_intact_block_passes_with_every_checksum(kind):
    verifier, block, table = written_block(kind)
    assert verifier.check(memoryview(block), 8192, table) == []


@pytest.mark.parametrize("kind", [kind for kind in VERIFY_KINDS if kind != "null"])
def test_any_flipped_bit_is_found_and_its_interval_named(kind):
    verifier, block, table = written_block(kind)
    rng = random.Random(kind)
    contents = 0 if kind == "meta" else 40  # which meta, as in fio, doesn't cover
    for at in [*range(0, header_size(kind), 3), *(rng.randrange(len(block)) for _ in range(contents))]:
        block[at] ^= 1 << rng.randrange(8)
        bad = verifier.check(memoryview(block), 8192, table)
        assert [b.offset for b in bad] == [8192 + at // INTERVAL * INTERVAL], at
        verifier, block, table = written_block(kind)


def test_a_flipped_bit_in_the_contents_is_named_by_its_byte():
    verifier, block, table = written_block()
    original = block[INTERVAL + 200]
    block[INTERVAL + 200] ^= 0x10
    (bad,) = verifier.check(memoryview(block), 8192, table)
    assert bad.reason == "crc32c mismatch"
    assert f"byte 200 is {original:#04x}" in bad.expected
    assert f"{original ^ 0x10:#04x}" in bad.got
    assert str(bad).startswith("crc32c mismatch at offset 8704, length 512: expected ")


def test_a_misplaced_block_is_recognized():
    verifier, block, table = written_block()
    table.note(16384, len(block), 7)
    bad = verifier.check(memoryview(block), 16384, table)
    assert len(bad) == 4
    assert bad[0].reason == "misplaced block"
    assert (bad[0].expected, bad[0].got) == ("offset 16384", "data of offset 8192")


def test_a_stale_block_is_recognized_by_its_sequence():
    verifier, block, table = written_block(sequence=7)
    table.note(8192 + INTERVAL, INTERVAL, 9)
    (bad,) = verifier.check(memoryview(block), 8192, table)
    assert (bad.reason, bad.offset) == ("stale block", 8192 + INTERVAL)
    assert (bad.expected, bad.got) == ("write 9 of job 3", "write 7 of job 3")


def test_data_of_an_earlier_run_count_as_stale():
    _, block, table = written_block()
    later = Verifier("crc32c", INTERVAL, run=0x9999, job=3)
    assert {bad.reason for bad in later.check(memoryview(block), 8192, table)} == {"stale block"}


def test_unwritten_blocks_are_not_checked_and_zeroed_data_is_found():
    verifier, block, table = written_block()
    zeroes = memoryview(bytes(len(block)))
    assert verifier.check(zeroes, 16384, table) == []
    assert {bad.reason for bad in verifier.check(zeroes, 8192, table)} == {"no verify header"}


def test_a_reader_accepts_valid_data_of_any_writer():
    """Two writers, and a later run of one of them, each write a part of the region."""
    reader = Verifier("crc32c", INTERVAL, run=None, job=3)
    region = bytearray(4 * INTERVAL)
    for index, (run, job, plan) in enumerate([(1, 1, 5), (1, 2, 6), (2, 1, 5), (3, 9, 9)]):
        part = memoryview(region)[index * INTERVAL : (index + 1) * INTERVAL]
        Verifier("crc32c", INTERVAL, run=run, job=job, plan=plan).stamp(part, 8192 + index * INTERVAL, index + 1)
    assert reader.check(memoryview(region), 8192, None) == []
    region[INTERVAL + 300] ^= 1
    assert [bad.reason for bad in reader.check(memoryview(region), 8192, None)] == ["crc32c mismatch"]


def test_verify_only_checks_sequences_for_its_own_plan_and_digests_otherwise():
    table = Written(4096, 64 * INTERVAL, INTERVAL)
    table.note(8192, INTERVAL, 7)
    fresh = Verifier("crc32c", INTERVAL, run=None, job=1, plan=0xABC)
    block = bytearray(INTERVAL)
    for plan, sequence, reasons in [(0xABC, 7, []), (0xABC, 6, ["stale block"]), (0xDEF, 6, [])]:
        Verifier("crc32c", INTERVAL, run=0x77, job=3, plan=plan).stamp(memoryview(block), 8192, sequence)
        assert [bad.reason for bad in fresh.check(memoryview(block), 8192, table)] == reasons


def test_another_jobs_data_is_accepted_only_in_shared_blocks():
    block = bytearray(INTERVAL)
    Verifier("crc32c", INTERVAL, run=1, job=2).stamp(memoryview(block), 8192, 3)
    table = Written(4096, 64 * INTERVAL, INTERVAL)
    table.note(8192, INTERVAL, 7)
    for shared, reasons in [(True, []), (False, ["stale block"])]:
        verifier = Verifier("crc32c", INTERVAL, run=1, job=1, shared=shared)
        assert [bad.reason for bad in verifier.check(memoryview(block), 8192, table)] == reasons


def test_different_settings_are_named_from_the_header():
    _, block, _ = written_block("sha512")
    other = Verifier("crc32c", INTERVAL, run=None)
    (bad, *_) = other.check(memoryview(block), 8192, None)
    assert (bad.reason, bad.got) == ("other verify settings", f"sha512 over {INTERVAL} bytes")


@given(
    writes=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3)), max_size=12),
    ratio=st.sampled_from([1, 2, 3, 8]),
    piece=st.integers(1, 40),
)
def test_an_interval_is_whole_unless_a_later_write_overlaps_it(writes, ratio, piece):
    grain, start = 512, 8192
    interval = grain * ratio
    table = Written(start, 128 * grain, interval, grain)
    model: dict[int, tuple[int, int]] = {}  # grain → (sequence, where its interval starts)
    for sequence, (at, count) in enumerate(writes, 1):
        table.note(start + at * grain, count * interval, sequence)
        for unit in range(at, at + count * ratio):
            model[unit] = (sequence, unit - (unit - at) % ratio)
    whole = {
        start + begin * grain: sequence
        for sequence, begin in set(model.values())
        if all(model.get(unit) == (sequence, begin) for unit in range(begin, begin + ratio))
    }
    assert dict(table.whole(start, 128 * grain)) == whole
    listed = list(table.runs(piece * grain))
    assert [offset + at for offset, nbytes in listed for at in range(0, nbytes, interval)] == sorted(whole)
    assert all(nbytes <= max(interval, piece * grain) for _, nbytes in listed)
    table.close()


def test_writes_are_listed_in_order_and_in_pieces():
    table = Written(4096, 16 * INTERVAL, INTERVAL)
    table.note(4096 + 9 * INTERVAL, 5 * INTERVAL, 2)
    table.note(4096, INTERVAL, 1)
    assert list(table.runs(2 * INTERVAL)) == [
        (4096, INTERVAL),
        (4096 + 9 * INTERVAL, 2 * INTERVAL),
        (4096 + 11 * INTERVAL, 2 * INTERVAL),
        (4096 + 13 * INTERVAL, INTERVAL),
    ]
    table.close()
