"""Flexible Data Placement end to end: placement on write, reclaim units, statistics, events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from driving import FAST, pattern
from managed import uri as managed_uri

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.driver.management import create_namespace, delete_namespace
from nvme_async.driver.zoned import ZonedNamespace
from nvme_async.emulator import EmulatedController, EmulatorConfig
from nvme_async.errors import CommandError, ConfigurationError, FdpDisabled, InvalidPlacementHandles
from nvme_async.manager import Manager
from nvme_async.spec import commands
from nvme_async.spec.fdp import FdpEventType, FdpMode

UNIT = 64 << 10
ADDRESS = f"emulated:size=16MiB,block=4096,fdp=4,fdp_groups=2,fdp_unit={UNIT},capacity=64MiB"


@pytest.fixture
async def controller() -> AsyncIterator[nvme_async.Controller]:
    async with nvme_async.open(ADDRESS, **FAST) as opened:
        yield opened


async def _room(ns: nvme_async.Namespace) -> dict[int, int]:
    return {one.pid: one.ruamw for one in await ns.placement.status()}


async def test_writes_go_to_the_reclaim_unit_of_their_placement(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    (configuration,) = await ns.placement.configurations()
    assert configuration.valid
    assert (configuration.nruh, configuration.nrg, configuration.runs, configuration.maxpids) == (4, 2, UNIT, 7)
    assert set(configuration.ruh_types) == {1}
    identifiers = [configuration.placement(handle, group) for group in range(2) for handle in range(4)]
    assert await ns.placement.identifiers() == set(identifiers)
    full = UNIT // 4096
    assert await _room(ns) == dict.fromkeys(identifiers, full)
    before = await ns.placement.statistics()
    chosen = configuration.placement(2, 1)
    await ns.write(7, pattern(3 * 4096, 1), placement=chosen, fua=True)
    await ns.write(100, pattern(4096, 2))  # without placement: handle 0
    assert await ns.read(7, 3) == pattern(3 * 4096, 1)
    room = await _room(ns)
    assert room.pop(chosen) == full - 3
    assert room.pop(0) == full - 1
    assert set(room.values()) == {full}
    after = await ns.placement.statistics()
    assert after.hbmw - before.hbmw == 4 * 4096
    assert after.write_amplification == 1.0
    assert (await ns.placement.usage()).attributes == (1, 1, 1, 1)


async def test_long_writes_are_split_and_units_replaced(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    await ns.placement.log_events(1, [FdpEventType.HANDLE_IMPLICITLY_MODIFIED])
    data = pattern((ns.max_blocks * 2 + 3) * 4096, 3)
    with controller.alloc(len(data)) as buffer:
        buffer[:] = data
        await ns.write(0, buffer, placement=1)
    assert await ns.read(0, len(data) // 4096) == data
    full = UNIT // 4096
    assert (await _room(ns))[1] == full - len(data) // 4096 % full
    events = await ns.placement.events(host=False)
    assert len(events) == min(63, len(data) // UNIT)
    assert {(one.type, one.placement, one.namespace, one.handle) for one in events} == {(0x81, 1, 1, 1)}


async def test_an_update_starts_new_reclaim_units(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    await ns.placement.log_events(3, [FdpEventType.NOT_FULLY_WRITTEN])
    logged = {one.evt: one.enabled for one in await ns.placement.logged_events(3)}
    assert logged[FdpEventType.NOT_FULLY_WRITTEN]
    assert not logged[FdpEventType.INVALID_PLACEMENT_IDENTIFIER]
    await ns.write(0, pattern(4096, 1), placement=3)
    erased = (await ns.placement.statistics()).mbe
    await ns.placement.update(3, 2)
    assert set((await _room(ns)).values()) == {UNIT // 4096}
    (event,) = await ns.placement.events()
    assert (event.type, event.placement, event.handle) == (FdpEventType.NOT_FULLY_WRITTEN, 3, 3)
    assert (await ns.placement.statistics()).mbe == erased + UNIT
    with pytest.raises(ValueError, match="placement 5 is not a placement identifier of namespace 1, which has 0, 1, 2"):
        await ns.placement.update(0, 5)
    with pytest.raises(ValueError, match="no placement"):
        await ns.placement.update()
    with pytest.raises(CommandError, match="Invalid Field"):
        await ns.submit(commands.reclaim_unit_handle_update(1, 2), commands.placement_list([0, 5]))


async def test_what_the_namespace_lacks_is_refused_before_it_is_sent(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    await ns.placement.identifiers()
    sent = controller.transport.queues.all()[1].hot.inspect()["sq"]["submitted"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="placement 4 is not"):
        await ns.write(0, bytes(4096), placement=4)
    with pytest.raises(ValueError, match="placement 0 and stream 1 exclude each other"):
        await ns.write(0, bytes(4096), placement=0, stream=1)
    with pytest.raises(ValueError, match="positive multiple"):
        await ns.write(0, bytes(100), placement=0)
    with pytest.raises(nvme_async.LbaOutOfRange):
        await ns.write(ns.blocks, bytes(4096), placement=0)
    assert controller.transport.queues.all()[1].hot.inspect()["sq"]["submitted"] == sent  # type: ignore[attr-defined]
    async with nvme_async.open("emulated:size=16MiB", **FAST) as plain:
        with pytest.raises(ConfigurationError, match="no Flexible Data Placement"):
            await plain.namespaces[1].write(0, bytes(4096), placement=0)


async def test_an_identifier_that_is_none_is_an_event_and_no_error(controller: nvme_async.Controller) -> None:
    """NVM Command Set 1.1, 5.6: as if the write had no directive."""
    ns = controller.namespaces[1]
    await ns.placement.log_events(0, [FdpEventType.INVALID_PLACEMENT_IDENTIFIER])
    await ns.submit(commands.write(1, 0, 1, dtype=2, dspec=0x1234), pattern(4096, 9))
    (event,) = await ns.placement.events()
    assert (event.type, event.placement, event.namespace, event.handle) == (3, 0x1234, 1, None)
    assert (await _room(ns))[0] == UNIT // 4096 - 1


async def test_namespaces_choose_their_handles_and_fdp_can_be_switched(controller: nvme_async.Controller) -> None:
    with pytest.raises(InvalidPlacementHandles):
        await create_namespace(controller, nbytes=1 << 20, endurance_group=1, placement_handles=(1, 1))
    with pytest.raises(ValueError, match="number of placement handles 129"):
        await create_namespace(controller, nbytes=1 << 20, placement_handles=range(129))
    nsid = await create_namespace(controller, nbytes=1 << 20, endurance_group=1, placement_handles=(3, 1))
    ns = controller.namespaces[nsid]
    assert [(one.pid, one.ruhid) for one in await ns.placement.status()][:2] == [(0, 3), (1, 1)]
    await ns.write(0, pattern(4096, 4), placement=1)
    assert (await _room(controller.namespaces[1]))[1] == UNIT // 4096 - 1  # the handle is shared
    with pytest.raises(CommandError, match="Sequence"):
        await controller.admin(commands.set_fdp(1, False))
    for one in (1, nsid):
        await delete_namespace(controller, one)
    await controller.admin(commands.set_fdp(1, False))
    assert not FdpMode.from_int((await controller.admin(commands.get_fdp(1))).dw0).fdpe
    nsid = await create_namespace(controller, nbytes=1 << 20, endurance_group=1)
    with pytest.raises(FdpDisabled):
        await controller.namespaces[nsid].placement.status()
    with pytest.raises(FdpDisabled):
        await controller.namespaces[nsid].placement.statistics()


async def test_placement_survives_a_reset_and_goes_along_with_metadata() -> None:
    address = f"emulated:size=16MiB,block=512,metadata=16,pi=1,formats=512/512+16,fdp=2,fdp_unit={UNIT}"
    async with nvme_async.open(address, **FAST) as controller:
        ns = controller.namespaces[1]
        await ns.write(3, pattern(1024, 1), placement=1)
        await controller.reset()
        await ns.write(5, pattern(512, 2), placement=1)
        assert await ns.read(3, 3) == pattern(1024, 1) + pattern(512, 2)
        assert (await _room(ns))[1] == UNIT // 512 - 3


def test_the_commands_of_nvme_cli(tmp_path: Path) -> None:
    """fdp and dir-* on a controller that stays between commands."""

    def ok(*arguments: str) -> str:
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"
        return result.output

    path = tmp_path / "c.sock"
    with EmulatedController(EmulatorConfig.parse("size=16MiB,fdp=4,fdp_unit=64KiB,streams=8")) as emulated:
        emulated.listen(path)
        device = f"vfio-user:{path}"
        (configuration,) = json.loads(ok("fdp", "configs", device, "-e", "1", "-o", "json"))["configs"]
        assert (configuration["nruh"], configuration["runs"]) == (4, 65536)
        ok("fdp", "set-events", device, "-n", "1", "-p", "2", "-t", "0", "-e")
        source = tmp_path / "source"
        source.write_bytes(b"q" * 4096)
        ok("write", device, "-z", "4096", "-c", "0", "-d", str(source), "--dir-type", "2", "--dir-spec", "2")
        status = json.loads(ok("fdp", "status", device, "-n", "1", "-o", "json"))["ruhss"]
        assert [unit["ruamw"] for unit in status] == [16, 16, 15, 16]
        ok("fdp", "update", device, "-n", "1", "-p", "2")
        events = json.loads(ok("fdp", "events", device, "-e", "1", "-E", "-o", "json"))["events"]
        assert [event["pid"] for event in events] == [2]
        stats = json.loads(ok("fdp", "stats", device, "-e", "1", "-o", "json"))
        assert (stats["hbmw"], stats["mbe"]) == (4096, 65536)
        ok("fdp", "usage", device, "-e", "1")
        assert "8" in ok("dir-receive", device, "-n", "1", "-D", "1", "-O", "1", "-H")
        ok("dir-receive", device, "-n", "1", "-D", "0", "-O", "1", "-H")


async def test_zones_and_managed_namespaces_are_written_with_a_placement() -> None:
    fdp = f"fdp=4,fdp_unit={UNIT}"
    async with nvme_async.open(f"emulated:size=16MiB,block=4096,zoned=on,zone_size=1MiB,{fdp}", **FAST) as controller:
        ns = controller.namespaces[1]
        zoned = await ZonedNamespace.of(ns)
        before = await _room(ns)
        await zoned.write(0, bytes(8192), placement=1)
        assert await zoned.append(0, bytes(4096), placement=2) == 2
        after = await _room(ns)
        assert {pid: before[pid] - after[pid] for pid in before} == {0: 0, 1: 2, 2: 1, 3: 0}
        with pytest.raises(ValueError, match="placement 9 is not a placement identifier"):
            await zoned.append(0, bytes(4096), placement=9)
    address = managed_uri(f"size=16MiB,block=4096,{fdp}")
    async with Manager() as manager:
        await manager.load(address)
        managed = await manager.namespace(address, 1)
        before = {one.pid: one.ruamw for one in await managed.placement.status()}
        await managed.write(0, bytes(4096), placement=3)
        after = {one.pid: one.ruamw for one in await managed.placement.status()}
        assert {pid for pid in before if before[pid] != after[pid]} == {3}
