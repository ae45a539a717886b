"""Keep Alive over PCIe: sent if asked for, and missed by the controller."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from driver_line import WAYS, Way, line
from driving import FAST, HASTY, eventually, faults

import nvme_async
from nvme_async.driver.pcie import keep_alive
from nvme_async.spec import commands
from nvme_async.spec.opcodes import AdminOpcode, Feature

URI = "emulated:size=16MiB"
SET_FEATURES = AdminOpcode.SET_FEATURES


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 10 ms, of a timeout that no slow machine reaches."""
    monkeypatch.setattr(keep_alive, "PER_TIMEOUT", 3000)


def sent(counters: dict[str, Any]) -> int:
    return int(counters["admin"].get(AdminOpcode.KEEP_ALIVE, 0))


async def timeout_of(controller: nvme_async.Controller) -> int:
    return (await controller.admin(commands.get_features(Feature.KEEP_ALIVE_TIMER))).dw0


async def test_by_default_there_is_none() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        assert await timeout_of(controller) == 0
        assert controller.transport.keep_alive._task is None  # type: ignore[attr-defined]


@pytest.mark.usefixtures("often")
async def test_the_timer_is_set_again_after_a_reset_and_keep_alives_go_on() -> None:
    async with nvme_async.open(URI, pcie_keep_alive_tmo=30.0, **FAST) as controller:
        assert await timeout_of(controller) == 30_000
        await eventually(lambda: sent(faults(controller).counters()) >= 3)
        await controller.reset()
        assert await timeout_of(controller) == 30_000
        before = sent(faults(controller).counters())
        await eventually(lambda: sent(faults(controller).counters()) >= before + 3)
        assert controller.resets == 1


async def test_a_controller_without_them_stops_and_is_reset() -> None:
    async with nvme_async.open(URI, **HASTY) as controller:
        await controller.admin(commands.set_features(Feature.KEEP_ALIVE_TIMER, 100))
        while not (await controller.registers.csts()).cfs:
            await asyncio.sleep(0.01)
        await controller.namespaces[1].write(0, bytes(4096))  # notices it, and is sent again after a reset
        assert controller.resets == 1
        assert await timeout_of(controller) == 0


async def test_fused_mode_sends_none() -> None:
    async with nvme_async.open(URI, fused=True, pcie_keep_alive_tmo=30.0, **FAST) as controller:
        assert "fused mode" in controller.inspect()["degraded"]["Keep Alive Timer"]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("way", WAYS)
async def test_a_successor_sends_them_or_ends_them(way: Way) -> None:
    async with line("size=16MiB", pcie_keep_alive_tmo=30.0) as drivers:
        successor = await drivers.succeed(way)
        before = sent(drivers.faults.counters())
        await eventually(lambda: sent(drivers.faults.counters()) >= before + 3)
        assert await timeout_of(successor) == 30_000
        last = await drivers.succeed(way, pcie_keep_alive_tmo=0)
        until = asyncio.get_running_loop().time() + 30
        while await timeout_of(last):
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.005)
        assert last.resets == 0
