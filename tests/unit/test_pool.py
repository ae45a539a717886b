"""Pool and DmaBuffer: allocation, lifetime, the record that a successor reads."""

import gc
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nvme_async.errors import InvalidSavedState, NvmeError, OutOfDmaMemory
from nvme_async.native._dma import MAX_TEXT_BYTES, DmaBuffer, Pool, Slot

IOVA = 0x1_0000_0000
PAGE = 4096


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(Pool.size_for(64 * PAGE), iova=IOVA, name="test", hugepages="never") as pool:
        yield pool


def owners(pool: Pool) -> list[str]:
    return [slot.owner for slot in pool.slots()]


class TestPool:
    def test_attributes(self, pool: Pool) -> None:
        assert pool.nbytes == (1 + 1 + 64) * PAGE
        assert (pool.iova, pool.name, pool.page_size, pool.backing) == (IOVA, "test", PAGE, "memfd")
        assert pool.free_bytes == 64 * PAGE
        assert pool.used_bytes == 0
        assert os.fstat(pool.fd).st_size == pool.nbytes
        assert pool.address % PAGE == 0
        assert len(bytes.fromhex(pool.id)) == 16
        assert "memfd" in repr(pool)
        assert pool.inspect()["backing"] == "memfd"

    def test_descriptor_cannot_shrink(self, pool: Pool) -> None:
        with pytest.raises(PermissionError):
            os.truncate(pool.fd, 0)
        assert not os.get_inheritable(pool.fd)

    @pytest.mark.parametrize("pages", [1, 63, 64, 65, 128, 4096, 4097, 10_000])
    def test_size_for_is_exact(self, pages: int) -> None:
        with Pool(Pool.size_for(pages * PAGE), iova=IOVA, hugepages="never") as pool:
            assert pool.free_bytes == pages * PAGE
            pool.alloc(pages * PAGE, owner="all").free()

    @pytest.mark.parametrize(
        ("nbytes", "iova"),
        [
            (0, 0),
            (-1, 0),
            (8192, 0),
            (1 << 50, 0),
            (1 << 20, 1),
            (1 << 20, -4096),
            (1 << 20, (1 << 64) - 4096),
        ],
    )
    def test_impossible_sizes_are_refused(self, nbytes: int, iova: int) -> None:
        with pytest.raises(ValueError, match="pool"):
            Pool(nbytes, iova=iova)

    @pytest.mark.parametrize("name", ["", "x" * 32, "é" * 16, "a\0b"])
    def test_bad_names(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"pool name .* 1 to 31 bytes"):
            Pool(1 << 20, iova=0, name=name)

    def test_hugepages(self) -> None:
        with pytest.raises(ValueError, match="hugepages='maybe'"):
            Pool(1 << 20, iova=0, hugepages="maybe")  # type: ignore[arg-type]
        with Pool(1 << 20, iova=0, hugepages="auto") as pool:
            assert pool.backing in ("memfd", "hugetlb-2MiB")
            assert pool.nbytes == (1 << 20 if pool.backing == "memfd" else 2 << 20)

    def test_required_hugepages(self) -> None:
        free = int(re.search(r"HugePages_Free:\s+(\d+)", Path("/proc/meminfo").read_text())[1])  # type: ignore[index]
        if free:
            with Pool(1 << 20, iova=0, hugepages="require") as pool:
                assert pool.backing == "hugetlb-2MiB"
                pool.alloc(1 << 19, owner="huge")[:4] = b"huge"
        with pytest.raises(OutOfDmaMemory, match="nr_hugepages"):
            Pool((free + 1) << 21, iova=0, hugepages="require")

    def test_closing(self, pool: Pool) -> None:
        buffer = pool.alloc(PAGE, owner="a")
        view = buffer[:]
        with pytest.raises(BufferError, match="1 exported"):
            pool.close()
        view.release()
        pool.close()
        assert pool.closed
        assert pool.fd == -1
        pool.close()
        for use in (
            lambda: buffer[0],
            lambda: pool.alloc(1, owner="b"),
            pool.slots,
            pool.inspect,
            lambda: pool.free_bytes,
        ):
            with pytest.raises(ValueError, match="closed"):
                use()
        buffer.free()
        assert "closed" in repr(pool)


class TestAlloc:
    def test_first_fit_and_coalescing(self, pool: Pool) -> None:
        a, b, c = (pool.alloc(2 * PAGE, owner=name) for name in "abc")
        assert [x.offset - pool.data_offset for x in (a, b, c)] == [0, 2 * PAGE, 4 * PAGE]
        assert [x.iova for x in (a, b, c)] == [IOVA + x.offset for x in (a, b, c)]
        a.free()
        b.free()
        assert pool.alloc(4 * PAGE, owner="d").offset == pool.data_offset
        gc.collect()
        c.free()
        assert pool.free_bytes == 64 * PAGE
        assert pool.alloc(64 * PAGE, owner="all").nbytes == 64 * PAGE

    def test_nbytes_is_exact_and_pages_are_rounded_up(self, pool: Pool) -> None:
        buffer = pool.alloc(PAGE + 1, owner="odd")
        assert len(buffer) == buffer.nbytes == PAGE + 1
        assert pool.used_bytes == 2 * PAGE

    def test_zeroed(self, pool: Pool) -> None:
        buffer = pool.alloc(3 * PAGE, owner="a")
        buffer[:] = b"\xff" * (3 * PAGE)
        offset = buffer.offset
        buffer.free()
        again = pool.alloc(3 * PAGE - 5, owner="b")
        assert again.offset == offset
        assert bytes(again) == bytes(3 * PAGE - 5)
        assert os.pread(pool.fd, 5, offset + 3 * PAGE - 5) == bytes(5), "the tail of the last page too"
        again[:3] = b"abc"
        again.free()
        assert bytes(pool.alloc(PAGE, owner="c", zero=False)[:3]) == b"abc"

    @pytest.mark.parametrize("align", [1, 512, 4096, 8192, 65536])
    def test_alignment_of_the_iova(self, pool: Pool, align: int) -> None:
        keep = pool.alloc(1, owner="pad")
        buffer = pool.alloc(PAGE, owner="aligned", align=align)
        assert buffer.iova % max(align, PAGE) == 0
        buffer.free()
        keep.free()
        assert pool.inspect()["longest_free_run"] == 64 * PAGE

    @pytest.mark.parametrize("align", [0, -4096, 3, 4097, 1 << 60])
    def test_bad_alignment(self, pool: Pool, align: int) -> None:
        with pytest.raises(ValueError, match="power of two"):
            pool.alloc(1, owner="a", align=align)

    def test_exhaustion_reports_the_free_memory(self, pool: Pool) -> None:
        kept = [pool.alloc(PAGE, owner="a") for _ in range(64)]
        for buffer in kept[::2]:
            buffer.free()
        with pytest.raises(
            OutOfDmaMemory, match=rf"no run of 8192 bytes.*{32 * PAGE} bytes are free, 4096 in the longest"
        ):
            pool.alloc(2 * PAGE, owner="b")
        with pytest.raises(MemoryError) as caught:
            pool.alloc(1 << 70, owner="b")
        assert isinstance(caught.value, NvmeError)

    @pytest.mark.parametrize("nbytes", [0, -1])
    def test_zero_bytes_are_refused(self, pool: Pool, nbytes: int) -> None:
        with pytest.raises(ValueError, match="cannot allocate"):
            pool.alloc(nbytes, owner="a")

    def test_owner_and_tag(self, pool: Pool) -> None:
        buffer = pool.alloc(1, owner="ü" * 15 + "x", tag=(1 << 64) - 1)
        assert (buffer.owner, buffer.tag) == ("ü" * 15 + "x", (1 << 64) - 1)
        assert MAX_TEXT_BYTES == 31
        for owner in ("", "x" * 32, "a\0"):
            with pytest.raises(ValueError, match="owner"):
                pool.alloc(1, owner=owner)
        with pytest.raises(OverflowError):
            pool.alloc(1, owner="a", tag=1 << 64)
        assert owners(pool) == [buffer.owner]


class TestBuffer:
    def test_buffer_protocol(self, pool: Pool) -> None:
        buffer = pool.alloc(PAGE, owner="a")
        view = memoryview(buffer)
        assert (view.nbytes, view.format, view.ndim, view.shape, view.strides) == (
            PAGE,
            "B",
            1,
            (PAGE,),
            (1,),
        )
        assert not view.readonly
        assert view.contiguous
        buffer[4:8] = b"abcd"
        assert bytes(view[4:8]) == b"abcd"
        assert isinstance(buffer[4:8], memoryview)
        assert buffer[4] == ord("a")
        buffer[-1] = 7
        assert bytes(buffer)[-1] == 7
        assert os.pread(pool.fd, 4, buffer.offset + 4) == b"abcd"
        array = np.asarray(buffer)
        array[:2] = (1, 2)
        assert array.dtype == np.uint8
        assert bytes(buffer[:2]) == b"\1\2"
        with pytest.raises(IndexError):
            buffer[PAGE]
        with pytest.raises(ValueError, match="assignment"):
            buffer[0:4] = b"12345"

    def test_free_returns_the_pages_at_once_when_not_exported(self, pool: Pool) -> None:
        with pool.alloc(PAGE, owner="a") as buffer:
            assert pool.used_bytes == PAGE
        assert buffer.freed
        assert pool.used_bytes == 0
        assert pool.slots() == []
        buffer.free()
        assert pool.free_bytes == 64 * PAGE

    def test_use_after_free(self, pool: Pool) -> None:
        buffer = pool.alloc(PAGE, owner="a")
        buffer.free()
        for use in (
            lambda: buffer[0],
            lambda: buffer[:],
            lambda: memoryview(buffer),
            lambda: bytes(buffer),
            lambda: buffer.owner,
        ):
            with pytest.raises(ValueError, match="freed DmaBuffer"):
                use()
        with pytest.raises(ValueError, match="freed DmaBuffer"):
            buffer[0] = 1
        assert "freed" in repr(buffer)

    def test_exports_keep_the_pages(self, pool: Pool) -> None:
        buffer = pool.alloc(PAGE, owner="a")
        view, array = memoryview(buffer), np.asarray(buffer)
        buffer.free()
        assert pool.used_bytes == PAGE
        assert owners(pool) == ["a"]
        with pytest.raises(ValueError, match="freed"):
            memoryview(buffer)
        view[0] = 3
        assert array[0] == 3
        view.release()
        assert pool.used_bytes == PAGE
        del array
        assert pool.used_bytes == 0
        assert pool.inspect()["exports"] == 0

    def test_views_outlive_the_object(self, pool: Pool) -> None:
        view = pool.alloc(PAGE, owner="a")[:]
        gc.collect()
        assert pool.used_bytes == PAGE
        view[:2] = b"ok"
        del view
        assert pool.used_bytes == 0

    def test_dropping_a_buffer_frees_it(self, pool: Pool) -> None:
        buffer = pool.alloc(PAGE, owner="a")
        del buffer
        assert pool.used_bytes == 0

    def test_dropping_a_persistent_buffer_does_not_free_it(self, pool: Pool) -> None:
        buffer = pool.alloc(PAGE, owner="a", tag=9, persistent=True)
        buffer[:4] = b"kept"
        offset = buffer.offset
        del buffer
        assert pool.slots() == [Slot(offset, PAGE, "a", 9, "allocated", True)]
        again = pool.claim(offset)
        assert bytes(again[:4]) == b"kept"
        assert again.persistent
        again.free()
        assert pool.used_bytes == 0

    def test_buffers_keep_their_pool_alive(self) -> None:
        buffer = Pool(1 << 16, iova=0).alloc(PAGE, owner="a")
        gc.collect()
        buffer[:2] = b"ok"
        assert bytes(buffer[:2]) == b"ok"

    def test_a_buffer_cannot_be_constructed_directly(self) -> None:
        with pytest.raises(ValueError, match="freed"):
            DmaBuffer()[0]


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
        with pytest.raises(InvalidSavedState, match=r"at IOVA 0x100000000, expected 0x1000"):
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
            (16, struct.pack("<Q", 1 << 20), "says it has 1048576 bytes"),
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
            (PAGE + 32, bytes(1), "no proper owner"),
            (PAGE + 32, b"x" * 32, "no proper owner"),
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
    """pool.verify(): a flipped bit in header or table is refused, or changes nothing that counts."""

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
        """Each bit of the slots in use or freed; and some together with a second one."""
        whole = self.read(image)
        assert whole is not None
        for bit in range(0, 8 * 64 * 10, 5 if distance else 1):
            flipped = bytearray(image)
            for one in {bit, bit + distance}:
                flipped[PAGE + one // 8] ^= 1 << one % 8
            found = self.read(bytes(flipped))
            if found is not None and found != whole:
                # Allocated or leaked: the two that may be claimed.
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
    """ext/dma/pool.c, written down a second time."""
    _, flags, offset, nbytes, tag, *owner, last = struct.unpack("<IIQQQ3QI", slot)
    total = 0
    for word in (offset, nbytes, tag, *owner, flags << 32 | last):
        total = (total ^ word) * FACTOR & (1 << 64) - 1
        total ^= total >> 32
    return total & (1 << 32) - 1
