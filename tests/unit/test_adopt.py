"""A successor goes on with a queue pair whose owner was killed between any two stores.

Kill points are made by setting the positions and trackers to what they are at that instruction
(queue.h tells the order of the stores).
"""

from __future__ import annotations

import asyncio
import struct

import pytest
from ring_controller import RingController
from tracker_sum import tracker_sum

from nvme_async.dma import Pool
from nvme_async.driver.completions import error_from
from nvme_async.errors import HandedOver, LbaOutOfRange
from nvme_async.native import _hotpath
from nvme_async.native._hotpath import AddressMap, BounceCache, QueuePair
from nvme_async.spec import commands

FREE, ARMED, DONE = 0, 1, 2
SUBMITTED, SQ_RINGING, SQ_RUNG, REAPED, CQ_RINGING, CQ_RUNG = range(128, 176, 8)
FLUSH = commands.flush(1).pack()


class Successor(RingController):
    """Takes the queue pair of `old` from its pool. The controller's side (doorbells, heads) is the
    same controller's.
    """

    def __init__(self, old: RingController, loop) -> None:
        self.__dict__.update(
            {name: getattr(old, name) for name in ("doorbells", "qid", "entries", "sq_head", "cq_tail", "phase")}
        )
        self.old = old
        self.pool = Pool.attach(old.pool.fd)
        self.address_map = AddressMap()
        self.address_map.add(self.pool.address, self.pool.nbytes, self.pool.iova, True)
        self.bounce = BounceCache(lambda nbytes, tag: self.pool.alloc(nbytes, owner="bounce", tag=tag))
        self.memory = self.pool.claim(old.memory.offset)
        facts = _hotpath.check_queue(self.memory, old.qid)
        self.strays = []
        self.qp = QueuePair(
            self.memory,
            **facts,
            max_transfer=old.qp.max_transfer,
            address_map=self.address_map,
            bounce=self.bounce,
            create_future=loop.create_future,
            call_soon=loop.call_soon,
            command_error=error_from,
            on_stray=lambda *stray: self.strays.append(stray),
            attach=True,
        )
        self.qp.mode = 1
        self.qp.set_doorbells(self.doorbells, 0, 4)
        self.found = _hotpath.look_at_queue(self.qp)
        for slot in self.pool.slots():
            if slot.owner == "bounce":
                count = slot.nbytes // (4096 << slot.tag)
                self.bounce.add_chunk(self.pool.claim(slot.offset), slot.tag, count, set(self.found["bounce"]))
        self.finished = []
        self.view = memoryview(self.memory)

    def adopt(self):
        commands, _, self.events = _hotpath.adopt(self.qp, _hotpath.AdoptedCommand, self.finished.append, FLUSH)
        self.qp.hold(False)
        return commands

    def close(self):
        super().close()
        self.old.view.release()


class Scene:
    """A ring, and whoever succeeds."""

    def __init__(self, **options) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks: list[asyncio.Task] = []
        self.ring = RingController(self.loop, **({"entries": 8, "max_transfer": 65536} | options))
        self.successor: Successor | None = None

    async def send(self, *requests):
        for request in requests:
            self.tasks.append(asyncio.ensure_future(request))
        for _ in range(4):
            await asyncio.sleep(0)

    def read(self, lba=0, nbytes=4096, tag=0):
        return self.ring.qp.request(
            commands.read(1, lba, max(1, nbytes // 512)).pack(), read_nbytes=nbytes, to_host=True, tag=tag
        )

    def write(self, lba, data, tag=0):
        return self.ring.qp.request(commands.write(1, lba, len(data) // 512).pack(), data, tag=tag)

    def poke(self, **positions):
        for name, value in positions.items():
            struct.pack_into("<Q", self.ring.view, globals()[name.upper()], value)

    def position(self, name):
        view = self.successor.view if self.successor else self.ring.view
        return struct.unpack_from("<Q", view, globals()[name.upper()])[0]

    def tracker(self, slot):
        return struct.unpack_from("<QQQQII", self.ring.view, 24)[2] + slot * 128

    def state(self, slot, value=None):
        at = self.tracker(slot) + 64
        if value is not None:
            struct.pack_into("<I", self.ring.view, at, value)
        return struct.unpack_from("<I", self.ring.view, at)[0]

    def seal(self, slot):
        """The tracker's checksum is right again after it was changed."""
        at = self.tracker(slot)
        struct.pack_into("<H", self.ring.view, at + 102, tracker_sum(bytes(self.ring.view[at : at + 128])))

    def kill(self):
        """The owner is no more. (Its objects stay, for the tests' process lives on; they touch the
        pool no more.)
        """
        self.ring.pool.detach()
        self.successor = Successor(self.ring, self.loop)
        return self.successor

    async def close(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.successor is not None:
            self.successor.close()
        if self.ring.pool.detached:
            _hotpath.hand_over(self.ring.qp, RuntimeError("killed"), RuntimeError("killed"))
        else:
            self.ring.close()


@pytest.fixture
async def scene():
    scene = Scene()
    yield scene
    await scene.close()


def payload(byte):
    return bytes([byte]) * 4096


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


async def test_an_unrung_tail_is_rung(scene):
    """Hazard 2: otherwise whoever waits for these commands waits for ever."""
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
    harmless command goes along.
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


async def test_a_doorbell_noted_after_its_completions_is_accepted(scene):
    """Where doorbells are messages, completions may be taken before the message's answer is noted."""
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
    with pytest.raises(_hotpath.QueueStateError, match="0 commands wait for their doorbell, but the ring says 2"):
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
    """Nothing more could come otherwise."""
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


async def test_command_ids_continue_after_a_takeover(scene):
    """A late completion of an old command must not be taken for a new one's."""
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


@pytest.mark.parametrize(
    ("at", "fmt", "value", "says"),
    [
        (0, "<I", 0, "no queue pair"),
        (4, "<I", 2, "version"),
        (8, "<H", 3, "queue 3"),
        (12, "<I", 1, "make no sense"),
        (16, "<I", 8, "make no sense"),
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
    await refused(scene, "make no sense|but the rings say")


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
    # Everything that may still happen in this process: a late look, a cancellation, the watchdog's
    # tick, a newcomer.
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
