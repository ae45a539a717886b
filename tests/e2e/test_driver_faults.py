"""A controller misbehaves: every wait ends in time, with data or with an error that says why."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest
from driving import FAST, HASTY, LoopThread, eventually, faults, pattern, within

import nvme_async
from nvme_async.driver.namespace import Namespace
from nvme_async.emulator import FOREVER
from nvme_async.errors import (
    CommandError,
    CommandTimeout,
    ConfigurationError,
    ControllerError,
    ControllerFatal,
    ControllerTimeout,
    LbaOutOfRange,
    MediaError,
    QueueShutdown,
)
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands
from nvme_async.spec.opcodes import NvmOpcode

hasty = pytest.mark.options(**HASTY)


def first(controller: Controller) -> Namespace:
    return controller.namespaces[1]


def counts(controller: Controller) -> tuple[int, int]:
    """The numbers of Aborts sent and resets made."""
    state = controller.inspect()
    return state["aborts"], state["resets"]


@hasty
@pytest.mark.parametrize("fault", ["drop", "discard"])
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
async def test_a_command_without_completion_is_resent_after_a_reset(
    failing: Controller, fault: str, write: bool
) -> None:
    """The controller no longer has the command, so Abort can't help."""
    ns, text = first(failing), pattern(512)
    await ns.write(7, text)
    rule = faults(failing).add(queue="io", opcode=1 if write else 2, count=1, **{fault: True})  # type: ignore[arg-type]
    if write:
        text = pattern(512, seed=1)
        await within(20, ns.write(7, text))
    else:
        assert await within(20, ns.read(7)) == text
    assert rule.hits == 2
    assert counts(failing) == (1, 1)
    assert failing.inspect()["timeouts"] == 1
    assert faults(failing).counters()["enables"] == 2
    assert failing.state == "ready"
    assert await ns.read(7) == text


@hasty
async def test_a_command_that_takes_too_long_is_aborted_and_others_continue(failing: Controller) -> None:
    """Abort is enough if the controller still has the command: no reset, and no effect on
    others.
    """
    ns = first(failing)
    await ns.write(3, pattern(512, 3))
    faults(failing).add(queue="io", opcode=2, cdw10=3, count=1, delay=FOREVER)
    late = asyncio.ensure_future(ns.read(3))
    while not late.done():
        await within(5, ns.write(4, pattern(512, 4)))
        await asyncio.sleep(0)
    with pytest.raises(CommandTimeout, match=r"Read on namespace 1 lba 3\+1: no completion in time; it was aborted"):
        await late
    assert isinstance(late.exception(), TimeoutError)
    assert counts(failing) == (1, 0)
    assert await ns.read(3) == pattern(512, 3)


@hasty
async def test_commands_that_must_not_be_sent_twice_fail_with_the_reset(failing: Controller) -> None:
    """A copy may overlap with itself. The late one reports its timeout, the others why they
    ended.
    """
    ns = first(failing)
    await ns.write(0, pattern(512))
    rule = faults(failing).add(queue="io", opcode=int(NvmOpcode.COPY), count=1, drop=True)
    read = faults(failing).add(queue="io", opcode=2, count=1, drop=True)
    copy, again = asyncio.ensure_future(ns.copy([(0, 1)], 100)), asyncio.ensure_future(ns.read(0))
    with pytest.raises(CommandTimeout, match="Copy on namespace 1: no completion in time"):
        await within(20, copy)
    assert await within(20, again) == pattern(512)
    assert (rule.hits, read.hits) == (1, 2)
    assert counts(failing)[1] == 1
    held = faults(failing).add(queue="io", opcode=int(NvmOpcode.COPY), count=1, delay=FOREVER)
    copy = asyncio.ensure_future(ns.copy([(0, 1)], 100))
    await asyncio.to_thread(held.wait)
    await failing.reset("a test")
    with pytest.raises(ControllerError, match=r"the controller was reset \(a test\)"):
        await copy
    assert held.hits == 1


@pytest.mark.options(**{**HASTY, "retries": 1})
async def test_a_command_that_never_completes_does_not_reset_the_controller_forever(failing: Controller) -> None:
    ns = first(failing)
    rule = faults(failing).add(queue="io", opcode=2, cdw10=9, drop=True)
    with pytest.raises(CommandTimeout, match=r"Read on namespace 1 lba 9\+1: no completion in time"):
        await within(30, ns.read(9))
    assert rule.hits == 2, "once, and once again"
    assert counts(failing)[1] == 2
    await ns.write(9, pattern(512))
    rule.remove()
    assert await ns.read(9) == pattern(512)


@hasty
async def test_all_commands_in_flight_survive_a_reset(failing: Controller) -> None:
    """On several loops, more commands than the queue holds, one of them lost: all are resent."""
    ns = first(failing)

    async def work(lbas: range) -> list[bytes]:
        await asyncio.gather(*(ns.write(lba, pattern(512, lba)) for lba in lbas))
        return await asyncio.gather(*(ns.read(lba) for lba in lbas))

    with LoopThread() as other:
        ours, theirs = range(1000, 1600), range(2000, 2600)
        await asyncio.gather(work(ours), other.submit(work(theirs)))
        faults(failing).add(queue="io", opcode=2, skip=50, count=3, drop=True)
        one, two = await within(60, asyncio.gather(work(ours), other.submit(work(theirs))))
        assert one == [pattern(512, lba) for lba in ours]
        assert two == [pattern(512, lba) for lba in theirs]
    assert 1 <= counts(failing)[1] <= 3


@hasty
@pytest.mark.options(**{**HASTY, "mode": "interrupt"})
async def test_a_lost_interrupt_only_costs_time(failing: Controller) -> None:
    ns = first(failing)
    await ns.write(0, pattern(512))
    faults(failing).add(queue="io", opcode=2, count=1, lose_interrupt=True)
    assert await within(10, ns.read(0)) == pattern(512)
    assert counts(failing) == (0, 0)


@pytest.mark.parametrize("mode", ["adaptive", "interrupt", "poll"])
async def test_spurious_interrupts_and_reordered_completions_are_harmless(faulty: str, mode: str) -> None:
    async with nvme_async.open(faulty, **FAST, mode=mode) as controller:
        ns = first(controller)
        await asyncio.gather(*(ns.write(lba, pattern(512, lba)) for lba in range(64)))
        faults(controller).add(queue="io", opcode=2, count=20, reorder=3, delay_post=0.01)
        faults(controller).add(queue="io", opcode=2, spurious_interrupt=True)
        for vector in range(3):
            faults(controller).interrupt(vector)
        got = await within(20, asyncio.gather(*(ns.read(lba) for lba in range(64))))
        assert got == [pattern(512, lba) for lba in range(64)]
        assert counts(controller) == (0, 0)


@hasty
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"duplicate": True}, "queue 1: the completion has an unknown or stale command id 0x"),
        ({"cqe": {12: b"\xff\xff"}}, r"command id 0xffff \(submission queue 1\)"),
    ],
    ids=["twice", "forged"],
)
async def test_a_stray_completion_is_logged_and_releases_nothing(
    failing: Controller, caplog: pytest.LogCaptureFixture, fault: dict[str, Any], message: str
) -> None:
    """Other commands continue; a command whose completion it should have been is found by its
    timeout.
    """
    ns = first(failing)
    faults(failing).add(queue="io", opcode=0, count=1, **fault)
    held = faults(failing).add(queue="io", opcode=2, cdw10=5, count=1, delay=FOREVER)
    waiting = asyncio.ensure_future(ns.read(5))
    await asyncio.to_thread(held.wait)
    flush = asyncio.ensure_future(ns.flush())
    await eventually(lambda: failing.inspect()["stray_completions"] == 1)
    assert await within(10, ns.read(0)) == bytes(512)
    faults(failing).release()
    assert await within(10, waiting) == bytes(512)
    await within(10, flush)
    assert re.search(message, caplog.text)
    assert failing.state == "ready"
    assert failing.resets == (0 if "duplicate" in fault else 1)


@hasty
async def test_a_completion_that_names_another_queue_leads_to_a_reset(
    failing: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be the completion of a command of that queue: both sides start again."""
    ns = first(failing)
    await ns.write(5, pattern(512))
    faults(failing).add(queue="io", opcode=2, count=1, cqe={10: b"\x07\x00"})
    assert await within(10, ns.read(5)) == pattern(512)
    assert re.search(r"queue 1: completion of command 0x[0-9a-f]{4} names submission queue 7", caplog.text)
    await eventually(lambda: failing.state == "ready")
    assert (failing.resets, failing.inspect()["stray_completions"]) == (1, 1)


@hasty
async def test_endless_stray_completions_fail_the_controller(failing: Controller) -> None:
    ns = first(failing)
    faults(failing).add(queue="io", opcode=2, cqe={10: b"\x07\x00"})
    with pytest.raises(ControllerFatal, match="names submission queue 7, and again after 3 resets"):
        await within(20, ns.read(5))
    assert failing.state == "failed"
    assert failing.resets == 3


@hasty
async def test_a_reset_that_fails_ends_everything(failing: Controller) -> None:
    ns = first(failing)
    faults(failing).add(queue="io", opcode=2, cdw10=1, drop=True)
    reads = [asyncio.ensure_future(ns.read(1)), asyncio.ensure_future(ns.read(1))]
    faults(failing).enable_delay(ready=FOREVER)
    for result in await within(30, asyncio.gather(*reads, return_exceptions=True)):
        assert isinstance(result, ControllerTimeout)
    assert failing.state == "failed"
    for operation in (
        lambda: ns.read(0),
        lambda: ns.write(0, bytes(512)),
        ns.flush,
        lambda: failing.admin(commands.identify(1, 0)),
    ):
        with pytest.raises(ControllerTimeout):
            await within(1, operation())
    faults(failing).enable_delay()


@hasty
async def test_a_lost_admin_command_leads_to_a_reset(failing: Controller) -> None:
    """Admin commands aren't sent twice: the caller gets an error for the reset, and the next
    command works.
    """
    faults(failing).add(queue="admin", opcode=0x06, count=1, drop=True)
    with pytest.raises(ControllerError, match="was reset"):
        await within(20, failing.admin(commands.identify(1, 0)))
    assert counts(failing) == (0, 1), "the queue that doesn't answer isn't asked to abort"
    assert (await failing.admin(commands.identify(1, 0))).data is not None
    assert await first(failing).read(0) == bytes(512)


@pytest.mark.options(**{**HASTY, "admin_timeout": 0.8})
async def test_time_for_which_this_process_stands_still_is_not_the_controllers(failing: Controller) -> None:
    rule = faults(failing).add(queue="admin", opcode=0x06, count=1, delay=FOREVER)
    scan = asyncio.ensure_future(failing.rescan())
    await asyncio.to_thread(rule.wait)
    time.sleep(1.0)  # noqa: ASYNC251 - as SIGSTOP would
    faults(failing).release()
    await within(10, scan)
    state = failing.inspect()
    assert (state["timeouts"], state["resets"]) == (0, 0)


@hasty
async def test_a_split_request_survives_a_reset(failing: Controller) -> None:
    """Requests over MDTS: completed parts stay completed, the others are resent."""
    ns, text = first(failing), pattern(1 << 20)
    faults(failing).add(queue="io", opcode=1, skip=3, count=1, drop=True)
    await within(20, ns.write(64, text))
    faults(failing).add(queue="io", opcode=2, skip=2, count=2, discard=True)
    assert await within(20, ns.read(64, 2048)) == text
    assert counts(failing)[1] == 2


async def test_a_failed_part_fails_a_split_request_after_all_parts_ended(failing: Controller) -> None:
    ns, text = first(failing), bytearray(pattern(1 << 20))
    await ns.write(0, text)
    rule = faults(failing).add(queue="io", opcode=2, skip=1, count=1, fail=0x281)
    held = faults(failing).add(queue="io", opcode=2, cdw10=0, delay=FOREVER)
    request = asyncio.ensure_future(ns.readinto(0, text))
    await asyncio.to_thread(held.wait)
    await asyncio.to_thread(rule.wait, 2)
    await asyncio.sleep(0.05)
    assert not request.done(), "parts that are out are the request's"
    faults(failing).release()
    with pytest.raises(MediaError) as caught:
        await within(5, request)
    assert caught.value.lba
    assert failing.inspect()["io_queues"][0]["outstanding"] == 0


@pytest.mark.parametrize(
    ("status", "error"),
    [(0x080, LbaOutOfRange), (0x281, MediaError), (0x006, CommandError), (0x371, CommandError), (0x7FF, CommandError)],
)
@pytest.mark.parametrize("dnr", [False, True])
async def test_every_status_is_an_exception_that_names_the_command(
    failing: Controller, status: int, error: type[CommandError], dnr: bool
) -> None:
    ns = first(failing)
    faults(failing).add(queue="io", opcode=1, count=1, fail=status, dnr=dnr)
    with pytest.raises(error, match=r"Write on namespace 1") as caught:
        await ns.write(40, bytes(1024))
    raised = caught.value
    assert (raised.sct, raised.sc, raised.status, raised.dnr) == (status >> 8, status & 0xFF, status, dnr)
    assert (raised.nsid, raised.lba, raised.blocks, raised.opcode) == (1, 40, 2, 1)
    await ns.write(40, bytes(1024))


@pytest.mark.options(**{**HASTY, "command_timeout": 30.0})
async def test_closing_ends_although_commands_never_complete(failing: Controller) -> None:
    """close() waits for its limit, resets, and only then ends the callers."""
    ns = first(failing)
    rule = faults(failing).add(queue="io", opcode=2, drop=True)
    reads = [asyncio.ensure_future(ns.read(lba)) for lba in range(5)]
    await asyncio.to_thread(rule.wait, 5)
    await within(10, failing.close())
    for result in await asyncio.gather(*reads, return_exceptions=True):
        assert isinstance(result, QueueShutdown)


async def test_payloads_replace_the_data_of_reads_and_writes(controller: Controller) -> None:
    namespace = first(controller)
    size = namespace.block_size
    await namespace.write(0, b"\1" * size)
    forged = faults(controller).add(queue="io", opcode=NvmOpcode.READ, payload=b"FORGED", count=1)
    assert await namespace.read(0) == b"FORGED".ljust(size, b"\1")
    assert await namespace.read(0) == b"\1" * size
    forged.remove()
    faults(controller).add(queue="io", opcode=NvmOpcode.WRITE, payload=b"ROTTEN", count=1)
    data = bytearray(b"\2" * size)
    await namespace.write(0, data)
    assert data == b"\2" * size
    assert await namespace.read(0) == b"ROTTEN".ljust(size, b"\2")
    with pytest.raises(ConfigurationError, match="opcode 0x00"):
        faults(controller).add(queue="io", opcode=NvmOpcode.FLUSH, payload=b"x")
