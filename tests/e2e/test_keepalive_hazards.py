"""Hazards of servicing that were found in other drivers' code, each with the test that would find
it here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from pathlib import Path

import pytest
from driver_line import (
    FLUSH,
    READ,
    WAYS,
    WRITE,
    Way,
    all_handed_over,
    block,
    calling,
    descriptors,
    die,
    eventually,
    line,
    results,
    settle,
)
from driving import LoopThread

import nvme_async
from nvme_async.errors import CommandError, HandedOver, NvmeError, RestoreRefused
from nvme_async.keepalive import restore
from nvme_async.manager import Manager
from nvme_async.spec import commands
from nvme_async.spec.registers import Register

ways = pytest.mark.parametrize("way", WAYS)
CREATE_CQ, CREATE_SQ = 0x05, 0x01
CC, CSTS = int(Register.CC), int(Register.CSTS)


@ways
async def test_1_pages_of_commands_in_flight_are_not_reused(way: Way) -> None:
    """PRP lists and bounce pages stay with their commands across a restore: no page that the
    controller may access is handed out again.
    """
    async with line() as drivers:
        span = 128 << 10
        blocks = span // 4096
        for at in range(4):
            await drivers.namespace.write(at * blocks, block(at) * blocks)
        drivers.delay()
        drivers.start(
            *(drivers.namespace.submit(commands.read(1, at * blocks, blocks), tag=1 + at) for at in range(4)),
            *(drivers.namespace.write(1000 + at * blocks, block(50 + at) * blocks) for at in range(4)),
        )
        await drivers.outstanding(8)
        reached = [
            set(range(r.iova >> 12, (r.iova + r.nbytes + 4095) >> 12))
            for one in drivers.faults.outstanding()
            for r in one.ranges
        ]
        touched = set().union(*reached)
        await drivers.succeed(way)
        taken = []
        with contextlib.suppress(nvme_async.OutOfDmaMemory):
            while True:
                taken.append(drivers.driver.alloc(span))
        assert len(taken) > 10
        ours = {page for buffer in taken for page in range(buffer.iova >> 12, (buffer.iova + buffer.nbytes) >> 12)}
        assert not ours & touched
        for buffer in taken:
            buffer[:] = b"\xee" * span
        drivers.release()
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
        assert all(one.error is None for one in drivers.driver.adopted)
        for one in drivers.driver.adopted:
            if one.opcode == READ:
                assert one.data == block(one.tag - 1) * blocks
        for buffer in taken:
            assert bytes(buffer) == b"\xee" * span
            buffer.free()
        for at in range(4):
            assert await drivers.namespace.read(1000 + at * blocks, blocks) == block(50 + at) * blocks


@ways
async def test_2_an_unrung_tail_is_rung_and_the_drain_ends(way: Way) -> None:
    """Commands are posted in one event-loop iteration and rung at its end; the save comes in
    between.
    """
    async with line() as drivers:
        await drivers.namespace.write(8, block(8))
        # Requests are sent by their first step; the doorbell follows after this iteration.
        drivers.start(*(drivers.namespace.submit(commands.read(1, 8, 1), tag=1 + at) for at in range(5)))
        await asyncio.sleep(0)
        await drivers.succeed(way)
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
            assert await drivers.namespace.read(8) == block(8)
        assert not drivers.driver.adopted.draining
        counted = drivers.since()
        assert counted["invalid_doorbells"] == 0
        assert counted["disables"] == 0


async def test_2_a_command_that_settles_a_doorbell_costs_no_queue_pair() -> None:
    """A loop that asks while it is in flight takes the predecessor's queue pair nevertheless."""
    async with line() as drivers:

        async def read() -> bytes:
            return bytes(await drivers.namespace.read(8))

        await drivers.namespace.write(8, block(8))
        with LoopThread() as other:
            await other.submit(read())
        assert drivers.driver.memory is not None
        second = next(slot for slot in drivers.driver.memory.pools[0].slots() if slot.owner == "queue 2")
        with await drivers.driver.save() as bundle:
            fd = bundle.descriptors["pool"]
            (ringing,) = struct.unpack("<Q", os.pread(fd, 8, second.offset + 136))
            os.pwrite(fd, struct.pack("<Q", ringing - 1), second.offset + 144)  # killed between the two stores
            drivers.delay(opcode=FLUSH)
            drivers.past.append(drivers.driver)
            drivers.driver = await restore(bundle)
        await drivers.outstanding(1)
        drivers.since()
        with LoopThread() as other:
            async with asyncio.timeout(30):
                assert await other.submit(read()) == block(8)
            assert drivers.since()["queues_created"] == 0
            assert sorted(queue.qid for queue in drivers.driver.queues.io_queues()) == [1, 2]
            drivers.release()
            assert await other.submit(read()) == block(8)


@ways
async def test_3_prp_lists_over_512_entries_are_chained_and_survive_a_takeover(way: Way) -> None:
    """4 MiB in one command, 1023 entries in three pages: nothing is truncated, before and after."""
    async with line("size=64MiB,mdts=4MiB", max_transfer=4 << 20, pool_bytes=64 << 20) as drivers:
        blocks = 1024
        data = b"".join(block(at) for at in range(blocks))
        await drivers.namespace.write(0, data)
        drivers.delay()
        drivers.start(
            drivers.namespace.submit(commands.read(1, 0, blocks), tag=1),
            drivers.namespace.submit(commands.write(1, 4096, blocks), data, tag=2),
        )
        await drivers.outstanding(2)
        for one in drivers.faults.outstanding():
            assert sum(r.nbytes for r in one.ranges) >= 4 << 20
        await drivers.succeed(way)
        drivers.release()
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
        (read,) = [one for one in drivers.driver.adopted if one.tag == 1]
        assert read.data == data
        assert await drivers.namespace.read(4096, blocks) == data


@ways
async def test_4_a_cancelled_callers_pages_stay_with_the_controller(way: Way) -> None:
    """Cancelled before the takeover: the successor has the command as an orphan, and its pages are
    not reused.
    """
    async with line() as drivers:
        buffer = drivers.driver.alloc(4096, tag=1)
        await drivers.namespace.write(0, block(1))
        drivers.delay(opcode=READ)
        (reading,) = drivers.start(drivers.namespace.readinto(0, buffer))
        await drivers.outstanding(1)
        (held,) = drivers.faults.outstanding()
        reading.cancel()
        await results([reading])
        buffer.free()
        assert reading.cancelled()
        assert held.ranges[0].iova >> 12 not in free_pages(drivers.driver)
        await drivers.succeed(way)
        (one,) = drivers.driver.adopted
        assert one.orphan
        assert held.ranges[0].iova >> 12 not in free_pages(drivers.driver)
        drivers.release()
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
        assert one.status == 0


def free_pages(controller: nvme_async.Controller) -> set[int]:
    """Pages of the pool that alloc() could hand out now."""
    (pool,) = controller.memory.pools
    taken = {
        page for slot in pool.slots() for page in range(slot.offset >> 12, (slot.offset + slot.nbytes + 4095) >> 12)
    }
    return {(pool.iova >> 12) + page for page in range(pool.data_offset >> 12, pool.nbytes >> 12) if page not in taken}


async def test_5_a_queue_created_as_the_save_starts_has_an_owner_at_the_restore() -> None:
    """Its memory is allocated, and the controller may or may not know the queue: all of the memory
    has an owner, and none is lost.
    """
    async with line() as drivers:
        used = drivers.driver.memory.pools[0].used_bytes
        for step in (CREATE_CQ, CREATE_SQ):
            rule = drivers.faults.add(queue="admin", opcode=step, delay=float("inf"))
            with LoopThread() as other:
                waiting = other.submit(calling(drivers.namespace.read, 0))
                await drivers.outstanding(1)
                await drivers.succeed("save")
                with pytest.raises(HandedOver):
                    await asyncio.wait_for(waiting, 30)
            rule.remove()
            drivers.faults.release()
            assert await drivers.driver.validate_restore() == []
            assert drivers.driver.memory.pools[0].used_bytes == used
            assert drivers.driver.inspect()["unsettled_io_queues"] == []
        assert drivers.since()["disables"] == 0


async def test_6_a_failed_load_leaves_no_dead_entry_behind() -> None:
    """A device that can't be opened at first can be opened under the same name afterwards."""
    path = f"/tmp/nvme-async-dead-{os.getpid()}.sock"
    async with Manager() as manager:
        with pytest.raises(NvmeError):
            await manager.load(f"vfio-user:{path}")
        with nvme_async.emulator.EmulatedController("size=16MiB") as emulator:
            emulator.listen(path)
            device = await manager.load(f"vfio-user:{path}")
            assert device.state == "ready"
            await manager.unload(f"vfio-user:{path}")


@ways
async def test_7_no_buffer_is_freed_before_the_controller_is_reset(way: Way) -> None:
    """policy="fresh" with reads in flight into pages: at the moment of the reset the predecessor
    still owns every page.
    """
    if way == "handover":
        pytest.skip("a live hand-over has nothing to reclaim")
    async with line() as drivers:
        drivers.delay(opcode=READ)
        drivers.start(*(drivers.namespace.read(at, 4) for at in range(8)))
        await drivers.outstanding(8)
        before = drivers.driver
        bundle = await before.save() if way == "save" else die(before)
        drivers.past.append(before)
        with bundle, nvme_async.dma.Pool.attach(bundle.descriptors["pool"]) as pool:
            slots = pool.slots()
            seen: list[bool] = []
            drivers.faults.enable_delay(disabled=0.05)
            restoring = asyncio.ensure_future(restore(bundle, keepalive=False))
            while not restoring.done() and len(drivers.faults.outstanding()) == 8:
                pool.refresh()
                seen.append(pool.slots() == slots)
                await asyncio.sleep(0)
            drivers.driver = await restoring
            pool.detach()
        assert seen
        assert all(seen)
        assert drivers.faults.outstanding() == []
        assert len(drivers.driver.adopted.lost) == 8


async def test_8_failed_queue_creations_leak_neither_ids_nor_vectors() -> None:
    async with line() as drivers:
        await drivers.namespace.read(0)  # takes bounce pages
        used = drivers.driver.memory.pools[0].used_bytes
        for opcode in (CREATE_CQ, CREATE_SQ) * 3:
            rule = drivers.faults.add(queue="admin", opcode=opcode, count=1, fail=0x101, dnr=True)
            with LoopThread() as other:
                assert await other.submit(calling(drivers.namespace.read, 0)) == bytes(4096)  # shares another loop's
            assert rule.hits == 1
            rule.remove()
        assert drivers.driver.memory.pools[0].used_bytes == used
        with LoopThread() as other:
            await other.submit(calling(drivers.namespace.read, 0))
            (queue,) = [queue for queue in drivers.driver.inspect()["io_queues"] if queue["qid"] != 1]
            assert (queue["qid"], queue["vector"]) == (2, 2)
            await drivers.succeed("save")
        assert drivers.since()["disables"] == 0


async def test_9_a_different_drive_in_the_slot_is_recognized() -> None:
    """The same PCI ids, registers, sizes and addresses; only its serial number differs."""
    async with line("size=16MiB,dbbuf=off,serial=OLD") as old, line("size=16MiB,dbbuf=off,serial=NEW") as new:
        bundle, other = await old.driver.save(), await new.driver.save()
        old.past.append(old.driver)
        new.past.append(new.driver)
        new.since()
        swapped = {
            **bundle.descriptors,
            **{name: fd for name, fd in other.descriptors.items() if name.startswith("device.")},
        }
        with (
            nvme_async.keepalive.Bundle.of(bundle.uri, bundle.manifest, swapped) as wrong,
            pytest.raises(RestoreRefused, match="is not the one that was saved"),
        ):
            await restore(wrong)
        counted = new.since()
        assert counted["admin"] == counted["io"] == {}
        with bundle, other:
            old.driver, new.driver = await restore(bundle), await restore(other)


@ways
async def test_10_a_command_without_completion_ends_after_the_takeover(way: Way) -> None:
    """Timeout, Abort, reset, CAP.TO, CC.SHN: the limits apply to the predecessor's commands, and to
    the successor's own shutdown.
    """
    async with line(command_timeout=0.3, abort_timeout=0.2, retries=0) as drivers:
        drivers.faults.add(queue="io", opcode=WRITE, count=1, drop=True)
        (writing,) = drivers.start(drivers.namespace.write(0, block(1)))
        await eventually(lambda: drivers.driver.queues.io_queues()[0].hot.n_outstanding == 1)
        await drivers.succeed(way)
        assert all_handed_over(await results([writing]))
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
            assert await drivers.namespace.read(1) == bytes(4096)
        (one,) = drivers.driver.adopted
        assert one.error is not None
        assert drivers.driver.inspect()["aborts"] >= 1
        drivers.since()
        async with asyncio.timeout(30):
            transport = await drivers.driver.release()
        assert drivers.since()["shutdowns"] == 1
        assert transport is not None
        transport.abandon()


@ways
async def test_a_completion_is_neither_lost_nor_delivered_twice(way: Way) -> None:
    """Every tag that was sent arrives exactly once, either at the predecessor's waiter or at the
    successor.
    """
    async with line(queue_entries=64) as drivers:
        namespace = drivers.namespace
        answered: list[int] = []

        async def one(tag: int) -> None:
            try:
                await namespace.submit(commands.read(1, tag % 16, 1), tag=tag)
                answered.append(tag)
            except HandedOver as error:
                if not error.sent:
                    answered.append(-tag)  # it has no completion, since it was never sent
            except CommandError:
                answered.append(tag)

        drivers.faults.add(queue="io", opcode=READ, skip=20, count=25, delay=float("inf"))
        tasks = drivers.start(*(one(tag) for tag in range(1, 91)))
        await drivers.outstanding(25)
        await settle()
        await drivers.succeed(way)
        await results(tasks)
        drivers.release()
        async with asyncio.timeout(30):
            await drivers.driver.adopted.wait()
        adopted = [command.tag for command in drivers.driver.adopted if command.sent]
        if way == "death":
            # die() ends all waiters in the same way; only the pool shows which commands were sent.
            answered = [tag for tag in answered if tag > 0]
            assert len(answered) == len(set(answered))
            assert not set(answered) & set(adopted)
            assert len(adopted) >= 25
        else:
            assert sorted([abs(tag) for tag in answered] + adopted) == list(range(1, 91))
        assert len(adopted) == len(set(adopted))


async def test_a_handed_over_pool_is_unmapped_at_once() -> None:
    def pools() -> int:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return sum("memfd:" in line and "doorbells" not in line for line in maps)

    async with line() as drivers:
        descriptors()  # collects the leftovers of other tests
        before = pools()
        predecessor = drivers.driver
        for _ in range(3):
            await drivers.succeed("save")
        assert pools() == before
        assert predecessor.state == "handed over"
