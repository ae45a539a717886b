"""Rings, trackers and the awaitable, against a controller's view written from the specification
(ring_controller.py).
"""

import asyncio
import random
import struct

import pytest
from ring_controller import PAGE, flush, started

from nvme_async.errors import LbaOutOfRange, OutOfDmaMemory
from nvme_async.native import _hotpath
from nvme_async.spec import commands


async def test_a_lone_command_is_rung_at_once_and_completes(ring):
    (task,) = await started(ring.qp.request(flush()))
    (sqe,) = ring.fetch()
    assert sqe[0] == 0
    assert struct.unpack_from("<I", sqe, 4) == (1,)
    ring.post(ring.cid(sqe), dw0=77)
    assert ring.qp.reap() == 1
    assert await task == (77, 0, None)
    assert ring.doorbells.read32(4) == 1


async def test_commands_of_one_iteration_share_one_doorbell(ring):
    tasks = await started(*(ring.qp.request(flush()) for _ in range(6)))
    await asyncio.sleep(0)
    doorbells = ring.qp.inspect()["sq"]["doorbells"]
    assert doorbells == 2  # the first one alone, the other five at once
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await asyncio.gather(*tasks)
    assert ring.qp.inspect()["cq"]["doorbells"] == 1


@pytest.mark.parametrize("ring", [{"mode": mode, "entries": 32} for mode in ("adaptive", "interrupt")], indirect=True)
async def test_the_last_of_a_burst_rings_for_all_in_the_same_iteration(ring):
    depth, rounds = 8, 20
    ring.qp.ring_at = 64  # not earlier because this controller keeps the host waiting

    async def worker():
        for _ in range(rounds):
            await ring.qp.request(flush())

    tasks = [asyncio.create_task(worker()) for _ in range(depth)]
    for _ in range(3):
        await asyncio.sleep(0)
    for turn in range(rounds):
        sqes = ring.fetch()
        assert len(sqes) == depth, f"turn {turn}: some were not rung"
        before = ring.qp.inspect()["sq"]["doorbells"]
        for sqe in sqes:
            ring.post(ring.cid(sqe))
        ring.qp.reap()
        await asyncio.sleep(0)  # all take their results, and all except in the last turn send the next
        await asyncio.sleep(0)
        assert ring.qp.inspect()["sq"]["doorbells"] - before == (turn < rounds - 1)
    await asyncio.gather(*tasks)


async def test_a_burst_whose_last_awaiter_sends_nothing_is_rung_in_the_next_iteration(ring):
    async def worker(rounds):
        for _ in range(rounds):
            await ring.qp.request(flush())

    tasks = [asyncio.create_task(worker(2)), asyncio.create_task(worker(2)), asyncio.create_task(worker(1))]
    for _ in range(3):
        await asyncio.sleep(0)
    for expected in (3, 2):
        sqes = ring.fetch()
        assert len(sqes) == expected
        for sqe in sqes:
            ring.post(ring.cid(sqe))
        ring.qp.reap()
        for _ in range(3):
            await asyncio.sleep(0)
    await asyncio.wait_for(asyncio.gather(*tasks), 30)


async def test_an_unclaimed_result_delays_the_doorbell_by_one_iteration_at_most(ring):
    requests = [ring.qp.request(flush()) for _ in range(4)]
    lost = await started(*requests[:2])
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    for task in lost:
        task.cancel()
    await asyncio.gather(*lost, return_exceptions=True)
    tasks = await started(*requests[2:])
    await asyncio.sleep(0)
    sqes = ring.fetch()
    assert len(sqes) == 2
    for sqe in sqes:
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("ring", [{"mode": mode} for mode in ("poll", "adaptive", "interrupt")], indirect=True)
async def test_reaping_outside_the_loop_rings_pending_commands(ring):
    """A drain of a queue whose loop has ended, or a poll in another loop."""
    requests = [ring.qp.request(flush()) for _ in range(3)]
    for request in requests:
        request.send(None)
    assert len(ring.fetch()) == 1  # the first was alone, the others wait for the end of the iteration
    ring.qp.reap()
    assert len(ring.fetch()) == 2
    for request in requests:
        request.close()


async def test_rings_wrap_and_the_phase_toggles(ring):
    for turn in range(50):
        (task,) = await started(ring.qp.request(flush()))
        (sqe,) = ring.fetch()
        ring.post(ring.cid(sqe), dw0=turn)
        ring.qp.reap()
        assert (await task)[0] == turn
    assert ring.qp.inspect()["cq"]["phase"] == ring.phase


async def test_an_entry_with_the_old_phase_is_not_taken(ring):
    (task,) = await started(ring.qp.request(flush()))
    (sqe,) = ring.fetch()
    ring.write(ring.qp.cq_iova, struct.pack("<IIHHHH", 0, 0, 0, 1, ring.cid(sqe), 0))
    assert ring.qp.reap() == 0
    assert not task.done()
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    await task


async def test_callers_of_a_full_queue_wait_in_order(ring):
    order = []

    async def one(i):
        await ring.qp.request(flush())
        order.append(i)

    tasks = [asyncio.create_task(one(i)) for i in range(30)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        assert ring.qp.n_outstanding <= 7
        for sqe in ring.fetch():
            ring.post(ring.cid(sqe))
        ring.qp.reap()
    assert order == list(range(30))
    assert ring.qp.inspect()["full"] == 23


async def test_a_waiter_in_line_that_is_cancelled_passes_its_turn_on(ring):
    tasks = await started(*(ring.qp.request(flush()) for _ in range(10)))
    tasks[8].cancel()
    await asyncio.sleep(0)
    for _ in range(4):
        for sqe in ring.fetch():
            ring.post(ring.cid(sqe))
        ring.qp.reap()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results].count(asyncio.CancelledError) == 1
    assert ring.qp.n_outstanding == 0
    assert ring.qp.n_free == 7


async def test_a_turn_that_was_granted_and_then_cancelled_is_not_lost(ring):
    tasks = await started(*(ring.qp.request(flush()) for _ in range(9)))
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    tasks[7].cancel()  # it was resumed, and has not yet run
    for _ in range(3):
        await asyncio.sleep(0)
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await tasks[8]
    assert ring.qp.n_free == 7


async def test_error_status_becomes_the_exception_that_names_the_command(ring):
    (task,) = await started(ring.qp.request(commands.write_zeroes(3, 1000, 8).pack()))
    (sqe,) = ring.fetch()
    ring.post(ring.cid(sqe), status=0x4080)
    ring.qp.reap()
    with pytest.raises(LbaOutOfRange, match=r"Write Zeroes on namespace 3 lba 1000\+8: .*do not retry") as caught:
        await task
    assert caught.value.dnr
    assert (caught.value.sct, caught.value.sc, caught.value.lba, caught.value.blocks) == (0, 0x80, 1000, 8)


@pytest.mark.parametrize("forge", ["free slot", "stale sequence", "slot beyond", "twice", "wrong sqid"])
async def test_a_forged_completion_is_recognised(ring, forge):
    (task,) = await started(ring.qp.request(flush()))
    (sqe,) = ring.fetch()
    cid = ring.cid(sqe)
    if forge == "free slot":
        ring.post((cid & 7) ^ 1)
    elif forge == "stale sequence":
        ring.post(cid + (5 << 3))
    elif forge == "slot beyond":
        ring.post(cid | 7)
    elif forge == "twice":
        ring.post(cid)
        ring.post(cid)
    else:
        ring.post(cid, sqid=9)
    ring.qp.reap()
    ring.qp.reap()
    ((qid, n, n_sqid, last_cid, last_sqid),) = ring.strays
    assert (qid, n, n_sqid) == (1, 1, forge == "wrong sqid")
    assert (last_cid & 7 == cid & 7) == (forge in ("stale sequence", "twice", "wrong sqid"))
    assert last_sqid == (9 if forge == "wrong sqid" else 1)
    if forge == "twice":
        await task
        return
    # It has released nothing, and the ring continues after it.
    assert not task.done()
    assert ring.qp.n_outstanding == 1
    ring.post(cid)
    ring.qp.reap()
    await task
    state = ring.qp.inspect()["cq"]
    assert state["reaped"] == state["acknowledged"] == 2


async def test_a_flood_of_forged_completions_does_not_block_the_loop(ring):
    (task,) = await started(ring.qp.request(flush()))
    (sqe,) = ring.fetch()
    for _ in range(100):
        ring.post(0x7FF0)
        ring.qp.reap(1)
    assert sum(stray[1] for stray in ring.strays) == 100
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    await task


@pytest.mark.parametrize("nbytes", [512, 4096, 8192, 12288, 131072, 1 << 20])
async def test_read_and_write_bounce_every_prp_shape(ring, nbytes):
    data = random.Random(nbytes).randbytes(nbytes)
    (task,) = await started(ring.qp.request(commands.write(1, 0, 1).pack(), data))
    (sqe,) = ring.fetch()
    assert ring.data(sqe, nbytes) == data
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    await task
    (task,) = await started(ring.qp.request(commands.read(1, 0, 1).pack(), read_nbytes=nbytes, to_host=True))
    (sqe,) = ring.fetch()
    ring.fill(sqe, data[::-1])
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    assert (await task)[2] == data[::-1]
    assert ring.bounce.n_taken == 0


@pytest.mark.parametrize("offset", [0, 4, 512, 4092])
async def test_pool_memory_is_accessed_in_place_at_any_dword(ring, offset):
    nbytes = 3 * PAGE
    with ring.pool.alloc(nbytes + PAGE, owner="app") as buffer:
        view = memoryview(buffer)[offset : offset + nbytes]
        (task,) = await started(ring.qp.request(commands.read(1, 0, 1).pack(), view, to_host=True))
        (sqe,) = ring.fetch()
        assert ring.walk(sqe, nbytes)[0][0] == buffer.iova + offset
        ring.fill(sqe, bytes(range(256)) * (nbytes // 256))
        ring.post(ring.cid(sqe))
        ring.qp.reap()
        assert (await task)[2] == nbytes
        assert bytes(view) == bytes(range(256)) * (nbytes // 256)
        assert ring.qp.inspect()["bounced"] == 0
        view.release()


async def test_memory_that_is_not_dword_aligned_is_bounced(ring):
    with ring.pool.alloc(2 * PAGE, owner="app") as buffer:
        view = memoryview(buffer)[2 : 2 + PAGE]
        (task,) = await started(ring.qp.request(commands.write(1, 0, 1).pack(), view))
        (sqe,) = ring.fetch()
        assert struct.unpack_from("<Q", sqe, 24)[0] % 4 == 0
        ring.post(ring.cid(sqe))
        ring.qp.reap()
        await task
        assert ring.qp.inspect()["bounced"] == 1
        view.release()


@pytest.mark.parametrize(
    "ring", [{"entries": 2}, {"entries": 4096, "n_trackers": 4095, "max_transfer": 4096}], indirect=True
)
async def test_the_smallest_and_largest_queues_work(ring):
    tasks = await started(*(ring.qp.request(flush()) for _ in range(ring.entries + 3)))
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        ring.qp.flush()
        for sqe in ring.fetch():
            assert ring.cid(sqe) != 0xFFFF
            ring.post(ring.cid(sqe))
        ring.qp.reap()
    assert ring.qp.n_outstanding == 0


async def test_cids_are_never_ffff_and_change_each_time(ring):
    seen = []
    for _ in range(20000 // 4):
        (task,) = await started(ring.qp.request(flush()))
        (sqe,) = ring.fetch()
        seen.append(ring.cid(sqe))
        ring.post(seen[-1])
        ring.qp.reap()
        await task
    assert 0xFFFF not in seen
    assert all(a != b for a, b in zip(seen, seen[1:], strict=False))


async def test_a_burst_is_reaped_in_bounded_portions(ring):
    """Fairness: other tasks of the loop run between portions."""
    ring.qp.reap_limit = 2
    tasks = await started(*(ring.qp.request(flush()) for _ in range(7)))
    await asyncio.sleep(0)
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.more()
    passes = 0
    while not all(task.done() for task in tasks):
        passes += 1
        await asyncio.sleep(0)
    assert passes >= 3
    assert ring.qp.inspect()["max_batch"] == 2


def test_request_is_a_coroutine_to_asyncio():
    import collections.abc

    assert issubclass(_hotpath.Request, collections.abc.Coroutine)


async def test_latencies_are_recorded_only_when_asked_for(ring):
    async def one():
        (task,) = await started(ring.qp.request(flush()))
        (sqe,) = ring.fetch()
        ring.post(ring.cid(sqe))
        ring.qp.reap()
        await task

    await one()
    assert ring.qp.latency() is None
    ring.qp.record_latency(True)
    for _ in range(5):
        await one()
    latency = ring.qp.latency()
    assert latency["count"] == sum(latency["bins"].values()) == 5
    assert 0 < latency["min"] <= latency["max"] <= latency["sum"]
    ring.qp.record_latency(False)
    await one()
    assert ring.qp.latency() is None


async def test_a_fused_pair_is_two_entries_in_a_row_and_one_doorbell(ring):
    before = await started(ring.qp.request(flush()))
    ring.fetch()
    rung = ring.qp.inspect()["sq"]["doorbells"]
    pair = [ring.qp.request(commands.compare(1, 5, 1, fuse=fuse).pack(), bytes(512)) for fuse in (1, 2)]
    assert [_hotpath.turn_for_fused(ring.qp) for _ in range(2)] == [None, None]
    assert _hotpath.send_fused(ring.qp, *pair) is None
    assert ring.qp.inspect()["sq"]["doorbells"] == rung + 1
    entries = ring.fetch()
    assert [entry[1] & 3 for entry in entries] == [1, 2]
    tasks = await started(*pair)
    for sqe in reversed(entries):  # completions come in any order
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    assert [await task for task in tasks] == [(0, 0, None)] * 2
    before[0].cancel()


@pytest.mark.parametrize("ring", [{"entries": 4}], indirect=True)
async def test_a_fused_pair_waits_for_two_ids_and_gives_them_back(ring):
    tasks = await started(*(ring.qp.request(flush()) for _ in range(2)))
    entries = ring.fetch()
    assert _hotpath.turn_for_fused(ring.qp) is None
    second = _hotpath.turn_for_fused(ring.qp)
    assert second is not None
    (other,) = await started(ring.qp.request(flush()))  # the only free id is reserved
    assert ring.fetch() == []
    _hotpath.give_back_turn(ring.qp, second)
    _hotpath.give_back_turn(ring.qp, None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    entries += ring.fetch()
    assert len(entries) == 3  # the id went to the one in line
    for sqe in entries:
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    assert await asyncio.gather(*tasks, other) == [(0, 0, None)] * 3


@pytest.mark.parametrize("ring", [{"pool_bytes": 1 << 20, "max_transfer": 4096}], indirect=True)
async def test_a_fused_pair_with_one_bounce_page_is_refused_and_keeps_nothing(ring):
    """It waits for a second page as long as another command has one, and not for its own."""
    rest = []
    while ring.pool.free_bytes > PAGE:
        rest.append(ring.pool.alloc(PAGE, owner="test"))

    def pair():
        return [ring.qp.request(commands.compare(1, 5, 1, fuse=fuse).pack(), bytes(512)) for fuse in (1, 2)]

    def send(requests):
        assert [_hotpath.turn_for_fused(ring.qp) for _ in range(2)] == [None, None]
        return _hotpath.send_fused(ring.qp, *requests)

    (other,) = await started(ring.qp.request(commands.read(1, 0, 1).pack(), read_nbytes=512))
    requests = pair()
    future, reserved = send(requests)
    assert reserved
    await asyncio.sleep(0)
    assert not future.done()
    ring.post(ring.cid(ring.fetch()[0]))
    ring.qp.reap()
    await other
    await future
    _hotpath.give_back_turn(ring.qp, future)
    with pytest.raises(OutOfDmaMemory):
        send(requests)
    assert ring.fetch() == []
    assert ring.qp.inspect()["waiting"] == 0
    (other,) = await started(ring.qp.request(commands.read(1, 0, 1).pack(), read_nbytes=512))
    ring.post(ring.cid(ring.fetch()[0]))  # the page is another's again
    ring.qp.reap()
    await other
    rest[0].free()
    requests = pair()
    assert send(requests) is None
    tasks = await started(*requests)
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    assert await asyncio.gather(*tasks) == [(0, 0, None)] * 2
