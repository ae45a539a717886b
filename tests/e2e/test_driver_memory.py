"""The controller's memory grows outside the event loop, once for all waiters, and within limits."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from driving import FAST, eventually, faults, pattern, within

import nvme_async
from nvme_async.device import Device
from nvme_async.dma import limits
from nvme_async.dma.limits import Bound
from nvme_async.errors import OutOfDmaMemory
from nvme_async.keepalive.controller import Controller

MIB = 1 << 20
URI = "emulated:size=64MiB,block=4096"


@pytest.fixture
async def small() -> AsyncIterator[Controller]:
    """A controller whose pool of 2 MiB is soon full."""
    async with nvme_async.open(URI, hugepages="never", **{**FAST, "pool_bytes": 2 * MIB}) as controller:
        yield controller


def used(controller: Controller) -> int:
    memory: dict[str, Any] = controller.inspect()["memory"]
    return sum(pool["used_bytes"] for pool in memory["pools"])


class Slow:
    """Slows down a device's map_dma(), also until an event; counts its calls, and those that have
    ended.
    """

    def __init__(
        self, device: Device, seconds: float, monkeypatch: pytest.MonkeyPatch, until: threading.Event | None = None
    ) -> None:
        self.calls = self.ended = 0
        mapped = device.map_dma

        def slow(*arguments: Any, **named: Any) -> None:
            self.calls += 1
            time.sleep(seconds)
            if until is not None:
                until.wait(60)
            mapped(*arguments, **named)
            self.ended += 1

        monkeypatch.setattr(device, "map_dma", slow)


async def longest_gap(stop: asyncio.Event) -> float:
    """The longest time between two iterations of the loop."""
    longest, last = 0.0, time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(0.005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


@pytest.mark.alone
@pytest.mark.parametrize("how", ["read", "read_many", "buffer"])
async def test_memory_growth_does_not_block_the_loop(
    small: Controller, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ns = small.namespaces[1]
    data = pattern(1 * MIB)
    await ns.write(0, data)
    kept = [small.alloc(256 << 10) for _ in range(2)]
    faults(small).add(queue="io", opcode=2, delay=0.02)  # so that all are in flight at once
    slow = Slow(small.device, 1.0, monkeypatch)
    stop = asyncio.Event()
    gap = asyncio.create_task(longest_gap(stop))
    per = ns.max_blocks
    if how == "read":
        parts = await within(20, asyncio.gather(*(ns.read(i % 8 * per, per) for i in range(40))))
        assert b"".join(parts[:8]) == data
    elif how == "read_many":
        result = await within(20, ns.read_many(list(range(0, 8 * per, per)) * 5, blocks=per))
        assert bytes(result.data[:MIB]) == data
    else:
        buffer = await within(20, small.buffer(16 * MIB))
        assert bytes(buffer[:MIB]) == bytes(MIB)
    stop.set()
    assert 1 <= slow.calls <= 2
    assert await gap < 0.5
    del kept


async def test_a_cancelled_buffer_is_freed(small: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    there = threading.Event()
    slow = Slow(small.device, 0.0, monkeypatch, until=there)
    before = used(small)
    task = asyncio.create_task(small.buffer(8 * MIB))
    await eventually(lambda: slow.calls)
    task.cancel()
    asyncio.get_running_loop().call_later(0.02, there.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: slow.ended == slow.calls)
    assert used(small) == before


async def test_alloc_works_from_many_threads(small: Controller) -> None:
    kept: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        for _ in range(20):
            try:
                kept.append(small.alloc(1536 << 10))
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    # A vfio-user peer accepts at least 64 mappings; each of these needs one.
    assert all(isinstance(error, OutOfDmaMemory) for error in errors)
    assert len(kept) >= 60
    assert len({buffer.iova for buffer in kept}) == len(kept)


async def test_four_loops_outgrow_the_pool_at_once(small: Controller) -> None:
    ns = small.namespaces[1]
    data = pattern(128 << 10)
    await ns.write(0, data)

    async def work() -> None:
        for part in await asyncio.gather(*(ns.read(0, len(data) // ns.block_size) for _ in range(64))):
            assert part == data

    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert not errors


@pytest.mark.parametrize("keepalive", [False, True])
async def test_a_batch_takes_memory_in_proportion(keepalive: bool) -> None:
    async with nvme_async.open(URI, hugepages="never", keepalive=keepalive, **FAST) as controller:
        ns = controller.namespaces[1]
        for n in (1, 4, 16):
            before = used(controller)
            result = await ns.read_many([0] * n, blocks=ns.max_blocks)
            assert result.failed == 0
            assert used(controller) - before <= (n + 1) * (128 << 10)
        assert len(controller.inspect()["memory"]["pools"]) == 1


async def test_a_batch_larger_than_a_fixed_pool_completes() -> None:
    """With keepalive the pool doesn't grow: commands wait for pages of earlier ones."""
    async with nvme_async.open(URI, hugepages="never", keepalive=True, **{**FAST, "pool_bytes": 3 * MIB}) as controller:
        ns = controller.namespaces[1]
        data = pattern(8 * MIB)
        per = ns.max_blocks
        lbas = list(range(0, len(data) // ns.block_size, per))
        assert (await ns.write_many(lbas, data, blocks=per)).failed == 0
        assert bytes((await ns.read_many(lbas, blocks=per)).data) == data
        parts = await within(20, asyncio.gather(*(ns.read(lba, per) for lba in lbas)))
        assert b"".join(parts) == data


async def test_alloc_is_bounded(small: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    for nbytes in (1 << 40, 1 << 46, 1 << 62, 1 << 70):
        with pytest.raises(OutOfDmaMemory):
            small.alloc(nbytes)
        with pytest.raises(OutOfDmaMemory):
            await small.buffer(nbytes)
    monkeypatch.setattr(limits, "memory_left", lambda: Bound(100 * MIB, "the control group x has 100 MiB left"))
    with pytest.raises(OutOfDmaMemory, match="the control group x"):
        small.alloc(100 * MIB)
    small.alloc(40 * MIB).free()
    assert await small.namespaces[1].read(0)


async def test_memory_limit_is_an_option() -> None:
    async with nvme_async.open(URI, hugepages="never", memory_limit=20 * MIB, **FAST) as controller:
        with pytest.raises(OutOfDmaMemory, match="of 20971520 bytes, the option memory_limit"):
            controller.alloc(16 * MIB)
        with controller.alloc(8 * MIB):
            # The rest is for bounce pages; when that is used up too, commands wait for each other's
            # pages.
            ns = controller.namespaces[1]
            parts = await within(20, asyncio.gather(*(ns.read(0, ns.max_blocks) for _ in range(250))))
            assert len(parts) == 250


async def test_fresh_memory_is_zero_and_uncommitted_until_touched(small: Controller) -> None:
    with small.alloc(1 << 30) as buffer:
        assert buffer.pool.nbytes > 1 << 30
        assert os.fstat(buffer.pool.fd).st_blocks * 512 < 64 * MIB
        assert bytes(buffer[:4096]) == bytes(4096)
        assert bytes(buffer[-4096:]) == bytes(4096)
        buffer[5 * MIB : 5 * MIB + 4] = b"used"
    with small.alloc(8 * MIB) as again:
        assert bytes(again) == bytes(8 * MIB)
