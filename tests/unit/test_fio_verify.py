"""What a verify job writes must prove every kind of damage."""

import random

import pytest

from nvme_async.fio.verify import CHECKSUMS, Verifier, Written, header_size

INTERVAL = 512


def written_block(
    kind: str = "crc32c", *, offset: int = 8192, sequence: int = 7
) -> tuple[Verifier, bytearray, Written]:
    verifier = Verifier(kind, INTERVAL, run=0x1234, job=3, pattern=b"\x5a\xa5" if kind == "pattern" else b"")
    block = bytearray(4 * INTERVAL)
    verifier.stamp(memoryview(block), offset, sequence)
    table = Written(4096, 64 * INTERVAL, INTERVAL)
    table.note(offset, len(block), sequence)
    return verifier, block, table


@pytest.mark.parametrize("kind", [*CHECKSUMS, "pattern"])
def test_an_intact_block_passes_with_every_checksum(kind):
    verifier, block, table = written_block(kind)
    assert verifier.check(memoryview(block), 8192, table) == []


@pytest.mark.parametrize("kind", [*CHECKSUMS, "pattern"])
def test_any_flipped_bit_is_found_and_its_interval_named(kind):
    verifier, block, table = written_block(kind)
    rng = random.Random(kind)
    for at in [*range(0, header_size(kind), 3), *(rng.randrange(len(block)) for _ in range(40))]:
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


def test_a_misplaced_block_is_recognized_as_that():
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


def test_data_of_an_earlier_run_are_stale():
    _, block, table = written_block()
    later = Verifier("crc32c", INTERVAL, run=0x9999, job=3)
    assert {bad.reason for bad in later.check(memoryview(block), 8192, table)} == {"stale block"}


def test_a_block_never_written_is_not_checked_and_zeroes_in_place_of_data_are_found():
    verifier, block, table = written_block()
    zeroes = memoryview(bytes(len(block)))
    assert verifier.check(zeroes, 16384, table) == []
    assert {bad.reason for bad in verifier.check(zeroes, 8192, table)} == {"no verify header"}


def test_verify_only_learns_the_run_from_the_first_block_and_holds_the_others_to_it():
    _, block, table = written_block()
    fresh = Verifier("crc32c", INTERVAL, run=None, job=3)
    assert fresh.check(memoryview(block), 8192, table) == []
    assert fresh.run == 0x1234
    other = bytearray(INTERVAL)
    Verifier("crc32c", INTERVAL, run=0x77, job=3).stamp(memoryview(other), 8192, 7)
    assert [bad.reason for bad in fresh.check(memoryview(other), 8192, table)] == ["stale block"]


def test_what_was_written_is_listed_in_order_and_in_pieces():
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
