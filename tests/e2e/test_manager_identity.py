"""A handle belongs to one disk: another drive at the address, or another namespace under the
number, never gets I/O meant for the first. Failed repairs are retried.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from driving import within
from managed import Events, became, emulator, eventually, uri

from nvme_async.driver.options import Options
from nvme_async.emulator import FOREVER, EmulatedController
from nvme_async.errors import ControllerReplaced, NamespaceChanged, NamespaceReplaced
from nvme_async.manager import Manager
from nvme_async.manager.upkeep import REPAIR_WINDOW, RepairLimit
from nvme_async.spec import commands


@pytest.mark.parametrize("block", [4096, 512])
async def test_another_drive_at_the_address_gets_no_io_of_the_first(tmp_path: Path, block: int) -> None:
    path = tmp_path / "c.sock"
    address = f"vfio-user:{path}"
    first = EmulatedController("size=16MiB,serial=DRIVE-A")
    first.listen(path)
    async with Manager() as manager:
        events = Events(manager)
        handle = await manager.namespace(address, 1)
        device = manager.device(address)
        await handle.write(3, b"a" * 4096)
        first.close()
        await events.wait("device-gone")
        with EmulatedController(f"size=16MiB,serial=DRIVE-B,block={block}") as second:
            writes = second.faults.add(queue="io", opcode=1)
            second.listen(path)
            await became(device, "ready")
            replaced = await events.wait("device-replaced")
            assert "DRIVE-A" in replaced.reason
            assert "DRIVE-B" in replaced.reason
            for call in (handle.write(3, b"for A".ljust(4096)), handle.read(3), handle.flush()):
                with pytest.raises(ControllerReplaced, match="DRIVE-B"):
                    await call
            with pytest.raises(ControllerReplaced):
                await handle.submit(commands.write_zeroes(1, 0, 1))
            assert writes.hits == 0
            assert not handle.available
            new = await manager.namespace(address, 1)
            assert new is not handle
            assert new.block_size == block
            await new.write(3, b"b" * block)
            assert await new.read(3) == b"b" * block
            with pytest.raises(ControllerReplaced):
                await handle.read(3)
            await manager.unload(address)
        await events.close()


async def test_calls_that_wait_for_a_driver_do_not_go_to_another_drive(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    address = f"vfio-user:{path}"
    with EmulatedController("size=16MiB,serial=DRIVE-A") as first, EmulatedController("size=16MiB") as second:
        first.listen(path)
        writes = second.faults.add(queue="io", opcode=1)
        async with Manager() as manager:
            handle = await manager.namespace(address, 1)
            device = manager.device(address)
            await handle.write(3, b"a" * 4096)
            # Another drive appears at the address while the driver is replaced.
            replacing = threading.Event()
            again = device._drivers.transport_again

            async def elsewhere(left: object, options: Options) -> object:
                if left is not None:
                    left.abandon()  # type: ignore[attr-defined]
                first.close()
                path.unlink(missing_ok=True)
                second.listen(path)
                await asyncio.to_thread(replacing.wait, 60)
                return await again(None, options)

            device._drivers.transport_again = elsewhere  # type: ignore[assignment,method-assign]
            servicing = asyncio.create_task(manager.service(address))
            await became(device, "servicing")
            waiting = [asyncio.create_task(handle.write(lba, b"for A".ljust(4096))) for lba in range(4)]
            await eventually(lambda: device.inspect()["waiting_calls"] == 4)
            replacing.set()
            await servicing
            for call in waiting:
                with pytest.raises(ControllerReplaced):
                    await call
            assert writes.hits == 0
            await (await manager.namespace(address, 1)).write(3, b"b" * 4096)


async def test_another_namespace_under_the_number_ends_the_handle_with_an_event() -> None:
    address = uri("size=16MiB,namespaces=2")
    async with Manager() as manager:
        events = Events(manager)
        one, handle = await manager.namespace(address, 1), await manager.namespace(address, 2)
        await handle.write(5, b"X" * 4096)
        faults = emulator(manager, address).faults
        faults.remove_namespace(2, notice=False)
        faults.add_namespace(2, "16MiB")
        event = await events.wait("namespace-replaced")
        assert event.nsid == 2
        with pytest.raises(NamespaceReplaced):
            await handle.write(5, b"Y" * 4096)
        new = await manager.namespace(address, 2)
        assert new is not handle
        assert await new.read(5) == bytes(4096)
        await one.write(0, b"1" * 4096)
        await events.close()


async def test_a_namespace_replaced_during_servicing_is_noticed() -> None:
    address = uri("size=16MiB,namespaces=2")
    async with Manager() as manager:
        events = Events(manager)
        handle = await manager.namespace(address, 2)
        faults = emulator(manager, address).faults
        faults.remove_namespace(2, notice=False)
        faults.add_namespace(2, "16MiB", notice=False)
        await manager.service(address)
        with pytest.raises(NamespaceReplaced):
            await handle.write(5, b"Y" * 4096)
        assert (await events.wait("namespace-replaced")).nsid == 2
        await (await manager.namespace(address, 2)).read(0)
        await events.close()


async def test_a_waiting_call_fails_if_the_block_size_changes() -> None:
    address = uri()
    async with Manager() as manager:
        handle = await manager.namespace(address, 1)
        device = manager.device(address)
        faults = emulator(manager, address).faults
        assert device.controller is not None
        # Like another host's Format, without an event.
        await device.worker.call(lambda: device.controller.admin_queue.submit(commands.format_nvm(1, 0)))  # type: ignore[union-attr]
        bring_up = faults.add(queue="admin", opcode=6, cdw10=1, count=1, delay=FOREVER)
        servicing = asyncio.create_task(manager.service(address))
        await eventually(lambda: bring_up.hits > 0)
        writes = faults.add(queue="io", opcode=1)
        waiting = asyncio.create_task(handle.write(3, b"x" * 4096))
        await eventually(lambda: device.inspect()["waiting_calls"] == 1)
        faults.release()
        with pytest.raises(NamespaceChanged, match="blocks of 4096 bytes became blocks of 512"):
            await waiting
        await servicing
        assert writes.hits == 0
        assert handle.block_size == 512
        await handle.write(3, b"x" * 512)


async def test_a_failed_repair_is_retried_and_calls_wait(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    address = f"vfio-user:{path}"
    with EmulatedController("size=16MiB") as target:
        target.listen(path)
        async with Manager(repairs=4, drain_timeout=0.1) as manager:
            handle = await manager.namespace(address, 1)
            device = manager.device(address)
            await handle.write(1, b"1" * 4096)
            identify = target.faults.add(queue="admin", opcode=6, cdw10=1, fail=0x06, dnr=True)
            target.faults.add(queue="io", opcode=2, count=1, cqe={10: b"\x07\x00"})
            read = asyncio.create_task(handle.read(1))
            await eventually(lambda: device.repairs >= 2)
            assert not read.done()
            identify.remove()
            assert await within(10, read) == b"1" * 4096
            assert device.state == "ready"


async def test_calls_wait_for_a_namespace_that_is_not_ready_after_a_repair(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    address = f"vfio-user:{path}"
    with EmulatedController("size=16MiB,namespaces=2") as target:
        target.listen(path)
        async with Manager(drain_timeout=0.1) as manager:
            one, two = await manager.namespace(address, 1), await manager.namespace(address, 2)
            await two.write(1, b"2" * 4096)
            not_ready = target.faults.add(queue="admin", opcode=6, nsid=2, cdw10=0, fail=0x82)
            await manager.service(address)
            await one.read(0)
            read = asyncio.create_task(two.read(1))
            await asyncio.sleep(0.1)
            assert not read.done()
            not_ready.remove()
            assert await within(10, read) == b"2" * 4096


async def test_calls_fail_once_the_repairs_per_minute_are_used_up(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    address = f"vfio-user:{path}"
    with EmulatedController("size=16MiB") as target:
        target.listen(path)
        async with Manager(repairs=2, drain_timeout=0.1) as manager:
            handle = await manager.namespace(address, 1)
            device = manager.device(address)
            target.faults.add(queue="admin", opcode=6, cdw10=1, fail=0x06, dnr=True)
            target.faults.add(queue="io", opcode=2, count=1, cqe={10: b"\x07\x00"})
            with pytest.raises(Exception, match=r"Internal Error|command id"):
                await within(10, handle.read(1))
            assert (device.state, device.repairs) == ("failed", 2)
            # A minute later the next repair is allowed.
            target.faults.clear()
            device._upkeep.limit._begun.clear()
            await manager.load(address)
            assert await handle.read(1) == bytes(4096)


def test_the_rate_of_repairs() -> None:
    now = [0.0]
    limit = RepairLimit(3, lambda: now[0])
    begun = []
    for _ in range(9):
        now[0] += limit.pause()
        begun.append(now[0])
        limit.begin()
        limit.failed += 1
    assert begun[0] == 0.0
    assert begun[2] < 2.0  # several within a second or two, with growing pauses
    assert begun[2] - begun[1] > begun[1] - begun[0]
    for first, fourth in zip(begun, begun[3:], strict=False):
        assert fourth - first >= REPAIR_WINDOW
    assert begun[-1] < 4 * REPAIR_WINDOW
