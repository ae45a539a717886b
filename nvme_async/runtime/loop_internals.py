"""The internal attributes of an event loop that the hot path uses: two attributes of asyncio's
own loops that are not part of its interface.

Everything is here: the reason, the test whether a loop has it as expected, and the fallback.
uvloop's loop has neither. The third special technique of the hot path, an awaitable's am_send slot,
is CPython's documented C interface (`PyAsyncMethods.am_send`, since 3.10), which Cython can't fill:
see ext/hotpath/send.h.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sized
from typing import Any


def ready_callbacks(loop: asyncio.AbstractEventLoop) -> Sized | None:
    """The loop's collection of ready callbacks, or None if it has no such attribute.

    Why: spinning for a completion is worthwhile only while nothing else needs the thread, and the
    check needs no call. Fallback: a spin is bounded by its budget alone, so others wait up to that
    long.
    """
    ready: Any = getattr(loop, "_ready", None)
    return ready if isinstance(loop, asyncio.BaseEventLoop) and isinstance(ready, Sized) else None


def shows_thread(loop: asyncio.AbstractEventLoop) -> bool:
    """Is `loop._thread_id` the thread in which it runs, and None while it doesn't run? Called
    from that thread.

    Why: each read() has to know whether it is on the queue pair's loop, and that loop runs;
    asyncio.get_running_loop() costs as much as the rest of it (before Python 3.12 it asks the
    kernel for the process id). Fallback: loop.is_running() is called.
    """
    return isinstance(loop, asyncio.BaseEventLoop) and getattr(loop, "_thread_id", None) == (
        threading.get_ident() if loop.is_running() else None
    )
