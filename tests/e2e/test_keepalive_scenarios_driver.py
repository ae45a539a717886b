"""Scenarios of the driver across a takeover: forged completions, long reports, bounced and direct
I/O, exhausted memory.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from driver_line import READ, WAYS, Way, block, calling, eventually, line, results, socket_path
from driving import LoopThread

import nvme_async
from nvme_async.emulator import EmulatedController
from nvme_async.errors import OutOfDmaMemory
from nvme_async.keepalive import restore
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature
from nvme_async.spec.reservations import ReservationReport

ways = pytest.mark.parametrize("way", WAYS)


@ways
async def test_a_bad_command_id_after_the_takeover_completes_nothing(way: Way) -> None:
    """The completion of a predecessor's command is forged: it completes nothing, and after a reset
    the command is resent.
    """
    async with line() as drivers, line() as others:
        await others.namespace.write(0, block(1))
        await drivers.namespace.write(0, block(2))
        drivers.faults.add(queue="io", opcode=READ, count=1, delay=float("inf"), cqe={12: b"\xfe\xca"})
        drivers.start(drivers.namespace.read(0))
        await drivers.outstanding(1)
        await drivers.succeed(way)
        drivers.faults.release()
        await eventually(lambda: drivers.driver.inspect()["stray_completions"] == 1)
        (one,) = drivers.driver.adopted
        assert not one.finished
        await drivers.driver.reset("the answer was forged")
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
        assert one.error is None
        assert one.data == block(2)
        assert await others.namespace.read(0) == block(1)


async def test_a_reservation_report_of_128_registrants_is_adopted_whole() -> None:
    """Only a reset allows a new host identifier (Base 2.0, 5.27.1.25), so there is one for each of
    the 128 hosts.
    """
    async with line() as drivers:
        driver, namespace = drivers.driver, drivers.namespace
        for host in range(1, 129):
            await driver.admin(commands.set_features(Feature.HOST_IDENTIFIER, 1), host.to_bytes(16, "little"))
            await namespace.submit(
                commands.reservation_register(1, 0), commands.reservation_register_payload(0, 1000 + host)
            )
            if host < 128:
                await driver.reset("another host")
        await drivers.listening()
        drivers.since()
        drivers.delay()
        report = commands.reservation_report(1, 64 + 64 * 128, extended=True)
        drivers.start(namespace.submit(report, tag=1))
        await drivers.outstanding(1)
        await drivers.succeed("save")
        drivers.release()
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
        (one,) = drivers.driver.adopted
        assert one.data is not None
        assert drivers.since()["disables"] == 0
        assert len(one.data) == 64 + 64 * 128
        decoded = ReservationReport.decode(one.data, extended=True)
        assert decoded.regctl == len(decoded.registrants) == 128
        assert sorted(registrant.rkey for registrant in decoded.registrants) == list(range(1001, 1129))


@ways
async def test_direct_and_bounced_io_are_both_adopted(way: Way) -> None:
    async with line() as drivers:
        for at in range(4):
            await drivers.namespace.write(at, block(at))
        direct = drivers.driver.alloc(8192, tag=9)
        drivers.delay()
        drivers.start(
            drivers.namespace.submit(commands.read(1, 0, 2), direct, tag=1),
            drivers.namespace.submit(commands.read(1, 2, 2), tag=2),
            drivers.namespace.submit(commands.write(1, 10, 1), block(10), tag=3),
        )
        await drivers.outstanding(3)
        await drivers.succeed(way)
        (slot,) = drivers.driver.unclaimed()
        claimed = drivers.driver.claim(slot)
        drivers.release()
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
        by_tag = {one.tag: one for one in drivers.driver.adopted}
        assert by_tag[1].data == bytes(claimed) == block(0) + block(1)
        assert by_tag[2].data == block(2) + block(3)
        assert await drivers.namespace.read(10) == block(10)
        claimed.free()


@ways
async def test_no_memory_for_a_command_fails_one_request_not_the_takeover(way: Way) -> None:
    """The pool is full when the command is sent: its caller gets an error, and the next process has
    room again.
    """
    async with line(pool_bytes=4 << 20) as drivers:
        taken = []
        for size in (1 << 20, 64 << 10, 4096):
            while True:
                try:
                    taken.append(drivers.driver.alloc(size))
                except OutOfDmaMemory:
                    break
        outcomes = await results(drivers.start(*(drivers.namespace.read(at, 16) for at in range(64))))
        assert any(isinstance(outcome, OutOfDmaMemory) for outcome in outcomes)
        assert all(isinstance(outcome, OutOfDmaMemory | bytes) for outcome in outcomes)
        taken.clear()
        await drivers.succeed(way)
        assert await drivers.namespace.read(0, 16) == bytes(65536)
        assert drivers.since()["disables"] == 0


async def test_no_memory_for_a_queue_pair_leads_to_sharing() -> None:
    """There is no room for another worker's queue pair: it shares another loop's, and the
    controller can still be handed over.
    """
    async with line(pool_bytes=2 << 20) as drivers:
        await drivers.namespace.read(0)
        taken = []
        for size in (256 << 10, 16 << 10, 4096):
            while True:
                try:
                    taken.append(drivers.driver.alloc(size))
                except OutOfDmaMemory:
                    break
        with LoopThread() as other:
            assert await other.submit(calling(drivers.namespace.read, 0)) == bytes(4096)
        assert drivers.driver.inspect()["loops_sharing_a_queue"] == 1
        await drivers.succeed("save")
        assert await drivers.namespace.read(0) == bytes(4096)
        assert drivers.since()["disables"] == 0


@pytest.mark.parametrize("mqes", [1, 65535])
async def test_shortest_and_longest_queues_are_taken_over(mqes: int, tmp_path: Path) -> None:
    with EmulatedController("size=16MiB") as emulator:
        emulator.faults.mqes(mqes)
        path = socket_path(tmp_path)
        emulator.listen(path)
        controller = await nvme_async.open(f"vfio-user:{path}", keepalive=True, queue_entries=4096, pool_bytes=64 << 20)
        assert controller.inspect()["io_queues"][0]["entries"] == min(mqes + 1, 4096)
        await controller.namespaces[1].write(0, block(1))
        with await controller.save() as bundle:
            successor = await restore(bundle)
        try:
            reads = await asyncio.gather(*(successor.namespaces[1].read(0) for _ in range(100)))
            assert reads == [block(1)] * 100
            assert emulator.faults.counters()["enables"] == 1
        finally:
            await successor.close()
