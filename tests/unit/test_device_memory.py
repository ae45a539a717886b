"""A controller's pools: their place, their growth, and their behaviour with little room. VFIO's
kernel is a fake, so that a test can choose windows and limits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_pci import FakeSystem
from fake_vfio import FakeKernel

from nvme_async.device.vfio import VfioDevice
from nvme_async.dma import limits
from nvme_async.dma.limits import Bound
from nvme_async.driver.options import DEFAULT_POOL
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.errors import OutOfDmaMemory

ADDRESS = "0000:00:05.0"
MIB = 1 << 20
Make = Callable[..., DeviceMemory]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """make(ranges=…, dma_avail=…, memory options)."""
    monkeypatch.setattr(limits, "lockable", lambda: None)
    memories: list[DeviceMemory] = []
    kernels: list[FakeKernel] = []

    def made(*, lock: int | None = None, **wanted: Any) -> DeviceMemory:
        kernel = FakeKernel()
        kernels.append(kernel)
        for name in ("ranges", "dma_avail", "map_error"):
            if name in wanted:
                setattr(kernel, name, wanted.pop(name))
        if lock is not None:
            monkeypatch.setattr(
                limits, "lockable", lambda: Bound(lock - sum(n for _, n in kernel.mapped.values()), "the lock limit")
            )
        system = FakeSystem(tmp_path / str(len(kernels)))
        system.add_function(ADDRESS, 5, driver="vfio-pci")
        device = VfioDevice(ADDRESS, kernel=kernel, root=system.root)
        try:
            memory = DeviceMemory(device, **{"pool_bytes": 8 * MIB, "hugepages": "never", **wanted})
        except BaseException:
            device.close()
            raise
        memories.append(memory)
        return memory

    yield made
    for memory in memories:
        memory.close()
        memory.device.close()
    for kernel in kernels:
        kernel.close()


@pytest.mark.parametrize(
    ("ranges", "lowest"),
    [
        (None, 1 << 32),
        ([(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1)], 1 << 32),
        ([(0, 0xFEDF_FFFF), (0xFEF0_0000, 0xFFFF_FFFF)], 2 * MIB),
        ([(0, 0x7FF_FFFF), (0x810_0000, 0xFFF_FFFF)], 2 * MIB),
        ([(1 << 48, (1 << 52) - 1)], 1 << 48),
    ],
    ids=["old kernel", "39 bits", "32 bits", "a hole at 128 MiB", "above 2^48"],
)
def test_pools_lie_in_the_iommus_ranges(make: Make, ranges: Any, lowest: int) -> None:
    memory = make(ranges=ranges)
    buffers = [memory.alloc(7 * MIB, owner="x") for _ in range(4)]
    assert memory.pools[0].iova == lowest
    assert len(memory.pools) == 4
    windows = ranges or [(0, (1 << 39) - 1)]
    for pool in memory.pools:
        assert any(low <= pool.iova and pool.iova + pool.nbytes - 1 <= high for low, high in windows)
    ends = sorted((pool.iova, pool.iova + pool.nbytes) for pool in memory.pools)
    assert all(end <= begin for (_, end), (begin, _) in zip(ends, ends[1:], strict=False))
    for buffer in buffers:
        buffer.free()


def test_a_narrow_aperture_is_used_completely_and_named(make: Make) -> None:
    memory = make(ranges=[(0, 16 * MIB - 1)])
    kept = [memory.alloc(3 * MIB, owner="x") for _ in range(2)]
    error = None
    while error is None:
        try:
            kept.append(memory.alloc(MIB, owner="x"))
        except OutOfDmaMemory as caught:
            error = str(caught)
    assert "IOVA space are free; the device can address" in error
    assert sum(buffer.nbytes for buffer in kept) >= 9 * MIB


def test_the_default_pool_shrinks_to_a_small_window(make: Make) -> None:
    memory = make(
        ranges=[(i << 24, (i << 24) + 4 * MIB - 1) for i in range(1, 50)], flexible=True, pool_bytes=DEFAULT_POOL
    )
    assert memory.pools[0].nbytes < 4 * MIB
    assert memory.note is not None
    assert "instead of 33554432" in memory.note
    assert memory.inspect()["note"] == memory.note
    kept = [memory.alloc(MIB, owner="x") for _ in range(10)]
    assert len(memory.pools) > 3
    with pytest.raises(OutOfDmaMemory, match="IOVA space"):
        memory.alloc(7 * MIB, owner="x")
    del kept


def test_a_requested_pool_size_is_not_reduced(make: Make) -> None:
    with pytest.raises(
        OutOfDmaMemory, match="no memory for 8388608 more bytes that the device can access: the lock limit"
    ):
        make(lock=4 * MIB)


def test_a_window_too_small_for_the_requested_pool_is_an_error(make: Make) -> None:
    with pytest.raises(OutOfDmaMemory, match="IOVA space are free"):
        make(ranges=[(0, 4 * MIB - 1)])


@pytest.mark.parametrize("fixed", [False, True])
def test_the_default_pool_is_reduced_to_the_lock_limit_with_a_message(make: Make, fixed: bool) -> None:
    memory = make(lock=8 * MIB, pool_bytes=DEFAULT_POOL, flexible=True, fixed=fixed)
    (pool,) = memory.pools
    assert 7 * MIB < pool.nbytes <= 8 * MIB
    assert memory.note is not None
    assert "the lock limit" in memory.note
    kept = memory.alloc(6 * MIB, owner="x")
    with pytest.raises(OutOfDmaMemory):
        memory.alloc(4 * MIB, owner="x")
    kept.free()


@pytest.mark.parametrize("mappings", [0, 1, 3])
def test_the_devices_limit_of_mappings_is_respected(make: Make, mappings: int) -> None:
    if not mappings:
        with pytest.raises(OutOfDmaMemory, match="limit is 0 mappings"):
            make(dma_avail=mappings)
        return
    memory = make(dma_avail=mappings)
    for _ in range(mappings):
        memory.alloc(7 * MIB, owner="x", tag=1)
    # The buffers are freed with their last reference; the pools stay.
    kept = [memory.alloc(7 * MIB, owner="x") for _ in range(mappings)]
    with pytest.raises(OutOfDmaMemory, match=f"limit is {mappings} mappings"):
        memory.alloc(7 * MIB, owner="x")
    del kept


def test_memory_limit(make: Make) -> None:
    memory = make(limit=20 * MIB)
    kept = [memory.alloc(7 * MIB, owner="x") for _ in range(2)]
    with pytest.raises(OutOfDmaMemory, match="of 20971520 bytes, the option memory_limit"):
        memory.alloc(7 * MIB, owner="x")
    kept.append(memory.alloc(2 * MIB, owner="x"))


def test_growth_refused_by_the_device_leaks_nothing(make: Make) -> None:
    memory = make()
    kept = memory.alloc(7 * MIB, owner="x")
    kernel = memory.device._kernel  # type: ignore[attr-defined]
    kernel.map_error = 12
    for _ in range(2):
        with pytest.raises(OutOfDmaMemory, match="no more memory can be mapped for the device: can't map"):
            memory.alloc(7 * MIB, owner="x")
    kernel.map_error = 0
    assert len(memory.foreign_mappings()) == 0
    assert memory.alloc(7 * MIB, owner="x").iova > kept.iova
    assert len(memory.pools) == 2


def test_many_threads_grow_the_memory_once(make: Make) -> None:
    memory = make(pool_bytes=4 * MIB)
    kept: list[Any] = []
    errors: list[BaseException] = []
    begin = threading.Barrier(8)

    def work() -> None:
        begin.wait()
        for _ in range(10):
            try:
                kept.append(memory.alloc(3 * MIB, owner="x"))
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len({buffer.iova for buffer in kept}) == 80
    assert len(memory.pools) == 80
    assert len({pool.name for pool in memory.pools}) == 80


def test_memory_does_not_grow_after_close(make: Make) -> None:
    memory = make()
    memory.close()
    with pytest.raises(OutOfDmaMemory, match="closed"):
        memory.alloc(MIB, owner="x")
