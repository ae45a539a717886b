"""Waiting for abandoned commands.

NVMe does not order commands in flight at the same time (Base 2.0, 3.3.2), and a sent command can't
be recalled: Abort is best effort. So a write whose caller was cancelled, or got a CommandTimeout,
may still reach the media, also after a newer write to the same blocks was acknowledged.
"""

from __future__ import annotations

import asyncio

from nvme_async.driver.context import ControllerContext
from nvme_async.driver.lifecycle import State
from nvme_async.driver.transport import CommandQueue

# Seconds between polls of a queue pair whose loop doesn't run; the last one repeatedly.
_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
# The same while its loop runs, and reports by itself.
_CHECK = 1.0


async def settled(controller: ControllerContext, nsid: int, lba: int, blocks: int) -> None:
    """Returns once the controller has no command of this process that was abandoned before this
    call and may change one of these blocks. Raises the exception of _not_here() if they belong
    to another process meanwhile.
    """
    known = controller.transport.queues.with_commands()
    await asyncio.gather(*(_settled(controller, queue, nsid, lba, blocks) for queue in known))


async def _settled(controller: ControllerContext, queue: CommandQueue, nsid: int, lba: int, blocks: int) -> None:
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()

    def report() -> None:
        """In the thread of the queue pair's loop, or of the controller's home."""
        if not loop.is_closed():
            loop.call_soon_threadsafe(gone.set)

    def begin() -> bool:
        cids = queue.left_behind(nsid, lba, blocks)
        if cids:
            queue.when_gone(cids, report)
        return bool(cids)

    if not await controller._on_owner(queue, begin):
        return
    pauses = iter(_PAUSES)
    while not gone.is_set():
        running = queue.loop.is_running()
        pause = _CHECK if running else next(pauses, _PAUSES[-1])
        try:
            async with asyncio.timeout(pause):
                await gone.wait()
        except TimeoutError:
            if queue.closed:
                break
            if not running:
                await controller._on_owner(queue, queue.poll)
    if controller.state is State.HANDED_OVER:
        raise controller._not_here()
