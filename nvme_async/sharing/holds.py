"""A worker holds its I/O while an admin command of another process changes namespaces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from nvme_async.driver.context import ControllerContext
from nvme_async.driver.lifecycle import ENDING
from nvme_async.errors import NvmeError
from nvme_async.sharing.channel import Channel
from nvme_async.sharing.leased_queues import LeasedQueues
from nvme_async.sharing.protocol import Message

log: logging.Logger = logging.getLogger("nvme_async")

DRAIN_SECONDS = 60.0
REASON = "owner"


class Worker(Protocol):
    uri: str
    queues: LeasedQueues
    _owner: ControllerContext
    _channel: Channel

    def _spawn(self, work: Callable[[], Any], name: str) -> None: ...


class Holds:
    """Obeys the owner's notices "hold" and "unhold". On the controller's home loop.

    What the latest notice says applies: the end of a hold takes a while, because everything is read
    again, and the next hold may begin meanwhile.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._notices = 0

    def begin(self, number: int) -> None:
        """Nothing is sent until the end of the hold; confirms that once no I/O is in flight."""
        self._notices += 1
        notice = self._notices
        self._worker._spawn(lambda: self._hold(number, notice), "hold")

    def end(self) -> None:
        """I/O goes on, once everything is known that the command may have changed."""
        self._notices += 1
        notice = self._notices
        self._worker._spawn(lambda: self._unhold(notice), "end of a hold")

    def again(self, answer: Message) -> bool:
        """After notices may have been missed: what the owner says on "attach". False if it says
        nothing.
        """
        if answer.body.get("hold"):
            self.begin(answer.number("hold"))
        elif self._worker.queues.holds_for(REASON):
            self.end()
        else:
            return False
        return True

    async def _hold(self, number: int, notice: int) -> None:
        worker = self._worker
        if await worker._owner.lifecycle.settled() in ENDING:
            return  # a successor has the lease, and this notice
        if notice != self._notices:
            return
        try:
            await worker.queues.hold(REASON)
            if await worker.queues.drain(DRAIN_SECONDS) and notice == self._notices:
                worker._channel.send("held", {"hold": number})
        except NvmeError as error:
            log.warning("%s: %s", worker.uri, error)

    async def _unhold(self, notice: int) -> None:
        worker = self._worker
        if await worker._owner.lifecycle.settled() in ENDING:
            return
        try:
            await worker._owner._read_again()
        finally:
            # What was read may be as it was before the command that the next hold is for.
            if notice == self._notices:
                await worker.queues.unhold(REASON)
