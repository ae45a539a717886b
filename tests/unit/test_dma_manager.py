"""DMA clients, policies, save and restore."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from nvme_async.dma.manager import DmaManager, Policy, Unclaimed
from nvme_async.errors import ConfigurationError, InvalidSavedState, OutOfDmaMemory
from nvme_async.native._dma import Pool

MIB = 1 << 20


@pytest.fixture
def manager() -> Iterator[DmaManager]:
    with DmaManager(4 * MIB, hugepages="never") as manager:
        yield manager


def successor(manager: DmaManager, private_bytes: int = 4 * MIB) -> DmaManager:
    saved = json.loads(json.dumps(manager.save()))
    return DmaManager.restore(saved, manager.descriptors(), private_bytes, hugepages="never")


class TestClients:
    def test_policies(self, manager: DmaManager) -> None:
        private = manager.client("0000:01:00.0", Policy.PRIVATE, MIB)
        ephemeral = manager.client("scratch", Policy.EPHEMERAL, MIB, iova=1 << 40)
        assert private.pool.free_bytes == MIB
        assert private.pool.name == "0000:01:00.0"
        assert (private.pool.iova, ephemeral.pool.iova) == (1 << 32, 1 << 40)
        kept, lost = private.alloc(4096, owner="queue 1", tag=1), ephemeral.alloc(4096)
        assert (kept.persistent, lost.persistent) == (True, False)
        assert (kept.owner, lost.owner) == ("queue 1", "scratch")
        assert set(manager.descriptors()) == {"0000:01:00.0"}
        assert [pool["name"] for pool in manager.save()["pools"]] == ["0000:01:00.0"]

    def test_names_are_unique(self, manager: DmaManager) -> None:
        client = manager.client("a", Policy.PRIVATE, MIB)
        for policy in Policy:
            with pytest.raises(ConfigurationError, match="'a' exists already"):
                manager.client("a", policy, MIB)
        client.close()
        manager.client("a", Policy.EPHEMERAL, MIB)
        with pytest.raises(ValueError, match="1 to 31 bytes"):
            manager.client("x" * 32, Policy.EPHEMERAL, MIB)

    def test_no_private_pool_no_fallback(self) -> None:
        with DmaManager() as manager:
            with pytest.raises(ConfigurationError, match="no private pool is configured"):
                manager.client("a", Policy.PRIVATE, MIB)
            manager.client("a", Policy.EPHEMERAL, MIB)
        with pytest.raises(ConfigurationError, match="-1 bytes"):
            DmaManager(-1)

    def test_private_memory_is_bounded(self, manager: DmaManager) -> None:
        first = manager.client("a", Policy.PRIVATE, 3 * MIB)
        with pytest.raises(OutOfDmaMemory, match=r"'b' needs \d+ bytes.* of 4194304 are left"):
            manager.client("b", Policy.PRIVATE, MIB)
        manager.client("b", Policy.EPHEMERAL, 8 * MIB)
        first.close()
        manager.client("c", Policy.PRIVATE, 3 * MIB)

    @pytest.mark.parametrize(("nbytes", "message"), [(None, "needs a size"), (0, "0 bytes"), (100, "100 bytes")])
    def test_sizes(self, manager: DmaManager, nbytes: int | None, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            manager.client("a", Policy.PRIVATE, nbytes)

    def test_closing(self, manager: DmaManager) -> None:
        with manager.client("a", Policy.PRIVATE, MIB) as client:
            view = client.alloc(4096)[:]
            with pytest.raises(BufferError):
                client.close()
            with pytest.raises(BufferError):
                manager.close()
            assert not client.pool.closed
            view.release()
        assert client.pool.closed
        assert manager.inspect()["clients"] == []


class TestRestore:
    def test_claim(self, manager: DmaManager) -> None:
        client = manager.client("ctrl", Policy.PRIVATE, MIB)
        buffers = [client.alloc(8192, owner=f"queue {i}", tag=i) for i in range(3)]
        buffers[1][:5] = b"hello"
        with successor(manager) as other:
            assert other.inspect()["pending_clients"][0]["name"] == "ctrl"  # type: ignore[index]
            with pytest.raises(ConfigurationError, match="restored as private"):
                other.client("ctrl", Policy.EPHEMERAL, MIB)
            with pytest.raises(OutOfDmaMemory, match="has 1048576 bytes, not 2097152"):
                other.client("ctrl", Policy.PRIVATE, 2 * MIB)
            with pytest.raises(OutOfDmaMemory, match="private memory"):
                other.client("another", Policy.PRIVATE, 3 * MIB)
            again = other.client("ctrl", Policy.PRIVATE)
            assert [(slot.owner, slot.state) for slot in again.pending()] == [
                ("queue 0", "pending-restore"),
                ("queue 1", "pending-restore"),
                ("queue 2", "pending-restore"),
            ]
            claimed = {slot.owner: again.claim(slot.offset) for slot in again.pending()}
            assert bytes(claimed["queue 1"][:5]) == b"hello"
            assert other.validate_restore() == []
            assert again.pending() == []

    def test_what_nobody_claims_is_leaked_until_reclaimed(self, manager: DmaManager) -> None:
        for name in ("one", "two"):
            client = manager.client(name, Policy.PRIVATE, MIB)
            client.alloc(4096, tag=1)
            client.alloc(8192, tag=2)
        with successor(manager) as other:
            one = other.client("one", Policy.PRIVATE)
            kept = one.claim(one.pending()[0].offset)
            unclaimed = other.validate_restore()
            assert [(u.client, u.slot.tag, u.slot.state) for u in unclaimed] == [
                ("one", 2, "leaked"),
                ("two", 1, "leaked"),
                ("two", 2, "leaked"),
            ]
            assert isinstance(unclaimed[0], Unclaimed)
            assert other.validate_restore() == [], "said once"
            with successor(other) as third:
                states = [slot.state for slot in third.client("one", Policy.PRIVATE).pool.slots()]
                assert states == ["pending-restore", "leaked"], "it is recorded in the pool"
            assert other.reclaim("one") == 8192
            assert one.pool.used_bytes == 4096
            assert other.reclaim("two") == 12288
            with pytest.raises(ConfigurationError, match="no DMA client 'two'"):
                other.reclaim("two")
            other.client("two", Policy.PRIVATE, MIB)
            kept.free()

    def test_configured_less_than_there_was(self, manager: DmaManager) -> None:
        manager.client("ctrl", Policy.PRIVATE, MIB)
        with pytest.raises(ConfigurationError, match=r"left \d+ bytes.*'ctrl'.*no private pool is configured"):
            successor(manager, 0)
        with pytest.raises(ConfigurationError, match="only 4096 are configured"):
            successor(manager, 4096)

    def test_wrong_pools(self, manager: DmaManager) -> None:
        manager.client("a", Policy.PRIVATE, MIB)
        manager.client("b", Policy.PRIVATE, MIB)
        saved, descriptors = manager.save(), manager.descriptors()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(InvalidSavedState, match="'b' is missing"):
            DmaManager.restore(saved, {"a": descriptors["a"]}, 4 * MIB)
        with pytest.raises(InvalidSavedState, match="'a' is another"):
            DmaManager.restore(saved, {"a": descriptors["b"], "b": descriptors["a"]}, 4 * MIB)
        with Pool(MIB, iova=1 << 32, hugepages="never") as foreign, pytest.raises(InvalidSavedState, match="another"):
            DmaManager.restore(saved, {**descriptors, "b": foreign.fd}, 4 * MIB)
        saved["pools"].append(saved["pools"][0])
        with pytest.raises(InvalidSavedState, match="'a' twice"):
            DmaManager.restore(saved, descriptors, 4 * MIB)
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize(
        ("saved", "message"),
        [
            ({}, "version None"),
            ({"version": 2, "pools": []}, "version 2"),
            ({"version": 1}, "pools"),
            ({"version": 1, "pools": [{"name": "a"}]}, "id"),
            ({"version": 1, "pools": 7}, "makes no sense"),
        ],
    )
    def test_bad_state(self, saved: dict[str, object], message: str) -> None:
        with pytest.raises(InvalidSavedState, match=message):
            DmaManager.restore(saved, {}, MIB)

    def test_unknown_fields_are_no_matter(self) -> None:
        DmaManager.restore({"version": 1, "pools": [], "later": 1}, {}, 0).close()
