"""The limits of memory for devices: the machine, control groups, the limit of locked memory."""

from __future__ import annotations

import resource
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nvme_async.dma import Pool, limits
from nvme_async.dma import budget as budget_module
from nvme_async.dma.budget import Budget
from nvme_async.dma.limits import Bound

MIB = 1 << 20


def machine(root: Path, *, total: int = 8192, available: int = 4096, caps: int = 0, locked: int = 0) -> None:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {total << 10} kB\nMemAvailable: {available << 10} kB\n"
        "HugePages_Total:      10\nHugePages_Free:        4\nHugePages_Rsvd:        1\nHugepagesize: 2048 kB\n"
    )
    (root / "proc/self/status").write_text(f"Name: x\nVmLck: {locked << 10} kB\nCapEff:\t{caps:016x}\n")


def group(root: Path, path: str, limit: str, used: int, cache: int = 0, *, version: int = 2) -> None:
    top = root / "sys/fs/cgroup" / ("" if version == 2 else "memory")
    folder = top / path
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used << 20}\n")
    (folder / "memory.stat").write_text(f"anon 5\nactive_file {cache << 20}\ninactive_file 0\n")


def test_the_machines_memory_is_the_limit(tmp_path: Path) -> None:
    machine(tmp_path)
    left = limits.memory_left(tmp_path)
    assert left is not None
    assert left.nbytes == 4096 * MIB
    assert "machine" in left.reason
    assert limits.memory_size(tmp_path) == 8192 * MIB
    assert limits.huge_pages_left(tmp_path) == 3 * 2 * MIB


def test_without_information_there_is_no_limit(tmp_path: Path) -> None:
    assert limits.memory_left(tmp_path) is None
    assert limits.memory_size(tmp_path) is None
    assert limits.huge_pages_left(tmp_path) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_control_group_counts_less_its_page_cache(tmp_path: Path, version: int) -> None:
    machine(tmp_path)
    line = "0::/a/b\n" if version == 2 else "9:name=systemd:/\n4:cpu,memory:/a/b\n"
    (tmp_path / "proc/self/cgroup").write_text(line)
    unlimited = "max" if version == 2 else "9223372036854771712"
    group(tmp_path, "a/b", unlimited, 100, version=version)
    group(tmp_path, "a", str(512 * MIB), 300, 88, version=version)
    left = limits.memory_left(tmp_path)
    assert left is not None
    assert left.nbytes == 300 * MIB
    assert str(512 * MIB) in left.reason
    assert limits.memory_size(tmp_path) == 512 * MIB


def test_an_invisible_control_group_path_is_handled(tmp_path: Path) -> None:
    machine(tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("0::/../../host/path\n")
    group(tmp_path, "", str(64 * MIB), 32)
    left = limits.memory_left(tmp_path)
    assert left is not None
    assert left.nbytes == 32 * MIB


def test_locked_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 * MIB, 8 * MIB))
    machine(tmp_path, locked=3)
    bound = limits.lockable(tmp_path)
    assert bound is not None
    assert bound.nbytes == 5 * MIB
    assert "ulimit -l" in bound.reason
    machine(tmp_path, caps=1 << 14)
    assert limits.lockable(tmp_path) is None
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    machine(tmp_path)
    assert limits.lockable(tmp_path) is None


def test_promised_memory_is_not_promised_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_left", lambda: Bound(80 * MIB, "the group"))
    monkeypatch.setattr(limits, "memory_size", lambda: 1 << 40)
    monkeypatch.setattr(budget_module, "_pools", weakref.WeakSet())  # other tests' pools are not counted here
    budget = Budget(None, hugepages="never", locked=False)
    assert budget.room((), MIB).nbytes == 70 * MIB
    with Pool(32 * MIB, iova=0, hugepages="never") as pool:
        budget.count(pool)
        assert 38 * MIB <= budget.room((pool,), MIB).nbytes < 39 * MIB
        pool.alloc(16 * MIB, owner="x")[:] = b"\1" * (16 * MIB)
        assert budget.room((pool,), MIB).nbytes >= 54 * MIB
    assert budget.room((), MIB).nbytes == 70 * MIB


def test_the_option_and_the_default_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_left", lambda: None)
    monkeypatch.setattr(limits, "memory_size", lambda: 100 * MIB)
    with Pool(2 * MIB, iova=0, hugepages="never") as pool:
        bound = Budget(None, hugepages="never", locked=False).room((pool,), MIB)
        assert (bound.nbytes, "memory_limit" in bound.reason) == (48 * MIB, True)
        assert Budget(MIB, hugepages="never", locked=False).room((pool,), MIB).nbytes == 0


def test_pools_may_be_counted_in_one_thread_while_another_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Controllers open, and pools grow, in threads of their own."""
    reached = threading.Event()

    class Slow(weakref.WeakSet[Pool]):
        def __iter__(self) -> Iterator[Pool]:
            for pool in super().__iter__():
                reached.set()
                time.sleep(0.1)  # the other thread adds now, or waits
                yield pool

    monkeypatch.setattr(budget_module, "_pools", Slow())
    budget = Budget(None, hugepages="never", locked=False)
    pools = [Pool(1 << 16, iova=1 << 32, hugepages="never") for _ in range(2)]
    budget.count(pools[0])
    with ThreadPoolExecutor(1) as executor:
        room = executor.submit(budget.room, [], 4096)
        assert reached.wait(60)
        budget.count(pools[1])
        assert room.result(60).nbytes > 0
    for pool in pools:
        pool.close()
