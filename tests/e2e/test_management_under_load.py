"""Format, sanitize, firmware, namespaces, self-tests and the write cache while loads on several
loops and in a worker process read and write: I/O is held, goes on, or fails with the right error;
what is read is always right; the controller isn't lost. tests/torture/management.py does it for
longer.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from driving import FAST, LoopThread, eventually, faults, within
from management_walk import ADDRESS, OPERATIONS, settled, walking
from verified_load import Load

import nvme_async
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature


async def test_management_under_load(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    async with (
        nvme_async.open(ADDRESS, **FAST) as controller,
        controller.share(path),
        walking(controller, path, loops=1) as walk,
    ):
        resets = controller.resets
        for operation in OPERATIONS:
            await getattr(walk, operation)()
            await walk.progress()
        await settled(controller)
        assert controller.resets == resets + 1  # for the firmware


@pytest.mark.parametrize("cache", ["on", "off"])
async def test_a_write_cache_that_is_switched_off_under_load_loses_nothing(cache: str) -> None:
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        loads = [Load(controller, seed) for seed in range(2)]
        with LoopThread() as thread:
            running = [asyncio.ensure_future(loads[0].run()), thread.submit(loads[1].run())]
            await eventually(lambda: all(load.verified > 20 for load in loads))
            if cache == "off":
                await controller.admin(commands.set_features(Feature.VOLATILE_WRITE_CACHE, 0))
            before = [load.verified for load in loads]
            await eventually(lambda: all(load.verified > was + 20 for load, was in zip(loads, before, strict=True)))
            for load in loads:
                load.stop()
            await within(20, asyncio.gather(*running))
        await asyncio.to_thread(faults(controller).power_loss)
        await asyncio.to_thread(faults(controller).remove_device, False)
        await controller.reset("the power was lost")
        lost = [lba for load in loads for lba in await load.lost()]
        assert bool(lost) == (cache == "on"), lost
        assert not [load.wrong for load in loads if load.wrong]
