"""Namespace management, sanitize and firmware activation through controller.admin(), during I/O on
other namespaces: `controller.namespaces` is up to date when the command returns.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest
from driving import FAST, eventually, faults

import nvme_async
from nvme_async.emulator import FOREVER
from nvme_async.errors import CommandError, InvalidNamespace
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands
from nvme_async.spec.identify import encode_controller_list
from nvme_async.spec.logs import CommandsSupported
from nvme_async.spec.opcodes import LogPage, SanitizeAction

SELF = encode_controller_list([0])


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    async with nvme_async.open(
        "emulated:size=16MiB,namespaces=2,capacity=64MiB,sanitize=0.1,firmware_slots=3", **FAST
    ) as controller:
        yield controller


async def test_namespaces_are_created_attached_detached_and_deleted(controller: Controller) -> None:
    page = bytearray(4096)
    struct.pack_into("<QQ", page, 0, 2048, 2048)  # NSZE, NCAP
    page[26] = 1  # FLBAS: 4096 bytes
    nsid = (await controller.admin(commands.namespace_management(0), page)).dw0
    assert nsid not in controller.namespaces  # allocated, not attached
    await controller.admin(commands.namespace_attachment(nsid, 0), SELF)
    ns = controller.namespaces[nsid]
    assert ns.nbytes == 8 << 20
    await ns.write(5, b"x" * 4096)
    await controller.admin(commands.namespace_attachment(nsid, 1), SELF)
    assert nsid not in controller.namespaces
    with pytest.raises(InvalidNamespace):
        await ns.read(5)
    await controller.admin(commands.namespace_management(1, nsid))
    with pytest.raises(CommandError):
        await controller.admin(commands.namespace_attachment(nsid, 0), SELF)


async def test_io_that_waits_for_a_deletion_ends_with_its_namespace(controller: Controller) -> None:
    ns, neighbour = controller.namespaces[2], controller.namespaces[1]
    rule = faults(controller).add(queue="admin", opcode=0x15, delay=FOREVER, count=1)
    detaching = asyncio.create_task(controller.admin(commands.namespace_attachment(2, 1), SELF))
    await eventually(lambda: ns.geometry.held)
    waiting = asyncio.create_task(ns.write(0, b"x" * 4096))
    # This controller's log reports CSE=010b for the command: no I/O of any namespace runs at the
    # same time.
    beside = asyncio.create_task(neighbour.write(0, b"n" * 4096))
    await asyncio.sleep(0.02)
    assert neighbour.geometry.held
    assert not beside.done()
    await eventually(lambda: rule.hits)
    faults(controller).release()
    await detaching
    await beside
    with pytest.raises(InvalidNamespace):
        await waiting


async def test_sanitize_holds_all_io_until_it_has_begun(controller: Controller) -> None:
    await controller.namespaces[1].write(0, b"x" * 4096)
    rule = faults(controller).add(queue="admin", opcode=0x84, delay=FOREVER, count=1)
    sanitizing = asyncio.create_task(controller.admin(commands.sanitize(SanitizeAction.BLOCK_ERASE)))
    await eventually(lambda: all(ns.geometry.held for ns in controller.namespaces.values()))
    read = asyncio.create_task(controller.namespaces[1].read(0))
    await eventually(lambda: rule.hits)
    faults(controller).release()
    await sanitizing
    (outcome,) = await asyncio.gather(read, return_exceptions=True)
    while outcome != bytes(4096):
        assert getattr(outcome, "sc", None) == 0x1D, outcome  # Sanitize In Progress
        await asyncio.sleep(0.01)
        (outcome,) = await asyncio.gather(controller.namespaces[1].read(0), return_exceptions=True)
    assert controller.state == "ready"


async def test_effects_also_come_from_the_controllers_log(controller: Controller) -> None:
    supported = controller.effects.supported
    assert supported is not None
    assert supported.admin(0x80).ncc
    assert controller.effects.of(commands.format_nvm(1, 0)).holds == 1


@pytest.mark.parametrize(
    ("option", "csi", "commands_of_it"),
    [("zoned", 2, {0x79: 3, 0x7A: 1, 0x7D: 3, 0x01: 3, 0x02: 1}), ("key_value", 1, {0x01: 3, 0x02: 1, 0x10: 3})],
)
async def test_each_command_set_has_its_own_effects(option: str, csi: int, commands_of_it: dict[int, int]) -> None:
    """Linux takes a zoned namespace for read-only if Zone Append is not in the log."""
    async with nvme_async.open(f"emulated:size=16MiB,{option}=on", **FAST) as controller:

        async def effects(of: int) -> CommandsSupported:
            page = await controller.admin(commands.get_log_page(LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 4096, csi=of))
            assert page.data is not None
            return CommandsSupported.decode(page.data)

        log = await effects(csi)
        assert {opcode: log.iocs[opcode] for opcode in commands_of_it} == commands_of_it
        assert 0x7D not in (await effects(0)).io_opcodes
        absent = await effects(3 - csi)
        assert not absent.io_opcodes
        assert absent.admin_opcodes == log.admin_opcodes
