"""How commands end that do not complete as usual: cancelled, held, refused, sent again after a
reset, failed.
"""

import asyncio
import random
import struct

import pytest
from ring_controller import flush, started

from nvme_async.errors import CommandError
from nvme_async.native import _hotpath
from nvme_async.spec import commands


async def test_cancelled_waiters_leave_pages_with_the_controller_until_it_completes(ring):
    """Hazard 4: asyncio cancels all the time."""
    (task,) = await started(ring.qp.request(commands.read(1, 0, 8).pack(), read_nbytes=4096, to_host=True))
    task.cancel()
    await asyncio.sleep(0)
    assert task.cancelled()
    (sqe,) = ring.fetch()
    taken = struct.unpack_from("<Q", sqe, 24)[0]
    assert ring.bounce.n_taken == 1
    others = await started(
        *(ring.qp.request(commands.read(1, 0, 8).pack(), read_nbytes=4096, to_host=True) for _ in range(5))
    )
    for other in ring.fetch():
        assert struct.unpack_from("<Q", other, 24)[0] != taken
        ring.post(ring.cid(other))
    ring.qp.reap()
    await asyncio.gather(*others)
    assert ring.bounce.n_taken == 1
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    assert ring.bounce.n_taken == 0
    assert ring.qp.inspect()["orphans"] == 1


async def test_a_cancelled_readinto_never_touches_the_callers_buffer(ring):
    buffer = bytearray(b"\x11" * 4096)
    (task,) = await started(ring.qp.request(commands.read(1, 0, 8).pack(), buffer, to_host=True))
    task.cancel()
    await asyncio.sleep(0)
    (sqe,) = ring.fetch()
    ring.fill(sqe, b"\x22" * 4096)
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    assert buffer == b"\x11" * 4096
    buffer.append(0)  # and it isn't held any more


async def test_random_cancellation_never_hands_a_page_out_twice(ring):
    """Each page that the controller may still write is reserved until its command completes,
    whatever the waiters do.
    """
    rng = random.Random(7)
    owned = {}  # iova → cid
    pending = []
    tasks = set()
    for _ in range(2000):
        if rng.random() < 0.6:
            nbytes = rng.choice([512, 4096, 8192])
            task = asyncio.create_task(
                ring.qp.request(commands.read(1, 0, 1).pack(), read_nbytes=nbytes, to_host=True, tag=nbytes)
            )
            tasks.add(task)
        if tasks and rng.random() < 0.4:
            rng.choice(list(tasks)).cancel()
        await asyncio.sleep(0)
        ring.qp.flush()
        for sqe in ring.fetch():
            nbytes = next(p["nbytes"] for p in ring.qp.inspect()["pending"] if p["cid"] == ring.cid(sqe))
            for iova, _ in ring.walk(sqe, nbytes):
                assert iova not in owned, "a page was handed out while another command could still write it"
                owned[iova] = ring.cid(sqe)
            pending.append(sqe)
        while pending and rng.random() < 0.5:
            sqe = pending.pop(rng.randrange(len(pending)))
            owned = {iova: cid for iova, cid in owned.items() if cid != ring.cid(sqe)}
            ring.post(ring.cid(sqe))
        ring.qp.reap()
        tasks = {task for task in tasks if not task.done()}
    for sqe in pending:
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    while tasks:
        await asyncio.sleep(0)
        ring.qp.flush()
        for sqe in ring.fetch():
            ring.post(ring.cid(sqe))
        ring.qp.reap()
        tasks = {task for task in tasks if not task.done()}
    assert ring.bounce.n_taken == 0
    assert ring.qp.n_outstanding == 0


async def test_held_queues_take_nothing_new_and_continue_in_order(ring):
    ring.qp.hold(True)
    tasks = await started(*(ring.qp.request(flush(), tag=i) for i in range(3)))
    assert ring.fetch() == []
    ring.qp.hold(False)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sqes = ring.fetch()
    assert len(sqes) == 3
    for sqe in sqes:
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await asyncio.gather(*tasks)


async def test_refused_queues_fail_new_and_waiting_requests(ring):
    tasks = await started(*(ring.qp.request(flush()) for _ in range(9)))
    ring.qp.refuse(RuntimeError("closing"))
    with pytest.raises(RuntimeError, match="closing"):
        await ring.qp.request(flush())
    for task in tasks[7:]:
        with pytest.raises(RuntimeError, match="closing"):
            await task
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await asyncio.gather(*tasks[:7])


async def test_restart_resends_retryable_commands_from_the_same_pages(ring):
    data = random.Random(1).randbytes(8192)
    write, reserve = await started(
        ring.qp.request(commands.write(1, 0, 16).pack(), data), ring.qp.request(commands.verify(1, 0, 1).pack())
    )
    ring.fetch()
    ring.qp.restart(frozenset({1}), CommandError(0, 7), 3)
    ring.sq_head = ring.cq_tail = 0
    ring.phase = 1
    ring.doorbells.write32(0, 0)
    ring.qp.flush()
    (sqe,) = ring.fetch()
    assert ring.data(sqe, 8192) == data
    with pytest.raises(CommandError):
        await reserve
    ring.post(ring.cid(sqe))
    ring.qp.reap()
    await write


async def test_only_restarts_after_the_doorbell_was_rung_count_as_attempts(ring):
    """A reset may take several attempts, and an owner may reset again before its workers are back:
    a command that the controller never saw in between has not failed once more.
    """
    (write,) = await started(ring.qp.request(commands.write(1, 0, 8).pack(), b"w" * 4096))
    batch = ring.qp.batch(1, 1, struct.pack("<2Q", 1, 2), 1, b"y" * 8192, 4096, to_host=False)

    async def run() -> object:
        return await batch

    many = asyncio.create_task(run())
    await asyncio.sleep(0)

    def restart() -> None:
        ring.qp.silence(True)
        ring.sq_head = ring.cq_tail = 0
        ring.phase = 1
        ring.qp.restart(frozenset({1}), CommandError(0, 7), 1)

    for _ in range(5):
        restart()
    ring.doorbells.write32(0, 0)
    ring.qp.silence(False)
    assert len(ring.fetch()) == 3
    restart()
    ring.qp.silence(False)
    ring.qp.hold(False)
    with pytest.raises(CommandError):
        await write
    assert (await many).failed == 2
    assert ring.bounce.n_taken == 0


async def test_a_silenced_queue_rings_once_when_allowed_again(ring):
    ring.qp.silence(True)
    tasks = await started(*(ring.qp.request(commands.verify(1, lba, 1).pack()) for lba in range(3)))
    ring.qp.flush()
    ring.qp.reap()
    await asyncio.sleep(0)
    assert ring.doorbells.read32(0) == 0
    ring.qp.silence(False)
    assert ring.doorbells.read32(0) == 3
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.reap()
    await asyncio.gather(*tasks)


async def test_a_failed_waiter_gets_the_error_and_its_pages_stay(ring):
    (task,) = await started(ring.qp.request(commands.read(1, 0, 8).pack(), read_nbytes=4096, to_host=True))
    ring.qp.fail_waiters(RuntimeError("gone"))
    with pytest.raises(RuntimeError, match="gone"):
        await task
    assert ring.bounce.n_taken == 1
    with pytest.raises(RuntimeError, match="still with the controller"):
        ring.qp.close()
    ring.qp.release_all()
    assert ring.bounce.n_taken == 0


class Breaks(Exception):
    pass


async def test_all_reaped_completions_are_delivered_even_if_one_raises(ring):
    """The other completions reach their awaiters, and the exception the loop's handler."""
    loop = asyncio.get_running_loop()
    shown, made = [], []

    class Breaking(asyncio.Future):
        def set_result(self, result):
            raise Breaks

    def create_future():
        made.append((Breaking if len(made) == 2 else asyncio.Future)())
        return made[-1]

    loop.set_exception_handler(lambda loop, context: shown.append(context["exception"]))
    ring.qp.bind(loop)
    _hotpath.rebind(ring.qp, create_future, loop.call_soon, None)
    tasks = await started(*(ring.qp.request(flush()) for _ in range(5)))
    for _ in range(10):
        await asyncio.sleep(0)
    for sqe in ring.fetch():
        ring.post(ring.cid(sqe))
    ring.qp.more()
    done, left = await asyncio.wait(tasks, timeout=0.2)
    assert (len(done), len(left)) == (4, 1)
    assert [type(error) for error in shown] == [Breaks]
    assert ring.qp.n_outstanding == 0
    for task in left:
        task.cancel()


async def test_a_callback_that_polls_finds_the_rest_delivered(ring):
    """Delivering is reentrant: nothing is lost, and nothing is delivered twice."""
    loop = asyncio.get_running_loop()
    ring.qp.bind(loop)
    inner = []

    class Polling(asyncio.Future):
        def set_result(self, result):
            for sqe in ring.fetch():
                ring.post(ring.cid(sqe))
            inner.append(ring.qp.reap())
            super().set_result(result)

    _hotpath.rebind(ring.qp, Polling, loop.call_soon, None)
    tasks = await started(*(ring.qp.request(flush()) for _ in range(4)))
    for _ in range(10):
        await asyncio.sleep(0)
    first, *rest = ring.fetch()
    ring.post(ring.cid(first))
    for sqe in rest[:2]:
        ring.post(ring.cid(sqe))
    tasks += await started(ring.qp.request(flush()), ring.qp.request(flush()))
    ring.post(ring.cid(rest[2]))
    for _ in range(10):
        await asyncio.sleep(0)
    ring.qp.more()
    assert sum(inner) >= 1
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert ring.qp.n_outstanding == 0
