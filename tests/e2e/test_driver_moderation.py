"""Sleeps that no interrupt ends: controllers that moderate their interrupts, and lost interrupts.

The limits are far below the watchdog's first poll (command_timeout / 8 = 3.75 s), and far above
what a busy machine needs. To run it by hand, for a minute on an idle machine, with the documented
limit:

    NVME_ASYNC_MODERATION=60,0.05 pytest tests/e2e/test_driver_moderation.py -k batch
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from driving import eventually, within

import nvme_async
from nvme_async.driver.queues import loop_waits
from nvme_async.emulator import FOREVER
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands

pytestmark = pytest.mark.alone  # measures times

SECONDS, LONGEST = (float(part) for part in os.environ.get("NVME_ASYNC_MODERATION", "1,3").split(","))

MODERATED = {
    "adaptive": "moderation=adaptive",
    "coalescing": "aggregation_threshold=200,aggregation_time=25500",
    "one queue's worth": "aggregation_threshold=256,aggregation_time=1000",
}


def queue(controller: Controller) -> dict[str, Any]:
    (found,) = controller.inspect()["io_queues"]
    return dict(found)


@pytest.mark.parametrize("depth", [32, 128, 254])
@pytest.mark.parametrize("moderation", ["adaptive", "coalescing"])
async def test_no_batch_waits_for_the_watchdog(moderation: str, depth: int) -> None:
    longest, batches = 0.0, 0
    uri = f"emulated:size=64MiB,medium=null,{MODERATED[moderation]}"
    async with nvme_async.open(uri, pool_bytes=64 << 20) as controller:
        namespace = controller.namespaces[1]
        lbas = list(range(1024))
        end = time.monotonic() + SECONDS
        with controller.alloc(1024 * namespace.block_size) as buffer:
            while (begin := time.monotonic()) < end:
                await namespace.read_many(lbas, buffer, depth=depth)
                longest = max(longest, time.monotonic() - begin)
                batches += 1
        print(f"{moderation} {depth}: {batches} batches, longest {longest * 1e3:.1f} ms, {queue(controller)}")
    assert longest < LONGEST, f"{batches} batches, the longest took {longest * 1e3:.1f} ms"


@pytest.mark.parametrize("mode", ["adaptive", "interrupt"])
@pytest.mark.parametrize("moderation", MODERATED)
async def test_single_awaits_complete_soon(moderation: str, mode: Any) -> None:
    longest = 0.0

    async def reader(first: int) -> None:
        nonlocal longest
        for lba in range(first, first + 200):
            begin = time.monotonic()
            await namespace.read(lba)
            longest = max(longest, time.monotonic() - begin)

    async with nvme_async.open(f"emulated:size=64MiB,medium=null,{MODERATED[moderation]}", mode=mode) as controller:
        namespace = controller.namespaces[1]
        await reader(0)
        await asyncio.gather(*(reader(200 * i) for i in range(8)))
    assert longest < LONGEST, f"the longest took {longest * 1e3:.1f} ms"


async def test_missed_interrupts_are_counted() -> None:
    async with nvme_async.open("emulated:size=16MiB", mode="interrupt") as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)
        assert queue(controller)["missed_interrupts"] == 0
        rule = controller.device.emulator.faults.add(queue="io", opcode=2, lose_interrupt=True, delay=0.003)
        reads = 0
        while queue(controller)["missed_interrupts"] < 3:  # on a busy machine some are over before there is a sleep
            begin = time.monotonic()
            await namespace.read(reads)
            assert time.monotonic() - begin < LONGEST
            reads += 1
            assert reads < 1000
        rule.remove()
        for lba in range(100):
            await namespace.read(lba)
        await eventually(lambda: queue(controller)["missed_interrupts"] == 3)  # one that comes late isn't counted


async def test_the_admin_queue_does_not_wait_for_a_lost_interrupt() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        controller.device.emulator.faults.add(queue="admin", opcode=6, lose_interrupt=True, delay=0.003)
        while not controller.inspect()["admin_queue"]["missed_interrupts"]:
            begin = time.monotonic()
            await controller.admin(commands.identify(1))
            assert time.monotonic() - begin < LONGEST


async def test_a_cancelled_command_frees_its_id_without_an_interrupt() -> None:
    """There is only one id: the next command needs the one that a cancelled command still has."""
    async with nvme_async.open("emulated:size=16MiB,depth=2", mode="interrupt") as controller:
        namespace = controller.namespaces[1]
        faults = controller.device.emulator.faults
        rule = faults.add(queue="io", opcode=2, count=1, lose_interrupt=True, delay=FOREVER)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(namespace.read(0), 0.005)
        await eventually(lambda: rule.hits)
        asyncio.get_running_loop().call_later(0.01, faults.release)
        begin = time.monotonic()
        await namespace.read(1)
        assert time.monotonic() - begin < LONGEST


async def test_coalescing_follows_the_features() -> None:
    """Aggregation threshold and time (feature 08h), and an exempted vector (09h, CD)."""
    async with nvme_async.open("emulated:size=16MiB", mode="interrupt") as controller:
        namespace = controller.namespaces[1]
        faults = controller.device.emulator.faults

        async def interrupts(reads: int) -> int:
            before = faults.counters()["interrupts"]
            for lba in range(reads):
                await namespace.read(lba)
            return int(faults.counters()["interrupts"] - before)

        await namespace.read(0)
        vector = queue(controller)["vector"]
        await controller.admin(commands.set_features(8, 255 << 8 | 99))
        assert await interrupts(8) < 8  # the early polls found them all, or almost all
        await controller.admin(commands.set_features(9, vector | 1 << 16))
        assert await interrupts(8) >= 1
        await controller.admin(commands.set_features(9, vector))
        await controller.admin(commands.set_features(8, 0))
        assert await interrupts(8) >= 1


@pytest.mark.parametrize("mode", ["adaptive", "interrupt"])
async def test_a_slow_command_does_not_keep_the_next_one_waiting(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    """Early polls have become rare when its answer comes; for the next sleep they begin anew."""
    monkeypatch.setattr(loop_waits, "EARLY_POLLS", (0.001, 60.0))
    async with nvme_async.open("emulated:size=1MiB", mode=mode, spin_us=0, command_timeout=0) as controller:
        namespace = controller.namespaces[1]
        emulator = controller.device.emulator  # type: ignore[attr-defined]
        emulator.faults.add(queue="io", opcode=2, count=1, delay=0.02)
        emulator.faults.add(queue="io", opcode=2, skip=1, lose_interrupt=True, delay=0.0005)
        await within(10, namespace.read(0))
        await within(10, namespace.read(1))
