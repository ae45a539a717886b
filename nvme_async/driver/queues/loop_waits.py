"""What the queue pairs of one event loop have in common while they wait: their interrupts, and one
timer for all their early polls.

Threads: everything here belongs to the loop's thread, or to any once the loop has ended; of() may
be called from any.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable

from nvme_async.native import _hotpath

log: logging.Logger = logging.getLogger("nvme_async")

# While commands are in flight and a coroutine sleeps, the ring is polled early, in case the
# interrupt does not come: so many seconds after the last completion, each counted from the previous
# poll, the last one repeatedly.
EARLY_POLLS = (0.001, 0.004, 0.016, 0.064, 0.256, 1.0)
# The loop itself reads so many eventfds at most: for one or a few that is cheaper.
DIRECT = 4


class LoopWaits:
    """One for each event loop that has queue pairs; see of().

    native: its native half, which the queue pairs refer to.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.native = _hotpath.SharedWaits(EARLY_POLLS)
        self._read: dict[int, _hotpath.QueuePair] = {}  # by eventfd
        self._on_early: dict[_hotpath.QueuePair, Callable[[bool], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._direct = False  # there is no descriptor to collect them

    # -- interrupts

    def read(self, fd: int, hot: _hotpath.QueuePair) -> None:
        """What the eventfd signals are interrupts of this queue pair. Does nothing more for one
        that is read already.
        """
        self._read[fd] = hot
        if self.native.is_open:
            try:
                self.native.add(fd, hot)
                return
            except OSError as error:
                log.warning("event loop: an interrupt is not collected with others: %s", error)
        elif len(self._read) > DIRECT and not self._direct and self._collect():
            return
        self.loop.add_reader(fd, hot.on_interrupt)

    def _collect(self) -> bool:
        """From now on the loop reads one descriptor that stands for all eventfds."""
        try:
            collected = self.native.open()
            for fd, hot in self._read.items():
                self.native.add(fd, hot)
        except OSError as error:
            log.warning("event loop: interrupts are not collected: %s", error)
            self._direct = True
            self._end_collection()
            return False
        self.loop.add_reader(collected, self.native.take)
        for fd in self._read:
            self.loop.remove_reader(fd)
        return True

    def _end_collection(self) -> None:
        if self.native.is_open:
            if not self.loop.is_closed():
                self.loop.remove_reader(self.native.open())
            for fd in self._read:
                self.native.remove(fd)
            self.native.close()

    def stop_reading(self, fd: int) -> None:
        """Does nothing for one that isn't read. Before the eventfd is closed."""
        if self._read.pop(fd, None) is None:
            return
        self.native.remove(fd)
        if not self.loop.is_closed():
            self.loop.remove_reader(fd)
        if not self._read:
            self._end_collection()

    # -- early polls

    def guard(self, hot: _hotpath.QueuePair, on_early: Callable[[bool], None]) -> None:
        """Early polls of this queue pair begin (anew), and go on until no command is in flight.
        They cost one timer of the loop per millisecond while there are sleeps, for all queue pairs
        together, and nothing per I/O.

        on_early(missed): one has found completions whose interrupt didn't come; or, not missed,
        there were none for as long as early polls are apart at most.
        """
        if hot.closed or self.loop.is_closed():
            return
        self._on_early[hot] = on_early
        self._plan(self.native.guard(hot))

    def forget(self, hot: _hotpath.QueuePair) -> None:
        """Ends the early polls of this queue pair."""
        self.native.forget(hot)
        self._on_early.pop(hot, None)
        if not self._on_early and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self, seconds: float) -> None:
        when = self.loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._poll_early)

    def _poll_early(self) -> None:
        self._timer = None
        notable: list[tuple[_hotpath.QueuePair, bool]] = []
        seconds: float | None = EARLY_POLLS[0]
        try:
            seconds, notable = self.native.poll_early()
        finally:
            if seconds is not None:
                self._plan(seconds)
            for hot, missed in notable:
                on_early = self._on_early.get(hot)
                if on_early is not None:
                    on_early(missed)


_waits: weakref.WeakValueDictionary[int, LoopWaits] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _after_fork() -> None:
    """In a child: another thread of the parent may have had the lock."""
    global _lock, _waits
    _lock, _waits = threading.Lock(), weakref.WeakValueDictionary()


os.register_at_fork(after_in_child=_after_fork)


def of(loop: asyncio.AbstractEventLoop) -> LoopWaits:
    """The loop's, which lives as long as something refers to it. From any thread."""
    with _lock:
        waits = _waits.get(id(loop))
        if waits is None:
            waits = _waits[id(loop)] = LoopWaits(loop)
        return waits
