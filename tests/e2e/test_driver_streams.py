"""The Streams directive end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from driving import FAST, pattern
from managed import uri as managed_uri

import nvme_async
from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.errors import ConfigurationError, InvalidField, StreamAllocationFailed
from nvme_async.manager import Manager


@pytest.fixture
async def controller() -> AsyncIterator[nvme_async.Controller]:
    async with nvme_async.open("emulated:size=16MiB,block=512,namespaces=2,streams=4", **FAST) as opened:
        yield opened


async def test_writes_open_streams_until_they_are_released(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    assert not await ns.write_streams.enabled()
    with pytest.raises(InvalidField):  # enable() comes first
        await ns.write(0, bytes(512), stream=7)
    await ns.write_streams.enable()
    assert await ns.write_streams.enabled()
    for stream in (7, 9, 7):
        await ns.write(stream, pattern(1024, stream), stream=stream)
    assert await ns.read(9, 2) == pattern(1024, 9)
    assert await ns.write_streams.open() == (7, 9)
    found = await ns.write_streams.parameters()
    assert (found.msl, found.nssa, found.nsso, found.nsa, found.nso, found.sws) == (4, 4, 2, 0, 2, 8)
    await ns.write_streams.release(7)
    assert await ns.write_streams.open() == (9,)
    for stream in range(20, 25):  # more than there are: the oldest end
        await ns.write(0, bytes(512), stream=stream)
    assert await ns.write_streams.open() == (21, 22, 23, 24)
    await ns.write_streams.disable()
    assert not await ns.write_streams.enabled()


async def test_resources_are_allocated_until_none_are_left(controller: nvme_async.Controller) -> None:
    one, other = controller.namespaces[1], controller.namespaces[2]
    for ns in (one, other):
        await ns.write_streams.enable()
    assert await one.write_streams.allocate(3) == 3
    assert (await other.write_streams.parameters()).nssa == 1
    assert await other.write_streams.allocate(9) == 1
    await other.write_streams.release()
    assert await other.write_streams.allocate(1) == 1
    await one.write_streams.release()
    await other.write_streams.release()
    assert await one.write_streams.allocate(4) == 4
    with pytest.raises(StreamAllocationFailed):
        await other.write_streams.allocate(1)


async def test_a_reset_disables_streams_and_a_write_enables_them_again(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    await ns.write_streams.enable()
    await ns.write(0, bytes(512), stream=1)
    await controller.reset()
    assert not await ns.write_streams.enabled()
    await ns.write(0, pattern(512, 5), stream=2)
    assert await ns.write_streams.open() == (2,)
    assert await ns.read(0) == pattern(512, 5)


async def test_what_the_controller_lacks_is_refused_before_it_is_sent(controller: nvme_async.Controller) -> None:
    for stream in (0, 65536):
        with pytest.raises(ValueError, match=f"stream is {stream}, must be 1 to 65535"):
            await controller.namespaces[1].write(0, bytes(512), stream=stream)
    async with nvme_async.open("emulated:size=16MiB", **FAST) as plain:
        with pytest.raises(ConfigurationError, match="no directives"):
            await plain.namespaces[1].write(0, bytes(4096), stream=1)
    async with nvme_async.open("emulated:size=16MiB,fdp=1", **FAST) as placing:
        with pytest.raises(ConfigurationError, match="no streams"):
            await placing.namespaces[1].write_streams.enable()


async def test_zones_are_written_and_appended_to_with_a_stream() -> None:
    address = "emulated:size=16MiB,block=512,zoned=on,zone_size=1MiB,streams=4"
    async with nvme_async.open(address, **FAST) as controller:
        ns = controller.namespaces[1]
        zoned = await ZonedNamespace.of(ns)
        await ns.write_streams.enable()
        await zoned.write(0, pattern(1024, 1), stream=3)
        assert await zoned.append(0, pattern(512, 2), stream=5) == 2
        assert await ns.write_streams.open() == (3, 5)
        await controller.reset()
        assert await zoned.append(0, pattern(512, 3), stream=6) == 3  # enables them again
        assert await ns.write_streams.open() == (6,)
        assert await zoned.read(0, 4) == pattern(1024, 1) + pattern(512, 2) + pattern(512, 3)
        with pytest.raises(ValueError, match="stream is 0, must be 1 to 65535"):
            await zoned.append(0, bytes(512), stream=0)
        with pytest.raises(ValueError, match="placement 1 and stream 1 exclude each other"):
            await zoned.append(0, bytes(512), placement=1, stream=1)
        assert (await zoned.zone(0)).wp == 4


async def test_a_managed_namespace_writes_to_streams_across_a_servicing() -> None:
    uri = managed_uri("size=16MiB,block=512,streams=4")
    async with Manager() as manager:
        await manager.load(uri)
        ns = await manager.namespace(uri, 1)
        await ns.write_streams.enable()
        await ns.write(0, pattern(512, 1), stream=3)
        assert await ns.write_streams.open() == (3,)
        await manager.device(uri).service(keepalive=False)
        await ns.write(1, pattern(512, 2), stream=4)  # the next driver enables them again
        assert await ns.write_streams.open() == (4,)
        assert await ns.read(0, 2) == pattern(512, 1) + pattern(512, 2)
        with pytest.raises(ValueError, match="stream is 65536"):
            await ns.write(0, bytes(512), stream=65536)
