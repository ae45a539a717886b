"""What the hot path takes from inside of an event loop: two attributes of asyncio's own loops that
are no part of its interface.

Everything is here: why, the test whether a loop has it as expected, and what is done without.
uvloop's has neither. The third liberty of the hot path, an awaitable's am_send slot, is CPython's
documented C interface (`PyAsyncMethods.am_send`, since 3.10), which Cython can't fill: see
ext/hotpath/send.h.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sized
from typing import Any


def ready_callbacks(loop: asyncio.AbstractEventLoop) -> Sized | None:
    """The loop's collection of callbacks that are due, or None where it doesn't show one.

    Why: spinning for a completion is worth it only while nothing else wants the thread, and asking
    takes no call. Without: a spin is bounded by its budget alone, so others wait up to that long.
    """
    ready: Any = getattr(loop, "_ready", None)
    return ready if isinstance(loop, asyncio.BaseEventLoop) and isinstance(ready, Sized) else None


def shows_thread(loop: asyncio.AbstractEventLoop) -> bool:
    """Is `loop._thread_id` the thread that it runs in, and None while it doesn't run? Asked from that
    thread.

    Why: each read() has to know whether it is on the queue pair's loop, and that loop runs;
    asyncio.get_running_loop() costs as much as the rest of it (before Python 3.12 it asks the kernel
    for the process id). Without: loop.is_running() is called.
    """
    return isinstance(loop, asyncio.BaseEventLoop) and getattr(loop, "_thread_id", None) == (
        threading.get_ident() if loop.is_running() else None
    )
