"""An owner's and a worker's controller in the same process: what a worker may do, and what is
refused.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import stat
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driving import descriptors, eventually, faults, pattern, within
from sharing_kit import FAST, owner

import nvme_async
from nvme_async.driver.lifecycle import State
from nvme_async.emulator import FOREVER
from nvme_async.errors import (
    CommandTimeout,
    ConfigurationError,
    ControllerGone,
    InvalidField,
    LbaOutOfRange,
    LeaseError,
    OutOfDmaMemory,
)
from nvme_async.sharing import Share
from nvme_async.sharing.channel import Channel, call_once
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature

BLOCK = 4096
Pair = tuple[nvme_async.Controller, Share]


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Pair]:
    async with owner(tmp_path / "s", workers=8, queues=2) as pair:
        yield pair


def worker(share: Share, **options: object) -> nvme_async._open.Opening:
    return nvme_async.open(f"shared:{share.path}", **{**FAST, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("found", ["identify-cns", "none"])
async def test_a_worker_has_the_quirks_that_its_owner_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setenv("NVME_ASYNC_QUIRKS", f"*={found}")
    async with owner(tmp_path / "s", workers=8, queues=2) as (own, share):
        expected = set(own.inspect()["quirks"])
        assert expected == {found} - {"none"}
        monkeypatch.setenv("NVME_ASYNC_QUIRKS", "*=bogus-ids")
        async with worker(share) as controller:
            assert set(controller.inspect()["quirks"]) == expected
            await controller.namespaces[1].read(0)
        async with worker(share, quirks="bogus-ids") as controller:
            assert set(controller.inspect()["quirks"]) == {"bogus-ids"}


async def test_a_worker_has_the_api_of_a_controller(shared: Pair) -> None:
    own, share = shared
    async with worker(share) as controller:
        namespace = controller.namespaces[1]
        assert controller.identify.sn == own.identify.sn
        assert namespace.blocks == own.namespaces[1].blocks
        data = pattern(4 * BLOCK, 1)
        await namespace.write(8, data)
        assert await own.namespaces[1].read(8, 4) == data
        await namespace.flush()
        await namespace.compare(8, data)
        buffer = bytearray(4 * BLOCK)
        await namespace.readinto(8, buffer)
        assert buffer == data
        lbas = array("Q", range(100, 300))
        many = pattern(len(lbas) * BLOCK, 2)
        await namespace.write_many(lbas, many)
        assert bytes((await namespace.read_many(lbas)).data) == many
        with controller.alloc(2 * BLOCK) as memory:
            await namespace.readinto(8, memory)
            assert bytes(memory) == data[: 2 * BLOCK]
        large = pattern(2 << 20, 3)  # more than one command
        await namespace.write(1000, large)
        assert await namespace.read(1000, 512) == large
        with pytest.raises(LbaOutOfRange):
            await namespace.read(namespace.blocks)
        found = controller.inspect()
        assert (found["transport"], found["lease"]["connected"]) == ("shared", True)
        [lease] = own.inspect()["leases"]
        assert (lease["pid"], lease["connected"]) == (os.getpid(), True)
        assert sorted(lease["queues"].values()) == ["absent", "present"]


async def test_doorbells_are_rung_by_the_worker_without_a_message(shared: Pair) -> None:
    _, share = shared
    async with worker(share) as controller:
        await controller.namespaces[1].read(0)
        [connection] = share._connections
        connection.channel.close()  # and so is everything except its queue pair
        for lba in range(50):
            await controller.namespaces[1].read(lba)


async def test_registered_memory_is_accessed_in_place(shared: Pair) -> None:
    _, share = shared
    fd = os.memfd_create("application")
    os.ftruncate(fd, 64 * BLOCK)
    memory = mmap.mmap(fd, 64 * BLOCK)
    async with worker(share) as controller:
        namespace = controller.namespaces[1]
        registration = await asyncio.to_thread(controller.register, memory)
        assert registration.zero_copy
        memory[:BLOCK] = pattern(BLOCK, 5)
        await namespace.write(70, memoryview(memory)[:BLOCK])
        await namespace.readinto(70, memoryview(memory)[BLOCK : 2 * BLOCK])
        assert memory[BLOCK : 2 * BLOCK] == pattern(BLOCK, 5)
        assert len(share.inspect()[0]["queues"]) == 2
        assert share.inspect()[0]["mappings"] == 2
        await asyncio.to_thread(registration.close)
        assert share.inspect()[0]["mappings"] == 1
    os.close(fd)


async def test_only_read_only_admin_commands_are_allowed_by_default(shared: Pair) -> None:
    _, share = shared
    async with worker(share) as controller:
        log = await controller.admin(commands.get_log_page(2, 512))
        assert log.data is not None
        assert len(log.data) == 512
        await controller.admin(commands.get_features(Feature.NUMBER_OF_QUEUES))
        with pytest.raises(InvalidField):
            await controller.admin(commands.identify(0xFE))
        for command in (
            commands.set_features(Feature.VOLATILE_WRITE_CACHE, 0),
            commands.set_features(Feature.NUMBER_OF_QUEUES, 0),
            commands.create_io_cq(3, 16, 0x1000),
            commands.delete_io_sq(1),
            commands.abort(1, 0),
            commands.format_nvm(1, 0),
        ):
            with pytest.raises(LeaseError) as refused:
                await controller.admin(command)
            assert refused.value.code == "policy"
        assert controller.state == "ready"


async def test_with_admin_all_a_worker_can_format_and_others_notice(tmp_path: Path) -> None:
    async with owner(tmp_path / "s", admin="all") as (own, share), worker(share) as first, worker(share) as second:
        await first.admin(commands.set_features(Feature.TEMPERATURE_THRESHOLD, 400))
        with pytest.raises(LeaseError, match="is reserved for the owner"):
            await first.admin(commands.delete_io_sq(1))
        namespace = second.namespaces[1]
        await namespace.write(3, pattern(BLOCK, 3))
        other = next(index for index, lbaf in enumerate(namespace.identify.lbafs) if lbaf.ds == 9 and not lbaf.ms)
        await own.admin(commands.format_nvm(1, other))
        assert own.namespaces[1].block_size == 512
        await eventually(lambda: namespace.block_size == 512 and first.namespaces[1].block_size == 512)
        assert await namespace.read(3) == bytes(512)


async def test_namespace_events_reach_workers(shared: Pair) -> None:
    own, share = shared
    async with worker(share) as controller:
        events = controller.events()
        seen = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        faults(own).add_namespace(2, size=1 << 20)
        assert (await within(5, seen)).kind == "namespace-added"
        assert await controller.namespaces[2].read(0)
        await events.aclose()  # type: ignore[attr-defined]


async def test_the_owners_reset_recreates_a_workers_queues(shared: Pair) -> None:
    own, share = shared
    async with worker(share) as controller:
        namespace = controller.namespaces[1]
        await namespace.write(9, pattern(BLOCK, 9))
        reads = [asyncio.ensure_future(namespace.read(9)) for _ in range(100)]
        await own.reset("a test")
        assert await asyncio.gather(*reads) == [pattern(BLOCK, 9)] * 100
        await eventually(lambda: controller.resets == 1 and controller.state == "ready")
        await controller.reset("its own")
        assert await namespace.read(9) == pattern(BLOCK, 9)
        assert own.resets == 2  # one more was for the doorbells


async def test_a_late_command_is_aborted_through_the_owner(shared: Pair) -> None:
    own, share = shared
    async with worker(share, command_timeout=0.3) as controller:
        faults(own).add(queue="io", opcode=2, count=1, delay=FOREVER)
        with pytest.raises(CommandTimeout):
            await controller.namespaces[1].read(0)
        assert await controller.namespaces[1].read(1) is not None
        assert (controller.inspect()["aborts"], controller.resets, own.resets) == (1, 0, 1)


async def test_a_lost_command_recreates_only_the_workers_queues(shared: Pair) -> None:
    own, share = shared
    async with worker(share, command_timeout=0.3, abort_timeout=0.2) as controller, worker(share) as other:
        await other.namespaces[1].write(4, pattern(BLOCK, 4))
        faults(own).add(queue="io", opcode=2, count=1, drop=True)
        assert await controller.namespaces[1].read(4) == pattern(BLOCK, 4)
        assert (controller.resets, other.resets, own.resets) == (1, 0, 1)
        assert await other.namespaces[1].read(4) == pattern(BLOCK, 4)


async def test_closing_the_owner_ends_workers_with_the_reason(tmp_path: Path) -> None:
    async with owner(tmp_path / "s") as (_, share):
        controller = await worker(share)
    with pytest.raises(ControllerGone, match="no longer shared"):
        await controller.namespaces[1].read(0)
    await controller.close()
    with pytest.raises(ControllerGone, match="no process shares"):
        await nvme_async.sharing.channel.connect(str(tmp_path / "s"), 0.1)  # type: ignore[attr-defined]


async def test_a_revoked_worker_gets_the_reason_and_its_ids_are_lent_again(tmp_path: Path) -> None:
    async with owner(tmp_path / "s", options={"io_queues": 2}) as (own, share), worker(share) as controller:
        await controller.namespaces[1].read(0)
        answer = await asyncio.to_thread(call_once, share.path, "revoke", {"pid": os.getpid()})
        assert answer.body["revoked"] == 1
        with pytest.raises(LeaseError, match="revoked the lease"):
            await controller.namespaces[1].read(0)
        await eventually(lambda: not share.leases and not own.queues.lent)  # type: ignore[attr-defined]
        async with worker(share) as again:
            await again.namespaces[1].read(0)


async def test_quotas_say_what_is_left(tmp_path: Path) -> None:
    async with (
        owner(tmp_path / "s", workers=2, pool_bytes=8 << 20, options={"io_queues": 3}) as (_, share),
        worker(share) as controller,
        worker(share),
    ):
        with pytest.raises(LeaseError, match="2 workers have a lease"):
            await worker(share)
        with pytest.raises(OutOfDmaMemory):
            await controller.buffer(16 << 20)
    async with owner(tmp_path / "t", options={"io_queues": 2}) as (_, share), worker(share):
        with pytest.raises(LeaseError, match="all 2 I/O queue pairs are taken: 1 are lent, the owner has 1"):
            await worker(share)


async def test_invalid_arguments_are_refused_by_name(tmp_path: Path, shared: Pair) -> None:
    own, share = shared
    assert stat.S_IMODE(os.stat(share.path).st_mode) == 0o600
    with pytest.raises(ConfigurationError, match="is already shared"):
        await own.share(tmp_path / "u")
    with pytest.raises(ConfigurationError, match="unknown sharing option 'wokers'"):
        own.share(tmp_path / "u", wokers=3)
    with pytest.raises(ConfigurationError, match="admin is 'some', not one of"):
        own.share(tmp_path / "u", admin="some")
    with pytest.raises(ConfigurationError, match="1 to 107 bytes"):
        await nvme_async.open("shared:" + "x" * 200)
    assert not (tmp_path / "u").exists()


async def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvme_async.sharing.owner._GRACE", 0.01)  # for the owner's end of connections
    async with owner(tmp_path / "s", workers=4) as (own, share):
        async with worker(share) as controller:
            await controller.namespaces[1].read(0)
        await eventually(lambda: not share._connections and not share.leases)
        before = descriptors()
        for _ in range(5):
            async with worker(share) as controller:
                await controller.namespaces[1].read(0)
        await eventually(lambda: descriptors() == before)
        memory = own.memory
        assert memory is not None
        assert (memory.windows, memory.lent_mappings, own.queues.lent) == ([], 0, set())
        assert len(share.stops._free) == 1024 - 16
    assert not (tmp_path / "s").exists()


async def test_a_live_worker_whose_lease_was_taken_for_absence_gives_its_ids_back(tmp_path: Path) -> None:
    async with owner(tmp_path / "s", absent_seconds=0.1) as (own, share), worker(share) as controller:
        [lease] = share.leases.values()
        # Its connection ends, and it can't come back in time.
        listening, share._listening = share._listening, None
        assert listening is not None
        own.loop.remove_reader(listening.socket.fileno())
        assert lease.channel is not None
        lease.channel.close()
        share.forget_connection(next(iter(share._connections)))
        await eventually(lambda: lease.ending and not lease.present)
        assert own.queues.lent == set(lease.queues)  # its process may still be about to ring
        share._listening = listening
        own.loop.add_reader(listening.socket.fileno(), share._accept)
        await eventually(lambda: not share.leases and not own.queues.lent)
        with pytest.raises(LeaseError, match="no connection for"):
            await controller.namespaces[1].read(0)


async def test_a_confirmation_that_is_late_gives_the_ids_back(tmp_path: Path) -> None:
    async with owner(tmp_path / "s", stop_seconds=0.1) as (own, share), worker(share) as controller:
        [lease] = share.leases.values()
        transport = controller.transport
        send = transport._channel.send  # type: ignore[attr-defined]
        late: list[tuple[object, ...]] = []
        transport._channel.send = lambda *message, **more: late.append(message)  # type: ignore[attr-defined]
        assert await share.revoke(os.getpid()) == 1
        await eventually(lambda: late)
        assert (share.leases, own.queues.lent) == ({lease.number: lease}, set(lease.queues))
        send(*late[0])
        await eventually(lambda: not share.leases and not own.queues.lent)


async def test_a_lease_without_a_queue_is_over_with_its_connection(shared: Pair) -> None:
    own, share = shared
    sock = await nvme_async.sharing.channel.connect(share.path, 1.0)  # type: ignore[attr-defined]
    channel = Channel(sock, lambda message: None)
    (await channel.request("lease", {"queues": 2})).close()
    assert len(own.queues.lent) == 2
    channel.close()
    await eventually(lambda: not share.leases and not own.queues.lent)


async def test_a_process_that_ends_before_its_lease_leaves_nothing(
    shared: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, share = shared

    def gone(pid: int) -> int:
        raise ProcessLookupError(pid)

    monkeypatch.setattr("os.pidfd_open", gone)
    with pytest.raises(LeaseError, match="has ended"):
        await worker(share)
    assert own.memory is not None
    assert (own.memory.windows, own.queues.lent, share.leases) == ([], set(), {})
    assert len(share.stops._free) == 1024 - 16


async def test_a_lease_that_is_granted_after_its_connection_has_ended_is_none(shared: Pair) -> None:
    own, share = shared
    sock = await nvme_async.sharing.channel.connect(share.path, 1.0)  # type: ignore[attr-defined]
    channel = Channel(sock, lambda message: None)
    async with own._lock:
        own.lifecycle.to(State.RESETTING)  # the owner can't answer now
        asking = asyncio.create_task(channel.request("lease", {"queues": 1}))
        await eventually(lambda: any(one._pending for one in share._connections))
        channel.close()
        await eventually(lambda: not share._connections)
        own.lifecycle.to(State.READY)
    with pytest.raises(ConnectionResetError):
        await asking
    await eventually(lambda: not share._tasks)
    assert (share.leases, own.queues.lent) == ({}, set())


async def test_connections_that_the_owner_closes_are_forgotten(shared: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvme_async.sharing.owner._GRACE", 0.01)
    own, share = shared
    channels = []
    for _ in range(2):
        sock = await nvme_async.sharing.channel.connect(share.path, 1.0)  # type: ignore[attr-defined]
        channels.append(Channel(sock, lambda message: None))
    answer = await channels[0].request("lease", {"queues": 1})
    answer.close()
    # The lease has another connection now; the peer holds on to the first.
    body = {"lease": answer.body["lease"], "token": answer.body["token"]}
    await channels[1].request("attach", body)
    await eventually(lambda: channels[0].closed and len(share._connections) == 1)
    await channels[1].request("detach", {})
    await eventually(lambda: channels[1].closed and not share._connections and not own.queues.lent)
