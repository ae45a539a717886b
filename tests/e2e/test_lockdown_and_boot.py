"""Lockdown and boot partitions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner
from driving import FAST, eventually, faults, pattern

import nvme_async
from nvme_async import management
from nvme_async.cli.main import cli
from nvme_async.errors import CommandError, ConfigurationError
from nvme_async.management import LockdownScope
from nvme_async.spec import commands
from nvme_async.spec.features import VolatileWriteCache
from nvme_async.spec.opcodes import AdminOpcode, Feature
from nvme_async.spec.registers import Bpinfo, Bprsel, Register

URI = "emulated:size=16MiB,lockdown=on,boot=256KiB,write_cache=on,power_states=3"
PROHIBITED = (0, 0x23)
IMAGE = b"BOOT0001" + pattern(100 * 1024 - 8)


async def refused(controller: nvme_async.Controller, made: commands.Command) -> tuple[int, int]:
    with pytest.raises(CommandError) as caught:
        await controller.admin(made)
    return caught.value.sct, caught.value.sc


async def test_a_prohibited_command_is_refused_until_it_is_allowed_again() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        possible = await management.locked_down(controller, LockdownScope.COMMAND, "possible")
        assert AdminOpcode.FORMAT_NVM in possible
        assert AdminOpcode.IDENTIFY not in possible
        assert await management.locked_down(controller, LockdownScope.COMMAND) == ()
        await management.lock_down(controller, LockdownScope.COMMAND, AdminOpcode.FORMAT_NVM)
        assert await refused(controller, commands.format_nvm(1, 1)) == PROHIBITED
        await controller.reset()  # no reset ends it
        assert await management.locked_down(controller, LockdownScope.COMMAND) == (AdminOpcode.FORMAT_NVM,)
        assert await management.locked_down(controller, LockdownScope.COMMAND, "out-of-band") == ()
        assert await refused(controller, commands.format_nvm(1, 1)) == PROHIBITED
        await controller.namespaces[1].write(0, pattern(4096))
        await management.lock_down(controller, LockdownScope.COMMAND, AdminOpcode.FORMAT_NVM, False)
        await management.format_namespace(controller, 1, 1)
        assert await controller.namespaces[1].read(0) == bytes(4096)


async def test_a_prohibited_feature_can_be_read() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        await management.lock_down(controller, LockdownScope.FEATURE, Feature.VOLATILE_WRITE_CACHE, interface="both")
        off = commands.set_features(Feature.VOLATILE_WRITE_CACHE, 0)
        assert await refused(controller, off) == PROHIBITED
        answer = await controller.admin(commands.get_features(Feature.VOLATILE_WRITE_CACHE))
        assert VolatileWriteCache.from_int(answer.dw0).wce
        await controller.power.set(1)
        for contents in ("admin", "out-of-band"):
            assert await management.locked_down(controller, LockdownScope.FEATURE, contents) == (6,)


async def test_what_cannot_be_prohibited() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        with pytest.raises(CommandError) as caught:
            await management.lock_down(controller, LockdownScope.COMMAND, AdminOpcode.IDENTIFY)
        assert (caught.value.sct, caught.value.sc) == (1, 0x28)
        with pytest.raises(ConfigurationError, match="interface is 'all'"):
            await management.lock_down(controller, LockdownScope.COMMAND, 1, interface="all")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="contents is 'all'"):
            await management.locked_down(controller, LockdownScope.COMMAND, "all")  # type: ignore[arg-type]
    async with nvme_async.open("emulated:size=16MiB", **FAST) as plain:
        with pytest.raises(ConfigurationError, match="no Lockdown command"):
            await management.lock_down(plain, LockdownScope.COMMAND, 0x80)
        with pytest.raises(ConfigurationError, match="no boot partitions"):
            await management.boot_partitions(plain)


async def test_a_boot_partition_is_written_read_and_activated() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        assert await management.boot_partitions(controller) == management.BootPartitions(256 << 10, 0)
        seen: list[float] = []
        await management.write_boot_partition(controller, IMAGE, 1, progress=seen.append)
        assert seen[-1] == 1.0
        assert await management.read_boot_partition(controller) == bytes(256 << 10)
        whole = IMAGE + bytes((256 << 10) - len(IMAGE))
        assert await management.read_boot_partition(controller, 1) == whole
        await management.activate_boot_partition(controller, 1)
        assert (await management.boot_partitions(controller)).active == 1
        await controller.reset()
        assert await management.read_boot_partition(controller) == whole
        with pytest.raises(ConfigurationError, match="boot partition 2, must be 0 or 1"):
            await management.read_boot_partition(controller, 2)
        with pytest.raises(ConfigurationError, match="an image of 262148 bytes; a boot partition has 262144"):
            await management.write_boot_partition(controller, bytes(262148), 0)
        await management.write_boot_partition(controller, b"\xde" * 4096, 0)  # any contents, other than firmware's
        assert await management.read_boot_partition(controller, 0) == b"\xde" * 4096 + bytes(252 << 10)
        assert await management.read_boot_partition(controller, 1) == whole


async def test_registers_transfer_a_boot_partition() -> None:
    """The way that firmware takes before the controller is enabled."""
    async with nvme_async.open(URI, **FAST) as controller:
        await management.write_boot_partition(controller, IMAGE, 0, activate=True)
        registers = controller.registers
        with controller.alloc(8192) as buffer:
            await registers.write64(Register.BPMBL, buffer.iova)
            await registers.write32(Register.BPRSEL, Bprsel(bprsz=2, bprof=1).to_int())

            async def status() -> Bpinfo:
                return Bpinfo.from_int(await registers.read32(Register.BPINFO))

            async with asyncio.timeout(30):
                while (await status()).brs < 2:
                    await asyncio.sleep(0.001)
            assert await status() == Bpinfo(bpsz=2, brs=2, abpid=False)
            assert bytes(buffer) == IMAGE[4096:12288]
            await registers.write32(Register.BPRSEL, Bprsel(bprsz=2, bprof=63).to_int())  # beyond the end
            assert (await status()).brs == 3
        await eventually(lambda: not faults(controller).csts & 2)


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "partition"
    shown = CliRunner().invoke(cli, ["boot-part-log", URI, "-f", str(path)])
    assert shown.exit_code == 0, shown.output
    assert path.read_bytes() == bytes(256 << 10)
    done = CliRunner().invoke(cli, ["lockdown", URI, "--ofi", "0x80", "--prhbt", "1"])
    assert done.exit_code == 0, done.output
