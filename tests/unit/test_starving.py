"""Too few bounce pages: a request waits for a released page, or for the memory to grow; no page
is lost or given twice, and no wait is in vain.
"""

from __future__ import annotations

import asyncio
import random
import struct
from array import array

import pytest
from ring_controller import PAGE, flush, started

from nvme_async.errors import OutOfDmaMemory
from nvme_async.native._hotpath import fed
from nvme_async.spec import commands

READ = commands.read(1, 0, 1).pack()
WRITE = commands.write(1, 0, 1).pack()
SMALL = {"entries": 64, "max_transfer": 128 << 10, "pool_bytes": 512 << 10}
PIECE = 64 << 10

pytestmark = pytest.mark.parametrize("ring", [SMALL], indirect=True)


def read(ring, nbytes=PIECE):
    return ring.qp.request(READ, read_nbytes=nbytes, to_host=True)


def answer(ring, sqes=None):
    """Completes the commands that were rung; returns their number."""
    sqes = ring.fetch() if sqes is None else sqes
    for sqe in sqes:
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    return len(sqes)


async def passes(n=3):
    for _ in range(n):
        await asyncio.sleep(0)


async def test_requests_beyond_the_pool_wait_for_pages_in_order(ring):
    order = []

    async def one(i):
        await read(ring)
        order.append(i)

    tasks = [asyncio.create_task(one(i)) for i in range(30)]
    await passes()
    first = ring.fetch()
    assert 0 < len(first) < 30
    assert ring.qp.inspect()["waiting_for_memory"] == 30 - len(first)
    left = 30 - answer(ring, first)
    while left:
        await passes()
        done = answer(ring)
        assert done
        left -= done
    await asyncio.gather(*tasks)
    assert order == list(range(30))
    assert ring.bounce.n_taken == 0


async def test_a_request_without_a_page_is_not_delayed(ring):
    tasks = [asyncio.create_task(read(ring)) for _ in range(20)]
    await passes()
    sent = ring.fetch()
    (other,) = await started(ring.qp.request(flush()))
    (sqe,) = ring.fetch()
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    await asyncio.wait_for(other, 30)
    answer(ring, sent)
    while not all(task.done() for task in tasks):
        await passes()
        answer(ring)


async def test_a_request_fails_at_once_if_no_page_can_become_free(ring):
    kept = ring.pool.alloc(ring.pool.inspect()["longest_free_run"] - PAGE, owner="all")
    with pytest.raises(OutOfDmaMemory, match="no room for a transfer of 65536 bytes"):
        await read(ring)
    kept.free()
    task = asyncio.create_task(read(ring))
    await passes()
    answer(ring)
    await task


async def test_the_memory_grows_once_for_all_waiters(ring):
    asked = []
    ring.qp.on_starved = asked.append
    kept = ring.pool.alloc(ring.pool.inspect()["longest_free_run"] - PAGE, owner="all")
    tasks = [asyncio.create_task(read(ring)) for _ in range(3)]
    await passes()
    assert asked == [PIECE]
    assert not ring.fetch()
    kept.free()
    fed(ring.qp)
    await passes()
    assert answer(ring) == 3
    await asyncio.gather(*tasks)


async def test_a_failed_growth_fails_all_waiters(ring):
    asked = []

    def on_starved(nbytes):
        if asked:
            raise OutOfDmaMemory("the limit")
        asked.append(nbytes)

    ring.qp.on_starved = on_starved
    kept = ring.pool.alloc(ring.pool.inspect()["longest_free_run"] - PAGE, owner="all")
    tasks = [asyncio.create_task(read(ring)) for _ in range(3)]
    await passes()
    fed(ring.qp)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, OutOfDmaMemory)
        assert str(result) == "the limit"
    kept.free()


@pytest.mark.parametrize("woken", [False, True], ids=["asleep", "woken"])
async def test_cancelling_a_waiter_passes_the_page_to_the_next(ring, woken):
    tasks = [asyncio.create_task(read(ring)) for _ in range(12)]
    await passes()
    sent = ring.fetch()
    waiting = tasks[len(sent) :]
    assert len(waiting) > 2
    if woken:
        ring.post(ring.cid(sent[0]))
        ring.qp.reap()
        sent = sent[1:]
    waiting[0].cancel()
    await passes()
    assert waiting[0].cancelled()
    while not all(task.done() for task in tasks):
        answer(ring, sent or None)
        sent = []
        await passes()
    assert ring.bounce.n_taken == 0
    assert ring.qp.inspect()["waiting"] == 0


async def test_waiters_end_when_the_queue_takes_no_more_commands(ring):
    tasks = [asyncio.create_task(read(ring)) for _ in range(12)]
    await passes()
    sent = ring.fetch()
    ring.qp.refuse(RuntimeError("closing"))
    await passes()
    for task in tasks[len(sent) :]:
        with pytest.raises(RuntimeError, match="closing"):
            await task
    answer(ring, sent)
    await asyncio.gather(*tasks[: len(sent)])


async def test_waiters_continue_after_a_reset_that_released_pages(ring):
    writes = [asyncio.create_task(ring.qp.request(WRITE, bytes(PIECE))) for _ in range(12)]
    await passes()
    assert len(ring.fetch()) < 12
    ring.qp.silence(True)
    ring.qp.restart(frozenset(), RuntimeError("reset"), 0)
    ring.sq_head = ring.cq_tail = 0
    ring.phase = 1
    ring.qp.silence(False)
    for _ in range(50):
        await passes()
        answer(ring)
    outcome = [type(task.exception()).__name__ if task.exception() else "done" for task in writes]
    assert outcome.count("RuntimeError") + outcome.count("done") == 12
    assert "done" in outcome
    assert ring.bounce.n_taken == 0


async def test_idle_pages_of_another_size_make_room(ring):
    for nbytes in (4096, 128 << 10, 8192, 64 << 10, 16 << 10, 128 << 10) * 3:
        (task,) = await started(read(ring, nbytes))
        assert answer(ring) == 1
        await task
    assert ring.bounce.nbytes <= 512 << 10
    assert ring.bounce.n_taken == 0


def batch(ring, n, nbytes=PIECE, depth=0):
    data = bytearray(n * nbytes)
    return ring.qp.batch(2, 1, array("Q", range(n)), 1, data, nbytes, to_host=True, depth=depth)


@pytest.mark.parametrize("n", [1, 2, 40])
async def test_a_batch_takes_pages_in_proportion_and_works_with_fewer(ring, n):
    task = asyncio.create_task(batch(ring, n, 4096 if n < 40 else PIECE))
    await passes()
    if n < 40:
        assert ring.bounce.n_taken == n
    while not task.done():
        answer(ring)
        await asyncio.sleep(0.001)
    assert (await task).failed == 0
    assert ring.bounce.n_taken == 0


async def test_a_batch_waits_for_its_first_page_and_can_be_cancelled_meanwhile(ring):
    reads = [asyncio.create_task(read(ring)) for _ in range(5)]
    await passes()
    sent = ring.fetch()
    rest = ring.pool.alloc(ring.pool.inspect()["longest_free_run"], owner="rest")
    ahead = asyncio.create_task(batch(ring, 4))
    behind = asyncio.create_task(batch(ring, 4))
    await passes()
    assert ring.qp.inspect()["waiting_for_memory"] == 2
    ahead.cancel()
    await passes()
    assert ring.qp.inspect()["waiting_for_memory"] == 1
    answer(ring, sent)
    await asyncio.gather(*reads)
    while not behind.done():
        answer(ring)
        await asyncio.sleep(0.001)
    assert (await behind).done == 4
    rest.free()
    assert ring.bounce.n_taken == 0


async def test_two_batches_that_wait_for_each_others_pages_both_continue(ring):
    """Each got some before the pool was empty, and there are no more."""
    tasks = [asyncio.create_task(batch(ring, 30)) for _ in range(3)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.001)
        answer(ring)
    assert [task.result().failed for task in tasks] == [0, 0, 0]
    assert ring.bounce.n_taken == 0


@pytest.mark.parametrize("seed", range(20))
async def test_any_mix_of_sizes_cancellations_and_growth_ends(ring, seed):
    """Reads with unique patterns, batches, cancellations; no page is in two commands at once."""
    rng = random.Random(seed)
    grown = []
    kept = [ring.pool.alloc(100 << 10, owner="later")]

    def on_starved(_):
        if not kept or rng.random() < 0.3:
            raise OutOfDmaMemory("no more")
        grown.append(kept.pop())

    ring.qp.on_starved = on_starved
    out = {}  # cid: (sqe, nbytes, pages)
    tasks = {}
    for _ in range(300):
        roll = rng.random()
        if roll < 0.45 and len(tasks) < 60:
            nbytes = rng.choice([512, 4096, 12288, PIECE, 128 << 10])
            tasks[asyncio.create_task(read(ring, nbytes))] = nbytes
        elif roll < 0.5 and len(tasks) < 60:
            tasks[asyncio.create_task(batch(ring, rng.randrange(1, 20), 8192))] = None
        elif roll < 0.6 and tasks:
            rng.choice(list(tasks)).cancel()
        elif roll < 0.65 and grown:
            grown.pop().free()
            fed(ring.qp)
        await asyncio.sleep(0)
        for sqe in ring.fetch():
            page = struct.unpack_from("<Q", sqe, 24)[0]
            assert page not in [other[1] for other in out.values()], "a page in two commands"
            out[ring.cid(sqe)] = (sqe, page)
        for cid in rng.sample(list(out), rng.randrange(len(out) + 1) if roll > 0.5 else 0):
            ring.post(cid)
            del out[cid]
        ring.qp.reap()
        for task in [task for task in tasks if task.done()]:
            del tasks[task]
            if not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), OutOfDmaMemory)
    for buffer in grown + kept:
        buffer.free()
    fed(ring.qp)
    for _ in range(2000):
        await asyncio.sleep(0)
        for sqe in ring.fetch():
            out[ring.cid(sqe)] = (sqe, 0)
        for cid in list(out):
            ring.post(cid)
            del out[cid]
        ring.qp.reap()
        if all(task.done() for task in tasks):
            break
    assert all(task.done() for task in tasks)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ring.bounce.n_taken == 0
    assert ring.qp.inspect()["waiting"] == 0
