"""The states of a controller: valid transitions and their notifications."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from nvme_async.driver.lifecycle import TRANSIENT, Lifecycle, State
from nvme_async.errors import ControllerError, QueueShutdown

ALLOWED = {
    "new": {"ready", "failed", "closing"},
    "ready": {"resetting", "saving", "failed", "closing"},
    "resetting": {"ready", "failed"},
    "saving": {"ready", "failed", "handed over"},
    "failed": {"closing", "handed over"},
    "closing": {"closing", "closed"},
    "closed": set(),
    "handed over": {"handed over"},
}


def at(state: str) -> Lifecycle:
    lifecycle = Lifecycle("a controller")
    lifecycle._state = State(state)
    return lifecycle


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ALLOWED, ALLOWED)))
def test_every_transition(before: str, after: str) -> None:
    lifecycle = at(before)
    if after in ALLOWED[before]:
        lifecycle.to(State(after))
        assert lifecycle.state == after
    else:
        with pytest.raises(RuntimeError, match=f"a controller that is {before} can't become {after}"):
            lifecycle.to(State(after))
        assert lifecycle.state == before


def test_a_state_equals_its_text() -> None:
    assert State.HANDED_OVER == "handed over"
    assert f"{State.READY}" == "ready"
    assert State.READY in ("ready", "resetting")


@pytest.mark.parametrize("state", ALLOWED)
def test_failing_from_every_state(state: str) -> None:
    """The first reason counts, and a controller that has ended doesn't fail any more."""
    lifecycle, reason = at(state), ControllerError("broken")
    failed = lifecycle.fail(reason)
    assert failed == ("failed" in ALLOWED[state])
    assert lifecycle.state == ("failed" if failed else state)
    assert lifecycle.failure is (reason if failed else None)
    assert not lifecycle.fail(ControllerError("again"))
    assert lifecycle.failure is (reason if failed else None)


@pytest.mark.parametrize("state", ALLOWED)
def test_transitions_after_the_loop_has_ended(state: str) -> None:
    lifecycle = at(state)
    lifecycle.orphan(QueueShutdown("the loop has ended"))
    assert lifecycle.state == (state if state in ("closing", "closed", "handed over") else "failed")


@pytest.mark.parametrize("state", ALLOWED)
def test_transitions_in_a_forked_child(state: str) -> None:
    lifecycle = at(state)
    lifecycle.disown(QueueShutdown("the parent's"))
    assert lifecycle.state == "closed"


async def test_waiting_for_the_end_of_a_reset() -> None:
    """Waiters get the state that follows, and also wait for an immediately following reset."""
    lifecycle = at("ready")
    assert await lifecycle.settled() is State.READY
    lifecycle.to(State.RESETTING)
    waiting = [asyncio.create_task(lifecycle.settled()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    lifecycle.to(State.READY)
    lifecycle.to(State.SAVING)
    assert {State.RESETTING, State.SAVING} == TRANSIENT
    await asyncio.sleep(0.01)
    assert not waiting[1].done()
    lifecycle.fail(ControllerError("broken"))
    assert await asyncio.gather(*waiting[1:]) == [State.FAILED] * 2
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
