"""Signal handlers of a command's event loop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from nvme_async.runtime.signals import END, handled


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_handlers_are_those_of_before(
    run: Callable[[Coroutine[Any, Any, None]], None], ignored: bool, fails: bool
) -> None:
    seen: list[signal.Signals] = []

    async def command() -> None:
        got = asyncio.Event()

        def take(number: signal.Signals) -> None:
            seen.append(number)
            got.set()

        with handled(take):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(got.wait(), 60)
            if fails:
                raise LookupError

    before = [signal.getsignal(number) for number in END]
    own = signal.SIG_IGN if ignored else signal.default_int_handler
    try:
        for number in END:
            signal.signal(number, own)
        try:
            run(command())
        except LookupError:
            assert fails
        assert seen == [signal.SIGTERM]
        assert [signal.getsignal(number) for number in END] == [own, own]
    finally:
        for number, handler in zip(END, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_callback_may_leave_the_second_signal_to_others(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def command() -> None:
        with handled(lambda _: None):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    mine = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, mine)
    try:
        run(command())
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
