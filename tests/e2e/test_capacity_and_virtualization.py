"""Endurance Groups and NVM Sets; secondary controllers; protected boot partitions."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner
from driving import FAST, faults, pattern

import nvme_async
from nvme_async import management
from nvme_async.cli.main import cli
from nvme_async.errors import CommandError, ConfigurationError, InvalidNamespace
from nvme_async.management import BootProtection

MIB = 1 << 20
CAPACITY = "emulated:size=16MiB,namespaces=2,capacity=256MiB,capacity_management=on"
SECONDARY = "emulated:size=16MiB,secondary=3"


async def test_namespaces_lie_in_sets_and_sets_in_groups() -> None:
    async with nvme_async.open(CAPACITY, **FAST) as controller:
        groups, sets = await management.endurance_groups(controller), await management.nvm_sets(controller)
        assert [(number, group.tegcap, group.uegcap) for number, group in groups.items()] == [(1, 32 * MIB, 0)]
        assert [(one.nvmsetid, one.endgid, one.tnvmsetcap, one.unvmsetcap) for one in sets.values()] == [
            (1, 1, 32 * MIB, 0)
        ]
        assert {(ns.identify.nvmsetid, ns.identify.endgid) for ns in controller.namespaces.values()} == {(1, 1)}
        with pytest.raises(CommandError, match="Namespace Insufficient Capacity"):
            await management.create_namespace(controller, nbytes=MIB)
        group = await management.create_endurance_group(controller, 128 * MIB)
        assert group == 2
        assert controller.identify.unvmcap == 96 * MIB  # read again by itself
        nvm_set = await management.create_nvm_set(controller, group, 64 * MIB)
        nsid = await management.create_namespace(controller, nbytes=16 * MIB, nvm_set=nvm_set)
        ns = controller.namespaces[nsid]
        assert (ns.identify.nvmsetid, ns.identify.endgid) == (nvm_set, group)
        assert (await management.nvm_sets(controller))[nvm_set].unvmsetcap == 48 * MIB
        assert (await management.endurance_groups(controller))[group].uegcap == 64 * MIB
        await ns.write(0, pattern(4096, 1))
        await controller.reset()
        assert await controller.namespaces[nsid].read(0, 8) == pattern(4096, 1)
        assert list(await management.endurance_groups(controller)) == [1, 2]


async def test_deleting_a_set_or_group_ends_its_namespaces_and_frees_the_capacity() -> None:
    async with nvme_async.open(CAPACITY, **FAST) as controller:
        group = await management.create_endurance_group(controller, 64 * MIB)
        sets = [await management.create_nvm_set(controller, group, 32 * MIB) for _ in range(2)]
        one, two = [await management.create_namespace(controller, nbytes=8 * MIB, nvm_set=number) for number in sets]
        handles = {nsid: controller.namespaces[nsid] for nsid in (one, two)}
        held = faults(controller).add(queue="io", opcode=1, nsid=one, count=1, delay=0.05)
        write = asyncio.ensure_future(handles[one].write(0, pattern(4096, 2)))
        while not held.hits:
            await asyncio.sleep(0.001)
        await management.delete_nvm_set(controller, sets[0])
        assert write.done()  # its I/O had ended before
        assert write.exception() is None
        assert set(controller.namespaces) == {1, 2, two}
        with pytest.raises(InvalidNamespace):
            await handles[one].read(0)
        await handles[two].write(0, pattern(4096, 3))
        await management.delete_endurance_group(controller, group)
        assert set(controller.namespaces) == {1, 2}
        assert list(await management.nvm_sets(controller)) == [1]
        assert controller.identify.unvmcap == 224 * MIB
        await controller.namespaces[1].write(0, pattern(4096, 4))


async def test_what_capacity_management_refuses() -> None:
    async with nvme_async.open(CAPACITY, **FAST) as controller:
        with pytest.raises(CommandError, match="Insufficient Capacity"):
            await management.create_endurance_group(controller, 256 * MIB)
        for operation in (
            management.create_nvm_set(controller, 3, MIB),
            management.delete_endurance_group(controller, 3),
            management.delete_nvm_set(controller, 2),
            management.create_endurance_group(controller, 0),
        ):
            with pytest.raises(CommandError, match="Invalid Field"):
                await operation
        for _ in range(3):
            await management.create_endurance_group(controller, MIB)
        with pytest.raises(CommandError, match="Identifier Unavailable"):
            await management.create_endurance_group(controller, MIB)
    async with nvme_async.open("emulated:size=16MiB", **FAST) as controller:
        with pytest.raises(ConfigurationError, match="no Variable Capacity Management"):
            await management.create_endurance_group(controller, MIB)
        with pytest.raises(ConfigurationError, match="no Virtualization Management"):
            await management.secondary_controllers(controller)


async def test_secondary_controllers_get_resources_and_go_online() -> None:
    async with nvme_async.open(SECONDARY, **FAST) as controller:
        capabilities = await management.primary_capabilities(controller)
        assert (capabilities.crt, capabilities.vqfrt, capabilities.vqrfa, capabilities.vifrt) == (3, 12, 0, 12)
        secondary = await management.secondary_controllers(controller)
        assert [(one.scid, one.pcid, one.vfn, one.online) for one in secondary] == [
            (number, 0, number, False) for number in (1, 2, 3)
        ]
        with pytest.raises(CommandError, match="Invalid Secondary Controller State"):
            await management.set_secondary_online(controller, 2)
        assert await management.assign_resources(controller, 2, queues=4, vectors=3) == (4, 3)
        await management.set_secondary_online(controller, 2)
        with pytest.raises(CommandError, match="Invalid Secondary Controller State"):
            await management.assign_resources(controller, 2, queues=1)
        with pytest.raises(CommandError, match="Invalid Number of Controller Resources"):
            await management.assign_resources(controller, 3, queues=9)
        with pytest.raises(CommandError, match="Invalid Controller Identifier"):
            await management.set_secondary_online(controller, 4)
        await controller.reset()  # changes nothing of it
        two = (await management.secondary_controllers(controller))[1]
        assert (two.online, two.nvq, two.nvi) == (True, 4, 3)
        assert (await management.primary_capabilities(controller)).vqrfa == 4
        assert await management.allocate_resources(controller, queues=5) == (5, 0)
        assert (await management.primary_capabilities(controller)).vqrfap == 0
        await controller.reset()
        assert (await management.primary_capabilities(controller)).vqrfap == 5
        await management.set_secondary_online(controller, 2, False)
        two = (await management.secondary_controllers(controller))[1]
        assert (two.online, two.nvq, two.nvi) == (False, 0, 0)


async def test_a_locked_boot_partition_is_not_written() -> None:
    uri = "emulated:size=16MiB,boot=128KiB,boot_protection=on"
    async with nvme_async.open(uri, **FAST) as controller:
        locked, unlocked = BootProtection.LOCKED, BootProtection.UNLOCKED
        assert await management.boot_partition_protection(controller) == (locked, locked)
        image = pattern(64 << 10, 5)
        with pytest.raises(CommandError, match="Boot Partition Write Prohibited"):
            await management.write_boot_partition(controller, image, 1)
        await management.protect_boot_partition(controller, 1, unlocked)
        assert await management.boot_partition_protection(controller) == (locked, unlocked)
        await management.write_boot_partition(controller, image, 1)
        await controller.reset()  # keeps the state
        assert await management.boot_partition_protection(controller) == (locked, unlocked)
        await management.protect_boot_partition(controller, 1, BootProtection.LOCKED_UNTIL_POWER_CYCLE)
        with pytest.raises(CommandError, match="Not Changeable"):
            await management.protect_boot_partition(controller, 1, unlocked)
        assert (await management.read_boot_partition(controller, 1))[: len(image)] == image
    async with nvme_async.open("emulated:size=16MiB,boot=128KiB", **FAST) as controller:
        with pytest.raises(ConfigurationError, match="BPCAP"):
            await management.boot_partition_protection(controller)


def said(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_line_shows_and_does_the_same() -> None:
    listed = json.loads(said("list-secondary", SECONDARY, "-o", "json"))
    assert len(listed["secondary-controllers"]) == 3
    assert json.loads(said("primary-ctrl-caps", SECONDARY, "-o", "json"))["vqfrt"] == 12
    assert "4" in said("virt-mgmt", SECONDARY, "-c", "2", "-r", "0", "-a", "8", "-n", "4")
    assert "2" in said("capacity-mgmt", CAPACITY, "-O", "1", "-l", str(64 * MIB), "--force")
    assert "1" in said("list-endgrp", CAPACITY, "-o", "json")
    assert "1" in said("id-nvmset", CAPACITY, "-o", "json")
    locked = said("get-feature", f"{SECONDARY},boot=128KiB,boot_protection=on", "-f", "0x85", "-H")
    assert "Boot Partition" in locked


@pytest.mark.parametrize(
    "options",
    [
        "capacity_management=on",
        "capacity=1GiB,capacity_management=on,fdp=8",
        "boot_protection=on",
        "secondary=17",
    ],
)
def test_wrong_options(options: str) -> None:
    from nvme_async.emulator import EmulatorConfig

    with pytest.raises(ConfigurationError):
        EmulatorConfig.parse(options)
