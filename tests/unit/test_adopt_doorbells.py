"""Where a predecessor stopped between a ring and its doorbell: what its successor rings."""

from __future__ import annotations

import asyncio

import pytest
from succession import Scene

from nvme_async.native import _hotpath
from nvme_async.spec import commands


async def test_an_unrung_tail_is_rung(scene):
    """Hazard 2: otherwise the waiters for these commands would wait forever."""
    await scene.send(scene.read(1), scene.read(2), scene.read(3))
    scene.ring.doorbells.write32(0, 1)
    scene.poke(sq_ringing=1, sq_rung=1)
    successor = scene.kill()
    assert successor.found["unrung"]
    successor.adopt()
    assert successor.doorbells.read32(0) == 3
    assert len(successor.fetch()) == 3
    assert scene.position("sq_rung") == 3


@pytest.mark.parametrize("written", [False, True])
async def test_an_uncertain_doorbell_is_settled_with_a_new_value(scene, written):
    """Killed between `sq_ringing` and `sq_rung`: the same value must not be written twice, so a
    harmless command is added.
    """
    await scene.send(scene.read(1), scene.read(2))
    scene.ring.doorbells.write32(0, 2 if written else 1)
    scene.poke(sq_ringing=2, sq_rung=1)
    successor = scene.kill()
    assert successor.found["uncertain"]
    successor.adopt()
    assert successor.doorbells.read32(0) == 3
    sent = successor.fetch()
    assert [sqe[0] for sqe in sent] == [2, 2, 0]
    for sqe in sent:
        successor.post(successor.cid(sqe))
    successor.qp.reap()
    assert len(successor.finished) == 2
    assert successor.qp.n_outstanding == 0
    assert not successor.strays


async def test_a_settling_command_is_no_obstacle_to_another_loop(scene):
    """Nothing waits for it. Otherwise the loop gets a queue pair more than there were, or none."""
    await scene.send(scene.read(1), scene.read(2))
    scene.ring.doorbells.write32(0, 2)
    scene.poke(sq_ringing=2, sq_rung=1)
    successor = scene.kill()
    successor.adopt()
    *adopted, settling = successor.fetch()
    for sqe in adopted:
        assert not successor.qp.movable
        with pytest.raises(RuntimeError, match="in use"):
            _hotpath.rebind(successor.qp, scene.loop.create_future, scene.loop.call_soon, None)
        successor.post(successor.cid(sqe))
        successor.qp.reap()
    assert successor.qp.n_outstanding == 1
    assert successor.qp.movable
    _hotpath.rebind(successor.qp, scene.loop.create_future, scene.loop.call_soon, None)
    task = asyncio.ensure_future(successor.qp.request(commands.flush(1).pack()))
    await asyncio.sleep(0)
    (sent,) = successor.fetch()
    for sqe in (settling, sent):
        successor.post(successor.cid(sqe))
    successor.qp.reap()
    await task
    assert successor.qp.n_outstanding == 0
    assert not successor.strays


async def test_a_doorbell_noted_after_its_completions_is_accepted(scene):
    """If doorbells are messages, completions may be reaped before the message's answer is
    noted.
    """
    await scene.send(scene.read(1), scene.read(2))
    for sqe in scene.ring.fetch():
        scene.ring.post(scene.ring.cid(sqe))
    scene.ring.qp.reap()
    await scene.send()
    scene.poke(sq_rung=1)
    successor = scene.kill()
    assert successor.found["uncertain"]
    assert successor.adopt() == []


async def test_entries_without_a_command_are_not_rung(scene):
    """Two flipped bits, and old commands would be executed a second time."""
    for lba in range(4):
        await scene.send(scene.read(lba))
        (sqe,) = scene.ring.fetch()
        scene.ring.post(scene.ring.cid(sqe))
        scene.ring.qp.reap()
    scene.poke(submitted=6, reaped=6)
    with pytest.raises(_hotpath.QueueStateError, match="0 commands wait for their doorbell, but the ring has 2"):
        scene.kill()


async def test_the_reserved_slot_settles_a_doorbell_when_the_queue_is_full():
    scene = Scene(entries=8, n_trackers=7, n_reserved=1)
    try:
        await scene.send(*(scene.read(i) for i in range(6)))
        assert scene.ring.qp.n_free == 0
        scene.ring.doorbells.write32(0, 5)
        scene.poke(sq_ringing=6, sq_rung=5)
        successor = scene.kill()
        assert len(successor.adopt()) == 6
        sent = successor.fetch()
        assert len(sent) == 7
        assert len({successor.cid(sqe) for sqe in sent}) == 7
        for sqe in sent:
            successor.post(successor.cid(sqe))
        successor.qp.reap()
        assert successor.qp.n_free == 6
    finally:
        await scene.close()


async def test_a_queue_of_two_entries_writes_the_doorbell_again():
    scene = Scene(entries=2, n_trackers=1)
    try:
        await scene.send(scene.read(1))
        scene.ring.doorbells.write32(0, 0)
        scene.poke(sq_ringing=1, sq_rung=0)
        successor = scene.kill()
        successor.adopt()
        assert successor.doorbells.read32(0) == 1
    finally:
        await scene.close()


async def test_an_uncertain_completion_doorbell_waits_for_the_next_completion(scene):
    await scene.send(scene.read(1), scene.read(2))
    first, second = scene.ring.fetch()
    scene.ring.post(scene.ring.cid(first))
    scene.ring.qp.reap()
    await asyncio.sleep(0)
    scene.ring.doorbells.write32(4, 0)
    scene.poke(cq_ringing=1, cq_rung=0)
    successor = scene.kill()
    successor.adopt()
    assert successor.doorbells.read32(4) == 0
    successor.post(successor.cid(second))
    successor.qp.reap()
    assert successor.doorbells.read32(4) == 2
    assert scene.position("cq_rung") == 2


async def test_a_full_completion_ring_is_acknowledged_at_once(scene):
    """Otherwise no further completion could arrive."""
    for i in range(7):
        await scene.send(scene.read(i))
        (sqe,) = scene.ring.fetch()
        scene.ring.post(scene.ring.cid(sqe))
        scene.ring.qp.reap()
    scene.ring.doorbells.write32(4, 0)
    scene.poke(cq_ringing=7, cq_rung=0)
    successor = scene.kill()
    successor.adopt()
    assert successor.doorbells.read32(4) == 7
