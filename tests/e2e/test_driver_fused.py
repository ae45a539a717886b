"""Fused compare and write: atomic, announced by one doorbell, never half."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from driver_line import WAYS, WRITE, Way, all_handed_over, line, results
from driving import FAST, faults, pattern, within

import nvme_async
from nvme_async.emulator.faults import FOREVER
from nvme_async.errors import (
    CommandAborted,
    CommandError,
    CommandTimeout,
    CompareFailure,
    ConfigurationError,
    LbaOutOfRange,
    NvmeError,
)
from nvme_async.spec import commands

ADDRESS = "emulated:size=16MiB,block=512,fused=8"


@pytest.fixture
async def controller() -> AsyncIterator[nvme_async.Controller]:
    async with nvme_async.open(ADDRESS, **FAST) as opened:
        yield opened


async def test_writes_only_what_was_expected(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    old, new = pattern(8 * 512, 1), pattern(8 * 512, 2)
    await ns.write(16, old)
    await ns.compare_and_write(16, old, new)
    assert await ns.read(16, 8) == new
    with pytest.raises(CompareFailure) as failure:
        await ns.compare_and_write(16, old, pattern(8 * 512, 3))
    assert (failure.value.lba, failure.value.blocks) == (16, 8)
    assert await ns.read(16, 8) == new
    with controller.alloc(8192) as buffer:  # in place, without bounce pages
        buffer[:4096] = new
        buffer[4096:] = old
        await ns.compare_and_write(16, buffer[:4096], buffer[4096:], fua=True)
    assert await ns.read(16, 8) == old


async def test_counters_of_many_loops_of_tasks_lose_nothing(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    tasks, rounds, refused = 40, 5, 0

    async def add() -> None:
        nonlocal refused
        for _ in range(rounds):
            while True:
                now = await ns.read(0)
                later = (int.from_bytes(now, "little") + 1).to_bytes(512, "little")
                try:
                    await ns.compare_and_write(0, now, later)
                    break
                except CompareFailure:
                    refused += 1

    await within(60, asyncio.gather(*(add() for _ in range(tasks))))
    assert int.from_bytes(await ns.read(0), "little") == tasks * rounds
    assert refused > 0


async def test_a_queue_that_is_full_of_other_commands() -> None:
    """Two ids are collected while single commands compete for them."""
    async with nvme_async.open(ADDRESS, queue_entries=4, **FAST) as controller:
        ns = controller.namespaces[1]
        done = False

        async def reader(lba: int) -> None:
            while not done:
                await ns.read(lba)

        readers = [asyncio.ensure_future(reader(100 + lba)) for lba in range(16)]
        for turn in range(10):
            await within(30, ns.compare_and_write(turn, bytes(512), pattern(512, turn)))
        pairs = [ns.compare_and_write(10 + turn, bytes(512), pattern(512, turn)) for turn in range(10)]
        await within(30, asyncio.gather(*pairs))
        waiting = asyncio.ensure_future(ns.compare_and_write(30, bytes(512), pattern(512, 1)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        done = True
        await within(30, asyncio.gather(*readers))
        for turn in range(10):
            assert await ns.read(turn) == await ns.read(10 + turn) == pattern(512, turn)


async def test_limits_are_checked_before_anything_is_sent(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    sent = controller.transport.queues.all()[1].hot.inspect()["sq"]["submitted"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="9 blocks are over this namespace's limit of 8"):
        await ns.compare_and_write(0, bytes(9 * 512), bytes(9 * 512))
    with pytest.raises(ValueError, match="expected has 512 bytes and data has 1024"):
        await ns.compare_and_write(0, bytes(512), bytes(1024))
    with pytest.raises(ValueError, match="positive multiple"):
        await ns.compare_and_write(0, bytes(100), bytes(100))
    with pytest.raises(LbaOutOfRange):
        await ns.compare_and_write(ns.blocks, bytes(512), bytes(512))
    assert controller.transport.queues.all()[1].hot.inspect()["sq"]["submitted"] == sent  # type: ignore[attr-defined]


async def test_a_plain_drive_has_none() -> None:
    async with nvme_async.open("emulated:size=16MiB", **FAST) as controller:
        with pytest.raises(ConfigurationError, match="FUSES"):
            await controller.namespaces[1].compare_and_write(0, bytes(4096), bytes(4096))


async def test_a_half_is_aborted(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    await ns.write(0, pattern(512, 7))
    for command, data in (
        (commands.compare(1, 0, 1, fuse=1), pattern(512, 7)),
        (commands.Command(opcode=1, nsid=1, fuse=2, data_length=None), bytes(512)),
    ):
        with pytest.raises(CommandAborted, match="Missing Fused"):
            await ns.submit(command, data)
    assert await ns.read(0) == pattern(512, 7)


async def test_a_failing_first_command_fails_the_second(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=5, count=1, fail=0x281)
    with pytest.raises(CommandError) as failure:
        await ns.compare_and_write(0, bytes(512), pattern(512, 1))
    assert (failure.value.sct, failure.value.sc) == (2, 0x81)
    assert await ns.read(0) == bytes(512)


async def test_the_error_is_that_of_the_half_that_failed(controller: nvme_async.Controller) -> None:
    """The first half may be the one that was aborted because of the other."""
    ns = controller.namespaces[1]
    aborted = {14: (0x09).to_bytes(2, "little")}
    first = faults(controller).add(queue="io", opcode=5, cqe=aborted)
    second = faults(controller).add(queue="io", opcode=1, count=1, fail=0x082)
    with pytest.raises(CommandError) as failure:
        await ns.compare_and_write(0, bytes(512), pattern(512, 1))
    assert (failure.value.sct, failure.value.sc) == (0, 0x82)
    assert second.hits == 1
    with pytest.raises(CommandAborted, match="Failed Fused"):  # no half says more
        await ns.compare_and_write(0, bytes(512), pattern(512, 1))
    first.remove()


async def test_a_reset_sends_no_half_again() -> None:
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        ns = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=1, count=1, delay=FOREVER)
        pair = asyncio.ensure_future(ns.compare_and_write(0, bytes(512), pattern(512, 1)))
        while not faults(controller).outstanding():
            await asyncio.sleep(0.001)
        await controller.reset()
        with pytest.raises(NvmeError) as failure:
            await within(10, pair)
        assert not isinstance(failure.value, CompareFailure)
        assert await ns.read(0) == bytes(512)  # the delayed half was lost with the reset
        await ns.compare_and_write(0, bytes(512), pattern(512, 2))
        assert await ns.read(0) == pattern(512, 2)


async def test_a_cancelled_pair_keeps_its_memory_until_it_is_over(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=1, count=1, delay=FOREVER)
    pair = asyncio.ensure_future(ns.compare_and_write(0, bytes(512), pattern(512, 1)))
    while not faults(controller).outstanding():
        await asyncio.sleep(0.001)
    pair.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pair
    for turn in range(20):  # what reuses pages would be written instead
        await ns.write(100 + turn, pattern(512, 100 + turn))
    faults(controller).release()
    await within(10, ns.settled(0, 1))
    assert await ns.read(0) == pattern(512, 1)


@pytest.mark.parametrize("way", WAYS)
async def test_the_second_half_that_a_takeover_overtakes_is_adopted(way: Way) -> None:
    """The compare has completed, the write is with the controller: it writes what it was given."""
    async with line("size=16MiB,block=512,fused=8") as drivers:
        drivers.delay(opcode=WRITE)
        pairs = drivers.start(*(drivers.namespace.compare_and_write(at, bytes(512), pattern(512, at)) for at in (1, 2)))
        await drivers.outstanding(2)
        successor = await drivers.succeed(way)
        assert all_handed_over(await results(pairs))
        writes = [one for one in successor.adopted if one.name == "Write"]
        assert [one.lba for one in writes] == [1, 2]
        drivers.release()
        async with asyncio.timeout(30):
            await successor.adopted.wait()
        for at in (1, 2):
            assert await drivers.namespace.read(at) == pattern(512, at)
            await drivers.namespace.compare_and_write(at, pattern(512, at), pattern(512, 10 + at))
            assert await drivers.namespace.read(at) == pattern(512, 10 + at)
        assert drivers.since()["invalid_doorbells"] == 0


async def test_a_timeout_of_one_half_ends_the_pair() -> None:
    async with nvme_async.open(ADDRESS, **{**FAST, "command_timeout": 0.3}) as controller:
        ns = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=1, count=1, delay=FOREVER)
        with pytest.raises(CommandTimeout):
            await within(30, ns.compare_and_write(0, bytes(512), pattern(512, 1)))
        await within(30, ns.compare_and_write(1, bytes(512), pattern(512, 2)))
        assert await ns.read(0, 2) == bytes(512) + pattern(512, 2)


async def test_protection_information_goes_along() -> None:
    address = "emulated:size=16MiB,block=512,metadata=8,pi=1,formats=512/512+8/512+16,fused=8"
    async with nvme_async.open(address, **FAST) as controller:
        ns = controller.namespaces[1]
        await ns.write(3, pattern(512, 1))
        await ns.compare_and_write(3, pattern(512, 1), pattern(512, 2))
        assert await ns.read(3) == pattern(512, 2)
    async with nvme_async.open(address.replace("metadata=8", "metadata=16"), **FAST) as controller:
        with pytest.raises(ConfigurationError, match="metadata besides"):
            await controller.namespaces[1].compare_and_write(3, bytes(512), bytes(512))
