"""Copies inside the controller: descriptor formats, limits, protection information."""

from __future__ import annotations

import pytest
from driving import FAST, faults, pattern

import nvme_async
from nvme_async.errors import CommandError, ConfigurationError, LbaOutOfRange
from nvme_async.manager import Manager
from nvme_async.spec import commands
from nvme_async.spec.opcodes import CopyFormat, NvmOpcode

TWO = "emulated:size=16MiB,block=512,namespaces=2,copy_formats=0/1/2/3"


async def test_from_another_namespace() -> None:
    async with nvme_async.open(TWO, **FAST) as controller:
        assert controller.identify.copy_formats == {0, 1, 2, 3}
        source, ns = controller.namespaces[2], controller.namespaces[1]
        await source.write(0, pattern(10 * 512))
        await ns.copy([(4, 6), (0, 2)], 100, source=source)
        assert await ns.read(100, 8) == pattern(10 * 512)[4 * 512 :] + pattern(10 * 512)[: 2 * 512]
        assert await source.read(100, 8) == bytes(8 * 512)
        with pytest.raises(LbaOutOfRange) as failure:
            await ns.copy([(source.blocks - 1, 2)], 0, source=source)
        assert failure.value.nsid == 2


async def test_a_plain_drive_copies_within_a_namespace_only() -> None:
    async with nvme_async.open("emulated:size=16MiB,block=512,namespaces=2", **FAST) as controller:
        one, two = controller.namespaces[1], controller.namespaces[2]
        with pytest.raises(ConfigurationError, match=r"formats 0 \(Identify Controller, OCFS\), .* needs format 2"):
            await one.copy([(0, 1)], 8, source=two)
        async with nvme_async.open(TWO, **FAST) as other:
            with pytest.raises(ConfigurationError, match="another controller"):
                await one.copy([(0, 1)], 8, source=other.namespaces[1])


async def test_formats_that_are_not_enabled_are_refused() -> None:
    """Formats 2 and 3 are for hosts that have declared support (feature 16h, CDFE)."""
    async with nvme_async.open(TWO, **FAST) as controller:
        await controller.admin(commands.set_features(0x16), bytes(512))
        with pytest.raises(CommandError, match="Invalid Field"):
            await controller.namespaces[1].copy([(0, 1)], 8, source=controller.namespaces[2])


@pytest.mark.parametrize(
    ("block", "form"),
    [
        ("metadata=8,pi=1", CopyFormat.SOURCE),
        ("metadata=8,pi=3", CopyFormat.SOURCE),
        ("metadata=16,guard=64,pi=1", CopyFormat.SOURCE_EXTENDED_PI),
        ("metadata=16,guard=64,pi=2,extended=on", CopyFormat.SOURCE_EXTENDED_PI),
    ],
)
async def test_protection_information_is_made_anew(block: str, form: CopyFormat) -> None:
    """The reference tag is the block's number: what is copied as it is can't be read any more."""
    address = f"emulated:size=16MiB,block=4096,formats=4096/4096+8/4096+16g64,{block},copy_formats=0/1"
    async with nvme_async.open(address, **FAST) as controller:
        ns = controller.namespaces[1]
        data = pattern(40 * 4096)
        await ns.write(0, data)
        rule = faults(controller).add(queue="io", opcode=int(NvmOpcode.COPY), count=1, delay=0.0)
        await ns.copy([(0, 20), (20, 20)], 1000)
        assert rule.last_command[49] & 0xF == form
        assert await ns.read(1000, 40) == data
        await ns.copy([(1000, 30)], 1010)  # overlapping, from the end
        assert await ns.read(1010, 30) == data[: 30 * 4096]


async def test_a_block_that_fails_its_check_is_not_copied() -> None:
    address = "emulated:size=16MiB,block=512,formats=512/512+8,metadata=8,pi=1"
    async with nvme_async.open(address, **FAST) as controller:
        ns = controller.namespaces[1]
        await ns.write(0, pattern(4 * 512))
        meta = bytes([0, 0, 0, 0, 0, 0, 0, 99])  # neither guard nor reference tag are right
        await ns.write(
            2, pattern(512), metadata=meta, protect=nvme_async.Protect(by="none", checks=nvme_async.Check(0))
        )
        with pytest.raises(CommandError, match="Guard Check"):
            await ns.copy([(0, 2), (2, 1)], 100)
        assert await ns.read(100, 2) == pattern(4 * 512)[: 2 * 512]


async def test_a_managed_namespace_splits_as_the_driver_does() -> None:
    async with Manager(**FAST) as manager:
        device = await manager.load("emulated:size=64MiB,block=512")
        ns = await device.namespace(1)
        blocks = ns.identify.mcl + 100
        data = pattern(blocks * 512)
        await ns.write(0, data)
        await ns.copy([(0, blocks)], 40_000)
        assert await ns.read(40_000, blocks) == data
