"""Zoned namespaces: reports, appends from many tasks, limits, and errors."""

from __future__ import annotations

import asyncio
import random

import pytest
from driving import FAST, faults, pattern, within

import nvme_async
from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.errors import (
    ConfigurationError,
    InvalidZoneTransition,
    TooManyActiveZones,
    TooManyOpenZones,
    ZoneBoundaryError,
    ZoneFull,
    ZoneInvalidWrite,
    ZoneOffline,
    ZoneReadOnly,
)
from nvme_async.spec.opcodes import ZoneReportOption
from nvme_async.spec.zns import ZoneState

ADDRESS = "emulated:size=64MiB,zoned=on,zone_size=1MiB,zone_capacity=768KiB,max_open=4,max_active=6,zasl=4"
ZONE, CAPACITY = 256, 192


async def test_every_zone_is_reported_once() -> None:
    async with nvme_async.open("emulated:size=64MiB,zoned=on,zone_size=16KiB,mdts=8KiB", **FAST) as controller:
        zoned = await ZonedNamespace.of(controller.namespaces[1])
        assert (zoned.zone_size, zoned.zone_count, zoned.max_open) == (4, 4096, None)
        assert [zone.zslba async for zone in zoned.zones()] == list(range(0, 4096 * 4, 4))
        assert (await anext(zoned.zones(4 * 4000 + 1))).zslba == 4 * 4000
        await zoned.write(8, bytes(4096))
        opened = [zone async for zone in zoned.zones(option=ZoneReportOption.IMPLICITLY_OPENED)]
        assert [(zone.zslba, zone.wp) for zone in opened] == [(8, 9)]
        assert [zone async for zone in zoned.zones(option=ZoneReportOption.FULL)] == []


async def test_sixteen_concurrent_appends_lose_nothing() -> None:
    """A log: every record contains its position, and is read back from there."""
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        zoned = await ZonedNamespace.of(controller.namespaces[1])
        assert zoned.max_append == 16
        written: dict[int, bytes] = {}
        current = [0]

        async def writer(number: int) -> None:
            rng = random.Random(number)
            for i in range(40):
                record = pattern(4096 * rng.randint(1, 4), number * 1000 + i)
                while True:
                    zone = current[0]
                    try:
                        lba = await zoned.append(zone, record)
                        break
                    except (ZoneBoundaryError, ZoneFull):
                        if current[0] == zone:  # the first task to notice moves to the next zone
                            current[0] = zone + ZONE
                assert lba not in written
                written[lba] = record

        await within(60, asyncio.gather(*(writer(number) for number in range(16))))
        assert len(written) == 16 * 40
        used = sorted((lba, len(record) // 4096) for lba, record in written.items())
        for (lba, blocks), (after, _) in zip(used, used[1:], strict=False):
            assert lba + blocks <= after
        for lba, record in written.items():
            assert await zoned.read(lba, len(record) // 4096) == record


async def test_zone_errors() -> None:
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        zoned = await ZonedNamespace.of(controller.namespaces[1])
        block = bytes(4096)
        with pytest.raises(ZoneInvalidWrite):
            await zoned.write(5, block)
        await zoned.write(0, bytes(4096 * 100))
        with pytest.raises(ZoneBoundaryError):
            await zoned.namespace.write(100, bytes(4096 * 32 * 3 + 4096 * 0))
        await zoned.finish(0)
        assert (await zoned.zone(0)).state == ZoneState.FULL
        with pytest.raises(ZoneFull):
            await zoned.append(0, block)
        with pytest.raises(InvalidZoneTransition):
            await zoned.close(ZONE)
        with pytest.raises(ValueError, match="no zone begins"):
            await zoned.reset(1)
        with pytest.raises(ValueError, match="the limit is 16"):
            await zoned.append(ZONE, bytes(4096 * 17))
        await zoned.reset(None)
        assert all([zone.state == ZoneState.EMPTY async for zone in zoned.zones()])
        assert await zoned.read(0, 4) == bytes(4096 * 4)


async def test_open_and_active_zones_are_limited() -> None:
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        zoned = await ZonedNamespace.of(controller.namespaces[1])
        assert (zoned.max_open, zoned.max_active) == (4, 6)
        for number in range(4):
            await zoned.open(number * ZONE)
        with pytest.raises(TooManyOpenZones):
            await zoned.open(4 * ZONE)
        await zoned.write(0, bytes(4096))
        await zoned.write(ZONE, bytes(4096))
        await zoned.close(0)
        await zoned.close(ZONE)
        await zoned.open(4 * ZONE)
        await zoned.open(5 * ZONE)
        with pytest.raises(TooManyActiveZones):
            await zoned.open(6 * ZONE)


async def test_zones_changed_by_the_controller_are_reported() -> None:
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        zoned = await ZonedNamespace.of(controller.namespaces[1])
        events = controller.events()
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        faults(controller).zone_state(1, 3, 0xD)
        event = await within(5, waiting)
        assert event.event is not None
        assert "zone" in event.event.name.lower()
        faults(controller).zone_state(1, 5, 0xF)
        await zoned.changed()
        with pytest.raises(ZoneReadOnly):
            await zoned.append(3 * ZONE, bytes(4096))
        with pytest.raises(ZoneOffline):
            await zoned.read(5 * ZONE)
        await zoned.offline(3 * ZONE)
        with pytest.raises(ZoneOffline):
            await zoned.read(3 * ZONE)
        await events.aclose()


async def test_a_namespace_without_zones_is_refused() -> None:
    async with nvme_async.open("emulated:size=16MiB", **FAST) as controller:
        with pytest.raises(ConfigurationError, match="not zoned"):
            await ZonedNamespace.of(controller.namespaces[1])
