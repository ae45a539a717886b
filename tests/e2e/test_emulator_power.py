"""A power loss of the emulated controller, as an application sees it: a block and its metadata stay
together, and zones end where their data end.
"""

from __future__ import annotations

import asyncio

import pytest
from driving import FAST, faults, pattern

import nvme_async
from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature


async def lose_power(controller: nvme_async.Controller, seed: int | None) -> None:
    emulated = faults(controller)
    await asyncio.to_thread(emulated.power_loss, seed)
    await asyncio.to_thread(emulated.remove_device, False)
    await controller.reset("the power was lost")


@pytest.mark.parametrize("seed", [None, 1, 2])
async def test_metadata_stays_with_its_block(seed: int | None) -> None:
    uri = "emulated:size=1MiB,formats=512/512+8,block=512,metadata=8,guard=16,write_cache=on"
    async with nvme_async.open(uri, **FAST) as controller:
        namespace = controller.namespaces[1]
        old, new = pattern(64 * 512, 1), pattern(64 * 512, 2)
        meta = [pattern(64 * 8, 3), pattern(64 * 8, 4)]
        await namespace.write(0, old, metadata=meta[0])
        await namespace.flush()
        await namespace.write(0, new, metadata=meta[1])
        await lose_power(controller, seed)
        back = bytearray(64 * 8)
        data = await namespace.read(0, 64, metadata=back)
        blocks = [(data[512 * at : 512 * (at + 1)], bytes(back[8 * at : 8 * (at + 1)])) for at in range(64)]
        for at, block in enumerate(blocks):
            versions = [
                (version[512 * at : 512 * (at + 1)], words[8 * at : 8 * (at + 1)])
                for version, words in zip((old, new), meta, strict=True)
            ]
            assert block in versions


@pytest.mark.parametrize("seed", [None, 1])
async def test_a_zone_holds_data_up_to_its_write_pointer(seed: int | None) -> None:
    uri = "emulated:size=1MiB,zoned=on,zone_size=64KiB,write_cache=on"
    async with nvme_async.open(uri, **FAST) as controller:
        zoned = await ZonedNamespace.of(controller.namespaces[1])
        size = controller.namespaces[1].block_size
        appended = [pattern(size, at) for at in range(4)]
        for data in appended:
            await zoned.append(0, data)
        await lose_power(controller, seed)
        zone = await anext(zoned.zones(0))
        found = [await controller.namespaces[1].read(lba) for lba in range(zone.wp)]
        assert found == appended[: zone.wp]


@pytest.mark.parametrize("seed", [None, 1, 2])
async def test_nothing_is_lost_without_the_cache(seed: int | None) -> None:
    async with nvme_async.open("emulated:size=1MiB,block=512,write_cache=on", **FAST) as controller:
        namespace = controller.namespaces[1]
        await namespace.write(0, pattern(64 * 512, 1))
        await controller.admin(commands.set_features(Feature.VOLATILE_WRITE_CACHE, 0))
        await namespace.write(64, pattern(64 * 512, 2))
        await namespace.write_zeroes(16, 16)
        await namespace.deallocate([(32, 8)])
        expected = await namespace.read(0, 128)
        await lose_power(controller, seed)
        assert await namespace.read(0, 128) == expected
