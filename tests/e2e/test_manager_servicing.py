"""Live servicing: a new driver on the running controller, in this process or in the next manager,
during I/O.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from managed import Events, Verifier, became, descriptors, emulator, uri

from nvme_async.emulator import FOREVER, EmulatedController
from nvme_async.errors import ConfigurationError, ControllerTimeout, HandedOver, InvalidSavedState, NvmeError
from nvme_async.manager import Manager, SavedDevices


async def test_live_servicing_under_load_is_invisible() -> None:
    """The controller is neither reset nor identified again, and no call notices."""
    address = uri()
    async with Manager(keepalive=True) as manager:
        events = Events(manager)
        namespace = await manager.namespace(address, 1)
        device = manager.device(address)
        load = Verifier(namespace)
        await load.more(50)
        faults = emulator(manager, address).faults
        before = faults.counters()
        drivers = {id(device.controller)}
        kept = [device.controller]
        for _ in range(5):
            await manager.service(address, keepalive=True)
            drivers.add(id(device.controller))
            kept.append(device.controller)
            await load.more(50)
        await load.stop()
        assert load.errors == []
        assert len(drivers) == 6
        after = faults.counters()
        for name in ("enables", "disables", "resets", "queues_created"):
            assert after[name] == before[name], name
        assert after["admin"].get(0x06, 0) == before["admin"].get(0x06, 0)  # Identify
        assert events.kinds().count("device-serviced") == 5
        assert manager.inspect()["devices"][address]["keepalive"]["on"] is True
        await events.close()


async def test_commands_in_flight_are_repeated_or_keep_their_one_result() -> None:
    address = uri()
    async with Manager(keepalive=True) as manager:
        namespace = await manager.namespace(address, 1)
        await namespace.write(0, b"s" * 4096)
        faults = emulator(manager, address).faults
        copies = faults.add(queue="io", opcode=0x19, delay=FOREVER)
        reads = faults.add(queue="io", opcode=0x02, delay=FOREVER, count=3)
        copying = [asyncio.ensure_future(namespace.copy([(0, 1)], lba)) for lba in (10, 11)]
        reading = [asyncio.ensure_future(namespace.read(0)) for _ in range(3)]
        await asyncio.to_thread(copies.wait, 2)
        await asyncio.to_thread(reads.wait, 3)
        await manager.service(address, keepalive=True)
        assert not any(task.done() for task in (*copying, *reading))  # no caller waited for them
        await asyncio.to_thread(faults.release)
        assert await asyncio.gather(*reading) == [b"s" * 4096] * 3
        await asyncio.gather(*copying)
        assert copies.hits == 2  # sent once, each
        faults.clear()
        assert await namespace.read(10, 2) == b"s" * 8192
        failing = faults.add(queue="io", opcode=0x19, delay_post=0.2, fail=0x183)
        copy = asyncio.ensure_future(namespace.copy([(0, 1)], 12))
        await asyncio.to_thread(failing.wait, 1)
        await manager.service(address, keepalive=True)
        with pytest.raises(NvmeError, match=r"(?i)copy"):
            await copy
        assert failing.hits == 1


async def test_without_keepalive_there_is_no_live_servicing() -> None:
    address = uri()
    async with Manager(keepalive=False) as manager:
        namespace = await manager.namespace(address, 1)
        with pytest.raises(ConfigurationError, match="without keepalive"):
            await manager.service(address, keepalive=True)
        assert await namespace.read(0) == bytes(4096)
        assert manager.inspect()["devices"][address]["keepalive"]["on"] is False


def _across(saved: SavedDevices) -> SavedDevices:
    """Over a socket, as to another process."""
    here, there = socket.socketpair()
    with here, there:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        saved.send(here)
        return SavedDevices.receive(there, timeout=60)


async def test_all_devices_are_saved_and_restored_despite_one_failure(tmp_path: Path) -> None:
    before = descriptors()
    targets = [EmulatedController("size=16MiB") for _ in range(4)]
    addresses = []
    for at, target in enumerate(targets):
        target.listen(tmp_path / f"{at}.sock")
        addresses.append(f"vfio-user:{tmp_path}/{at}.sock")
    live, plain, hung = addresses[:2], addresses[2], addresses[3]
    first = Manager(keepalive=True, close_limit=0.5)
    namespaces = [await first.namespace(address, 1) for address in live]
    await first.load(plain, keepalive=False)
    await first.load(hung)
    for at, namespace in enumerate(namespaces):
        await namespace.write(at, bytes([at + 1]) * 4096)
    slow = targets[0].faults.add(queue="io", opcode=0x01, delay=FOREVER, count=1)
    writing = asyncio.ensure_future(namespaces[0].write(5, b"5" * 4096))
    await asyncio.to_thread(slow.wait, 1)
    rule = targets[3].faults.add(queue="admin", delay=60.0)
    servicing = asyncio.ensure_future(first.service(hung, keepalive=False))
    await became(first.device(hung), "servicing")
    saved = await first.save(timeout=2.0)
    assert sorted(saved.bundles) == live
    assert saved.shut_down == [plain]
    assert list(saved.failures) == [hung]
    assert isinstance(saved.failures[hung], ControllerTimeout)
    with pytest.raises(ControllerTimeout, match="held up by service"):
        saved.check()
    for call in (writing, namespaces[1].read(0)):
        with pytest.raises(HandedOver):
            await call
    targets[0].faults.release()
    assert list(first.devices) == [hung]
    received = await asyncio.to_thread(_across, saved)
    saved.close()
    assert received.uris == saved.uris
    await first.close()
    await asyncio.gather(servicing, return_exceptions=True)
    rule.remove()

    second = await Manager.restore(received, keepalive=True)
    received.close()
    assert sorted(second.devices) == sorted([*live, plain])
    assert {device.state for device in second.devices.values()} == {"ready"}
    for at, address in enumerate(live):
        namespace = await second.namespace(address, 1)
        assert await namespace.read(at) == bytes([at + 1]) * 4096
        assert targets[at].faults.counters()["enables"] == 1
    assert await (await second.namespace(live[0], 1)).read(5) == b"5" * 4096
    assert targets[2].faults.counters()["enables"] == 2
    await second.close()
    for target in targets:
        target.close()
    del (
        writing,
        call,
        namespaces,
        namespace,
        servicing,
        saved,
        first,
    )  # their exceptions refer to frames, which refer to the first drivers
    assert descriptors() == before


async def test_keepalive_off_in_the_next_manager_means_a_reset(tmp_path: Path) -> None:
    with EmulatedController("size=16MiB") as target:
        target.listen(tmp_path / "c.sock")
        address = f"vfio-user:{tmp_path}/c.sock"
        async with Manager(keepalive=True) as first:
            await (await first.namespace(address, 1)).write(0, b"0" * 4096)
            with await first.save() as saved:
                second = await Manager.restore(saved, keepalive=False)
        async with second:
            assert target.faults.counters()["enables"] == 2
            assert await (await second.namespace(address, 1)).read(0) == b"0" * 4096


async def test_a_device_that_cannot_be_restored_does_not_affect_the_others(tmp_path: Path) -> None:
    targets = [EmulatedController("size=16MiB") for _ in range(2)]
    addresses = []
    for at, target in enumerate(targets):
        target.listen(tmp_path / f"{at}.sock")
        addresses.append(f"vfio-user:{tmp_path}/{at}.sock")
    async with Manager(keepalive=True) as first:
        await asyncio.gather(*map(first.load, addresses))
        saved = await first.save()
    targets[0].close()
    async with await Manager.restore(saved, keepalive=True) as second:
        saved.close()
        assert second.device(addresses[0]).state == "failed"
        assert await (await second.namespace(addresses[1], 1)).read(0) == bytes(4096)
        with pytest.raises(NvmeError):
            await second.namespace(addresses[0], 1)
        with EmulatedController("size=16MiB") as again:
            again.listen(tmp_path / "0.sock")
            await second.load(addresses[0])
            assert await (await second.namespace(addresses[0], 1)).read(0) == bytes(4096)
            await second.unload(addresses[0])
    targets[1].close()


def test_invalid_saved_state_is_refused() -> None:
    before = descriptors()
    nonsense = b"NVMESAVE" + (1).to_bytes(4, "little") + bytes(4) + b"\x05\0\0\0nope!"
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"NVMESAVE" + bytes(12), nonsense):
        here, there = socket.socketpair()
        with here, there:
            here.sendall(data)
            here.shutdown(socket.SHUT_WR)
            with pytest.raises(InvalidSavedState):
                SavedDevices.receive(there, timeout=1)
    here, there = socket.socketpair()
    with here, there, pytest.raises(ControllerTimeout):
        SavedDevices.receive(there, timeout=0.05)
    assert descriptors() == before
