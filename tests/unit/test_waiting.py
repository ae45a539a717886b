"""How long the driver polls for a completion before it sleeps, against a controller written in
Python (ring_controller.py).
"""

import asyncio
import contextlib
import ctypes
import os
import struct
import threading
import time

import pytest
from forking import in_child
from ring_controller import flush, started

from nvme_async.native import _hotpath

pytestmark = pytest.mark.alone  # measures times

PASSES = 10  # event-loop iterations: more than a command waits without a Future


@contextlib.contextmanager
def answered_by_the_kernel(ring, cid, seconds):
    """A completion after that time, even while a spinning driver holds the interpreter: another
    process writes it to a pipe, and a thread that waits in read() puts it into the ring.
    """
    reader, writer = os.pipe()
    entry = ring.entry(cid)
    address = ring.pool.address + ring.cq_offset + 16 * ring.cq_tail
    libc = ctypes.CDLL(None)
    thread = threading.Thread(target=libc.read, args=(reader, ctypes.c_void_p(address), ctypes.c_size_t(len(entry))))
    thread.start()

    def write():
        time.sleep(seconds)
        os.write(writer, entry)

    child = in_child(write)
    try:
        yield
    finally:
        assert os.waitpid(child, 0)[1] == 0
        thread.join()
        os.close(reader)
        os.close(writer)
    ring.cq_tail += 1


async def _one_after_the_other(ring):
    while True:
        await ring.qp.request(flush())


async def _answer_late(ring):
    """Completes the last command sent, once it isn't polled for any more; returns its
    identifier.
    """
    for _ in range(PASSES):
        await asyncio.sleep(0)
    (sqe,) = ring.fetch()
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    return ring.cid(sqe)


@contextlib.asynccontextmanager
async def one_of_two_out(ring):
    """(The task whose command stays in flight, its identifier); another task sends one command
    after another.
    """
    (kept,) = await started(ring.qp.request(flush()))
    (sqe,) = ring.fetch()
    worker = asyncio.create_task(_one_after_the_other(ring))
    try:
        yield kept, ring.cid(sqe)
    finally:
        worker.cancel()
        kept.cancel()
        await asyncio.gather(worker, kept, return_exceptions=True)


@pytest.mark.parametrize("ring", [{"mode": "adaptive", "entries": 16}], indirect=True)
async def test_the_last_sender_stops_polling_where_polling_never_sufficed(ring):
    limit = ring.qp.spin_ns = 20_000
    gaps = []
    async with one_of_two_out(ring):
        lone = ring.qp.inspect()["latency_ns"]
        for _ in range(60):
            await _answer_late(ring)
            gaps.append(ring.qp.inspect()["gap_ns"])
    assert gaps[-1] > limit
    assert gaps == sorted(gaps), "nothing was learnt that isn't so"
    assert 2 < len(set(gaps)) < 15, "it goes on looking"
    assert ring.qp.inspect()["latency_ns"] == lone, "nobody was alone"


@pytest.mark.parametrize("ring", [{"mode": "adaptive", "entries": 16}], indirect=True)
async def test_the_last_sender_polls_for_the_next_completion(ring):
    """If event-loop iterations are too short to wait for a completion, one of them polls for it,
    and the loop does not sleep.
    """
    ring.qp.spin_ns = 20_000_000_000
    async with one_of_two_out(ring) as (kept, cid):
        while ring.qp.inspect()["gap_ns"] == 0:  # it polls for 2 us at first
            await _answer_late(ring)
        assert not kept.done()
        with answered_by_the_kernel(ring, cid, 0.3):
            for _ in range(3):  # the worker sends its next, and polls until the other one's completion is there
                await asyncio.sleep(0)
            assert kept.done()


@pytest.mark.parametrize("ring", [{"mode": "adaptive", "entries": 16}], indirect=True)
async def test_a_task_that_polled_for_long_yields_before_it_polls_again(ring):
    """Also on a loop that can't report whether other tasks are ready."""
    loop = asyncio.get_running_loop()
    _hotpath.rebind(ring.qp, loop.create_future, loop.call_soon, None)
    turns = 0
    seen = []  # turns of others when each result came

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def worker():
        for _ in range(5):
            await ring.qp.request(flush())
            seen.append(turns)

    other, task = asyncio.create_task(others()), asyncio.create_task(worker())
    try:
        ring.qp.spin_ns = 0
        before_last, last = await _answer_late(ring), await _answer_late(ring)
        ring.qp.spin_ns = 20_000_000_000
        await _answer_late(ring)  # the third; it polled for 2 us
        spins = ring.qp.inspect()["spins"]
        following = last + 2 * (last - before_last)  # of the same slot
        with answered_by_the_kernel(ring, following, 1.0):
            while len(seen) < 4:
                await asyncio.sleep(0)
        ring.sq_head = (ring.sq_head + 1) % ring.entries
        await _answer_late(ring)
        await asyncio.wait_for(task, 30)
    finally:
        other.cancel()
    assert seen[3] <= seen[2] + 2, "the fourth was looked for"
    assert seen[4] > seen[3] + 2, "others had their turns before the fifth was there"
    assert ring.qp.inspect()["spins"] == spins + 1, "nobody looked for the fifth"


@pytest.mark.parametrize("ring", [{"mode": "interrupt", "entries": 16}], indirect=True)
async def test_interrupt_mode_does_not_poll(ring):
    ring.qp.spin_ns = 20_000_000_000
    async with one_of_two_out(ring):
        for _ in range(10):
            await _answer_late(ring)
    assert ring.qp.inspect()["spins"] == 0


@pytest.mark.parametrize("ring", [{"mode": "adaptive"}], indirect=True)
async def test_a_batch_stops_polling_where_polling_never_sufficed(ring):
    """The controller completes commands only once all waiters sleep; soon a batch sleeps at
    once.
    """
    limit = ring.qp.spin_ns = 20_000
    lulls = []
    for turn in range(30):
        task = asyncio.create_task(_await(ring.qp.batch(0, 1, struct.pack("<Q", turn), 1, None, 0, to_host=False)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        (sqe,) = ring.fetch()
        ring.post(ring.cid(sqe))
        ring.qp.reap()
        await asyncio.wait_for(task, 30)
        lulls.append(ring.qp.inspect()["lull_ns"])
    assert lulls[-1] > limit
    assert lulls == sorted(lulls), "nothing was learnt that isn't so"
    assert len(set(lulls)) < 15, "it goes on looking"


async def _await(batch):
    return await batch
