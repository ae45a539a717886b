"""What a successor refuses to adopt, and how a predecessor stands still meanwhile."""

from __future__ import annotations

import asyncio
import struct

import pytest
from succession import payload

from nvme_async.dma import Pool
from nvme_async.errors import HandedOver
from nvme_async.native import _hotpath


@pytest.mark.parametrize(
    ("at", "fmt", "value", "says"),
    [
        (0, "<I", 0, "no queue pair"),
        (4, "<I", 2, "version"),
        (8, "<H", 3, "queue 3"),
        (12, "<I", 1, "are invalid"),
        (16, "<I", 8, "are invalid"),
        (24, "<Q", 0x2000, "don't lie"),
        (48, "<Q", 0x9000, "don't lie"),
        (20, "<I", 9, "don't lie"),
    ],
)
async def test_an_invalid_header_is_refused(scene, at, fmt, value, says):
    struct.pack_into(fmt, scene.ring.view, at, value)
    with pytest.raises(_hotpath.QueueStateError, match=says):
        _hotpath.check_queue(scene.ring.memory, 1)


async def refused(scene, says):
    before = bytes(scene.ring.view)
    with pytest.raises(_hotpath.QueueStateError, match=says):
        scene.kill()
    assert bytes(memoryview(scene.ring.view)) == before


@pytest.mark.parametrize(
    "positions",
    [
        {"submitted": 0},
        {"sq_rung": 3},
        {"submitted": 100},
        {"reaped": 3},
        {"reaped": 1},
        {"cq_rung": 1},
    ],
)
async def test_invalid_positions_are_refused_and_nothing_is_changed(scene, positions):
    await scene.send(scene.read(1), scene.read(2))
    scene.poke(**positions)
    await refused(scene, "are inconsistent|but the rings have")


async def test_invalid_trackers_are_refused(scene):
    await scene.send(scene.read(1), scene.read(2))
    scene.state(0, 77)
    await refused(scene, "state 77")


async def test_data_outside_the_pool_is_refused(scene):
    await scene.send(scene.read(1), scene.read(2))
    struct.pack_into("<Q", scene.ring.view, scene.tracker(1) + 88, 1 << 40)
    await refused(scene, "beyond the end of the pool")


async def test_a_page_with_two_owners_is_refused(scene):
    await scene.send(scene.read(1), scene.read(2))
    view, entry = scene.ring.view, scene.ring.sq_offset - scene.ring.base + 64
    first, second = scene.tracker(0), scene.tracker(1)
    view[second + 88 : second + 96] = view[first + 88 : first + 96]
    view[second + 24 : second + 32] = view[first + 24 : first + 32]
    view[entry + 24 : entry + 32] = view[first + 24 : first + 32]
    await refused(scene, "the same bounce page")


async def test_a_frozen_queue_pair_does_not_touch_the_pool(scene):
    await scene.send(scene.read(1), scene.read(2), scene.write(3, payload(1)))
    first, second, third = scene.ring.fetch()
    scene.ring.post(scene.ring.cid(first))
    _hotpath.freeze(scene.ring.qp)
    await scene.send()
    assert scene.tasks[0].done()
    image = bytes(scene.ring.view)
    doorbells = scene.ring.doorbells.read64(0)
    # Everything that may still happen in this process: a late poll, a cancellation, the watchdog's
    # tick, a new request.
    scene.ring.post(scene.ring.cid(second))
    posted = bytes(scene.ring.view)
    scene.tasks[1].cancel()
    await scene.send(scene.read(9))
    scene.ring.qp.tick()
    scene.ring.qp.reap()
    scene.ring.qp.flush()
    assert bytes(scene.ring.view) == posted != image
    assert scene.ring.doorbells.read64(0) == doorbells
    _hotpath.thaw(scene.ring.qp)
    scene.ring.qp.hold(False)
    await scene.send()
    scene.ring.post(scene.ring.cid(third))
    scene.ring.qp.reap()
    await scene.send()
    assert scene.tasks[2].done()
    assert len(scene.ring.fetch()) == 1


async def test_waiters_learn_that_the_queue_pair_was_handed_over(scene):
    scene.ring.qp.hold(False)
    await scene.send(*(scene.read(i) for i in range(9)))
    _hotpath.freeze(scene.ring.qp)
    image = bytes(scene.ring.view)
    scene.ring.view.release()
    scene.ring.pool.detach()
    sent, unsent = HandedOver("sent"), HandedOver("unsent")
    lent = _hotpath.hand_over(scene.ring.qp, sent, unsent)
    assert lent == []
    results = await asyncio.gather(*scene.tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["sent"] * 7 + ["unsent"] * 2
    with pytest.raises(HandedOver):
        await scene.read(1)
    scene.ring.view = memoryview(b"")
    pool = Pool.attach(scene.ring.pool.fd)
    memory = pool.claim(next(slot.offset for slot in pool.slots() if slot.owner == "queue"))
    assert bytes(memory) == image
    memory.free()
    pool.close()
