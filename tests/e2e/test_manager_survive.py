"""Handles survive changes of the driver behind them: resets, servicing, failures, removal and
return, added and removed namespaces.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from driving import within
from managed import Events, Verifier, became, descriptors, emulator, eventually, uri

from nvme_async.emulator import FOREVER, EmulatedController
from nvme_async.errors import (
    ControllerError,
    ControllerFatal,
    ControllerGone,
    ControllerTimeout,
    InvalidField,
    InvalidNamespace,
    LbaOutOfRange,
    NamespaceReplaced,
    QueueShutdown,
)
from nvme_async.manager import Manager
from nvme_async.spec import commands


async def test_reset_under_load() -> None:
    address = uri()
    async with Manager() as manager:
        namespace = await manager.namespace(address, 1)
        load = Verifier(namespace)
        for cycle in range(1, 6):
            await load.more(50)
            await manager.reset(address, f"cycle {cycle}")
            device = manager.device(address)
            assert device.controller is not None
            assert device.controller.resets == cycle
        await load.more(50)
        await load.stop()
        assert load.errors == []


async def test_servicing_under_load() -> None:
    """A new driver each time: shutdown, reset, bring-up. The application notices nothing."""
    address = uri()
    async with Manager() as manager:
        events = Events(manager)
        namespace = await manager.namespace(address, 1)
        device = manager.device(address)
        load = Verifier(namespace)
        await load.more(50)
        before = descriptors()
        seen = {device.controller}
        for cycle in range(5):
            await manager.service(address, queue_entries=64 + cycle)
            seen.add(device.controller)
            assert device.controller is not None
            assert device.controller.options.queue_entries == 64 + cycle
            await load.more(50)
        await load.stop()
        assert load.errors == []
        assert len(seen) == 6
        assert device.servicings == 5
        assert descriptors() == before
        assert events.kinds().count("device-serviced") == 5
        assert await manager.namespace(address, 1) is namespace
        await events.close()


async def test_idempotent_commands_are_repeated_and_others_fail_with_the_reason() -> None:
    address = uri()
    async with Manager(drain_timeout=0.05) as manager:
        namespace = await manager.namespace(address, 1)
        await namespace.write(0, b"0" * 4096)
        await namespace.write(1, b"1" * 4096)
        faults = emulator(manager, address).faults
        rule = faults.add(queue="io", drop=True, count=6)
        buffer = bytearray(4096)
        idempotent = [
            namespace.read(0),
            namespace.readinto(1, buffer),
            namespace.write(2, b"2" * 4096),
            namespace.flush(),
            namespace.submit(commands.write_zeroes(1, 3, 1)),
        ]
        tasks = [asyncio.ensure_future(call) for call in idempotent]
        copy = asyncio.ensure_future(namespace.copy([(0, 1)], 4))
        await asyncio.to_thread(rule.wait, 6)
        await manager.service(address)
        results = await within(5, asyncio.gather(*tasks))
        assert results[0] == b"0" * 4096
        assert (results[1], buffer) == (4096, b"1" * 4096)
        assert await namespace.read(2) == b"2" * 4096
        with pytest.raises(QueueShutdown):
            await copy
        assert namespace.inspect()["retried"] == 5


async def test_calls_during_servicing_wait_within_the_limit(tmp_path: Path) -> None:
    with EmulatedController("size=16MiB") as target:
        target.listen(tmp_path / "c.sock")
        address = f"vfio-user:{tmp_path}/c.sock"
        async with Manager() as manager:
            namespace = await manager.namespace(address, 1)
            held = target.faults.add(queue="admin", opcode=6, cdw10=1, count=1, delay=FOREVER)
            servicing = asyncio.ensure_future(manager.service(address))
            await eventually(lambda: held.hits > 0)
            assert not namespace.available
            waiting = [asyncio.ensure_future(namespace.write(at, bytes(4096))) for at in range(10)]
            await eventually(lambda: manager.inspect()["devices"][address]["waiting_calls"] == 10)
            target.faults.release()
            await servicing
            await asyncio.gather(*waiting)
            assert namespace.available
            held.remove()
        async with Manager(wait_limit=0.3) as manager:
            namespace = await manager.namespace(address, 1)
            held = target.faults.add(queue="admin", opcode=6, cdw10=1, count=1, delay=FOREVER)
            servicing = asyncio.ensure_future(manager.service(address))
            await eventually(lambda: held.hits > 0)
            began = time.monotonic()
            with pytest.raises(ControllerTimeout, match="did not return within"):
                await namespace.read(0)
            with pytest.raises(ControllerTimeout, match="busy"):
                await manager.device(address).namespace(2)
            assert time.monotonic() - began > 0.25
            target.faults.release()
            await servicing
            held.remove()
            assert await namespace.read(0) == bytes(4096)
            # A failed servicing: all callers get the error, and may try again.
            target.faults.add(queue="admin", opcode=6, fail=0x006)
            with pytest.raises(Exception, match="Internal Error"):
                await manager.service(address)
            with pytest.raises(Exception, match="Internal Error"):
                await namespace.read(0)
            assert manager.device(address).state == "failed"
            target.faults.clear()
            await manager.load(address)
            assert await namespace.read(0) == bytes(4096)


async def test_a_failed_controller_gets_a_new_driver(tmp_path: Path) -> None:
    """Completions that name another queue after every reset end the driver; the manager repairs
    that, up to a limit.
    """
    address = uri()
    async with Manager(repairs=2, drain_timeout=0.1) as manager:
        events = Events(manager)
        namespace = await manager.namespace(address, 1)
        device = manager.device(address)
        await namespace.write(1, b"1" * 4096)
        faults = emulator(manager, address).faults
        for cycle in (1, 2):
            faults.add(queue="io", opcode=2, count=4, cqe={10: b"\x07\x00"})
            assert await namespace.read(1) == b"1" * 4096
            await became(device, "ready")
            assert device.repairs == cycle
        faults.add(queue="io", opcode=2, count=4, cqe={10: b"\x07\x00"})
        with pytest.raises(ControllerFatal, match="names submission queue 7, and again after 3 resets"):
            await namespace.read(1)
        assert device.state == "failed"
        await eventually(lambda: [event.kind for event in events.seen].count("device-failed") == 3)
        await eventually(lambda: device.controller is None)
        await events.close()


async def test_a_device_vanishes_under_load_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    address = f"vfio-user:{path}"
    media = f"size=16MiB,medium=file,path={tmp_path}/media"
    target = EmulatedController(media)
    target.listen(path)
    async with Manager() as manager:
        events = Events(manager)
        namespace = await manager.namespace(address, 1)
        device = manager.device(address)
        await namespace.write(2000, b"kept" * 1024)
        load = Verifier(namespace, tasks=4)
        await load.more(50)
        rule = target.faults.add(queue="io", opcode=2, drop=True)
        stuck = asyncio.ensure_future(namespace.read(2000))
        await asyncio.to_thread(rule.wait, 1)
        target.close()
        with pytest.raises(ControllerGone):
            await stuck
        gone = await events.wait("device-gone")
        assert (gone.uri, device.state) == (address, "gone")
        assert gone.reason
        with pytest.raises(ControllerGone):
            await namespace.read(0)
        await eventually(lambda: device.controller is None)  # its memory is reclaimed
        await eventually(lambda: len(load.errors) > 3)
        assert {type(error) for error in load.errors} == {ControllerGone}
        with EmulatedController(media) as target:
            target.listen(path)
            await became(device, "ready")
            await load.more(20)
            await load.stop()
            assert await namespace.read(2000) == b"kept" * 1024
            await manager.unload(address)
        await events.close()


async def test_a_missing_device_is_not_reloaded_with_hotplug_off(tmp_path: Path) -> None:
    with EmulatedController("size=16MiB") as target:
        target.listen(tmp_path / "c.sock")
        async with Manager(hotplug="off") as manager:
            address = f"vfio-user:{tmp_path}/c.sock"
            namespace = await manager.namespace(address, 1)
            target.drop_client()
            await became(manager.device(address), "gone")
            await asyncio.sleep(0.2)
            assert manager.device(address).state == "gone"
            with pytest.raises(ControllerGone):
                await namespace.read(0)
            await manager.load(address)
            assert await namespace.read(0) == bytes(4096)


async def test_all_ones_registers_under_load_mean_a_missing_device() -> None:
    address = uri()
    async with Manager(command_timeout=8.0) as manager:
        namespace = await manager.namespace(address, 1)
        load = Verifier(namespace, tasks=4)
        await load.more(20)
        emulator(manager, address).faults.remove_device()
        assert await became(manager.device(address), "gone") < 7.5
        await eventually(lambda: len(load.errors) >= 4)
        await load.stop()
        assert {type(error) for error in load.errors} == {ControllerGone}


async def test_namespaces_are_added_resized_and_removed_under_load() -> None:
    address = uri()
    async with Manager() as manager:
        events = Events(manager)
        namespace = await manager.namespace(address, 1)
        faults = emulator(manager, address).faults
        load = Verifier(namespace)
        await load.more(30)

        await asyncio.to_thread(faults.add_namespace, 5, "8MiB")
        added = await events.wait("namespace-added")
        assert (added.uri, added.nsid) == (address, 5)
        second = await manager.namespace(address, 5)
        assert second.nbytes == 8 << 20
        second_load = Verifier(second, tasks=2)
        await second_load.more(10)

        await asyncio.to_thread(faults.resize_namespace, 1, "32MiB")
        changed = await events.wait("namespace-changed")
        assert (changed.nsid, namespace.nbytes) == (1, 32 << 20)
        await namespace.write(8191, b"end!" * 1024)
        with pytest.raises(LbaOutOfRange):
            await namespace.write(8192, bytes(4096))

        await asyncio.to_thread(faults.remove_namespace, 5)
        removed = await events.wait("namespace-removed")
        assert removed.nsid == 5
        began = time.monotonic()
        with pytest.raises(InvalidNamespace):
            await second.read(0)
        assert time.monotonic() - began < 20
        await second_load.stop()
        # Commands that reach the controller before its event reaches us fail with Invalid Field for
        # an inactive NSID (Base 2.0, 3.2.1.4).
        assert {type(error) for error in second_load.errors} <= {InvalidNamespace, InvalidField}

        await asyncio.to_thread(faults.add_namespace, 5, "4MiB")
        # Another disk has the number: the old handle is not valid for it.
        await events.wait("namespace-replaced")
        with pytest.raises(NamespaceReplaced):
            await second.read(0)
        third = await manager.namespace(address, 5)
        assert await third.read(0) == bytes(4096)
        assert third.nbytes == 4 << 20
        await load.more(30)
        await load.stop()
        assert load.errors == []
        await events.close()


async def test_a_namespace_removed_during_servicing_is_noticed() -> None:
    address = uri("size=16MiB,namespaces=2")
    async with Manager() as manager:
        first, second = await asyncio.gather(manager.namespace(address, 1), manager.namespace(address, 2))
        await asyncio.to_thread(emulator(manager, address).faults.remove_namespace, 2, notice=False)
        await manager.service(address)
        assert await first.read(0) == bytes(4096)
        with pytest.raises(InvalidNamespace):
            await second.read(0)


async def test_several_loops_survive_resets_and_servicing() -> None:
    """Each loop has its own queue pair, under the old driver and the next ones."""
    address = uri()
    async with Manager(workers=1) as manager:
        namespace = await manager.namespace(address, 1)
        stop = threading.Event()
        counts = [0] * 3
        problems: list[BaseException] = []

        def work(index: int) -> None:
            async def go() -> None:
                while not stop.is_set():
                    lba = index * 100 + counts[index] % 50
                    data = f"{index} {counts[index]}".encode().ljust(4096, b"-")
                    await namespace.write(lba, data)
                    assert await namespace.read(lba) == data
                    counts[index] += 1

            try:
                asyncio.run(go())
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        try:
            for cycle in range(4):
                before = list(counts)
                await eventually(
                    lambda before=before: (
                        problems or all(now > then + 20 for now, then in zip(counts, before, strict=True))
                    )
                )
                await (manager.reset(address) if cycle % 2 else manager.service(address))
        finally:
            stop.set()
            await asyncio.to_thread(lambda: [thread.join(10) for thread in threads])
        assert problems == []
        controller = manager.inspect()["devices"][address]["controller"]
        assert len(controller["io_queues"]) == 4


async def test_more_loops_than_queues_share() -> None:
    address = uri("size=16MiB,queues=2")
    async with Manager(workers=1) as manager:
        namespace = await manager.namespace(address, 1)
        await namespace.write(0, b"0" * 4096)
        found: list[bytes] = []

        def work() -> None:
            async def go() -> None:
                found.append(await namespace.read(0))

            asyncio.run(go())

        for _ in range(3):
            await asyncio.to_thread(work)
        assert found == [b"0" * 4096] * 3
        barrier = threading.Barrier(3)

        def read_at_once() -> None:
            async def go() -> None:
                await namespace.read(0)
                await asyncio.to_thread(barrier.wait)
                found.append(await namespace.read(0))

            asyncio.run(go())

        await asyncio.gather(*(asyncio.to_thread(read_at_once) for _ in range(3)))
        assert found == [b"0" * 4096] * 6
        assert manager.inspect()["devices"][address]["controller"]["loops_sharing_a_queue"] >= 2


async def test_cancelled_calls_leave_nothing_behind() -> None:
    address = uri()
    async with Manager() as manager:
        namespace = await manager.namespace(address, 1)
        faults = emulator(manager, address).faults
        held = faults.add(queue="admin", opcode=6, cdw10=1, count=1, delay=FOREVER)
        servicing = asyncio.ensure_future(manager.service(address))
        await eventually(lambda: held.hits > 0)
        calls = [asyncio.ensure_future(namespace.read(at)) for at in range(20)]
        await eventually(lambda: manager.device(address).gate.waiting == 20)
        for call in calls[::2]:
            call.cancel()
        faults.release()
        results = await asyncio.gather(*calls, return_exceptions=True)
        await servicing
        assert results[1::2] == [bytes(4096)] * 10
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
        assert manager.device(address).gate.waiting == 0


async def test_batches_survive_a_reset_and_servicing() -> None:
    address = uri()
    async with Manager(drain_timeout=0.05) as manager:
        namespace = await manager.namespace(address, 1)
        data = b"".join(bytes([at]) * 4096 for at in range(32))
        await namespace.write_many(range(32), data)
        rule = emulator(manager, address).faults.add(queue="io", opcode=2, drop=True, skip=10, count=5)
        reading = asyncio.ensure_future(namespace.read_many(range(32)))
        await asyncio.to_thread(rule.wait, 15)
        await manager.service(address)
        assert bytes((await within(5, reading)).data) == data


async def test_errors_of_the_command_itself_are_not_retried() -> None:
    address = uri()
    async with Manager() as manager:
        namespace = await manager.namespace(address, 1)
        rule = emulator(manager, address).faults.add(queue="io", opcode=2, fail=0x281)
        with pytest.raises(OSError, match="Unrecovered Read Error"):
            await namespace.read(0)
        assert rule.hits == 1
        errors = manager.inspect()["devices"][address]["controller"]["errors"]
        assert errors == {"0x281 Unrecovered Read Error": 1}
        assert not isinstance(ControllerError("x"), OSError)
