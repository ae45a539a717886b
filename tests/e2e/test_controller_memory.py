"""Memory of the controller: data in a Controller Memory Buffer, and a Persistent Memory Region."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from driver_line import READ, WAYS, WRITE, Way, all_handed_over, line, results
from driving import FAST, faults, pattern, within

import nvme_async
from nvme_async.driver.own_memory import PmrHealth
from nvme_async.emulator.faults import FOREVER
from nvme_async.errors import ConfigurationError, ControllerTimeout, DeviceError
from nvme_async.spec.registers import Cmbmsc, Register

CMB = "emulated:size=16MiB,cmb=1MiB"
PMR = "emulated:size=16MiB,pmr=64KiB"


def bounced(controller: nvme_async.Controller) -> int:
    queues = controller.transport.queues.all()
    total: int = sum(queue.hot.inspect()["bounced"] for queue in queues if queue.qid)  # type: ignore[attr-defined]
    return total


async def test_data_go_between_medium_and_buffer_without_the_host() -> None:
    async with nvme_async.open(CMB, **FAST) as controller:
        ns = controller.namespaces[1]
        data = pattern(64 << 10, 1)
        await ns.write(0, data)
        before = bounced(controller)
        with await controller.regions.cmb() as memory:
            assert memory.nbytes == 1 << 20
            assert await controller.regions.cmb() is memory
            await ns.readinto(0, memory.buffer[4096 : 4096 + len(data)])
            assert memory.buffer[4096 : 4096 + len(data)] == data
            await ns.write(100, memory.buffer[4096 : 4096 + len(data)])
            assert bounced(controller) == before
        assert await ns.read(100, 16) == data
        scratch = bytearray(len(data))
        await ns.readinto(100, scratch)
        assert bounced(controller) > before  # as counted for memory that isn't the controller's


async def test_a_reset_enables_the_buffer_again_before_commands_are_sent_again() -> None:
    async with nvme_async.open(CMB, **FAST) as controller:
        ns = controller.namespaces[1]
        await ns.write(0, pattern(8192, 2))
        memory = await controller.regions.cmb()
        rule = faults(controller).add(queue="io", opcode=READ, count=1, discard=True)
        read = asyncio.ensure_future(ns.readinto(0, memory.buffer[:8192]))
        while not rule.hits:
            await asyncio.sleep(0.001)
        await controller.registers.write64(Register.CMBMSC, 0)  # as a reset of the function leaves it
        await controller.reset()
        await within(10, read)
        assert memory.buffer[:8192] == pattern(8192, 2)
        control = Cmbmsc.from_int(await controller.registers.read64(Register.CMBMSC))
        assert control.cre
        assert control.cmse


async def test_a_buffer_that_commands_still_use_is_not_opened_again() -> None:
    """A cancelled read may still write it."""
    async with nvme_async.open(CMB, **FAST) as controller:
        ns = controller.namespaces[1]
        memory = await controller.regions.cmb()
        faults(controller).add(queue="io", opcode=READ, count=1, delay=FOREVER)
        read = asyncio.ensure_future(ns.readinto(0, memory.buffer[:8192]))
        while not faults(controller).outstanding():
            await asyncio.sleep(0.001)
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        memory.close()
        with pytest.raises(ConfigurationError, match="commands still use"):
            await controller.regions.cmb()
        faults(controller).release()
        while faults(controller).outstanding():
            await asyncio.sleep(0.001)
        await ns.read(0)
        (await controller.regions.cmb()).close()


@pytest.mark.parametrize("way", WAYS)
async def test_a_successor_adopts_commands_on_the_controllers_memory(way: Way) -> None:
    async with line("size=16MiB,cmb=64KiB") as drivers:
        memory = await drivers.driver.regions.cmb()
        memory.buffer[:4096] = pattern(4096, 3)
        drivers.delay(opcode=WRITE)
        tasks = drivers.start(drivers.namespace.write(7, memory.buffer[:4096]))
        await drivers.outstanding(1)
        successor = await drivers.succeed(way)
        assert all_handed_over(await results(tasks))
        drivers.release()
        async with asyncio.timeout(30):
            await successor.adopted.wait()
        assert await drivers.namespace.read(7) == pattern(4096, 3)
        with await successor.regions.cmb() as again:
            assert again.buffer[:4096] == pattern(4096, 3)
            await drivers.namespace.readinto(7, again.buffer[8192 : 8192 + 4096])
            assert again.buffer[8192 : 8192 + 4096] == pattern(4096, 3)


async def test_a_plain_drive_has_neither() -> None:
    async with nvme_async.open("emulated:size=16MiB", **FAST) as controller:
        with pytest.raises(ConfigurationError, match=r"CAP\.CMBS"):
            await controller.regions.cmb()
        with pytest.raises(ConfigurationError, match=r"CAP\.PMRS"):
            await controller.regions.pmr()


async def test_a_persistent_region_outlives_resets_and_controllers(tmp_path: Path) -> None:
    address = f"{PMR},pmr_path={tmp_path / 'pmr'}"
    async with nvme_async.open(address, **FAST) as controller:
        region = await controller.regions.pmr()
        assert (region.nbytes, region.elasticity_nbytes, region.bytes_per_second) == (64 << 10, 4096, 1 << 30)
        assert await region.health() is PmrHealth.NORMAL
        region.buffer[100:110] = b"persistent"
        await region.barrier()
        await controller.reset()
        await region.barrier()
        assert region.buffer[100:110] == b"persistent"
        await controller.registers.write32(Register.PMRCTL, 0)
        with pytest.raises(DeviceError, match="not ready"):
            await region.barrier()
        await controller.reset()  # enables it again
        await region.barrier()
        region.close()
        with pytest.raises(DeviceError, match="closed"):
            await region.barrier()
    async with nvme_async.open(address, **FAST) as controller:
        with await controller.regions.pmr() as region:
            assert region.buffer[100:110] == b"persistent"


async def test_the_regions_health_is_an_error_unless_asked_for() -> None:
    async with nvme_async.open(f"{PMR},pmr_health=read_only", **FAST) as controller:
        with pytest.raises(DeviceError, match="not healthy: read_only"):
            await controller.regions.pmr()
        with await controller.regions.pmr(healthy=False) as region:
            assert await region.health() is PmrHealth.READ_ONLY
            assert region.buffer.readonly
            with pytest.raises(DeviceError, match="not healthy: read_only"):
                await region.barrier()
        await controller.namespaces[1].write(0, bytes(4096))  # nothing else is affected


async def test_the_wait_for_the_region_ends() -> None:
    async with nvme_async.open(f"{PMR},pmr_ready=10ms", **FAST) as controller:
        with await controller.regions.pmr() as region:
            assert region.nbytes == 64 << 10
    async with nvme_async.open(f"{PMR},pmr_ready=10s", **FAST) as controller:
        with pytest.raises(ControllerTimeout, match=r"longer than 0\.5 s"):
            await within(30, controller.regions.pmr())
        await controller.namespaces[1].write(0, bytes(4096))


async def test_views_outlive_the_controller() -> None:
    async with nvme_async.open(PMR, **FAST) as controller:
        region = await controller.regions.pmr()
        view = region.buffer[:16]
        view[:] = b"sixteen bytes ok"
    assert bytes(view) == b"sixteen bytes ok"
    view.release()


@pytest.mark.parametrize("options", ["cmb=5000", "pmr=4096,cmb=4096", "pmr_ready=1s", "pmr=4096,pmr_health=fine"])
def test_wrong_options(options: str) -> None:
    from nvme_async.emulator import EmulatorConfig

    with pytest.raises(ConfigurationError):
        EmulatorConfig.parse(options)
