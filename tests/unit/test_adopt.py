"""A successor continues with a queue pair whose owner was killed between any two stores.

Kill points are created by setting the positions and trackers to their values at that instruction
(queue.h describes the order of the stores).
"""

from __future__ import annotations

import asyncio
import struct

from ring_controller import RingController
from succession import POSITIONS, Successor, payload

from nvme_async.errors import CommandError, LbaOutOfRange
from nvme_async.native import _hotpath
from nvme_async.native._placement import HostMemory
from nvme_async.spec import commands

FREE, ARMED, DONE = 0, 1, 2
"""Offsets in the header (layout.h)."""


async def test_commands_in_flight_complete_at_the_successor_with_status_and_data(scene):
    await scene.send(scene.read(7, tag=70), scene.write(8, payload(8), tag=80), scene.read(9, tag=90))
    sent = scene.ring.fetch()
    successor = scene.kill()
    adopted = successor.adopt()
    assert [(one.tag, one.sent, one.finished, one.status) for one in adopted] == [
        (70, True, False, None),
        (80, True, False, None),
        (90, True, False, None),
    ]
    assert successor.data(sent[1], 4096) == payload(8)
    successor.fill(sent[0], payload(0x77))
    successor.post(successor.cid(sent[2]), status=0x80)
    successor.post(successor.cid(sent[0]))
    successor.post(successor.cid(sent[1]))
    successor.qp.reap()
    assert [one.tag for one in successor.finished] == [90, 70, 80]
    assert adopted[0].data == payload(0x77)
    assert adopted[0].status == 0
    assert adopted[1].data is None
    assert isinstance(adopted[2].error, LbaOutOfRange)
    assert adopted[2].status == 0x80
    assert successor.bounce.n_taken == 0


async def test_pages_of_commands_in_flight_are_not_given_to_new_ones(scene):
    """Hazard 1: bounce pages and PRP lists are the command's until it completes."""
    await scene.send(*(scene.read(i, 16384) for i in range(3)))
    sent = scene.ring.fetch()
    owned = {piece for sqe in sent for piece, _ in scene.ring.walk(sqe, 16384)}
    lists = {struct.unpack_from("<Q", sqe, 32)[0] for sqe in sent}
    before = {at: scene.ring.read(at, 64) for at in lists}
    successor = scene.kill()
    successor.adopt()
    scene.ring = successor
    await scene.send(*(scene.read(100 + i, 16384) for i in range(3)))
    new = successor.fetch()
    assert len(new) == 3
    assert not owned & {piece for sqe in new for piece, _ in successor.walk(sqe, 16384)}
    assert not lists & {struct.unpack_from("<Q", sqe, 32)[0] for sqe in new}
    assert {at: successor.read(at, 64) for at in lists} == before
    scene.ring = successor.old


async def test_a_command_recorded_but_not_delivered_is_found_with_its_data(scene):
    """Killed between `tracker.state = DONE` and delivery."""
    await scene.send(scene.read(1, tag=5))
    (sqe,) = scene.ring.fetch()
    scene.ring.fill(sqe, payload(3))
    scene.ring.post(scene.ring.cid(sqe))
    scene.state(0, DONE)
    scene.poke(reaped=1)
    successor = scene.kill()
    (adopted,) = successor.adopt()
    assert adopted.finished
    assert adopted.sent
    assert adopted.status == 0
    assert adopted.data == payload(3)
    assert successor.bounce.n_taken == 0
    assert successor.qp.n_free == 7


async def test_a_completion_recorded_before_the_position_is_taken_once(scene):
    """Killed between `tracker.state = DONE` and `header.reaped`."""
    await scene.send(scene.read(1, tag=5), scene.read(2, tag=6))
    first, second = scene.ring.fetch()
    scene.ring.post(scene.ring.cid(first))
    scene.state(0, DONE)
    scene.ring.post(scene.ring.cid(second))
    successor = scene.kill()
    assert successor.found["done"] == 1
    assert successor.found["in_flight"] == 1
    adopted = successor.adopt()
    assert [one.tag for one in adopted] == [5, 6]
    assert all(one.finished for one in adopted)
    assert scene.position("reaped") == 2
    assert not successor.strays
    assert successor.doorbells.read32(4) == 2


async def test_a_command_that_never_reached_the_ring_is_reported_as_never_sent(scene):
    """Killed between `tracker.state = ARMED` and `header.submitted`."""
    await scene.send(scene.read(1, tag=5), scene.write(2, payload(1), tag=6))
    (first, _) = scene.ring.fetch()
    scene.doorbells = scene.ring.doorbells
    scene.ring.doorbells.write32(0, 1)
    scene.ring.sq_head = 1
    scene.poke(submitted=1, sq_ringing=1, sq_rung=1)
    successor = scene.kill()
    assert successor.found["unsent"] == 1
    adopted = successor.adopt()
    assert [(one.tag, one.sent, one.finished) for one in adopted] == [(5, True, False), (6, False, True)]
    assert adopted[1].status is None
    assert successor.qp.n_free == 6
    assert successor.bounce.n_taken == 1
    assert successor.fetch() == []
    successor.post(successor.cid(first))
    successor.qp.reap()
    assert [one.tag for one in successor.finished] == [5]


async def test_command_ids_continue_after_a_takeover(scene):
    """A late completion of an old command must not be mistaken for a new one's."""
    used = set()
    for i in range(5):
        await scene.send(scene.read(i))
        (sqe,) = scene.ring.fetch()
        used.add(scene.ring.cid(sqe))
        scene.ring.post(scene.ring.cid(sqe))
        scene.ring.qp.reap()
    successor = scene.kill()
    successor.adopt()
    scene.ring = successor
    await scene.send(*(scene.read(i) for i in range(7)))
    assert not used & {successor.cid(sqe) for sqe in successor.fetch()}
    scene.ring = successor.old


async def test_positions_and_phase_continue_after_many_rounds(scene):
    for i in range(29):
        await scene.send(scene.read(i))
        (sqe,) = scene.ring.fetch()
        scene.ring.post(scene.ring.cid(sqe))
        scene.ring.qp.reap()
    successor = scene.kill()
    successor.adopt()
    scene.ring = successor
    for i in range(21):
        await scene.send(scene.read(i))
        (sqe,) = successor.fetch()
        successor.post(successor.cid(sqe))
        assert successor.qp.reap() == 1
    assert scene.position("reaped") == 50
    scene.ring = successor.old


async def test_an_outstanding_event_request_is_passed_on_and_not_reported(scene):
    scene.ring.close()
    scene.ring = RingController(scene.loop, entries=8, max_transfer=65536, qid=0)
    await scene.send(scene.ring.qp.request(commands.async_event_request().pack(), internal=True), scene.read(1, tag=4))
    event, _ = scene.ring.fetch()
    successor = scene.kill()
    (adopted,) = successor.adopt()
    assert adopted.tag == 4
    (request,) = successor.events
    task = asyncio.ensure_future(request)
    await asyncio.sleep(0)
    successor.post(successor.cid(event), dw0=0x00040002)
    successor.qp.reap()
    assert await task == (0x00040002, 0, None)


async def test_a_recorded_event_is_not_lost(scene):
    scene.ring.close()
    scene.ring = RingController(scene.loop, entries=8, max_transfer=65536, qid=0)
    await scene.send(scene.ring.qp.request(commands.async_event_request().pack(), internal=True))
    (event,) = scene.ring.fetch()
    scene.ring.post(scene.ring.cid(event), dw0=0x00040002)
    scene.state(0, DONE)
    struct.pack_into("<I", scene.ring.view, scene.tracker(0) + 104, 0x00040002)
    scene.seal(0)
    scene.poke(reaped=1)
    successor = scene.kill()
    assert successor.adopt() == []
    (request,) = successor.events
    assert await request == (0x00040002, 0, None)


async def test_a_second_successor_adopts_the_firsts_adopted_commands(scene):
    await scene.send(scene.read(1, tag=1), scene.read(2, tag=2))
    first, second = scene.ring.fetch()
    successor = scene.kill()
    successor.adopt()
    successor.post(successor.cid(first))
    successor.qp.reap()
    successor.pool.detach()
    third = Successor(successor, scene.loop)
    scene.successor = third
    (adopted,) = third.adopt()
    assert adopted.tag == 2
    third.post(third.cid(second))
    third.qp.reap()
    assert third.finished == [adopted]
    _hotpath.hand_over(successor.qp, RuntimeError(), RuntimeError())
    successor.view.release()


async def test_a_command_whose_place_only_its_list_knew_is_never_sent_again(scene):
    """A reset clears the list; also when the controller hasn't seen the command yet, so that the
    reset is no attempt of it.
    """
    memory = HostMemory(16384)
    scene.ring.address_map.add(memory.iova, 16384, 1 << 50)
    await scene.send(scene.ring.qp.request(commands.read(1, 0, 32).pack(), memory, to_host=True, tag=9))
    successor = scene.kill()
    (adopted,) = successor.adopt()
    successor.qp.silence(True)
    for name in ("sq_ringing", "sq_rung"):
        struct.pack_into("<Q", successor.view, POSITIONS[name], 0)
    successor.phase, successor.cq_tail, successor.sq_head = 1, 0, 0
    assert successor.qp.restart(frozenset({2}), CommandError(0, 7), 1) == 0
    assert successor.qp.n_outstanding == 0
    assert adopted.finished
    assert isinstance(adopted.error, CommandError)
