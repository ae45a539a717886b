"""Signals of a command that runs on an event loop: what they did before is restored."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

END = (signal.SIGINT, signal.SIGTERM)
"""From a terminal, and from a service manager."""


@contextmanager
def handled(callback: Callable[[signal.Signals], object], numbers: tuple[signal.Signals, ...] = END) -> Iterator[None]:
    """callback(number) on the running loop for each of these signals, until the block ends.

    Then they do what they did before, also with uvloop, which leaves the handlers of a closed loop
    behind: the process would take no Ctrl-C any more. In the main thread only; elsewhere
    RuntimeError or ValueError.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            loop.add_signal_handler(number, callback, number)
        yield
    finally:
        for number, handler in before.items():
            if loop.remove_signal_handler(number) or signal.getsignal(number) is not handler:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def end_requested() -> Iterator[asyncio.Event]:
    """Set by SIGINT or SIGTERM. As for handled()."""
    ended = asyncio.Event()
    with handled(lambda _: ended.set()):
        yield ended
