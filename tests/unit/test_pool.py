"""Pool and DmaBuffer: allocation, lifetime, and the table that a successor reads."""

import gc
import os
import re
from pathlib import Path

import numpy as np
import pytest
from pools import IOVA, PAGE, owners

from nvme_async.errors import NvmeError, OutOfDmaMemory
from nvme_async.native._dma import MAX_TEXT_BYTES, DmaBuffer, Pool, Slot


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
