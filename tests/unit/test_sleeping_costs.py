"""What the event loop is asked for by a command that is slept for."""

import asyncio

import pytest
from ring_controller import RingController, flush


class Asked:
    """The part of a loop that a queue pair uses, which counts the callbacks."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.create_future = self.loop.create_future
        self.callbacks = []

    def call_soon(self, callback):
        self.callbacks.append(callback)
        return self.loop.call_soon(callback)


@pytest.mark.parametrize("mode", ["interrupt", "adaptive", "hybrid"])
async def test_a_lone_command_needs_no_callback_of_the_loop(mode):
    """One would be an iteration of the loop more, with its system call, for each I/O."""
    loop = Asked()
    ring = RingController(loop, mode=mode)
    ring.qp.spin_ns = 0

    async def command():
        task = asyncio.create_task(ring.qp.request(flush()))
        for _ in range(10):  # more than it waits without a Future
            await asyncio.sleep(0)
        (sqe,) = ring.fetch()
        ring.post(ring.cid(sqe))
        ring.qp.more()
        await asyncio.wait_for(task, 10)

    for _ in range(8):  # until it has learnt that a few iterations are not enough
        await command()
    loop.callbacks.clear()
    await command()
    assert loop.callbacks == []
    ring.close()
