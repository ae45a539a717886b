"""A controller's memory comes from DMA clients: their policy, what inspect() shows, and their state
after a takeover.
"""

from __future__ import annotations

import logging

import pytest
from driver_line import WAYS, Way, line

import nvme_async
from nvme_async.dma.manager import Policy
from nvme_async.driver.pcie.memory import ROOM
from nvme_async.errors import OutOfDmaMemory
from nvme_async.keepalive import restore

ways = pytest.mark.parametrize("way", WAYS)
MIB = 1 << 20


def clients(controller: nvme_async.Controller) -> list[dict]:
    return controller.inspect()["memory"]["clients"]


async def test_without_keepalive_memory_is_ephemeral_and_grows_by_clients() -> None:
    async with nvme_async.open("emulated:size=16MiB", pool_bytes=2 * MIB) as controller:
        assert [(client["name"], client["policy"]) for client in clients(controller)] == [("pool0", "ephemeral")]
        assert controller.inspect()["memory"]["private_bytes"] == 0
        buffers = [controller.alloc(MIB) for _ in range(4)]
        assert {client["policy"] for client in clients(controller)} == {"ephemeral"}
        assert len({client["name"] for client in clients(controller)}) == len(clients(controller)) >= 2
        assert sum(client["states"]["allocated"]["nbytes"] for client in clients(controller)) >= 4 * MIB
        del buffers


async def test_with_keepalive_memory_is_private_without_fallback() -> None:
    async with line(pool_bytes=4 * MIB) as drivers:
        driver = drivers.driver
        (client,) = clients(driver)
        assert client["policy"] == "private"
        assert driver.inspect()["memory"]["private_bytes"] >= driver.memory.pools[0].nbytes
        taken = []

        def take_all() -> None:
            while True:
                taken.append(driver.alloc(64 << 10))

        with pytest.raises(OutOfDmaMemory):
            take_all()
        assert len(taken) > 40
        assert len(clients(driver)) == 1
        with pytest.raises(OutOfDmaMemory, match="are left"):
            driver.memory.manager.client("another", Policy.PRIVATE, 2 * MIB)


@ways
async def test_what_make_room_had_taken_is_free_again(way: Way) -> None:
    """The predecessor was killed before it gave the memory back. The controller never learned of
    it.
    """
    async with line() as drivers:
        taken = drivers.driver.memory.find(64 << 10, owner=ROOM)
        driver = await drivers.succeed(way)
        assert await driver.validate_restore() == []
        assert ROOM not in {slot.owner for slot in driver.memory.pools[0].slots()}
        del taken


@ways
async def test_slot_states_across_a_takeover(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    """Allocated → pending-restore → claimed by its owner, or leaked and reported; leaked slots stay
    leaked until a fresh bring-up.
    """
    async with line() as drivers:
        wanted, unwanted = drivers.driver.alloc(8192, tag=1), drivers.driver.alloc(16384, tag=2)
        wanted[:4] = b"mine"
        await drivers.succeed(way)
        driver = drivers.driver
        (client,) = clients(driver)
        assert client["states"]["pending-restore"] == {"slots": 2, "nbytes": 24576}
        (slot,) = [slot for slot in driver.unclaimed() if slot.tag == 1]
        claimed = driver.claim(slot)
        assert bytes(claimed[:4]) == b"mine"
        assert clients(driver)[0]["states"]["pending-restore"] == {"slots": 1, "nbytes": 16384}
        with caplog.at_level(logging.WARNING, "nvme_async"):
            (leaked,) = await driver.validate_restore()
        assert (leaked.tag, leaked.state, leaked.nbytes) == (2, "leaked", 16384)
        assert "16384 bytes" in caplog.text
        assert "leaked" in caplog.text
        assert clients(driver)[0]["states"]["leaked"] == {"slots": 1, "nbytes": 16384}
        assert await driver.validate_restore() == []
        claimed.free()
        # Its pages have no owner in the next process either, and become free at a reset.
        await drivers.succeed("save")
        assert clients(drivers.driver)[0]["states"]["leaked"] == {"slots": 1, "nbytes": 16384}
        with await drivers.driver.save() as bundle:
            drivers.past.append(drivers.driver)
            drivers.driver = await restore(bundle, keepalive=False)
        assert clients(drivers.driver)[0]["states"]["leaked"]["slots"] == 0
        del unwanted


async def test_repeated_takeovers_leak_no_memory() -> None:
    """After ten takeovers as much is free as after the first."""
    async with line() as drivers:
        await drivers.namespace.read(0)
        free = clients(drivers.driver)[0]["states"]["free"]
        for _ in range(10):
            await drivers.succeed("save")
            await drivers.namespace.read(0)
        assert clients(drivers.driver)[0]["states"]["free"] == free
