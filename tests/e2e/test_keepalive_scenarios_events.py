"""Scenarios of servicing around asynchronous events: namespaces that change meanwhile, unread
events, and exactly one outstanding request.
"""

from __future__ import annotations

import asyncio

import pytest
from driver_line import AER, GET_LOG_PAGE, IDENTIFY, WAYS, Way, block, die, eventually, line, settle

from nvme_async.errors import InvalidNamespace
from nvme_async.keepalive import restore

ways = pytest.mark.parametrize("way", WAYS)


async def between(drivers, way: Way, meanwhile) -> None:
    """Runs save(), meanwhile(), restore(); or the same around a death."""
    before = drivers.driver
    bundle = await before.save() if way == "save" else die(before)
    meanwhile()
    with bundle:
        drivers.driver = await restore(bundle)
    drivers.past.append(before)


@pytest.mark.parametrize("way", ["save", "death"])
async def test_a_namespace_resized_while_saved_reports_its_new_size(way: Way) -> None:
    async with line() as drivers:
        drivers.since()
        requests = drivers.faults.add(queue="admin", opcode=AER)
        logs = drivers.faults.add(queue="admin", opcode=GET_LOG_PAGE)
        await between(drivers, way, lambda: drivers.faults.resize_namespace(1, "32MiB"))
        await eventually(lambda: drivers.namespace.nbytes == 32 << 20 and requests.hits)
        assert logs.hits >= 1
        assert logs.last_command[40] == 0x04  # Changed Namespace List
        await drivers.listening()
        counted = drivers.since()
        assert counted["disables"] == 0
        assert counted["admin"][AER] == 1  # the one re-armed after the event


@pytest.mark.parametrize("way", ["save", "death"])
async def test_a_namespace_removed_while_saved_fails_with_its_own_error(way: Way) -> None:
    async with line("size=64MiB,namespaces=2") as drivers:
        await between(drivers, way, lambda: drivers.faults.remove_namespace(2))
        removed = drivers.driver.namespaces[2]
        await eventually(lambda: 2 not in drivers.driver.namespaces)
        with pytest.raises(InvalidNamespace, match="removed"):
            await removed.read(0)
        await drivers.namespace.write(0, block(1))
        assert await drivers.namespace.read(0) == block(1)


@pytest.mark.parametrize("way", ["save", "death"])
async def test_a_namespace_added_while_saved_appears(way: Way) -> None:
    async with line() as drivers:
        await between(drivers, way, lambda: drivers.faults.add_namespace(3, "8MiB"))
        await eventually(lambda: 3 in drivers.driver.namespaces)
        await drivers.driver.namespaces[3].write(0, block(9))
        assert await drivers.driver.namespaces[3].read(0) == block(9)


@ways
async def test_a_save_between_an_event_and_its_log_page_loses_neither(way: Way) -> None:
    """The event was reaped, its log page is still being read: unless the page is read again, the
    controller never sends such an event again.
    """
    async with line() as drivers:
        held = drivers.faults.add(queue="admin", opcode=GET_LOG_PAGE, count=1, delay=float("inf"))
        drivers.faults.resize_namespace(1, "32MiB")
        await eventually(lambda: held.hits == 1)
        await eventually(lambda: len(drivers.faults.outstanding()) == 1)
        await drivers.succeed(way)
        drivers.release()
        await eventually(lambda: drivers.namespace.nbytes == 32 << 20)
        await drivers.listening()
        # And the next event comes.
        drivers.faults.resize_namespace(1, "16MiB")
        await eventually(lambda: drivers.namespace.nbytes == 16 << 20)
        assert drivers.since()["disables"] == 0


@ways
async def test_a_save_before_the_next_event_request_loses_no_event(way: Way) -> None:
    """No request is outstanding: the successor sends one, after reading the log pages that may
    block events.
    """
    async with line() as drivers:
        held = drivers.faults.add(queue="admin", opcode=IDENTIFY, count=1, delay=float("inf"))
        drivers.faults.resize_namespace(1, "32MiB")
        await eventually(lambda: held.hits == 1)
        await drivers.succeed(way)
        drivers.release()
        await eventually(lambda: drivers.namespace.nbytes == 32 << 20)
        await drivers.listening()
        drivers.faults.resize_namespace(1, "16MiB")
        await eventually(lambda: drivers.namespace.nbytes == 16 << 20)


@ways
async def test_many_takeovers_keep_exactly_one_event_request(way: Way) -> None:
    async with line() as drivers:
        drivers.since()
        for _ in range(6):
            await drivers.succeed(way)
            await settle()
        assert drivers.since()["admin"] == {}
        await drivers.listening()
        requests = drivers.faults.add(queue="admin", opcode=AER)
        drivers.faults.resize_namespace(1, "32MiB")
        await eventually(lambda: drivers.namespace.nbytes == 32 << 20 and requests.hits)
        await drivers.listening()
        assert drivers.since()["admin"][AER] == 1


@ways
async def test_an_event_posted_between_drivers_reaches_subscribers(way: Way) -> None:
    async with line() as drivers:
        if way == "handover":
            await drivers.succeed(way)
            drivers.faults.resize_namespace(1, "32MiB")
        else:
            await between(drivers, way, lambda: drivers.faults.resize_namespace(1, "32MiB"))
        async with asyncio.timeout(30):
            async for event in drivers.driver.events():
                assert (event.kind, event.nsid) == ("namespace-changed", 1)
                break


async def test_after_failed_event_requests_a_hand_over_still_works() -> None:
    """After a failed AER there are no more events, but I/O and servicing continue."""
    async with line() as drivers:
        drivers.faults.add(queue="admin", opcode=AER, fail=0x105, dnr=True)
        drivers.faults.resize_namespace(1, "32MiB")
        await eventually(lambda: drivers.namespace.nbytes == 32 << 20)
        await eventually(lambda: drivers.driver.queues.admin.hot.n_outstanding == 0)
        await drivers.succeed("save")
        await drivers.namespace.write(0, block(1))
        assert await drivers.namespace.read(0) == block(1)
        assert drivers.since()["disables"] == 0
