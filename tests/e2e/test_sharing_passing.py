"""A worker's queue pairs pass to its successor while commands are in flight: their results arrive
there, and neither process touches what is the other's.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driving import descriptors, eventually, faults, pattern
from sharing_kit import hand_over, keep_writing, owner, quiet, stuck, worker

import nvme_async
from nvme_async.emulator import FOREVER
from nvme_async.errors import HandedOver
from nvme_async.sharing import Share
from nvme_async.sharing.passable import PassableTransport
from nvme_async.spec.opcodes import NvmOpcode

BLOCK = 4096
Pair = tuple[nvme_async.Controller, Share]


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Pair]:
    async with owner(tmp_path / "s", workers=8, queues=2) as pair:
        yield pair


async def test_results_in_flight_reach_the_successor(shared: Pair, tmp_path: Path) -> None:
    own, share = shared
    before = faults(own).counters()
    controller = await worker(share)
    namespace = controller.namespaces[1]
    await namespace.write(7, pattern(BLOCK, 7))
    [number] = share.leases
    faults(own).add(queue="io", count=2, delay=FOREVER)
    reading = asyncio.ensure_future(namespace.read(7))
    writing = asyncio.ensure_future(namespace.write(8, pattern(BLOCK, 8)))
    await stuck(own, 2)
    successor = await hand_over(controller, tmp_path / "h")
    for waiting in (reading, writing):
        with pytest.raises(HandedOver):
            await waiting
    assert controller.state == "handed over"
    assert list(share.leases) == [number]  # the same lease, the same queue pair
    assert {command.lba: command.finished for command in successor.adopted} == {7: False, 8: False}
    later = asyncio.ensure_future(successor.namespaces[1].read(8))
    await asyncio.sleep(0)
    assert len(faults(own).outstanding()) == 2  # new I/O waits for the predecessor's
    faults(own).release()
    async with asyncio.timeout(30):
        await successor.adopted.wait()
    found = {command.lba: command for command in successor.adopted}
    assert (found[7].data, found[7].error, found[8].error) == (pattern(BLOCK, 7), None, None)
    assert await later == pattern(BLOCK, 8)
    assert successor.adopted.pause is not None
    await successor.close()
    await eventually(lambda: not share.leases and not own.queues.lent)
    assert quiet(own, before)


async def test_no_page_that_the_controller_may_still_write_is_used_again(shared: Pair, tmp_path: Path) -> None:
    """A read of the predecessor's is executed late, when both have freed whatever they could."""
    own, share = shared
    controller = await worker(share)
    namespace = controller.namespaces[1]
    await namespace.write(7, pattern(BLOCK, 7))
    buffer = controller.alloc(BLOCK, tag=70)
    faults(own).add(queue="io", opcode=NvmOpcode.READ, count=2, delay=FOREVER)
    waiting = [asyncio.ensure_future(namespace.read(7)), asyncio.ensure_future(namespace.readinto(7, buffer))]
    await stuck(own, 2)
    successor = await hand_over(controller, tmp_path / "h")
    await asyncio.gather(*waiting, return_exceptions=True)
    del buffer, namespace
    await controller.close()
    gc.collect()
    # All that is left of the pool is filled with something else.
    memory = successor.memory
    assert memory is not None
    [pool] = memory.pools
    taken = []
    for nbytes in (1 << 20, 64 << 10, BLOCK):
        while (piece := memory.find(nbytes, owner="application")) is not None and piece.pool is pool:
            piece[:] = b"\xa5" * nbytes
            taken.append(piece)
    assert sum(piece.nbytes for piece in taken) > 1 << 20
    faults(own).release()
    async with asyncio.timeout(30):
        await successor.adopted.wait()
    assert all(bytes(piece) == b"\xa5" * piece.nbytes for piece in taken)
    assert [command.data for command in successor.adopted] == [pattern(BLOCK, 7)] * 2
    [slot] = [slot for slot in successor.unclaimed() if slot.tag == 70]
    assert bytes(successor.claim(slot)) == pattern(BLOCK, 7)
    assert await successor.validate_restore() == []
    await successor.close()


async def test_memory_of_the_predecessor_stays_mapped_until_its_commands_have_ended(
    shared: Pair, tmp_path: Path
) -> None:
    own, share = shared
    fd = os.memfd_create("application")
    os.ftruncate(fd, BLOCK)
    mapped = mmap.mmap(fd, BLOCK)
    controller = await worker(share)
    namespace = controller.namespaces[1]
    await namespace.write(7, pattern(BLOCK, 7))
    registration = await asyncio.to_thread(controller.register, mapped)
    faults(own).add(queue="io", opcode=NvmOpcode.READ, count=1, delay=FOREVER)
    reading = asyncio.ensure_future(namespace.readinto(7, mapped))
    await stuck(own, 1)
    successor = await hand_over(controller, tmp_path / "h")
    await asyncio.gather(reading, return_exceptions=True)
    registration.close()
    await controller.close()
    assert share.inspect()[0]["mappings"] == 2
    assert not mapped[:].strip(b"\0")
    faults(own).release()
    await eventually(lambda: share.inspect()[0]["mappings"] == 1)
    assert mapped[:] == pattern(BLOCK, 7)  # it went where the command said
    await successor.close()
    os.close(fd)


async def test_a_chain_under_load_waits_for_nothing_and_loses_no_acknowledged_write(
    shared: Pair, tmp_path: Path
) -> None:
    own, share = shared
    before = faults(own).counters()
    written: dict[int, int] = {}

    controller = await worker(share)
    for turn in range(6):
        namespace = controller.namespaces[1]
        loads = [asyncio.create_task(keep_writing(namespace, lba, written, HandedOver)) for lba in range(8)]
        await eventually(lambda: len(written) == 8)
        successor = await hand_over(controller, tmp_path / str(turn))
        await asyncio.gather(*loads)
        await successor.adopted.wait()
        for lba, version in written.items():
            # What was in flight has been executed, or never will be.
            data = await successor.namespaces[1].read(lba)
            assert data in (pattern(BLOCK, version), pattern(BLOCK, version + 1))
            written[lba] = version + (data != pattern(BLOCK, version))
        await controller.close()
        controller = successor
        assert len(share.leases) == 1
    await controller.close()
    assert quiet(own, before)


async def test_namespaces_that_change_meanwhile_are_read_again_before_io(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PassableTransport.take

    async def after_a_rescan(self: PassableTransport) -> object:
        for lease in share.leases.values():
            lease.notify("event", dw0=2 | 4 << 16, dw1=0)
        return await real(self)

    async with owner(tmp_path / "s") as (_, share):
        controller = await worker(share)
        monkeypatch.setattr(PassableTransport, "take", after_a_rescan)
        successor = await hand_over(controller, tmp_path / "h")
        assert successor.cleanup is not None
        assert successor.cleanup._verify
        assert len(await successor.namespaces[1].read(0)) == BLOCK
        await successor.close()


async def test_a_chain_leaves_no_descriptors(shared: Pair, tmp_path: Path) -> None:
    _, share = shared
    controller, found = await worker(share), 0

    def settled() -> bool:
        """The owner and the predecessor have closed what they had of each other."""
        gc.collect()
        return len(share._connections) == 1 and (not found or sum(descriptors().values()) <= found)

    for turn in range(5):
        controller = await hand_over(controller, tmp_path / str(turn))
        await controller.namespaces[1].read(0)
        await eventually(settled)
        if turn == 1:
            found = sum(descriptors().values()) + 2  # one of each end may come and go
    await controller.close()


async def write(namespace: nvme_async.Namespace) -> None:
    await namespace.write(5, pattern(BLOCK, 5))


async def fetch(namespace: nvme_async.Namespace) -> bytes:
    return await namespace.read(5)


async def test_queue_pairs_of_other_loops_pass_too(shared: Pair, tmp_path: Path) -> None:
    own, share = shared
    controller = await worker(share, io_queues=2)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="io")
    thread.start()
    try:
        faults(own).add(queue="io", opcode=NvmOpcode.WRITE, count=2, delay=FOREVER)
        here = asyncio.ensure_future(controller.namespaces[1].write(4, pattern(BLOCK, 4)))
        there = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(write(controller.namespaces[1]), loop))
        await stuck(own, 2)
        successor = await hand_over(controller, tmp_path / "h")
        for waiting in (here, there):
            with pytest.raises(HandedOver):
                await waiting
        assert {command.qid for command in successor.adopted} == set(own.queues.lent)
        faults(own).release()
        await successor.adopted.wait()
        read = asyncio.run_coroutine_threadsafe(fetch(successor.namespaces[1]), loop)
        assert await asyncio.wrap_future(read) == pattern(BLOCK, 5)
        assert await successor.namespaces[1].read(4) == pattern(BLOCK, 4)
        assert len(successor.inspect()["io_queues"]) == 2
        await successor.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def test_memory_that_has_grown_is_handed_over_drained(shared: Pair, tmp_path: Path) -> None:
    _, share = shared
    controller = await worker(share)
    await asyncio.to_thread(controller.alloc, 8 << 20)
    assert len(controller.memory.pools) == 2  # type: ignore[union-attr]
    successor = await hand_over(controller, tmp_path / "h")
    assert len(successor.adopted) == 0
    assert controller.state == "closed"
    await asyncio.to_thread(successor.alloc, 8 << 20)
    await eventually(lambda: len(share.leases) == 1)
    await successor.close()


async def test_a_successor_grows_its_memory(shared: Pair, tmp_path: Path) -> None:
    _, share = shared
    successor = await hand_over(await worker(share), tmp_path / "h")
    buffer = await asyncio.to_thread(successor.alloc, 8 << 20)
    await successor.namespaces[1].write(0, memoryview(buffer)[:BLOCK])
    assert share.inspect()[0]["mappings"] == 2
    await successor.close()
