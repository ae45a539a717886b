"""Loading, unloading and shutting down: one driver per device, nothing left behind, and no hanging
device delays the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from managed import descriptors, emulator, eventually, uri

from nvme_async.emulator import EmulatedController
from nvme_async.errors import (
    CommandError,
    ConfigurationError,
    ControllerError,
    ControllerGone,
    ControllerTimeout,
    InvalidNamespace,
    QueueShutdown,
)
from nvme_async.manager import Manager
from nvme_async.manager.workers import _cpulist


async def test_concurrent_loads_of_one_device_give_one_driver() -> None:
    address = uri()
    async with Manager() as manager:
        devices = await asyncio.gather(*(manager.load(address) for _ in range(20)))
        assert len(set(map(id, devices))) == 1
        assert len({id(device.controller) for device in devices}) == 1
        assert emulator(manager, address).faults.counters()["enables"] == 1
        again = await manager.load(address.replace("emulated:", "EMULATED:", 1))
        assert again is devices[0]
        assert list(manager.devices) == [address]
        with pytest.raises(ConfigurationError, match="other options"):
            await manager.load(address, queue_entries=32)
        handles = await asyncio.gather(*(manager.namespace(address, 1) for _ in range(5)))
        assert len(set(map(id, handles))) == 1


async def test_loads_from_many_threads_at_once() -> None:
    address = uri()
    async with Manager(workers=2) as manager:
        found = []
        barrier = threading.Barrier(6)

        def work() -> None:
            async def load() -> None:
                found.append((await manager.load(address)).controller)

            barrier.wait()
            asyncio.run(load())

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        await eventually(lambda: not any(thread.is_alive() for thread in threads))
        assert len(found) == 6
        assert len(set(map(id, found))) == 1
        assert [worker["devices"] for worker in manager.inspect()["workers"]] in ([1], [1, 0], [0, 1])


async def test_after_a_failed_load_the_next_one_can_succeed(tmp_path: Path) -> None:
    path = tmp_path / "controller.sock"
    address = f"vfio-user:{path}"
    async with Manager(workers=1) as manager:
        await manager.load(uri())  # everything that is made only once exists now
        before = descriptors()
        results = await asyncio.gather(*(manager.load(address) for _ in range(3)), return_exceptions=True)
        assert {type(result) for result in results} == {ControllerGone}
        assert len(manager.devices) == 1
        assert descriptors() == before
        with EmulatedController("size=16MiB") as target:
            target.listen(path)
            target.faults.add(queue="admin", opcode=6, cdw10=1, fail=0x06, dnr=True)
            with pytest.raises(CommandError):
                await manager.load(address)
            assert len(manager.devices) == 1
            assert sum(worker["devices"] for worker in manager.inspect()["workers"]) == 1
            target.faults.clear()
            namespace = await manager.namespace(address, 1)
            await namespace.write(5, b"5" * 4096)
            assert await namespace.read(5) == b"5" * 4096
            await manager.unload(address)


async def test_a_load_whose_caller_is_cancelled_is_finished() -> None:
    address = uri()
    async with Manager() as manager:
        task = asyncio.ensure_future(manager.load(address))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        device = await manager.load(address)
        assert device.state == "ready"


async def test_unloaded_devices_end_their_handles_and_can_be_loaded_again() -> None:
    address = uri()
    async with Manager() as manager:
        namespace = await manager.namespace(address, 1)
        device = manager.device(address)
        before = descriptors()
        await manager.unload(address)
        assert device.state == "closed"
        assert len(descriptors()) < len(before)
        with pytest.raises(QueueShutdown, match="unloaded"):
            await namespace.read(0)
        with pytest.raises(KeyError):
            manager.device(address)
        await manager.unload(address)
        fresh = await manager.namespace(address, 1)
        assert fresh is not namespace
        assert await fresh.read(0) == bytes(4096)
        with pytest.raises(InvalidNamespace, match="active: \\[1\\]"):
            await manager.namespace(address, 2)


async def test_operations_during_and_after_the_shutdown() -> None:
    address, other = uri(), uri()
    manager = Manager()
    namespace = await manager.namespace(address, 1)
    device = await manager.load(other)
    target = emulator(manager, address).faults
    rule = target.add(opcode=2, queue="io", delay=float("inf"), count=1)
    slow = asyncio.ensure_future(namespace.read(0))
    await asyncio.to_thread(rule.wait, 1)
    closing = asyncio.ensure_future(manager.close())
    await eventually(lambda: manager.inspect()["closed"])
    for attempt in (
        manager.load(address),
        manager.load(uri()),
        manager.namespace(other, 1),
        manager.unload(other),
        device.reset(),
    ):
        with pytest.raises(QueueShutdown, match="closed"):
            await attempt
    await eventually(lambda: not namespace.available)  # once the device's worker has begun
    with pytest.raises(QueueShutdown, match="closed"):
        await namespace.read(1)
    target.release()
    assert await slow == bytes(4096)  # in-flight commands get their time
    await asyncio.gather(closing, manager.close())
    with pytest.raises(QueueShutdown):
        manager.run(asyncio.sleep(0))
    assert [event async for event in manager.events()] == []
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("nvme-worker") and "registers" not in thread.name
    ]


async def test_closing_releases_everything() -> None:
    async with Manager() as manager:
        await manager.load(uri())
    before = descriptors()
    async with Manager() as manager:
        namespaces = await asyncio.gather(*(manager.namespace(uri(), 1) for _ in range(6)))
        await asyncio.gather(*(namespace.write(1, bytes(8192)) for namespace in namespaces))
    assert descriptors() == before


async def test_a_hanging_device_does_not_delay_the_others(tmp_path: Path) -> None:
    """Its commands take minutes; meanwhile others are loaded, used, inspected, unloaded and saved,
    and everything is shut down in time.
    """
    with EmulatedController("size=16MiB") as target:
        target.listen(tmp_path / "c.sock")
        hanging = f"vfio-user:{tmp_path}/c.sock"
        began = time.monotonic()
        async with Manager(workers=1, close_limit=0.8, drain_timeout=0.2, keepalive=True) as manager:
            namespace = await manager.namespace(hanging, 1)
            target.faults.add(queue="admin", delay=300.0)
            target.faults.add(queue="io", delay=300.0)
            lost = [asyncio.ensure_future(namespace.read(at)) for at in range(8)]
            servicing = asyncio.ensure_future(manager.service(hanging, keepalive=False))
            addresses = [uri() for _ in range(4)]
            others = await asyncio.gather(*(manager.namespace(address, 1) for address in addresses))
            await asyncio.gather(*(other.write(0, b"o" * 4096) for other in others))
            assert [await other.read(0) for other in others] == [b"o" * 4096] * 4
            await asyncio.gather(*(manager.unload(address) for address in addresses[:2]))
            state = manager.inspect()["devices"][hanging]
            assert state["mailbox"]["running"]["operation"] == "service"
            with await manager.save(timeout=2.0) as saved:
                assert sorted(saved.bundles) == sorted(addresses[2:])
                assert list(saved.failures) == [hanging]
                with pytest.raises(ControllerTimeout, match="held up by service"):
                    saved.check()
            late = await manager.namespace(uri(), 1)  # and it still accepts new ones
            await late.write(0, bytes(4096))
        assert time.monotonic() - began < 40.0
        results = await asyncio.gather(*lost, servicing, return_exceptions=True)
        assert all(isinstance(result, ControllerError | QueueShutdown) for result in results), results


async def test_a_controller_that_never_becomes_ready_does_not_delay_the_shutdown(tmp_path: Path) -> None:
    with EmulatedController("size=16MiB") as target:
        target.listen(tmp_path / "c.sock")
        target.faults.enable_delay(ready=float("inf"))
        async with Manager(close_limit=0.5) as manager:
            loading = asyncio.ensure_future(manager.load(f"vfio-user:{tmp_path}/c.sock"))
            await eventually(lambda: target.faults.counters()["enables"] == 1 or loading.done())
            began = time.monotonic()
        assert time.monotonic() - began < 7.0
        with pytest.raises((ControllerError, QueueShutdown)):
            await loading


def test_run_works_in_a_thread_without_a_loop() -> None:
    address = uri()
    with Manager(event_loop="asyncio") as manager:
        namespace = manager.run(manager.namespace(address, 1))
        manager.run(namespace.write(9, b"9" * 4096))
        results = []

        def work(at: int) -> None:
            results.extend(manager.run(namespace.read(9), timeout=60) for _ in range(20))

        threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [b"9" * 4096] * 80
        with pytest.raises(TimeoutError):
            manager.run(asyncio.sleep(30), timeout=0.05)
        with pytest.raises(ValueError, match="block size"):
            manager.run(namespace.write(0, b"short"))
        assert {worker["event_loop"] for worker in manager.inspect()["workers"]} == {"asyncio"}


async def test_run_is_refused_in_an_event_loop() -> None:
    async with Manager() as manager:
        with pytest.raises(RuntimeError, match="await"):
            manager.run(asyncio.sleep(0))


async def test_devices_are_spread_over_the_workers_and_pinned() -> None:
    async with Manager(workers=3, event_loop="uvloop") as manager:
        await asyncio.gather(*(manager.load(uri("size=1MiB,queues=2")) for _ in range(7)))
        workers = manager.inspect()["workers"]
        assert sorted(worker["devices"] for worker in workers) == [2, 2, 3]
        assert {worker["event_loop"] for worker in workers} == {"uvloop"}
    async with Manager(pin=[[0], [0]]) as manager:
        await asyncio.gather(manager.load(uri()), manager.load(uri()))
        workers = manager.inspect()["workers"]
        assert [worker["cpus"] for worker in workers] == [[0], [0]]
        for worker in workers:
            status = Path(f"/proc/self/task/{worker['thread']}/status").read_text()
            assert "Cpus_allowed_list:\t0\n" in status
    async with Manager(pin="numa") as manager:
        await manager.load(uri())
        assert manager.inspect()["workers"][0]["cpus"]


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"event_loop": "trio"},
        {"pin": "everywhere"},
        {"pin": [[0]], "workers": 2},
        {"hotplug": "maybe"},
        {"wait_limit": 0},
        {"repairs": -1},
        {"queue_entries": 1},
        {"no_such_option": 1},
    ],
)
def test_invalid_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Manager(**options)  # type: ignore[arg-type]


def test_cpu_lists() -> None:
    assert _cpulist("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert _cpulist("\n") == frozenset()
