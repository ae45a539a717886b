"""Scenarios of servicing with outstanding work: slow, stuck and full queues, the drain barrier, and
a second save during the drain.
"""

from __future__ import annotations

import asyncio

import pytest
from driver_line import (
    CREATE_CQ,
    DELETE_CQ,
    DELETE_SQ,
    FLUSH,
    READ,
    WAYS,
    WRITE,
    Way,
    all_handed_over,
    block,
    calling,
    die,
    eventually,
    line,
    results,
    settle,
)
from driving import LoopThread

from nvme_async.errors import HandedOver
from nvme_async.keepalive import restore
from nvme_async.spec import commands

ways = pytest.mark.parametrize("way", WAYS)


async def finished(controller) -> list:
    """Its adopted commands, once all of them are finished."""
    async with asyncio.timeout(30):
        await controller.adopted.wait()
    return list(controller.adopted)


@ways
async def test_a_save_does_not_wait_for_very_slow_commands(way: Way) -> None:
    """Commands that would take an hour: the takeover ends while all of them are still with the
    controller.
    """
    async with line() as drivers:
        drivers.delay(3600.0)
        reads = drivers.start(*(drivers.namespace.read(at) for at in range(16)))
        await drivers.outstanding(16)
        async with asyncio.timeout(30):
            await drivers.succeed(way)
        assert len(drivers.faults.outstanding()) == 16
        assert drivers.driver.adopted.draining
        assert all_handed_over(await results(reads))
        drivers.release()
        assert [one.status for one in await finished(drivers.driver)] == [0] * 16


@ways
async def test_a_save_with_the_io_queue_full_does_not_wait_for_room(way: Way) -> None:
    """MQES 8: nine entries, one of them always free, one id reserved; further callers wait in line
    and their commands are never sent.
    """
    async with line("size=64MiB,depth=9") as drivers:
        assert drivers.driver.cap.mqes == 8
        drivers.delay()
        writes = drivers.start(*(drivers.namespace.write(at, block(at)) for at in range(30)))
        await drivers.outstanding(7)
        await settle()
        async with asyncio.timeout(30):
            await drivers.succeed(way)
        outcomes = await results(writes)
        assert all_handed_over(outcomes)
        drivers.release()
        done = await finished(drivers.driver)
        assert sorted(one.lba for one in done) == list(range(7))
        for at in range(7):
            assert await drivers.namespace.read(at) == block(at)
        assert await drivers.namespace.read(7) == bytes(4096)
        assert drivers.since()["disables"] == 0


@ways
async def test_new_io_waits_until_the_predecessors_has_completed(way: Way) -> None:
    async with line() as drivers:
        drivers.delay(opcode=WRITE)
        drivers.start(drivers.namespace.write(0, block(1)))
        await drivers.outstanding(1)
        await drivers.succeed(way)
        drivers.since()
        (late,) = drivers.start(drivers.namespace.read(0))
        await settle()
        assert drivers.driver.queues.held
        assert drivers.since()["io"] == {}
        drivers.release()
        assert await asyncio.wait_for(late, 30) == block(1)
        assert not drivers.driver.queues.held


@ways
async def test_a_late_write_never_overwrites_a_newer_one(way: Way) -> None:
    """w1 is in flight at the save; the successor sends w1 again, then w2 to the same block: w2 must
    remain.
    """
    async with line() as drivers:
        drivers.delay(opcode=WRITE)
        drivers.start(drivers.namespace.write(5, block(1)))
        await drivers.outstanding(1)
        await drivers.succeed(way)

        async def again() -> None:
            await drivers.namespace.write(5, block(1))
            await drivers.namespace.write(5, block(2))

        (writing,) = drivers.start(again())
        await settle()
        drivers.release()
        await asyncio.wait_for(writing, 30)
        assert [one.status for one in await finished(drivers.driver)] == [0]
        assert await drivers.namespace.read(5) == block(2)


@ways
async def test_one_queues_commands_hold_all_queues(way: Way) -> None:
    """The barrier applies to the controller, not to a queue: w2 of another worker waits for w1 of
    this one.
    """
    async with line() as drivers:
        with LoopThread() as other:
            namespace = drivers.namespace
            await other.submit(calling(namespace.read, 0))
            drivers.delay(opcode=WRITE)
            drivers.start(namespace.write(5, block(1)))
            await drivers.outstanding(1)
            await drivers.succeed(way)
            drivers.since()
            late = other.submit(calling(drivers.namespace.write, 5, block(2)))
            await eventually(lambda: len(drivers.driver.queues.io) == 2)
            assert drivers.since()["io"] == {}
            drivers.release()
            await asyncio.wait_for(late, 30)
            assert await drivers.namespace.read(5) == block(2)


@ways
async def test_a_queue_created_during_the_drain_is_held(way: Way) -> None:
    async with line() as drivers:
        drivers.delay(opcode=WRITE)
        drivers.start(drivers.namespace.write(9, block(1)))
        await drivers.outstanding(1)
        await drivers.succeed(way)
        drivers.since()
        with LoopThread() as other:
            late = other.submit(calling(drivers.namespace.write, 9, block(2)))
            await eventually(lambda: len(drivers.driver.queues.io) == 2)
            counted = drivers.since()
            assert counted["admin"][CREATE_CQ] == 1
            assert counted["io"] == {}
            assert not late.done()
            drivers.release()
            await asyncio.wait_for(late, 30)
            assert await drivers.namespace.read(9) == block(2)
            assert drivers.since()["disables"] == 0


@ways
async def test_a_second_save_during_the_drain(way: Way) -> None:
    """Unresponsive I/O: the third driver gets the results of the first one's commands, with their
    tags; the second one's new I/O was never sent.
    """
    async with line() as drivers:
        await drivers.namespace.write(3, block(3))
        drivers.delay()
        drivers.start(*(drivers.namespace.submit(commands.read(1, 3, 1), tag=100 + number) for number in range(4)))
        await drivers.outstanding(4)
        second = await drivers.succeed(way)
        assert second.adopted.draining
        held = drivers.start(*(drivers.namespace.write(20 + at, block(at)) for at in range(3)))
        await settle()
        third = await drivers.succeed(way)
        outcomes = await results(held)
        assert all_handed_over(outcomes)
        assert not any(outcome.sent for outcome in outcomes)
        assert sorted(one.tag for one in third.adopted) == [100, 101, 102, 103]
        drivers.release()
        done = await finished(third)
        assert all(one.data == block(3) for one in done)
        assert await drivers.namespace.read(20) == bytes(4096)
        counted = drivers.since()
        assert counted["disables"] == 0
        assert counted["queues_created"] == 0


@ways
async def test_three_cycles_with_one_command_in_flight_throughout(way: Way) -> None:
    async with line() as drivers:
        await drivers.namespace.write(1, block(1))
        drivers.delay()
        drivers.start(drivers.namespace.submit(commands.read(1, 1, 1), tag=7))
        await drivers.outstanding(1)
        for _ in range(3):
            await drivers.succeed(way)
            (one,) = drivers.driver.adopted
            assert (one.tag, one.finished) == (7, False)
        drivers.release()
        (one,) = await finished(drivers.driver)
        assert one.data == block(1)
        assert drivers.since()["disables"] == 0


@ways
async def test_results_recorded_by_the_first_driver_are_delivered_once(way: Way) -> None:
    """Commands completed and recorded under the first driver and adopted by the second don't reach
    the third.
    """
    async with line() as drivers:
        drivers.delay(opcode=READ)
        drivers.start(*(drivers.namespace.submit(commands.read(1, 0, 1), tag=number) for number in range(1, 6)))
        await drivers.outstanding(5)
        second = await drivers.succeed(way)
        drivers.release()
        assert sorted(one.tag for one in await finished(second)) == [1, 2, 3, 4, 5]
        third = await drivers.succeed(way)
        assert list(third.adopted) == []
        assert not third.adopted.draining


@ways
async def test_completions_posted_between_drivers_are_found_at_once(way: Way) -> None:
    """The controller continues while there is no driver: between save() and restore()."""
    if way == "handover":
        pytest.skip("both drivers are there")
    async with line() as drivers:
        await drivers.namespace.write(2, block(2))
        drivers.delay()
        drivers.start(*(drivers.namespace.read(2) for _ in range(8)))
        await drivers.outstanding(8)
        before = drivers.driver
        bundle = await before.save() if way == "save" else die(before)
        drivers.release()
        await eventually(lambda: not drivers.faults.outstanding())
        with bundle:
            drivers.driver = await restore(bundle)
        drivers.past.append(before)
        assert [one.data for one in drivers.driver.adopted] == [block(2)] * 8
        assert not drivers.driver.adopted.draining


async def test_slow_queue_creation_does_not_hold_up_a_save_and_is_undone_by_the_successor() -> None:
    async with line() as drivers:
        rule = drivers.faults.add(queue="admin", opcode=CREATE_CQ, delay=float("inf"))
        with LoopThread() as other:
            waiting = other.submit(calling(drivers.namespace.read, 0))
            await drivers.outstanding(1)
            async with asyncio.timeout(30):
                await drivers.succeed("save")
            with pytest.raises(HandedOver):
                await asyncio.wait_for(waiting, 30)
            successor = drivers.driver
            assert successor.inspect()["unsettled_io_queues"] != []
            rule.remove()
            drivers.faults.release()
            await eventually(lambda: successor.inspect()["unsettled_io_queues"] == [])
            drivers.since()
            assert await other.submit(calling(drivers.namespace.read, 0)) == bytes(4096)
            assert drivers.since()["admin"][CREATE_CQ] == 1


async def test_inspecting_during_slow_queue_creation_does_not_cancel_it() -> None:
    async with line() as drivers:
        rule = drivers.faults.add(queue="admin", opcode=CREATE_CQ, delay=float("inf"))
        with LoopThread() as other:
            waiting = other.submit(calling(drivers.namespace.read, 0))
            await drivers.outstanding(1)
            for _ in range(3):
                seen = drivers.driver.inspect()
                assert seen["unsettled_io_queues"] == [2]
                assert [command["name"] for command in seen["admin_queue"]["pending"]].count(
                    "Create I/O Completion Queue"
                ) == 1
            rule.remove()
            drivers.faults.release()
            assert await asyncio.wait_for(waiting, 30) == bytes(4096)
            assert drivers.since()["admin"].get(DELETE_CQ, 0) == drivers.since()["admin"].get(DELETE_SQ, 0) == 0


@ways
async def test_an_unresponsive_predecessors_command_leads_to_abort_then_reset(way: Way) -> None:
    """Timeouts apply to adopted commands too: nothing can keep the barrier up forever."""
    async with line(command_timeout=0.3, abort_timeout=0.2) as drivers:
        await drivers.namespace.write(4, block(4))
        drivers.faults.add(queue="io", opcode=READ, count=1, drop=True)
        (waiting,) = drivers.start(drivers.namespace.read(4))
        await eventually(lambda: drivers.driver.queues.io_queues()[0].hot.n_outstanding == 1)
        await drivers.succeed(way, command_timeout=0.3, abort_timeout=0.2)
        assert all_handed_over(await results([waiting]))
        (one,) = await finished(drivers.driver)
        assert one.finished
        assert await asyncio.wait_for(drivers.namespace.read(4), 30) == block(4)
        assert drivers.driver.inspect()["timeouts"] >= 1


@ways
async def test_a_flush_in_flight_keeps_the_drain_barrier_up(way: Way) -> None:
    async with line() as drivers:
        drivers.delay(opcode=FLUSH)
        drivers.start(drivers.namespace.flush())
        await drivers.outstanding(1)
        await drivers.succeed(way)
        assert drivers.driver.adopted.draining
        drivers.release()
        (one,) = await finished(drivers.driver)
        assert (one.name, one.status) == ("Flush", 0)
