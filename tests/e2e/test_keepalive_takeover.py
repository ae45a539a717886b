"""A successor continues with a running controller: after a planned save, a hand-over between two
live drivers, or a death.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from driver_line import (
    AER,
    CREATE_CQ,
    CREATE_SQ,
    IDENTIFY,
    READ,
    WAYS,
    WRITE,
    Way,
    all_handed_over,
    block,
    descriptors,
    eventually,
    line,
    results,
    socket_path,
)

import nvme_async
from nvme_async.errors import ConfigurationError, HandedOver, LbaOutOfRange, MediaError, QueueShutdown
from nvme_async.spec import commands

ways = pytest.mark.parametrize("way", WAYS)


@ways
async def test_a_takeover_neither_resets_nor_identifies_the_controller(way: Way) -> None:
    """No CC.EN write, no Create I/O CQ, no Identify, no second Asynchronous Event Request: the
    controller's own counters say so.
    """
    async with line() as drivers:
        await drivers.namespace.write(5, block(5))
        drivers.since()
        events = drivers.faults.add(queue="admin", opcode=AER)
        await drivers.succeed(way)
        assert await drivers.namespace.read(5) == block(5)
        await drivers.namespace.write(6, block(6))
        counted = drivers.since()
        assert counted["enables"] == counted["disables"] == counted["resets"] == counted["shutdowns"] == 0
        assert counted["queues_created"] == counted["queues_deleted"] == 0
        assert counted["admin"] == {}
        assert events.hits == 0
        assert counted["io"] == {READ: 1, WRITE: 1}
        assert counted["invalid_doorbells"] == 0


@ways
async def test_several_devices_are_taken_over_independently(way: Way) -> None:
    async with contextlib.AsyncExitStack() as stack:
        several = [await stack.enter_async_context(line(f"size={size}MiB")) for size in (16, 32, 48)]
        for number, drivers in enumerate(several):
            await drivers.namespace.write(0, block(number))
        await asyncio.gather(*(drivers.succeed(way) for drivers in several))
        for number, drivers in enumerate(several):
            assert await drivers.namespace.read(0) == block(number)
            assert drivers.namespace.nbytes == (16 << 20) * (number + 1)
            assert drivers.since()["disables"] == 0


async def test_with_no_device_there_is_nothing_to_take_over(tmp_path) -> None:
    with pytest.raises(nvme_async.ControllerGone, match="no process offers"):
        await nvme_async.take_over(tmp_path / "nobody.sock")
    async with nvme_async.open("emulated:size=16MiB") as controller:
        with pytest.raises(nvme_async.ConfigurationError, match="without keepalive"):
            controller.bundle()
    with pytest.raises(QueueShutdown):
        controller.bundle()


@pytest.mark.parametrize("sequence", [("save",) * 3, ("handover",) * 3, ("death",) * 3, ("handover", "death", "save")])
async def test_three_consecutive_takeovers(sequence: tuple[Way, ...]) -> None:
    async with line() as drivers:
        written = 0
        for way in sequence:
            drivers.delay(opcode=READ)
            reads = drivers.start(*(drivers.namespace.read(at) for at in range(20)))
            await drivers.outstanding(20)
            await drivers.succeed(way)
            drivers.release()
            assert all_handed_over(await results(reads))
            assert len(drivers.driver.adopted) == 20
            for _ in range(5):
                await drivers.namespace.write(written, block(written))
                written += 1
        for number in range(written):
            assert await drivers.namespace.read(number) == block(number)
        assert drivers.since()["disables"] == 0


@ways
async def test_commands_in_flight_belong_to_the_successor_with_status_and_data(way: Way) -> None:
    async with line() as drivers:
        namespace = drivers.namespace
        for at in range(4):
            await namespace.write(at, block(at))
        drivers.delay()
        waiting = drivers.start(
            namespace.submit(commands.read(1, 2, 2), tag=22),
            namespace.submit(commands.write(1, 10, 1), block(10), tag=33),
            namespace.submit(commands.flush(1), tag=44),
            drivers.driver.namespaces[1].read(3),
        )
        await drivers.outstanding(4)
        successor = await drivers.succeed(way)
        outcomes = await results(waiting)
        assert all_handed_over(outcomes)
        assert all(outcome.sent for outcome in outcomes)
        adopted = successor.adopted
        assert [(one.tag, one.name, one.lba, one.blocks) for one in adopted] == [
            (22, "Read", 2, 2),
            (33, "Write", 10, 1),
            (44, "Flush", None, None),
            (0, "Read", 3, 1),
        ]
        assert not any(one.finished for one in adopted)
        assert all(one.sent and one.status is None for one in adopted)
        drivers.release()
        by_tag = {}
        async with asyncio.timeout(30):
            async for one in adopted:
                by_tag[one.tag] = one
        assert len(by_tag) == 4
        assert all(one.status == 0 and one.error is None for one in by_tag.values())
        assert by_tag[22].data == block(2) + block(3)
        assert by_tag[0].data == block(3)
        assert by_tag[33].data is None
        assert await drivers.namespace.read(10) == block(10)


@ways
async def test_a_command_that_fails_after_the_takeover_has_its_error_and_no_data(way: Way) -> None:
    async with line() as drivers:
        drivers.faults.add(queue="io", opcode=READ, delay=float("inf"), fail=0x281)
        waiting = drivers.start(drivers.namespace.read(7))
        await drivers.outstanding(1)
        successor = await drivers.succeed(way)
        drivers.release()
        async with asyncio.timeout(30):
            await successor.adopted.wait()
        (one,) = successor.adopted
        assert one.status is not None
        assert one.status & 0x7FF == 0x281
        assert one.data is None
        assert isinstance(one.error, MediaError)
        assert one.error.lba == 7
        assert all_handed_over(await results(waiting))


@ways
async def test_commands_in_place_are_adopted_and_their_buffers_can_be_claimed(way: Way) -> None:
    """Memory from controller.alloc(): the data is in the pool, where the successor finds it."""
    async with line() as drivers:
        await drivers.namespace.write(1, block(1))
        buffer = drivers.driver.alloc(8192, tag=77)
        drivers.delay(opcode=READ)
        drivers.start(drivers.namespace.readinto(1, memoryview(buffer)[:4096]))
        await drivers.outstanding(1)
        successor = await drivers.succeed(way)
        (slot,) = successor.unclaimed()
        assert (slot.nbytes, slot.tag) == (8192, 77)
        claimed = successor.claim(slot)
        (one,) = successor.adopted
        assert one.data_offset == claimed.offset
        drivers.release()
        async with asyncio.timeout(30):
            await successor.adopted.wait()
        assert one.data == block(1)
        assert bytes(claimed[:4096]) == block(1)
        assert successor.unclaimed() == []
        claimed.free()


async def test_the_predecessors_buffers_become_invalid_and_free_nothing() -> None:
    async with line() as drivers:
        buffer = drivers.driver.alloc(4096, tag=5)
        await drivers.succeed("handover")
        with pytest.raises(ValueError, match="handed to a successor"):
            bytes(buffer)
        buffer.free()
        del buffer
        assert [slot.tag for slot in drivers.driver.unclaimed()] == [5]


@ways
async def test_all_waiters_end(way: Way) -> None:
    """Waiters of sent commands, waiters in line for a command id, and later callers get
    HandedOver, not a hang.
    """
    async with line("size=64MiB,depth=8") as drivers:
        drivers.delay()
        old = drivers.namespace
        waiting = drivers.start(*(old.read(at) for at in range(20)))
        await drivers.outstanding(6)
        await drivers.succeed(way)
        outcomes = await results(waiting)
        assert all_handed_over(outcomes)
        if way != "death":
            assert sum(outcome.sent for outcome in outcomes) == 6
        for late in (lambda: old.read(1), lambda: old.write(1, block(1)), old.flush, lambda: old.read(0, 1000)):
            with pytest.raises(HandedOver):
                await late()
        before = drivers.past[-1]
        assert before.state == "handed over"
        with pytest.raises(HandedOver):
            await before.admin(commands.identify(1))
        with pytest.raises(HandedOver):
            before.alloc(4096)
        with pytest.raises(QueueShutdown):
            before.bundle()
        with pytest.raises(QueueShutdown):
            await before.save()
        await before.close()
        drivers.release()
        assert len(drivers.driver.adopted) == 6


@ways
async def test_nothing_stays_open(way: Way) -> None:
    async with line() as drivers:
        await drivers.succeed(way)
        await drivers.succeed(way)
        drivers.past.clear()
        await asyncio.sleep(0.05)  # the predecessors' tasks have ended too
        before = descriptors()
        for _ in range(3):
            await drivers.succeed(way)
            drivers.past.clear()
        await eventually(lambda: descriptors() <= before)


@ways
async def test_collecting_the_predecessors_objects_changes_nothing(way: Way) -> None:
    async with line() as drivers:
        drivers.delay(opcode=READ)
        drivers.start(*(drivers.namespace.read(at, 16) for at in range(10)))
        await drivers.outstanding(10)
        await drivers.succeed(way)
        slots = drivers.driver.memory.pools[0].slots()
        await results(drivers.tasks)
        drivers.tasks.clear()
        drivers.past.clear()
        descriptors()  # collects garbage
        assert drivers.driver.memory.pools[0].slots() == slots
        drivers.release()
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
        assert all(one.error is None for one in drivers.driver.adopted)


@ways
async def test_io_continues_across_takeovers_under_load(way: Way) -> None:
    """Callers that handle HandedOver and continue with the successor lose no write."""
    async with line() as drivers:
        stop = False
        written: dict[int, int] = {}

        async def writer(first: int) -> None:
            version = 0
            while not stop:
                version += 1
                at = first + 8 * (version % 16)
                while written.get(at) != version:
                    try:
                        await drivers.namespace.write(at, block(version))
                        written[at] = version
                    except HandedOver:
                        # Sent or not: repeating the same write is always correct, once the drain is
                        # over.
                        await eventually(lambda: drivers.driver.state == "ready")

        tasks = drivers.start(*(writer(first) for first in range(8)))
        for _ in range(3):
            await asyncio.sleep(0.03)
            await drivers.succeed(way)
        await eventually(lambda: len(written) == 8 * 16)
        stop = True
        assert await results(tasks) == [None] * 8
        for at, version in written.items():
            assert await drivers.namespace.read(at) == block(version)
        assert drivers.since()["disables"] == 0


async def test_an_exception_in_the_body_propagates_unchanged() -> None:
    async with line() as drivers:
        await drivers.succeed()
        with pytest.raises(LbaOutOfRange):
            await drivers.namespace.read(1 << 40)


@pytest.mark.parametrize("options", [{"mode": "poll"}, {"mode": "interrupt"}, {"shadow_doorbells": False}])
@ways
async def test_a_takeover_works_in_each_mode(way: Way, options: dict[str, object]) -> None:
    async with line(**options) as drivers:
        await drivers.namespace.write(3, block(3))
        drivers.delay()
        drivers.start(*(drivers.namespace.read(3) for _ in range(5)))
        await drivers.outstanding(5)
        await drivers.succeed(way)
        drivers.release()
        async with asyncio.timeout(30):
            assert await drivers.namespace.read(3) == block(3)
            await drivers.driver.adopted.wait()
        assert all(one.data == block(3) for one in drivers.driver.adopted)
        assert drivers.driver.options.mode == options.get("mode", "adaptive")


@pytest.mark.parametrize("vectors", [1, 2])
async def test_a_takeover_works_with_few_vectors(vectors: int) -> None:
    async with line(f"size=64MiB,vectors={vectors}") as drivers:
        for way in WAYS:
            drivers.delay()
            drivers.start(*(drivers.namespace.read(0) for _ in range(5)))
            await drivers.outstanding(5)
            await drivers.succeed(way)
            drivers.release()
            async with asyncio.timeout(30):
                await drivers.driver.adopted.wait()
                await drivers.namespace.write(0, block(1))


async def test_options_are_the_predecessors_unless_given() -> None:
    async with line(queue_entries=32, spin_us=3.0) as drivers:
        await drivers.succeed()
        assert (drivers.driver.options.queue_entries, drivers.driver.options.spin_us) == (32, 3.0)
        await drivers.succeed("handover", spin_us=7.0, command_timeout=9.0)
        assert (drivers.driver.options.queue_entries, drivers.driver.options.spin_us) == (32, 7.0)
        assert drivers.driver.options.command_timeout == 9.0
        with pytest.raises(nvme_async.ConfigurationError, match="unknown option"):
            await nvme_async.take_over("/nowhere", no_such_option=1)


async def test_created_queues_keep_their_sizes_across_a_takeover() -> None:
    assert CREATE_CQ != CREATE_SQ != IDENTIFY
    async with line() as drivers:
        before = (
            drivers.driver.queues.admin.hot.sq_iova,
            [queue.hot.sq_iova for queue in drivers.driver.queues.io_queues()],
        )
        await drivers.succeed("death")
        after = (
            drivers.driver.queues.admin.hot.sq_iova,
            [queue.hot.sq_iova for queue in drivers.driver.queues.io_queues()],
        )
        assert before == after


async def test_a_successor_can_offer_at_the_same_path_at_once(tmp_path) -> None:
    """The predecessor's socket is removed before the successor has the controller, and the
    predecessor doesn't remove the successor's.
    """
    path = socket_path(tmp_path)
    async with line() as drivers:
        offer = await drivers.driver.handover(path).__aenter__()
        for _ in range(3):
            drivers.past.append(drivers.driver)
            drivers.driver = await nvme_async.take_over(path)
            following = await drivers.driver.handover(path).__aenter__()
            await offer
            await offer.__aexit__(None, None, None)
            offer = following
        await offer.__aexit__(None, None, None)
        assert drivers.since()["disables"] == 0


async def test_a_failed_offer_can_be_repeated(tmp_path) -> None:
    path = socket_path(tmp_path)
    async with line("size=64MiB,dbbuf=off") as drivers:
        async with drivers.driver.handover(path) as offer:
            drivers.faults.mqes(15)
            with pytest.raises(nvme_async.RestoreRefused):
                await nvme_async.take_over(path)
            drivers.faults.mqes(-1)
            await eventually(lambda: offer.failures)
            await eventually(lambda: drivers.driver.state == "ready" and os.path.exists(path))
            before = drivers.driver
            drivers.driver = await nvme_async.take_over(path)
            drivers.past.append(before)
            await offer
        assert not os.path.exists(path)


async def test_an_offer_does_not_replace_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    async with nvme_async.open("emulated:size=16MiB", keepalive=True) as controller:
        with pytest.raises(ConfigurationError, match="exists and is not a socket"):
            await controller.handover(tmp_path / "notes").__aenter__()
    assert (tmp_path / "notes").read_text() == "mine"
