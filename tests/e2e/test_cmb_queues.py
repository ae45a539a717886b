"""I/O queues in the Controller Memory Buffer."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from driver_line import CREATE_SQ, READ, WAYS, WRITE, Way, all_handed_over, line, results, socket_path
from driving import FAST, faults, pattern, within

import nvme_async
from nvme_async.driver.pcie.own_memory import CONTROLLER_ADDRESSES
from nvme_async.errors import ConfigurationError, DeviceError, RestoreRefused
from nvme_async.keepalive import restore
from nvme_async.spec.registers import Cmbmsc, Register

URI = "emulated:size=16MiB,cmb=1MiB"
STEP = 256 * 64


def places(controller: nvme_async.Controller) -> list[str]:
    return [queue["rings_in_cmb"] for queue in controller.inspect()["io_queues"]]


async def exchange(controller: nvme_async.Controller, seed: int) -> None:
    """More commands than a ring has entries."""
    ns = controller.namespaces[1]
    data = [pattern(4096, seed + i) for i in range(300)]
    await asyncio.gather(*(ns.write(i, block) for i, block in enumerate(data)))
    assert await asyncio.gather(*(ns.read(i) for i in range(300))) == data


@pytest.mark.parametrize("which", ["submission", "all"])
async def test_commands_go_through_rings_in_the_controllers_memory(which: Any) -> None:
    async with nvme_async.open(URI, cmb_queues=which, **FAST) as controller:
        assert places(controller) == [which]
        assert not [name for name in controller.inspect()["degraded"] if "Memory Buffer" in name]
        hot = controller.queues.io_queues()[0].hot  # type: ignore[attr-defined]
        assert hot.sq_iova == CONTROLLER_ADDRESSES + (hot.qid - 1) * (STEP + 4096 * (which == "all"))
        assert (hot.cq_iova > CONTROLLER_ADDRESSES) == (which == "all")
        await exchange(controller, 1)
        await controller.reset()
        assert places(controller) == [which]
        await exchange(controller, 2)


async def test_by_default_the_rings_are_in_memory_of_the_host() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        assert places(controller) == [""]


async def test_data_have_the_rest_of_the_buffer() -> None:
    async with nvme_async.open(URI, cmb_queues="submission", io_queues=4, **FAST) as controller:
        ns = controller.namespaces[1]
        with await controller.regions.cmb() as memory:
            assert memory.nbytes == (1 << 20) - controller.queues.limit * STEP
            await ns.write(0, pattern(8192, 3))
            await ns.readinto(0, memory.buffer[:8192])
            await exchange(controller, 4)
            assert memory.buffer[:8192] == pattern(8192, 3)
            await controller.reset()
            await ns.readinto(0, memory.buffer[4096:8192])
    async with nvme_async.open("emulated:size=16MiB,cmb=16KiB", cmb_queues="submission", **FAST) as controller:
        assert places(controller) == ["submission"]
        with pytest.raises(ConfigurationError, match="queues take all 16384 bytes"):
            await controller.regions.cmb()


@pytest.mark.parametrize(
    ("uri", "which", "reason"),
    [
        ("emulated:size=16MiB", "submission", r"CAP\.CMBS"),
        (f"{URI},cmb_uses=read/write", "submission", "not for submission queues"),
        (f"{URI},cmb_uses=submission/read/write", "all", "not for completion queues"),
        ("emulated:size=16MiB,cmb=4KiB", "submission", "4096 bytes has no room for a queue of 256 entries"),
    ],
)
async def test_a_controller_that_does_not_allow_it_has_them_in_host_memory(uri: str, which: Any, reason: str) -> None:
    async with nvme_async.open(uri, cmb_queues=which, **FAST) as controller:
        assert places(controller) == [""]
        (degraded,) = [text for name, text in controller.inspect()["degraded"].items() if "Memory Buffer" in name]
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(degraded)
        await exchange(controller, 5)


async def test_a_queue_that_the_controller_refuses_there_is_in_host_memory() -> None:
    async with nvme_async.open(URI, cmb_queues="all", **FAST) as controller:
        faults(controller).add(queue="admin", opcode=CREATE_SQ, count=1, fail=0x13)
        await controller.reset()
        assert places(controller) == [""]
        assert any("queue 1 in the Controller" in name for name in controller.inspect()["degraded"])
        await exchange(controller, 6)


async def test_commands_are_sent_again_after_a_reset_that_has_cleared_the_registers() -> None:
    async with nvme_async.open(URI, cmb_queues="all", **FAST) as controller:
        ns = controller.namespaces[1]
        await ns.write(0, pattern(4096, 7))
        rule = faults(controller).add(queue="io", opcode=READ, count=3, discard=True)
        reads = [asyncio.ensure_future(ns.read(0)) for _ in range(3)]
        while rule.hits < 3:
            await asyncio.sleep(0.001)
        await controller.registers.write64(Register.CMBMSC, 0)  # as a reset of the function leaves it
        await controller.reset()
        assert await within(30, asyncio.gather(*reads)) == [pattern(4096, 7)] * 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", ["submission", "all"])
async def test_a_successor_goes_on_with_them(which: Any, way: Way) -> None:
    async with line("size=16MiB,cmb=1MiB", cmb_queues=which) as drivers:
        await exchange(drivers.driver, 8)
        drivers.delay(opcode=WRITE)
        tasks = drivers.start(*(drivers.namespace.write(i, pattern(4096, i)) for i in range(5)))
        await drivers.outstanding(5)
        successor = await drivers.succeed(way)
        assert all_handed_over(await results(tasks))
        assert places(successor) == [which] or successor.inspect()["spare_io_queues"]
        drivers.release()
        async with asyncio.timeout(30):
            await successor.adopted.wait()
        assert [await drivers.namespace.read(i) for i in range(5)] == [pattern(4096, i) for i in range(5)]
        await exchange(successor, 9)
        again = await drivers.succeed(way)
        await exchange(again, 10)
        await again.reset()
        assert places(again) == [which]
        await exchange(again, 11)


@pytest.mark.parametrize("control", [0, Cmbmsc(cre=True, cmse=True, cba=CONTROLLER_ADDRESSES >> 12 | 1).to_int()])
async def test_a_buffer_that_is_not_where_it_was_is_refused(control: int) -> None:
    async with line("size=16MiB,cmb=1MiB", cmb_queues="submission") as drivers:
        await exchange(drivers.driver, 12)
        await drivers.driver.registers.write64(Register.CMBMSC, control)
        with await drivers.driver.save() as bundle:
            with pytest.raises(RestoreRefused, match=r"its Controller Memory Buffer, which has its queues, is not at"):
                await restore(bundle)
            drivers.driver = await restore(bundle, policy="fresh")
        assert places(drivers.driver) == ["submission"]
        await exchange(drivers.driver, 13)


async def test_the_places_of_other_loops_differ_and_lent_queues_are_in_their_workers_memory(tmp_path: Path) -> None:
    async with nvme_async.open(URI, cmb_queues="submission", io_queues=4, **FAST) as controller:
        ns = controller.namespaces[1]
        await ns.write(0, pattern(4096, 14))
        assert await asyncio.to_thread(lambda: asyncio.run(read_elsewhere(ns))) == pattern(4096, 14)
        path = socket_path(tmp_path)
        async with controller.share(path), nvme_async.open(f"shared:{path}") as worker:
            assert await worker.namespaces[1].read(0) == pattern(4096, 14)
            assert places(worker) == [""]


async def read_elsewhere(ns: nvme_async.Namespace) -> bytes:
    return await ns.read(0)


def maps_of_the_controllers_memory() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("nvme-controller-memory")


@pytest.mark.parametrize("which", ["off", "submission", "all", "persistent"])
async def test_a_closed_controller_keeps_no_mapping_of_the_controllers_memory(which: Any) -> None:
    """With VFIO a mapping keeps the device open: it can't be opened anew, nor be given back."""
    before = maps_of_the_controllers_memory()
    if which == "persistent":
        async with nvme_async.open("emulated:size=16MiB,pmr=64KiB", **FAST) as controller:
            persistent = await controller.regions.pmr()
            assert maps_of_the_controllers_memory() > before
        with pytest.raises(DeviceError):
            await persistent.barrier()
    else:
        async with nvme_async.open(URI, cmb_queues=which, **FAST) as controller:
            data = await controller.regions.cmb()
            assert maps_of_the_controllers_memory() > before
        assert not data.is_open
    assert maps_of_the_controllers_memory() == before
