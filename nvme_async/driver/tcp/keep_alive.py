"""Keep Alive (Base 2.0, 3.9 and 5.18): the controller ends an association without Keep Alive,
and so does the host.
"""

from __future__ import annotations

import asyncio

from nvme_async.driver.tcp.queues import TcpQueue
from nvme_async.driver.transport import Owner
from nvme_async.errors import NvmeError
from nvme_async.spec.commands import keep_alive


class KeepAlive:
    """Three within each timeout, so that one may be late on a busy loop.

    sent: the total number.
    """

    sent: int

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.sent = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, queue: TcpQueue, owner: Owner) -> None:
        """On the home loop. The association is enabled."""
        self.stop()
        if self.seconds:
            self._task = owner.loop.create_task(self._run(queue, owner), name=f"{owner.uri} Keep Alive")

    def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None and not task.get_loop().is_closed():
            task.cancel()

    async def _run(self, queue: TcpQueue, owner: Owner) -> None:
        while True:
            await asyncio.sleep(self.seconds / 3)
            try:
                async with asyncio.timeout(self.seconds):
                    await queue.submit(keep_alive(), internal=True)
            except (NvmeError, TimeoutError) as error:
                owner._request_reset(f"Keep Alive: {str(error) or f'no answer for {self.seconds:g} s'}")
                return
            self.sent += 1
