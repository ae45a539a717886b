"""The states of a controller, and the only function that changes them.

    new ──► ready ◄──► resetting          brought up or restored; reset, and back
             │  ▲          │
             │  └──────► saving ──► handed over
             │             │
             └──► failed ◄─┘              from every state that isn't final or on its way there
                    │
                    ▼
    every other ► closing ──► closed

`ready` is entered when the driver itself no longer waits for anything: bring-up and reset stay in
their state until the rescan has finished or failed within its limit. The holder of the controller's
lock awaits only operations with their own limit, never one that a recovery would have to end,
because the recovery needs the lock.

On the controller's home loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import StrEnum

from nvme_async.errors import NvmeError


class State(StrEnum):
    """The state of a controller. Compares equal to its text, and prints as it."""

    NEW = "new"
    """Being brought up."""
    READY = "ready"
    """Takes commands."""
    RESETTING = "resetting"
    """Is being reset; commands wait."""
    SAVING = "saving"
    """Frozen for a successor; commands wait."""
    FAILED = "failed"
    """Failed; `failure` has the reason. Memory stays owned until close()."""
    CLOSING = "closing"
    """Is being shut down."""
    CLOSED = "closed"
    """Everything is released."""
    HANDED_OVER = "handed over"
    """A successor has it."""


_NEXT: Mapping[State, frozenset[State]] = {
    State.NEW: frozenset({State.READY, State.FAILED, State.CLOSING}),
    State.READY: frozenset({State.RESETTING, State.SAVING, State.FAILED, State.CLOSING}),
    State.RESETTING: frozenset({State.READY, State.FAILED}),
    State.SAVING: frozenset({State.READY, State.FAILED, State.HANDED_OVER}),
    # Also to a successor: it may have failed here while the successor took it.
    State.FAILED: frozenset({State.CLOSING, State.HANDED_OVER}),
    # An operation whose task is cancelled starts again: see runtime.tasks.finish().
    State.CLOSING: frozenset({State.CLOSING, State.CLOSED}),
    State.CLOSED: frozenset(),
    State.HANDED_OVER: frozenset({State.HANDED_OVER}),
}

TRANSIENT = frozenset({State.RESETTING, State.SAVING})
"""Commands wait for the end of these."""
FINAL = frozenset({State.CLOSED, State.HANDED_OVER})
ENDING = FINAL | {State.CLOSING}


class Lifecycle:
    """Attributes:
    state: where the controller is.
    failure: why it failed; None if it has not.
    closing: its owner has requested the end; a waiting reset is not started any more.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._state = State.NEW
        self.failure: NvmeError | None = None
        self.closing = False
        self._changed: asyncio.Future[None] | None = None

    @property
    def state(self) -> State:
        return self._state

    def to(self, state: State) -> None:
        """The transition to `state`. RuntimeError for one that isn't in the diagram."""
        if state not in _NEXT[self._state]:
            raise RuntimeError(f"{self._uri}: a controller that is {self._state} can't become {state}")
        self._enter(state)

    def fail(self, error: NvmeError) -> bool:
        """To `failed`, unless the controller is there already or on its way to the end; then
        False.
        """
        if State.FAILED not in _NEXT[self._state]:
            return False
        self.failure = error
        self._enter(State.FAILED)
        return True

    def disown(self, reason: NvmeError) -> None:
        """In a forked child: the controller belongs to the parent, regardless of its state."""
        self.failure = reason
        self._changed = None  # a future of the parent's loop
        self._state = State.CLOSED

    def orphan(self, error: NvmeError) -> None:
        """The home loop has ended, and so have all waiters on it."""
        self._changed = None
        if self._state not in ENDING:
            self.failure = error
            self._state = State.FAILED

    def _enter(self, state: State) -> None:
        self._state = state
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    async def settled(self) -> State:
        """Returns the state once it isn't one in which commands wait. Bounded by the limits of
        reset and save.
        """
        while self._state in TRANSIENT:
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._changed])
        return self._state
