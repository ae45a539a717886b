"""DMA clients and policies."""

from __future__ import annotations

import pytest

from nvme_async.dma.manager import DmaManager, Policy
from nvme_async.errors import ConfigurationError, OutOfDmaMemory
from nvme_async.native._dma import Pool

MIB = 1 << 20


@pytest.fixture
def manager() -> DmaManager:
    return DmaManager(4 * MIB, hugepages="never")


def test_policies(manager: DmaManager) -> None:
    private = manager.client("0000:01:00.0", Policy.PRIVATE, MIB)
    ephemeral = manager.client("scratch", Policy.EPHEMERAL, MIB, iova=1 << 40)
    assert private.pool.free_bytes == MIB
    assert private.pool.name == "0000:01:00.0"
    assert (private.pool.iova, ephemeral.pool.iova) == (1 << 32, 1 << 40)
    buffer = private.alloc(4096, owner="queue 1", tag=1)
    assert (buffer.owner, buffer.tag) == ("queue 1", 1)
    assert private.states()["allocated"] == {"slots": 1, "nbytes": 4096}
    assert "private" in repr(private)


def test_names_are_unique(manager: DmaManager) -> None:
    client = manager.client("a", Policy.PRIVATE, MIB)
    for policy in Policy:
        with pytest.raises(ConfigurationError, match="'a' exists already"):
            manager.client("a", policy, MIB)
    client.close()
    manager.client("a", Policy.EPHEMERAL, MIB)
    with pytest.raises(ValueError, match="1 to 31 bytes"):
        manager.client("x" * 32, Policy.EPHEMERAL, MIB)


def test_no_private_pool_no_fallback() -> None:
    manager = DmaManager(hugepages="never")
    with pytest.raises(ConfigurationError, match="no private pool is configured"):
        manager.client("a", Policy.PRIVATE, MIB)
    manager.client("a", Policy.EPHEMERAL, MIB)
    with pytest.raises(ConfigurationError, match="-1 bytes"):
        DmaManager(-1)


def test_private_memory_is_bounded(manager: DmaManager) -> None:
    first = manager.client("a", Policy.PRIVATE, 3 * MIB)
    with pytest.raises(OutOfDmaMemory, match=r"'b' needs \d+ bytes.* of 4194304 are left"):
        manager.client("b", Policy.PRIVATE, MIB)
    manager.client("b", Policy.EPHEMERAL, 8 * MIB)
    first.close()
    manager.client("c", Policy.PRIVATE, 3 * MIB)


@pytest.mark.parametrize(("nbytes", "message"), [(0, "0 bytes"), (100, "100 bytes")])
def test_sizes(manager: DmaManager, nbytes: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        manager.client("a", Policy.PRIVATE, nbytes)


def test_closing(manager: DmaManager) -> None:
    client = manager.client("a", Policy.PRIVATE, MIB)
    view = client.alloc(4096, owner="x")[:]
    with pytest.raises(BufferError):
        client.close()
    assert not client.pool.closed
    view.release()
    client.close()
    assert client.pool.closed
    manager.client("a", Policy.PRIVATE, MIB)


def test_a_predecessors_pool_is_adopted_under_its_name_within_the_configured_limit() -> None:
    with Pool(2 * MIB, iova=1 << 32, name="pool0", hugepages="never") as pool:
        pool.alloc(4096, owner="x", persistent=True)
        with Pool.attach(pool.fd) as found, pytest.raises(OutOfDmaMemory, match="'pool0' needs"):
            DmaManager(MIB).adopt(found)
        manager = DmaManager(4 * MIB)
        client = manager.adopt(Pool.attach(pool.fd))
        assert (client.name, client.policy) == ("pool0", Policy.PRIVATE)
        assert client.states()["pending-restore"] == {"slots": 1, "nbytes": 4096}
        with pytest.raises(ConfigurationError, match="exists already"):
            manager.client("pool0", Policy.EPHEMERAL, MIB)
        with pytest.raises(ConfigurationError, match="exists already"), Pool.attach(pool.fd) as again:
            manager.adopt(again)
        (unclaimed,) = client.mark_unclaimed()
        assert (unclaimed.nbytes, unclaimed.state) == (4096, "leaked")
        assert client.states()["leaked"]["slots"] == 1
        assert client.mark_unclaimed() == []
        manager.forget(client)
        client.pool.detach()
        client.pool.close()
