"""Protection information in C: the guards against published vectors, generation, and checks."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from nvme_async.native import _pi

ZEROES, ONES = bytes(32), b"\xff" * 32
UP, DOWN = bytes(range(32)), bytes(range(31, -1, -1))


@pytest.fixture(params=[True, False], ids=["instructions", "tables"])
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _pi.use_instructions(request.param)
    yield
    _pi.use_instructions(before)


@pytest.mark.usefixtures("instructions")
class TestGuards:
    def test_crc16_t10(self) -> None:
        assert _pi.crc16_t10(b"123456789") == 0xD0DB  # the catalogue's check value of CRC-16/T10-DIF
        assert [_pi.crc16_t10(data) for data in (ZEROES, ONES, UP)] == [0x0000, 0xA293, 0x0224]  # SBC-4, table 15

    def test_crc32c(self) -> None:
        assert _pi.crc32c(b"123456789") == 0xE3069283
        vectors = [0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0x113FDB5C]  # RFC 3720, B.4
        assert [_pi.crc32c(data) for data in (ZEROES, ONES, UP, DOWN)] == vectors

    def test_crc64_nvme(self) -> None:
        assert _pi.crc64_nvme(b"123456789") == 0xAE8B14860A799888
        # NVM Command Set 1.1, 5.3.1.3: 4 KiB of zeroes, of ones, counting up, counting down
        assert _pi.crc64_nvme(bytes(4096)) == 0x6482D367EB22B64E
        assert _pi.crc64_nvme(b"\xff" * 4096) == 0xC0DDBA7302ECA3AC
        assert _pi.crc64_nvme(bytes(range(256)) * 16) == 0x3E729F5F6750449C
        assert _pi.crc64_nvme(bytes(range(255, -1, -1)) * 16) == 0x9A2DF64B8E9E517E

    @pytest.mark.parametrize("crc", [_pi.crc16_t10, _pi.crc32c, _pi.crc64_nvme])
    def test_a_checksum_can_be_continued(self, crc) -> None:
        data = random.Random(1).randbytes(1000)
        for at in (0, 1, 63, 64, 65, 500, 999, 1000):
            assert crc(data[at:], crc(data[:at])) == crc(data)


def test_instructions_and_tables_agree() -> None:
    rng = random.Random(2)
    for _ in range(300):
        data = rng.randbytes(rng.randrange(600))
        results = []
        for on in (True, False):
            before = _pi.use_instructions(on)
            results.append([crc(data) for crc in (_pi.crc16_t10, _pi.crc32c, _pi.crc64_nvme)])
            _pi.use_instructions(before)
        assert results[0] == results[1]


def test_the_layout_of_each_guard() -> None:
    data = bytes(512)
    expected = {
        16: "0000123400000007",
        32: f"{_pi.crc32c(data):08x}123400000000000000000007",
        64: f"{_pi.crc64_nvme(data):016x}1234000000000007",
    }
    for guard, text in expected.items():
        meta = bytearray(16 if guard != 16 else 8)
        _pi.PiFormat(512, len(meta), 1, guard=guard).generate(bytearray(data), meta, ref_tag=7, app_tag=0x1234)
        assert meta.hex() == text


def test_the_guard_covers_the_metadata_before_it() -> None:
    data, meta = bytearray(random.Random(3).randbytes(512)), bytearray(range(64))
    last = _pi.PiFormat(512, 64, 1)
    last.generate(data, meta)
    assert int.from_bytes(meta[56:58], "big") == _pi.crc16_t10(bytes(data) + bytes(meta[:56]))
    first = _pi.PiFormat(512, 64, 1, first=True)
    meta = bytearray(range(64))
    first.generate(data, meta)
    assert int.from_bytes(meta[:2], "big") == _pi.crc16_t10(data)
    assert meta[8:] == bytes(range(8, 64))


@pytest.mark.parametrize("guard", [16, 32, 64])
@pytest.mark.parametrize("kind", [1, 2, 3])
def test_reference_tags_count_up_and_wrap(guard: int, kind: int) -> None:
    form = _pi.PiFormat(512, 16, kind, guard=guard, storage_tag_bits=8)
    top = (1 << form.tag_bits - 8) - 1
    data, meta = bytearray(512 * 3), bytearray(16 * 3)
    form.generate(data, meta, ref_tag=top, storage_tag=0xAB)
    assert form.check(data, meta, ref_tag=top, storage_tag=0xAB, checks=15) is None
    second = meta[16 + 16 - form.tag_bits // 8 : 32]
    assert int.from_bytes(second, "big") == (0xAB << form.tag_bits - 8) + (top if kind == 3 else 0)
    assert form.check(data, meta, ref_tag=top, storage_tag=0xAC, checks=15) == (0, _pi.CHECK_STORAGE, 0xAB, 0xAC)


def test_escape_values_disable_checking() -> None:
    data, meta = bytearray(512 * 2), bytearray(b"\xff" * 16)
    assert _pi.PiFormat(512, 8, 1).check(data, meta, ref_tag=5) is None
    assert _pi.PiFormat(512, 8, 3).check(data, meta) is None
    meta[8 + 7] = 0xFE  # type 3 requires it in the reference tag too
    assert _pi.PiFormat(512, 8, 3).check(data, meta, checks=_pi.CHECK_GUARD) == (1, _pi.CHECK_GUARD, 0xFFFF, 0)
    assert _pi.PiFormat(512, 8, 2).check(data, meta) is None


@pytest.mark.parametrize("guard", [16, 32, 64])
def test_a_hundred_thousand_corrupted_blocks_are_all_caught(guard: int) -> None:
    """One bit of one block at a time, in data, guard, application and reference tag; each error
    is found in its block and field.
    """
    rng = random.Random(guard)
    size, extra, blocks = 512, 16, 64
    form = _pi.PiFormat(size, extra, 1, guard=guard)
    data, meta = bytearray(rng.randbytes(size * blocks)), bytearray(rng.randbytes(extra * blocks))
    form.generate(data, meta, ref_tag=100, app_tag=0x1234)
    assert form.check(data, meta, ref_tag=100, app_tag=0x1234) is None
    start = extra - form.pi_bytes
    for _ in range(33_334):
        block, where = rng.randrange(blocks), rng.randrange(4)
        if where == 0:
            at, what, target = block * size + rng.randrange(size), _pi.CHECK_GUARD, data
        else:
            first, length, what = [
                (0, guard // 8, _pi.CHECK_GUARD),
                (guard // 8, 2, _pi.CHECK_APP),
                (guard // 8 + 2, form.tag_bits // 8, _pi.CHECK_REF),
            ][where - 1]
            at, target = block * extra + start + first + rng.randrange(length), meta
        bit = 1 << rng.randrange(8)
        target[at] ^= bit
        # Starting at the block: checking all 64 for each would only repeat the same work.
        failure = form.check(
            memoryview(data)[block * size : (block + 2) * size],
            memoryview(meta)[block * extra : (block + 2) * extra],
            ref_tag=100 + block,
            app_tag=0x1234,
        )
        assert failure is not None
        assert failure[:2] == (0, what)
        target[at] ^= bit
    assert form.check(data, meta, ref_tag=100, app_tag=0x1234) is None


def test_extended_blocks() -> None:
    form = _pi.PiFormat(512, 8, 1)
    data, meta = bytearray(random.Random(4).randbytes(1536)), bytearray(24)
    form.generate(data, meta, ref_tag=9)
    whole = bytearray(3 * 520)
    _pi.interleave(data, meta, whole, 512, 8)
    assert form.check(whole, ref_tag=9) is None
    assert whole[512:520] == meta[:8]
    whole[520 + 3] ^= 1
    failure = form.check(whole, ref_tag=9)
    assert failure is not None
    assert failure[:2] == (1, _pi.CHECK_GUARD)
    back, tags = bytearray(1536), bytearray(24)
    _pi.separate(whole, back, tags, 512, 8)
    assert tags == meta


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guard": 24}, "16, 32 or 64"),
        ({"type": 0}, "1, 2 or 3"),
        ({"metadata": 8, "guard": 64}, "takes 16"),
        ({"storage_tag_bits": 40}, "0 to 32"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, int], words: str) -> None:
    options = {"metadata": 16, "type": 1, **arguments}
    metadata, kind = options.pop("metadata"), options.pop("type")
    with pytest.raises(ValueError, match=words):
        _pi.PiFormat(512, metadata, kind, **options)


def test_arguments_are_checked() -> None:
    form = _pi.PiFormat(512, 8, 1)
    with pytest.raises(ValueError, match="whole number of blocks"):
        form.check(bytes(500), bytes(8))
    with pytest.raises(ValueError, match="reference tag"):
        form.check(bytes(512), bytes(8), ref_tag=1 << 32)
    with pytest.raises(ValueError, match="storage tag"):
        form.check(bytes(512), bytes(8), storage_tag=1)
