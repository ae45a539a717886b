"""A queue pair that is frozen from another thread than its own, which holds the GIL: no command is
posted afterwards and no doorbell rung, and nothing of the loop is touched.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from typing import Any

import pytest
from succession import POSITIONS, Scene, payload

from nvme_async.errors import CommandError, HandedOver, QueueShutdown
from nvme_async.native import _hotpath


class Slow:
    """A pool whose alloc() is another one."""

    def __init__(self, pool: Any, alloc: Any) -> None:
        self._pool, self.alloc = pool, alloc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


def remotely(qp: _hotpath.QueuePair) -> bool:
    """freeze_remotely() in another thread, while this one waits."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(_hotpath.freeze_remotely(qp)))
    thread.start()
    thread.join()
    return found[0]


async def test_nothing_is_written_after_a_remote_freeze_of_a_busy_queue_pair(scene: Scene) -> None:
    qp = scene.ring.qp
    await scene.send(scene.read(1), scene.read(2), scene.write(3, payload(1)), scene.read(4))
    first, second, third, _ = scene.ring.fetch()
    scene.ring.post(scene.ring.cid(first))
    assert remotely(qp)
    await scene.send()
    assert not scene.tasks[0].done()  # its waiter belongs to the loop; the completion is left
    image, doorbells = bytes(scene.ring.view), scene.ring.doorbells.read64(0)
    scene.tasks[1].cancel()
    await scene.send(scene.read(9))
    qp.tick()
    qp.reap()
    qp.flush()
    qp.more()
    qp.early_poll(True)
    qp.on_interrupt()
    qp.hold(False)
    qp.go_on()
    await scene.send()
    assert bytes(scene.ring.view) == image
    assert scene.ring.doorbells.read64(0) == doorbells
    _hotpath.thaw(qp)
    qp.hold(False)
    await scene.send()
    assert scene.tasks[0].done()
    scene.ring.post(scene.ring.cid(second))
    scene.ring.post(scene.ring.cid(third))
    qp.reap()
    await scene.send()
    assert scene.tasks[2].done()
    assert [struct.unpack_from("<Q", sqe, 40)[0] for sqe in scene.ring.fetch()] == [9]


async def test_posted_commands_are_rung_by_a_remote_freeze(scene: Scene) -> None:
    """Their loop has not come to it yet; a successor would not know whether to."""
    one, two = scene.read(1), scene.read(2)
    for request in (one, two):  # without an iteration of the loop, in which they would be rung
        request.send(None)
    assert remotely(scene.ring.qp)
    assert len(scene.ring.fetch()) == 2
    commands = scene.kill().adopt()
    assert [command.sent for command in commands] == [True, True]
    one.close()
    two.close()


async def test_a_queue_pair_that_gets_a_bounce_page_is_not_frozen_remotely(scene: Scene) -> None:
    """The pool clears pages without the GIL, and the command is posted right after."""
    frozen: list[bool] = []
    alloc = scene.ring.pool.alloc

    def slowly(*arguments: Any, **options: Any) -> Any:
        frozen.append(remotely(scene.ring.qp))
        return alloc(*arguments, **options)

    scene.ring.pool = Slow(scene.ring.pool, slowly)
    await scene.send(scene.read(1))
    assert frozen == [False]
    assert len(scene.ring.fetch()) == 1
    assert remotely(scene.ring.qp)
    _hotpath.thaw(scene.ring.qp)


async def test_a_queue_pair_is_not_frozen_remotely_during_delivery(scene: Scene) -> None:
    """What has been reaped and not delivered would be neither this process's nor a successor's."""
    await scene.send(scene.read(1), scene.read(2))
    sent = scene.ring.fetch()
    successor = scene.kill()
    frozen: list[bool] = []
    _, _, _ = _hotpath.adopt(
        successor.qp, _hotpath.AdoptedCommand, lambda command: frozen.append(remotely(successor.qp)), None
    )
    for sqe in sent:
        successor.post(successor.cid(sqe))
    successor.qp.reap()
    assert frozen == [False, False]
    assert remotely(successor.qp)
    _hotpath.thaw(successor.qp)


async def test_a_queue_pair_is_not_frozen_remotely_between_the_halves_of_a_fused_operation(scene: Scene) -> None:
    """The second one would be posted after the save."""
    qp = scene.ring.qp
    frozen: list[bool] = []

    def call_soon(callback: object, *arguments: object) -> object:
        frozen.append(remotely(qp))
        return scene.loop.call_soon(callback, *arguments)  # type: ignore[arg-type]

    _hotpath.rebind(qp, scene.loop.create_future, call_soon, None)
    qp.on_busy, qp.watched = lambda: None, False
    assert _hotpath.turn_for_fused(qp) is None
    assert _hotpath.turn_for_fused(qp) is None
    first, second = scene.read(1), scene.read(2)
    assert _hotpath.send_fused(qp, first, second) is None
    assert frozen[0] is False
    await scene.send(first, second)
    assert len(scene.ring.fetch()) == 2


async def test_a_queue_pair_with_a_batch_is_frozen_by_its_own_thread(scene: Scene) -> None:
    """It posts without the GIL."""
    qp = scene.ring.qp
    memory = scene.ring.pool.alloc(2 * 4096, owner="application")
    with memory:
        batch = qp.batch(2, 1, memoryview(struct.pack("<2Q", 1, 2)).cast("Q"), 8, memory, 4096, to_host=True)
        await scene.send(batch)
        assert not remotely(qp)
        for sqe in scene.ring.fetch():
            scene.ring.post(scene.ring.cid(sqe))
        qp.reap()
        await scene.send()
        assert remotely(qp)
        _hotpath.thaw(qp)


async def test_waiters_of_a_remotely_frozen_queue_pair_learn_that_it_was_handed_over(scene: Scene) -> None:
    scene.ring.qp.hold(False)
    await scene.send(*(scene.read(i) for i in range(9)))
    scene.ring.post(scene.ring.cid(scene.ring.fetch()[0]))
    assert remotely(scene.ring.qp)
    assert not _hotpath.is_at_rest(scene.ring.qp)  # its own thread does the rest
    successor = scene.kill()
    _hotpath.hand_over(scene.ring.qp, HandedOver("sent"), HandedOver("unsent"))
    outcomes = await asyncio.gather(*scene.tasks, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["sent"] * 7 + ["unsent"] * 2
    commands = successor.adopt()
    assert [command.finished for command in commands] == [True] + [False] * 6


def positions(scene: Scene) -> list[int]:
    return [scene.position(name) for name in POSITIONS]


@pytest.mark.parametrize("busy", [True, False])
async def test_the_rings_of_a_frozen_queue_pair_are_restarted_after_a_reset(scene: Scene, busy: bool) -> None:
    """Not its private copies, which are smaller: the controller was reset, so no successor has it.
    A loop that did not run when the save failed has left its queue pair frozen.
    """
    qp = scene.ring.qp
    await scene.send(scene.read(1), scene.read(2))
    if not busy:
        for sqe in scene.ring.fetch():
            scene.ring.post(scene.ring.cid(sqe))
        qp.reap()
        await scene.send()
    _hotpath.freeze(qp)
    assert positions(scene) != [0] * 6
    scene.ring.sq_head = scene.ring.cq_tail = 0
    scene.ring.phase = 1
    scene.ring.doorbells.write64(0, 0)
    assert qp.restart(frozenset({2}), CommandError(0, 7), 3) == 2 * busy
    qp.hold(False)
    qp.flush()
    assert positions(scene)[:2] == [2 * busy] * 2
    sent = scene.ring.fetch()
    assert len(sent) == 2 * busy
    for sqe in sent:
        scene.ring.post(scene.ring.cid(sqe))
    qp.reap()
    await asyncio.gather(*scene.tasks)
    assert scene.ring.strays == []


async def test_everything_of_a_frozen_queue_pair_is_released_after_a_reset(scene: Scene) -> None:
    qp = scene.ring.qp
    await scene.send(scene.read(1), scene.read(2))
    _hotpath.freeze(qp)
    qp.refuse(QueueShutdown("closed"))
    qp.fail_waiters(CommandError(0, 7))
    qp.release_all()
    assert positions(scene) == [0] * 6
    assert [scene.state(slot) & 0xFFFF for slot in range(7)] == [0] * 7
    outcomes = await asyncio.gather(*scene.tasks, return_exceptions=True)
    assert all(isinstance(outcome, CommandError) for outcome in outcomes)
    assert scene.ring.bounce.n_taken == 0
    assert not qp.n_outstanding


async def test_a_frozen_queue_pair_with_nothing_in_flight_can_be_closed(scene: Scene) -> None:
    _hotpath.freeze(scene.ring.qp)
    scene.ring.qp.close()
    assert scene.ring.qp.closed
