"""The record that a pool keeps of itself: what a successor reads, and what damage it finds."""

import os
import struct

import pytest
from pools import IOVA, PAGE, owners

from nvme_async.errors import InvalidSavedState
from nvme_async.native._dma import Pool, Slot


class TestAttach:
    def test_a_successor_finds_and_claims_slots(self, pool: Pool) -> None:
        a = pool.alloc(PAGE, owner="a", tag=1)
        gap = pool.alloc(PAGE, owner="gap")
        b = pool.alloc(3 * PAGE - 1, owner="b", tag=2, persistent=True)
        gap.free()
        b[:5] = b"hello"
        with Pool.attach(pool.fd, expect_iova=IOVA) as successor:
            assert successor.fd != pool.fd
            assert (successor.id, successor.name, successor.nbytes) == (pool.id, "test", pool.nbytes)
            assert successor.slots() == [
                Slot(a.offset, PAGE, "a", 1, "pending-restore", False),
                Slot(b.offset, 3 * PAGE - 1, "b", 2, "pending-restore", True),
            ]
            assert [slot.state for slot in pool.slots()] == ["allocated"] * 2, "looking changed nothing"
            assert successor.free_bytes == pool.free_bytes
            assert successor.alloc(2 * PAGE, owner="new").offset == b.offset + 3 * PAGE, (
                "the gap is too small, b is in use"
            )
            claimed = successor.claim(b.offset)
            assert (claimed.owner, claimed.tag, claimed.iova, claimed.nbytes) == (
                "b",
                2,
                b.iova,
                3 * PAGE - 1,
            )
            assert bytes(claimed[:5]) == b"hello"
            with pytest.raises(ValueError, match="held"):
                successor.claim(b.offset)
            with pytest.raises(ValueError, match="held"):
                successor.reclaim(b.offset)
            successor.reclaim(a.offset)
            assert owners(successor) == ["b"], "and the dropped new one is gone"
            claimed.free()
            assert successor.free_bytes == 64 * PAGE

    @pytest.mark.parametrize("offset", [0, PAGE, 2 * PAGE, 3 * PAGE, 2 * PAGE + 1, 1 << 40, -PAGE])
    def test_claiming_a_free_offset_is_refused(self, pool: Pool, offset: int) -> None:
        with pytest.raises(ValueError, match="no allocation"):
            pool.claim(offset)

    def test_leaked_slots_are_not_reused(self, pool: Pool) -> None:
        buffer = pool.alloc(PAGE, owner="lost")
        with pytest.raises(ValueError, match="held"):
            pool.mark_leaked(buffer.offset)
        with Pool.attach(pool.fd) as second:
            second.mark_leaked(buffer.offset)
            assert second.slots()[0].state == "leaked"
        with Pool.attach(pool.fd) as third:
            assert third.slots()[0].state == "leaked"
            assert third.free_bytes == 63 * PAGE
            claimed = third.claim(buffer.offset)
            assert (claimed.owner, third.slots()[0].state) == ("lost", "allocated")

    def test_another_iova_is_refused(self, pool: Pool) -> None:
        with pytest.raises(InvalidSavedState, match=r"at IOVA 0x100000000, not at 0x1000"):
            Pool.attach(pool.fd, expect_iova=0x1000)

    def test_foreign_descriptors_are_refused(self) -> None:
        fd = os.memfd_create("plain")
        try:
            with pytest.raises(InvalidSavedState, match="sealed"):
                Pool.attach(fd)
        finally:
            os.close(fd)
        read, write = os.pipe()
        try:
            with pytest.raises(InvalidSavedState, match="memfd"):
                Pool.attach(read)
        finally:
            os.close(read)
            os.close(write)

    @pytest.mark.parametrize(
        ("offset", "value", "message"),
        [
            (0, struct.pack("<Q", 1), "magic"),
            (8, struct.pack("<I", 2), "version is 2"),
            (12, struct.pack("<I", 8192), "pages of 8192"),
            (16, struct.pack("<Q", 1 << 20), "a size of 1048576 bytes"),
            (24, struct.pack("<Q", 1), "IOVA"),
            (24, struct.pack("<Q", (1 << 64) - 4096), "IOVA"),
            (32, struct.pack("<Q", 0), "laid out"),
            (40, struct.pack("<Q", 4096), "laid out"),
            (48, struct.pack("<Q", 1 << 60), "laid out"),
            (56, struct.pack("<I", 32), "slots of 32"),
            (64, struct.pack("<Q", 65), "high-water mark 65"),
            (88, b"x" * 32, "name"),
            (PAGE, struct.pack("<I", 7), "slot 0 has the unknown state 7"),
            (PAGE, struct.pack("<I", 2), "slot 0 has the unknown state 2"),
            (PAGE + 4, struct.pack("<I", 8), "slot 0 has unknown flags"),
            (PAGE + 8, struct.pack("<Q", 0), "slot 0 says offset"),
            (PAGE + 16, struct.pack("<Q", 0), "slot 0 has 0 bytes"),
            (PAGE + 16, struct.pack("<Q", 65 * PAGE), "ends beyond"),
            (PAGE + 16, struct.pack("<Q", (1 << 64) - 1), "ends beyond"),
            (PAGE + 16, struct.pack("<Q", PAGE + 1), "slot 1 overlaps"),
            (PAGE + 32, bytes(1), "an invalid owner"),
            (PAGE + 32, b"x" * 32, "an invalid owner"),
        ],
    )
    def test_damage_is_refused(self, pool: Pool, offset: int, value: bytes, message: str) -> None:
        kept = [pool.alloc(PAGE, owner="a"), pool.alloc(PAGE, owner="b")]
        os.pwrite(pool.fd, value, offset)
        with pytest.raises(InvalidSavedState, match=message):
            Pool.attach(pool.fd)
        assert len(kept) == 2

    def test_golden_layout(self, pool: Pool) -> None:
        """These bytes are read by successors of other versions: they change only with the version
        number.
        """
        pool.alloc(PAGE, owner="gap")
        buffer = pool.alloc(5000, owner="nvme:queue", tag=0x1122334455667788, persistent=True)
        second = pool.alloc(1, owner="x")
        header = struct.pack("<8sIIQQQQQIIQ", b"NVMEPOOL", 1, 4096, 66 * PAGE, IOVA, PAGE, 2 * PAGE, 64, 64, 0, 3)
        header += bytes.fromhex(pool.id) + b"test".ljust(32, b"\0") + (3 * FACTOR % (1 << 64)).to_bytes(8, "little")
        assert os.pread(pool.fd, 128, 0) == header
        assert buffer.offset == 2 * PAGE
        slot = struct.pack("<IIQQQ28s", 1, 1, 2 * PAGE, 5000, 0x1122334455667788, b"nvme:queue")
        assert slot_sum(slot) == 0x98C33C4C
        assert os.pread(pool.fd, 64, PAGE) == slot + slot_sum(slot).to_bytes(4, "little")
        assert os.pread(pool.fd, 64, PAGE + 64) == bytes(64), "the second page of the same allocation"
        slot2 = struct.pack("<IIQQQ28s", 1, 0, second.offset, 1, 0, b"x")
        assert os.pread(pool.fd, 64, PAGE + 128) == slot2 + slot_sum(slot2).to_bytes(4, "little")
        buffer.free()
        assert os.pread(pool.fd, 60, PAGE) == struct.pack("<I4s", 0, b"FREE") + slot[8:]

    def test_an_owner_too_long_for_a_checksum_is_written_whole(self, pool: Pool) -> None:
        for name in ("a" * 28, "b" * 31):
            buffer = pool.alloc(1, owner=name)
            assert os.pread(pool.fd, 32, PAGE + 32 + (buffer.offset - 2 * PAGE) // PAGE * 64) == name.encode().ljust(
                32, b"\0"
            )
        pool.verify()


class TestDamage:
    """pool.verify(): a flipped bit in header or table is refused, or changes nothing
    relevant.
    """

    @pytest.fixture
    def image(self, pool: Pool) -> bytes:
        """A table with slots in use, freed, reused, leaked and never used."""
        kept = [pool.alloc(n * PAGE, owner=f"queue {n}", tag=n, persistent=n % 2 == 0) for n in (1, 2, 3, 4)]
        for n in (2, 0):
            kept.pop(n).free()
        pool.alloc(PAGE, owner="again", persistent=True)
        return os.pread(pool.fd, 66 * PAGE, 0)

    @staticmethod
    def read(image: bytes) -> list[object] | None:
        with Pool(66 * PAGE, iova=IOVA, name="test", hugepages="never") as pool:
            os.pwrite(pool.fd, image, 0)
            try:
                copy = Pool.attach(pool.fd)
            except InvalidSavedState:
                return None
            with copy:
                try:
                    copy.verify()
                    return copy.slots()  # type: ignore[return-value]
                except InvalidSavedState:
                    return None
                finally:
                    copy.detach()

    @pytest.mark.parametrize("distance", [0, 1, 64, 9, 511])
    def test_flipped_bits_of_the_table(self, image: bytes, distance: int) -> None:
        """Each bit of the slots in use or freed; and some pairs of bits."""
        whole = self.read(image)
        assert whole is not None
        for bit in range(0, 8 * 64 * 10, 5 if distance else 1):
            flipped = bytearray(image)
            for one in {bit, bit + distance}:
                flipped[PAGE + one // 8] ^= 1 << one % 8
            found = self.read(bytes(flipped))
            if found is not None and found != whole:
                # Allocated or leaked: the two states that may be claimed.
                assert [s._replace(state="") for s in found] == [s._replace(state="") for s in whole]  # type: ignore[attr-defined]
                assert 1 in (bit % 512, (bit + distance) % 512)

    @pytest.mark.parametrize("second", [0, 1, 7, 70])
    def test_flipped_bits_of_the_header(self, image: bytes, second: int) -> None:
        whole = self.read(image)
        for bit in range(8 * 128 - 71):
            flipped = bytearray(image)
            for one in {bit, bit + second}:
                flipped[one // 8] ^= 1 << one % 8
            assert self.read(bytes(flipped)) in (None, whole)

    def test_a_table_of_an_older_release_is_sealed(self, pool: Pool, image: bytes) -> None:
        older = bytearray(image)
        older[120:128] = bytes(8)
        for slot in range(64):
            at = PAGE + 64 * slot
            older[at + 60 : at + 64] = bytes(4)
            if older[at + 4 : at + 8] == b"FREE":
                older[at + 4 : at + 8] = bytes(4)
        os.pwrite(pool.fd, older, 0)
        with Pool.attach(pool.fd) as found:
            with pytest.raises(InvalidSavedState):
                found.verify()
            slots = found.slots()
            found.seal()
            found.verify()
            assert found.slots() == slots
            found.detach()
        assert os.pread(pool.fd, 128, 0) == image[:128]


FACTOR = 0x9E3779B97F4A7C15


def slot_sum(slot: bytes) -> int:
    """The checksum of ext/dma/pool.c, implemented a second time."""
    _, flags, offset, nbytes, tag, *owner, last = struct.unpack("<IIQQQ3QI", slot)
    total = 0
    for word in (offset, nbytes, tag, *owner, flags << 32 | last):
        total = (total ^ word) * FACTOR & (1 << 64) - 1
        total ^= total >> 32
    return total & (1 << 32) - 1
