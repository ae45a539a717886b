"""Events and rescans continue after failures of an Asynchronous Event Request, of an event's log
page, and of Identify, and with several rescans at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from driving import FAST, eventually, faults, listening, within

import nvme_async
from nvme_async.driver import events
from nvme_async.errors import CommandError, ControllerError
from nvme_async.keepalive.controller import Controller
from nvme_async.spec.reservations import ReservationNotification, ReservationNotificationType

AER, GET_LOG_PAGE, IDENTIFY = 0x0C, 0x02, 0x06


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    async with nvme_async.open("emulated:size=16MiB", **FAST) as controller:
        await listening(controller)
        yield controller


async def test_an_event_request_that_ends_with_an_error_is_sent_again(controller: Controller) -> None:
    faults(controller).add(queue="admin", opcode=AER, fail=0x06, count=3)
    faults(controller).add_namespace(3, "16MiB")  # the outstanding request returns this one
    await eventually(lambda: controller.inspect()["event_requests"]["failures"] == 3)
    assert "Internal Error" in controller.inspect()["event_requests"]["refusal"]
    faults(controller).add_namespace(4, "16MiB")
    await eventually(lambda: list(controller.namespaces) == [1, 3, 4])
    state = controller.inspect()["event_requests"]
    assert (state["waiting"], state["failures"]) == (True, 3)
    faults(controller).add_namespace(5, "16MiB")
    await eventually(lambda: controller.inspect()["event_requests"]["refusal"] is None)


async def test_an_event_request_is_refused_for_good_at_the_second_invalid_opcode(controller: Controller) -> None:
    rule = faults(controller).add(queue="admin", opcode=AER, fail=0x01, dnr=True, count=1)
    faults(controller).add_namespace(3, "16MiB")
    await eventually(lambda: rule.hits == 2)
    faults(controller).add_namespace(4, "16MiB")
    await eventually(lambda: list(controller.namespaces) == [1, 3, 4])
    rule = faults(controller).add(queue="admin", opcode=AER, fail=0x01, dnr=True)
    faults(controller).add_namespace(5, "16MiB")
    await eventually(lambda: not controller.inspect()["event_requests"]["waiting"])
    assert rule.hits == 2
    await eventually(lambda: list(controller.namespaces) == [1, 3, 4, 5])


async def test_event_requests_stop_after_repeated_failures_and_resume_after_a_reset(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(events, "LONGEST_PAUSE", 0.002)
    rule = faults(controller).add(queue="admin", opcode=AER, fail=0x06)
    faults(controller).add_namespace(3, "16MiB")
    await eventually(lambda: not controller.inspect()["event_requests"]["waiting"])
    assert rule.hits == events.RETRIES + 1
    assert 3 in controller.namespaces
    assert controller.state == "ready"
    rule.remove()
    await controller.reset()
    assert controller.inspect()["event_requests"]["waiting"]
    faults(controller).add_namespace(4, "16MiB")
    await eventually(lambda: 4 in controller.namespaces)


async def test_a_log_page_that_fails_does_not_drop_the_rescan(controller: Controller) -> None:
    faults(controller).add(queue="admin", opcode=GET_LOG_PAGE, fail=0x06, count=1)
    faults(controller).add_namespace(3, "16MiB")
    await eventually(lambda: 3 in controller.namespaces)


@pytest.mark.parametrize(
    "failing", [{"nsid": 3, "cdw10": 0}, {"cdw10": 2}, {"nsid": 1, "cdw10": 0}], ids=["its own", "the list", "another"]
)
async def test_an_identify_that_fails_during_a_rescan_does_not_drop_it(
    controller: Controller, failing: dict[str, int]
) -> None:
    faults(controller).resize_namespace(1, "8MiB", notice=False)
    rule = faults(controller).add(queue="admin", opcode=IDENTIFY, fail=0x82, count=8, **failing)  # type: ignore[arg-type]
    faults(controller).add_namespace(3, "16MiB")
    await eventually(lambda: 3 in controller.namespaces and controller.namespaces[1].nbytes == 8 << 20)
    assert rule.hits >= 3
    await eventually(lambda: controller.inspect()["rescan"]["unread"] == {})


async def test_a_namespace_whose_identify_fails_keeps_its_handle_and_stays_usable(controller: Controller) -> None:
    ns = controller.namespaces[1]
    rule = faults(controller).add(queue="admin", opcode=IDENTIFY, nsid=1, cdw10=0, fail=0x06)
    await controller.rescan()
    assert controller.namespaces[1] is ns
    await ns.write(0, b"x" * 4096)
    assert "Internal Error" in controller.inspect()["rescan"]["unread"][1]
    rule.remove()
    await eventually(lambda: controller.inspect()["rescan"]["unread"] == {})


async def test_concurrent_rescans_agree_with_the_latest_state(controller: Controller) -> None:
    """A slow scan that started before a change must not undo the result of a later one."""
    for turn in range(20):
        slow = faults(controller).add(queue="admin", opcode=IDENTIFY, cdw10=2, delay_post=0.01, count=1)
        scans = [asyncio.create_task(controller.rescan()) for _ in range(3)]
        await asyncio.sleep(0.002)
        faults(controller).add_namespace(5, "16MiB", notice=False)
        scans += [asyncio.create_task(controller.rescan()) for _ in range(3)]
        await within(10, asyncio.gather(*scans))
        assert list(controller.namespaces) == [1, 5], turn
        slow.remove()
        faults(controller).remove_namespace(5, notice=False)
        await controller.rescan()
        assert list(controller.namespaces) == [1]
    assert controller.scanner.scans < 20 * 7 + 1  # callers share


async def test_closing_during_a_rescan_leaves_no_task() -> None:
    async with nvme_async.open("emulated:size=16MiB", **FAST) as controller:
        faults(controller).add(queue="admin", opcode=IDENTIFY, nsid=1, cdw10=0, fail=0x06)
        await controller.rescan()
        assert controller.inspect()["rescan"]["retrying"]
    assert not [task for task in asyncio.all_tasks() if "rescan" in task.get_name()]


async def test_a_refused_identify_in_a_reset_is_not_reported_as_a_reads_status(controller: Controller) -> None:
    lost = faults(controller).add(queue="io", opcode=2, discard=True)
    read = asyncio.create_task(controller.namespaces[1].read(0))
    await asyncio.to_thread(lost.wait)
    faults(controller).add(queue="admin", opcode=IDENTIFY, cdw10=1, fail=0x06, dnr=True)
    with pytest.raises(CommandError, match="Identify"):
        await controller.reset()
    with pytest.raises(ControllerError, match=r"the reset failed: Identify"):
        await within(5, read)


async def test_reservation_notifications_are_events_of_their_namespaces(controller: Controller) -> None:
    """Of two notifications, which one event announces."""
    pages = [
        ReservationNotification(lpc=1, rnlpt=ReservationNotificationType.RESERVATION_RELEASED, nalp=1, nsid=1),
        ReservationNotification(lpc=2, rnlpt=ReservationNotificationType.REGISTRATION_PREEMPTED, nalp=0, nsid=3),
    ]
    for skip, page in enumerate(pages):
        faults(controller).add(
            queue="admin", opcode=GET_LOG_PAGE, match={40: b"\x80"}, payload=page.encode(), skip=skip, count=1
        )
    seen: asyncio.Queue[events.Event] = asyncio.Queue()

    async def watch() -> None:
        async for event in controller.events():
            if event.kind == "reservation-notification":
                seen.put_nowait(event)

    watcher = asyncio.ensure_future(watch())
    try:
        faults(controller).add(queue="admin", opcode=AER, fail=6, cqe={0: b"\x06\x00\x80\x00", 14: bytes(2)}, count=1)
        faults(controller).add_namespace(3, "16MiB")  # ends the outstanding request; the next one brings the event
        found = [await within(30, seen.get()) for _ in pages]
    finally:
        watcher.cancel()
    assert [(one.nsid, one.reservation) for one in found] == [
        (1, ReservationNotificationType.RESERVATION_RELEASED),
        (3, ReservationNotificationType.REGISTRATION_PREEMPTED),
    ]
