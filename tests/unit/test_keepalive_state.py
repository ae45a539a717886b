"""The saved state: each released format is still readable, unknown fields are kept, and altered
states are refused.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvme_async.errors import InvalidSavedState
from nvme_async.keepalive import manifest, state
from nvme_async.keepalive.state import State
from nvme_async.native._dma import Pool

DATA = Path(__file__).parents[1] / "data"
GOLDEN = sorted(DATA.glob("keepalive-state-*.json"))


def test_there_is_a_golden_state_of_each_format() -> None:
    assert [path.name for path in GOLDEN] == [f"keepalive-state-{number}.json" for number in range(1, state.FORMAT + 1)]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_state_of_an_older_release_is_read(path: Path) -> None:
    found = state.decode(path.read_bytes())
    assert found.format == int(path.stem.rpartition("-")[2])
    assert found.readable_by <= state.FORMAT
    assert found.uri == "vfio-user:/run/drive.sock"
    assert found.device.serial == "GOLDEN0001"
    assert found.device.serial_number == (0 if found.format < 2 else 0x1122334455667788)
    assert [queue.qid for queue in found.queues] == [0, 1, 2]
    assert [queue.worker for queue in found.queues] == ["", "MainThread", "worker 1"]
    assert [namespace.nsid for namespace in found.namespaces] == [1]
    assert len(found.identify) == len(found.namespaces[0].identify) == 4096
    assert (found.registers.cc, found.shadow_offset) == (0x460001, 552960)
    assert [registration.nbytes for registration in found.registrations] == [8192]
    assert found.options["queue_entries"] == 256
    assert [lease["queues"] for lease in found.sharing.get("leases", [])] == [{"7": "present"}] * (found.format >= 5)
    assert (found.cmb is not None, found.queues[1].cmb) == (found.format >= 7,) * 2
    doubtful = found.format >= 4
    assert (found.unverified, found.namespaces[0].uuid) == (
        doubtful,
        "9c6f2f34-1c3b-4c5e-8f5b-2a2f9d1f0c11" if doubtful else "",
    )
    assert found.descriptors == (
        {} if found.format < 3 else {"device.socket": "9:123456", "irq.0": "eventfd:17", "irq.1": "eventfd:18"}
    )


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_state_is_written_back_as_it_was_read(path: Path) -> None:
    """Equal in meaning: an older release's fields are neither dropped nor invented, except for
    defaults.
    """
    before = json.loads(path.read_bytes())
    after = json.loads(state.encode(state.decode(path.read_bytes())))

    def includes(more: object, less: object, where: str = "") -> None:
        if isinstance(less, dict):
            assert isinstance(more, dict)
            for name, value in less.items():
                includes(more[name], value, f"{where}.{name}")
        elif isinstance(less, list):
            assert isinstance(more, list)
            assert len(more) == len(less), where
            for one, other in zip(more, less, strict=True):
                includes(one, other, where)
        else:
            assert more == less, where

    includes(after, before)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_unknown_fields_survive_a_round_trip_wherever_they_are(path: Path) -> None:
    plain = json.loads(path.read_bytes())
    later = {"value": [1, {"deep": None}]}
    places = [
        plain,
        plain["device"],
        plain["registers"],
        plain["queues"][1],
        plain["namespaces"][0],
        plain["registrations"][0],
    ]
    for place in places:
        place["from a later release"] = later
    plain["format"] = state.FORMAT + 5
    found = state.decode(json.dumps(plain).encode())
    again = json.loads(state.encode(attrs.evolve(found, written=1.0)))
    assert again["format"] == state.FORMAT + 5
    for place in (
        again,
        again["device"],
        again["registers"],
        again["queues"][1],
        again["namespaces"][0],
        again["registrations"][0],
    ):
        assert place["from a later release"] == later


def test_a_state_with_a_newer_readable_by_is_refused() -> None:
    plain = json.loads(GOLDEN[-1].read_bytes()) | {"format": 9, "readable_by": 9}
    with pytest.raises(InvalidSavedState, match="format 9, readable by 9 and later; this release reads"):
        state.decode(json.dumps(plain).encode())


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(State) if field.default is attrs.NOTHING])
def test_each_missing_field_is_named(name: str) -> None:
    plain = json.loads(GOLDEN[-1].read_bytes())
    del plain[name]
    with pytest.raises(InvalidSavedState, match=name):
        state.decode(json.dumps(plain).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'{"readable_by": "1"}',
        b"\xff\xfe",
        b'{"readable_by": 1}',
        b"{" * 50,
        b'{"readable_by": 1, "x":' + b"[" * 100_000,
    ],
)
def test_an_invalid_state_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidSavedState):
        state.decode(text)


# -- in the pool -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> tuple[bytes, int, int, bytes]:
    """(a pool's bytes with one half of a manifest in it, where that half starts, its length, the
    body)
    """
    body = zlib.compress(GOLDEN[-1].read_bytes())  # any bytes work, and short ones take less time
    with Pool(1 << 20, iova=1 << 32, name="m", hugepages="never") as pool:
        manifest.Manifest(pool).write(body)
        offset, sequence, found = manifest.find(pool)
        assert (sequence, found) == (1, body)
        (slot,) = pool.slots()
        half = offset + slot.nbytes // 2  # the first one written
        return os.pread(pool.fd, pool.nbytes, 0), half, 64 + len(body), body


def found_in(image: bytes) -> bytes | None:
    with Pool(1 << 20, iova=1 << 32, name="m", hugepages="never") as pool:
        os.pwrite(pool.fd, image, 0)
        with Pool.attach(pool.fd) as copy:
            try:
                return manifest.find(copy)[2]
            except InvalidSavedState:
                return None
            finally:
                copy.detach()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_refused(written: tuple[bytes, int, int, bytes], data: st.DataObject) -> None:
    """Header, checksum or body: only the unused reserved word may differ. A half that lost only
    its sequence counts as one whose writer was killed before that last store.
    """
    image, half, length, body = written
    at = data.draw(st.integers(0, length - 1).filter(lambda at: not 12 <= at < 16))
    flipped = bytearray(image)
    flipped[half + at] ^= 1 << data.draw(st.integers(0, 7))
    assert found_in(bytes(flipped)) == (body if flipped[half + 16 : half + 24] == bytes(8) else None)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_truncation_is_refused(written: tuple[bytes, int, int, bytes], data: st.DataObject) -> None:
    image, half, length, _ = written
    kept = data.draw(st.integers(0, length - 1).filter(lambda kept: any(image[half + kept : half + length])))
    assert found_in(image[: half + kept] + bytes(len(image) - half - kept)) is None


@pytest.fixture
def twice() -> Iterator[tuple[Pool, int]]:
    """A pool with a manifest that was written twice, and where the newer half starts."""
    with Pool(1 << 20, iova=1 << 32, name="m", hugepages="never") as pool:
        writer = manifest.Manifest(pool)
        writer.write(b"first")
        writer.write(b"second")
        offset, sequence, body = manifest.find(pool)
        assert (sequence, body) == (2, b"second")
        yield pool, offset  # sequence 2 is in the first half


def test_an_unfinished_half_leaves_the_previous_one_valid(twice: tuple[Pool, int]) -> None:
    pool, half = twice
    os.pwrite(pool.fd, bytes(8), half + 16)
    assert manifest.find(pool)[1:] == (2, b"second"), "complete but for its sequence"
    os.pwrite(pool.fd, b"\0", half + 64)
    assert manifest.find(pool)[1:] == (1, b"first")


def test_an_altered_half_does_not_revive_the_previous_one(twice: tuple[Pool, int]) -> None:
    """The newer one may have said that no successor may continue from here."""
    pool, half = twice
    os.pwrite(pool.fd, b"\0", half + 64)
    with pytest.raises(InvalidSavedState, match="altered"):
        manifest.find(pool)


def test_the_bytes_that_release_0_1_left_in_a_pool_are_read() -> None:
    """As they lay there: header, checksum and text of one half of the manifest."""
    golden = (DATA / "manifest-0.1.bin").read_bytes()
    (sequence,) = struct.unpack_from("<Q", golden, 16)
    pool = Pool(1 << 20, iova=1 << 32)
    slot = pool.alloc(2 * (64 << 10), owner=manifest.OWNER, persistent=True)
    at = (sequence & 1) * (64 << 10)
    slot[at : at + len(golden)] = golden
    offset, found, body = manifest.find(pool)
    assert (offset, found) == (slot.offset, sequence)
    with memoryview(slot) as view:
        assert manifest.stands(view, sequence, body)
        assert not manifest.stands(view, sequence + 1, body)
    read = state.decode(body)
    assert (read.format, read.readable_by, read.device.serial) == (2, 1, "GOLDEN01")
    assert [queue.qid for queue in read.queues] == [0, 1]
    slot[at + len(golden) - 1 : at + len(golden)] = b"!"
    with pytest.raises(InvalidSavedState, match="checksum"):
        manifest.find(pool)
    slot.free()
    pool.close()
